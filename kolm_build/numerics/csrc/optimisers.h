// The scalars of an optimiser's step (spec/numerics.md, section Optimisers), on the host. Free of
// torch, and of the C library's power function, whose last bit is the machine's.
#pragma once

#include <cmath>
#include <cstdint>

#include "maps.h"

namespace kolm {

// What AdamW is called with.
struct AdamWSettings {
  double lr, beta1, beta2, weight_decay, eps;
  bool maximize, decoupled;
};

// The unevaluated sum of two binary64 numbers: about 2^-104 of it is all that a product loses.
struct Pair64 {
  double high, low;
};

// NUM-82.
inline Pair64 product(const Pair64& a, const Pair64& b) {
  const double p = a.high * b.high;
  const double error = std::fma(a.high, b.high, -p);
  const double rest = std::fma(a.high, b.low, std::fma(a.low, b.high, error));
  const double high = p + rest;
  return {high, rest - (high - p)};
}

// Whether `step` counts steps: a whole number that binary64 tells from its neighbours.
inline bool is_count(double step) {
  return step >= 0.0 && step <= 0x1p53 && step == std::floor(step);
}

// NUM-82: base^count by squaring.
inline double power(double base, int64_t count) {
  Pair64 result{1.0, 0.0}, square{base, 0.0};
  for (; count > 0; count >>= 1) {
    if ((count & 1) != 0) result = product(result, square);
    square = product(square, square);
  }
  return result.high;
}

// NUM-80: binary64, rounded to binary32 once.
inline AdamW adamw_scalars(const AdamWSettings& s, int64_t step) {
  const double bias1 = 1.0 - power(s.beta1, step), bias2 = 1.0 - power(s.beta2, step);
  return {.decay = static_cast<float>(1.0 - s.lr * s.weight_decay),
          .weight_decay = static_cast<float>(s.weight_decay),
          .mean_weight = static_cast<float>(1.0 - s.beta1),
          .beta2 = static_cast<float>(s.beta2),
          .square_weight = static_cast<float>(1.0 - s.beta2),
          .step_size = static_cast<float>(s.lr / bias1),
          .bias2_sqrt = static_cast<float>(std::sqrt(bias2)),
          .eps = static_cast<float>(s.eps),
          .maximize = s.maximize,
          .decoupled = s.decoupled};
}

}  // namespace kolm
