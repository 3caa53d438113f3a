// The operators on quantised weights: torch.ops.kolm_portable.quantised_*, dequantise_*.
#pragma once

#include "torch_binding.h"

namespace kolm::binding {

void define_quantised(torch::Library& library);

}  // namespace kolm::binding
