// CUDA's execution model on the host, slow and strict: every thread of a block is a fiber, barriers
// and shuffles switch fibers, an asynchronous copy happens when it is waited for and not before,
// and the order in which fibers run is chosen by the caller, so that a missing barrier shows. One
// block runs at a time. For tests and for machines without a GPU; free of torch.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};

namespace kolm::cuda::emulation {

enum class State { ready, at_block, at_warp, done };
enum class Order { ascending, descending, shuffled };

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::done;
  dim3 thread;
  int parity = 0;
  std::vector<std::vector<Copy>> groups;
};

struct Machine {
  dim3 thread, block, block_dim, grid_dim;
  Order order = Order::ascending;
  std::vector<Fiber> fibers;
  std::vector<float> exchange;  // two buffers of one value a thread
  std::vector<unsigned char> shared;
  std::function<void()> body;
  ucontext_t scheduler;
  int current = 0;
  bool flat = false;
  uint32_t noise = 1;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

inline void yield(State state) {
  Machine& m = machine();
  if (m.flat) fail("a barrier in a kernel that was launched as one without barriers");
  Fiber& fiber = m.fibers[m.current];
  fiber.state = state;
  swapcontext(&fiber.context, &m.scheduler);
}

inline void run_fiber() {
  Machine& m = machine();
  m.body();
  Fiber& fiber = m.fibers[m.current];
  if (!fiber.groups.empty() && !fiber.groups.back().empty()) fail("a copy nobody waited for");
  fiber.state = State::done;
  swapcontext(&fiber.context, &m.scheduler);
}

inline void start_fiber(Fiber& fiber, int index, dim3 size) {
  constexpr size_t stack_bytes = 64 * 1024;
  if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
  fiber.state = State::ready;
  fiber.parity = 0;
  fiber.groups.assign(1, {});
  fiber.thread = dim3(index % size.x, index / size.x % size.y, index / size.x / size.y);
}

// Releases those of [first, last) that wait in `state`, if all that are alive do.
inline bool release(int first, int last, State state) {
  std::vector<Fiber>& fibers = machine().fibers;
  int waiting = 0;
  for (int i = first; i < last; ++i) {
    if (fibers[i].state == state)
      ++waiting;
    else if (fibers[i].state != State::done)
      return false;
  }
  for (int i = first; i < last; ++i)
    if (fibers[i].state == state) fibers[i].state = State::ready;
  return waiting > 0;
}

inline std::vector<int> schedule(int threads) {
  Machine& m = machine();
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = m.order == Order::descending ? threads - 1 - i : i;
  if (m.order == Order::shuffled)
    for (int i = threads - 1; i > 0; --i) {
      m.noise = m.noise * 1664525u + 1013904223u;
      std::swap(order[i], order[m.noise % (i + 1)]);
    }
  return order;
}

inline void run_ready(const std::vector<int>& order) {
  Machine& m = machine();
  for (const int i : order)
    if (m.fibers[i].state == State::ready) {
      m.current = i;
      m.thread = m.fibers[i].thread;
      swapcontext(&m.scheduler, &m.fibers[i].context);
    }
}

inline void run_block(int threads) {
  Machine& m = machine();
  for (int i = 0; i < threads; ++i) start_fiber(m.fibers[i], i, m.block_dim);
  std::memset(m.shared.data(), 0xff, m.shared.size());  // NaN: memory that nobody wrote
  while (true) {
    run_ready(schedule(threads));
    bool moved = false, alive = false;
    for (int i = 0; i < threads; i += 32)
      moved |= release(i, std::min(i + 32, threads), State::at_warp);
    moved |= release(0, threads, State::at_block);
    for (int i = 0; i < threads; ++i) alive |= m.fibers[i].state != State::done;
    if (!alive) return;
    if (!moved) fail("threads of one block wait at different barriers");
  }
}

template <class Block>
void for_each_block(dim3 grid, Block&& block) {
  Machine& m = machine();
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        m.block = dim3(x, y, z);
        block();
      }
}

inline int begin(dim3 grid, dim3 block, size_t shared, std::function<void()> body, bool flat) {
  Machine& m = machine();
  const int threads = static_cast<int>(block.x * block.y * block.z);
  if (threads < 1 || threads > 1024 || grid.y > 65535 || grid.z > 65535 || grid.x < 1 ||
      grid.y < 1 || grid.z < 1)
    fail("no such grid");
  if (shared > 227 * 1024) fail("no block has so much shared memory");
  m.block_dim = block;
  m.grid_dim = grid;
  m.body = std::move(body);
  m.flat = flat;
  if (!flat) {
    if (static_cast<int>(m.fibers.size()) < threads) m.fibers.resize(threads);
    m.exchange.assign(2 * threads, 0.0f);
    m.shared.resize(shared);
  }
  return threads;
}

inline void run(dim3 grid, dim3 block, size_t shared, std::function<void()> body) {
  const int threads = begin(grid, block, shared, std::move(body), false);
  for_each_block(grid, [&] { run_block(threads); });
}

inline void run_flat(dim3 grid, dim3 block, std::function<void()> body) {
  Machine& m = machine();
  begin(grid, block, 0, std::move(body), true);
  for_each_block(grid, [&] {
    for (unsigned z = 0; z < block.z; ++z)
      for (unsigned y = 0; y < block.y; ++y)
        for (unsigned x = 0; x < block.x; ++x) {
          m.thread = dim3(x, y, z);
          m.body();
        }
  });
}

inline void perform(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    if (copy.valid)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
  }
}

template <class T>
T shuffle(T value, int lane_of_source) {
  static_assert(sizeof(T) == 4);
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.current];
  const int self = m.current;
  float* buffer = m.exchange.data() + fiber.parity * (m.exchange.size() / 2);
  fiber.parity ^= 1;
  std::memcpy(&buffer[self], &value, 4);
  yield(State::at_warp);
  T result;
  std::memcpy(&result, &buffer[self / 32 * 32 + lane_of_source], 4);
  return result;
}

inline int lane() { return machine().current % 32; }

}  // namespace kolm::cuda::emulation

#define threadIdx (::kolm::cuda::emulation::machine().thread)
#define blockIdx (::kolm::cuda::emulation::machine().block)
#define blockDim (::kolm::cuda::emulation::machine().block_dim)
#define gridDim (::kolm::cuda::emulation::machine().grid_dim)

inline void __syncthreads() {
  kolm::cuda::emulation::yield(kolm::cuda::emulation::State::at_block);
}
inline void __syncwarp(unsigned = ~0u) {
  kolm::cuda::emulation::yield(kolm::cuda::emulation::State::at_warp);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const int lane = kolm::cuda::emulation::lane();
  return kolm::cuda::emulation::shuffle(value, lane + delta < 32 ? lane + delta : lane);
}
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return kolm::cuda::emulation::shuffle(value, source);
}

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

namespace kolm::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Stream,
            Arguments... arguments) {
  emulation::run(grid, block, shared, [=] { kernel(static_cast<Parameters>(arguments)...); });
}
template <class... Parameters, class... Arguments>
void launch_flat(void (*kernel)(Parameters...), dim3 grid, dim3 block, Stream,
                 Arguments... arguments) {
  emulation::run_flat(grid, block, [=] { kernel(static_cast<Parameters>(arguments)...); });
}

inline unsigned char* dynamic_shared() { return emulation::machine().shared.data(); }

template <int bytes>
void copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 ||
      (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0))
    emulation::fail("a copy that is not aligned");
  emulation::Machine& m = emulation::machine();
  m.fibers[m.current].groups.back().push_back({shared, global, bytes, valid});
}
inline void commit_copies() {
  emulation::Machine& m = emulation::machine();
  m.fibers[m.current].groups.emplace_back();
}
template <int pending>
void wait_copies() {
  emulation::Machine& m = emulation::machine();
  auto& groups = m.fibers[m.current].groups;  // the last one is open
  while (static_cast<int>(groups.size()) - 1 > pending) {
    emulation::perform(groups.front());
    groups.erase(groups.begin());
  }
}

inline float widen_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
inline float widen_f16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31,
                 mantissa = bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return __uint_as_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

}  // namespace kolm::cuda
