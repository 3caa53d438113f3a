// What every file of the binding to PyTorch shares: the kernels in use, storage formats, refusals
// and how a function of new tensors becomes an operator's variants.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUFunctions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/native/Resize.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace kolm::binding {

using at::IntArrayRef;
using at::OptionalIntArrayRef;
using at::Scalar;
using at::ScalarType;
using at::Tensor;

// The instruction set that computes; the best one of this machine until `use_kernels` names
// another.
const Kernels& kernels();
void use_kernels(std::string_view isa);
std::vector<std::string> kernel_names();

// ATen's own threads; the calling thread alone inside a parallel region.
Parallel pool();

// float32, bfloat16 and float16: what the portable operators store.
bool is_storage(ScalarType type);
Element element_of(ScalarType type);

// Every refusal begins with "kolm portable-1: " and names the operator.
[[noreturn]] void refuse(const char* op, const std::string& reason);
// Refuses a tensor that is not in a storage format.
void require_storage(const char* op, const Tensor& x);

// `x` in binary32, exactly; `x` itself where it is already.
Tensor widened(const char* op, const Tensor& x);
// The binary32 tensor `x` rounded once to `type`.
Tensor narrowed(const Tensor& x, ScalarType type);
// The contiguous binary64 tensor `x` rounded once to `type`: PyTorch rounds to binary32 in between.
Tensor rounded(const Tensor& x, ScalarType type);

inline float* floats(const Tensor& x) { return x.mutable_data_ptr<float>(); }
inline const float* const_floats(const Tensor& x) { return x.const_data_ptr<float>(); }

// A new contiguous binary32 tensor.
inline Tensor new_floats(IntArrayRef sizes) {
  return at::detail::empty_cpu(sizes, at::TensorOptions().dtype(at::kFloat));
}

// The same of +0, written once: PyTorch would fill it with NaN first (NUM-125).
inline Tensor new_zeros(IntArrayRef sizes) { return new_floats(sizes).zero_(); }

// Runs `body(begin, end)` over [0, n) on ATen's threads, at least `grain` at a time.
template <class Body>
void for_ranges(int64_t n, int64_t grain, const Body& body) {
  at::parallel_for(0, n, std::max<int64_t>(grain, 1), body);
}

// Copies a result to where the caller wants it: an `out` tensor is resized first.
inline Tensor& deliver(const Tensor& result, Tensor& out) {
  at::native::resize_output(out, result.sizes());
  return out.copy_(result);
}

// The three forms of an operator. One function makes them all, so their bits are equal. `function`
// is either `Tensor f(self, ...)` or, where a result can be written in place, `void f(out, self,
// ...)` whose `out` may be undefined: then it makes it.
template <auto function>
struct Forms;

template <class... Arguments, Tensor (*function)(const Tensor&, Arguments...)>
struct Forms<function> {
  static Tensor functional(const Tensor& self, Arguments... arguments) {
    return function(self, arguments...);
  }
  static Tensor& in_place(Tensor& self, Arguments... arguments) {
    return self.copy_(function(self, arguments...));
  }
  static Tensor& out(const Tensor& self, Arguments... arguments, Tensor& out) {
    return deliver(function(self, arguments...), out);
  }
};

template <class... Arguments, void (*function)(Tensor&, const Tensor&, Arguments...)>
struct Forms<function> {
  static Tensor functional(const Tensor& self, Arguments... arguments) {
    Tensor out;
    function(out, self, arguments...);
    return out;
  }
  static Tensor& in_place(Tensor& self, Arguments... arguments) {
    function(self, self, arguments...);
    return self;
  }
  static Tensor& out(const Tensor& self, Arguments... arguments, Tensor& out) {
    function(out, self, arguments...);
    return out;
  }
};

// Collects an operator's kernel and its name.
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
  void add_functional(const std::string& name) {
    add(name, &Forms<function>::functional);
  }
  template <auto function>
  void add_in_place(const std::string& name) {
    add(name, &Forms<function>::in_place);
  }
  template <auto function>
  void add_out(const std::string& name) {
    add(name, &Forms<function>::out);
  }
  // `name`, `name_` and `name.out`.
  template <auto function>
  void add_forms(const std::string& name) {
    add_functional<function>(name);
    add_in_place<function>(name + "_");
    add_out<function>(name + ".out");
  }

 private:
  torch::Library& library_;
  std::vector<std::string>& names_;
};

void register_products(Registrar& registrar);
void register_arithmetic(Registrar& registrar);
void register_integers(Registrar& registrar);
void register_maps(Registrar& registrar);
void register_reductions(Registrar& registrar);
void register_rows(Registrar& registrar);
void register_indexing(Registrar& registrar);
void register_random(Registrar& registrar);
void register_ranges(Registrar& registrar);
void register_sorting(Registrar& registrar);
void register_attention(Registrar& registrar);
void register_optimisers(Registrar& registrar);
// Operators that PyTorch composes above autograd; ours must be composed there too.
void register_composites(Registrar& registrar);

}  // namespace kolm::binding
