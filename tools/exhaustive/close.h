// The functions in binary64 by another library (glibc's libm, or its libmvec, a vector at a time):
// close enough to decide all but a few thousand of the 2^32 cases.
#pragma once

#include "maps.h"

namespace exhaustive {

constexpr int kChunk = 4096;

// y[i] is within `2^-42 * |y|`, plus 2^-44 where |x| < 4 for a derivative, of the function at x[i].
void close(kolm::Unary function, const double* x, double* y);

}  // namespace exhaustive
