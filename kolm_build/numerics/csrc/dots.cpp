// Products of quantised weights with rows that are made 8-bit integers: exact sums of products, and
// the few operations of binary32 around them (NUM-132 to NUM-134).
#include "dots.h"

#include <algorithm>
#include <cstdint>

#include "gemm_thin.h"
#include "isa.h"
#include "quantised.h"
#include "quantised_stage.h"
#include "scratch.h"

namespace kolm::KOLM_ISA {

namespace {

constexpr int kMostRows = kLanes == 16 ? 8 : 4;  // of x, whose sums registers hold
constexpr float kMostCode = 127.0f;
constexpr float kRounder = 0x1.8p23f;  // a small number that is added to it becomes an integer

// ---- rows of x

// The integers of m rows, padded with zeros. Words of four codes; against words of eight codes of a
// weight: first those of the even columns, then those of the odd ones.
struct Inputs {
  uint32_t* codes;
  int64_t words;  // of a row, or of its even columns
  int64_t step;   // words from one row to the next
  float* scales;
  int32_t* sums;  // of the codes of each group of each row
  int64_t groups;
};

// The largest magnitude; not finite if any number is.
float largest(const float* x, int64_t k) {
  uint32_t most = 0;
  for (int64_t i = 0; i < k; ++i) most = std::max(most, bits_of(x[i]) & 0x7fffffffu);
  return binary32_of(most);
}

void put_codes(const float* x, int64_t k, float scale, int8_t* codes) {
  for (int64_t i = 0; i < k; ++i) {
    const float exact = x[i] / scale;
    const float high = exact < kMostCode ? exact : kMostCode;
    const float bounded = high > -kMostCode ? high : -kMostCode;
    codes[i] = static_cast<int8_t>(bits_of(bounded + kRounder));
  }
}

void split_codes(const int8_t* codes, int64_t half, int8_t* even, int8_t* odd) {
  for (int64_t i = 0; i < half; ++i) {
    even[i] = codes[2 * i];
    odd[i] = codes[2 * i + 1];
  }
}

int32_t sum_of(const int8_t* codes, int64_t k) {
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += codes[i];
  return sum;
}

class InputMemory {
 public:
  // Memory for m rows of k against a weight.
  Inputs make(int64_t m, int64_t k, const QuantisedWeight& w) {
    const int64_t halves = is_4_bits(w.code) ? 2 : 1, words = up(k, 4 * halves);
    const int64_t groups = up(k, w.group);
    return {reinterpret_cast<uint32_t*>(codes_.floats(m * words * halves)),
            words,
            words * halves,
            scales_.floats(m),
            reinterpret_cast<int32_t*>(sums_.floats(m * groups)),
            groups};
  }

  static void fill(const Inputs& in, int64_t row, const float* x, int64_t k, int64_t group,
                   const float* scale) {
    static thread_local Scratch scratch;
    auto* codes = reinterpret_cast<int8_t*>(scratch.floats(in.step));
    const float most = largest(x, k), own = most / kMostCode;
    const bool finite = bits_of(most) < 0x7f800000u;
    in.scales[row] = !finite ? binary32_of(kQuietNaN) : scale ? *scale : own;
    std::fill(codes, codes + in.step * 4, int8_t{0});
    if (finite && in.scales[row] != 0.0f) put_codes(x, k, in.scales[row], codes);
    for (int64_t g = 0; g < in.groups; ++g)
      in.sums[row * in.groups + g] = sum_of(codes + g * group, std::min(group, k - g * group));
    auto* to = reinterpret_cast<int8_t*>(in.codes + row * in.step);
    if (in.step == in.words)
      std::copy_n(codes, in.step * 4, to);
    else
      split_codes(codes, in.words * 4, to, to + in.words * 4);
  }

 private:
  Scratch codes_, scales_, sums_;
};

// ---- products

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));

inline Vector to_floats(Sums sums) {
  return reinterpret_cast<Vector>(
      __builtin_convertvector(sums, Floats));  // to nearest, ties to even
}

// A tile: the staged columns, and Rows rows of x from `row` on; those past the last are the last
// one again, and not written.
template <bool Four, bool Zeros, int Rows>
struct Tile {
  // Sums of the even and of the odd columns apart: twice as many chains of additions.
  static constexpr int kHalves = Four && Rows <= 2 ? 2 : 1;
  const Staged& staged;
  const Inputs& in;
  int64_t row, rows;

  inline __attribute__((always_inline)) int64_t line(int i) const {
    return row + std::min<int64_t>(i, rows - 1);
  }

  // Adds the products of words [from, to) of a group.
  inline __attribute__((always_inline)) void add_words(
      int64_t from, int64_t to, Sums (&sums)[kHalves][Rows][kAbreast]) const {
    const uint32_t* at[Rows];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) at[i] = in.codes + line(i) * in.step;
    for (int64_t word = from; word < to; ++word) {
      Words low[kAbreast], high[kAbreast];
      if (row == 0) staged.fetch(word);
#pragma GCC unroll 2
      for (int g = 0; g < kAbreast; ++g) {
        const Words words = load_words(staged.words + word * kStaged + g * kLanes);
        low[g] = Four ? words & 0x0f0f0f0fu : wide_codes(words);
        high[g] = words >> 4 & 0x0f0f0f0fu;
      }
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const Words even = Words{} + at[i][word];
#pragma GCC unroll 2
        for (int g = 0; g < kAbreast; ++g)
          sums[0][i][g] =
              Four ? dot_small(sums[0][i][g], low[g], even) : dot_wide(sums[0][i][g], low[g], even);
        if constexpr (Four) {
          const Words odd = Words{} + at[i][in.words + word];
#pragma GCC unroll 2
          for (int g = 0; g < kAbreast; ++g)
            sums[kHalves - 1][i][g] = dot_small(sums[kHalves - 1][i][g], high[g], odd);
        }
      }
    }
  }

  // What was added to codes of the weight, times the sum of x's.
  inline __attribute__((always_inline)) Sums taken_off(int i, int64_t group, int g) const {
    constexpr int offset = Four ? 8 : kWideOffset;
    const int32_t sum = in.sums[line(i) * in.groups + group];
    Sums zeros = Sums{} + offset;
    if constexpr (Zeros)
      zeros += __builtin_convertvector(
          reinterpret_cast<Floats>(load(staged.zeros + group * kStaged + g * kLanes)), Sums);
    return zeros * (Sums{} + sum);
  }

  // NUM-134: a group's term.
  inline __attribute__((always_inline)) void add_group(int64_t group,
                                                       const Sums (&sums)[kHalves][Rows][kAbreast],
                                                       Vector (&y)[Rows][kAbreast]) const {
#pragma GCC unroll 2
    for (int g = 0; g < kAbreast; ++g) {
      const Vector scale = load(staged.scales + group * kStaged + g * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        Sums sum = sums[0][i][g];
        if constexpr (kHalves == 2) sum += sums[1][i][g];
        const Vector both = broadcast(in.scales[line(i)]) * scale;
        y[i][g] = fma(to_floats(sum - taken_off(i, group, g)), both, y[i][g]);
      }
    }
  }

  void run(int64_t depth, float* to, int64_t to_step, int64_t columns) const {
    constexpr int64_t each = Four ? 8 : 4;
    Vector y[Rows][kAbreast];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
      for (int g = 0; g < kAbreast; ++g) y[i][g] = zero();
    for (int64_t group = 0; group < in.groups; ++group) {
      Sums sums[kHalves][Rows][kAbreast] = {};
      const int64_t from = group * staged.group, end = std::min(depth, from + staged.group);
      add_words(from / each, up(end, each), sums);
      add_group(group, sums, y);
    }
    for (int i = 0; i < std::min<int64_t>(Rows, rows); ++i)
      for (int g = 0; g < kAbreast; ++g)
        put_columns(to + (row + i) * to_step + g * kLanes, y[i][g], columns - g * kLanes);
  }
};

template <bool Four, bool Zeros, int Rows>
void run_tile(const Staged& staged, const Inputs& in, int64_t row, int64_t rows, int64_t depth,
              float* y, int64_t y_step, int64_t columns) {
  if constexpr (Rows > 1) {
    if (rows <= Rows / 2)
      return run_tile<Four, Zeros, Rows / 2>(staged, in, row, rows, depth, y, y_step, columns);
  }
  Tile<Four, Zeros, Rows>{staged, in, row, rows}.run(depth, y, y_step, columns);
}

template <class Body>
inline void with_form(const QuantisedWeight& w, Body&& body) {
  if (w.code == Code::offset4)
    w.zeros ? body.template operator()<true, true>() : body.template operator()<true, false>();
  else
    w.zeros ? body.template operator()<false, true>() : body.template operator()<false, false>();
}

void linear(int64_t m, int64_t n, int64_t k, const float* x, int64_t x_step,
            const float* input_scale, const QuantisedWeight& w, float* y, int64_t y_step,
            const Parallel& pool) {
  static thread_local InputMemory memory;
  if (m == 0 || n == 0) return;
  const Inputs in = memory.make(m, k, w);
  parallel_for(pool, m, [&](int64_t row) {
    InputMemory::fill(in, row, x + row * x_step, k, w.group, input_scale);
  });
  const ScaleTable table(w);
  const int64_t each = task_columns(n, pool.threads);
  parallel_for(pool, up(n, each), [&](int64_t task) {
    static thread_local Stage stage;
    const int64_t end = std::min(n, (task + 1) * each);
    for (int64_t column = task * each; column < end; column += kStaged) {
      const Staged staged = stage.columns(w, table, column, end, n, k);
      with_form(w, [&]<bool Four, bool Zeros>() {
        for (int64_t row = 0; row < m; row += kMostRows)
          run_tile<Four, Zeros, kMostRows>(staged, in, row, std::min<int64_t>(kMostRows, m - row),
                                           k, y + column, y_step, n - column);
      });
    }
  });
}

}  // namespace

extern const DotKernels dot_kernels;
const DotKernels dot_kernels = {linear};

}  // namespace kolm::KOLM_ISA
