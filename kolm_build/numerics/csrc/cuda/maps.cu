// Elementwise operations of spec/numerics.md over contiguous binary32 arrays, and their random
// counterparts: one thread an element.
#include <stdexcept>

#include "device.h"
#include "kernels.h"
#include "math.cuh"

namespace kolm::cuda {
namespace {

constexpr int block_threads = 256;

dim3 flat_grid(int64_t n) { return dim3(static_cast<unsigned>(ceil_div(n, block_threads))); }

__device__ __forceinline__ int64_t element() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <float (*kFunction)(float)>
__global__ void unary_kernel(int64_t n, const float* x, float* y) {
  const int64_t i = element();
  if (i < n) y[i] = kFunction(x[i]);
}

template <float (*kFunction)(float, float, float)>
__global__ void binary_kernel(int64_t n, const float* a, const float* b, float* y, float p) {
  const int64_t i = element();
  if (i < n) y[i] = kFunction(a[i], b[i], p);
}

KOLM_FN float add_scaled(float a, float b, float p) { return canonical(a + p * b); }
KOLM_FN float lerp_of(float a, float b, float p) {
  return canonical(magnitude(p) < 0.5f ? a + p * (b - a) : b - (b - a) * (1.0f - p));
}
KOLM_FN float power(float a, float b, float) { return pow_f32(a, b); }
KOLM_FN float sigmoid_grad(float a, float b, float) { return canonical((a * (1.0f - b)) * b); }
KOLM_FN float tanh_grad(float a, float b, float) { return canonical(a * (1.0f - b * b)); }
template <float (*kDerivative)(float)>
KOLM_FN float chain(float a, float b, float) {
  return canonical(a * kDerivative(b));
}

using UnaryKernel = void (*)(int64_t, const float*, float*);
using BinaryKernel = void (*)(int64_t, const float*, const float*, float*, float);

UnaryKernel unary_kernel_of(Unary op) {
  switch (op) {
    case Unary::exp:
      return unary_kernel<exp_f32>;
    case Unary::exp2:
      return unary_kernel<exp2_f32>;
    case Unary::expm1:
      return unary_kernel<expm1_f32>;
    case Unary::log:
      return unary_kernel<log_f32>;
    case Unary::log1p:
      return unary_kernel<log1p_f32>;
    case Unary::log2:
      return unary_kernel<log2_f32>;
    case Unary::log10:
      return unary_kernel<log10_f32>;
    case Unary::tanh:
      return unary_kernel<tanh_f32>;
    case Unary::erf:
      return unary_kernel<erf_f32>;
    case Unary::erfc:
      return unary_kernel<erfc_f32>;
    case Unary::sigmoid:
      return unary_kernel<sigmoid_f32>;
    case Unary::log_sigmoid:
      return unary_kernel<log_sigmoid_f32>;
    case Unary::silu:
      return unary_kernel<silu_f32>;
    case Unary::gelu:
      return unary_kernel<gelu_f32>;
    case Unary::gelu_tanh:
      return unary_kernel<gelu_tanh_f32>;
    case Unary::rsqrt:
      return unary_kernel<rsqrt_f32>;
    case Unary::sqrt:
      return unary_kernel<sqrt_f32>;
    case Unary::reciprocal:
      return unary_kernel<reciprocal_f32>;
    case Unary::square:
      return unary_kernel<square_f32>;
    case Unary::cube:
      return unary_kernel<cube_f32>;
    case Unary::sin:
      return unary_kernel<sin_f32>;
    case Unary::cos:
      return unary_kernel<cos_f32>;
    case Unary::softplus:
      return unary_kernel<softplus_f32>;
    case Unary::mish:
      return unary_kernel<mish_f32>;
    case Unary::silu_derivative:
      return unary_kernel<silu_derivative_f32>;
    case Unary::gelu_derivative:
      return unary_kernel<gelu_derivative_f32>;
    case Unary::gelu_tanh_derivative:
      return unary_kernel<gelu_tanh_derivative_f32>;
    case Unary::softplus_derivative:
      return unary_kernel<softplus_derivative_f32>;
    case Unary::log_sigmoid_derivative:
      return unary_kernel<log_sigmoid_derivative_f32>;
    case Unary::mish_derivative:
      return unary_kernel<mish_derivative_f32>;
  }
  throw std::invalid_argument("no such function");
}

BinaryKernel binary_kernel_of(Binary op) {
  switch (op) {
    case Binary::add_scaled:
      return binary_kernel<add_scaled>;
    case Binary::lerp:
      return binary_kernel<lerp_of>;
    case Binary::pow:
      return binary_kernel<power>;
    case Binary::silu_grad:
      return binary_kernel<chain<silu_derivative_f32>>;
    case Binary::sigmoid_grad:
      return binary_kernel<sigmoid_grad>;
    case Binary::tanh_grad:
      return binary_kernel<tanh_grad>;
    case Binary::gelu_grad:
      return binary_kernel<chain<gelu_derivative_f32>>;
    case Binary::gelu_tanh_grad:
      return binary_kernel<chain<gelu_tanh_derivative_f32>>;
    case Binary::softplus_grad:
      return binary_kernel<chain<softplus_derivative_f32>>;
    case Binary::log_sigmoid_grad:
      return binary_kernel<chain<log_sigmoid_derivative_f32>>;
    case Binary::mish_grad:
      return binary_kernel<chain<mish_derivative_f32>>;
  }
  throw std::invalid_argument("no such function of two numbers");
}

// y = a / b, where b has one element or as many as a.
__global__ void divide_kernel(int64_t n, const float* a, const float* b, int64_t b_stride,
                              float* y) {
  const int64_t i = element();
  if (i < n) y[i] = canonical(a[i] / b[i * b_stride]);
}
__global__ void divide_scalar_kernel(int64_t n, const float* a, float b, float* y) {
  const int64_t i = element();
  if (i < n) y[i] = canonical(a[i] / b);
}

// y = a + beta * c for a matrix and an addend of any strides (NUM-12).
__global__ void add_matrix_kernel(int64_t n, int64_t rows, int64_t columns, float* t, float alpha,
                                  const float* c, int64_t batch_stride, int64_t row_stride,
                                  int64_t column_stride, float beta) {
  const int64_t i = element();
  if (i >= n) return;
  float value = t[i];
  if (alpha != 1.0f) value = alpha * value;
  if (c != nullptr) {
    const int64_t column = i % columns, row = i / columns % rows, batch = i / columns / rows;
    const float addend = c[batch * batch_stride + row * row_stride + column * column_stride];
    value = value + (beta == 1.0f ? addend : beta * addend);
  }
  t[i] = canonical(value);
}

__global__ void ternary_kernel(Ternary op, int64_t n, const float* a, const float* b,
                               const float* c, float* y, float p) {
  const int64_t i = element();
  if (i >= n) return;
  const float scaled = p * b[i];
  y[i] = canonical(a[i] + (op == Ternary::addcmul ? scaled * c[i] : scaled / c[i]));
}

// One AdamW step of one element (NUM-80).
__global__ void adamw_kernel(AdamW s, int64_t n, const float* grad, float* param, float* mean,
                             float* square, float* square_max) {
  const int64_t i = element();
  if (i >= n) return;
  float g = s.maximize ? -grad[i] : grad[i];
  float p = param[i];
  if (s.decoupled)
    p = p * s.decay;
  else
    g = g + s.weight_decay * p;
  const float m = lerp_of(mean[i], g, s.mean_weight);
  const float v = square[i] * s.beta2 + (s.square_weight * g) * g;
  float largest = v;
  if (square_max != nullptr) {
    const float before = square_max[i];
    largest = canonical(before > v || before != before ? before : v);
    square_max[i] = largest;
  }
  const float d = root(largest) / s.bias2_sqrt + s.eps;
  mean[i] = m;
  square[i] = canonical(v);
  param[i] = canonical(p + (-s.step_size * m) / d);
}

template <class From, class To, To (*kConvert)(From)>
__global__ void convert_kernel(int64_t n, const From* x, To* y) {
  const int64_t i = element();
  if (i < n) y[i] = kConvert(x[i]);
}

template <class From, class To, To (*kConvert)(From)>
void convert(int64_t n, const From* x, To* y, Stream stream) {
  if (n == 0) return;
  launch_flat(convert_kernel<From, To, kConvert>, flat_grid(n), dim3(block_threads), stream, n, x,
              y);
}

}  // namespace

void unary(Unary op, int64_t n, const float* x, float* y, Stream stream) {
  if (n == 0) return;
  launch_flat(unary_kernel_of(op), flat_grid(n), dim3(block_threads), stream, n, x, y);
}
void binary(Binary op, int64_t n, const float* a, const float* b, float* y, float p,
            Stream stream) {
  if (n == 0) return;
  launch_flat(binary_kernel_of(op), flat_grid(n), dim3(block_threads), stream, n, a, b, y, p);
}
void divide(int64_t n, const float* a, const float* b, int64_t b_stride, float* y, Stream stream) {
  if (n == 0) return;
  launch_flat(divide_kernel, flat_grid(n), dim3(block_threads), stream, n, a, b, b_stride, y);
}
void divide_scalar(int64_t n, const float* a, float b, float* y, Stream stream) {
  if (n == 0) return;
  launch_flat(divide_scalar_kernel, flat_grid(n), dim3(block_threads), stream, n, a, b, y);
}
void ternary(Ternary op, int64_t n, const float* a, const float* b, const float* c, float* y,
             float p, Stream stream) {
  if (n == 0) return;
  launch_flat(ternary_kernel, flat_grid(n), dim3(block_threads), stream, op, n, a, b, c, y, p);
}
void add_matrix(int64_t batch, int64_t rows, int64_t columns, float* t, float alpha, const float* c,
                int64_t batch_stride, int64_t row_stride, int64_t column_stride, float beta,
                Stream stream) {
  const int64_t n = batch * rows * columns;
  if (n == 0) return;
  launch_flat(add_matrix_kernel, flat_grid(n), dim3(block_threads), stream, n, rows, columns, t,
              alpha, c, batch_stride, row_stride, column_stride, beta);
}
void adamw(const AdamW& scalars, int64_t n, const float* grad, float* param, float* mean,
           float* square, float* square_max, Stream stream) {
  if (n == 0) return;
  launch_flat(adamw_kernel, flat_grid(n), dim3(block_threads), stream, scalars, n, grad, param,
              mean, square, square_max);
}
void widen_bf16(int64_t n, const uint16_t* x, float* y, Stream stream) {
  convert<uint16_t, float, bf16_to_f32>(n, x, y, stream);
}
void widen_f16(int64_t n, const uint16_t* x, float* y, Stream stream) {
  convert<uint16_t, float, f16_to_f32>(n, x, y, stream);
}
void narrow_bf16(int64_t n, const float* x, uint16_t* y, Stream stream) {
  convert<float, uint16_t, f32_to_bf16>(n, x, y, stream);
}
void narrow_f16(int64_t n, const float* x, uint16_t* y, Stream stream) {
  convert<float, uint16_t, f32_to_f16>(n, x, y, stream);
}

}  // namespace kolm::cuda
