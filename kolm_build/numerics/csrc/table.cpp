// Assembles the table of one instruction set.
#include "isa.h"
#include "kernels.h"

namespace kolm::KOLM_ISA {

extern const GemmKernels gemm_kernels;
extern const AttentionKernels attention_kernels;
extern const MapKernels map_kernels;
extern const RowKernels row_kernels;
extern const RandomKernels random_kernels;
extern const IntegerKernels integer_kernels;

extern const Kernels kernels;
constinit const Kernels kernels = {
    KOLM_TEXT(KOLM_ISA), gemm_kernels,   attention_kernels, map_kernels,
    row_kernels,         random_kernels, integer_kernels,
};

}  // namespace kolm::KOLM_ISA
