// The kernels of one instruction set. Every table computes the same bits. Free of torch.
#pragma once

#include "attention.h"
#include "gemm.h"
#include "integers.h"
#include "maps.h"
#include "random.h"
#include "rows.h"

namespace kolm {

struct Kernels {
  const char* isa;
  GemmKernels gemm;
  AttentionKernels attention;
  MapKernels maps;
  RowKernels rows;
  RandomKernels random;
  IntegerKernels integers;
};

// The tables this binary has and this machine can run, best first; a null entry ends the list.
const Kernels* const* available_kernels();

}  // namespace kolm
