// Reductions and row operations of spec/numerics.md over binary32. Free of torch.
#pragma once

#include <cstdint>

namespace kolm {

// What a SUM adds up.
enum class Term : int {
  value,          // x
  square,         // x * x
  magnitude,      // |x|
  product,        // x * y
  centred_square, // (x - p) * (x - p)
  exp_shifted,    // exp(x - p)
};

struct RowKernels {
  // SUM of one contiguous row.
  float (*sum)(Term term, int64_t n, const float* x, const float* y, float p);
  // SUM down each column of rows x columns (leading dimension ld); term value.
  void (*column_sums)(int64_t rows, int64_t columns, const float* x, int64_t ld, float* out);
  // SUM down each column of x * ((y - mean[row]) * rstd[row]): the gradient of a norm's scale.
  void (*column_sums_centred)(int64_t rows, int64_t columns, const float* x, int64_t ldx,
                              const float* y, int64_t ldy, const float* mean, const float* rstd,
                              float* out);
  void (*softmax)(int64_t n, const float* x, float* y);
  void (*log_softmax)(int64_t n, const float* x, float* y);
  void (*softmax_grad)(int64_t n, const float* dy, const float* y, float* dx);
  void (*log_softmax_grad)(int64_t n, const float* dy, const float* y, float* dx);
  float (*log_sum_exp)(int64_t n, const float* x);
  // gain and bias may be null.
  void (*layer_norm)(int64_t n, const float* x, const float* gain, const float* bias, float eps,
                     float* y, float* mean, float* rstd);
  void (*layer_norm_grad)(int64_t n, const float* dy, const float* x, const float* gain, float mean,
                          float rstd, float* dx);
  void (*rms_norm)(int64_t n, const float* x, const float* gain, float eps, float* y, float* rstd);
  void (*rms_norm_grad)(int64_t n, const float* dy, const float* x, const float* gain, float rstd,
                        float* dx);
  // Ascending, one add an element; y may be x.
  void (*cumulative_sum)(int64_t n, const float* x, int64_t sx, float* y, int64_t sy);
};

}  // namespace kolm
