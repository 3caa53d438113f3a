// Storage formats (spec/numerics.md, NUM-4 and NUM-56): widening is exact, narrowing rounds to
// nearest, ties to even, once, by integer arithmetic alone. Free of torch and of the standard
// library.
#pragma once

#include "binary64.h"

namespace kolm::KOLM_ISA {

KOLM_FN float bf16_to_f32(uint16_t code) {
  return canonical(binary32_of(static_cast<uint32_t>(code) << 16));
}
KOLM_FN uint16_t f32_to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t even = bits + 0x7fffu + (bits >> 16 & 1);
  return static_cast<uint16_t>(x == x ? even >> 16 : 0x7fc0u);
}

// A small binary format: sign, `kExponent` bits of exponent, `kMantissa` bits of mantissa, with
// subnormals. Codes above `kLargest` are not finite.
template <int kExponent, int kMantissa, uint32_t kLargest>
struct Small {
  static constexpr int kBias = (1 << (kExponent - 1)) - 1;
  static constexpr uint32_t kSign = 1u << (kExponent + kMantissa);
  static constexpr int kShift = 23 - kMantissa;
  static constexpr uint32_t kRebias = static_cast<uint32_t>(127 - kBias) << 23;
  static constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(128 - kBias) << 23;

  // The code of |x| for a finite |x|, as if the exponent had no end.
  KOLM_FN uint32_t narrow(uint32_t size) {
    const uint32_t normal = size - kRebias;
    const uint32_t rounded = (normal + (1u << (kShift - 1)) - 1 + (normal >> kShift & 1)) >> kShift;
    // Below the normal numbers the sum has the format's smallest subnormal as its last bit.
    constexpr uint32_t anchor = static_cast<uint32_t>(127 - kBias + 1 + kShift) << 23;
    const uint32_t subnormal = bits_of(binary32_of(size) + binary32_of(anchor)) - anchor;
    return size < kSmallestNormal ? subnormal : rounded;
  }
  // The value of a finite code without its sign.
  KOLM_FN float widen(uint32_t code) {
    const float normal = binary32_of((code << kShift) + kRebias);
    constexpr float smallest = 1.0f / static_cast<float>(uint64_t{1} << (kBias - 1 + kMantissa));
    return code >> kMantissa == 0 ? static_cast<float>(static_cast<int32_t>(code)) * smallest
                                  : normal;
  }
};

using Half = Small<5, 10, 0x7bff>;
using E5M2 = Small<5, 2, 0x7b>;
using E4M3 = Small<4, 3, 0x7e>;
using E2M1 = Small<2, 1, 0x7>;

KOLM_FN float with_sign(float size, uint32_t negative) {
  return binary32_of(bits_of(size) | (negative != 0 ? 0x80000000u : 0u));
}

KOLM_FN float f16_to_f32(uint16_t code) {
  const uint32_t size = code & 0x7fffu;
  const float infinite = size == 0x7c00u ? kInfinity32 : binary32_of(0x7fc00000u);
  const float value = size > 0x7bffu ? infinite : Half::widen(size);
  return canonical(with_sign(value, code & 0x8000u));
}
KOLM_FN uint16_t f32_to_f16(float x) {
  const uint32_t size = bits_of(x) & 0x7fffffffu;
  const uint32_t code = size >= 0x477ff000u ? 0x7c00u : Half::narrow(size);
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u;
  return static_cast<uint16_t>(x == x ? code | sign : 0x7e00u);
}

KOLM_FN float e5m2_to_f32(uint8_t code) {
  const uint32_t size = code & 0x7fu;
  const float infinite = size == 0x7cu ? kInfinity32 : binary32_of(0x7fc00000u);
  const float value = size > 0x7bu ? infinite : E5M2::widen(size);
  return canonical(with_sign(value, code & 0x80u));
}
// Beyond the largest number: infinity.
KOLM_FN uint8_t f32_to_e5m2(float x) {
  const uint32_t size = bits_of(x) & 0x7fffffffu;
  const uint32_t code = size >= 0x47700000u ? 0x7cu : E5M2::narrow(size);
  return static_cast<uint8_t>(x == x ? code | (bits_of(x) >> 24 & 0x80u) : 0x7fu);
}

KOLM_FN float e4m3_to_f32(uint8_t code) {
  const uint32_t size = code & 0x7fu;
  const float value = size == 0x7fu ? binary32_of(0x7fc00000u) : E4M3::widen(size);
  return canonical(with_sign(value, code & 0x80u));
}
// The format has no infinity: beyond the largest number, 448, it is NaN (0x7f or 0xff).
KOLM_FN uint8_t f32_to_e4m3(float x) {
  const uint32_t size = bits_of(x) & 0x7fffffffu;
  const uint32_t code = size > 0x43e80000u ? 0x7fu : E4M3::narrow(size);
  return static_cast<uint8_t>(x == x ? code | (bits_of(x) >> 24 & 0x80u) : 0x7fu);
}

KOLM_FN float e2m1_to_f32(uint8_t code) { return with_sign(E2M1::widen(code & 7u), code & 8u); }
// The format has neither infinity nor NaN: beyond the largest number, 6, it is 6; NaN is +6.
KOLM_FN uint8_t f32_to_e2m1(float x) {
  const uint32_t size = bits_of(x) & 0x7fffffffu;
  const uint32_t code = size > 0x40a00000u ? 7u : E2M1::narrow(size);
  return static_cast<uint8_t>(x == x ? code | (bits_of(x) >> 28 & 8u) : 7u);
}

}  // namespace kolm::KOLM_ISA
