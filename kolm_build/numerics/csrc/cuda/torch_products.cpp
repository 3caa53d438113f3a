// Matrix products and attention (spec/numerics.md).
#include <torch/csrc/autograd/custom_function.h>

#include "binding.h"

#if !defined(KOLM_EMULATED)
#include <cuda_runtime_api.h>
#endif

namespace kolm::cuda::binding {
namespace {

int forced_variant = any_variant;

#if defined(KOLM_EMULATED)
// So little memory that the tests reach a product in several passes.
constexpr int64_t workspace_floats = int64_t{1} << 14;
Device device_facts() { return {132, 227 * 1024, workspace_floats}; }
#else
constexpr int64_t workspace_floats = int64_t{1} << 27;  // 512 MiB
Device device_facts() {
  static const Device facts = [] {
    int device = 0, multiprocessors = 0, shared = 0;
    cudaGetDevice(&device);
    const auto a = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const auto b = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    TORCH_CHECK(a == cudaSuccess && b == cudaSuccess, "kolm portable-1: the device's facts");
    return Device{multiprocessors, shared, workspace_floats};
  }();
  return facts;
}
#endif

Side side_of(const Tensor& x, int64_t group) {
  return {x.const_data_ptr(), x.stride(2), x.stride(3), x.stride(0), x.stride(1), group};
}

Storage storage_of(const Tensor& x) {
  if (x.scalar_type() == at::kFloat) return Storage::f32;
  return x.scalar_type() == at::kBFloat16 ? Storage::bf16 : Storage::f16;
}

Tensor as_batches(const Tensor& x) {
  return x.dim() == 2 ? x.unsqueeze(0).unsqueeze(0) : x.unsqueeze(0);
}

void check_product(const char* op, const Tensor& a, const Tensor& b, int64_t dim) {
  require_storage(op, a);
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "kolm portable-1: aten::", op,
              " expects operands of one dtype, got ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(a.dim() == dim && b.dim() == dim && a.size(-1) == b.size(-2) &&
                  (dim == 2 || a.size(0) == b.size(0)),
              "kolm portable-1: aten::", op, " cannot multiply shapes ", a.sizes(), " and ",
              b.sizes());
}

Tensor product(const char* op, const Tensor& a, const Tensor& b) {
  check_product(op, a, b, a.dim());
  std::vector<int64_t> sizes = a.sizes().vec();
  sizes.back() = b.size(-1);
  const Tensor c = new_floats(a, sizes);
  multiply(as_batches(a), as_batches(b), 1, as_batches(c));
  return c;
}

// t = alpha * t, then t + beta * c (NUM-12).
void add_scaled(const char* op, const Tensor& t, const Tensor& c, const Scalar& beta,
                const Scalar& alpha) {
  const float scale = beta.to<float>();
  const bool added = scale != 0.0f;
  if (!added && alpha.to<float>() == 1.0f) return;
  const Tensor addend = added ? widened(op, c).expand(t.sizes()) : t;
  const bool batched = t.dim() == 3;
  add_matrix(batched ? t.size(0) : 1, t.size(-2), t.size(-1), write(t), alpha.to<float>(),
             added ? read(addend) : nullptr, batched ? addend.stride(0) : 0, addend.stride(-2),
             addend.stride(-1), scale, stream_of(t));
}

Tensor mm(const Tensor& a, const Tensor& b) {
  return narrowed(product("mm", a, b), a.scalar_type());
}
Tensor bmm(const Tensor& a, const Tensor& b) {
  return narrowed(product("bmm", a, b), a.scalar_type());
}
Tensor addmm(const Tensor& c, const Tensor& a, const Tensor& b, const Scalar& beta,
             const Scalar& alpha) {
  const Tensor t = product("addmm", a, b);
  add_scaled("addmm", t, c, beta, alpha);
  return narrowed(t, a.scalar_type());
}
Tensor baddbmm(const Tensor& c, const Tensor& a, const Tensor& b, const Scalar& beta,
               const Scalar& alpha) {
  const Tensor t = product("baddbmm", a, b);
  add_scaled("baddbmm", t, c, beta, alpha);
  return narrowed(t, a.scalar_type());
}
Tensor addmv(const Tensor& c, const Tensor& a, const Tensor& v, const Scalar& beta,
             const Scalar& alpha) {
  const Tensor t = product("addmv", a, v.unsqueeze(1));
  add_scaled("addmv", t, c.expand({a.size(0)}).unsqueeze(1), beta, alpha);
  return narrowed(t.view({a.size(0)}), a.scalar_type());
}
Tensor dot(const Tensor& a, const Tensor& b) {
  return narrowed(product("dot", a.unsqueeze(0), b.unsqueeze(1)).view(IntArrayRef()),
                  a.scalar_type());
}

// ---- Attention: NUM-40 and NUM-41, written out.

struct Problem {
  int64_t batch, heads, key_heads, queries, keys;
  float scale;
  bool causal;
  int64_t group() const { return heads / key_heads; }
};

Problem problem_of(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                   std::optional<double> scale) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && q.size(-1) == k.size(-1) &&
                  k.size(-2) == v.size(-2) && k.size(1) == v.size(1) &&
                  q.size(1) % k.size(1) == 0 && q.size(0) == k.size(0) && q.size(0) == v.size(0),
              "kolm portable-1: attention of shapes ", q.sizes(), ", ", k.sizes(), ", ", v.sizes());
  const double scaling = scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(-1))));
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), static_cast<float>(scaling),
          causal};
}

Tensor additive(const std::optional<Tensor>& mask) {
  if (!mask || !mask->defined()) return {};
  if (mask->scalar_type() != at::kBool) return widened("scaled_dot_product_attention", *mask);
  const Tensor hidden =
      at::full({}, -std::numeric_limits<float>::infinity(), mask->options().dtype(at::kFloat));
  return at::where(*mask, at::zeros({}, hidden.options()), hidden);
}

Mask mask_of(const Tensor& added, const Problem& problem) {
  if (!added.defined()) return {};
  const Tensor whole = added.expand({problem.batch, problem.heads, problem.queries, problem.keys});
  return {read(added), whole.stride(0), whole.stride(1), whole.stride(2), whole.stride(3)};
}

// The probabilities [batch, heads, queries, keys].
Tensor probabilities_of(const Problem& problem, const Tensor& q, const Tensor& k,
                        const Tensor& added) {
  const Tensor p = new_floats(q, {problem.batch, problem.heads, problem.queries, problem.keys});
  multiply(q, k.transpose(2, 3), problem.group(), p);
  probabilities(problem.batch * problem.heads * problem.queries, problem.keys, write(p),
                problem.scale, mask_of(added, problem), problem.queries, problem.heads,
                problem.causal, added.defined(), stream_of(q));
  return p;
}

Tensor weighted_values(const Problem& problem, const Tensor& p, const Tensor& v) {
  const Tensor out =
      new_floats(p, {problem.batch, problem.queries, problem.heads, v.size(-1)}).transpose(1, 2);
  multiply(p, v, problem.group(), out);
  return out;
}

// Sums the gradients of heads that share keys.
Tensor over_groups(const Problem& problem, const Tensor& x) {
  if (problem.group() == 1) return x;
  const Tensor grouped =
      x.view({problem.batch, problem.key_heads, problem.group(), problem.keys, x.size(-1)});
  return reduce("sum", Term::value, grouped, IntArrayRef{2}, false);
}

// A mask of 0 and 1 / (1 - dropout), or nothing.
Tensor noise_of(const Tensor& p, double dropout) {
  if (dropout == 0.0) return {};
  return at::empty_like(p).bernoulli_(1.0 - dropout).div_(1.0 - dropout);
}

struct Forward {
  Tensor out, p, noise;
};

Forward forward(const Problem& problem, const Tensor& q, const Tensor& k, const Tensor& v,
                const Tensor& added, double dropout) {
  const Tensor p = probabilities_of(problem, q, k, added);
  const Tensor noise = noise_of(p, dropout);
  return {weighted_values(problem, noise.defined() ? p * noise : p, v), p, noise};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& query,
                        const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
                        double dropout, bool causal, std::optional<double> scale) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const char* op = "scaled_dot_product_attention";
    const Tensor q = widened(op, query), k = widened(op, key), v = widened(op, value);
    const Problem problem = problem_of(q, k, v, causal, scale);
    const Forward made = binding::forward(problem, q, k, v, additive(mask), dropout);
    context->save_for_backward({q, k, v, made.p, made.noise});
    context->saved_data["causal"] = causal;
    context->saved_data["scale"] = static_cast<double>(problem.scale);
    return narrowed(made.out, query.scalar_type());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &p = saved[3], &noise = saved[4];
    const ScalarType type = gradients[0].scalar_type();
    const Tensor out = widened("scaled_dot_product_attention", gradients[0]);
    const Problem problem = problem_of(q, k, v, context->saved_data["causal"].toBool(),
                                       context->saved_data["scale"].toDouble());
    const Tensor dropped = noise.defined() ? p * noise : p;
    const Tensor dv = new_floats(q, {problem.batch, problem.heads, problem.keys, v.size(-1)});
    multiply(dropped.transpose(2, 3), out, 1, dv);
    Tensor ds = at::empty_like(p);
    multiply(out, v.transpose(2, 3), problem.group(), ds);
    if (noise.defined()) ds = ds * noise;
    softmax_grad(problem.batch * problem.heads * problem.queries, problem.keys, read(ds), read(p),
                 write(ds), true, problem.scale, stream_of(q));
    const Tensor dq =
        new_floats(q, {problem.batch, problem.queries, problem.heads, q.size(-1)}).transpose(1, 2);
    multiply(ds, k, problem.group(), dq);
    const Tensor dk = new_floats(q, {problem.batch, problem.heads, problem.keys, q.size(-1)});
    multiply(ds.transpose(2, 3), q, 1, dk);
    return {narrowed(dq, type),
            narrowed(over_groups(problem, dk), type),
            narrowed(over_groups(problem, dv), type),
            {},
            {},
            {},
            {}};
  }
};

// Three dimensions are one head.
template <class Function>
Tensor with_heads(const Tensor& query, const Tensor& key, const Tensor& value,
                  const std::optional<Tensor>& mask, Function&& function) {
  if (query.dim() == 4) return function(query, key, value, mask);
  TORCH_CHECK(query.dim() == 3, "kolm portable-1: attention of ", query.dim(), " dimensions");
  const std::optional<Tensor> wider =
      mask && mask->dim() == 3 ? std::optional<Tensor>(mask->unsqueeze(1)) : mask;
  return function(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), wider).squeeze(1);
}

void check_mask(const std::optional<Tensor>& mask, bool causal) {
  TORCH_CHECK(!(causal && mask && mask->defined()),
              "kolm portable-1: attention with a mask and is_causal");
  TORCH_CHECK(!mask || !mask->defined() || !mask->requires_grad(),
              "kolm portable-1: attention has no gradient for its mask");
}

}  // namespace

void force_variant(int64_t variant) { forced_variant = static_cast<int>(variant); }

void multiply(const Tensor& a, const Tensor& b, int64_t group, const Tensor& c) {
  Product p = {};
  p.m = a.size(2), p.n = b.size(3), p.k = a.size(3);
  p.outers = a.size(0), p.inners = a.size(1);
  p.a = side_of(a, 1);
  p.b = side_of(b, group);
  p.storage = storage_of(a);
  p.c = write(c);
  p.c_outer = c.stride(0), p.c_inner = c.stride(1), p.c_row = c.stride(2), p.c_column = c.stride(3);
  if (p.m == 0 || p.n == 0 || p.outers * p.inners == 0) return;
  TORCH_CHECK(p.outers * p.inners <= 65535, "kolm portable-1: a batch of more than 65535 products");
  const GemmPlan plan = plan_gemm(p, device_facts(), forced_variant);
  const Tensor space = workspace(c, plan.workspace_floats);
  gemm(p, plan, write(space), stream_of(c));
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const std::optional<Tensor>& mask, double dropout, bool causal,
                 std::optional<double> scale, bool) {
  check_mask(mask, causal);
  return with_heads(
      query, key, value, mask,
      [&](const Tensor& q0, const Tensor& k0, const Tensor& v0, const std::optional<Tensor>& m) {
        const char* op = "scaled_dot_product_attention";
        const Tensor q = widened(op, q0), k = widened(op, k0), v = widened(op, v0);
        const Problem problem = problem_of(q, k, v, causal, scale);
        return narrowed(forward(problem, q, k, v, additive(m), dropout).out, query.scalar_type());
      });
}

Tensor attention_with_gradient(const Tensor& query, const Tensor& key, const Tensor& value,
                               const std::optional<Tensor>& mask, double dropout, bool causal,
                               std::optional<double> scale, bool) {
  check_mask(mask, causal);
  return with_heads(
      query, key, value, mask,
      [&](const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& m) {
        return Attention::apply(q, k, v, m, dropout, causal, scale);
      });
}

void register_products(Registrar& registrar) {
  registrar.add("mm", &mm);
  registrar.add_out<mm>("mm.out");
  registrar.add("bmm", &bmm);
  registrar.add_out<bmm>("bmm.out");
  registrar.add_forms<addmm>("addmm");
  registrar.add_forms<addmv>("addmv");
  registrar.add_forms<baddbmm>("baddbmm");
  registrar.add("dot", &dot);
  registrar.add("vdot", &dot);
  registrar.add("scaled_dot_product_attention", &attention);
}

}  // namespace kolm::cuda::binding
