// Elementwise kernels (maps.h): loops over the functions of functions.h, which compilers vectorise.
#include "maps.h"

#include "formats.h"
#include "functions.h"
#include "isa.h"

namespace kolm::KOLM_ISA {
namespace {

template <float (*kFunction)(float)>
void map(int64_t n, const float* x, float* y) {
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = kFunction(x[i]);
}

// sin and cos: whole blocks of small angles take the fast reduction.
template <float (*kSmall)(float), float (*kAny)(float)>
void map_angles(int64_t n, const float* x, float* y) {
  constexpr int64_t block = 64;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t count = n - start < block ? n - start : block;
    uint32_t large = 0;
    for (int64_t i = 0; i < count; ++i) large |= magnitude(x[start + i]) < kLargeAngle ? 0u : 1u;
    if (large == 0) {
      map<kSmall>(count, x + start, y + start);
    } else {
      map<kAny>(count, x + start, y + start);
    }
  }
}

using UnaryLoop = void (*)(int64_t, const float*, float*);

// In the order of `Unary`.
constexpr UnaryLoop kUnaryLoops[] = {
    map<exp_f32>,
    map<exp2_f32>,
    map<expm1_f32>,
    map<log_f32>,
    map<log1p_f32>,
    map<log2_f32>,
    map<log10_f32>,
    map<tanh_f32>,
    map<erf_f32>,
    map<erfc_f32>,
    map<sigmoid_f32>,
    map<log_sigmoid_f32>,
    map<silu_f32>,
    map<gelu_f32>,
    map<gelu_tanh_f32>,
    map<rsqrt_f32>,
    map<sqrt_f32>,
    map<reciprocal_f32>,
    map<square_f32>,
    map<cube_f32>,
    map_angles<sin_small_f32, sin_f32>,
    map_angles<cos_small_f32, cos_f32>,
    map<softplus_f32>,
    map<mish_f32>,
    map<silu_derivative_f32>,
    map<gelu_derivative_f32>,
    map<gelu_tanh_derivative_f32>,
    map<softplus_derivative_f32>,
    map<log_sigmoid_derivative_f32>,
    map<mish_derivative_f32>,
};
static_assert(sizeof kUnaryLoops / sizeof kUnaryLoops[0] == kUnaryCount);

void unary(Unary op, int64_t n, const float* x, float* y) {
  kUnaryLoops[static_cast<int>(op)](n, x, y);
}

KOLM_FN float add_scaled(float a, float b, float p) { return canonical(a + p * b); }
KOLM_FN float lerp_from_start(float a, float b, float p) { return canonical(a + p * (b - a)); }
KOLM_FN float lerp_from_end(float a, float b, float p) {
  return canonical(b - (b - a) * (1.0f - p));
}
KOLM_FN float power(float a, float b, float) { return pow_f32(a, b); }
KOLM_FN float sigmoid_grad(float a, float b, float) { return canonical((a * (1.0f - b)) * b); }
KOLM_FN float tanh_grad(float a, float b, float) { return canonical(a * (1.0f - b * b)); }
template <float (*kDerivative)(float)>
KOLM_FN float chain(float a, float b, float) {
  return canonical(a * kDerivative(b));
}

template <float (*kFunction)(float, float, float)>
void map2(int64_t n, const float* a, const float* b, float* y, float p) {
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = kFunction(a[i], b[i], p);
}

void lerp(int64_t n, const float* a, const float* b, float* y, float p) {
  if (magnitude(p) < 0.5f) {
    map2<lerp_from_start>(n, a, b, y, p);
  } else {
    map2<lerp_from_end>(n, a, b, y, p);
  }
}

using BinaryLoop = void (*)(int64_t, const float*, const float*, float*, float);

// In the order of `Binary`.
constexpr BinaryLoop kBinaryLoops[] = {
    map2<add_scaled>,
    lerp,
    map2<power>,
    map2<chain<silu_derivative_f32>>,
    map2<sigmoid_grad>,
    map2<tanh_grad>,
    map2<chain<gelu_derivative_f32>>,
    map2<chain<gelu_tanh_derivative_f32>>,
    map2<chain<softplus_derivative_f32>>,
    map2<chain<log_sigmoid_derivative_f32>>,
    map2<chain<mish_derivative_f32>>,
};
static_assert(sizeof kBinaryLoops / sizeof kBinaryLoops[0] == kBinaryCount);

void binary(Binary op, int64_t n, const float* a, const float* b, float* y, float p) {
  kBinaryLoops[static_cast<int>(op)](n, a, b, y, p);
}

void ternary(Ternary op, int64_t n, const float* a, const float* b, const float* c, float* y,
             float p) {
  if (op == Ternary::addcmul) {
    KOLM_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = canonical(a[i] + (p * b[i]) * c[i]);
  } else {
    KOLM_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = canonical(a[i] + (p * b[i]) / c[i]);
  }
}

// A NaN of either wins.
KOLM_FN float larger(float a, float b) { return a > b || a != a ? a : b; }

template <bool kMaximize, bool kDecoupled, bool kLargest, bool kFromStart>
void adamw_loop(const AdamW& s, int64_t n, const float* grad, float* param, float* mean,
                float* square, float* square_max) {
  const float minus_step = -s.step_size, weight = s.mean_weight, rest = 1.0f - s.mean_weight;
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    float g = kMaximize ? -grad[i] : grad[i];
    float p = param[i];
    if (kDecoupled) {
      p = p * s.decay;
    } else {
      g = g + s.weight_decay * p;
    }
    const float m = kFromStart ? mean[i] + weight * (g - mean[i]) : g - (g - mean[i]) * rest;
    const float v = square[i] * s.beta2 + (s.square_weight * g) * g;
    float largest = v;
    if (kLargest) square_max[i] = largest = canonical(larger(square_max[i], v));
    const float d = root(largest) / s.bias2_sqrt + s.eps;
    mean[i] = canonical(m);
    square[i] = canonical(v);
    param[i] = canonical(p + (minus_step * m) / d);
  }
}

template <bool... kChosen>
void adamw_of(const AdamW& s, int64_t n, const float* grad, float* param, float* mean,
              float* square, float* square_max) {
  constexpr int depth = sizeof...(kChosen);
  if constexpr (depth == 4) {
    adamw_loop<kChosen...>(s, n, grad, param, mean, square, square_max);
  } else {
    const bool answers[] = {s.maximize, s.decoupled, square_max != nullptr,
                            magnitude(s.mean_weight) < 0.5f};
    if (answers[depth]) {
      adamw_of<kChosen..., true>(s, n, grad, param, mean, square, square_max);
    } else {
      adamw_of<kChosen..., false>(s, n, grad, param, mean, square, square_max);
    }
  }
}

void adamw(const AdamW& s, int64_t n, const float* grad, float* param, float* mean, float* square,
           float* square_max) {
  adamw_of<>(s, n, grad, param, mean, square, square_max);
}

template <class From, class To, To (*kConvert)(From)>
void convert(int64_t n, const From* x, To* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = kConvert(x[i]);
}

}  // namespace

extern const MapKernels map_kernels;
const MapKernels map_kernels = {
    unary,
    binary,
    ternary,
    adamw,
    convert<uint16_t, float, bf16_to_f32>,
    convert<uint16_t, float, f16_to_f32>,
    convert<float, uint16_t, f32_to_bf16>,
    convert<float, uint16_t, f32_to_f16>,
    convert<uint8_t, float, e4m3_to_f32>,
    convert<uint8_t, float, e5m2_to_f32>,
    convert<uint8_t, float, e2m1_to_f32>,
    convert<float, uint8_t, f32_to_e4m3>,
    convert<float, uint8_t, f32_to_e5m2>,
    convert<float, uint8_t, f32_to_e2m1>,
};

}  // namespace kolm::KOLM_ISA
