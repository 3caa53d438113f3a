// Attention of NUM-40 to NUM-43, one head at a time over the kernels of gemm.h and rows.h.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gemm.h"
#include "isa.h"
#include "rows.h"
#include "scratch.h"

namespace kolm::KOLM_ISA {

extern const GemmKernels gemm_kernels;
extern const RowKernels row_kernels;

namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

Operand rows_of(const float* data, int64_t row) { return {data, Element::f32, row, 1}; }
Operand transposed(const float* data, int64_t row) { return {data, Element::f32, 1, row}; }

// One head of one member of the batch.
struct Head {
  int64_t batch, head, shared;

  Head(const AttentionShape& shape, int64_t index)
      : batch(index / shape.heads),
        head(index % shape.heads),
        shared(head / (shape.heads / shape.key_heads)) {}

  template <class T>
  T* query(T* data, Strides4 s) const {
    return data + batch * s.batch + head * s.head;
  }
  template <class T>
  T* key(T* data, Strides4 s) const {
    return data + batch * s.batch + shared * s.head;
  }
};

// Scores of one row: scaled, masked.
void mask_row(const AttentionShape& shape, const AttentionMask& mask, const Head& at, int64_t row,
              float* scores) {
  const float* added =
      mask.data ? mask.data + at.batch * mask.batch + at.head * mask.head + row * mask.row
                : nullptr;
  for (int64_t j = 0; j < shape.keys; ++j) {
    scores[j] = scores[j] * shape.scale;
    if (added) scores[j] = scores[j] + added[j * mask.column];
    if (shape.causal && j > row) scores[j] = kHidden;
  }
}

bool hidden(const float* scores, int64_t n) {
  return std::all_of(scores, scores + n, [](float x) { return x == kHidden; });
}

// The probabilities of every query of a head, queries x keys.
void probabilities(const AttentionShape& shape, const Head& at, const float* q, Strides4 qs,
                   const float* k, Strides4 ks, const AttentionMask& mask, float* p) {
  gemm_kernels.gemm(shape.queries, shape.keys, shape.width, rows_of(at.query(q, qs), qs.row),
                    transposed(at.key(k, ks), ks.row), p, shape.keys, serial());
  for (int64_t i = 0; i < shape.queries; ++i) {
    float* row = p + i * shape.keys;
    mask_row(shape, mask, at, i, row);
    if (mask.data && hidden(row, shape.keys))
      std::fill(row, row + shape.keys, 0.0f);
    else
      row_kernels.softmax(shape.keys, row, row);
  }
}

void forward(const AttentionShape& shape, const float* q, Strides4 qs, const float* k, Strides4 ks,
             const float* v, Strides4 vs, const AttentionMask& mask, float* out, Strides4 os,
             const Parallel& pool) {
  parallel_for(pool, shape.batch * shape.heads, [&](int64_t index) {
    static thread_local Scratch scratch;
    const Head at(shape, index);
    float* p = scratch.floats(shape.queries * shape.keys);
    probabilities(shape, at, q, qs, k, ks, mask, p);
    gemm_kernels.gemm(shape.queries, shape.value_width, shape.keys, rows_of(p, shape.keys),
                      rows_of(at.key(v, vs), vs.row), at.query(out, os), os.row, serial());
  });
}

// dst = SUM over `heads` parts of rows x columns, one after another in memory (NUM-41).
void sum_heads(int64_t heads, int64_t rows, int64_t columns, const float* parts, float* dst,
               int64_t row_stride) {
  for (int64_t i = 0; i < rows; ++i)
    row_kernels.column_sums(heads, columns, parts + i * columns, rows * columns,
                            dst + i * row_stride);
}

void backward(const AttentionShape& shape, const float* q, Strides4 qs, const float* k, Strides4 ks,
              const float* v, Strides4 vs, const AttentionMask& mask, const float* dout,
              Strides4 dos, float* dq, Strides4 dqs, float* dk, Strides4 dks, float* dv,
              Strides4 dvs, const Parallel& pool) {
  static thread_local Scratch parts;
  const int64_t heads = shape.batch * shape.heads, group = shape.heads / shape.key_heads;
  const int64_t dk_size = shape.keys * shape.width, dv_size = shape.keys * shape.value_width;
  float* dk_parts = parts.floats(heads * (dk_size + dv_size));
  float* dv_parts = dk_parts + heads * dk_size;
  parallel_for(pool, heads, [&](int64_t index) {
    static thread_local Scratch scratch;
    const Head at(shape, index);
    const int64_t size = shape.queries * shape.keys;
    float* p = scratch.floats(2 * size);
    float* ds = p + size;
    const float* dout_head = at.query(dout, dos);
    probabilities(shape, at, q, qs, k, ks, mask, p);
    gemm_kernels.gemm(shape.keys, shape.value_width, shape.queries, transposed(p, shape.keys),
                      rows_of(dout_head, dos.row), dv_parts + index * dv_size, shape.value_width,
                      serial());
    gemm_kernels.gemm(shape.queries, shape.keys, shape.value_width, rows_of(dout_head, dos.row),
                      transposed(at.key(v, vs), vs.row), ds, shape.keys, serial());
    for (int64_t i = 0; i < shape.queries; ++i) {
      float* row = ds + i * shape.keys;
      row_kernels.softmax_grad(shape.keys, row, p + i * shape.keys, row);
      for (int64_t j = 0; j < shape.keys; ++j) row[j] = row[j] * shape.scale;
    }
    gemm_kernels.gemm(shape.queries, shape.width, shape.keys, rows_of(ds, shape.keys),
                      rows_of(at.key(k, ks), ks.row), at.query(dq, dqs), dqs.row, serial());
    gemm_kernels.gemm(shape.keys, shape.width, shape.queries, transposed(ds, shape.keys),
                      rows_of(at.query(q, qs), qs.row), dk_parts + index * dk_size, shape.width,
                      serial());
  });
  parallel_for(pool, shape.batch * shape.key_heads, [&](int64_t index) {
    const Head at(shape, index * group);
    sum_heads(group, shape.keys, shape.width, dk_parts + index * group * dk_size, at.key(dk, dks),
              dks.row);
    sum_heads(group, shape.keys, shape.value_width, dv_parts + index * group * dv_size,
              at.key(dv, dvs), dvs.row);
  });
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {forward, backward};

}  // namespace kolm::KOLM_ISA
