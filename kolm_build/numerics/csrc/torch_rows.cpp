// Softmax, norms and the losses' rows (spec/numerics.md, section Rows).
#include <ATen/WrapDimUtils.h>
#include <torch/version.h>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

int64_t row_grain(int64_t length) { return 8192 / std::max<int64_t>(length, 1); }

// ---- softmax ------------------------------------------------------------------------------------

// A tensor's rows along `dim`, as a contiguous binary32 tensor whose last dimension is `dim`.
Tensor rows_along(const char* op, const Tensor& x, int64_t dim) {
  const Tensor wide = widened(op, x);
  if (wide.dim() == 0) return wide;
  return wide.transpose(at::maybe_wrap_dim(dim, wide.dim()), -1).contiguous();
}

// Back to the order of dimensions of the operand, in its storage format.
Tensor from_rows(const Tensor& rows, int64_t dim, ScalarType type) {
  const Tensor narrow = narrowed(rows, type);
  if (rows.dim() == 0) return narrow;
  return narrow.transpose(at::maybe_wrap_dim(dim, rows.dim()), -1).contiguous();
}

int64_t row_length(const Tensor& rows) { return rows.dim() ? rows.size(-1) : 1; }

using RowKernel = void (*)(int64_t, const float*, float*);
using RowGradient = void (*)(int64_t, const float*, const float*, float*);

Tensor softmax_rows(const char* op, RowKernel kernel, const Tensor& x, int64_t dim,
                    bool half_to_float) {
  TORCH_CHECK(!half_to_float, "kolm portable-1: aten::", op, " converts on GPUs only");
  const Tensor rows = rows_along(op, x, dim);
  Tensor out = new_floats(rows.sizes());
  const int64_t n = row_length(rows);
  if (out.numel() > 0) {
    const float* in = const_floats(rows);
    float* results = floats(out);
    for_ranges(out.numel() / n, row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) kernel(n, in + row * n, results + row * n);
    });
  }
  return from_rows(out, dim, x.scalar_type());
}

Tensor softmax(const Tensor& x, int64_t dim, bool half_to_float) {
  return softmax_rows("_softmax", kernels().rows.softmax, x, dim, half_to_float);
}

Tensor log_softmax(const Tensor& x, int64_t dim, bool half_to_float) {
  return softmax_rows("_log_softmax", kernels().rows.log_softmax, x, dim, half_to_float);
}

Tensor softmax_gradient(const char* op, RowGradient kernel, const Tensor& grad,
                        const Tensor& output, int64_t dim, ScalarType type) {
  const Tensor grads = rows_along(op, grad, dim), outputs = rows_along(op, output, dim);
  Tensor out = new_floats(grads.sizes());
  const int64_t n = row_length(grads);
  if (out.numel() > 0) {
    const float *dy = const_floats(grads), *y = const_floats(outputs);
    float* dx = floats(out);
    for_ranges(out.numel() / n, row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        kernel(n, dy + row * n, y + row * n, dx + row * n);
      }
    });
  }
  return from_rows(out, dim, type);
}

Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim, ScalarType type) {
  return softmax_gradient("_softmax_backward_data", kernels().rows.softmax_grad, grad, output, dim,
                          type);
}

Tensor log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim,
                            ScalarType type) {
  return softmax_gradient("_log_softmax_backward_data", kernels().rows.log_softmax_grad, grad,
                          output, dim, type);
}

// ---- norms
// ----------------------------------------------------------------------------------------

struct NormShape {
  int64_t rows = 1, length = 1;
  std::vector<int64_t> statistics;  // the shape of mean and rstd
};

NormShape norm_shape(const char* op, const Tensor& x, IntArrayRef normalized) {
  const int64_t first = x.dim() - static_cast<int64_t>(normalized.size());
  TORCH_CHECK(first >= 0 && x.sizes().slice(std::max<int64_t>(first, 0)) == normalized,
              "kolm portable-1: aten::", op, " cannot normalise a tensor of shape ", x.sizes(),
              " over ", normalized);
  NormShape shape;
  for (int64_t d = 0; d < x.dim(); ++d) {
    (d < first ? shape.rows : shape.length) *= x.size(d);
    shape.statistics.push_back(d < first ? x.size(d) : 1);
  }
  return shape;
}

// A gain or bias in binary32, contiguous; undefined where there is none.
Tensor parameter(const char* op, const std::optional<Tensor>& x) {
  if (!x || !x->defined()) return {};
  return widened(op, *x).contiguous();
}

const float* data_or_null(const Tensor& x) { return x.defined() ? const_floats(x) : nullptr; }

// Mean and rstd stay in binary32 whatever the storage format: they go to the gradient alone.
std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& input, IntArrayRef normalized,
                                              const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, double eps) {
  const char* op = "native_layer_norm";
  const Tensor x = widened(op, input).contiguous();
  const NormShape shape = norm_shape(op, x, normalized);
  const Tensor gain = parameter(op, weight), shift = parameter(op, bias);
  Tensor y = new_floats(x.sizes()), mean = new_floats(shape.statistics),
         rstd = new_floats(shape.statistics);
  const auto kernel = kernels().rows.layer_norm;
  const int64_t n = shape.length;
  const float *in = const_floats(x), *g = data_or_null(gain), *b = data_or_null(shift);
  float *out = floats(y), *means = floats(mean), *rstds = floats(rstd);
  for_ranges(shape.rows, row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel(n, in + row * n, g, b, static_cast<float>(eps), out + row * n, means + row,
             rstds + row);
    }
  });
  return {narrowed(y, input.scalar_type()), mean, rstd};
}

// Column sums on all threads: each has columns of its own.
template <class Body>
void for_columns(int64_t columns, int64_t rows, const Body& body) {
  const int64_t width = 64, strips = (columns + width - 1) / width;
  for_ranges(strips, 16384 / std::max<int64_t>(rows * width, 1), [&](int64_t begin, int64_t end) {
    body(begin * width, std::min(columns, end * width) - begin * width);
  });
}

// The gradient of a norm's gain: SUM over rows of dy * ((x - mean) * rstd).
Tensor gain_gradient(const Tensor& dy, const Tensor& x, const float* mean, const Tensor& rstd,
                     int64_t rows, IntArrayRef sizes) {
  Tensor out = new_floats(sizes);
  const int64_t n = out.numel();
  for_columns(n, rows, [&](int64_t first, int64_t columns) {
    kernels().rows.column_sums_centred(rows, columns, const_floats(dy) + first, n,
                                       const_floats(x) + first, n, mean, const_floats(rstd),
                                       floats(out) + first);
  });
  return out;
}

Tensor bias_gradient(const Tensor& dy, int64_t rows, IntArrayRef sizes) {
  Tensor out = new_floats(sizes);
  const int64_t n = out.numel();
  for_columns(n, rows, [&](int64_t first, int64_t columns) {
    kernels().rows.column_sums(rows, columns, const_floats(dy) + first, n, floats(out) + first);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad, const Tensor& input,
                                                       IntArrayRef normalized,
                                                       const Tensor& mean_in, const Tensor& rstd_in,
                                                       const std::optional<Tensor>& weight,
                                                       const std::optional<Tensor>& bias,
                                                       std::array<bool, 3> wanted) {
  const char* op = "native_layer_norm_backward";
  const Tensor dy = widened(op, grad).contiguous(), x = widened(op, input).contiguous();
  const NormShape shape = norm_shape(op, x, normalized);
  const Tensor mean = widened(op, mean_in).contiguous(), rstd = widened(op, rstd_in).contiguous();
  const Tensor gain = parameter(op, weight);
  const int64_t n = shape.length;
  Tensor dx, dgain, dbias;
  if (wanted[0]) {
    dx = new_floats(x.sizes());
    const auto kernel = kernels().rows.layer_norm_grad;
    const float *g = data_or_null(gain), *means = const_floats(mean), *rstds = const_floats(rstd);
    for_ranges(shape.rows, row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        kernel(n, const_floats(dy) + row * n, const_floats(x) + row * n, g, means[row], rstds[row],
               floats(dx) + row * n);
      }
    });
    dx = narrowed(dx, input.scalar_type());
  }
  if (wanted[1] && gain.defined()) {
    dgain = narrowed(gain_gradient(dy, x, const_floats(mean), rstd, shape.rows, normalized),
                     weight->scalar_type());
  }
  if (wanted[2] && bias && bias->defined()) {
    dbias = narrowed(bias_gradient(dy, shape.rows, normalized), bias->scalar_type());
  }
  return {dx, dgain, dbias};
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& input, IntArrayRef normalized,
                                    const std::optional<Tensor>& weight,
                                    std::optional<double> eps_in) {
  const char* op = "_fused_rms_norm";
  const Tensor x = widened(op, input).contiguous();
  const NormShape shape = norm_shape(op, x, normalized);
  const Tensor gain = parameter(op, weight);
  const float eps = static_cast<float>(eps_in.value_or(std::numeric_limits<float>::epsilon()));
  Tensor y = new_floats(x.sizes()), rstd = new_floats(shape.statistics);
  const auto kernel = kernels().rows.rms_norm;
  const int64_t n = shape.length;
  const float* g = data_or_null(gain);
  for_ranges(shape.rows, row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel(n, const_floats(x) + row * n, g, eps, floats(y) + row * n, floats(rstd) + row);
    }
  });
  return {narrowed(y, input.scalar_type()), rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& input,
                                             IntArrayRef normalized, const Tensor& rstd_in,
                                             const std::optional<Tensor>& weight,
                                             std::array<bool, 2> wanted) {
  const char* op = "_fused_rms_norm_backward";
  const Tensor dy = widened(op, grad).contiguous(), x = widened(op, input).contiguous();
  const NormShape shape = norm_shape(op, x, normalized);
  const Tensor rstd = widened(op, rstd_in).contiguous(), gain = parameter(op, weight);
  const int64_t n = shape.length;
  Tensor dx, dgain;
  if (wanted[0]) {
    dx = new_floats(x.sizes());
    const auto kernel = kernels().rows.rms_norm_grad;
    const float *g = data_or_null(gain), *rstds = const_floats(rstd);
    for_ranges(shape.rows, row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        kernel(n, const_floats(dy) + row * n, const_floats(x) + row * n, g, rstds[row],
               floats(dx) + row * n);
      }
    });
    dx = narrowed(dx, input.scalar_type());
  }
  if (wanted[1] && gain.defined()) {
    const Tensor zeros = at::zeros({shape.rows}, x.options());  // x - 0 is x
    dgain = narrowed(gain_gradient(dy, x, const_floats(zeros), rstd, shape.rows, normalized),
                     weight->scalar_type());
  }
  return {dx, dgain};
}

// ---- nll_loss
// -------------------------------------------------------------------------------------

struct Targets {
  int64_t count, classes, ignored;
  const int64_t* classes_of;
  Tensor storage;
};

Targets targets_of(const char* op, const Tensor& x, const Tensor& target, int64_t ignore_index) {
  TORCH_CHECK(x.dim() == 1 || x.dim() == 2, "kolm portable-1: aten::", op,
              " expects a vector or a matrix, got ", x.sizes());
  TORCH_CHECK(target.scalar_type() == at::kLong || target.scalar_type() == at::kByte,
              "kolm portable-1: aten::", op, " expects int64 targets, got ", target.scalar_type());
  Targets result{x.dim() == 2 ? x.size(0) : 1, x.size(-1), ignore_index, nullptr,
                 target.to(at::kLong).contiguous()};
  TORCH_CHECK(result.storage.numel() == result.count, "kolm portable-1: aten::", op, " has ",
              result.count, " rows and ", result.storage.numel(), " targets");
  result.classes_of = result.storage.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < result.count; ++i) {
    const int64_t c = result.classes_of[i];
    TORCH_CHECK_INDEX(c == ignore_index || (c >= 0 && c < result.classes), "Target ", c,
                      " is out of bounds.");
  }
  return result;
}

// A target's weight; +0 where it is ignored.
float weight_of(const Targets& targets, const float* weights, int64_t row) {
  const int64_t c = targets.classes_of[row];
  if (c == targets.ignored) return 0.0f;
  return weights ? weights[c] : 1.0f;
}

float sum_of(const std::vector<float>& values) {
  return kernels().rows.sum(Term::value, static_cast<int64_t>(values.size()), values.data(),
                            nullptr, 0.0f);
}

std::tuple<Tensor, Tensor> nll_loss_forward(const Tensor& input, const Tensor& target,
                                            const std::optional<Tensor>& weight, int64_t reduction,
                                            int64_t ignore_index) {
  const char* op = "nll_loss_forward";
  const Tensor x = widened(op, input);
  const Targets targets = targets_of(op, x, target, ignore_index);
  const Tensor class_weights = parameter(op, weight);
  const float* weights = data_or_null(class_weights);
  const int64_t row_stride = x.dim() == 2 ? x.stride(0) : 0, column_stride = x.stride(-1);
  std::vector<float> terms(targets.count), scales(targets.count);
  for (int64_t i = 0; i < targets.count; ++i) {
    scales[i] = weight_of(targets, weights, i);
    const bool ignored = targets.classes_of[i] == ignore_index;
    const float value =
        ignored ? 0.0f : const_floats(x)[i * row_stride + targets.classes_of[i] * column_stride];
    // -x is exact, so without weights the product changes nothing.
    terms[i] = ignored ? 0.0f : -value * scales[i];
  }
  Tensor loss = new_floats({}), total = new_floats({});
  floats(total)[0] = sum_of(scales);
  if (reduction == at::Reduction::None && x.dim() == 2) {
    loss = new_floats({targets.count});
    std::copy(terms.begin(), terms.end(), floats(loss));
    floats(total)[0] = 0.0f;
  } else {
    const float sum = sum_of(terms);
    floats(loss)[0] = reduction == at::Reduction::Mean ? sum / floats(total)[0] : sum;
  }
  // The total stays in binary32: it goes to the gradient alone.
  return {narrowed(loss, input.scalar_type()), total};
}

std::tuple<Tensor&, Tensor&> nll_loss_forward_out(const Tensor& input, const Tensor& target,
                                                  const std::optional<Tensor>& weight,
                                                  int64_t reduction, int64_t ignore_index,
                                                  Tensor& loss, Tensor& total) {
  const auto [new_loss, new_total] =
      binding::nll_loss_forward(input, target, weight, reduction, ignore_index);
  return {deliver(new_loss, loss), deliver(new_total, total)};
}

Tensor nll_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, int64_t reduction,
                         int64_t ignore_index, const Tensor& total_weight) {
  const char* op = "nll_loss_backward";
  require_storage(op, input);
  const Targets targets = targets_of(op, input, target, ignore_index);
  const Tensor dy = widened(op, grad).contiguous();
  const Tensor class_weights = parameter(op, weight);
  const float* weights = data_or_null(class_weights);
  const Tensor dx = new_zeros(input.sizes());
  const bool each = reduction == at::Reduction::None && input.dim() == 2;
  float scale = each ? 0.0f : const_floats(dy)[0];
  if (reduction == at::Reduction::Mean) {
    scale = scale / widened(op, total_weight).item<float>();
  }
  for (int64_t i = 0; i < targets.count; ++i) {
    if (targets.classes_of[i] == ignore_index) continue;
    const float dyi = each ? const_floats(dy)[i] : scale;
    floats(dx)[i * targets.classes + targets.classes_of[i]] = -dyi * weight_of(targets, weights, i);
  }
  return narrowed(dx, input.scalar_type());
}

}  // namespace

void register_rows(Registrar& registrar) {
  registrar.add("_softmax", &softmax);
  registrar.add_out<softmax>("_softmax.out");
  registrar.add("_log_softmax", &log_softmax);
  registrar.add_out<log_softmax>("_log_softmax.out");
  registrar.add("_softmax_backward_data", &softmax_backward);
  registrar.add_out<softmax_backward>("_softmax_backward_data.out");
  registrar.add("_log_softmax_backward_data", &log_softmax_backward);
  registrar.add_out<log_softmax_backward>("_log_softmax_backward_data.out");
  registrar.add("native_layer_norm", &layer_norm);
  registrar.add("native_layer_norm_backward", &layer_norm_backward);
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9  // before, rms_norm was composed
  registrar.add("_fused_rms_norm", &rms_norm);
  registrar.add("_fused_rms_norm_backward", &rms_norm_backward);
#endif
  registrar.add("nll_loss_forward", &nll_loss_forward);
  registrar.add("nll_loss_forward.output", &nll_loss_forward_out);
  registrar.add("nll_loss_backward", &nll_loss_backward);
  registrar.add_out<nll_loss_backward>("nll_loss_backward.grad_input");
}

}  // namespace kolm::binding
