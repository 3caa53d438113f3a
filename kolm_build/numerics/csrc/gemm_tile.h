// One tile of a product, in registers: NUM-10's chunk sums. Free of torch.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "mutants.h"
#include "vector.h"

namespace kolm::KOLM_ISA {

constexpr int64_t kChunk = kProductChunk;  // NUM-10: the depth of one chunk

// The largest tile: kRows x (kVectors * kLanes) sums in registers; kTallRows x kLanes where the
// columns are one vector.
#if defined(KOLM_ISA_AVX512)
constexpr int kRows = 14, kVectors = 2, kTallRows = 16;
#elif defined(KOLM_ISA_AVX2)
constexpr int kRows = 6, kVectors = 2, kTallRows = 12;
#elif defined(__aarch64__)
constexpr int kRows = 8, kVectors = 2, kTallRows = 16;
#else
constexpr int kRows = 4, kVectors = 2, kTallRows = 8;
#endif
constexpr int kColumns = kVectors * kLanes;
// Of B, fetched before they are read: where rows lie apart, the processor does not see them coming.
constexpr int64_t kDepthsAhead = 16;
constexpr int kLineFloats = 16;  // of a cache line

// One chunk of one tile. Row i of a at depth k is a[k * a_step + i * a_line], where a_step or
// a_line is 1; column j of b is b[k * b_step + j].
struct TileTask {
  const float* a;
  int64_t a_step, a_line;
  const float* b;
  int64_t b_step;
  int64_t depth;      // at most kChunk
  const float* from;  // t before this chunk; null at depth 0: t starts from +0
  int64_t from_step;
  float* to;  // t after it
  int64_t to_step;
  const float* soon;  // what is written next, in rows to_step apart: fetched meanwhile
  int tail;           // columns in the last vector
  bool last;          // no chunk follows: a NaN becomes the canonical one
};

// The rows of a at one depth. Apart: rows lie a_line apart; else they are neighbours.
template <int Rows, bool Apart>
struct RowsAt {
  // Few pointers, and two steps from each, are what the registers hold.
  static constexpr int kEach = Apart ? 3 : Rows, kPointers = (Rows + kEach - 1) / kEach;
  const float* at[kPointers];
  int64_t line;

  inline __attribute__((always_inline)) RowsAt(const float* a, int64_t a_line) : line(a_line) {
#pragma GCC unroll 8
    for (int i = 0; i < kPointers; ++i) at[i] = a + i * kEach * a_line;
  }
  inline __attribute__((always_inline)) Vector row(int i) const {
    return broadcast(Apart ? at[i / kEach][i % kEach * line] : at[0][i]);
  }
  inline __attribute__((always_inline)) void advance(int64_t step) {
#pragma GCC unroll 8
    for (int i = 0; i < kPointers; ++i) at[i] += step;
  }
};

template <int Rows, int Vectors, bool Apart>
inline __attribute__((always_inline)) void chunk_sums(const TileTask& task,
                                                      Vector (&sums)[Rows][Vectors]) {
  const int64_t start = kProductReversed ? task.depth - 1 : 0;
  const int64_t forward = Apart ? 1 : task.a_step;
  const int64_t a_step = kProductReversed ? -forward : forward;
  const int64_t b_step = kProductReversed ? -task.b_step : task.b_step;
  RowsAt<Rows, Apart> a(task.a + start * forward, Apart ? task.a_line : 1);
  const float* b = task.b + start * task.b_step;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sums[i][v] = zero();
  const int64_t soon_b = kDepthsAhead * b_step;
  const auto add_depth = [&]() __attribute__((always_inline)) {
    Vector columns[Vectors];
#pragma GCC unroll 2
    for (int at = 0; at < Vectors * kLanes; at += kLineFloats) __builtin_prefetch(b + soon_b + at);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vector row = a.row(i);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[i][v] = fma(row, columns[v], sums[i][v]);
    }
    a.advance(a_step);
    b += b_step;
  };
  // One row of what is written soon at a depth: all at once they would hold up the loads.
  const int64_t fetching = std::min<int64_t>(Rows, task.depth);
  const float* soon = task.soon;
  for (int64_t k = 0; k < fetching; ++k, soon += task.to_step) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(soon + v * kLanes, 1);
    add_depth();
  }
  for (int64_t k = fetching; k < task.depth; ++k) add_depth();
}

// t = t + s for one vector of a row; `n` of its lanes are columns.
template <bool First, bool Last, bool Whole>
inline __attribute__((always_inline)) void fold(const float* from, Vector s, float* to, int64_t n) {
  Vector t = zero();
  if constexpr (!First) t = Whole ? load(from) : load_partial(from, n);
  Vector sum = add(t, s);
  if constexpr (Last) sum = canonical(sum);
  if constexpr (Whole)
    store(to, sum);
  else
    store_partial(to, sum, n);
}

template <bool First, bool Last, bool Whole, int Rows, int Vectors>
inline __attribute__((always_inline)) void fold_rows(const TileTask& task,
                                                     const Vector (&sums)[Rows][Vectors]) {
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    const float* from = First ? nullptr : task.from + i * task.from_step;
    float* to = task.to + i * task.to_step;
#pragma GCC unroll 4
    for (int v = 0; v + 1 < Vectors; ++v)
      fold<First, Last, true>(First ? nullptr : from + v * kLanes, sums[i][v], to + v * kLanes,
                              kLanes);
    constexpr int v = Vectors - 1;
    fold<First, Last, Whole>(First ? nullptr : from + v * kLanes, sums[i][v], to + v * kLanes,
                             task.tail);
  }
}

template <bool Whole, int Rows, int Vectors>
inline __attribute__((always_inline)) void fold_tile(const TileTask& task,
                                                     const Vector (&sums)[Rows][Vectors]) {
  if (task.from == nullptr)
    task.last ? fold_rows<true, true, Whole>(task, sums)
              : fold_rows<true, false, Whole>(task, sums);
  else
    task.last ? fold_rows<false, true, Whole>(task, sums)
              : fold_rows<false, false, Whole>(task, sums);
}

template <int Rows, int Vectors, bool Apart>
__attribute__((noinline)) void run_tile(const TileTask& task) {
  Vector sums[Rows][Vectors];
  chunk_sums<Rows, Vectors, Apart>(task, sums);
  if (task.tail == kLanes)
    fold_tile<true>(task, sums);
  else
    fold_tile<false>(task, sums);
}

using TileFunction = void (*)(const TileTask&);

// The tiles of 1, 2, ... rows.
template <int Vectors, bool Apart, int... Less>
constexpr std::array<TileFunction, sizeof...(Less)> tiles_of(std::integer_sequence<int, Less...>) {
  return {run_tile<Less + 1, Vectors, Apart>...};
}
template <int Vectors, bool Apart>
constexpr auto kTiles =
    tiles_of<Vectors, Apart>(std::make_integer_sequence<int, Vectors == 1 ? kTallRows : kRows>());

inline TileFunction tile_function(int rows, int vectors, bool apart) {
  static_assert(kVectors == 2);
  if (vectors == 1) return apart ? kTiles<1, true>[rows - 1] : kTiles<1, false>[rows - 1];
  return apart ? kTiles<2, true>[rows - 1] : kTiles<2, false>[rows - 1];
}

// Runs a tile of rows x columns: at most kRows x kColumns, or kTallRows x kLanes.
inline void run_tile(int rows, int columns, TileTask& task) {
  const int vectors = (columns + kLanes - 1) / kLanes;
  task.tail = columns - (vectors - 1) * kLanes;
  tile_function(rows, vectors, task.a_line != 1)(task);
}

}  // namespace kolm::KOLM_ISA
