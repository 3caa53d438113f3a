// The 64 lanes of NUM-20 in the vectors of one instruction set. Free of torch.
#pragma once

#include "binary64.h"
#include "mutants.h"

namespace kolm::KOLM_ISA {

constexpr int kLanes = kSumLanes;
constexpr int64_t kSumBlock = 4096;

#if defined(KOLM_ISA_AVX512)
constexpr int kWidth = 16;
#elif defined(KOLM_ISA_AVX2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kVectors = kLanes / kWidth;

template <int kSize>
struct VectorOf {
  typedef float Type __attribute__((vector_size(kSize * sizeof(float))));
};
using Vector = VectorOf<kWidth>::Type;
using Comparison = decltype(Vector{} == Vector{});

KOLM_FN Vector load(const float* x) {
  Vector v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}
KOLM_FN void store(float* x, Vector v) { __builtin_memcpy(x, &v, sizeof v); }
KOLM_FN Vector all(float x) { return x - Vector{}; }  // x - 0 is x, also for -0
KOLM_FN Vector size_of(Vector v) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(Vector))));
  Bits bits;
  __builtin_memcpy(&bits, &v, sizeof v);
  bits &= 0x7fffffffu;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

struct Lanes {
  Vector v[kVectors];
};

KOLM_FN void clear(Lanes& lanes) {
  for (int k = 0; k < kVectors; ++k) lanes.v[k] = Vector{};
}

// Lane l adds lane l + w for w = kSize / 2, ..., 1; the value of lane 0.
template <int kSize>
KOLM_FN float fold_vector(typename VectorOf<kSize>::Type v) {
  if constexpr (kSize == 2) {
    return v[0] + v[1];
  } else {
    using Half = typename VectorOf<kSize / 2>::Type;
    Half low, high;
    __builtin_memcpy(&low, &v, sizeof low);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return fold_vector<kSize / 2>(low + high);
  }
}

KOLM_FN float fold(Lanes& lanes) {
#pragma GCC unroll 16
  for (int w = kVectors / 2; w > 0; w >>= 1) {
#pragma GCC unroll 16
    for (int k = 0; k < w; ++k) lanes.v[k] += lanes.v[k + w];
  }
  return fold_vector<kWidth>(lanes.v[0]);
}

}  // namespace kolm::KOLM_ISA
