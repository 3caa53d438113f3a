// What the files that register the GPU's kernels with PyTorch share. With KOLM_EMULATED the kernels
// run on the host and everything is registered for the CPU: how this is tested without a GPU.
#pragma once

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/WrapDimUtils.h>
#include <ATen/native/Resize.h>
#include <torch/library.h>

#if defined(KOLM_EMULATED)
#include <ATen/CPUFunctions.h>
#else
#include <ATen/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace kolm::cuda::binding {

using at::IntArrayRef;
using at::OptionalIntArrayRef;
using at::Scalar;
using at::ScalarType;
using at::Tensor;

#if defined(KOLM_EMULATED)
namespace stock = at::cpu;
constexpr auto device_key = c10::DispatchKey::CPU;
constexpr auto autograd_key = c10::DispatchKey::AutogradCPU;
inline Stream stream_of(const Tensor&) { return nullptr; }
#else
namespace stock = at::cuda;
constexpr auto device_key = c10::DispatchKey::CUDA;
constexpr auto autograd_key = c10::DispatchKey::AutogradCUDA;
// The stream that PyTorch uses now; tensors of another device than the current one are refused.
inline Stream stream_of(const Tensor& x) {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  TORCH_CHECK(x.device().index() == stream.device_index(), "kolm portable-1: a tensor of ",
              x.device(), " while device ", static_cast<int>(stream.device_index()), " is current");
  return stream.stream();
}
#endif

inline bool is_storage(ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}
inline void require_storage(const char* op, const Tensor& x) {
  TORCH_CHECK(is_storage(x.scalar_type()), "kolm portable-1: aten::", op,
              " computes float32, bfloat16 and float16, not ", x.scalar_type());
}
inline bool is_integral(const Tensor& x) { return at::isIntegralType(x.scalar_type(), true); }

inline const float* read(const Tensor& x) { return x.const_data_ptr<float>(); }
inline const float* read_or_null(const Tensor& x) { return x.defined() ? read(x) : nullptr; }
inline float* write(const Tensor& x) { return x.mutable_data_ptr<float>(); }

inline Tensor new_floats(const Tensor& like, IntArrayRef sizes) {
  return at::empty(sizes, like.options().dtype(at::kFloat).memory_format(std::nullopt));
}
inline Tensor workspace(const Tensor& like, int64_t floats) {
  return new_floats(like, {std::max<int64_t>(floats, 1)});
}

// Binary32, exactly; `x` itself where it is already.
Tensor widened(const char* op, const Tensor& x);
// Binary32 and contiguous.
Tensor rows_of(const char* op, const Tensor& x);
Tensor rows_or_none(const char* op, const std::optional<Tensor>& x);
// The binary32 tensor `x` rounded once to `type`.
Tensor narrowed(const Tensor& x, ScalarType type);

inline Tensor& deliver(const Tensor& result, Tensor& out) {
  at::native::resize_output(out, result.sizes());
  return out.copy_(result);
}

// An operator's other forms, made of the function that returns a new tensor.
template <auto function>
struct Forms;

template <class... Arguments, Tensor (*function)(const Tensor&, Arguments...)>
struct Forms<function> {
  static Tensor& in_place(Tensor& self, Arguments... arguments) {
    return self.copy_(function(self, arguments...));
  }
  static Tensor& out(const Tensor& self, Arguments... arguments, Tensor& out) {
    return deliver(function(self, arguments...), out);
  }
};

class Registrar {
 public:
  Registrar(torch::Library& library, std::vector<std::string>& names)
      : library_(library), names_(names) {}

  template <class Function>
  void add(const std::string& name, Function* function) {
    library_.impl(name.c_str(), function);
    names_.push_back(name);
  }
  template <auto function>
  void add_out(const std::string& name) {
    add(name, &Forms<function>::out);
  }
  template <auto function>
  void add_in_place(const std::string& name) {
    add(name, &Forms<function>::in_place);
  }
  // `name`, `name_` and `name.out`.
  template <auto function>
  void add_forms(const std::string& name) {
    add(name, function);
    add_in_place<function>(name + "_");
    add_out<function>(name + ".out");
  }

 private:
  torch::Library& library_;
  std::vector<std::string>& names_;
};

// The product of batches a [outers, inners, m, k] and b [outers, inners / group, k, n] into c.
void multiply(const Tensor& a, const Tensor& b, int64_t group, const Tensor& c);

// Tries a tile shape instead of the planned one, for measurements; -1 plans.
void force_variant(int64_t variant);

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const std::optional<Tensor>& mask, double dropout, bool causal,
                 std::optional<double> scale, bool enable_gqa);
Tensor attention_with_gradient(const Tensor& query, const Tensor& key, const Tensor& value,
                               const std::optional<Tensor>& mask, double dropout, bool causal,
                               std::optional<double> scale, bool enable_gqa);

Tensor reduce(const char* op, Term term, const Tensor& x, OptionalIntArrayRef dims, bool keepdim);
Tensor divided(const Tensor& x, float divisor);
Tensor unary_map(const char* op, Unary function, const Tensor& x);
Tensor binary_map(const char* op, Binary function, const Tensor& a, const Tensor& b, float p);

void register_products(Registrar& registrar);
void register_maps(Registrar& registrar);
void register_rows(Registrar& registrar);
void register_random(Registrar& registrar);
void register_lists(Registrar& registrar);

}  // namespace kolm::cuda::binding
