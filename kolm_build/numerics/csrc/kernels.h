// The kernels of one instruction set. Every table computes the same bits. Free of torch.
#pragma once

#include "attention.h"
#include "gemm.h"
#include "integers.h"
#include "maps.h"
#include "quantised.h"
#include "random.h"
#include "rows.h"

namespace kolm {

struct Kernels {
  // References, so that the tables are constants: code that filled them as the library is loaded
  // would be compiled for an instruction set that the machine may not have.
  const char* isa;
  const GemmKernels& gemm;
  const AttentionKernels& attention;
  const MapKernels& maps;
  const RowKernels& rows;
  const RandomKernels& random;
  const IntegerKernels& integers;
  const QuantisedKernels& quantised;
  const DotKernels& dots;
};

// The tables this binary has and this machine can run, best first; a null entry ends the list.
const Kernels* const* available_kernels();

}  // namespace kolm
