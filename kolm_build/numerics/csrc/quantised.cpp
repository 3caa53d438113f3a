// Products with weights that are widened from their codes as they are used (NUM-130, NUM-131).
#include "quantised.h"

#include <algorithm>
#include <cstdint>

#include "gemm_inside.h"
#include "gemm_thin.h"
#include "gemm_tile.h"
#include "isa.h"
#include "quantised_stage.h"
#include "scratch.h"

namespace kolm::KOLM_ISA {

namespace {

constexpr int kMostRows = kLanes == 16 ? 8 : 4;  // of x, whose sums registers hold
constexpr int64_t kFewTiles = 3;                 // of rows: for more, a panel is worth its memory
constexpr int64_t kPanel = 1024;                 // columns of a panel, widened at once

static_assert(kColumns == kStaged, "what is staged at once is a strip of a packed operand");

// How staged codes are read: signed8 is staged as offset8, and NaN is rare.
enum class Form { offset4, offset8, e4m3, finite_e4m3, e2m1 };

// ---- codes to numbers, in vectors

inline Vector as_vector(Words words) { return reinterpret_cast<Vector>(words); }
inline Words all_words(uint32_t x) { return Words{} + x; }

// The integer in `bits` bits of each word from bit `at` on, less `offset`. At those bits of the
// significand of 2^(23 - at) it adds just itself.
inline __attribute__((always_inline)) Vector offset_code(Words words, int at, int bits,
                                                         int offset) {
  const uint32_t exponent = static_cast<uint32_t>(127 + 23 - at) << 23;
  const uint32_t mask = ((1u << bits) - 1) << at;
  const float start = bits_as<float>(exponent) + static_cast<float>(offset);
  return as_vector((words & mask) | exponent) - broadcast(start);
}

// Where the words are equal to or above `least`, `high`, else `low`.
inline Words choose(Words words, uint32_t least, Words high, Words low) {
  const Words chosen = reinterpret_cast<Words>(words >= all_words(least));
  return (high & chosen) | (low & ~chosen);
}

inline Vector e2m1_code(Words words) {
#if defined(KOLM_ISA_AVX512)
  const __m512 table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                      -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(words), table);
#elif defined(KOLM_ISA_AVX2)
  const __m256 table = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
  const Vector size = _mm256_permutevar8x32_ps(table, reinterpret_cast<__m256i>(words));
  return as_vector(reinterpret_cast<Words>(size) | (words << 28 & 0x80000000u));
#else
  const Words size = words & 7u;
  // Below the normal numbers: 0 or one half.
  const Words half = (Words{} - size) & 0x3f000000u;
  return as_vector(choose(size, 2, (size << 22) + (126u << 23), half) |
                   (words << 28 & 0x80000000u));
#endif
}

inline Vector least(Vector a, Vector b) {
#if defined(KOLM_ISA_AVX512)
  return _mm512_min_ps(a, b);
#elif defined(KOLM_ISA_AVX2)
  return _mm256_min_ps(a, b);
#elif defined(__aarch64__)
  return vminq_f32(a, b);
#else
  for (int i = 0; i < kLanes; ++i) a[i] = a[i] < b[i] ? a[i] : b[i];
  return a;
#endif
}

// With the exponent e + 120 a normal code is its number t. Of a subnormal one that is
// 2^-7 (1 + m / 8) for 2^-6 m / 8, which is 2 t - 2^-6: less than t just there. No subnormal number
// of binary32 comes in, for some processors take long over those.
inline __attribute__((always_inline)) Vector finite_e4m3_code(Words words, int i) {
  const Words digits = (i < 3 ? words << (20 - 8 * i) : words >> 4) & 0x07f00000u;
  const Vector t = as_vector(digits + (120u << 23));
  const Vector number = least(t, fma(t, broadcast(2.0f), broadcast(-0x1p-6f)));
  return as_vector(reinterpret_cast<Words>(number) | (words << (24 - 8 * i) & 0x80000000u));
}

inline Vector e4m3_code(Words words) {
  const Words size = words & 0x7fu;
  // Subnormal numbers: with the exponent of the least normal one, which is taken off again.
  const Words normal = (size << 20) + (120u << 23), subnormal = (size << 20) + (121u << 23);
  const Words off = choose(size, 8, Words{}, all_words(0x3c800000u));  // 2^-6
  const Vector number = as_vector(choose(size, 8, normal, subnormal)) - as_vector(off);
  const Words bits = choose(size, 0x7f, all_words(kQuietNaN), reinterpret_cast<Words>(number));
  return as_vector(bits | (words << 24 & 0x80000000u));
}

// Code i of each word, exactly.
template <Form F>
inline __attribute__((always_inline)) Vector decode(Words words, int i) {
  if constexpr (F == Form::offset4)
    return i < 5 ? offset_code(words, 4 * i, 4, 8) : offset_code(words >> 20, 4 * i - 20, 4, 8);
  if constexpr (F == Form::offset8)
    return i < 2 ? offset_code(words, 8 * i, 8, 128) : offset_code(words >> 16, 8 * i - 16, 8, 128);
  if constexpr (F == Form::e2m1) return e2m1_code(words >> (4 * i));
  if constexpr (F == Form::e4m3) return e4m3_code(words >> (8 * i));
  if constexpr (F == Form::finite_e4m3) return finite_e4m3_code(words, i);
}

// ---- values, depth by depth

template <Form F>
constexpr int kPerWord = F == Form::offset4 || F == Form::e2m1 ? 8 : 4;

// Scales and zeros of one group of columns of the weight.
template <bool Zeros>
struct GroupLines {
  Vector scale[kAbreast], zero[kAbreast];

  inline __attribute__((always_inline)) GroupLines(const Staged& staged, int64_t group) {
#pragma GCC unroll 2
    for (int g = 0; g < kAbreast; ++g) {
      scale[g] = load(staged.scales + group * kStaged + g * kLanes);
      if constexpr (Zeros) zero[g] = load(staged.zeros + group * kStaged + g * kLanes);
    }
  }
};

// The values at code i of the words: NUM-130, one rounding.
template <Form F, bool Zeros>
inline __attribute__((always_inline)) void values_at(const Words (&words)[kAbreast], int i,
                                                     const GroupLines<Zeros>& lines,
                                                     Vector (&values)[kAbreast]) {
#pragma GCC unroll 2
  for (int g = 0; g < kAbreast; ++g) {
    Vector code = decode<F>(words[g], i);
    if constexpr (Zeros) code = code - lines.zero[g];
    values[g] = code * lines.scale[g];
  }
}

// body(k, values) for the depths [from, to) in ascending order; `from` is the first of a word, and
// so is `to` unless it is the last of all.
template <Form F, bool Zeros, class Body>
inline __attribute__((always_inline)) void for_depths(const Staged& staged, int64_t from,
                                                      int64_t to, Body&& body) {
  constexpr int each = kPerWord<F>;
  const uint32_t* at = staged.words + from / each * kStaged;
  int64_t group = from / staged.group;
  Words words[kAbreast];
  Vector values[kAbreast];
  for (int64_t k = from; k < to; ++group) {
    const GroupLines<Zeros> lines(staged, group);
    const int64_t end = std::min(to, (group + 1) * staged.group);
    for (; k < end; k += each, at += kStaged) {
#pragma GCC unroll 2
      for (int g = 0; g < kAbreast; ++g) words[g] = load_words(at + g * kLanes);
      staged.fetch(k / each);
      if (end - k >= each) {
#pragma GCC unroll 8
        for (int i = 0; i < each; ++i) {
          values_at<F, Zeros>(words, i, lines, values);
          body(k + i, values);
        }
      } else {
        for (int i = 0; i < end - k; ++i) {
          values_at<F, Zeros>(words, i, lines, values);
          body(k + i, values);
        }
      }
    }
  }
}

// ---- few rows

// Rows of x, `Rows` of them; rows past the last are the last one again, and not written.
template <int Rows>
struct InputRows {
  const float* at[Rows];

  InputRows(const float* x, int64_t step, int64_t rows) {
    for (int i = 0; i < Rows; ++i) at[i] = x + std::min<int64_t>(i, rows - 1) * step;
  }
};

// The part of a product that has the staged columns and at most Rows rows.
template <Form F, bool Zeros, int Rows>
void few_rows(const Staged& staged, int64_t rows, int64_t depth, const float* x, int64_t x_step,
              float* y, int64_t y_step, int64_t columns) {
  const InputRows<Rows> in(x, x_step, rows);
  Vector t[Rows * kAbreast];
#pragma GCC unroll 16
  for (int i = 0; i < Rows * kAbreast; ++i) t[i] = zero();
  for (int64_t from = 0; from < depth; from += kChunk) {
    Vector s[Rows * kAbreast];
#pragma GCC unroll 16
    for (int i = 0; i < Rows * kAbreast; ++i) s[i] = zero();
    for_depths<F, Zeros>(
        staged, from, std::min(depth, from + kChunk),
        [&](int64_t k, const Vector(&values)[kAbreast]) __attribute__((always_inline)) {
#pragma GCC unroll 8
          for (int i = 0; i < Rows; ++i) {
            const Vector row = broadcast(in.at[i][k]);
#pragma GCC unroll 2
            for (int g = 0; g < kAbreast; ++g)
              s[i * kAbreast + g] = fma(row, values[g], s[i * kAbreast + g]);
          }
        });
#pragma GCC unroll 16
    for (int i = 0; i < Rows * kAbreast; ++i) t[i] = add(t[i], s[i]);
  }
  for (int64_t i = 0; i < std::min<int64_t>(Rows, rows); ++i)
    for (int g = 0; g < kAbreast; ++g)
      put_columns(y + i * y_step + g * kLanes, t[i * kAbreast + g], columns - g * kLanes);
}

template <Form F, bool Zeros, int Rows>
void few_rows_of(const Staged& staged, int64_t rows, int64_t depth, const float* x, int64_t x_step,
                 float* y, int64_t y_step, int64_t columns) {
  if constexpr (Rows > 1) {
    if (rows <= Rows / 2)
      return few_rows_of<F, Zeros, Rows / 2>(staged, rows, depth, x, x_step, y, y_step, columns);
  }
  few_rows<F, Zeros, Rows>(staged, rows, depth, x, x_step, y, y_step, columns);
}

// ---- many rows

// The staged columns as a packed strip.
template <Form F, bool Zeros>
void put_strip(const Staged& staged, int64_t depth, float* strip) {
  for_depths<F, Zeros>(
      staged, 0,
      depth, [&](int64_t k, const Vector(&values)[kAbreast]) __attribute__((always_inline)) {
#pragma GCC unroll 2
        for (int g = 0; g < kAbreast; ++g) store(strip + k * kStaged + g * kLanes, values[g]);
      });
}

// Calls body<form, zeros>() for the staged columns' own.
template <class Body>
inline void with_form(const QuantisedWeight& w, const Staged& staged, Body&& body) {
  switch (w.code) {
    case Code::offset4:
      return w.zeros ? body.template operator()<Form::offset4, true>()
                     : body.template operator()<Form::offset4, false>();
    case Code::offset8:
    case Code::signed8:
      return w.zeros ? body.template operator()<Form::offset8, true>()
                     : body.template operator()<Form::offset8, false>();
    case Code::e4m3:
      return staged.has_nan ? body.template operator()<Form::e4m3, false>()
                            : body.template operator()<Form::finite_e4m3, false>();
    case Code::e2m1:
      return body.template operator()<Form::e2m1, false>();
  }
}

Stage& stage() {
  static thread_local Stage instance;
  return instance;
}

void multiply_few(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_step,
                  const QuantisedWeight& w, const ScaleTable& table, float* y, int64_t y_step,
                  const Parallel& pool) {
  const int64_t each = task_columns(n, pool.threads);
  parallel_for(pool, up(n, each), [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * each);
    for (int64_t column = task * each; column < end; column += kStaged) {
      const Staged staged = stage().columns(w, table, column, end, n, k);
      with_form(w, staged, [&]<Form F, bool Zeros>() {
        for (int64_t i = 0; i < m; i += kMostRows)
          few_rows_of<F, Zeros, kMostRows>(staged, m - i, k, x + i * x_step, x_step,
                                           y + i * y_step + column, y_step, n - column);
      });
    }
  });
}

// Panel by panel, each widened once for all rows.
void multiply_many(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_step,
                   const QuantisedWeight& w, const ScaleTable& table, float* y, int64_t y_step,
                   const Parallel& pool) {
  static thread_local Scratch scratch;
  float* panel = scratch.floats(std::min(kPanel, up(n, kStaged) * kStaged) * k);
  const Operand rows = {x, Element::f32, x_step, 1};
  for (int64_t from = 0; from < n; from += kPanel) {
    const int64_t columns = std::min(kPanel, n - from);
    parallel_for(pool, up(columns, kStaged), [&](int64_t task) {
      const Staged staged = stage().columns(w, table, from + task * kStaged, n, n, k);
      with_form(w, staged, [&]<Form F, bool Zeros>() {
        put_strip<F, Zeros>(staged, k, panel + task * kStaged * k);
      });
    });
    gemm_strips(m, columns, k, rows, panel, k, y + from, y_step, pool);
  }
}

void linear(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_step,
            const QuantisedWeight& w, float* y, int64_t y_step, const Parallel& pool) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (int64_t i = 0; i < m; ++i) std::fill(y + i * y_step, y + i * y_step + n, 0.0f);
    return;
  }
  const ScaleTable table(w);
  if (m <= kMostRows)
    multiply_few(m, n, k, x, x_step, w, table, y, y_step, pool);
  else
    multiply_many(m, n, k, x, x_step, w, table, y, y_step, pool);
}

// ---- one row of the weight

float number_of(const QuantisedWeight& w, int64_t row, int64_t column) {
  const auto* codes = static_cast<const uint8_t*>(w.codes) + row * w.row_bytes;
  const int nibble = codes[is_4_bits(w.code) ? column / 2 : column] >> (column % 2 * 4) & 15;
  switch (w.code) {
    case Code::offset4:
      return static_cast<float>(nibble - 8);
    case Code::e2m1:
      return e2m1_to_f32(static_cast<uint8_t>(nibble));
    case Code::offset8:
      return static_cast<float>(codes[column] - 128);
    case Code::signed8:
      return static_cast<float>(static_cast<int8_t>(codes[column]));
    case Code::e4m3:
      return e4m3_to_f32(codes[column]);
  }
  return 0.0f;
}

float scale_of(const QuantisedWeight& w, const ScaleTable& table, int64_t at) {
  switch (w.scale) {
    case Scale::f32:
      return static_cast<const float*>(w.scales)[at];
    case Scale::bf16:
      return widen_one<Element::bf16>(static_cast<const uint16_t*>(w.scales)[at]);
    case Scale::f16:
      return widen_one<Element::f16>(static_cast<const uint16_t*>(w.scales)[at]);
    default:
      return table.values[static_cast<const uint8_t*>(w.scales)[at]];
  }
}

float zero_of(const QuantisedWeight& w, int64_t row, int64_t group) {
  if (!w.zeros) return 0.0f;
  const int bits = is_4_bits(w.code) ? 4 : 8, per_word = 32 / bits;
  const uint32_t word = w.zeros[row / per_word * w.zero_step + group];
  const uint32_t code = word >> (row % per_word * bits) & ((1u << bits) - 1);
  return static_cast<float>(static_cast<int>(code) - (1 << (bits - 1)));
}

void row(int64_t k, const QuantisedWeight& w, int64_t line, float* out) {
  const ScaleTable table(w);
  for (int64_t from = 0, group = 0; from < k; from += w.group, ++group) {
    const float scale = scale_of(w, table, line * w.scale_step + group);
    const float zero = zero_of(w, line, group);
    for (int64_t column = from; column < std::min(k, from + w.group); ++column)
      out[column] = canonical((number_of(w, line, column) - zero) * scale);
  }
}

}  // namespace

extern const QuantisedKernels quantised_kernels;
const QuantisedKernels quantised_kernels = {linear, row};

}  // namespace kolm::KOLM_ISA
