// Assembles the table of one instruction set.
#include "isa.h"
#include "kernels.h"

namespace kolm::KOLM_BASE {

extern const GemmKernels gemm_kernels;
extern const AttentionKernels attention_kernels;
extern const MapKernels map_kernels;
extern const RowKernels row_kernels;
extern const RandomKernels random_kernels;
extern const IntegerKernels integer_kernels;
extern const QuantisedKernels quantised_kernels;

}  // namespace kolm::KOLM_BASE

namespace kolm::KOLM_ISA {

extern const DotKernels dot_kernels;

extern const Kernels kernels;
constinit const Kernels kernels = {
    KOLM_TEXT(KOLM_ISA),
    KOLM_BASE::gemm_kernels,
    KOLM_BASE::attention_kernels,
    KOLM_BASE::map_kernels,
    KOLM_BASE::row_kernels,
    KOLM_BASE::random_kernels,
    KOLM_BASE::integer_kernels,
    KOLM_BASE::quantised_kernels,
    dot_kernels,
};

}  // namespace kolm::KOLM_ISA
