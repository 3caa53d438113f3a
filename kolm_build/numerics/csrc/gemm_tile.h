// One tile of a product, in registers: NUM-10's chunk sums. Free of torch.
#pragma once

#include <cstdint>

#include "vector.h"

namespace kolm::KOLM_ISA {

constexpr int64_t kChunk = 256;  // NUM-10: the depth of one chunk

// The largest tile: kRows x (kVectors * kLanes) sums in registers.
#if defined(KOLM_ISA_AVX512)
constexpr int kRows = 14, kVectors = 2;
#elif defined(KOLM_ISA_AVX2)
constexpr int kRows = 6, kVectors = 2;
#elif defined(__aarch64__)
constexpr int kRows = 8, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif
constexpr int kColumns = kVectors * kLanes;

// One chunk of one tile. Row i of a at depth k is a[k * a_step + i], column j of b is b[k * b_step
// + j].
struct TileTask {
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step;
  int64_t depth;  // at most kChunk
  float* c;
  int64_t ldc;
  int tail;    // columns in the last vector
  bool first;  // the chunk at depth 0: t starts from +0
  bool last;   // no chunk follows: a NaN becomes the canonical one
};

template <int Rows, int Vectors>
inline __attribute__((always_inline)) void chunk_sums(const TileTask& task,
                                                      Vector (&sums)[Rows][Vectors]) {
  const float* a = task.a;
  const float* b = task.b;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sums[i][v] = zero();
  for (int64_t k = 0; k < task.depth; ++k, a += task.a_step, b += task.b_step) {
    Vector columns[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vector row = broadcast(a[i]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[i][v] = fma(row, columns[v], sums[i][v]);
    }
  }
}

// t = t + s for one vector of a row; `n` of its lanes are columns.
inline void fold(float* c, Vector s, int64_t n, bool first, bool last) {
  const bool whole = n == kLanes;
  const Vector t = first ? zero() : whole ? load(c) : load_partial(c, n);
  Vector sum = add(t, s);
  if (last) sum = canonical(sum);
  if (whole)
    store(c, sum);
  else
    store_partial(c, sum, n);
}

template <int Rows, int Vectors>
__attribute__((noinline)) void run_tile(const TileTask& task) {
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(task.c + i * task.ldc + v * kLanes, 1);
  Vector sums[Rows][Vectors];
  chunk_sums<Rows, Vectors>(task, sums);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      fold(task.c + i * task.ldc + v * kLanes, sums[i][v], v + 1 < Vectors ? kLanes : task.tail,
           task.first, task.last);
}

using TileFunction = void (*)(const TileTask&);

template <int Rows>
inline TileFunction tile_of_vectors(int vectors) {
  static_assert(kVectors == 2);
  return vectors == 1 ? run_tile<Rows, 1> : run_tile<Rows, 2>;
}

template <int Rows = kRows>
inline TileFunction tile_function(int rows, int vectors) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return tile_function<Rows - 1>(rows, vectors);
  }
  return tile_of_vectors<Rows>(vectors);
}

// Runs a tile of rows x columns, at most kRows x kColumns.
inline void run_tile(int rows, int columns, TileTask task) {
  const int vectors = (columns + kLanes - 1) / kLanes;
  task.tail = columns - (vectors - 1) * kLanes;
  tile_function(rows, vectors)(task);
}

}  // namespace kolm::KOLM_ISA
