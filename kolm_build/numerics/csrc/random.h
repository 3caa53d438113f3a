// The counter-based generator of spec/numerics.md, section random. Free of torch.
#pragma once

#include <cstdint>

namespace kolm {

// A stream of random words: element i is a function of (seed, stream, i) alone.
struct Stream {
  uint64_t seed;
  uint64_t stream;
};

// `first` is the index of the first element and a multiple of 4.
struct RandomKernels {
  void (*words)(Stream stream, int64_t first, int64_t n, uint32_t* out);
  void (*uniform)(Stream stream, int64_t first, int64_t n, float low, float high, float* out);
  void (*normal)(Stream stream, int64_t first, int64_t n, float mean, float std, float* out);
  void (*bernoulli)(Stream stream, int64_t first, int64_t n, double p, float* out);  // 0 or 1
  void (*exponential)(Stream stream, int64_t first, int64_t n, double rate, float* out);
};

}  // namespace kolm
