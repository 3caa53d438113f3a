// Reductions and row operations (rows.h): sums in the lanes of NUM-20, the rest in loops that
// compilers vectorise.
#include "rows.h"

#include <cstddef>

#include "functions.h"
#include "isa.h"
#include "lanes.h"

namespace kolm::KOLM_ISA {
namespace {

KOLM_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// What a sum adds: element i alone, and kWidth elements from i. Both compute the same.
struct Values {
  const float* x;
  KOLM_MEMBER float one(int64_t i) const { return x[i]; }
  KOLM_MEMBER Vector many(int64_t i) const { return load(x + i); }
};
struct Squares {
  const float* x;
  KOLM_MEMBER float one(int64_t i) const { return x[i] * x[i]; }
  KOLM_MEMBER Vector many(int64_t i) const { return load(x + i) * load(x + i); }
};
struct Magnitudes {
  const float* x;
  KOLM_MEMBER float one(int64_t i) const { return magnitude(x[i]); }
  KOLM_MEMBER Vector many(int64_t i) const { return size_of(load(x + i)); }
};
struct Products {
  const float* x;
  const float* y;
  KOLM_MEMBER float one(int64_t i) const { return x[i] * y[i]; }
  KOLM_MEMBER Vector many(int64_t i) const { return load(x + i) * load(y + i); }
};
struct CentredSquares {
  const float* x;
  float centre;
  KOLM_MEMBER float one(int64_t i) const {
    const float d = x[i] - centre;
    return d * d;
  }
  KOLM_MEMBER Vector many(int64_t i) const {
    const Vector d = load(x + i) - all(centre);
    return d * d;
  }
};
// h * ((x - centre) * scale) with h = dy * gain, or dy where there is no gain.
template <bool kGain>
struct CentredProducts {
  const float* dy;
  const float* gain;
  const float* x;
  float centre, scale;
  KOLM_MEMBER float one(int64_t i) const {
    const float h = kGain ? dy[i] * gain[i] : dy[i];
    return h * ((x[i] - centre) * scale);
  }
  KOLM_MEMBER Vector many(int64_t i) const {
    const Vector h = kGain ? load(dy + i) * load(gain + i) : load(dy + i);
    return h * ((load(x + i) - all(centre)) * all(scale));
  }
};
// h * (x * scale).
template <bool kGain>
struct ScaledProducts {
  const float* dy;
  const float* gain;
  const float* x;
  float scale;
  KOLM_MEMBER float one(int64_t i) const {
    const float h = kGain ? dy[i] * gain[i] : dy[i];
    return h * (x[i] * scale);
  }
  KOLM_MEMBER Vector many(int64_t i) const {
    const Vector h = kGain ? load(dy + i) * load(gain + i) : load(dy + i);
    return h * (load(x + i) * all(scale));
  }
};

// The sum of one block: elements [first, first + n), n at most kSumBlock.
template <class Source>
float block_sum(const Source& source, int64_t first, int64_t n) {
  Lanes lanes;
  clear(lanes);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) lanes.v[k] += source.many(first + i + k * kWidth);
  }
  if (i < n) {
    // No lane is -0, so that +0 changes none.
    float rest[kLanes] = {};
    for (int64_t l = 0; i + l < n; ++l) rest[l] = source.one(first + i + l);
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) lanes.v[k] += load(rest + k * kWidth);
  }
  return fold(lanes);
}

// SUM of n elements from `first`, n at most `span`, a power of kSumBlock.
template <class Source>
float tree_sum(const Source& source, int64_t first, int64_t n, int64_t span) {
  if (span == kSumBlock) return block_sum(source, first, n);
  const int64_t part = span / kSumBlock;
  float sums[kSumBlock];
  int64_t count = 0;
  for (int64_t start = 0; start < n; start += part, ++count) {
    sums[count] = tree_sum(source, first + start, smaller(part, n - start), part);
  }
  return block_sum(Values{sums}, 0, count);
}

template <class Source>
float raw_sum(const Source& source, int64_t n) {
  int64_t span = kSumBlock;
  while (span < n) span *= kSumBlock;
  return tree_sum(source, 0, n, span);
}

template <class Source>
float sum_of(const Source& source, int64_t n) {
  return canonical(raw_sum(source, n));
}

KOLM_FN void exp_of(int64_t n, const float* x, float shift, float* y) {
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = exp_f32(x[i] - shift);
}

// y = exp(x - shift) of one block, the last elements as one vector: one by one they cost as much as
// all others of a short row.
void exp_shifted(int64_t n, const float* x, float shift, float* y) {
  const int64_t whole = n / kWidth * kWidth;
  exp_of(whole, x, shift, y);
  if (whole == n) return;
  float rest[kWidth];
  for (int64_t l = 0; l < kWidth; ++l) rest[l] = shift;
  for (int64_t l = 0; whole + l < n; ++l) rest[l] = x[whole + l];
  exp_of(kWidth, rest, shift, rest);
  for (int64_t l = 0; whole + l < n; ++l) y[whole + l] = rest[l];
}

// SUM of exp(x - shift): the blocks' sums of spans of one block are a SUM again.
float exp_sum(int64_t n, const float* x, float shift) {
  float block[kSumBlock];
  if (n <= kSumBlock) {
    exp_shifted(n, x, shift, block);
    return sum_of(Values{block}, n);
  }
  const int64_t count = (n + kSumBlock - 1) / kSumBlock;
  float* sums = new float[static_cast<size_t>(count)];
  for (int64_t b = 0; b < count; ++b) {
    const int64_t size = smaller(kSumBlock, n - b * kSumBlock);
    exp_shifted(size, x + b * kSumBlock, shift, block);
    sums[b] = block_sum(Values{block}, 0, size);
  }
  const float sum = sum_of(Values{sums}, count);
  delete[] sums;
  return sum;
}

float sum(Term term, int64_t n, const float* x, const float* y, float p) {
  switch (term) {
    case Term::value:
      return sum_of(Values{x}, n);
    case Term::square:
      return sum_of(Squares{x}, n);
    case Term::magnitude:
      return sum_of(Magnitudes{x}, n);
    case Term::product:
      return sum_of(Products{x, y}, n);
    case Term::centred_square:
      return sum_of(CentredSquares{x, p}, n);
    case Term::exp_shifted:
      return exp_sum(n, x, p);
  }
  __builtin_unreachable();
}

// ---- sums down the columns

// What a column sum adds in row r: elements from column j.
struct ColumnValues {
  const float* x;
  int64_t ld;
  KOLM_MEMBER float one(int64_t r, int64_t j) const { return x[r * ld + j]; }
  KOLM_MEMBER Vector many(int64_t r, int64_t j) const { return load(x + r * ld + j); }
  ColumnValues below(int64_t r) const { return {x + r * ld, ld}; }
};
struct ColumnCentred {
  const float* x;
  int64_t ldx;
  const float* y;
  int64_t ldy;
  const float* mean;
  const float* rstd;
  KOLM_MEMBER float one(int64_t r, int64_t j) const {
    return x[r * ldx + j] * ((y[r * ldy + j] - mean[r]) * rstd[r]);
  }
  KOLM_MEMBER Vector many(int64_t r, int64_t j) const {
    return load(x + r * ldx + j) * ((load(y + r * ldy + j) - all(mean[r])) * all(rstd[r]));
  }
  ColumnCentred below(int64_t r) const {
    return {x + r * ldx, ldx, y + r * ldy, ldy, mean + r, rstd + r};
  }
};

constexpr int kStrip = 4 * kWidth;

// Lane l of a strip of columns: rows l, l + kLanes, ... in registers.
template <class Source>
KOLM_FN void strip_lane(const Source& source, int64_t rows, int64_t l, int64_t j, float* lane) {
  Vector a[4] = {};
  for (int64_t r = l; r < rows; r += kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) a[k] += source.many(r, j + k * kWidth);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) store(lane + k * kWidth, a[k]);
}

// The same for fewer columns than a strip.
template <class Source>
KOLM_FN void narrow_lane(const Source& source, int64_t rows, int64_t l, int64_t j, int64_t width,
                         float* lane) {
  for (int64_t c = 0; c < kStrip; ++c) lane[c] = 0.0f;
  for (int64_t r = l; r < rows; r += kLanes) {
    for (int64_t c = 0; c < width; ++c) lane[c] += source.one(r, j + c);
  }
}

// Lane l adds lane l + w; lanes that no row reached hold +0, and adding them changes nothing.
KOLM_FN void fold_lanes(float (*lanes)[kStrip], int64_t reached) {
  for (int64_t w = kLanes / 2; w > 0; w >>= 1) {
    for (int64_t l = 0; l < w && l + w < reached; ++l) {
      for (int c = 0; c < kStrip; ++c) lanes[l][c] += lanes[l + w][c];
    }
    reached = smaller(reached, w);
  }
}

// Column sums of one block of at most kSumBlock rows.
template <class Source>
void column_block(const Source& source, int64_t rows, int64_t columns, float* out) {
  float lanes[kLanes][kStrip];
  const int64_t reached = smaller(rows, kLanes);
  for (int64_t j = 0; j < columns; j += kStrip) {
    const int64_t width = smaller(kStrip, columns - j);
    for (int64_t l = 0; l < reached; ++l) {
      if (width == kStrip) {
        strip_lane(source, rows, l, j, lanes[l]);
      } else {
        narrow_lane(source, rows, l, j, width, lanes[l]);
      }
    }
    fold_lanes(lanes, reached);
    for (int64_t c = 0; c < width; ++c) out[j + c] = lanes[0][c];
  }
}

// Few columns without gaps: kLanes rows are one run of memory, and lane and column are one index.
void dense_block(const float* x, int64_t rows, int64_t columns, float* out) {
  float lanes[kLanes * kStrip] = {};
  const int64_t run = kLanes * columns, total = rows * columns;
  int64_t start = 0;
  for (; start + run <= total; start += run) {
    for (int64_t i = 0; i < run; ++i) lanes[i] += x[start + i];
  }
  for (int64_t i = 0; start + i < total; ++i) lanes[i] += x[start + i];
  for (int64_t w = kLanes / 2; w > 0; w >>= 1) {
    for (int64_t i = 0; i < w * columns; ++i) lanes[i] += lanes[i + w * columns];
  }
  for (int64_t c = 0; c < columns; ++c) out[c] = lanes[c];
}

template <class Source>
KOLM_FN void any_block(const Source& source, int64_t rows, int64_t columns, float* out) {
  column_block(source, rows, columns, out);
}
KOLM_FN void any_block(const ColumnValues& source, int64_t rows, int64_t columns, float* out) {
  if (source.ld == columns && columns < kStrip) {
    dense_block(source.x, rows, columns, out);
  } else {
    column_block(source, rows, columns, out);
  }
}

template <class Source>
void column_tree(const Source& source, int64_t rows, int64_t columns, float* out) {
  if (rows == 0) {
    for (int64_t j = 0; j < columns; ++j) out[j] = 0.0f;
    return;
  }
  if (rows <= kSumBlock) {
    any_block(source, rows, columns, out);
    return;
  }
  const int64_t count = (rows + kSumBlock - 1) / kSumBlock;
  float* sums = new float[static_cast<size_t>(count * columns)];
  for (int64_t b = 0; b < count; ++b) {
    any_block(source.below(b * kSumBlock), smaller(kSumBlock, rows - b * kSumBlock), columns,
              sums + b * columns);
  }
  column_tree(ColumnValues{sums, columns}, count, columns, out);
  delete[] sums;
}

void make_canonical(int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = canonical(y[i]);
}

void column_sums(int64_t rows, int64_t columns, const float* x, int64_t ld, float* out) {
  column_tree(ColumnValues{x, ld}, rows, columns, out);
  make_canonical(columns, out);
}

void column_sums_centred(int64_t rows, int64_t columns, const float* x, int64_t ldx, const float* y,
                         int64_t ldy, const float* mean, const float* rstd, float* out) {
  column_tree(ColumnCentred{x, ldx, y, ldy, mean, rstd}, rows, columns, out);
  make_canonical(columns, out);
}

// ---- row operations

KOLM_FN Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// The largest lane.
template <int kSize>
KOLM_FN float largest_lane(typename VectorOf<kSize>::Type v) {
  if constexpr (kSize == 1) {
    return v[0];
  } else {
    using Half = typename VectorOf<kSize / 2>::Type;
    Half low, high;
    __builtin_memcpy(&low, &v, sizeof low);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return largest_lane<kSize / 2>(high > low ? high : low);
  }
}

// Whether a comparison holds in any lane.
KOLM_FN bool any_lane(Comparison lanes) {
  int32_t each[kWidth];
  __builtin_memcpy(each, &lanes, sizeof each);
  int32_t any = 0;
  for (int l = 0; l < kWidth; ++l) any |= each[l];
  return any != 0;
}

// The maximum: a NaN wins, a zero is +0 (NUM-25).
float row_max(int64_t n, const float* x) {
  constexpr int kAtOnce = 4;  // vectors
  Vector best[kAtOnce];
  Comparison unordered = {};
  for (int k = 0; k < kAtOnce; ++k) best[k] = all(-kInfinity32);
  const auto take = [&](int k, Vector v) {
    best[k] = larger(v, best[k]);
    unordered |= v != v;
  };
  int64_t i = 0;
  for (; i + kAtOnce * kWidth <= n; i += kAtOnce * kWidth) {
#pragma GCC unroll 4
    for (int k = 0; k < kAtOnce; ++k) take(k, load(x + i + k * kWidth));
  }
  for (; i + kWidth <= n; i += kWidth) take(0, load(x + i));
  if (i < n) {
    float rest[kWidth];
    store(rest, all(-kInfinity32));
    for (int64_t l = 0; i + l < n; ++l) rest[l] = x[i + l];
    take(1, load(rest));
  }
  const float most =
      largest_lane<kWidth>(larger(larger(best[0], best[1]), larger(best[2], best[3])));
  return any_lane(unordered) ? kNaN32 : most + 0.0f;
}

// y = exp(x - shift) and its SUM, block by block while a block is in the cache.
float exp_and_sum(int64_t n, const float* x, float shift, float* y) {
  if (n <= kSumBlock) {
    exp_shifted(n, x, shift, y);
    return block_sum(Values{y}, 0, n);
  }
  exp_shifted(n, x, shift, y);
  return raw_sum(Values{y}, n);
}

void softmax(int64_t n, const float* x, float* y) {
  const float scale = 1.0f / exp_and_sum(n, x, row_max(n, x), y);
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = canonical(y[i] * scale);
}

void log_softmax(int64_t n, const float* x, float* y) {
  const float most = row_max(n, x);
  const float shift = log_f32(exp_sum(n, x, most));
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = canonical((x[i] - most) - shift);
}

void softmax_grad(int64_t n, const float* dy, const float* y, float* dx) {
  const float s = raw_sum(Products{dy, y}, n);
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) dx[i] = canonical((dy[i] - s) * y[i]);
}

void log_softmax_grad(int64_t n, const float* dy, const float* y, float* dx) {
  const float s = raw_sum(Values{dy}, n);
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) dx[i] = canonical(dy[i] - exp_f32(y[i]) * s);
}

float log_sum_exp(int64_t n, const float* x) {
  const float most = row_max(n, x);
  if (magnitude(most) == kInfinity32) return most;
  return canonical(most + log_f32(exp_sum(n, x, most)));
}

void layer_norm(int64_t n, const float* x, const float* gain, const float* bias, float eps,
                float* y, float* mean, float* rstd) {
  const float count = static_cast<float>(n);
  const float m = raw_sum(Values{x}, n) / count;
  const float variance = raw_sum(CentredSquares{x, m}, n) / count;
  const float r = 1.0f / root(variance + eps);
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - m) * r;
  if (gain != nullptr) {
    KOLM_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = y[i] * gain[i];
  }
  if (bias != nullptr) {
    KOLM_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = y[i] + bias[i];
  }
  make_canonical(n, y);
  *mean = canonical(m);
  *rstd = canonical(r);
}

template <bool kGain>
void layer_norm_grad_of(int64_t n, const float* dy, const float* x, const float* gain, float mean,
                        float rstd, float* dx) {
  const float count = static_cast<float>(n);
  const float total = kGain ? raw_sum(Products{dy, gain}, n) : raw_sum(Values{dy}, n);
  const float a = total / count;
  const float c = raw_sum(CentredProducts<kGain>{dy, gain, x, mean, rstd}, n) / count;
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float h = kGain ? dy[i] * gain[i] : dy[i];
    const float u = (x[i] - mean) * rstd;
    dx[i] = canonical(rstd * ((h - a) - u * c));
  }
}

void layer_norm_grad(int64_t n, const float* dy, const float* x, const float* gain, float mean,
                     float rstd, float* dx) {
  if (gain != nullptr) {
    layer_norm_grad_of<true>(n, dy, x, gain, mean, rstd, dx);
  } else {
    layer_norm_grad_of<false>(n, dy, x, gain, mean, rstd, dx);
  }
}

void rms_norm(int64_t n, const float* x, const float* gain, float eps, float* y, float* rstd) {
  const float square = raw_sum(Squares{x}, n) / static_cast<float>(n);
  const float r = 1.0f / root(square + eps);
  if (gain != nullptr) {
    KOLM_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = canonical((x[i] * r) * gain[i]);
  } else {
    KOLM_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) y[i] = canonical(x[i] * r);
  }
  *rstd = canonical(r);
}

template <bool kGain>
void rms_norm_grad_of(int64_t n, const float* dy, const float* x, const float* gain, float rstd,
                      float* dx) {
  const float total = raw_sum(ScaledProducts<kGain>{dy, gain, x, rstd}, n);
  const float c = total / static_cast<float>(n);
  KOLM_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float h = kGain ? dy[i] * gain[i] : dy[i];
    dx[i] = canonical(rstd * (h - (x[i] * rstd) * c));
  }
}

void rms_norm_grad(int64_t n, const float* dy, const float* x, const float* gain, float rstd,
                   float* dx) {
  if (gain != nullptr) {
    rms_norm_grad_of<true>(n, dy, x, gain, rstd, dx);
  } else {
    rms_norm_grad_of<false>(n, dy, x, gain, rstd, dx);
  }
}

void cumulative_sum(int64_t n, const float* x, int64_t sx, float* y, int64_t sy) {
  if (n == 0) return;
  float s = x[0];
  y[0] = canonical(s);
  for (int64_t i = 1; i < n; ++i) {
    s += x[i * sx];
    y[i * sy] = canonical(s);
  }
}

}  // namespace

extern const RowKernels row_kernels;
const RowKernels row_kernels = {
    sum,          column_sums,      column_sums_centred, softmax,    log_softmax,
    softmax_grad, log_softmax_grad, log_sum_exp,         layer_norm, layer_norm_grad,
    rms_norm,     rms_norm_grad,    cumulative_sum,
};

}  // namespace kolm::KOLM_ISA
