// Weights that were packed once for many products.
#pragma once

#include "torch_binding.h"

namespace kolm::binding {

// The packed form of the matrix `b` [k, n], or null if it was not packed or changed since.
const float* packed_weight(const Tensor& b);

// Packs the matrix that `linear` multiplies with: the transpose of `weight` [n, k].
void pack_weight(const Tensor& weight);

// Whether the packed form of `weight` is what packing it now would give.
bool is_packed_as_is(const Tensor& weight);

void forget_packed_weights();

}  // namespace kolm::binding
