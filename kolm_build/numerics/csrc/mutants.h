// Deliberate errors, compiled into a conformance program alone, which prove that its hashes see the
// order of a sum (tools/conformance.py). A product build that asks for one does not compile.
#pragma once

#if !defined(KOLM_CONFORMANCE) && \
    (defined(KOLM_MUTANT_LANES) || defined(KOLM_MUTANT_CHUNK) || defined(KOLM_MUTANT_REVERSED))
#error "mutants belong to the conformance program: they compute other bits than the specification"
#endif

#include <cstdint>

namespace kolm {

#if defined(KOLM_MUTANT_LANES)
constexpr int kSumLanes = KOLM_MUTANT_LANES;
#else
constexpr int kSumLanes = 64;  // NUM-20
#endif

#if defined(KOLM_MUTANT_CHUNK)
constexpr int64_t kProductChunk = KOLM_MUTANT_CHUNK;
#else
constexpr int64_t kProductChunk = 256;  // NUM-10
#endif

#if defined(KOLM_MUTANT_REVERSED)
constexpr bool kProductReversed = true;
#else
constexpr bool kProductReversed = false;
#endif

}  // namespace kolm
