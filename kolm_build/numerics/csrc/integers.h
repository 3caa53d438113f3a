// Products of matrices of 8-bit integers (spec/numerics.md, NUM-14). Free of torch.
#pragma once

#include <cstdint>

namespace kolm {

struct IntegerKernels {
  // c[i, j] = the sum of a[i, k] * b[j, k] over k, modulo 2^32: rows x columns numbers, row after
  // row, with `ldc` from one row of c to the next. The rows of a and b are contiguous.
  void (*products)(int64_t rows, int64_t columns, int64_t depth, const int8_t* a, int64_t lda,
                   const int8_t* b, int64_t ldb, int32_t* c, int64_t ldc);
};

}  // namespace kolm
