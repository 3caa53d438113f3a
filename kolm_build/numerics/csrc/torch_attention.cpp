// Scaled dot-product attention (spec/numerics.md, section Attention): fused, and written out where
// dropout or a mask's gradient needs the probabilities. Both give the same bits (NUM-42).
#include <cmath>
#include <limits>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

constexpr const char* kName = "scaled_dot_product_attention";

// ---- fused
// ------------------------------------------------------------------------------------------

// A binary32 tensor [batch, heads, rows, width] with unit stride along the width.
Tensor heads_of(const Tensor& x) {
  const Tensor wide = widened(kName, x);
  return wide.size(-1) == 1 || wide.stride(-1) == 1 ? wide : wide.contiguous();
}

Strides4 strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

float scale_of(const Tensor& q, std::optional<double> scale) {
  return static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(-1)))));
}

AttentionShape shape_of(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                        std::optional<double> scale) {
  return {q.size(0), q.size(1), k.size(1),          q.size(2), k.size(2),
          q.size(3), v.size(3), scale_of(q, scale), causal};
}

// An additive binary32 mask: where a boolean one is false, -inf.
Tensor additive(const Tensor& mask) {
  if (mask.scalar_type() != at::kBool) return widened(kName, mask);
  const Tensor zeros = at::zeros(mask.sizes(), mask.options().dtype(at::kFloat));
  return zeros.masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
}

struct Mask {
  Tensor storage;
  AttentionMask view{nullptr, 0, 0, 0, 0};
};

Mask mask_of(const std::optional<Tensor>& mask, const AttentionShape& shape) {
  Mask result;
  if (!mask || !mask->defined()) return result;
  result.storage = additive(*mask).expand({shape.batch, shape.heads, shape.queries, shape.keys});
  const Tensor& m = result.storage;
  result.view = {const_floats(m), m.stride(0), m.stride(1), m.stride(2), m.stride(3)};
  return result;
}

// [batch, heads, rows, width], the rows of all heads of one query side by side in memory: what the
// next projection reads.
Tensor new_heads(const AttentionShape& shape, int64_t heads, int64_t rows, int64_t width) {
  return new_floats({shape.batch, rows, heads, width}).transpose(1, 2);
}

void require_no_dropout(double dropout) {
  if (dropout != 0.0) refuse(kName, "has no fused form with dropout");
}

std::tuple<Tensor, Tensor> fused(const Tensor& query, const Tensor& key, const Tensor& value,
                                 double dropout, bool causal, const std::optional<Tensor>& mask_in,
                                 std::optional<double> scale) {
  require_no_dropout(dropout);
  const Tensor q = heads_of(query), k = heads_of(key), v = heads_of(value);
  const AttentionShape shape = shape_of(q, k, v, causal, scale);
  const Mask mask = mask_of(mask_in, shape);
  const Tensor out = new_heads(shape, shape.heads, shape.queries, shape.value_width);
  kernels().attention.forward(shape, const_floats(q), strides_of(q), const_floats(k), strides_of(k),
                              const_floats(v), strides_of(v), mask.view, floats(out),
                              strides_of(out), pool());
  // The gradient computes the probabilities again; it needs no logsumexp.
  return {narrowed(out, query.scalar_type()), new_floats({0})};
}

std::tuple<Tensor, Tensor, Tensor> fused_backward(const Tensor& grad, const Tensor& query,
                                                  const Tensor& key, const Tensor& value,
                                                  const Tensor&, const Tensor&, double dropout,
                                                  bool causal, const std::optional<Tensor>& mask_in,
                                                  std::optional<double> scale) {
  require_no_dropout(dropout);
  const Tensor q = heads_of(query), k = heads_of(key), v = heads_of(value);
  const Tensor grad_out = heads_of(grad);
  const AttentionShape shape = shape_of(q, k, v, causal, scale);
  const Mask mask = mask_of(mask_in, shape);
  const Tensor dq = new_heads(shape, shape.heads, shape.queries, shape.width);
  const Tensor dk = new_heads(shape, shape.key_heads, shape.keys, shape.width);
  const Tensor dv = new_heads(shape, shape.key_heads, shape.keys, shape.value_width);
  kernels().attention.backward(
      shape, const_floats(q), strides_of(q), const_floats(k), strides_of(k), const_floats(v),
      strides_of(v), mask.view, const_floats(grad_out), strides_of(grad_out), floats(dq),
      strides_of(dq), floats(dk), strides_of(dk), floats(dv), strides_of(dv), pool());
  return {narrowed(dq, query.scalar_type()), narrowed(dk, key.scalar_type()),
          narrowed(dv, value.scalar_type())};
}

// ---- written out
// --------------------------------------------------------------------------------------

// Each key and value head once for every query head that reads it.
Tensor repeated(const Tensor& x, const Tensor& q) {
  const int64_t group = q.size(-3) / x.size(-3);
  return group == 1 ? x : x.repeat_interleave(group, -3);
}

Tensor probabilities(const Tensor& q, const Tensor& k, const std::optional<Tensor>& mask,
                     bool causal, std::optional<double> scale) {
  Tensor scores = at::matmul(q, k.transpose(-2, -1)) * scale_of(q, scale);
  const bool masked = mask && mask->defined();
  if (masked) scores = scores + additive(*mask);
  if (causal) {
    const Tensor visible = at::ones({q.size(-2), k.size(-2)}, q.options().dtype(at::kBool)).tril();
    scores = scores.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
  }
  return masked ? at::_safe_softmax(scores, -1) : at::softmax(scores, -1);
}

// `op` on binary32 copies of the operands; autograd sees the conversions.
std::tuple<Tensor, Tensor> written_out(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const std::optional<Tensor>& mask, double dropout,
                                       bool causal, const std::optional<Tensor>& dropout_mask,
                                       std::optional<double> scale, bool grouped) {
  require_storage(kName, query);
  TORCH_CHECK(!causal || !mask || !mask->defined(), "kolm portable-1: aten::", kName,
              " takes a mask or is_causal, not both");
  const Tensor q = query.to(at::kFloat);
  Tensor k = key.to(at::kFloat), v = value.to(at::kFloat);
  if (grouped) {
    k = repeated(k, q);
    v = repeated(v, q);
  }
  Tensor p = probabilities(q, k, mask, causal, scale);
  if (dropout_mask && dropout_mask->defined()) {
    p = p.masked_fill(dropout_mask->logical_not(), 0.0) * (1.0 / (1.0 - dropout));
  } else if (dropout > 0.0) {
    p = at::dropout(p, dropout, true);
  }
  return {at::matmul(p, v).to(query.scalar_type()), p.to(query.scalar_type())};
}

// ---- the choice
// ---------------------------------------------------------------------------------------

bool has_gradient(const std::optional<Tensor>& mask) {
  return mask && mask->defined() && mask->requires_grad() && at::GradMode::is_enabled();
}

bool is_fusable(const Tensor& q, const Tensor& k, const Tensor& v,
                const std::optional<Tensor>& mask, double dropout, bool grouped) {
  const bool same_batch = q.size(0) == k.size(0) && k.size(0) == v.size(0);
  const bool heads_fit = grouped ? k.size(1) == v.size(1) && q.size(1) % k.size(1) == 0
                                 : q.size(1) == k.size(1) && k.size(1) == v.size(1);
  const bool same_type = q.scalar_type() == k.scalar_type() && k.scalar_type() == v.scalar_type();
  return dropout == 0.0 && same_batch && heads_fit && same_type && !has_gradient(mask) &&
         k.size(2) > 0 && q.numel() > 0 && v.numel() > 0;
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const std::optional<Tensor>& mask, double dropout, bool causal,
                 std::optional<double> scale, bool grouped) {
  require_storage(kName, q);
  TORCH_CHECK(!causal || !mask || !mask->defined(), "kolm portable-1: aten::", kName,
              " takes a mask or is_causal, not both");
  if (q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && is_fusable(q, k, v, mask, dropout, grouped)) {
    return std::get<0>(
        at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, mask, scale));
  }
  return std::get<0>(written_out(q, k, v, mask, dropout, causal, std::nullopt, scale, grouped));
}

}  // namespace

void register_attention(Registrar& registrar) {
  registrar.add("_scaled_dot_product_flash_attention_for_cpu", &fused);
  registrar.add("_scaled_dot_product_flash_attention_for_cpu_backward", &fused_backward);
}

void register_composites(Registrar& registrar) {
  registrar.add("scaled_dot_product_attention", &attention);
  registrar.add("_scaled_dot_product_attention_math", &written_out);
}

}  // namespace kolm::binding
