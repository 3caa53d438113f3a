// The kernels in use, storage formats and refusals of the binding to PyTorch.
#include "torch_binding.h"

#include <atomic>
#include <bit>
#include <cmath>

namespace kolm::binding {

namespace {

std::atomic<const Kernels*> current{available_kernels()[0]};

void run_tasks(int64_t tasks, void (*task)(void*, int64_t), void* context) {
  // Tasks are handed out one by one: a slow one does not hold up a thread's share of the others.
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t index; (index = next.fetch_add(1)) < tasks;) task(context, index);
  });
}

// `x` in binary32, a number that is not exact with an odd last bit: rounding it again to a format
// that is two bits shorter gives what rounding `x` once gives.
float rounded_to_odd(double x) {
  const auto near = static_cast<float>(x);
  const auto bits = std::bit_cast<uint32_t>(near);
  if (std::isnan(x) || static_cast<double>(near) == x || (bits & 1) != 0) return near;
  return std::bit_cast<float>(std::fabs(near) < std::fabs(x) ? bits + 1 : bits - 1);
}

}  // namespace

const Kernels& kernels() { return *current.load(std::memory_order_relaxed); }

void use_kernels(std::string_view isa) {
  for (const Kernels* const* table = available_kernels(); *table; ++table) {
    if (isa == (*table)->isa) {
      current = *table;
      return;
    }
  }
  TORCH_CHECK(false, "kolm portable-1: this machine has no kernels for the instruction set ",
              std::string(isa), "; it has ", kernel_names());
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernels* const* table = available_kernels(); *table; ++table) {
    names.emplace_back((*table)->isa);
  }
  return names;
}

Parallel pool() { return {at::in_parallel_region() ? 1 : at::get_num_threads(), run_tasks}; }

bool is_storage(ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

Element element_of(ScalarType type) {
  if (type == at::kBFloat16) return Element::bf16;
  return type == at::kHalf ? Element::f16 : Element::f32;
}

void refuse(const char* op, const std::string& reason) {
  TORCH_CHECK(false, "kolm portable-1: aten::", op, " ", reason);
  __builtin_unreachable();
}

void require_storage(const char* op, const Tensor& x) {
  if (is_storage(x.scalar_type())) return;
  refuse(op, c10::str("is not certified for ", x.scalar_type(), " (a tensor of shape ", x.sizes(),
                      "); float32, bfloat16 and float16 are"));
}

Tensor widened(const char* op, const Tensor& x) {
  require_storage(op, x);
  return x.scalar_type() == at::kFloat ? x : x.to(at::kFloat);
}

Tensor narrowed(const Tensor& x, ScalarType type) {
  if (type == at::kFloat) return x;
  const Tensor dense = x.is_non_overlapping_and_dense() ? x : x.contiguous();
  Tensor y = at::empty_like(dense, dense.options().dtype(type));
  const auto narrow =
      type == at::kBFloat16 ? kernels().maps.narrow_bf16 : kernels().maps.narrow_f16;
  const float* from = const_floats(dense);
  auto* to = static_cast<uint16_t*>(y.mutable_data_ptr());
  for_ranges(dense.numel(), 32768,
             [&](int64_t begin, int64_t end) { narrow(end - begin, from + begin, to + begin); });
  return y;
}

Tensor rounded(const Tensor& x, ScalarType type) {
  if (type != at::kBFloat16 && type != at::kHalf) return x.to(type);
  Tensor odd = new_floats(x.sizes());
  const double* from = x.const_data_ptr<double>();
  float* to = floats(odd);
  for_ranges(x.numel(), 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = rounded_to_odd(from[i]);
  });
  return narrowed(odd, type);
}

}  // namespace kolm::binding
