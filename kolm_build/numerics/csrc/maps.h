// Elementwise operations of spec/numerics.md over contiguous binary32 arrays. Free of torch.
// An output may be one of the inputs.
#pragma once

#include <cstdint>

namespace kolm {

enum class Unary : int {
  exp, exp2, expm1, log, log1p, log2, log10, tanh, erf, erfc, sigmoid, log_sigmoid, silu,
  gelu, gelu_tanh, rsqrt, sqrt, reciprocal, square, cube, sin, cos, softplus, mish,
  // The derivatives that the gradients of `Binary` multiply by.
  silu_derivative, gelu_derivative, gelu_tanh_derivative, softplus_derivative,
  log_sigmoid_derivative, mish_derivative,
};
constexpr int kUnaryCount = static_cast<int>(Unary::mish_derivative) + 1;

// y = op(a, b); `p` is the scalar where the operation has one.
enum class Binary : int {
  add_scaled,       // a + p * b
  lerp,             // between a and b with weight p
  pow,              // a ** b
  silu_grad, sigmoid_grad, tanh_grad, gelu_grad, gelu_tanh_grad, softplus_grad, log_sigmoid_grad,
  mish_grad,        // gradient a, input (or output, as ATen's formula has it) b
};
constexpr int kBinaryCount = static_cast<int>(Binary::mish_grad) + 1;

enum class Ternary : int { addcmul, addcdiv };  // a + (p * b) * c ; a + (p * b) / c

// The scalars of one AdamW step (NUM-80): computed in binary64, then rounded to binary32 once.
struct AdamW {
  float decay;          // 1 - lr * weight_decay: what a decoupled step multiplies the weight by
  float weight_decay;   // what another step adds to the gradient, times the weight
  float mean_weight;    // 1 - beta1
  float beta2;
  float square_weight;  // 1 - beta2
  float step_size;      // lr / (1 - beta1^t)
  float bias2_sqrt;     // sqrt(1 - beta2^t)
  float eps;
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
  // One code in each byte; e2m1 in the low four bits.
  void (*widen_e4m3)(int64_t n, const uint8_t* x, float* y);
  void (*widen_e5m2)(int64_t n, const uint8_t* x, float* y);
  void (*widen_e2m1)(int64_t n, const uint8_t* x, float* y);
  void (*narrow_e4m3)(int64_t n, const float* x, uint8_t* y);
  void (*narrow_e5m2)(int64_t n, const float* x, uint8_t* y);
  void (*narrow_e2m1)(int64_t n, const float* x, uint8_t* y);
};

}  // namespace kolm
