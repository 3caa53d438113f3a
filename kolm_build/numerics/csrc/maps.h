// Elementwise operations of spec/numerics.md over contiguous binary32 arrays. Free of torch.
#pragma once

#include <cstdint>

namespace kolm {

enum class Unary : int {
  exp, exp2, expm1, log, log1p, log2, log10, tanh, erf, erfc, sigmoid, log_sigmoid, silu,
  gelu, gelu_tanh, rsqrt, sqrt, reciprocal, square, cube, sin, cos, softplus, mish,
};

// y = op(a, b); `p` is the scalar where the operation has one.
enum class Binary : int {
  add_scaled,       // a + p * b
  lerp,             // between a and b with weight p
  pow,              // a ** b
  silu_grad, sigmoid_grad, tanh_grad, gelu_grad, gelu_tanh_grad, softplus_grad, log_sigmoid_grad,
  mish_grad,        // gradient a, input (or output, as ATen's formula has it) b
};

enum class Ternary : int { addcmul, addcdiv };  // a + (p * b) * c ; a + (p * b) / c

// One AdamW step's scalars, already rounded to binary32 as spec/numerics.md says.
struct AdamW {
  float lr, beta1, beta2, eps, weight_decay, bias1, bias2_sqrt;
  bool maximize, decoupled;
};

struct MapKernels {
  void (*unary)(Unary op, int64_t n, const float* x, float* y);
  void (*binary)(Binary op, int64_t n, const float* a, const float* b, float* y, float p);
  void (*ternary)(Ternary op, int64_t n, const float* a, const float* b, const float* c, float* y,
                  float p);
  void (*adamw)(const AdamW& scalars, int64_t n, const float* grad, float* param, float* mean,
                float* square, float* square_max);  // square_max may be null (no amsgrad)
  // Storage formats: widening is exact, narrowing rounds to nearest even once.
  void (*widen_bf16)(int64_t n, const uint16_t* x, float* y);
  void (*widen_f16)(int64_t n, const uint16_t* x, float* y);
  void (*narrow_bf16)(int64_t n, const float* x, uint16_t* y);
  void (*narrow_f16)(int64_t n, const float* x, uint16_t* y);
};

}  // namespace kolm
