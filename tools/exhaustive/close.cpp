#include "close.h"

#include <cmath>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace exhaustive {
namespace {

using kolm::Unary;

// One function of the library over a chunk.
#if defined(__AVX512F__)
#define LIBRARY(name)                                                   \
  extern "C" __m512d _ZGVeN8v_##name(__m512d);                          \
  void v_##name(const double* x, double* y) {                           \
    for (int i = 0; i < kChunk; i += 8)                                 \
      _mm512_storeu_pd(y + i, _ZGVeN8v_##name(_mm512_loadu_pd(x + i))); \
  }
#else
#define LIBRARY(name)                                        \
  void v_##name(const double* x, double* y) {                \
    for (int i = 0; i < kChunk; ++i) y[i] = std::name(x[i]); \
  }
#endif
LIBRARY(exp)
LIBRARY(exp2)
LIBRARY(expm1)
LIBRARY(log)
LIBRARY(log1p)
LIBRARY(log2)
LIBRARY(log10)
LIBRARY(tanh)
LIBRARY(erf)
LIBRARY(erfc)
LIBRARY(sin)
LIBRARY(cos)

template <class F>
void each(const double* x, double* y, F f) {
  for (int i = 0; i < kChunk; ++i) y[i] = f(x[i]);
}

const double kRootHalf = 0.70710678118654752440, kRootTwoOverPi = 0.79788456080286535588;

double bound(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// e^-x and e^x, kept finite.
void exp_of(const double* x, double sign, double* y) {
  double a[kChunk];
  each(x, a, [=](double v) { return bound(sign * v, -700.0, 700.0); });
  v_exp(a, y);
}
void logistic(const double* x, double* y) {
  exp_of(x, -1.0, y);
  each(y, y, [](double e) { return 1.0 / (1.0 + e); });
}
void softplus(const double* x, double* y) {
  double a[kChunk];
  each(x, a, [](double v) { return -std::fabs(v); });
  exp_of(a, 1.0, y);
  v_log1p(y, y);
  for (int i = 0; i < kChunk; ++i) y[i] += x[i] > 0.0 ? x[i] : 0.0;
}
void phi(const double* x, double* y) {
  double a[kChunk];
  each(x, a, [](double v) { return -v * kRootHalf; });
  v_erfc(a, y);
  each(y, y, [](double q) { return 0.5 * q; });
}
void twice_gelu_argument(const double* x, double* y) {
  each(x, y, [](double v) { return 2.0 * kRootTwoOverPi * (v + 0.044715 * (v * v * v)); });
}

// x * factor, where the factor is 1/2 at 0: beside 0 its rounding away from 1/2 is what decides.
void product(const double* x, const double* factor, double* y) {
  for (int i = 0; i < kChunk; ++i) {
    const double a = bound(x[i], -1e4, 1e300);
    const double near = a * 0.5 * (1.0 + std::copysign(0x1p-41, a));
    y[i] = std::fabs(a) < 0x1p-41 ? near : a * factor[i];
  }
}

void gelu_tanh_derivative(const double* x, double* y) {
  double t[kChunk], s[kChunk], rest[kChunk], minus[kChunk];
  twice_gelu_argument(x, t);
  each(t, minus, [](double v) { return -v; });
  logistic(t, s);
  logistic(minus, rest);
  for (int i = 0; i < kChunk; ++i) {
    const double a = bound(x[i], -40.0, 40.0);
    const double slope = 2.0 * kRootTwoOverPi * (1.0 + 3.0 * 0.044715 * a * a);
    y[i] = s[i] * (1.0 + a * slope * rest[i]);
  }
}

void mish_derivative(const double* x, double* y) {
  double t[kChunk], s[kChunk];
  softplus(x, t);
  v_tanh(t, t);
  logistic(x, s);
  for (int i = 0; i < kChunk; ++i) {
    const double a = bound(x[i], -1e3, 1e3);
    y[i] = t[i] + a * (1.0 - t[i] * t[i]) * s[i];
  }
}

void silu_derivative(const double* x, double* y) {
  double rest[kChunk], minus[kChunk];
  each(x, minus, [](double v) { return -v; });
  logistic(minus, rest);
  logistic(x, y);
  for (int i = 0; i < kChunk; ++i) y[i] *= 1.0 + bound(x[i], -1e3, 1e3) * rest[i];
}

void gelu_derivative(const double* x, double* y) {
  double a[kChunk], bell[kChunk];
  each(x, a, [](double v) { return bound(v, -37.0, 37.0); });
  each(a, bell, [](double v) { return -0.5 * v * v; });
  v_exp(bell, bell);
  phi(a, y);
  for (int i = 0; i < kChunk; ++i) y[i] += a[i] * (0.5 * kRootTwoOverPi) * bell[i];
}

}  // namespace

void close(Unary function, const double* x, double* y) {
  double a[kChunk];
  switch (function) {
    case Unary::exp:
      return v_exp(x, y);
    case Unary::exp2:
      return v_exp2(x, y);
    case Unary::expm1:
      return v_expm1(x, y);
    case Unary::log:
      return v_log(x, y);
    case Unary::log1p:
      return v_log1p(x, y);
    case Unary::log2:
      return v_log2(x, y);
    case Unary::log10:
      return v_log10(x, y);
    case Unary::tanh:
      return v_tanh(x, y);
    case Unary::erf:
      return v_erf(x, y);
    case Unary::erfc:
      return v_erfc(x, y);
    case Unary::sin:
      return v_sin(x, y);
    case Unary::cos:
      return v_cos(x, y);
    case Unary::sigmoid:
    case Unary::softplus_derivative:
      return logistic(x, y);
    case Unary::log_sigmoid_derivative:
      each(x, a, [](double v) { return -v; });
      return logistic(a, y);
    case Unary::softplus:
      return softplus(x, y);
    case Unary::log_sigmoid:
      each(x, a, [](double v) { return -v; });
      softplus(a, y);
      return each(y, y, [](double v) { return -v; });
    case Unary::silu:
      logistic(x, a);
      return product(x, a, y);
    case Unary::gelu:
      phi(x, a);
      return product(x, a, y);
    case Unary::gelu_tanh:
      twice_gelu_argument(x, y);
      logistic(y, a);
      return product(x, a, y);
    case Unary::mish:
      softplus(x, a);
      v_tanh(a, a);
      for (int i = 0; i < kChunk; ++i) y[i] = bound(x[i], -1e3, 1e300) * a[i];
      return;
    case Unary::sqrt:
      return each(x, y, [](double v) { return std::sqrt(v); });
    case Unary::rsqrt:
      return each(x, y, [](double v) { return 1.0 / std::sqrt(v); });
    case Unary::reciprocal:
      return each(x, y, [](double v) { return 1.0 / v; });
    case Unary::square:
      return each(x, y, [](double v) { return v * v; });
    case Unary::silu_derivative:
      return silu_derivative(x, y);
    case Unary::gelu_derivative:
      return gelu_derivative(x, y);
    case Unary::gelu_tanh_derivative:
      return gelu_tanh_derivative(x, y);
    case Unary::mish_derivative:
      return mish_derivative(x, y);
    case Unary::cube:
      break;
  }
  __builtin_trap();
}

}  // namespace exhaustive
