// The kernels of portable-1 on a GPU: what the host calls. Every pointer is device memory, every
// call is asynchronous on `stream`. Free of torch.
#pragma once

#include <cstdint>

#include "device.h"

namespace kolm::cuda {

// ---- Matrix products (NUM-10, NUM-11).

enum class Storage : int { f32 = 0, bf16 = 1, f16 = 2 };

// One operand of a batch of products. Strides count elements. The batch has two levels, `outer` and
// `inner`; `group` inner problems in a row read the same matrix (heads that share keys).
struct Side {
  const void* data;
  int64_t row, column;
  int64_t outer = 0, inner = 0, group = 1;
};

struct Product {
  int64_t m, n, k;
  Side a, b;       // m x k and k x n
  Storage storage;  // of both
  float* c;        // row stride and column stride in elements
  int64_t c_row, c_column, c_outer, c_inner;
  int64_t outers, inners;
};

// How a product is cut up; no choice changes a bit.
struct GemmPlan {
  int variant;          // index of a tile shape
  bool split;           // one block a chunk of 256, summed in order afterwards
  int64_t workspace_floats;
};

struct Device {
  int multiprocessors;
  int64_t shared_bytes;  // that one block may ask for
};

constexpr int gemm_variants = 5;
constexpr int any_variant = -1;

// `forced` names a variant, or any_variant.
GemmPlan plan_gemm(const Product& product, const Device& device, int forced = any_variant);
void gemm(const Product& product, const GemmPlan& plan, float* workspace, Stream stream);

}  // namespace kolm::cuda
