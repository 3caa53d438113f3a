// Fused optimiser steps (spec/numerics.md, section Optimisers): the bits of the loops of
// torch.optim.
#include "optimisers.h"
#include "torch_binding.h"

namespace kolm::binding {

namespace {

using at::TensorList;

void refuse_scaling(const char* op, const std::optional<Tensor>& grad_scale,
                    const std::optional<Tensor>& found_inf) {
  if ((grad_scale && grad_scale->defined()) || (found_inf && found_inf->defined())) {
    refuse(op, "is not certified for loss scaling (grad_scale, found_inf)");
  }
}

// One tensor of the step as contiguous binary32; `finish` brings a copy's result back.
class Operand32 {
 public:
  Operand32(const char* op, const Tensor& x, const Tensor& like) : original_(x) {
    const Tensor wide = widened(op, x);
    const bool in_order = wide.strides() == like.strides() && like.is_non_overlapping_and_dense();
    values_ = in_order ? wide : wide.contiguous();
  }
  float* data() const { return floats(values_); }
  void finish() {
    if (!values_.is_same(original_)) original_.copy_(narrowed(values_, original_.scalar_type()));
  }

 private:
  Tensor original_, values_;
};

void step_one(const char* op, const AdamW& scalars, const Tensor& param, const Tensor& grad,
              const Tensor& mean, const Tensor& square, const Tensor* square_max) {
  const bool dense = param.is_non_overlapping_and_dense() && grad.strides() == param.strides() &&
                     mean.strides() == param.strides() && square.strides() == param.strides() &&
                     (!square_max || square_max->strides() == param.strides());
  const Tensor like = dense ? param : at::empty(param.sizes(), param.options());
  Operand32 p(op, param, like), g(op, grad, like), m(op, mean, like), v(op, square, like);
  std::optional<Operand32> largest;
  if (square_max) largest.emplace(op, *square_max, like);
  const auto kernel = kernels().maps.adamw;
  for_ranges(param.numel(), 16384, [&](int64_t begin, int64_t end) {
    kernel(scalars, end - begin, g.data() + begin, p.data() + begin, m.data() + begin,
           v.data() + begin, largest ? largest->data() + begin : nullptr);
  });
  p.finish();
  m.finish();
  v.finish();
  if (largest) largest->finish();
}

void step_all(const char* op, TensorList params, TensorList grads, TensorList means,
              TensorList squares, TensorList maxima, TensorList steps,
              const AdamWSettings& settings, bool amsgrad, const std::optional<Tensor>& grad_scale,
              const std::optional<Tensor>& found_inf) {
  refuse_scaling(op, grad_scale, found_inf);
  for (size_t i = 0; i < params.size(); ++i) {
    const double step = steps[i].item<double>();
    if (!is_count(step)) refuse(op, c10::str("counts whole steps: ", step));
    step_one(op, adamw_scalars(settings, static_cast<int64_t>(step)), params[i], grads[i], means[i],
             squares[i], amsgrad ? &maxima[i] : nullptr);
  }
}

template <bool decoupled>
void adam(TensorList params, TensorList grads, TensorList means, TensorList squares,
          TensorList maxima, TensorList steps, double lr, double beta1, double beta2,
          double weight_decay, double eps, bool amsgrad, bool maximize,
          const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf) {
  const AdamWSettings settings{lr, beta1, beta2, weight_decay, eps, maximize, decoupled};
  step_all(decoupled ? "_fused_adamw_" : "_fused_adam_", params, grads, means, squares, maxima,
           steps, settings, amsgrad, grad_scale, found_inf);
}

template <bool decoupled>
void adam_tensor_lr(TensorList params, TensorList grads, TensorList means, TensorList squares,
                    TensorList maxima, TensorList steps, const Tensor& lr, double beta1,
                    double beta2, double weight_decay, double eps, bool amsgrad, bool maximize,
                    const std::optional<Tensor>& grad_scale,
                    const std::optional<Tensor>& found_inf) {
  adam<decoupled>(params, grads, means, squares, maxima, steps, lr.item<double>(), beta1, beta2,
                  weight_decay, eps, amsgrad, maximize, grad_scale, found_inf);
}

// As torch.optim's loop over tensors.
void sgd(TensorList params, TensorList grads, TensorList buffers, double weight_decay,
         double momentum, double lr, double dampening, bool nesterov, bool maximize,
         bool is_first_step, const std::optional<Tensor>& grad_scale,
         const std::optional<Tensor>& found_inf) {
  refuse_scaling("_fused_sgd_", grad_scale, found_inf);
  for (size_t i = 0; i < params.size(); ++i) {
    Tensor g = maximize ? grads[i].neg() : grads[i];
    if (weight_decay != 0.0) g = g.add(params[i], weight_decay);
    if (momentum != 0.0) {
      Tensor buffer = buffers[i];
      if (is_first_step) {
        buffer.copy_(g);
      } else {
        buffer.mul_(momentum).add_(g, 1.0 - dampening);
      }
      g = nesterov ? g.add(buffer, momentum) : buffer;
    }
    Tensor param = params[i];
    param.add_(g, -lr);
  }
}

void sgd_tensor_lr(TensorList params, TensorList grads, TensorList buffers, double weight_decay,
                   double momentum, const Tensor& lr, double dampening, bool nesterov,
                   bool maximize, bool is_first_step, const std::optional<Tensor>& grad_scale,
                   const std::optional<Tensor>& found_inf) {
  sgd(params, grads, buffers, weight_decay, momentum, lr.item<double>(), dampening, nesterov,
      maximize, is_first_step, grad_scale, found_inf);
}

}  // namespace

void register_optimisers(Registrar& registrar) {
  registrar.add("_fused_adamw_", &adam<true>);
  registrar.add("_fused_adamw_.tensor_lr", &adam_tensor_lr<true>);
  registrar.add("_fused_adam_", &adam<false>);
  registrar.add("_fused_adam_.tensor_lr", &adam_tensor_lr<false>);
  registrar.add("_fused_sgd_", &sgd);
  registrar.add("_fused_sgd_.tensor_lr", &sgd_tensor_lr);
}

}  // namespace kolm::binding
