// The scalar functions that the CPU kernels are made of, on the device.
#pragma once

#include "../formats.h"
#include "../functions.h"
#include "device.h"

namespace kolm::cuda {

using namespace kolm::KOLM_ISA;

}  // namespace kolm::cuda
