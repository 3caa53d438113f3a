// Elementwise operations, storage formats, random numbers and optimisers (spec/numerics.md).
// PyTorch's own kernels for +, - and * of float32 round once and are kept; its quotient by a number
// is a product with the rounded inverse, and what it scales it contracts: those are ours.
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "../optimisers.h"
#include "binding.h"

namespace kolm::cuda::binding {
namespace {

using at::Generator;
using at::TensorList;

Tensor dense(const char* op, const Tensor& x) {
  const Tensor wide = widened(op, x);
  return wide.is_non_overlapping_and_dense() ? wide : wide.contiguous();
}

// Both operands with one shape and one layout.
std::pair<Tensor, Tensor> aligned(const char* op, const Tensor& a, const Tensor& b) {
  const Tensor x = widened(op, a), y = widened(op, b);
  if (x.sizes() == y.sizes() && x.strides() == y.strides() && x.is_non_overlapping_and_dense())
    return {x, y};
  const auto sizes = at::infer_size(x.sizes(), y.sizes());
  return {x.expand(sizes).contiguous(), y.expand(sizes).contiguous()};
}

// A number beside a tensor has no say in the result's type.
ScalarType type_of(const Tensor& a, const Tensor& b) { return at::result_type(a, b); }

Tensor on_device(const Tensor& x, const Tensor& like) {
  return x.device() == like.device() ? x : x.to(like.device());
}

// ---- Functions of one number

template <Unary function>
Tensor unary_of(const Tensor& x) {
  return unary_map("unary", function, x);
}

template <Unary function>
void add_unary(Registrar& registrar, const std::string& name) {
  registrar.add_forms<unary_of<function>>(name);
}

bool is_tanh(const char* op, std::string_view approximate) {
  TORCH_CHECK(approximate == "tanh" || approximate == "none", "kolm portable-1: aten::", op,
              " approximate=", std::string(approximate));
  return approximate == "tanh";
}
Tensor gelu(const Tensor& x, std::string_view approximate) {
  return unary_map("gelu", is_tanh("gelu", approximate) ? Unary::gelu_tanh : Unary::gelu, x);
}
Tensor gelu_backward(const Tensor& dy, const Tensor& x, std::string_view approximate) {
  const bool tanh = is_tanh("gelu_backward", approximate);
  return binary_map("gelu_backward", tanh ? Binary::gelu_tanh_grad : Binary::gelu_grad, dy, x,
                    0.0f);
}
template <Binary function>
Tensor gradient_of(const Tensor& dy, const Tensor& x) {
  return binary_map("gradient", function, dy, x, 0.0f);
}

// ---- Functions of two and three

Tensor added(const char* op, const Tensor& a, const Tensor& b, const Scalar& alpha, bool negative) {
  const ScalarType type = type_of(a, b);
  if (!is_storage(type) || (type == at::kFloat && alpha.equal(1)))
    return negative ? stock::sub(a, b, alpha) : stock::add(a, b, alpha);
  const float scale = alpha.to<float>();
  const Tensor& like = a.dim() == 0 && a.device().is_cpu() ? b : a;
  return narrowed(binary_map(op, Binary::add_scaled, on_device(a, like).to(at::kFloat),
                             on_device(b, like).to(at::kFloat), negative ? -scale : scale),
                  type);
}
Tensor add(const Tensor& a, const Tensor& b, const Scalar& alpha) {
  return added("add", a, b, alpha, false);
}
Tensor sub(const Tensor& a, const Tensor& b, const Scalar& alpha) {
  return added("sub", a, b, alpha, true);
}

// One rounding a storage format needs too (NUM-4): the quotient in binary32, then narrowed.
Tensor div(const Tensor& a, const Tensor& b) {
  ScalarType type = type_of(a, b);
  if (at::isIntegralType(type, true)) type = at::kFloat;
  TORCH_CHECK(is_storage(type), "kolm portable-1: aten::div of ", type);
  if (b.dim() == 0 && b.device().is_cpu() && !a.device().is_cpu())
    return narrowed(divided(a.to(at::kFloat), b.item().to<float>()), type);
  const Tensor& like = a.dim() == 0 && a.device().is_cpu() ? b : a;
  const Tensor wide_a = on_device(a, like).to(at::kFloat),
               wide_b = on_device(b, like).to(at::kFloat);
  if (wide_b.numel() == 1 && wide_b.dim() <= wide_a.dim()) {
    const Tensor x = dense("div", wide_a), y = at::empty_like(x);
    divide(x.numel(), read(x), read(wide_b), 0, write(y), stream_of(x));
    return narrowed(y, type);
  }
  const auto [x, y] = aligned("div", wide_a, wide_b);
  const Tensor out = at::empty_like(x);
  divide(x.numel(), read(x), read(y), 1, write(out), stream_of(x));
  return narrowed(out, type);
}

Tensor ternary_map(const char* op, Ternary function, const Tensor& a, const Tensor& b,
                   const Tensor& c, float p) {
  const auto sizes = at::infer_size(at::infer_size(a.sizes(), b.sizes()), c.sizes());
  Tensor x = widened(op, a), y = widened(op, b), z = widened(op, c);
  const bool same = x.sizes() == y.sizes() && x.sizes() == z.sizes() &&
                    x.strides() == y.strides() && x.strides() == z.strides() &&
                    x.is_non_overlapping_and_dense();
  if (!same)
    x = x.expand(sizes).contiguous(), y = y.expand(sizes).contiguous(),
    z = z.expand(sizes).contiguous();
  const Tensor out = at::empty_like(x);
  ternary(function, x.numel(), read(x), read(y), read(z), write(out), p, stream_of(x));
  return narrowed(out, a.scalar_type());
}
Tensor addcmul(const Tensor& a, const Tensor& b, const Tensor& c, const Scalar& value) {
  return ternary_map("addcmul", Ternary::addcmul, a, b, c, value.to<float>());
}
Tensor addcdiv(const Tensor& a, const Tensor& b, const Tensor& c, const Scalar& value) {
  return ternary_map("addcdiv", Ternary::addcdiv, a, b, c, value.to<float>());
}
Tensor lerp(const Tensor& a, const Tensor& b, const Scalar& weight) {
  return narrowed(binary_map("lerp", Binary::lerp, a, b, weight.to<float>()), a.scalar_type());
}

// pow (NUM-53).
Tensor pow_number(const Tensor& x, const Scalar& exponent) {
  if (!is_storage(x.scalar_type()) && exponent.isIntegral(true)) return stock::pow(x, exponent);
  const float y = exponent.to<float>();
  if (y == 2.0f) return unary_map("pow", Unary::square, x);
  if (y == 3.0f) return unary_map("pow", Unary::cube, x);
  if (y == -1.0f) return unary_map("pow", Unary::reciprocal, x);
  if (y == 0.5f) return unary_map("pow", Unary::sqrt, x);
  if (y == -0.5f) return unary_map("pow", Unary::rsqrt, x);
  const Tensor wide =
      widened("pow", x.to(is_storage(x.scalar_type()) ? x.scalar_type() : at::kFloat));
  return narrowed(binary_map("pow", Binary::pow, wide, at::full({}, y, wide.options()), 0.0f),
                  is_storage(x.scalar_type()) ? x.scalar_type() : at::kFloat);
}
Tensor pow_of_number(const Scalar& base, const Tensor& exponent) {
  if (!is_storage(exponent.scalar_type())) return stock::pow(base, exponent);
  const Tensor wide = widened("pow", exponent);
  return narrowed(binary_map("pow", Binary::pow, at::full({}, base, wide.options()), wide, 0.0f),
                  exponent.scalar_type());
}
Tensor pow_tensors(const Tensor& base, const Tensor& exponent) {
  if (!is_storage(type_of(base, exponent))) return stock::pow(base, exponent);
  return narrowed(
      binary_map("pow", Binary::pow, base.to(at::kFloat), exponent.to(at::kFloat), 0.0f),
      type_of(base, exponent));
}
Tensor& pow_of_number_out(const Scalar& base, const Tensor& exponent, Tensor& out) {
  return deliver(pow_of_number(base, exponent), out);
}

// ---- Random numbers

kolm::Stream next_stream(const std::optional<Generator>& generator) {
  auto* source = at::get_generator_or_default<at::CPUGeneratorImpl>(
      generator, at::detail::getDefaultCPUGenerator());
  const std::lock_guard lock(source->mutex_);
  return {source->current_seed(), source->random64()};
}

template <class Fill>
Tensor& draw(Tensor& self, const Fill& fill) {
  const bool direct = self.scalar_type() == at::kFloat && self.is_contiguous();
  const Tensor values = direct ? self : new_floats(self, self.sizes());
  fill(values.numel(), write(values), stream_of(values));
  if (direct) return self;
  return self.copy_(is_storage(self.scalar_type()) ? narrowed(values, self.scalar_type()) : values);
}

Tensor& normal_(Tensor& self, double mean, double std, std::optional<Generator> generator) {
  require_storage("normal_", self);
  TORCH_CHECK(std >= 0.0, "normal expects std >= 0.0, but found std ", std);
  const kolm::Stream words = next_stream(generator);
  return draw(self, [&](int64_t n, float* out, Stream stream) {
    random_normal(words, n, static_cast<float>(mean), static_cast<float>(std), out, stream);
  });
}
Tensor& uniform_(Tensor& self, double low, double high, std::optional<Generator> generator) {
  require_storage("uniform_", self);
  TORCH_CHECK(low <= high, "uniform_ expects from <= to, but found from=", low, " > to=", high);
  const kolm::Stream words = next_stream(generator);
  return draw(self, [&](int64_t n, float* out, Stream stream) {
    random_uniform(words, n, static_cast<float>(low), static_cast<float>(high), out, stream);
  });
}
Tensor& exponential_(Tensor& self, double rate, std::optional<Generator> generator) {
  require_storage("exponential_", self);
  TORCH_CHECK(rate > 0.0, "exponential_ expects lambda > 0.0, but found lambda=", rate);
  const kolm::Stream words = next_stream(generator);
  return draw(self, [&](int64_t n, float* out, Stream stream) {
    random_exponential(words, n, rate, out, stream);
  });
}
Tensor& bernoulli_(Tensor& self, double p, std::optional<Generator> generator) {
  TORCH_CHECK(p >= 0.0 && p <= 1.0, "bernoulli_ expects p to be in [0, 1], but got p=", p);
  const kolm::Stream words = next_stream(generator);
  return draw(self, [&](int64_t n, float* out, Stream stream) {
    random_bernoulli(words, n, p, out, stream);
  });
}
// As torch.dropout, which PyTorch composes on a CPU: x * (mask / (1 - p)).
std::tuple<Tensor, Tensor> native_dropout(const Tensor& x, double p, std::optional<bool> train) {
  if (x.numel() == 0 || (train && !*train))
    return {x.clone(), at::ones_like(x, x.options().dtype(at::kBool))};
  Tensor kept = new_floats(x, x.sizes());
  bernoulli_(kept, 1.0 - p, std::nullopt);
  const Tensor scale = p == 1.0 ? kept : divided(kept, static_cast<float>(1.0 - p));
  const Tensor y = widened("native_dropout", x) * scale;
  return {narrowed(y, x.scalar_type()), kept.to(at::kBool)};
}
// `scale` is 1 / (1 - p): the mask's value in the forward step is the quotient in binary32.
Tensor native_dropout_backward(const Tensor& dy, const Tensor& mask, double scale) {
  const Tensor dx = widened("native_dropout_backward", dy) * (mask.to(at::kFloat) * scale);
  return narrowed(dx, dy.scalar_type());
}

// ---- Optimisers

void check_fused(const Tensor& like, const Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.strides() == like.strides() &&
                  like.is_non_overlapping_and_dense(),
              "kolm portable-1: aten::_fused_adamw_ takes float32 tensors of one layout");
}

void fused_adamw(TensorList params, TensorList grads, TensorList means, TensorList squares,
                 TensorList maxima, TensorList steps, double lr, double beta1, double beta2,
                 double weight_decay, double eps, bool amsgrad, bool maximize,
                 const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  TORCH_CHECK(!(grad_scale && grad_scale->defined()) && !(found_inf && found_inf->defined()),
              "kolm portable-1: aten::_fused_adamw_ with loss scaling");
  if (params.empty()) return;
  const AdamWSettings settings{lr, beta1, beta2, weight_decay, eps, maximize, true};
  // One copy for all: the steps are tensors on the GPU.
  const Tensor counts = at::stack(steps).to(at::kDouble).to(at::kCPU);
  for (size_t i = 0; i < params.size(); ++i) {
    const double step = counts.const_data_ptr<double>()[i];
    TORCH_CHECK(is_count(step), "kolm portable-1: aten::_fused_adamw_ counts whole steps: ", step);
    const AdamW scalars = adamw_scalars(settings, static_cast<int64_t>(step));
    check_fused(params[i], params[i]);
    check_fused(params[i], means[i]);
    check_fused(params[i], squares[i]);
    const Tensor grad = grads[i].strides() == params[i].strides()
                            ? grads[i]
                            : at::empty_like(params[i]).copy_(grads[i]);
    check_fused(params[i], grad);
    adamw(scalars, params[i].numel(), read(grad), write(params[i]), write(means[i]),
          write(squares[i]), amsgrad ? write(maxima[i]) : nullptr, stream_of(params[i]));
  }
}

// ---- Lists of tensors: one operation a tensor

void each_add_number(TensorList xs, const Scalar& value) {
  for (const Tensor& x : xs) Tensor(x).add_(value);
}
void each_add_list(TensorList xs, TensorList ys, const Scalar& alpha) {
  for (size_t i = 0; i < xs.size(); ++i) Tensor(xs[i]).add_(ys[i], alpha);
}
void each_multiply_number(TensorList xs, const Scalar& value) {
  for (const Tensor& x : xs) Tensor(x).mul_(value);
}
void each_multiply_tensor(TensorList xs, const Tensor& value) {
  for (const Tensor& x : xs) Tensor(x).mul_(value);
}
void each_divide_number(TensorList xs, const Scalar& value) {
  for (const Tensor& x : xs) Tensor(x).div_(value);
}
void each_divide_numbers(TensorList xs, at::ArrayRef<Scalar> values) {
  for (size_t i = 0; i < xs.size(); ++i) Tensor(xs[i]).div_(values[i]);
}
void each_lerp(TensorList xs, TensorList ys, const Scalar& weight) {
  for (size_t i = 0; i < xs.size(); ++i) Tensor(xs[i]).lerp_(ys[i], weight);
}
void each_addcmul(TensorList xs, TensorList ys, TensorList zs, const Scalar& value) {
  for (size_t i = 0; i < xs.size(); ++i) Tensor(xs[i]).addcmul_(ys[i], zs[i], value);
}
void each_addcdiv(TensorList xs, TensorList ys, TensorList zs, const Scalar& value) {
  for (size_t i = 0; i < xs.size(); ++i) Tensor(xs[i]).addcdiv_(ys[i], zs[i], value);
}
void each_addcdiv_numbers(TensorList xs, TensorList ys, TensorList zs,
                          at::ArrayRef<Scalar> values) {
  for (size_t i = 0; i < xs.size(); ++i) Tensor(xs[i]).addcdiv_(ys[i], zs[i], values[i]);
}
std::vector<Tensor> each_sqrt(TensorList xs) {
  std::vector<Tensor> roots;
  for (const Tensor& x : xs) roots.push_back(unary_map("_foreach_sqrt", Unary::sqrt, x));
  return roots;
}
std::vector<Tensor> each_norm(TensorList xs, const Scalar& order, std::optional<ScalarType> type) {
  std::vector<Tensor> norms;
  for (const Tensor& x : xs)
    norms.push_back(at::linalg_vector_norm(x, order, std::nullopt, false, type));
  return norms;
}

template <class Out, class From>
void convert(void (*kernel)(int64_t, const From*, Out*, Stream), const Tensor& from,
             const Tensor& to) {
  kernel(from.numel(), static_cast<const From*>(from.const_data_ptr()),
         static_cast<Out*>(to.mutable_data_ptr()), stream_of(from));
}

}  // namespace

Tensor widened(const char* op, const Tensor& x) {
  require_storage(op, x);
  if (x.scalar_type() == at::kFloat) return x;
  const Tensor from = x.contiguous(), to = new_floats(x, x.sizes());
  convert(x.scalar_type() == at::kBFloat16 ? widen_bf16 : widen_f16, from, to);
  return to;
}

Tensor rows_of(const char* op, const Tensor& x) { return widened(op, x).contiguous(); }

Tensor rows_or_none(const char* op, const std::optional<Tensor>& x) {
  return x && x->defined() ? rows_of(op, *x) : Tensor();
}

Tensor narrowed(const Tensor& x, ScalarType type) {
  if (type == x.scalar_type()) return x;
  TORCH_CHECK(is_storage(type), "kolm portable-1: no storage format ", type);
  const Tensor from = x.contiguous(), to = at::empty(x.sizes(), x.options().dtype(type));
  convert(type == at::kBFloat16 ? narrow_bf16 : narrow_f16, from, to);
  return to;
}

Tensor unary_map(const char* op, Unary function, const Tensor& x) {
  const Tensor from = dense(op, at::isIntegralType(x.scalar_type(), true) ? x.to(at::kFloat) : x);
  const Tensor to = at::empty_like(from);
  unary(function, from.numel(), read(from), write(to), stream_of(from));
  return narrowed(to, is_storage(x.scalar_type()) ? x.scalar_type() : at::kFloat);
}

Tensor binary_map(const char* op, Binary function, const Tensor& a, const Tensor& b, float p) {
  const auto [x, y] = aligned(op, a, b);
  const Tensor out = at::empty_like(x);
  binary(function, x.numel(), read(x), read(y), write(out), p, stream_of(x));
  return a.scalar_type() == b.scalar_type() ? narrowed(out, a.scalar_type()) : out;
}

Tensor divided(const Tensor& x, float divisor) {
  const Tensor from = dense("div", x), to = at::empty_like(from);
  divide_scalar(from.numel(), read(from), divisor, write(to), stream_of(from));
  return to;
}

void register_maps(Registrar& registrar) {
  add_unary<Unary::exp>(registrar, "exp");
  add_unary<Unary::exp2>(registrar, "exp2");
  add_unary<Unary::expm1>(registrar, "expm1");
  add_unary<Unary::log>(registrar, "log");
  add_unary<Unary::log1p>(registrar, "log1p");
  add_unary<Unary::log2>(registrar, "log2");
  add_unary<Unary::log10>(registrar, "log10");
  add_unary<Unary::tanh>(registrar, "tanh");
  add_unary<Unary::erf>(registrar, "erf");
  add_unary<Unary::erfc>(registrar, "erfc");
  add_unary<Unary::sigmoid>(registrar, "sigmoid");
  add_unary<Unary::silu>(registrar, "silu");
  add_unary<Unary::rsqrt>(registrar, "rsqrt");
  add_unary<Unary::sqrt>(registrar, "sqrt");
  add_unary<Unary::reciprocal>(registrar, "reciprocal");
  add_unary<Unary::sin>(registrar, "sin");
  add_unary<Unary::cos>(registrar, "cos");
  add_unary<Unary::mish>(registrar, "mish");
  registrar.add_forms<gelu>("gelu");
  registrar.add("gelu_backward", &gelu_backward);
  registrar.add_out<gelu_backward>("gelu_backward.grad_input");
  registrar.add("silu_backward", &gradient_of<Binary::silu_grad>);
  registrar.add_out<gradient_of<Binary::silu_grad>>("silu_backward.grad_input");
  registrar.add("tanh_backward", &gradient_of<Binary::tanh_grad>);
  registrar.add_out<gradient_of<Binary::tanh_grad>>("tanh_backward.grad_input");
  registrar.add("sigmoid_backward", &gradient_of<Binary::sigmoid_grad>);
  registrar.add_out<gradient_of<Binary::sigmoid_grad>>("sigmoid_backward.grad_input");
  registrar.add("mish_backward", &gradient_of<Binary::mish_grad>);
  registrar.add("add.Tensor", &add);
  registrar.add_in_place<add>("add_.Tensor");
  registrar.add_out<add>("add.out");
  registrar.add("sub.Tensor", &sub);
  registrar.add_in_place<sub>("sub_.Tensor");
  registrar.add_out<sub>("sub.out");
  registrar.add("div.Tensor", &div);
  registrar.add_in_place<div>("div_.Tensor");
  registrar.add_out<div>("div.out");
  registrar.add_forms<addcmul>("addcmul");
  registrar.add_forms<addcdiv>("addcdiv");
  registrar.add("lerp.Scalar", &lerp);
  registrar.add_in_place<lerp>("lerp_.Scalar");
  registrar.add_out<lerp>("lerp.Scalar_out");
  registrar.add("pow.Tensor_Scalar", &pow_number);
  registrar.add_in_place<pow_number>("pow_.Scalar");
  registrar.add_out<pow_number>("pow.Tensor_Scalar_out");
  registrar.add("pow.Tensor_Tensor", &pow_tensors);
  registrar.add_in_place<pow_tensors>("pow_.Tensor");
  registrar.add_out<pow_tensors>("pow.Tensor_Tensor_out");
  registrar.add("pow.Scalar", &pow_of_number);
  registrar.add("pow.Scalar_out", &pow_of_number_out);
}

void register_random(Registrar& registrar) {
  registrar.add("normal_", &normal_);
  registrar.add("uniform_", &uniform_);
  registrar.add("exponential_", &exponential_);
  registrar.add("bernoulli_.float", &bernoulli_);
  registrar.add("native_dropout", &native_dropout);
  registrar.add("native_dropout_backward", &native_dropout_backward);
}

void register_lists(Registrar& registrar) {
  registrar.add("_fused_adamw_", &fused_adamw);
  registrar.add("_foreach_add_.Scalar", &each_add_number);
  registrar.add("_foreach_add_.List", &each_add_list);
  registrar.add("_foreach_mul_.Scalar", &each_multiply_number);
  registrar.add("_foreach_mul_.Tensor", &each_multiply_tensor);
  registrar.add("_foreach_div_.Scalar", &each_divide_number);
  registrar.add("_foreach_div_.ScalarList", &each_divide_numbers);
  registrar.add("_foreach_lerp_.Scalar", &each_lerp);
  registrar.add("_foreach_addcmul_.Scalar", &each_addcmul);
  registrar.add("_foreach_addcdiv_.Scalar", &each_addcdiv);
  registrar.add("_foreach_addcdiv_.ScalarList", &each_addcdiv_numbers);
  registrar.add("_foreach_sqrt", &each_sqrt);
  registrar.add("_foreach_norm.Scalar", &each_norm);
}

}  // namespace kolm::cuda::binding
