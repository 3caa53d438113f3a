// Matrix products of spec/numerics.md, section GEMM. Free of torch.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace kolm {

// Storage formats of an operand; arithmetic is always binary32.
enum class Element : int { f32 = 0, bf16 = 1, f16 = 2 };

// A matrix in memory. Strides count elements.
struct Operand {
  const void* data;
  Element element;
  int64_t row_stride;
  int64_t column_stride;
};

struct GemmKernels {
  // c[i * ldc + j] = GEMM(a, b)[i, j] for a of m x k and b of k x n; c is binary32, overwritten.
  void (*gemm)(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
               int64_t ldc, const Parallel& pool);
  // The same with a `b` that `pack` wrote: a weight that is used again and again.
  int64_t (*packed_floats)(int64_t k, int64_t n);
  void (*pack)(int64_t k, int64_t n, const Operand& b, float* packed, const Parallel& pool);
  void (*gemm_packed)(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed,
                      float* c, int64_t ldc, const Parallel& pool);
};

}  // namespace kolm
