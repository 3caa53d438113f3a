// The tables behind a C interface, for tests through ctypes: functions, rows and random numbers.
// Not part of the product; testing.cpp has products and attention.
#include "kernels.h"
#include "optimisers.h"

#define KOLM_API extern "C" __attribute__((visibility("default")))

namespace {
const kolm::Kernels& table(int isa) { return *kolm::available_kernels()[isa]; }
}  // namespace

KOLM_API void kolm_unary(int isa, int op, int64_t n, const float* x, float* y) {
  table(isa).maps.unary(static_cast<kolm::Unary>(op), n, x, y);
}
KOLM_API void kolm_binary(int isa, int op, int64_t n, const float* a, const float* b, float* y,
                          float p) {
  table(isa).maps.binary(static_cast<kolm::Binary>(op), n, a, b, y, p);
}
KOLM_API void kolm_ternary(int isa, int op, int64_t n, const float* a, const float* b,
                           const float* c, float* y, float p) {
  table(isa).maps.ternary(static_cast<kolm::Ternary>(op), n, a, b, c, y, p);
}
KOLM_API void kolm_adamw(int isa, const kolm::AdamW* scalars, int64_t n, const float* grad,
                         float* param, float* mean, float* square, float* square_max) {
  table(isa).maps.adamw(*scalars, n, grad, param, mean, square, square_max);
}
// base^0, base^1, ... base^(n - 1).
KOLM_API void kolm_powers(int, int64_t n, double base, double* out) {
  for (int64_t count = 0; count < n; ++count) out[count] = kolm::power(base, count);
}
KOLM_API void kolm_adamw_scalars(int, double lr, double beta1, double beta2, double weight_decay,
                                 double eps, int64_t step, kolm::AdamW* out) {
  *out = kolm::adamw_scalars({lr, beta1, beta2, weight_decay, eps, false, true}, step);
}

// Format 0 bf16, 1 f16, 2 e4m3, 3 e5m2, 4 e2m1.
KOLM_API void kolm_widen(int isa, int format, int64_t n, const void* x, float* y) {
  const kolm::MapKernels& maps = table(isa).maps;
  const uint16_t* words = static_cast<const uint16_t*>(x);
  const uint8_t* bytes = static_cast<const uint8_t*>(x);
  if (format == 0) maps.widen_bf16(n, words, y);
  if (format == 1) maps.widen_f16(n, words, y);
  if (format == 2) maps.widen_e4m3(n, bytes, y);
  if (format == 3) maps.widen_e5m2(n, bytes, y);
  if (format == 4) maps.widen_e2m1(n, bytes, y);
}
KOLM_API void kolm_narrow(int isa, int format, int64_t n, const float* x, void* y) {
  const kolm::MapKernels& maps = table(isa).maps;
  uint16_t* words = static_cast<uint16_t*>(y);
  uint8_t* bytes = static_cast<uint8_t*>(y);
  if (format == 0) maps.narrow_bf16(n, x, words);
  if (format == 1) maps.narrow_f16(n, x, words);
  if (format == 2) maps.narrow_e4m3(n, x, bytes);
  if (format == 3) maps.narrow_e5m2(n, x, bytes);
  if (format == 4) maps.narrow_e2m1(n, x, bytes);
}

KOLM_API float kolm_sum(int isa, int term, int64_t n, const float* x, const float* y, float p) {
  return table(isa).rows.sum(static_cast<kolm::Term>(term), n, x, y, p);
}
KOLM_API void kolm_column_sums_centred(int isa, int64_t rows, int64_t columns, const float* x,
                                       int64_t ldx, const float* y, int64_t ldy, const float* mean,
                                       const float* rstd, float* out) {
  table(isa).rows.column_sums_centred(rows, columns, x, ldx, y, ldy, mean, rstd, out);
}
KOLM_API void kolm_log_softmax(int isa, int64_t n, const float* x, float* y) {
  table(isa).rows.log_softmax(n, x, y);
}
KOLM_API void kolm_log_softmax_grad(int isa, int64_t n, const float* dy, const float* y,
                                    float* dx) {
  table(isa).rows.log_softmax_grad(n, dy, y, dx);
}
KOLM_API float kolm_log_sum_exp(int isa, int64_t n, const float* x) {
  return table(isa).rows.log_sum_exp(n, x);
}
// `moments` receives the mean and the reciprocal deviation.
KOLM_API void kolm_layer_norm(int isa, int64_t n, const float* x, const float* gain,
                              const float* bias, float eps, float* y, float* moments) {
  table(isa).rows.layer_norm(n, x, gain, bias, eps, y, moments, moments + 1);
}
KOLM_API void kolm_layer_norm_grad(int isa, int64_t n, const float* dy, const float* x,
                                   const float* gain, float mean, float rstd, float* dx) {
  table(isa).rows.layer_norm_grad(n, dy, x, gain, mean, rstd, dx);
}
KOLM_API void kolm_rms_norm(int isa, int64_t n, const float* x, const float* gain, float eps,
                            float* y, float* rstd) {
  table(isa).rows.rms_norm(n, x, gain, eps, y, rstd);
}
KOLM_API void kolm_rms_norm_grad(int isa, int64_t n, const float* dy, const float* x,
                                 const float* gain, float rstd, float* dx) {
  table(isa).rows.rms_norm_grad(n, dy, x, gain, rstd, dx);
}
KOLM_API void kolm_cumulative_sum(int isa, int64_t n, const float* x, int64_t sx, float* y,
                                  int64_t sy) {
  table(isa).rows.cumulative_sum(n, x, sx, y, sy);
}

KOLM_API void kolm_words(int isa, uint64_t seed, uint64_t stream, int64_t first, int64_t n,
                         uint32_t* out) {
  table(isa).random.words({seed, stream}, first, n, out);
}
KOLM_API void kolm_uniform(int isa, uint64_t seed, uint64_t stream, int64_t first, int64_t n,
                           float low, float high, float* out) {
  table(isa).random.uniform({seed, stream}, first, n, low, high, out);
}
KOLM_API void kolm_normal(int isa, uint64_t seed, uint64_t stream, int64_t first, int64_t n,
                          float mean, float std, float* out) {
  table(isa).random.normal({seed, stream}, first, n, mean, std, out);
}
KOLM_API void kolm_bernoulli(int isa, uint64_t seed, uint64_t stream, int64_t first, int64_t n,
                             double p, float* out) {
  table(isa).random.bernoulli({seed, stream}, first, n, p, out);
}
KOLM_API void kolm_exponential(int isa, uint64_t seed, uint64_t stream, int64_t first, int64_t n,
                               double rate, float* out) {
  table(isa).random.exponential({seed, stream}, first, n, rate, out);
}
