// Fused attention of spec/numerics.md, section attention: the bits of the written-out form. Free of torch.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace kolm {

// One call: `batch` x `heads` problems. Data are binary32 with unit stride along the head's width.
// Strides count elements. Query head h reads key/value head h / (heads / key_heads).
struct AttentionShape {
  int64_t batch, heads, key_heads, queries, keys, width, value_width;
  float scale;
  bool causal;  // query i sees keys j <= i (PyTorch's is_causal: aligned at the top left)
};

// Strides of a tensor [batch, heads, rows, width].
struct Strides4 {
  int64_t batch, head, row;
};

// An additive mask, broadcast by zero strides; data is null without a mask.
struct AttentionMask {
  const float* data;
  int64_t batch, head, row, column;
};

struct AttentionKernels {
  void (*forward)(const AttentionShape& shape, const float* q, Strides4 qs, const float* k,
                  Strides4 ks, const float* v, Strides4 vs, const AttentionMask& mask, float* out,
                  Strides4 os, const Parallel& pool);
  void (*backward)(const AttentionShape& shape, const float* q, Strides4 qs, const float* k,
                   Strides4 ks, const float* v, Strides4 vs, const AttentionMask& mask,
                   const float* dout, Strides4 dos, float* dq, Strides4 dqs, float* dk,
                   Strides4 dks, float* dv, Strides4 dvs, const Parallel& pool);
};

}  // namespace kolm
