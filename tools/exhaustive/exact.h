// The exact functions, by their definitions, in MPFR: what decides a close case.
#pragma once

#include <mpfr.h>

#include "maps.h"

namespace exhaustive {

// The correctly rounded binary32 value of `function` at a finite x.
float exact(kolm::Unary function, float x);

}  // namespace exhaustive
