// Attention of NUM-40 to NUM-43 in blocks of query rows: no more scores in memory than a block has.
//
// The bits are those of the written-out form. Under a causal mask a row stops at its last visible
// key: what it leaves out has probability +0, and adding +0 to a sum that is never -0 changes
// nothing.
#include "attention.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gemm.h"
#include "gemm_inside.h"
#include "isa.h"
#include "rows.h"
#include "scratch.h"
#include "vector.h"

namespace kolm::KOLM_ISA {

extern const GemmKernels gemm_kernels;
extern const RowKernels row_kernels;

namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
constexpr int64_t kBlockRows = 256;    // of the gradient: a whole chunk of NUM-10
constexpr int64_t kScores = 1 << 17;   // floats of scores in one task of the forward
constexpr int64_t kLeastRows = 14;     // but no fewer rows
constexpr int64_t kMostRows = 128;     // and no more
constexpr int64_t kCausalRows = 64;    // the same under a causal mask, which later keys fall to
constexpr int64_t kCausalParts = 4;    // and so many blocks at least, down to
constexpr int64_t kLeastCausal = 28;   // rows
constexpr int64_t kUnpackedRows = 16;  // so few queries read k and v as they lie
constexpr int64_t kLanesOfSum = 64;    // NUM-20

constexpr int64_t kLine = 16;    // floats of a cache line
constexpr int64_t kAlias = 512;  // floats: rows a multiple apart share few cache lines

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// From one row of n scores to the next: products then read them where they lie.
int64_t score_step(int64_t n) {
  const int64_t step = ceil_div(n, kLine) * kLine;
  return step % kAlias == 0 ? step + kLine : step;
}
Operand rows_of(const float* data, int64_t row) { return {data, Element::f32, row, 1}; }
Operand transposed(const float* data, int64_t row) { return {data, Element::f32, 1, row}; }

// Rows of one block of `queries` under a causal mask: the smaller, the fewer hidden keys it has.
int64_t causal_rows(int64_t queries) {
  return std::clamp(queries / kCausalParts, kLeastCausal, kCausalRows);
}

// A tensor [batch, heads, rows, width].
template <class T>
struct Tensor {
  T* data;
  Strides4 strides;

  T* at(int64_t batch, int64_t head, int64_t row = 0) const {
    return data + batch * strides.batch + head * strides.head + row * strides.row;
  }
};

// Query rows of one head, or one query of several heads that share their keys.
struct Rows {
  int64_t batch, head, row, count;
  bool across_heads;

  int64_t head_of(int64_t i) const { return across_heads ? head + i : head; }
  int64_t row_of(int64_t i) const { return across_heads ? row : row + i; }
  int64_t step(Strides4 s) const { return across_heads ? s.head : s.row; }
};

struct Problem {
  const AttentionShape& shape;
  Tensor<const float> q, k, v;
  const AttentionMask& mask;

  int64_t group() const { return shape.heads / shape.key_heads; }
  int64_t shared(int64_t head) const { return head / group(); }

  // Keys from the first that query `row` may see: the others have probability +0.
  int64_t visible(int64_t row) const {
    return shape.causal ? std::min(shape.keys, row + 1) : shape.keys;
  }
  int64_t visible(const Rows& rows) const { return visible(rows.row_of(rows.count - 1)); }
};

// k or v of every shared head, packed as the right operand of a product.
struct Packed {
  float* data = nullptr;
  int64_t one = 0;  // floats of one head

  const float* at(const Problem& problem, const Rows& rows) const {
    return data + (rows.batch * problem.shape.key_heads + problem.shared(rows.head)) * one;
  }
};

// Scale and mask of one row of scores.
void mask_row(const Problem& problem, const Rows& rows, int64_t i, int64_t n, float* scores) {
  const float scale = problem.shape.scale;
  for (int64_t j = 0; j < n; ++j) scores[j] = scores[j] * scale;
  const AttentionMask& mask = problem.mask;
  if (mask.data == nullptr) return;
  const float* added =
      mask.data + rows.batch * mask.batch + rows.head_of(i) * mask.head + rows.row_of(i) * mask.row;
  if (mask.column == 1)
    for (int64_t j = 0; j < n; ++j) scores[j] = scores[j] + added[j];
  else
    for (int64_t j = 0; j < n; ++j) scores[j] = scores[j] + added[j * mask.column];
}

bool hidden(const float* scores, int64_t n) {
  return std::all_of(scores, scores + n, [](float x) { return x == kHidden; });
}

// Scores of one row become its probabilities; `width` of them, those past its visible keys +0.
void probabilities(const Problem& problem, const Rows& rows, int64_t i, int64_t width, float* p) {
  const int64_t n = problem.visible(rows.row_of(i));
  mask_row(problem, rows, i, n, p);
  if (problem.mask.data && hidden(p, n))
    std::fill(p, p + n, 0.0f);
  else
    row_kernels.softmax(n, p, p);
  std::fill(p + n, p + width, 0.0f);
}

void forward_rows(const Problem& problem, const Rows& rows, const Packed& k, const Packed& v,
                  const Tensor<float>& out) {
  static thread_local Scratch scratch;
  const AttentionShape& shape = problem.shape;
  const int64_t n = problem.visible(rows), shared = problem.shared(rows.head);
  const int64_t step = score_step(n);
  float* p = scratch.floats(rows.count * step);
  const Operand q =
      rows_of(problem.q.at(rows.batch, rows.head, rows.row), rows.step(problem.q.strides));
  float* to = out.at(rows.batch, rows.head, rows.row);
  const int64_t to_step = rows.step(out.strides);
  if (k.data)
    gemm_strips(rows.count, n, shape.width, q, k.at(problem, rows), shape.width, p, step, serial());
  else
    gemm_kernels.gemm(rows.count, n, shape.width, q,
                      transposed(problem.k.at(rows.batch, shared), problem.k.strides.row), p, step,
                      serial());
  for (int64_t i = 0; i < rows.count; ++i) probabilities(problem, rows, i, n, p + i * step);
  if (v.data)
    gemm_strips(rows.count, shape.value_width, n, rows_of(p, step), v.at(problem, rows), shape.keys,
                to, to_step, serial());
  else
    gemm_kernels.gemm(rows.count, shape.value_width, n, rows_of(p, step),
                      rows_of(problem.v.at(rows.batch, shared), problem.v.strides.row), to, to_step,
                      serial());
}

// Packs `operand(batch, shared head)` of depth x columns for every shared head.
template <class Operands>
Packed pack_heads(const AttentionShape& shape, int64_t depth, int64_t columns, float* memory,
                  const Parallel& pool, Operands operand) {
  const Packed packed{memory, gemm_kernels.packed_floats(depth, columns)};
  parallel_for(pool, shape.batch * shape.key_heads, [&](int64_t index) {
    gemm_kernels.pack(depth, columns, operand(index / shape.key_heads, index % shape.key_heads),
                      memory + index * packed.one, serial());
  });
  return packed;
}

int64_t packed_size(const AttentionShape& shape, int64_t depth, int64_t columns) {
  return shape.batch * shape.key_heads * gemm_kernels.packed_floats(depth, columns);
}

// One query a head, as when a text is generated: the heads that share keys read them together.
void forward_few(const Problem& problem, const Tensor<float>& out, const Parallel& pool) {
  const AttentionShape& shape = problem.shape;
  const int64_t group = problem.group();
  parallel_for(pool, shape.batch * shape.key_heads, [&](int64_t index) {
    const int64_t head = index % shape.key_heads * group;
    for (int64_t row = 0; row < shape.queries; ++row)
      forward_rows(problem, {index / shape.key_heads, head, row, group, true}, {}, {}, out);
  });
}

void forward_blocks(const Problem& problem, const Tensor<float>& out, const Parallel& pool) {
  static thread_local Scratch scratch;
  const AttentionShape& shape = problem.shape;
  const int64_t k_size = packed_size(shape, shape.width, shape.keys);
  float* memory = scratch.floats(k_size + packed_size(shape, shape.keys, shape.value_width));
  const Tensor<const float>&k = problem.k, &v = problem.v;
  const Packed keys =
      pack_heads(shape, shape.width, shape.keys, memory, pool,
                 [&](int64_t b, int64_t h) { return transposed(k.at(b, h), k.strides.row); });
  const Packed values =
      pack_heads(shape, shape.keys, shape.value_width, memory + k_size, pool,
                 [&](int64_t b, int64_t h) { return rows_of(v.at(b, h), v.strides.row); });
  const int64_t most = shape.causal ? causal_rows(shape.queries) : kMostRows;
  const int64_t block = std::clamp(kScores / shape.keys, kLeastRows, most);
  const int64_t blocks = ceil_div(shape.queries, block), heads = shape.batch * shape.heads;
  parallel_for(pool, heads * blocks, [&](int64_t index) {
    const int64_t row = (blocks - 1 - index / heads) * block;  // the longest first
    const int64_t head = index % heads;
    const Rows rows{head / shape.heads, head % shape.heads, row,
                    std::min(block, shape.queries - row), false};
    forward_rows(problem, rows, keys, values, out);
  });
}

// Without a key every sum has no terms: +0.
void clear_rows(const AttentionShape& shape, const Tensor<float>& x, int64_t width) {
  for (int64_t b = 0; b < shape.batch; ++b)
    for (int64_t h = 0; h < shape.heads; ++h)
      for (int64_t i = 0; i < shape.queries; ++i)
        std::fill(x.at(b, h, i), x.at(b, h, i) + width, 0.0f);
}

void forward(const AttentionShape& shape, const float* q, Strides4 qs, const float* k, Strides4 ks,
             const float* v, Strides4 vs, const AttentionMask& mask, float* out, Strides4 os,
             const Parallel& pool) {
  const Problem problem{shape, {q, qs}, {k, ks}, {v, vs}, mask};
  const Tensor<float> to{out, os};
  if (shape.keys == 0) return clear_rows(shape, to, shape.value_width);
  if (shape.queries <= kUnpackedRows)
    forward_few(problem, to, pool);
  else
    forward_blocks(problem, to, pool);
}

// What every head of the gradient reads.
struct Gradient {
  const Problem& problem;
  Tensor<const float> dout;
  Tensor<float> dq;
  Packed k_columns, k_rows, v_columns;  // for q k^T, ds k and dout v^T

  Operand q_of(const Rows& rows) const {
    return rows_of(problem.q.at(rows.batch, rows.head, rows.row), problem.q.strides.row);
  }
  Operand dout_of(const Rows& rows) const {
    return rows_of(dout.at(rows.batch, rows.head, rows.row), dout.strides.row);
  }
};

// ds of rows from their probabilities and dp, which it overwrites.
void score_gradients(const Problem& problem, const Rows& rows, int64_t n, int64_t step,
                     const float* p, float* ds, const Parallel& pool) {
  parallel_for(pool, rows.count, [&](int64_t i) {
    const int64_t seen = problem.visible(rows.row_of(i));
    float* row = ds + i * step;
    row_kernels.softmax_grad(seen, row, p + i * step, row);
    for (int64_t j = 0; j < seen; ++j) row[j] = row[j] * problem.shape.scale;
    std::fill(row + seen, row + n, 0.0f);
  });
}

// Probabilities and ds of a block of query rows, one row `step` floats after the other.
struct Scores {
  float *p, *ds;
  int64_t step;

  Scores below(int64_t rows) const { return {p + rows * step, ds + rows * step, step}; }
};

// The scores of some rows, as far as they see keys, and their dq.
void backward_scores(const Gradient& gradient, const Rows& rows, const Scores& scores,
                     const Parallel& pool) {
  const Problem& problem = gradient.problem;
  const AttentionShape& shape = problem.shape;
  const int64_t n = problem.visible(rows), step = scores.step;
  gemm_strips(rows.count, n, shape.width, gradient.q_of(rows), gradient.k_columns.at(problem, rows),
              shape.width, scores.p, step, pool);
  parallel_for(pool, rows.count,
               [&](int64_t i) { probabilities(problem, rows, i, n, scores.p + i * step); });
  gemm_strips(rows.count, n, shape.value_width, gradient.dout_of(rows),
              gradient.v_columns.at(problem, rows), shape.value_width, scores.ds, step, pool);
  score_gradients(problem, rows, n, step, scores.p, scores.ds, pool);
  gemm_strips(rows.count, shape.width, n, rows_of(scores.ds, step),
              gradient.k_rows.at(problem, rows), shape.keys,
              gradient.dq.at(rows.batch, rows.head, rows.row), gradient.dq.strides.row, pool);
}

// x[j] += SUM over i of scores[i][j] * y[i], i from `row` on, for keys j in [key, end).
void add_keys(int64_t row, int64_t rows, int64_t key, int64_t end, const float* scores,
              int64_t step, const float* y, int64_t width, float* x, const Parallel& pool) {
  add_strips(end - key, width, rows - row, transposed(scores + row * step + key, step),
             strips_from(y, row), rows, x + key * width, width, pool);
}

// One block of query rows, at most one chunk: its dq, and its part of the head's dk and dv. It goes
// row by few rows under a causal mask, and from the first of them that sees them for the keys.
void backward_rows(const Gradient& gradient, const Rows& rows, float* dk, float* dv,
                   const Parallel& pool) {
  static thread_local Scratch scratch;
  const Problem& problem = gradient.problem;
  const AttentionShape& shape = problem.shape;
  const int64_t step = score_step(problem.visible(rows)), count = rows.count;
  const int64_t q_size = gemm_kernels.packed_floats(count, shape.width);
  const int64_t dout_size = gemm_kernels.packed_floats(count, shape.value_width);
  float* q = scratch.floats(q_size + dout_size + 2 * count * step);
  float* dout = q + q_size;
  const Scores scores{dout + dout_size, dout + dout_size + count * step, step};
  gemm_kernels.pack(count, shape.width, gradient.q_of(rows), q, pool);
  gemm_kernels.pack(count, shape.value_width, gradient.dout_of(rows), dout, pool);
  const int64_t part = shape.causal ? causal_rows(shape.queries) : count;
  for (int64_t row = 0; row < count; row += part) {
    const Rows some{rows.batch, rows.head, rows.row + row, std::min(part, count - row), false};
    backward_scores(gradient, some, scores.below(row), pool);
  }
  for (int64_t row = 0, key = 0; row < count; row += part) {
    const int64_t end = problem.visible(rows.row + std::min(row + part, count) - 1);
    add_keys(row, count, key, end, scores.p, step, dout, shape.value_width, dv, pool);
    add_keys(row, count, key, end, scores.ds, step, q, shape.width, dk, pool);
    key = end;
  }
}

// SUM over a group's parts, each `size` floats, into the first: the tree of NUM-20, whose lanes
// past the last part hold +0.
void sum_parts(int64_t parts, int64_t size, int64_t from, int64_t to, float* data) {
  for (int64_t width = kLanesOfSum / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width && lane + width < parts; ++lane) {
      float* x = data + lane * size;
      const float* y = data + (lane + width) * size;
      for (int64_t i = from; i < to; ++i) x[i] = x[i] + y[i];
    }
}

void copy_canonical(int64_t n, const float* x, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] == x[i] ? x[i] : bits_as<float>(kQuietNaN);
}

// The gradient of a shared head: the SUM over its group's parts, [keys, width] each.
void sum_group(int64_t parts, int64_t keys, int64_t width, float* data, float* out, int64_t step) {
  constexpr int64_t at_once = 32;  // keys: what a pass over the parts keeps in L1
  for (int64_t key = 0; key < keys; key += at_once) {
    const int64_t end = std::min(keys, key + at_once);
    if (parts <= kLanesOfSum) {
      sum_parts(parts, keys * width, key * width, end * width, data);
      for (int64_t i = key; i < end; ++i) copy_canonical(width, data + i * width, out + i * step);
    } else {
      for (int64_t i = key; i < end; ++i)
        row_kernels.column_sums(parts, width, data + i * width, keys * width, out + i * step);
    }
  }
}

void backward(const AttentionShape& shape, const float* q, Strides4 qs, const float* k, Strides4 ks,
              const float* v, Strides4 vs, const AttentionMask& mask, const float* dout,
              Strides4 dos, float* dq, Strides4 dqs, float* dk, Strides4 dks, float* dv,
              Strides4 dvs, const Parallel& pool) {
  static thread_local Scratch packed_scratch, part_scratch;
  const Problem problem{shape, {q, qs}, {k, ks}, {v, vs}, mask};
  if (shape.keys == 0) return clear_rows(shape, {dq, dqs}, shape.width);
  const int64_t heads = shape.batch * shape.heads, group = problem.group();
  const int64_t columns = packed_size(shape, shape.width, shape.keys);
  const int64_t lines = packed_size(shape, shape.keys, shape.width);
  float* memory =
      packed_scratch.floats(columns + lines + packed_size(shape, shape.value_width, shape.keys));
  const auto k_columns = [&](int64_t b, int64_t h) {
    return transposed(problem.k.at(b, h), ks.row);
  };
  const auto k_rows = [&](int64_t b, int64_t h) { return rows_of(problem.k.at(b, h), ks.row); };
  const auto v_columns = [&](int64_t b, int64_t h) {
    return transposed(problem.v.at(b, h), vs.row);
  };
  const Gradient gradient{
      problem,
      {dout, dos},
      {dq, dqs},
      pack_heads(shape, shape.width, shape.keys, memory, pool, k_columns),
      pack_heads(shape, shape.keys, shape.width, memory + columns, pool, k_rows),
      pack_heads(shape, shape.value_width, shape.keys, memory + columns + lines, pool, v_columns)};

  const int64_t dk_size = shape.keys * shape.width, dv_size = shape.keys * shape.value_width;
  float* dk_parts = part_scratch.floats(heads * (dk_size + dv_size));
  float* dv_parts = dk_parts + heads * dk_size;
  // Heads side by side; too few of them share each head's work instead.
  const bool by_head = heads >= pool.threads;
  const Parallel outer = by_head ? pool : serial(), inner = by_head ? serial() : pool;
  parallel_for(outer, heads, [&](int64_t index) {
    float* dk_part = dk_parts + index * dk_size;
    float* dv_part = dv_parts + index * dv_size;
    std::fill(dk_part, dk_part + dk_size, 0.0f);
    std::fill(dv_part, dv_part + dv_size, 0.0f);
    for (int64_t row = 0; row < shape.queries; row += kBlockRows) {
      const Rows rows{index / shape.heads, index % shape.heads, row,
                      std::min(kBlockRows, shape.queries - row), false};
      backward_rows(gradient, rows, dk_part, dv_part, inner);
    }
  });
  const Tensor<float> dk_out{dk, dks}, dv_out{dv, dvs};
  parallel_for(pool, shape.batch * shape.key_heads, [&](int64_t index) {
    const int64_t batch = index / shape.key_heads, head = index % shape.key_heads;
    sum_group(group, shape.keys, shape.width, dk_parts + index * group * dk_size,
              dk_out.at(batch, head), dks.row);
    sum_group(group, shape.keys, shape.value_width, dv_parts + index * group * dv_size,
              dv_out.at(batch, head), dvs.row);
  });
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {forward, backward};

}  // namespace kolm::KOLM_ISA
