// Sums, softmax, norms, losses and gathered sums (spec/numerics.md, sections sums and rows).
#include <limits>

#include "binding.h"

namespace kolm::cuda::binding {
namespace {

// ---- Sums

std::vector<bool> reduced_of(const Tensor& x, OptionalIntArrayRef dims) {
  std::vector<bool> reduced(x.dim(), !dims.has_value() || dims->empty());
  if (dims.has_value())
    for (const int64_t d : *dims)
      if (x.dim() > 0) reduced[at::maybe_wrap_dim(d, x.dim())] = true;
  return reduced;
}

// SUM of each row of a contiguous [rows, n].
void sum_rows(Term term, const Tensor& x, int64_t rows, int64_t n, const Tensor& out) {
  const Tensor space = workspace(x, sum_workspace_floats(rows, n));
  sum(term, rows, n, read(x), nullptr, nullptr, write(out), write(space), stream_of(x));
}

void sum_columns(const Tensor& x, int64_t rows, int64_t columns, const Tensor& y, const float* mean,
                 const float* rstd, const Tensor& out) {
  const Tensor space = workspace(x, column_workspace_floats(rows, columns));
  column_sums(rows, columns, read(x), columns, read_or_null(y), columns, mean, rstd, write(out),
              write(space), stream_of(x));
}

Tensor sum_dims(const Tensor& x, OptionalIntArrayRef dims, bool keepdim,
                std::optional<ScalarType> type) {
  if (is_integral(x) && (!type || at::isIntegralType(*type, true)))
    return stock::sum(x, dims, keepdim, type);
  const Tensor from = is_integral(x) ? x.to(at::kFloat) : x;
  return narrowed(reduce("sum", Term::value, from, dims, keepdim),
                  type.value_or(from.scalar_type()));
}
Tensor mean_dims(const Tensor& x, OptionalIntArrayRef dims, bool keepdim,
                 std::optional<ScalarType> type) {
  const Tensor total = reduce("mean", Term::value, x, dims, keepdim);
  const int64_t n = total.numel() > 0 ? x.numel() / total.numel() : 0;
  return narrowed(divided(total, static_cast<float>(n)), type.value_or(x.scalar_type()));
}
Tensor vector_norm(const Tensor& x, const Scalar& order, OptionalIntArrayRef dims, bool keepdim,
                   std::optional<ScalarType> type) {
  const double p = order.to<double>();
  const ScalarType out = type.value_or(x.scalar_type());
  if (p == 1.0) return narrowed(reduce("norm", Term::magnitude, x, dims, keepdim), out);
  TORCH_CHECK(p == 2.0, "kolm portable-1: aten::linalg_vector_norm of order ", p);
  return narrowed(unary_map("norm", Unary::sqrt, reduce("norm", Term::square, x, dims, keepdim)),
                  out);
}
Tensor cumsum(const Tensor& x, int64_t dim, std::optional<ScalarType> type) {
  if (is_integral(x)) return stock::cumsum(x, dim, type);
  const Tensor from = rows_of("cumsum", x), to = at::empty_like(from);
  if (x.numel() > 0) {
    const int64_t along = from.dim() == 0 ? 0 : at::maybe_wrap_dim(dim, from.dim());
    const int64_t n = from.dim() == 0 ? 1 : from.size(along);
    int64_t inner = 1;
    for (int64_t d = along + 1; d < from.dim(); ++d) inner *= from.size(d);
    running_sum(from.numel() / n / inner, n, inner, read(from), write(to), stream_of(from));
  }
  return narrowed(to, type.value_or(x.scalar_type()));
}

// ---- Softmax

Tensor rows_along(const char* op, const Tensor& x, int64_t dim) {
  const Tensor wide = widened(op, x);
  return wide.dim() == 0 ? wide
                         : wide.transpose(at::maybe_wrap_dim(dim, wide.dim()), -1).contiguous();
}
Tensor from_rows(const Tensor& rows, int64_t dim, ScalarType type) {
  const Tensor narrow = narrowed(rows, type);
  if (rows.dim() == 0) return narrow;
  return narrow.transpose(at::maybe_wrap_dim(dim, rows.dim()), -1).contiguous();
}
int64_t length_of(const Tensor& rows) { return rows.dim() > 0 ? rows.size(-1) : 1; }

using RowKernel = void (*)(int64_t, int64_t, const float*, float*, Stream);

Tensor row_map(const char* op, RowKernel kernel, const Tensor& x, int64_t dim, ScalarType type) {
  const Tensor from = rows_along(op, x, dim), to = at::empty_like(from);
  const int64_t n = length_of(from);
  if (from.numel() > 0) kernel(from.numel() / n, n, read(from), write(to), stream_of(from));
  return from_rows(to, dim, type);
}
Tensor softmax(const Tensor& x, int64_t dim, bool half_to_float) {
  return row_map("_softmax", cuda::softmax, x, dim, half_to_float ? at::kFloat : x.scalar_type());
}
Tensor log_softmax(const Tensor& x, int64_t dim, bool half_to_float) {
  return row_map("_log_softmax", cuda::log_softmax, x, dim,
                 half_to_float ? at::kFloat : x.scalar_type());
}
Tensor softmax_backward(const Tensor& grad, const Tensor& y, int64_t dim, ScalarType type) {
  const Tensor dy = rows_along("_softmax_backward_data", grad, dim);
  const Tensor p = rows_along("_softmax_backward_data", y, dim), dx = at::empty_like(dy);
  const int64_t n = length_of(dy);
  if (dy.numel() > 0)
    softmax_grad(dy.numel() / n, n, read(dy), read(p), write(dx), false, 0.0f, stream_of(dy));
  return from_rows(dx, dim, type);
}
Tensor log_softmax_backward(const Tensor& grad, const Tensor& y, int64_t dim, ScalarType type) {
  const Tensor dy = rows_along("_log_softmax_backward_data", grad, dim);
  const Tensor p = rows_along("_log_softmax_backward_data", y, dim), dx = at::empty_like(dy);
  const int64_t n = length_of(dy);
  if (dy.numel() > 0)
    log_softmax_grad(dy.numel() / n, n, read(dy), read(p), write(dx), stream_of(dy));
  return from_rows(dx, dim, type);
}
Tensor logsumexp(const Tensor& x, IntArrayRef dims, bool keepdim) {
  TORCH_CHECK(dims.size() == 1 && x.dim() > 0,
              "kolm portable-1: aten::logsumexp over one dimension");
  const Tensor from = rows_along("logsumexp", x, dims[0]);
  std::vector<int64_t> sizes = from.sizes().vec();
  sizes.back() = 1;
  const Tensor to = new_floats(from, sizes);
  log_sum_exp(to.numel(), length_of(from), read(from), write(to), stream_of(from));
  const Tensor out = from_rows(to, dims[0], x.scalar_type());
  return keepdim ? out : out.squeeze(dims[0]);
}

// ---- Norms

struct NormShape {
  int64_t rows = 1, length = 1;
  std::vector<int64_t> statistics;
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

std::tuple<Tensor, Tensor, Tensor> native_layer_norm(const Tensor& input, IntArrayRef normalized,
                                                     const std::optional<Tensor>& weight,
                                                     const std::optional<Tensor>& bias,
                                                     double eps) {
  const char* op = "native_layer_norm";
  const Tensor x = rows_of(op, input), gain = rows_or_none(op, weight),
               shift = rows_or_none(op, bias);
  const NormShape shape = norm_shape(op, x, normalized);
  const Tensor y = at::empty_like(x), mean = new_floats(x, shape.statistics),
               rstd = new_floats(x, shape.statistics);
  layer_norm(shape.rows, shape.length, read(x), read_or_null(gain), read_or_null(shift),
             static_cast<float>(eps), write(y), write(mean), write(rstd), stream_of(x));
  return {narrowed(y, input.scalar_type()), mean, rstd};
}

Tensor gain_gradient(const Tensor& dy, const Tensor& x, const float* mean, const Tensor& rstd,
                     const NormShape& shape, const Tensor& weight) {
  const Tensor out = new_floats(dy, weight.sizes());
  sum_columns(dy, shape.rows, shape.length, x, mean, read(rstd), out);
  return narrowed(out, weight.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> native_layer_norm_backward(
    const Tensor& grad, const Tensor& input, IntArrayRef normalized, const Tensor& mean_in,
    const Tensor& rstd_in, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    std::array<bool, 3> wanted) {
  const char* op = "native_layer_norm_backward";
  const Tensor dy = rows_of(op, grad), x = rows_of(op, input), gain = rows_or_none(op, weight);
  const Tensor mean = rows_of(op, mean_in), rstd = rows_of(op, rstd_in);
  const NormShape shape = norm_shape(op, x, normalized);
  Tensor dx, dgain, dbias;
  if (wanted[0]) {
    dx = at::empty_like(x);
    layer_norm_grad(shape.rows, shape.length, read(dy), read(x), read_or_null(gain), read(mean),
                    read(rstd), write(dx), stream_of(x));
    dx = narrowed(dx, input.scalar_type());
  }
  if (wanted[1] && gain.defined()) dgain = gain_gradient(dy, x, read(mean), rstd, shape, *weight);
  if (wanted[2] && bias && bias->defined()) {
    dbias = new_floats(x, bias->sizes());
    sum_columns(dy, shape.rows, shape.length, {}, nullptr, nullptr, dbias);
    dbias = narrowed(dbias, bias->scalar_type());
  }
  return {dx, dgain, dbias};
}

std::tuple<Tensor, Tensor> fused_rms_norm(const Tensor& input, IntArrayRef normalized,
                                          const std::optional<Tensor>& weight,
                                          std::optional<double> eps) {
  const char* op = "_fused_rms_norm";
  const Tensor x = rows_of(op, input), gain = rows_or_none(op, weight);
  const NormShape shape = norm_shape(op, x, normalized);
  const Tensor y = at::empty_like(x), rstd = new_floats(x, shape.statistics);
  const double smallest = std::numeric_limits<float>::epsilon();
  rms_norm(shape.rows, shape.length, read(x), read_or_null(gain),
           static_cast<float>(eps.value_or(smallest)), write(y), write(rstd), stream_of(x));
  return {narrowed(y, input.scalar_type()), rstd};
}

std::tuple<Tensor, Tensor> fused_rms_norm_backward(const Tensor& grad, const Tensor& input,
                                                   IntArrayRef normalized, const Tensor& rstd_in,
                                                   const std::optional<Tensor>& weight,
                                                   std::array<bool, 2> wanted) {
  const char* op = "_fused_rms_norm_backward";
  const Tensor dy = rows_of(op, grad), x = rows_of(op, input), gain = rows_or_none(op, weight);
  const Tensor rstd = rows_of(op, rstd_in);
  const NormShape shape = norm_shape(op, x, normalized);
  Tensor dx, dgain;
  if (wanted[0]) {
    dx = at::empty_like(x);
    layer_norm_grad(shape.rows, shape.length, read(dy), read(x), read_or_null(gain), nullptr,
                    read(rstd), write(dx), stream_of(x));
    dx = narrowed(dx, input.scalar_type());
  }
  if (wanted[1] && gain.defined()) dgain = gain_gradient(dy, x, nullptr, rstd, shape, *weight);
  return {dx, dgain};
}

// ---- Losses and embeddings

std::tuple<Tensor, Tensor> nll_loss_forward(const Tensor& input, const Tensor& target,
                                            const std::optional<Tensor>& weight, int64_t reduction,
                                            int64_t ignored) {
  const char* op = "nll_loss_forward";
  const Tensor x = rows_of(op, input), weights = rows_or_none(op, weight);
  const Tensor targets = target.to(at::kLong).contiguous();
  const int64_t rows = x.dim() == 2 ? x.size(0) : 1;
  TORCH_CHECK(x.dim() <= 2 && targets.numel() == rows, "kolm portable-1: aten::", op, " of shapes ",
              x.sizes(), " and ", targets.sizes());
  const Tensor terms = new_floats(x, {rows}), used = new_floats(x, {rows});
  nll_terms(rows, x.size(-1), read(x), targets.const_data_ptr<int64_t>(), read_or_null(weights),
            ignored, write(terms), write(used), stream_of(x));
  if (reduction == at::Reduction::None && x.dim() == 2)
    return {narrowed(terms, input.scalar_type()), at::zeros({}, terms.options())};
  Tensor loss = new_floats(x, {});
  const Tensor total = new_floats(x, {});
  sum_rows(Term::value, terms, 1, rows, loss);
  sum_rows(Term::value, used, 1, rows, total);
  if (reduction == at::Reduction::Mean) {
    const Tensor mean = new_floats(x, {});
    divide(1, read(loss), read(total), 1, write(mean), stream_of(x));
    loss = mean;
  }
  return {narrowed(loss, input.scalar_type()), total};
}

std::tuple<Tensor&, Tensor&> nll_loss_forward_out(const Tensor& input, const Tensor& target,
                                                  const std::optional<Tensor>& weight,
                                                  int64_t reduction, int64_t ignored, Tensor& loss,
                                                  Tensor& total) {
  const auto [new_loss, new_total] =
      binding::nll_loss_forward(input, target, weight, reduction, ignored);
  return {deliver(new_loss, loss), deliver(new_total, total)};
}

Tensor nll_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                         const std::optional<Tensor>& weight, int64_t reduction, int64_t ignored,
                         const Tensor& total_weight) {
  const char* op = "nll_loss_backward";
  require_storage(op, input);
  const Tensor dy = rows_of(op, grad), weights = rows_or_none(op, weight);
  const Tensor targets = target.to(at::kLong).contiguous(), total = rows_of(op, total_weight);
  const Tensor dx = at::zeros(input.sizes(), input.options().dtype(at::kFloat));
  const bool each = reduction == at::Reduction::None && input.dim() == 2;
  nll_grad(input.dim() == 2 ? input.size(0) : 1, input.size(-1), read(dy), each ? 1 : 0,
           targets.const_data_ptr<int64_t>(), read_or_null(weights), ignored,
           reduction == at::Reduction::Mean ? read(total) : nullptr, write(dx), stream_of(dx));
  return narrowed(dx, input.scalar_type());
}

// out[index[p]] += scale * source[p] in ascending order of p (NUM-37); rows of `width`.
void add_in_order(const Tensor& out, const Tensor& index, const Tensor& source, int64_t skipped,
                  float scale, int64_t width) {
  const auto [sorted, order] =
      at::sort(index.reshape({-1}).to(at::kLong), /*stable=*/true, 0, false);
  add_runs(sorted.numel(), width, sorted.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>(),
           skipped, read(source), scale, scale != 1.0f, write(out), stream_of(out));
}

Tensor embedding_dense_backward(const Tensor& grad, const Tensor& indices, int64_t count,
                                int64_t padding, bool scale_by_frequency) {
  const char* op = "embedding_dense_backward";
  TORCH_CHECK(!scale_by_frequency, "kolm portable-1: aten::", op, " with scale_grad_by_freq");
  const Tensor source = rows_of(op, grad);
  const Tensor out = at::zeros({count, source.size(-1)}, source.options());
  if (source.numel() > 0) add_in_order(out, indices, source, padding, 1.0f, source.size(-1));
  return narrowed(out, grad.scalar_type());
}

Tensor index_add(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source,
                 const Scalar& alpha) {
  const char* op = "index_add";
  TORCH_CHECK(self.dim() > 0 && self.dim() == source.dim(), "kolm portable-1: aten::", op,
              " of shapes ", self.sizes(), " and ", source.sizes());
  const Tensor from = widened(op, source).transpose(dim, 0).contiguous();
  const Tensor out = widened(op, self).transpose(dim, 0).clone(at::MemoryFormat::Contiguous);
  if (from.numel() > 0)
    add_in_order(out, index, from, -1, alpha.to<float>(), from.numel() / from.size(0));
  return narrowed(out.transpose(dim, 0).contiguous(), self.scalar_type());
}

}  // namespace

Tensor reduce(const char* op, Term term, const Tensor& given, OptionalIntArrayRef dims,
              bool keepdim) {
  const Tensor x = widened(op, given);
  const std::vector<bool> reduced = reduced_of(x, dims);
  std::vector<int64_t> kept, gone, sizes;
  int64_t rows = 1, n = 1;
  for (int64_t d = 0; d < x.dim(); ++d) {
    (reduced[d] ? gone : kept).push_back(d);
    (reduced[d] ? n : rows) *= x.size(d);
    if (!reduced[d] || keepdim) sizes.push_back(reduced[d] ? 1 : x.size(d));
  }
  const Tensor out = new_floats(x, sizes);
  const bool leading = !gone.empty() && !kept.empty() && gone.back() < kept.front();
  if (leading && term == Term::value && rows > 0) {
    sum_columns(x.contiguous(), n, rows, {}, nullptr, nullptr, out);
    return out;
  }
  kept.insert(kept.end(), gone.begin(), gone.end());
  sum_rows(term, x.permute(kept).contiguous(), rows, n, out);
  return out;
}

void register_rows(Registrar& registrar) {
  registrar.add("sum.dim_IntList", &sum_dims);
  registrar.add_out<sum_dims>("sum.IntList_out");
  registrar.add("mean.dim", &mean_dims);
  registrar.add_out<mean_dims>("mean.out");
  registrar.add("linalg_vector_norm", &vector_norm);
  registrar.add_out<vector_norm>("linalg_vector_norm.out");
  registrar.add_forms<cumsum>("cumsum");
  registrar.add("_softmax", &softmax);
  registrar.add_out<softmax>("_softmax.out");
  registrar.add("_log_softmax", &log_softmax);
  registrar.add_out<log_softmax>("_log_softmax.out");
  registrar.add("_softmax_backward_data", &softmax_backward);
  registrar.add_out<softmax_backward>("_softmax_backward_data.grad_input");
  registrar.add("_log_softmax_backward_data", &log_softmax_backward);
  registrar.add_out<log_softmax_backward>("_log_softmax_backward_data.out");
  registrar.add("logsumexp", &logsumexp);
  registrar.add_out<logsumexp>("logsumexp.out");
  registrar.add("native_layer_norm", &native_layer_norm);
  registrar.add("native_layer_norm_backward", &native_layer_norm_backward);
  registrar.add("_fused_rms_norm", &fused_rms_norm);
  registrar.add("_fused_rms_norm_backward", &fused_rms_norm_backward);
  registrar.add("nll_loss_forward", &nll_loss_forward);
  registrar.add("nll_loss_forward.output", &nll_loss_forward_out);
  registrar.add("nll_loss_backward", &nll_loss_backward);
  registrar.add_out<nll_loss_backward>("nll_loss_backward.grad_input");
  registrar.add("embedding_dense_backward", &embedding_dense_backward);
  registrar.add("index_add", &index_add);
  registrar.add_in_place<index_add>("index_add_");
  registrar.add_out<index_add>("index_add.out");
}

}  // namespace kolm::cuda::binding
