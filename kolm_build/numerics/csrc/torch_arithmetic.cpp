// Sums, products, powers and orders of elements (spec/numerics.md, sections Functions and Sums).
//
// PyTorch's own kernels for +, -, * and / of float32 round once and are kept; what they fuse, or
// compute in a storage format, is ours.
#include <ATen/ScalarOps.h>

#include <cmath>
#include <limits>

#include "torch_elementwise.h"

namespace kolm::binding {

namespace {

bool is_reduced(ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

// Whether ATen's kernel for a sum, product or quotient of these is the one rounding of NUM-4.
bool is_exact(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == at::kFloat && b.scalar_type() == at::kFloat) return true;
  return !is_reduced(at::result_type(a, b));
}

bool is_one(const Scalar& alpha) { return alpha.equal(1); }

bool is_integral(const Tensor& a, const Tensor& b) {
  return at::isIntegralType(at::result_type(a, b), true);
}

template <class Body>
void binary_map(const char* op, Tensor& out, const Tensor& a, const Tensor& b, const Body& body) {
  auto iter = at::TensorIterator::binary_op(out, a, b);
  map_elements<2>(op, iter, body);
  if (!out.defined()) out = iter.output();
}

// As `binary_map` for a function of two numbers.
template <class Function>
void binary_function(const char* op, Tensor& out, const Tensor& a, const Tensor& b,
                     const Function& function) {
  binary_map(op, out, a, b, [&](int64_t n, const auto& in, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = function(in[0][i], in[1][i]);
  });
}

void kernel_map(const char* op, Binary kernel, Tensor& out, const Tensor& a, const Tensor& b,
                float p) {
  const auto run = kernels().maps.binary;
  binary_map(op, out, a, b,
             [&](int64_t n, const auto& in, float* y) { run(kernel, n, in[0], in[1], y, p); });
}

// Puts what ATen's own kernel returns where a form wants it.
template <class Functional, class Out>
void stock(Tensor& out, const Functional& functional, const Out& write) {
  if (out.defined()) {
    write(out);
  } else {
    out = functional();
  }
}

void add(Tensor& out, const Tensor& a, const Tensor& b, const Scalar& alpha) {
  if (is_integral(a, b) || (is_one(alpha) && is_exact(a, b))) {
    return stock(
        out, [&] { return at::cpu::add(a, b, alpha); },
        [&](Tensor& y) { at::cpu::add_out(y, a, b, alpha); });
  }
  kernel_map("add", Binary::add_scaled, out, a, b, alpha.to<float>());
}

void sub(Tensor& out, const Tensor& a, const Tensor& b, const Scalar& alpha) {
  if (is_integral(a, b) || (is_one(alpha) && is_exact(a, b))) {
    return stock(
        out, [&] { return at::cpu::sub(a, b, alpha); },
        [&](Tensor& y) { at::cpu::sub_out(y, a, b, alpha); });
  }
  // a + (-alpha) * b is a - alpha * b: rounding is symmetric.
  kernel_map("sub", Binary::add_scaled, out, a, b, -alpha.to<float>());
}

Tensor rsub(const Tensor& a, const Tensor& b, const Scalar& alpha) {
  return Forms<sub>::functional(b, a, alpha);
}

void mul(Tensor& out, const Tensor& a, const Tensor& b) {
  if (is_exact(a, b)) {
    return stock(
        out, [&] { return at::cpu::mul(a, b); }, [&](Tensor& y) { at::cpu::mul_out(y, a, b); });
  }
  binary_function("mul", out, a, b, [](float x, float y) { return x * y; });
}

void div(Tensor& out, const Tensor& a, const Tensor& b) {
  if (is_exact(a, b)) {
    return stock(
        out, [&] { return at::cpu::div(a, b); }, [&](Tensor& y) { at::cpu::div_out(y, a, b); });
  }
  binary_function("div", out, a, b, [](float x, float y) { return x / y; });
}

void ternary_map(const char* op, Ternary kernel, Tensor& out, const Tensor& a, const Tensor& b,
                 const Tensor& c, float p) {
  auto iter = at::TensorIteratorConfig()
                  .promote_inputs_to_common_dtype(true)
                  .cast_common_dtype_to_outputs(true)
                  .enforce_safe_casting_to_output(true)
                  .add_owned_output(out)
                  .add_owned_const_input(a)
                  .add_owned_const_input(b)
                  .add_owned_const_input(c)
                  .build();
  const auto run = kernels().maps.ternary;
  map_elements<3>(op, iter, [&](int64_t n, const auto& in, float* y) {
    run(kernel, n, in[0], in[1], in[2], y, p);
  });
  if (!out.defined()) out = iter.output();
}

void addcmul(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& c, const Scalar& value) {
  if (is_integral(a, b) && is_integral(a, c)) {
    return stock(
        out, [&] { return at::cpu::addcmul(a, b, c, value); },
        [&](Tensor& y) { at::cpu::addcmul_out(y, a, b, c, value); });
  }
  ternary_map("addcmul", Ternary::addcmul, out, a, b, c, value.to<float>());
}

void addcdiv(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& c, const Scalar& value) {
  ternary_map("addcdiv", Ternary::addcdiv, out, a, b, c, value.to<float>());
}

void lerp_scalar(Tensor& out, const Tensor& a, const Tensor& b, const Scalar& weight) {
  kernel_map("lerp", Binary::lerp, out, a, b, weight.to<float>());
}

void lerp_tensor(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& weight) {
  auto iter = at::TensorIteratorConfig()
                  .promote_inputs_to_common_dtype(true)
                  .cast_common_dtype_to_outputs(true)
                  .enforce_safe_casting_to_output(true)
                  .add_owned_output(out)
                  .add_owned_const_input(a)
                  .add_owned_const_input(b)
                  .add_owned_const_input(weight)
                  .build();
  map_elements<3>("lerp", iter, [](int64_t n, const auto& in, float* y) {
    for (int64_t i = 0; i < n; ++i) {
      const float from = in[0][i], to = in[1][i], w = in[2][i];
      y[i] = std::fabs(w) < 0.5f ? from + w * (to - from) : to - (to - from) * (1.0f - w);
    }
  });
  if (!out.defined()) out = iter.output();
}

// NUM-25: NaN wins, and a zero is +0 whatever the zeros' signs.
float larger(float a, float b) {
  if (a != a || b != b) return std::numeric_limits<float>::quiet_NaN();
  return (a > b ? a : b) + 0.0f;
}

float smaller(float a, float b) {
  if (a != a || b != b) return std::numeric_limits<float>::quiet_NaN();
  return (a < b ? a : b) + 0.0f;
}

void maximum(Tensor& out, const Tensor& a, const Tensor& b) {
  if (is_integral(a, b)) {
    return stock(
        out, [&] { return at::cpu::maximum(a, b); },
        [&](Tensor& y) { at::cpu::maximum_out(y, a, b); });
  }
  binary_function("maximum", out, a, b, larger);
}

void minimum(Tensor& out, const Tensor& a, const Tensor& b) {
  if (is_integral(a, b)) {
    return stock(
        out, [&] { return at::cpu::minimum(a, b); },
        [&](Tensor& y) { at::cpu::minimum_out(y, a, b); });
  }
  binary_function("minimum", out, a, b, smaller);
}

// Bounds that are tensors: ATen's kernel takes either zero at a tie, by where an element lies.
void clamp_min(Tensor& out, const Tensor& x, const Tensor& low) { maximum(out, x, low); }

void clamp_max(Tensor& out, const Tensor& x, const Tensor& high) { minimum(out, x, high); }

void clamp(Tensor& out, const Tensor& x, const std::optional<Tensor>& low,
           const std::optional<Tensor>& high) {
  const bool from_below = low && low->defined(), from_above = high && high->defined();
  TORCH_CHECK(from_below || from_above, "kolm portable-1: aten::clamp needs a bound");
  if (!from_above) return maximum(out, x, *low);
  minimum(out, from_below ? Forms<maximum>::functional(x, *low) : x, *high);
}

void power(Tensor& out, const Tensor& a, const Tensor& b) {
  kernel_map("pow", Binary::pow, out, a, b, 0.0f);
}

void pow_tensor_tensor(Tensor& out, const Tensor& a, const Tensor& b) {
  if (is_integral(a, b)) {
    return stock(
        out, [&] { return at::cpu::pow(a, b); }, [&](Tensor& y) { at::cpu::pow_out(y, a, b); });
  }
  power(out, a, b);
}

// The exponents that NUM-53 names, as the operations it names.
std::optional<Unary> operation_of_exponent(double exponent) {
  if (exponent == 2.0) return Unary::square;
  if (exponent == 3.0) return Unary::cube;
  if (exponent == -1.0) return Unary::reciprocal;
  if (exponent == 0.5) return Unary::sqrt;
  if (exponent == -0.5) return Unary::rsqrt;
  return std::nullopt;
}

// `x` to the power of 1, in its storage format.
void copy(Tensor& out, const Tensor& x) {
  require_storage("pow", x);
  if (!out.defined()) {
    out = x.clone();
  } else if (!out.is_same(x)) {
    deliver(x, out);
  }
}

// `x` to the power of 0: the number 1, of a NaN too.
void constant(Tensor& out, const Tensor& x, double value) {
  require_storage("pow", x);
  if (!out.defined()) {
    out = at::empty_like(x);
  } else {
    at::native::resize_output(out, x.sizes());
  }
  out.fill_(value);
}

void pow_tensor_scalar(Tensor& out, const Tensor& x, const Scalar& exponent) {
  if (at::isIntegralType(at::result_type(x, exponent), true)) {
    return stock(
        out, [&] { return at::cpu::pow(x, exponent); },
        [&](Tensor& y) { at::cpu::pow_out(y, x, exponent); });
  }
  const double value = exponent.to<double>();
  if (value == 0.0) return constant(out, x, 1.0);
  if (value == 1.0) return copy(out, x);
  const auto operation = operation_of_exponent(value);
  if (!operation) return power(out, x, at::native::wrapped_scalar_tensor(exponent));
  if (!out.defined()) out = new_like(x);
  auto iter = at::TensorIterator::unary_float_op(out, x);
  const auto run = kernels().maps.unary;
  map_elements<1>("pow", iter,
                  [&](int64_t n, const auto& in, float* y) { run(*operation, n, in[0], y); });
  if (!out.defined()) out = iter.output();
}

Tensor pow_scalar(const Scalar& base, const Tensor& exponent) {
  return Forms<pow_tensor_tensor>::functional(at::native::wrapped_scalar_tensor(base), exponent);
}

Tensor& pow_scalar_out(const Scalar& base, const Tensor& exponent, Tensor& out) {
  return Forms<pow_tensor_tensor>::out(at::native::wrapped_scalar_tensor(base), exponent, out);
}

// `name.<of>`, `name_.<of>` and `name.<out>`.
template <auto function>
void add_overload(Registrar& registrar, const std::string& name, const std::string& of,
                  const std::string& out) {
  registrar.add_functional<function>(name + "." + of);
  registrar.add_in_place<function>(name + "_." + of);
  registrar.add_out<function>(name + "." + out);
}

}  // namespace

void register_arithmetic(Registrar& registrar) {
  add_overload<add>(registrar, "add", "Tensor", "out");
  add_overload<sub>(registrar, "sub", "Tensor", "out");
  add_overload<mul>(registrar, "mul", "Tensor", "out");
  add_overload<div>(registrar, "div", "Tensor", "out");
  registrar.add("rsub.Tensor", &rsub);
  registrar.add_forms<addcmul>("addcmul");
  registrar.add_forms<addcdiv>("addcdiv");
  add_overload<lerp_scalar>(registrar, "lerp", "Scalar", "Scalar_out");
  add_overload<lerp_tensor>(registrar, "lerp", "Tensor", "Tensor_out");
  registrar.add_functional<maximum>("maximum");
  registrar.add_out<maximum>("maximum.out");
  registrar.add_functional<minimum>("minimum");
  registrar.add_out<minimum>("minimum.out");
  add_overload<clamp>(registrar, "clamp", "Tensor", "Tensor_out");
  add_overload<clamp_min>(registrar, "clamp_min", "Tensor", "Tensor_out");
  add_overload<clamp_max>(registrar, "clamp_max", "Tensor", "Tensor_out");
  registrar.add_functional<pow_tensor_tensor>("pow.Tensor_Tensor");
  registrar.add_in_place<pow_tensor_tensor>("pow_.Tensor");
  registrar.add_out<pow_tensor_tensor>("pow.Tensor_Tensor_out");
  registrar.add_functional<pow_tensor_scalar>("pow.Tensor_Scalar");
  registrar.add_in_place<pow_tensor_scalar>("pow_.Scalar");
  registrar.add_out<pow_tensor_scalar>("pow.Tensor_Scalar_out");
  registrar.add("pow.Scalar", &pow_scalar);
  registrar.add("pow.Scalar_out", &pow_scalar_out);
}

}  // namespace kolm::binding
