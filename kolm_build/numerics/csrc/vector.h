// The vectors of one instruction set: exact loads, one-rounding arithmetic, transposes. Free of
// torch.
#pragma once

#include <cstdint>
#include <cstring>

#include "gemm.h"
#include "isa.h"

#if defined(KOLM_ISA_AVX512) || defined(KOLM_ISA_AVX2)
// GCC 12's own header leaves what it means to be undefined uninitialised (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace kolm::KOLM_ISA {

constexpr uint32_t kQuietNaN = 0x7fc00000u;  // NUM-5

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// How an element lies in memory.
template <Element E>
struct StorageOf {
  using type = uint16_t;
};
template <>
struct StorageOf<Element::f32> {
  using type = float;
};
template <Element E>
using Storage = typename StorageOf<E>::type;

// The exact binary32 value of a binary16 one.
inline float widen_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return bits_as<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormal: exact
  return bits_as<float>(sign | bits_as<uint32_t>(magnitude));
}

template <Element E>
inline float widen_one(Storage<E> x) {
  if constexpr (E == Element::f32) return x;
  if constexpr (E == Element::bf16) return bits_as<float>(static_cast<uint32_t>(x) << 16);
  if constexpr (E == Element::f16) return widen_half(x);
}

#if defined(KOLM_ISA_AVX512)

using Vector = __m512;
constexpr int kLanes = 16;

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector broadcast(float x) { return _mm512_set1_ps(x); }
inline Vector load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }

inline Vector canonical(Vector v) {
  // By the class of v's lane: of a NaN (the two lowest digits) the first operand, else v.
  return _mm512_fixupimm_ps(_mm512_castsi512_ps(_mm512_set1_epi32(kQuietNaN)), v,
                            _mm512_set1_epi32(0x11111100), 0);
}

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
inline Vector load_partial(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
inline void store_partial(float* p, Vector v, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

inline Vector widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline Vector widen_f16(__m256i x) { return _mm512_cvtph_ps(x); }

template <Element E>
inline Vector widen(const Storage<E>* p) {
  if constexpr (E == Element::f32) {
    return load(p);
  } else {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (E == Element::bf16) return widen_bf16(x);
    if constexpr (E == Element::f16) return widen_f16(x);
  }
}

template <Element E>
inline Vector widen_partial(const Storage<E>* p, int64_t n) {
  if constexpr (E == Element::f32) {
    return load_partial(p, n);
  } else {
    const __m256i x = _mm256_maskz_loadu_epi16(first_lanes(n), p);
    if constexpr (E == Element::bf16) return widen_bf16(x);
    if constexpr (E == Element::f16) return widen_f16(x);
  }
}

inline __m512 low_pairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline __m512 high_pairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

// Row i of the 16 x 16 matrix becomes its column i.
inline void transpose(Vector (&r)[kLanes]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = low_pairs(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = high_pairs(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = low_pairs(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = high_pairs(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Columns `from` to `from` + 7 of 16 rows. Halves of rows are joined as they are loaded, which
// takes a stage of shuffles off the one port that has them.
template <class Row>
inline void transpose_half(const Row& row, int from, Vector (&r)[kLanes]) {
  __m512 a[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int line = i < 4 ? i : i + 4;
    a[i] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(row(line) + from)),
                              _mm256_loadu_ps(row(line + 4) + from), 1);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
    a[4 * q] = low_pairs(t[4 * q], t[4 * q + 2]);
    a[4 * q + 1] = high_pairs(t[4 * q], t[4 * q + 2]);
    a[4 * q + 2] = low_pairs(t[4 * q + 1], t[4 * q + 3]);
    a[4 * q + 3] = high_pairs(t[4 * q + 1], t[4 * q + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    r[from + j] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88);
    r[from + j + 4] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd);
  }
}

// The columns of the 16 x 16 matrix whose row i is at row(i).
template <class Row>
inline void transpose_rows(const Row& row, Vector (&r)[kLanes]) {
  transpose_half(row, 0, r);
  transpose_half(row, 8, r);
}

#elif defined(KOLM_ISA_AVX2)

using Vector = __m256;
constexpr int kLanes = 8;

inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector broadcast(float x) { return _mm256_set1_ps(x); }
inline Vector load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }

inline Vector canonical(Vector v) {
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  return _mm256_blendv_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(kQuietNaN)), nan);
}

inline __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}
inline Vector load_partial(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
inline void store_partial(float* p, Vector v, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}

inline Vector widen_bf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Vector widen_f16(__m128i x) { return _mm256_cvtph_ps(x); }

template <Element E>
inline Vector widen(const Storage<E>* p) {
  if constexpr (E == Element::f32) {
    return load(p);
  } else {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (E == Element::bf16) return widen_bf16(x);
    if constexpr (E == Element::f16) return widen_f16(x);
  }
}

template <Element E>
inline Vector widen_partial(const Storage<E>* p, int64_t n) {
  if constexpr (E == Element::f32) {
    return load_partial(p, n);
  } else {
    uint16_t copy[kLanes] = {};
    std::memcpy(copy, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return widen<E>(copy);
  }
}

// Row i of the 8 x 8 matrix becomes its column i.
inline void transpose(Vector (&r)[kLanes]) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

// The columns of the 8 x 8 matrix whose row i is at row(i), halves of rows joined as above.
template <class Row>
inline void transpose_rows(const Row& row, Vector (&r)[kLanes]) {
#pragma GCC unroll 2
  for (int from = 0; from < kLanes; from += 4) {
    __m256 a[4], t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(i) + from)),
                                  _mm_loadu_ps(row(i + 4) + from), 1);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    r[from] = _mm256_shuffle_ps(t[0], t[2], 0x44);
    r[from + 1] = _mm256_shuffle_ps(t[0], t[2], 0xee);
    r[from + 2] = _mm256_shuffle_ps(t[1], t[3], 0x44);
    r[from + 3] = _mm256_shuffle_ps(t[1], t[3], 0xee);
  }
}

#else  // four lanes: NEON, and what any compiler makes of a vector of four

typedef float Vector __attribute__((vector_size(16)));
constexpr int kLanes = 4;

inline Vector zero() { return Vector{}; }
inline Vector broadcast(float x) { return Vector{x, x, x, x}; }
inline Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
inline Vector add(Vector a, Vector b) { return a + b; }

typedef int32_t Mask __attribute__((vector_size(16)));
inline Vector canonical(Vector v) {
  const Mask number = v == v;
  const Mask nan = {kQuietNaN, kQuietNaN, kQuietNaN, kQuietNaN};
  return reinterpret_cast<Vector>((reinterpret_cast<Mask>(v) & number) | (nan & ~number));
}

#if defined(__aarch64__)

inline Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }

#else

// fma without the instruction. The product of two binary32 numbers is exact in binary64. The sum is
// rounded to odd (Boldo and Melquiond, IEEE Trans. Computers 57(4), 2008): where TwoSum's error is
// not zero, the neighbour of the nearest sum with an odd last bit that the exact sum lies next to.
// 53 bits are more than 24 + 2, so the conversion to binary32 then rounds as if from the exact sum,
// subnormal results included. Infinities and NaN give an unordered error and pass unchanged.
inline double add_to_odd(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  const int64_t bits = bits_as<int64_t>(sum);
  const int64_t inexact = (error > 0) | (error < 0);
  // One step away from zero where error and sum have the same sign, else one step towards it.
  const int64_t step = 1 - 2 * static_cast<int64_t>((error > 0) != (sum > 0));
  return bits_as<double>(bits + (step & -(inexact & ~bits & 1)));
}
inline Vector fma(Vector a, Vector b, Vector c) {
  Vector r;
  for (int i = 0; i < kLanes; ++i)
    r[i] = static_cast<float>(add_to_odd(static_cast<double>(a[i]) * b[i], c[i]));
  return r;
}

#endif

inline Vector load_partial(const float* p, int64_t n) {
  Vector v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}
inline void store_partial(float* p, Vector v, int64_t n) {
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

template <Element E>
inline Vector widen(const Storage<E>* p) {
  if constexpr (E == Element::f32) {
    return load(p);
  } else {
    return Vector{widen_one<E>(p[0]), widen_one<E>(p[1]), widen_one<E>(p[2]), widen_one<E>(p[3])};
  }
}

template <Element E>
inline Vector widen_partial(const Storage<E>* p, int64_t n) {
  if constexpr (E == Element::f32) {
    return load_partial(p, n);
  } else {
    uint16_t copy[kLanes] = {};
    std::memcpy(copy, p, static_cast<size_t>(n) * sizeof(uint16_t));
    return widen<E>(copy);
  }
}

// Row i of the 4 x 4 matrix becomes its column i.
inline void transpose(Vector (&r)[kLanes]) {
  const Vector t0 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const Vector t1 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Vector t2 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Vector t3 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(t0, t2, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(t0, t2, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(t1, t3, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(t1, t3, 2, 3, 6, 7);
}

template <class Row>
inline void transpose_rows(const Row& row, Vector (&r)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) r[i] = load(row(i));
  transpose(r);
}

#endif

// Where the kLanes rows of a block are, `step` apart: few pointers and three steps from each are
// what the registers hold.
template <Element E>
struct BlockRows {
  static constexpr int kEach = 4;
  const Storage<E>* at[kLanes / kEach];
  int64_t step;

  inline __attribute__((always_inline)) BlockRows(const Storage<E>* data, int64_t row_step)
      : step(row_step) {
#pragma GCC unroll 4
    for (int i = 0; i < kLanes / kEach; ++i) {
      at[i] = data + i * kEach * step;
      asm("" : "+r"(at[i]));  // the compiler would make a pointer of every row
    }
  }
  inline __attribute__((always_inline)) const Storage<E>* operator()(int i) const {
    return at[i / kEach] + i % kEach * step;
  }
};

// Column k of a block of kLanes x kLanes elements in r[k]; row i is at row(i).
template <Element E, class Row>
inline __attribute__((always_inline)) void load_transposed(const Row& row, Vector (&r)[kLanes]) {
  if constexpr (E == Element::f32) {
    transpose_rows(row, r);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) r[i] = widen<E>(row(i));
    transpose(r);
  }
}

// The same of rows `step` apart, the first `rows` of them; the others are +0.
template <Element E>
inline void load_transposed(const Storage<E>* data, int64_t step, int64_t rows,
                            Vector (&r)[kLanes]) {
  static constexpr Storage<E> kZeros[kLanes] = {};
  if (rows >= kLanes)
    load_transposed<E>(BlockRows<E>(data, step), r);
  else
    load_transposed<E>([&](int i) { return i < rows ? data + i * step : kZeros; }, r);
}

// The same of `deep` columns alone.
template <Element E>
inline void load_transposed_partial(const Storage<E>* data, int64_t step, int64_t rows,
                                    int64_t deep, Vector (&r)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    r[i] = i < rows ? widen_partial<E>(data + i * step, deep) : zero();
  transpose(r);
}

}  // namespace kolm::KOLM_ISA
