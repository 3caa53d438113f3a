// Memory that a thread keeps for its next call, so that kernels do not ask the system for pages.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "isa.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kolm::KOLM_ISA {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `count` floats, aligned to a cache line; what they hold is unspecified. A vector more
  // may be written after them: packing a narrow strip spills over its end.
  float* floats(int64_t count) {
    if (count + kSpill > capacity_) grow(count + kSpill);
    return data_;
  }

 private:
  void grow(int64_t count) {
    std::free(data_);
    const size_t wanted = static_cast<size_t>(count) * sizeof(float);
    const size_t page = wanted < kHugePage ? kPage : kHugePage;
    const size_t bytes = (wanted + page - 1) / page * page;
    data_ = static_cast<float*>(std::aligned_alloc(page, bytes));
    capacity_ = data_ == nullptr ? 0 : static_cast<int64_t>(bytes / sizeof(float));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (page == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);  // a wish: failure changes nothing
#endif
  }

  static constexpr int64_t kSpill = 16;  // lanes of the widest vector
  static constexpr size_t kPage = 4096, kHugePage = size_t{1} << 21;
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace kolm::KOLM_ISA
