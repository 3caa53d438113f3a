// Four products of 8-bit integers added to each 32-bit one, in the vectors of one instruction set:
// exact. Free of torch.
#pragma once

#include <cstdint>

#include "quantised_stage.h"
#include "vector.h"

namespace kolm::KOLM_ISA {

typedef int32_t Sums __attribute__((vector_size(kLanes * sizeof(int32_t))));

// dot_small(sums, w, a): bytes of w from 0 to 15; those of `a` from -127 to 127.
// dot_wide(sums, w, a): bytes of w as `wide_codes` makes them of codes that were stored plus 128;
// their sum with `kWideOffset` times that of `a` taken off is that of the codes.

#if defined(KOLM_ISA_AVX512)

using Bits = __m512i;

inline Bits pairs(Bits w, Bits a) { return _mm512_maddubs_epi16(w, a); }
inline Bits sums_of_pairs(Bits x) { return _mm512_madd_epi16(x, _mm512_set1_epi16(1)); }
inline Bits magnitudes(Bits x) { return _mm512_abs_epi8(x); }
inline Bits negated_where_negative(Bits x, Bits signs) {
  return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(signs), _mm512_setzero_si512(), x);
}

#elif defined(KOLM_ISA_AVX2)

using Bits = __m256i;

inline Bits pairs(Bits w, Bits a) { return _mm256_maddubs_epi16(w, a); }
inline Bits sums_of_pairs(Bits x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
inline Bits magnitudes(Bits x) { return _mm256_abs_epi8(x); }
inline Bits negated_where_negative(Bits x, Bits signs) { return _mm256_sign_epi8(x, signs); }

#endif

#if defined(KOLM_ISA_AVX512VNNI) || defined(KOLM_ISA_AVX2VNNI)

constexpr int kWideOffset = 128;

#if defined(KOLM_ISA_AVX512VNNI)
inline Bits add_products(Bits sums, Bits w, Bits a) { return _mm512_dpbusd_epi32(sums, w, a); }
#else
inline Bits add_products(Bits sums, Bits w, Bits a) { return _mm256_dpbusd_avx_epi32(sums, w, a); }
#endif

inline Words wide_codes(Words w) { return w; }
inline Sums dot_wide(Sums sums, Words w, Words a) {
  return reinterpret_cast<Sums>(add_products(reinterpret_cast<Bits>(sums),
                                             reinterpret_cast<Bits>(w), reinterpret_cast<Bits>(a)));
}
inline Sums dot_small(Sums sums, Words w, Words a) { return dot_wide(sums, w, a); }

#else

constexpr int kWideOffset = 0;

inline Words wide_codes(Words w) { return w ^ kSignBits; }

#if defined(KOLM_ISA_AVX512) || defined(KOLM_ISA_AVX2)

// A sum of two products must not saturate 16 bits: 2 * 15 * 127 and 2 * 128 * 127 do not.
inline Sums dot_small(Sums sums, Words w, Words a) {
  const Bits both = pairs(reinterpret_cast<Bits>(w), reinterpret_cast<Bits>(a));
  return sums + reinterpret_cast<Sums>(sums_of_pairs(both));
}
inline Sums dot_wide(Sums sums, Words w, Words a) {
  const auto codes = reinterpret_cast<Bits>(w), input = reinterpret_cast<Bits>(a);
  return dot_small(sums, reinterpret_cast<Words>(magnitudes(codes)),
                   reinterpret_cast<Words>(negated_where_negative(input, codes)));
}

#elif defined(KOLM_ISA_NEONDOT)

inline Sums dot_wide(Sums sums, Words w, Words a) {
  return vdotq_s32(sums, reinterpret_cast<int8x16_t>(w), reinterpret_cast<int8x16_t>(a));
}
inline Sums dot_small(Sums sums, Words w, Words a) { return dot_wide(sums, w, a); }

#elif defined(__aarch64__)

inline Sums dot_wide(Sums sums, Words w, Words a) {
  const auto codes = reinterpret_cast<int8x16_t>(w), input = reinterpret_cast<int8x16_t>(a);
  const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(input));
  const int16x8_t high = vmull_high_s8(codes, input);
  return sums + vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
inline Sums dot_small(Sums sums, Words w, Words a) { return dot_wide(sums, w, a); }

#else

// The products of the even and of the odd bytes, in 16 bits: the sum of two stays within them.
inline Sums dot_wide(Sums sums, Words w, Words a) {
  typedef int16_t Pairs __attribute__((vector_size(sizeof(Words))));
  const auto codes = reinterpret_cast<Pairs>(w), input = reinterpret_cast<Pairs>(a);
  const Pairs pairs = ((codes << 8) >> 8) * ((input << 8) >> 8) + (codes >> 8) * (input >> 8);
  const auto both = reinterpret_cast<Sums>(pairs);
  return sums + ((both << 16) >> 16) + (both >> 16);
}
inline Sums dot_small(Sums sums, Words w, Words a) { return dot_wide(sums, w, a); }

#endif
#endif

}  // namespace kolm::KOLM_ISA
