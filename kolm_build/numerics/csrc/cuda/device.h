// What the device code is written in: CUDA, or, where no CUDA compiler reads this, an emulation on
// the host that runs the same source (emulation.h). Free of torch.
#pragma once

#include <cstdint>

#include "kernels.h"

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace kolm::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Runs `kernel` on a grid; more than 48 KiB of dynamic shared memory are asked for first.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Stream stream,
            Arguments... arguments) {
  if (shared > 48 * 1024)
    check(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory of a kernel");
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), "launch of a kernel");
}

// The same for a kernel without barriers or shuffles.
template <class... Parameters, class... Arguments>
void launch_flat(void (*kernel)(Parameters...), dim3 grid, dim3 block, Stream stream,
                 Arguments... arguments) {
  launch(kernel, grid, block, 0, stream, arguments...);
}

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char kolm_shared_pool[];
  return kolm_shared_pool;
}

// Asynchronous copies from global to shared memory; bytes that are not `valid` become zero.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int count = valid ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(count)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(bytes),
                 "r"(count)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `pending` of this thread's groups of copies are under way.
template <int pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ float widen_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ __forceinline__ float widen_f16(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

}  // namespace kolm::cuda

#else
#include "emulation.h"
#endif

namespace kolm::cuda {

constexpr int warp_size = 32;
constexpr unsigned whole_warp = 0xffffffffu;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace kolm::cuda
