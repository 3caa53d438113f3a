// Memory that a thread keeps for its next call, so that kernels do not ask the system for pages.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace kolm {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `count` floats, aligned to a cache line; what they hold is unspecified.
  float* floats(int64_t count) {
    if (count > capacity_) grow(count);
    return data_;
  }

 private:
  void grow(int64_t count) {
    std::free(data_);
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + kPage - 1) / kPage * kPage;
    data_ = static_cast<float*>(std::aligned_alloc(kPage, bytes));
    capacity_ = data_ == nullptr ? 0 : static_cast<int64_t>(bytes / sizeof(float));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  static constexpr size_t kPage = 4096;
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace kolm
