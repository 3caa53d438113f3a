// What the matrix products give to the other kernels of their instruction set. Free of torch.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "isa.h"
#include "parallel.h"

namespace kolm::KOLM_ISA {

// gemm_packed for a part of what `pack` wrote: the first n columns, the first k of packed_depth.
void gemm_strips(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed,
                 int64_t packed_depth, float* c, int64_t ldc, const Parallel& pool);

// c = c + s, chunk by chunk of NUM-10: goes on with a product whose t so far is in c, with a part
// of what `pack` wrote, as gemm_strips has it. The depth before must have been whole chunks, and
// every chunk of a product but its last must be whole.
void add_strips(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed,
                int64_t packed_depth, float* c, int64_t ldc, const Parallel& pool);

// The part of `packed` from depth k on.
const float* strips_from(const float* packed, int64_t k);

}  // namespace kolm::KOLM_ISA
