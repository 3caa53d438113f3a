// SUM of spec/numerics.md (NUM-20) on a GPU: one warp holds the 64 lanes of a block, two a thread.
#pragma once

#include "math.cuh"

namespace kolm::cuda {

constexpr int64_t sum_block = 4096;

// SUM of term(0) .. term(n - 1), n <= 4096, by one warp; every thread of it gets the result.
template <class Term>
__device__ __forceinline__ float warp_sum(int64_t n, Term&& term) {
  const int lane = threadIdx.x % warp_size;
  float low = 0.0f, high = 0.0f;
  int64_t i = lane;
#pragma unroll 4
  for (; i + 32 < n; i += 64) {
    low = low + term(i);
    high = high + term(i + 32);
  }
  if (i < n) low = low + term(i);
  float sum = low + high;
#pragma unroll
  for (int w = 16; w > 0; w /= 2) sum = sum + __shfl_down_sync(whole_warp, sum, w);
  return __shfl_sync(whole_warp, sum, 0);
}

// The threads that share a row: one warp (blockDim.y rows a block), or all warps of a block.
template <int warps>
struct Team {
  static constexpr int threads = warps * warp_size;

  __device__ __forceinline__ static int64_t row() {
    return warps == 1 ? static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y : blockIdx.x;
  }
  __device__ __forceinline__ static void barrier() {
    if constexpr (warps == 1)
      __syncwarp();
    else
      __syncthreads();
  }

  // SUM of n terms; `scratch` holds a float a block of 4096. With one warp n is at most 4096.
  template <class Term>
  __device__ __forceinline__ static float sum(int64_t n, float* scratch, Term&& term) {
    if constexpr (warps == 1) {
      return warp_sum(n, term);
    } else {
      const int64_t blocks = (n + sum_block - 1) / sum_block;
      barrier();
      for (int64_t b = threadIdx.x / warp_size; b < blocks; b += warps) {
        const int64_t first = b * sum_block;
        const float part = warp_sum(n - first < sum_block ? n - first : sum_block,
                                    [&](int64_t i) { return term(first + i); });
        if (threadIdx.x % warp_size == 0) scratch[b] = part;
      }
      barrier();
      if (blocks == 1) return scratch[0];
      return warp_sum(blocks, [&](int64_t i) { return scratch[i]; });
    }
  }

  // The maximum (NUM-25): NaN wins, and zero is +0.
  template <class Term>
  __device__ __forceinline__ static float maximum(int64_t n, float* scratch, Term&& term) {
    float most = __uint_as_float(0xff800000u);
    for (int64_t i = threadIdx.x; i < n; i += threads) most = larger(most, term(i));
#pragma unroll
    for (int w = 16; w > 0; w /= 2) most = larger(most, __shfl_down_sync(whole_warp, most, w));
    most = __shfl_sync(whole_warp, most, 0);
    if constexpr (warps > 1) {
      barrier();
      if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = most;
      barrier();
      most = scratch[0];
      for (int w = 1; w < warps; ++w) most = larger(most, scratch[w]);
    }
    return canonical(most + 0.0f);
  }

  __device__ __forceinline__ static float larger(float a, float b) {
    if (a != a) return a;
    return b != b || b > a ? b : a;
  }

  // Calls body(i) for every element of the row, each by the thread that `sum` gives it to where
  // one warp has the row.
  template <class Body>
  __device__ __forceinline__ static void each(int64_t n, Body&& body) {
    for (int64_t i = threadIdx.x; i < n; i += threads) body(i);
  }
};

}  // namespace kolm::cuda
