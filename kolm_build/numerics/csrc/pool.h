// A small pool of threads for the libraries without PyTorch. The pool of the one with it is
// PyTorch's.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "parallel.h"

namespace kolm {

// Threads that wait for a job, take its tasks one by one, and wait again.
class Pool {
 public:
  // Throws std::system_error where the system gives no thread.
  explicit Pool(int threads) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { wait_for_jobs(); });
    } catch (const std::system_error&) {
      stop();
      throw;
    }
  }
  ~Pool() { stop(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Throws what a task has thrown, once no thread is in one; tasks not begun are left out.
  void run(int64_t tasks, void (*task)(void*, int64_t), void* context) {
    tasks_ = tasks, task_ = task, context_ = context;
    next_ = 0;
    busy_ = static_cast<int>(workers_.size());
    announce();
    take_tasks();
    while (busy_.load(std::memory_order_acquire) != 0) pause();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  static void pause() { std::this_thread::yield(); }

  void stop() {
    stop_ = true;
    announce();
    for (std::thread& worker : workers_) worker.join();
  }

  void announce() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void take_tasks() {
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;)
        task_(context_, i);
    } catch (...) {
      next_ = tasks_;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void wait_for_jobs() {
    for (int64_t seen = 0;;) {
      seen = next_job(seen);
      if (stop_) return;
      take_tasks();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Looks for a while before it sleeps: regions follow one another within microseconds.
  int64_t next_job(int64_t seen) {
    for (int look = 0; look < 2000; ++look) {
      const int64_t job = job_.load(std::memory_order_acquire);
      if (job != seen) return seen + 1;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return job_.load() != seen; });
    return seen + 1;
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int64_t> job_{0}, next_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  std::exception_ptr failure_;
  int64_t tasks_ = 0;
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
};

// The calling process's pool of `threads` threads, made on first use and kept.
inline Parallel pool_of(int threads) {
  if (threads <= 1) return serial();
  static Pool* pools[65] = {};
  static thread_local Pool* current = nullptr;
  if (threads > 64) threads = 64;
  if (!pools[threads]) pools[threads] = new Pool(threads);
  current = pools[threads];
  return {threads, [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
            current->run(tasks, task, context);
          }};
}

}  // namespace kolm
