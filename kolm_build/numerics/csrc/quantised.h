// Products with quantised weights (spec/numerics.md, NUM-130 to NUM-135). Free of torch.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace kolm {

// What a code of a weight stands for. `offset4` and `offset8` are stored plus 8 and plus 128.
enum class Code : int { offset4 = 0, offset8 = 1, signed8 = 2, e4m3 = 3, e2m1 = 4 };

// How scales are stored. An e4m3 scale is divided by the global one; e8m0 is a power of two.
enum class Scale : int { f32 = 0, bf16 = 1, f16 = 2, e4m3 = 3, e8m0 = 4 };

// A weight of n rows and k columns in memory, row after row; low bits of a row come first.
struct QuantisedWeight {
  const void* codes;
  int64_t row_bytes;  // from one row to the next, all of which may be read
  Code code;
  const void* scales;  // ceil(k / group) of every row
  int64_t scale_step;  // elements from one row of scales to the next
  Scale scale;
  float global;           // of e4m3 scales
  const uint32_t* zeros;  // of offset codes, packed down the rows as codes are; null: none
  int64_t zero_step;      // words from one packed row of zeros to the next
  int64_t group;          // columns that share a scale: a multiple of 8, or at least k
};

struct QuantisedKernels {
  // y[i * y_step + j] = GEMM(x, the transposed values of w)[i, j]; NUM-131. x has m rows of k.
  void (*linear)(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_step,
                 const QuantisedWeight& w, float* y, int64_t y_step, const Parallel& pool);
  // The k values of one row of the weight; NUM-130.
  void (*row)(int64_t k, const QuantisedWeight& w, int64_t row, float* out);
};

struct DotKernels {
  // y[i * y_step + j] from rows of x that are made 8-bit integers; NUM-133, NUM-134. The scale of
  // a row is `input_scale`, or its own where that is null. The codes of w are integers.
  void (*linear)(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_step,
                 const float* input_scale, const QuantisedWeight& w, float* y, int64_t y_step,
                 const Parallel& pool);
};

}  // namespace kolm
