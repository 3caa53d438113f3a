// Products of very few rows, bound by memory: every element of B is read once, and nothing of it is
// written before it is used. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm_tile.h"
#include "vector.h"

namespace kolm::KOLM_ISA {

constexpr int kThinRows = 4;
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
#pragma GCC unroll 8
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

// One strip of packed columns.
template <int Rows>
inline void thin_strip(const ThinRows& a, const float* b, float* c, int64_t ldc, int64_t width) {
  Vector t[Rows * kVectors], s[Rows * kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows * kVectors; ++i) t[i] = s[i] = zero();
  for (int64_t from = 0; from < a.depth; from += kChunk) {
    const int64_t end = std::min(a.depth, from + kChunk);
    for (int64_t k = from; k < end; ++k, b += kColumns) {
      __builtin_prefetch(b + kAhead);
      if constexpr (kColumns > 16) __builtin_prefetch(b + kAhead + 16);
#pragma GCC unroll 4
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          s[i * kVectors + v] =
              fma(broadcast(a.data[i * a.step + k]), load(b + v * kLanes), s[i * kVectors + v]);
    }
    end_chunk(t, s);
  }
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < kVectors; ++v)
      put_columns(c + i * ldc + v * kLanes, t[i * kVectors + v], width - v * kLanes);
}

// `width` columns, at most kLanes, each contiguous in its depth: transposed in registers.
template <Element E, int Rows>
inline void thin_columns(const ThinRows& a, const Storage<E>* b, int64_t column_step, float* c,
                         int64_t ldc, int64_t width) {
  Vector t[Rows], s[Rows];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) t[i] = s[i] = zero();
  for (int64_t k = 0; k < a.depth; k += kLanes) {
    const int64_t deep = std::min<int64_t>(kLanes, a.depth - k);
    Vector block[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      const Storage<E>* column = b + j * column_step + k;
      if (j < width) __builtin_prefetch(column + kAhead / 16);
      block[j] = j >= width       ? zero()
                 : deep == kLanes ? widen<E>(column)
                                  : widen_partial<E>(column, deep);
    }
    transpose(block);
    if (deep == kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j)
#pragma GCC unroll 4
        for (int i = 0; i < Rows; ++i)
          s[i] = fma(broadcast(a.data[i * a.step + k + j]), block[j], s[i]);
    } else {
      for (int64_t j = 0; j < deep; ++j)
        for (int i = 0; i < Rows; ++i)
          s[i] = fma(broadcast(a.data[i * a.step + k + j]), block[j], s[i]);
    }
    if ((k + kLanes) % kChunk == 0 || k + kLanes >= a.depth) end_chunk(t, s);
  }
  for (int i = 0; i < Rows; ++i) put_columns(c + i * ldc, t[i], width);
}

// Calls body<rows>(): a function for each number of rows.
template <int Rows = kThinRows, class Body>
inline void with_rows(int64_t rows, Body&& body) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return with_rows<Rows - 1>(rows, body);
  }
  body.template operator()<Rows>();
}

}  // namespace kolm::KOLM_ISA
