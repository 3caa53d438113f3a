// Products of very few rows, bound by memory: every element of B is read once, and nothing of it is
// written before it is used. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm_tile.h"
#include "vector.h"

namespace kolm::KOLM_ISA {

constexpr int kThinRows = 4;                            // of a packed matrix
constexpr int kFewRows = kLanes == 16 ? 8 : kThinRows;  // of one as it lies
constexpr int64_t kAhead = 1024;  // floats between what is read and what is fetched for later

// Few rows of A, each contiguous in its depth.
struct ThinRows {
  const float* data;
  int64_t step;
  int64_t depth;
};

// t = t + s, then s = +0: the end of a chunk.
template <int Count>
inline void end_chunk(Vector (&t)[Count], Vector (&s)[Count]) {
#pragma GCC unroll 16
  for (int i = 0; i < Count; ++i) {
    t[i] = add(t[i], s[i]);
    s[i] = zero();
  }
}

inline void put_columns(float* c, Vector t, int64_t width) {
  if (width >= kLanes)
    store(c, canonical(t));
  else if (width > 0)
    store_partial(c, canonical(t), width);
}

// Strips of packed columns that are read side by side: chains of sums that do not wait for one
// another, as many as registers hold.
template <int Rows>
constexpr int kStrips = kLanes == 16 || Rows <= 2 ? 2 : 1;

// Strips of packed columns, side by side.
template <int Rows, int Strips>
inline void thin_strips(const ThinRows& a, const float* b, float* c, int64_t ldc, int64_t width) {
  constexpr int vectors = Strips * kVectors;
  const int64_t strip_step = a.depth * kColumns;
  Vector t[Rows * vectors], s[Rows * vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows * vectors; ++i) t[i] = s[i] = zero();
  for (int64_t from = 0; from < a.depth; from += kChunk) {
    const int64_t end = std::min(a.depth, from + kChunk);
    for (int64_t k = from; k < end; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const float* at = b + v / kVectors * strip_step + k * kColumns + v % kVectors * kLanes;
        if (v % kVectors * kLanes % kLineFloats == 0) __builtin_prefetch(at + kAhead);
#pragma GCC unroll 4
        for (int i = 0; i < Rows; ++i)
          s[i * vectors + v] = fma(broadcast(a.data[i * a.step + k]), load(at), s[i * vectors + v]);
      }
    }
    end_chunk(t, s);
  }
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < vectors; ++v)
      put_columns(c + i * ldc + v * kLanes, t[i * vectors + v], width - v * kLanes);
}

// Columns of a packed matrix, from the strip at b on.
template <int Rows>
inline void thin_packed(const ThinRows& a, const float* b, float* c, int64_t ldc, int64_t width) {
  constexpr int64_t together = kStrips<Rows> * kColumns;
  int64_t j = 0;
  for (; width - j > together - kColumns; j += together)
    thin_strips<Rows, kStrips<Rows>>(a, b + j * a.depth, c + j, ldc, width - j);
  for (; j < width; j += kColumns) thin_strips<Rows, 1>(a, b + j * a.depth, c + j, ldc, width - j);
}

// Groups of kLanes columns at once: the chains of sums of one go on while another is transposed.
template <int Rows>
constexpr int kGroups = kLanes == 16 && Rows <= 4 ? 2 : 1;

// s = fma(a, b, s) over `deep` depths, at most kLanes, from k on; block[j] has the columns at k +
// j.
template <int Rows>
inline __attribute__((always_inline)) void add_depths(const ThinRows& a, int64_t k, int64_t deep,
                                                      const Vector (&block)[kLanes],
                                                      Vector (&s)[Rows]) {
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) {
    if (j >= deep) break;
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
      s[i] = fma(broadcast(a.data[i * a.step + k + j]), block[j], s[i]);
  }
}

// Depths [k, k + deep) of one group of `columns` columns, each contiguous in its depth: transposed
// in registers.
template <Element E, int Rows>
inline __attribute__((always_inline)) void thin_block(const ThinRows& a, const Storage<E>* b,
                                                      int64_t column_step, int64_t columns,
                                                      int64_t k, int64_t deep, Vector (&s)[Rows]) {
  Vector block[kLanes];
  if (columns >= kLanes && deep == kLanes) {
    const BlockRows<E> rows(b + k, column_step);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) __builtin_prefetch(rows(j) + kAhead / 16);
    load_transposed<E>(rows, block);
    add_depths(a, k, kLanes, block, s);
  } else {
    load_transposed_partial<E>(b + k, column_step, columns, deep, block);
    add_depths(a, k, deep, block, s);
  }
}

// One chunk, from depth `from` to `end`, of `width` columns.
template <Element E, int Rows, int Groups>
inline void thin_chunk(const ThinRows& a, const Storage<E>* b, int64_t column_step, int64_t width,
                       int64_t from, int64_t end, Vector (&t)[Groups][Rows]) {
  Vector s[Groups][Rows];
#pragma GCC unroll 2
  for (int g = 0; g < Groups; ++g)
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) s[g][i] = zero();
  for (int64_t k = from; k < end; k += kLanes)
#pragma GCC unroll 2
    for (int g = 0; g < Groups; ++g)
      thin_block<E, Rows>(a, b + g * kLanes * column_step, column_step, width - g * kLanes, k,
                          std::min<int64_t>(kLanes, end - k), s[g]);
#pragma GCC unroll 2
  for (int g = 0; g < Groups; ++g) end_chunk(t[g], s[g]);
}

// `width` columns, at most kGroups vectors of them.
template <Element E, int Rows>
inline void thin_columns(const ThinRows& a, const Storage<E>* b, int64_t column_step, float* c,
                         int64_t ldc, int64_t width) {
  constexpr int groups = kGroups<Rows>;
  Vector t[groups][Rows];
  for (int g = 0; g < groups; ++g)
    for (int i = 0; i < Rows; ++i) t[g][i] = zero();
  for (int64_t from = 0; from < a.depth; from += kChunk)
    thin_chunk<E, Rows, groups>(a, b, column_step, width, from, std::min(a.depth, from + kChunk),
                                t);
  for (int g = 0; g < groups; ++g)
    for (int i = 0; i < Rows; ++i)
      put_columns(c + i * ldc + g * kLanes, t[g][i], width - g * kLanes);
}

// Calls body<rows>(): a function for each number of rows.
template <int Rows, class Body>
inline void with_rows(int64_t rows, Body&& body) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return with_rows<Rows - 1>(rows, body);
  }
  body.template operator()<Rows>();
}

}  // namespace kolm::KOLM_ISA
