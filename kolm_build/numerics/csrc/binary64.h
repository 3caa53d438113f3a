// Functions of binary64 numbers that the binary32 functions of functions.h are rounded from: within
// about 2^-52 of the mathematical value, from IEEE operations alone, without branches or tables, so
// that compilers vectorise the loops that call them. Free of torch and of the standard library.
// The coefficients are those that tools/make_coefficients.py prints.
#pragma once

#include <cstdint>

#include "isa.h"

// KOLM_FN: a function that is compiled into its caller, for one instruction set, or for the device.
#if defined(__CUDACC__)
#define KOLM_FN static __host__ __device__ __forceinline__
#else
#define KOLM_FN static inline __attribute__((always_inline))
#endif
// The same for a member of a class.
#if defined(__CUDACC__)
#define KOLM_MEMBER __host__ __device__ __forceinline__
#else
#define KOLM_MEMBER inline __attribute__((always_inline))
#endif

namespace kolm::KOLM_ISA {

#if defined(__CUDACC__)
KOLM_FN double fused(double a, double b, double c) { return ::fma(a, b, c); }
KOLM_FN double root(double x) { return ::sqrt(x); }
KOLM_FN float root(float x) { return ::sqrtf(x); }
KOLM_FN void copy(void* to, const void* from, unsigned long size) { ::memcpy(to, from, size); }
#else
KOLM_FN double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
KOLM_FN double root(double x) { return __builtin_sqrt(x); }
KOLM_FN float root(float x) { return __builtin_sqrtf(x); }
KOLM_FN void copy(void* to, const void* from, unsigned long size) {
  __builtin_memcpy(to, from, size);
}
#endif

KOLM_FN uint64_t bits_of(double x) {
  uint64_t bits;
  copy(&bits, &x, sizeof bits);
  return bits;
}
KOLM_FN uint32_t bits_of(float x) {
  uint32_t bits;
  copy(&bits, &x, sizeof bits);
  return bits;
}
KOLM_FN double binary64_of(uint64_t bits) {
  double x;
  copy(&x, &bits, sizeof x);
  return x;
}
KOLM_FN float binary32_of(uint32_t bits) {
  float x;
  copy(&x, &bits, sizeof x);
  return x;
}

KOLM_FN float magnitude(float x) { return binary32_of(bits_of(x) & 0x7fffffffu); }
KOLM_FN double magnitude(double x) { return binary64_of(bits_of(x) & 0x7fffffffffffffffu); }
KOLM_FN double with_sign_of(double size, double sign) {
  return binary64_of(bits_of(size) | (bits_of(sign) & 0x8000000000000000u));
}
// A NaN becomes the larger bound's: the functions put NaN back at the end.
KOLM_FN double at_least(double x, double low) { return x > low ? x : low; }
KOLM_FN double at_most(double x, double high) { return x < high ? x : high; }

constexpr float kNaN32 = __builtin_nanf("");
constexpr float kInfinity32 = __builtin_inff();
constexpr double kInfinity64 = __builtin_inf();

// NUM-5: every NaN is stored with one payload.
KOLM_FN float canonical(float x) { return x == x ? x : binary32_of(0x7fc00000u); }

// Adding 1.5 * 2^52 leaves the nearest integer in the low bits.
constexpr double kRounder = 0x1.8p52;
constexpr double kLog2e = 0x1.71547652b82fep+0;
constexpr double kLog2High = 0x1.62e42fefa39efp-1;
constexpr double kLog2Low = 0x1.abc9e3b39803fp-56;

// 2^n for the integer that was rounded into `shifted`, n in [-1022, 1023].
KOLM_FN double power_of_two(double shifted) {
  return binary64_of((bits_of(shifted) << 52) + (uint64_t{1023} << 52));
}

// e^x = scale * (1 + rest).
struct Exponential {
  double scale, rest;
};

// Of x + low, |x| at most 700 and |low| far below.
KOLM_FN Exponential exponential(double x, double low) {
  const double shifted = fused(x, kLog2e, kRounder);
  const double n = shifted - kRounder;
  const double r = fused(n, -kLog2Low, fused(n, -kLog2High, x)) + low;
  double q = 0x1.ad7f7c96b9744p-26;
  q = fused(q, r, 0x1.28ad68db764d3p-22);
  q = fused(q, r, 0x1.71df253933d5ap-19);
  q = fused(q, r, 0x1.a0199a16a3b2ap-16);
  q = fused(q, r, 0x1.a01a012a6a1e7p-13);
  q = fused(q, r, 0x1.6c16c18426848p-10);
  q = fused(q, r, 0x1.1111111127b9ap-7);
  q = fused(q, r, 0x1.555555555088bp-5);
  q = fused(q, r, 0x1.55555555554fap-3);
  q = fused(q, r, 0x1.000000000000ap-1);
  return {power_of_two(shifted), fused(r * r, q, r)};
}

// e^(x + low), |x| at most 700.
KOLM_FN double exp_f64(double x, double low) {
  const Exponential e = exponential(x, low);
  return fused(e.scale, e.rest, e.scale);
}
KOLM_FN double exp_f64(double x) { return exp_f64(x, 0.0); }
// e^x - 1, |x| at most 700; -0 gives +0.
KOLM_FN double expm1_f64(double x) {
  const Exponential e = exponential(x, 0.0);
  return fused(e.scale, e.rest, e.scale - 1.0);
}

// 2^(x + low), for |x| above 1000 that of 1000.
KOLM_FN double exp2_f64(double x, double low) {
  const double bounded = at_least(at_most(x, 1000.0), -1000.0);
  const double shifted = bounded + kRounder;
  const double r = (bounded - (shifted - kRounder)) + low;
  double q = 0x1.ea0443e149b37p-32;
  q = fused(q, r, 0x1.e6064069ecc28p-28);
  q = fused(q, r, 0x1.b524dcbaabd8dp-24);
  q = fused(q, r, 0x1.62bfd476eb9d7p-20);
  q = fused(q, r, 0x1.ffcbfc7440cbdp-17);
  q = fused(q, r, 0x1.43091309700b5p-13);
  q = fused(q, r, 0x1.5d87fe78a2cc0p-10);
  q = fused(q, r, 0x1.3b2ab6fba1dd9p-7);
  q = fused(q, r, 0x1.c6b08d704a0cbp-5);
  q = fused(q, r, 0x1.ebfbdff82c598p-3);
  q = fused(q, r, 0x1.62e42fefa39efp-1);
  const double scale = power_of_two(shifted);
  return fused(scale, q * r, scale);
}

// x = 2^k * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); f is exact. x is positive and normal.
struct Fraction {
  double k, f;
};

constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu;  // bits of sqrt(1/2)
constexpr uint64_t kOne = 0x3ff0000000000000u;

KOLM_FN Fraction fraction(double x) {
  const uint64_t shifted = bits_of(x) + (kOne - kRootHalf);
  // The biased exponent as a double: below the bits of 2^52 it is an integer.
  const double biased = binary64_of((shifted >> 52) | 0x4330000000000000u);
  const double m = binary64_of((shifted & 0x000fffffffffffffu) + kRootHalf);
  return {biased - (0x1p52 + 1023.0), m - 1.0};
}

// The polynomial L of log((1 + s) / (1 - s)) = 2 s + s * z * L(z), z = s * s.
KOLM_FN double log_polynomial(double z) {
  double p = 0x1.0c09cf705c724p-3;
  p = fused(p, z, 0x1.0fbdf25dc09aep-3);
  p = fused(p, z, 0x1.3b1c3bf7dc52dp-3);
  p = fused(p, z, 0x1.745cf8e295116p-3);
  p = fused(p, z, 0x1.c71c7201b2a65p-3);
  p = fused(p, z, 0x1.2492492476948p-2);
  p = fused(p, z, 0x1.9999999999a39p-2);
  return fused(p, z, 0x1.5555555555555p-1);
}

// What log(1 + f) lacks to f: f - (half - (s * (half + R))).
KOLM_FN double log_rest(double f, double* half) {
  const double s = f / (2.0 + f);
  const double z = s * s;
  *half = 0.5 * f * f;
  return s * (*half + z * log_polynomial(z));
}

// A number as the sum of a large and a small part.
struct Parts {
  double large, small;
};

// log(2^k * (1 + f)), f exact.
KOLM_FN Parts log_parts(Fraction x) {
  constexpr double high = 0x1.62e42fefap-1;  // k * high is exact
  constexpr double low = 0x1.cf79abc9e3b3ap-40;
  double half;
  const double rest = log_rest(x.f, &half);
  const double whole = x.k * high;
  const double large = whole + x.f;
  const double lost = x.f - (large - whole);  // exact: |whole| > |f|, or it is 0
  return {large, (rest - half) + fused(x.k, low, lost)};
}
KOLM_FN double log_of(Fraction x) {
  const Parts log = log_parts(x);
  return log.large + log.small;
}

KOLM_FN double log_f64(double x) { return log_of(fraction(x)); }

// The sum of both parts, rounded to odd: a last bit of 1 says that more follows, so that rounding
// to binary32 afterwards is as if the exact sum were rounded once.
KOLM_FN double to_odd(Parts x) {
  const double sum = x.large + x.small;
  const double lost = x.small - (sum - x.large);
  const uint64_t bits = bits_of(sum);
  const uint64_t away = (bits_of(sum) ^ bits_of(lost)) >> 63 == 0 ? uint64_t{1} : ~uint64_t{0};
  return binary64_of(lost == 0.0 || (bits & 1) != 0 ? bits : bits + away);
}

// log(1 + y) for y in [0, 1].
KOLM_FN double log1p_unit(double y) {
  const bool large = y > 0x1.a8p-2;
  return log_of({large ? 1.0 : 0.0, large ? (y - 1.0) * 0.5 : y});
}

// e^(t * t) * erfc(t) for t in [0, 10.25].
KOLM_FN double erfc_scaled(double t) {
  const double inverse = 1.0 / (t + 3.0);
  const double w = (t - 3.0) * inverse;
  double p = 0x1.28e8afc79ec00p-27;
  p = fused(p, w, 0x1.67bb13fac296dp-25);
  p = fused(p, w, 0x1.a8f5a5f9db9b3p-26);
  p = fused(p, w, -0x1.f9452ff85a558p-23);
  p = fused(p, w, -0x1.a3820e2c33912p-22);
  p = fused(p, w, 0x1.0de12d9eda06fp-20);
  p = fused(p, w, 0x1.7232345daa6f4p-19);
  p = fused(p, w, -0x1.3efaa6306e15ap-18);
  p = fused(p, w, -0x1.251414df0a1fep-16);
  p = fused(p, w, 0x1.fe04395a98ef4p-16);
  p = fused(p, w, 0x1.c32500fc5aa9ap-14);
  p = fused(p, w, -0x1.22390ad8515d9p-12);
  p = fused(p, w, -0x1.1f78e0dc5ca51p-11);
  p = fused(p, w, 0x1.8dae3a5004153p-9);
  p = fused(p, w, -0x1.3dd3e71154564p-10);
  p = fused(p, w, -0x1.b78993d6f82bfp-6);
  p = fused(p, w, 0x1.e995f11b16ef1p-4);
  p = fused(p, w, -0x1.3deb21415db01p-2);
  p = fused(p, w, 0x1.2e326945de2b8p-1);
  p = fused(p, w, -0x1.c44c471baa378p-1);
  p = fused(p, w, 0x1.12f21ddd9f5e2p+0);
  return p * inverse;
}

// erf(x) / x for |x| <= 1, z = x * x.
KOLM_FN double erf_ratio(double z) {
  double p = 0x1.0579b3acb5861p-34;
  p = fused(p, z, -0x1.386ac4273be0cp-30);
  p = fused(p, z, 0x1.f7a4134d3eae9p-27);
  p = fused(p, z, -0x1.5f1d36ddaa8c4p-23);
  p = fused(p, z, 0x1.b9def1a14839fp-20);
  p = fused(p, z, -0x1.f4d1df39903cdp-17);
  p = fused(p, z, 0x1.f9a321a1218d8p-14);
  p = fused(p, z, -0x1.c02db3d8ed46bp-11);
  p = fused(p, z, 0x1.565bcd0db02f1p-8);
  p = fused(p, z, -0x1.b82ce3128499dp-6);
  p = fused(p, z, 0x1.ce2f21a042b20p-4);
  p = fused(p, z, -0x1.812746b0379e6p-2);
  return fused(p, z, 0x1.20dd750429b6dp+0);
}

// An angle less its multiple of pi / 2: high + low in [-pi/4, pi/4], and that multiple modulo 4.
struct Angle {
  double high, low;
  uint64_t quadrant;
};

constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
constexpr double kHalfPiHigh = 0x1.921fb54442d18p+0;
constexpr double kHalfPiLow = 0x1.1a62633145c07p-54;

// For a binary32 x below 2^20: n * kHalfPiHigh cancels exactly.
KOLM_FN Angle small_angle(double x) {
  const double shifted = fused(x, kTwoOverPi, kRounder);
  const double n = shifted - kRounder;
  const double first = fused(n, -kHalfPiHigh, x);
  const double high = fused(n, -kHalfPiLow, first);
  return {high, fused(n, -kHalfPiLow, first - high), bits_of(shifted)};
}

// sin or (odd quadrant) cos of the reduced angle, with the quadrant's sign.
KOLM_FN double wave(Angle a) {
  const double z = a.high * a.high;
  double s = -0x1.ab17e1e7fd6acp-41;
  s = fused(s, z, 0x1.61217f2544702p-33);
  s = fused(s, z, -0x1.ae645412e93d2p-26);
  s = fused(s, z, 0x1.71de3a5460acbp-19);
  s = fused(s, z, -0x1.a01a01a019939p-13);
  s = fused(s, z, 0x1.1111111111110p-7);
  s = fused(s, z, -0x1.5555555555555p-3);
  double c = 0x1.ab786614d8386p-45;
  c = fused(c, z, -0x1.9394ba2166d70p-37);
  c = fused(c, z, 0x1.1eed8deba5f99p-29);
  c = fused(c, z, -0x1.27e4fb7712df8p-22);
  c = fused(c, z, 0x1.a01a01a019d0bp-16);
  c = fused(c, z, -0x1.6c16c16c16c16p-10);
  c = fused(c, z, 0x1.5555555555555p-5);
  const double half = 0.5 * z;
  const double sine = a.high + fused(a.high * z, s, fused(a.low, -half, a.low));
  const double rough = 1.0 - half;
  const double cosine = rough + (((1.0 - rough) - half) + fused(z * z, c, -(a.high * a.low)));
  const double value = (a.quadrant & 1) != 0 ? cosine : sine;
  return binary64_of(bits_of(value) ^ ((a.quadrant & 2) << 62));
}

}  // namespace kolm::KOLM_ISA
