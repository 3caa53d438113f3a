// The functions of spec/numerics.md, section functions: each is meant to be the correctly rounded
// binary32 value of the mathematical function (NUM-50, NUM-52), made in binary64 and rounded once.
// tools/exhaustive checks it input by input; docs/numerics.md says how far that has been done. Free
// of torch and of the standard library; compiles for CUDA too.
#pragma once

#include "binary64.h"

namespace kolm::KOLM_ISA {

// Rounds once; a NaN of the input or of an invalid operation gets the one payload.
KOLM_FN float rounded(double value) { return canonical(static_cast<float>(value)); }
KOLM_FN float rounded(double value, float x) {
  return x == x ? static_cast<float>(value) : binary32_of(0x7fc00000u);
}

// x with its size brought between `least` and `most`, where a NaN goes, too: sizes are ordered as
// their bits are, and these few integer operations are cheaper than comparisons in binary64. The
// values beyond `most` have rounded to their limit. Where a function is x times a factor that is
// 1/2 at 0, `least` keeps the factor from rounding to 1/2 itself: x/2 may be half way between two
// subnormal numbers.
KOLM_FN float held(float x, float least, float most) {
  const uint32_t low = bits_of(least), high = bits_of(most), sign = bits_of(x) & 0x80000000u;
  uint32_t size = bits_of(x) & 0x7fffffffu;
  size = size < high ? size : high;
  size = size > low ? size : low;
  return binary32_of(size | sign);
}
// x, and `least`, a negative number, for what is less: the bits of negative numbers are above those
// of the others.
KOLM_FN float not_below(float least, float x) {
  const uint32_t bits = bits_of(x), most = bits_of(least);
  return binary32_of(bits < most ? bits : most);
}
// Keeps an infinity from meeting a zero; the values beyond have rounded to their limit long before.
KOLM_FN double bounded(double x) { return at_least(at_most(x, 0x1p130), -200.0); }

// A few inputs lie so close to the middle of two binary32 numbers that a bit more than binary64
// decides: at the one with these bits `value` moves by `step`.
KOLM_FN double decided(double value, float x, uint32_t at, double step) {
  return bits_of(x) == at ? value + step : value;
}

// From 150 on e^x and e^-x are beyond the largest and the least binary32 number.
KOLM_FN float exp_f32(float x) { return rounded(exp_f64(held(x, 0.0f, 150.0f)), x); }
// The same where the input's neighbourhood is not known to binary64: the result itself.
KOLM_FN float settled(float value, float x, uint32_t at, uint32_t result) {
  const uint32_t is_there = 0 - static_cast<uint32_t>(bits_of(x) == at);  // no branch: GCC would
  const uint32_t bits = bits_of(value);  // make a few of them into a switch, and no vectors
  return binary32_of(bits ^ ((bits ^ result) & is_there));
}

KOLM_FN float exp2_f32(float x) {
  const double value = decided(exp2_f64(x, 0.0), x, 0x3b429d37u, 0x1p-51);
  return rounded(decided(value, x, 0xbcf3a937u, 0x1p-52), x);
}
KOLM_FN float expm1_f32(float x) {
  return x == 0.0f ? x : rounded(expm1_f64(held(x, 0.0f, 150.0f)), x);
}

KOLM_FN float log_special(double value, float x) {
  const float positive = x == kInfinity32 ? x : static_cast<float>(value);
  return x > 0.0f ? positive : (x == 0.0f ? -kInfinity32 : binary32_of(0x7fc00000u));
}
KOLM_FN float log_f32(float x) { return log_special(to_odd(log_parts(fraction(x))), x); }
KOLM_FN float log2_f32(float x) {
  const Fraction a = fraction(x);
  return log_special(fused(log_of({0.0, a.f}), kLog2e, a.k), x);
}
KOLM_FN float log10_f32(float x) {
  constexpr double high = 0x1.34413509fp-2, low = 0x1.e7fbcc47c4acdp-40,
                   log10e = 0x1.bcb7b1526e50ep-2;
  const Fraction a = fraction(x);
  const double value = fused(a.k, high, fused(log_of({0.0, a.f}), log10e, a.k * low));
  return log_special(decided(value, x, 0x0efeee7au, -0x1p-47), x);
}
KOLM_FN float log1p_f32(float x) {
  Fraction a = fraction(1.0 + static_cast<double>(x));
  a.f = a.k == 0.0 ? static_cast<double>(x) : a.f;
  const float value = x == kInfinity32 ? x : static_cast<float>(to_odd(log_parts(a)));
  const float special = x == -1.0f ? -kInfinity32 : binary32_of(0x7fc00000u);
  return x > -1.0f ? (x == 0.0f ? x : value) : special;
}

KOLM_FN float tanh_f32(float x) {
  const double t = expm1_f64(2.0 * held(x, 0.0f, 20.0f));
  return x == 0.0f ? x : rounded(t / (t + 2.0), x);
}

// 1 / (1 + e^-x), and near 0, where it comes close to the middle of two binary32 numbers, its
// series with a nudge to the side of the terms that binary64 cannot hold.
KOLM_FN double logistic(float at) {
  const double x = held(at, 0.0f, 200.0f);
  const double general = 1.0 / (1.0 + exp_f64(-x));
  const double rest = fused(x * x, x * (1.0 / 48.0), with_sign_of(0x1p-53, x));
  return magnitude(at) < 0x1p-13f ? 0.5 + fused(x, 0.25, -rest) : general;
}
KOLM_FN float sigmoid_f32(float x) {
  return settled(rounded(logistic(x), x), x, 0xba928601u, 0x3effdb5fu);
}
KOLM_FN float silu_f32(float x) {
  const double e = exp_f64(-held(x, 0x1p-40f, 200.0f));
  return rounded(not_below(-200.0f, x) / (1.0 + e), x);
}
KOLM_FN double softplus_f64(float x) {
  const double a = x;
  const double value = at_least(a, 0.0) + log1p_unit(exp_f64(-magnitude(held(x, 0.0f, 200.0f))));
  return decided(value, x, 0x39ea41d0u, 0x1p-52);
}
KOLM_FN float softplus_f32(float x) { return rounded(softplus_f64(x), x); }
KOLM_FN float log_sigmoid_f32(float x) { return rounded(-softplus_f64(-x), x); }

// tanh(softplus(x)) = n / (n + 2) with n = e * (e + 2), e = e^x.
KOLM_FN float mish_f32(float x) {
  const double a = bounded(x);
  const double e = exp_f64(at_most(a, 40.0));
  const double n = e * (e + 2.0);
  return rounded(a * decided(n / (n + 2.0), x, 0xb3a00000u, -0x1p-51), x);
}

// erfc(t) for t in [0, 20].
KOLM_FN double erfc_positive(double t) {
  return exp_f64(-(t * t)) * erfc_scaled(at_most(t, 10.25));
}
KOLM_FN float erf_f32(float x) {
  const double a = x, t = magnitude(a);
  const double large = with_sign_of(1.0 - erfc_positive(at_most(t, 10.25)), a);
  return rounded(t < 1.0 ? a * erf_ratio(a * a) : large, x);
}
KOLM_FN float erfc_f32(float x) {
  const double a = x, q = erfc_positive(at_most(magnitude(a), 20.0));
  return rounded(a < 0.0 ? 2.0 - q : q, x);
}

// The normal distribution's upper tail at |x| and its density times sqrt(2 pi), |x| at most 16.
struct Normal {
  double tail, bell;
};
KOLM_FN Normal normal_at(double x) {
  const double bell = exp_f64(x * x * -0.5);
  const double t = at_most(magnitude(x) * 0x1.6a09e667f3bcdp-1, 10.25);
  return {0.5 * (bell * erfc_scaled(t)), bell};
}
KOLM_FN float gelu_f32(float x) {
  // From -16 down the result is -0.
  const double near = held(x, 0x1p-40f, 16.0f), a = not_below(-16.0f, x);
  const double tail = decided(normal_at(near).tail, magnitude(x), 0x37b0a46fu, 0x1p-52);
  return rounded(a * (near < 0.0 ? tail : 1.0 - tail), x);
}

// 2 sqrt(2 / pi) (x + 0.044715 x^3) as high + low, and e^-that, |x| at most 14.
KOLM_FN double gelu_tanh_exponential(double x) {
  constexpr double a_high = 0x1.9884533d43651p+0, a_low = -0x1.cbc0d30ebfd15p-54;
  constexpr double b_high = 0x1.2444f2a4d8b4bp-4, b_low = -0x1.6c843a29d1c70p-61;
  const double square = x * x;  // exact
  const double product = square * b_high;
  const double product_low = fused(square, b_high, -product) + square * b_low;
  const double sum = product + a_high;
  const double part = sum - product;  // the two-sum of Knuth
  const double sum_low = ((product - (sum - part)) + (a_high - part)) + (product_low + a_low);
  const double u = x * sum;
  const double u_low = fused(x, sum, -u) + x * sum_low;
  return exp_f64(-u, -u_low);
}
KOLM_FN float gelu_tanh_f32(float x) {
  // From -14 down the result is -0.
  const double near = held(x, 0x1p-40f, 14.0f);
  const double e = decided(gelu_tanh_exponential(near), x, 0xb7b0a46fu, -0x1p-51);
  return rounded(not_below(-14.0f, x) / (1.0 + e), x);
}

// Derivatives.
KOLM_FN float silu_derivative_f32(float x) {
  const double a = held(x, 0.0f, 200.0f);
  const double e = exp_f64(-a), s = 1.0 / (1.0 + e);
  const double general = s * fused(a * e, s, 1.0);
  const double rest = fused(a * a, a * (1.0 / 12.0), with_sign_of(0x1p-53, a));
  const double value = magnitude(x) < 0x1p-13f ? 0.5 + fused(a, 0.5, -rest) : general;
  return settled(rounded(value, x), x, 0xbfa3a4e2u, 0xb58bc74au);
}
KOLM_FN float softplus_derivative_f32(float x) { return sigmoid_f32(x); }
KOLM_FN float log_sigmoid_derivative_f32(float x) { return sigmoid_f32(-x); }
KOLM_FN float gelu_derivative_f32(float x) {
  const double a = held(x, 0.0f, 16.0f);
  const Normal at = normal_at(a);
  const double phi = a < 0.0 ? at.tail : 1.0 - at.tail;
  const double value = fused(a * 0x1.9884533d43651p-2, at.bell, phi);
  float result = rounded(value, x);
  result = settled(result, x, 0xbf407581u, 0xb52718bfu);
  result = settled(result, x, 0x33206c99u, 0x3f000001u);
  result = settled(result, x, 0xb2a06c99u, 0x3effffffu);
  result = settled(result, x, 0xb8d0df65u, 0x3efff595u);
  return settled(result, x, 0xc168a95du, 0x80000001u);
}
KOLM_FN float gelu_tanh_derivative_f32(float x) {
  constexpr double a1 = 0x1.9884533d43651p+0, b3 = 0x1.b6676bf7450f0p-3;
  const double a = held(x, 0.0f, 14.0f);
  const double e = gelu_tanh_exponential(a), s = 1.0 / (1.0 + e);
  const double slope = a * fused(a * a, b3, a1);  // x times the derivative of the argument
  const double value = s * fused(slope * e, s, 1.0);
  float result = rounded(value, x);
  result = settled(result, x, 0xbf414072u, 0xba88aec4u);
  result = settled(result, x, 0x33206c99u, 0x3f000001u);
  return settled(result, x, 0xb2a06c99u, 0x3effffffu);
}
KOLM_FN float mish_derivative_f32(float x) {
  const double a = at_least(at_most(static_cast<double>(x), 40.0), -200.0);
  const double e = exp_f64(a), n2 = fused(e, e + 2.0, 2.0);
  const double top = fused(e + 2.0, n2, 4.0 * a * (1.0 + e));
  const double value = decided(e * top / (n2 * n2), x, 0xb2200000u, -0x1p-51);
  return rounded(decided(value, x, 0xbf98a196u, -0x1p-54), x);
}

KOLM_FN float sqrt_f32(float x) { return canonical(root(x)); }
KOLM_FN float reciprocal_f32(float x) { return canonical(1.0f / x); }
KOLM_FN float rsqrt_f32(float x) { return rounded(1.0 / root(static_cast<double>(x))); }
KOLM_FN float square_f32(float x) { return canonical(x * x); }
KOLM_FN float cube_f32(float x) { return canonical((x * x) * x); }

// From here on the fast reduction of an angle does not hold.
constexpr float kLargeAngle = 0x1p20f;

// The 32 bits of 2 / pi after the binary point that start at bit 32 * i - 64 (zeros before it).
KOLM_FN uint64_t two_over_pi_word(int i) {
  constexpr uint32_t words[] = {0,           0,           0xa2f9836eu, 0x4e441529u, 0xfc2757d1u,
                                0xf534ddc0u, 0xdb629599u, 0x3c439041u, 0xfe5163abu, 0xdebbc561u};
  return words[i];
}

// For any finite x of at least 1: 128 bits of x * 2 / pi modulo 4 (Payne and Hanek).
KOLM_FN Angle large_angle(float x) {
  const uint32_t bits = bits_of(x) & 0x7fffffffu;
  const uint64_t m = (bits & 0x7fffffu) | 0x800000u;
  // |x| = m * 2^e. Bits of 2 / pi before the one of weight 2^(1 - e) give multiples of 4.
  const int e = static_cast<int>(bits >> 23) - 150;
  const int first = e - 2 + 64;  // in the words above, which begin 64 bits early
  uint64_t product[5] = {};
  uint64_t carry = 0;
  for (int i = 3; i >= 0; --i) {  // 4 words of 32 bits, from the lowest
    const int at = first + 32 * i, word = at >> 5, shift = at & 31;
    const uint64_t pair = two_over_pi_word(word) << 32 | two_over_pi_word(word + 1);
    const uint64_t sum = m * ((pair >> (32 - shift)) & 0xffffffffu) + carry;
    product[i] = sum & 0xffffffffu;
    carry = sum >> 32;
  }
  // product[0..3] is the angle in units of 2^-126 of a quadrant.
  const uint64_t top = product[0] << 32 | product[1];
  const uint64_t quadrant = (top + (uint64_t{1} << 61)) >> 62;
  // What is left after the nearest quadrant, as a signed number of 2^-64 quadrants, and 62 bits
  // more.
  const int64_t signed_top = static_cast<int64_t>((top << 2 | product[2] >> 30));
  const double a = static_cast<double>(signed_top >> 32) * 0x1p-32;
  const double b = static_cast<double>(signed_top & 0xffffffff) * 0x1p-64;
  const double c =
      static_cast<double>((product[2] << 2 & 0xffffffffu) | product[3] >> 30) * 0x1p-96;
  const double sum = a + b, rest = (b - (sum - a)) + c;
  const double high = sum * kHalfPiHigh;
  const double low = fused(sum, kHalfPiHigh, -high) + fused(sum, kHalfPiLow, rest * kHalfPiHigh);
  const bool negative = (bits_of(x) >> 31) != 0;
  return {negative ? -high : high, negative ? -low : low, negative ? 0 - quadrant : quadrant};
}

KOLM_FN float sin_small_f32(float x) {
  double value = wave(small_angle(x));
  value = decided(value, x, 0x46199998u, 0x1p-53);
  value = decided(value, x, 0xc6199998u, -0x1p-53);
  return x == 0.0f ? x : rounded(value);
}
KOLM_FN float cos_small_f32(float x) {
  Angle a = small_angle(x);
  a.quadrant += 1;
  return rounded(wave(a));
}
KOLM_FN float sin_f32(float x) {
  if (magnitude(x) < kLargeAngle) return sin_small_f32(x);
  if (!(magnitude(x) < kInfinity32)) return binary32_of(0x7fc00000u);
  return rounded(wave(large_angle(x)));
}
KOLM_FN float cos_f32(float x) {
  if (magnitude(x) < kLargeAngle) return cos_small_f32(x);
  if (!(magnitude(x) < kInfinity32)) return binary32_of(0x7fc00000u);
  Angle a = large_angle(x);
  a.quadrant += 1;
  const double value = decided(wave(a), magnitude(x), 0x5f18b878u, -0x1p-52);
  return rounded(decided(value, magnitude(x), 0x6115cb11u, 0x1p-52));
}

// |x|^y of the general case, |x| finite and not 0: exp2(y * log2|x|), the logarithm and the product
// in two binary64 numbers each.
KOLM_FN double power_of_magnitude(double size, double y) {
  constexpr double log2e_low = 0x1.777d0ffda0d24p-56;
  const Fraction a = fraction(size);
  const double d = 2.0 + a.f, s = a.f / d, s_low = fused(-s, d, a.f) / d;
  const double z = s * s;
  const double high = s + s, low = fused(s * z, log_polynomial(z), s_low + s_low);
  const double l = high * kLog2e;
  const double l_low = fused(high, kLog2e, -l) + fused(high, log2e_low, low * kLog2e);
  const double sum = a.k + l, sum_low = ((a.k - sum) + l) + l_low;
  const double product = y * sum;
  const double product_low = fused(y, sum, -product) + y * sum_low;
  return exp2_f64(product, magnitude(product) < 1000.0 ? product_low : 0.0);
}

// pow as in C's annex F, for the exponents without an operation of their own.
KOLM_FN float pow_general_f32(float x, float y) {
  const float size = magnitude(x), y_size = magnitude(y);
  const bool even_size = y_size >= 0x1p24f;  // every such number is an even integer
  const float clipped = even_size ? 0.0f : y_size;
  const int32_t whole = static_cast<int32_t>(clipped);
  const bool integer = static_cast<float>(whole) == clipped;
  const bool odd = integer && (whole & 1) != 0;
  const double general = power_of_magnitude(size, y);
  const bool to_infinity = (size == 0.0f) == (y < 0.0f);
  const bool edge = size == 0.0f || size == kInfinity32;
  float value = edge ? (to_infinity ? kInfinity32 : 0.0f) : static_cast<float>(general);
  value = size == 1.0f ? 1.0f : value;
  value = (bits_of(x) >> 31) != 0 && odd ? -value : value;
  const bool invalid = x < 0.0f && !integer && size != kInfinity32 && y_size != kInfinity32;
  value = (x == x && y == y && !invalid) ? value : binary32_of(0x7fc00000u);
  return (y == 0.0f || x == 1.0f) ? 1.0f : value;
}

// pow (NUM-53).
KOLM_FN float pow_f32(float x, float y) {
  float value = pow_general_f32(x, y);
  value = y == 1.0f ? canonical(x) : value;
  value = y == 2.0f ? square_f32(x) : value;
  value = y == 3.0f ? cube_f32(x) : value;
  value = y == -1.0f ? reciprocal_f32(x) : value;
  value = y == 0.5f ? sqrt_f32(x) : value;
  return y == -0.5f ? rsqrt_f32(x) : value;
}

}  // namespace kolm::KOLM_ISA
