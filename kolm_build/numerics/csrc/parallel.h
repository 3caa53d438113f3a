// How kernels use threads. No result depends on the number of threads or on who runs which task.
// The functions are static: a copy that another instruction set compiled must not be called.
#pragma once

#include <cstdint>
#include <type_traits>

namespace kolm {

// A pool that runs `tasks` calls `task(context, index)`, index in [0, tasks), in any order.
struct Parallel {
  int threads;
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t index), void* context);
};

// Runs `body(index)` for every index in [0, tasks) on `pool`.
template <class Body>
static inline void parallel_for(const Parallel& pool, int64_t tasks, Body&& body) {
  if (tasks <= 1 || pool.threads <= 1) {
    for (int64_t index = 0; index < tasks; ++index) body(index);
    return;
  }
  using Decayed = std::remove_reference_t<Body>;
  pool.run(
      tasks, [](void* context, int64_t index) { (*static_cast<Decayed*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// A pool of the calling thread alone.
static inline Parallel serial() {
  return {1, [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
            for (int64_t index = 0; index < tasks; ++index) task(context, index);
          }};
}

}  // namespace kolm
