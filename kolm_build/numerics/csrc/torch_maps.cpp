// Functions of one number and their gradients (spec/numerics.md, section Functions).
#include "torch_elementwise.h"

namespace kolm::binding {

namespace {

const char* name_of(Unary op) {
  static constexpr const char* names[] = {
      "exp",    "exp2", "expm1", "log",   "log1p",    "log2",
      "log10",  "tanh", "erf",   "erfc",  "sigmoid",  "log_sigmoid_forward",
      "silu",   "gelu", "gelu",  "rsqrt", "sqrt",     "reciprocal",
      "square", "pow",  "sin",   "cos",   "softplus", "mish",
  };
  return names[static_cast<int>(op)];
}

void unary(Unary op, Tensor& out, const Tensor& x) {
  if (!out.defined()) out = new_like(x);
  auto iter = at::TensorIterator::unary_float_op(out, x);
  const auto kernel = kernels().maps.unary;
  map_elements<1>(name_of(op), iter,
                  [&](int64_t n, const auto& in, float* y) { kernel(op, n, in[0], y); });
  if (!out.defined()) out = iter.output();
}

template <Unary op>
void function(Tensor& out, const Tensor& x) {
  unary(op, out, x);
}

void gelu(Tensor& out, const Tensor& x, std::string_view approximate) {
  unary(approximate == "tanh" ? Unary::gelu_tanh : Unary::gelu, out, x);
}

// The correctly rounded softplus of beta 1 is x itself above 17, so a threshold there changes no
// bit.
void check_softplus(const char* op, const Scalar& beta, const Scalar& threshold) {
  if (beta.to<double>() == 1.0 && threshold.to<double>() >= 17.0) return;
  refuse(op, c10::str("is certified for beta 1 and a threshold of at least 17, got beta ",
                      beta.to<double>(), " and threshold ", threshold.to<double>()));
}

void softplus(Tensor& out, const Tensor& x, const Scalar& beta, const Scalar& threshold) {
  check_softplus("softplus", beta, threshold);
  unary(Unary::softplus, out, x);
}

// The gradient has the closed form of the input alone: the buffer stays empty.
std::tuple<Tensor, Tensor> log_sigmoid_forward(const Tensor& x) {
  Tensor out;
  unary(Unary::log_sigmoid, out, x);
  return {out, at::empty({0}, x.options())};
}

std::tuple<Tensor&, Tensor&> log_sigmoid_forward_out(const Tensor& x, Tensor& out, Tensor& buffer) {
  unary(Unary::log_sigmoid, out, x);
  at::native::resize_output(buffer, {0});
  return {out, buffer};
}

void gradient(const char* name, Binary op, Tensor& out, const Tensor& grad, const Tensor& x) {
  const bool alike = grad.scalar_type() == x.scalar_type() && grad.sizes() == x.sizes() &&
                     grad.strides() == x.strides();
  if (!out.defined() && alike) out = new_like(x);
  auto iter = at::TensorIterator::binary_op(out, grad, x);
  const auto kernel = kernels().maps.binary;
  map_elements<2>(name, iter, [&](int64_t n, const auto& in, float* y) {
    kernel(op, n, in[0], in[1], y, 0.0f);
  });
  if (!out.defined()) out = iter.output();
}

void silu_backward(Tensor& out, const Tensor& grad, const Tensor& x) {
  gradient("silu_backward", Binary::silu_grad, out, grad, x);
}

void sigmoid_backward(Tensor& out, const Tensor& grad, const Tensor& y) {
  gradient("sigmoid_backward", Binary::sigmoid_grad, out, grad, y);
}

void tanh_backward(Tensor& out, const Tensor& grad, const Tensor& y) {
  gradient("tanh_backward", Binary::tanh_grad, out, grad, y);
}

void mish_backward(Tensor& out, const Tensor& grad, const Tensor& x) {
  gradient("mish_backward", Binary::mish_grad, out, grad, x);
}

void gelu_backward(Tensor& out, const Tensor& grad, const Tensor& x, std::string_view approximate) {
  const Binary op = approximate == "tanh" ? Binary::gelu_tanh_grad : Binary::gelu_grad;
  gradient("gelu_backward", op, out, grad, x);
}

void softplus_backward(Tensor& out, const Tensor& grad, const Tensor& x, const Scalar& beta,
                       const Scalar& threshold) {
  check_softplus("softplus_backward", beta, threshold);
  gradient("softplus_backward", Binary::softplus_grad, out, grad, x);
}

void log_sigmoid_backward(Tensor& out, const Tensor& grad, const Tensor& x, const Tensor&) {
  gradient("log_sigmoid_backward", Binary::log_sigmoid_grad, out, grad, x);
}

template <auto form>
void add_gradient(Registrar& registrar, const std::string& name) {
  registrar.add_functional<form>(name);
  registrar.add_out<form>(name + ".grad_input");
}

}  // namespace

void register_maps(Registrar& registrar) {
  registrar.add_forms<function<Unary::exp>>("exp");
  registrar.add_forms<function<Unary::exp2>>("exp2");
  registrar.add_forms<function<Unary::expm1>>("expm1");
  registrar.add_forms<function<Unary::log>>("log");
  registrar.add_forms<function<Unary::log1p>>("log1p");
  registrar.add_forms<function<Unary::log2>>("log2");
  registrar.add_forms<function<Unary::log10>>("log10");
  registrar.add_forms<function<Unary::tanh>>("tanh");
  registrar.add_forms<function<Unary::erf>>("erf");
  registrar.add_forms<function<Unary::erfc>>("erfc");
  registrar.add_forms<function<Unary::sigmoid>>("sigmoid");
  registrar.add_forms<function<Unary::silu>>("silu");
  registrar.add_forms<function<Unary::rsqrt>>("rsqrt");
  registrar.add_forms<function<Unary::sqrt>>("sqrt");
  registrar.add_forms<function<Unary::reciprocal>>("reciprocal");
  registrar.add_forms<function<Unary::sin>>("sin");
  registrar.add_forms<function<Unary::cos>>("cos");
  registrar.add_forms<function<Unary::mish>>("mish");
  registrar.add_forms<gelu>("gelu");
  registrar.add_functional<softplus>("softplus");
  registrar.add_out<softplus>("softplus.out");
  registrar.add("log_sigmoid_forward", &log_sigmoid_forward);
  registrar.add("log_sigmoid_forward.output", &log_sigmoid_forward_out);
  add_gradient<silu_backward>(registrar, "silu_backward");
  add_gradient<sigmoid_backward>(registrar, "sigmoid_backward");
  add_gradient<tanh_backward>(registrar, "tanh_backward");
  add_gradient<gelu_backward>(registrar, "gelu_backward");
  add_gradient<softplus_backward>(registrar, "softplus_backward");
  add_gradient<log_sigmoid_backward>(registrar, "log_sigmoid_backward");
  registrar.add_functional<mish_backward>("mish_backward");
}

}  // namespace kolm::binding
