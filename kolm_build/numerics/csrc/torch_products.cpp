// Matrix products (spec/numerics.md, section Matrix products).
#include "torch_binding.h"
#include "torch_packing.h"

namespace kolm::binding {

namespace {

Operand operand(const Tensor& x, int64_t first_dim) {
  return {x.const_data_ptr(), element_of(x.scalar_type()), x.stride(first_dim),
          x.stride(first_dim + 1)};
}

// The product of a [m, k] and b [k, n], in binary32, into `c` of leading dimension n.
void multiply(const Tensor& a, const Tensor& b, float* c) {
  const int64_t m = a.size(0), n = b.size(1), k = a.size(1);
  if (m == 0 || n == 0) return;
  if (const float* packed = packed_weight(b)) {
    kernels().gemm.gemm_packed(m, n, k, operand(a, 0), packed, c, n, pool());
  } else {
    kernels().gemm.gemm(m, n, k, operand(a, 0), operand(b, 0), c, n, pool());
  }
}

void check_product(const char* op, const Tensor& a, const Tensor& b, int64_t dim) {
  require_storage(op, a);
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "kolm portable-1: aten::", op,
              " expects operands of one dtype, got ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK(a.dim() == dim && b.dim() == dim && a.size(-1) == b.size(-2),
              "kolm portable-1: aten::", op, " cannot multiply shapes ", a.sizes(), " and ",
              b.sizes());
}

// t = alpha * t, then t + beta * c, each rounded (NUM-12). `t` is contiguous.
void add_scaled(const Tensor& t, const Tensor& c, float beta, float alpha) {
  float* out = floats(t);
  if (alpha != 1.0f) {
    for_ranges(t.numel(), 32768, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out[i] = alpha * out[i];
    });
  }
  if (beta == 0.0f) return;
  const Tensor addend = c.expand(t.sizes());
  const int64_t columns = t.size(-1), rows = columns ? t.numel() / columns : 0;
  const Tensor rows_of = addend.dim() == 2 ? addend : addend.reshape({rows, columns});
  const float* in = const_floats(rows_of);
  const int64_t row_stride = rows_of.stride(0), column_stride = rows_of.stride(1);
  for_ranges(rows, 32768 / std::max<int64_t>(columns, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* y = out + i * columns;
      const float* x = in + i * row_stride;
      if (beta == 1.0f && column_stride == 1) {
        for (int64_t j = 0; j < columns; ++j) y[j] = y[j] + x[j];
      } else {
        // 1 * x is x, so one loop serves every other beta.
        for (int64_t j = 0; j < columns; ++j) y[j] = y[j] + beta * x[j * column_stride];
      }
    }
  });
}

Tensor product(const Tensor& a, const Tensor& b) {
  Tensor c = new_floats({a.size(0), b.size(1)});
  multiply(a, b, floats(c));
  return c;
}

Tensor mm(const Tensor& a, const Tensor& b) {
  if (at::isIntegralType(a.scalar_type(), true)) return at::cpu::mm(a, b);
  check_product("mm", a, b, 2);
  return narrowed(product(a, b), a.scalar_type());
}

Tensor addmm_wide(const char* op, const Tensor& c, const Tensor& a, const Tensor& b,
                  const Scalar& beta, const Scalar& alpha) {
  check_product(op, a, b, 2);
  const Tensor t = product(a, b);
  add_scaled(t, widened(op, c), beta.to<float>(), alpha.to<float>());
  return t;
}

Tensor addmm(const Tensor& c, const Tensor& a, const Tensor& b, const Scalar& beta,
             const Scalar& alpha) {
  return narrowed(addmm_wide("addmm", c, a, b, beta, alpha), a.scalar_type());
}

Tensor addmm_activation(const Tensor& c, const Tensor& a, const Tensor& b, const Scalar& beta,
                        const Scalar& alpha, bool use_gelu) {
  Tensor t = addmm_wide("_addmm_activation", c, a, b, beta, alpha);
  return narrowed(use_gelu ? at::gelu_(t) : at::relu_(t), a.scalar_type());
}

Tensor addmv(const Tensor& c, const Tensor& a, const Tensor& v, const Scalar& beta,
             const Scalar& alpha) {
  const Tensor column = v.unsqueeze(1);
  check_product("addmv", a, column, 2);
  const Tensor t = product(a, column);
  const Tensor addend = widened("addmv", c).expand({a.size(0)}).unsqueeze(1);
  add_scaled(t, addend, beta.to<float>(), alpha.to<float>());
  return narrowed(t.view({a.size(0)}), a.scalar_type());
}

Tensor dot(const Tensor& a, const Tensor& b) {
  if (at::isIntegralType(a.scalar_type(), true)) return at::native::dot(a, b);
  TORCH_CHECK(a.dim() == 1 && b.dim() == 1, "kolm portable-1: aten::dot expects two vectors, got ",
              a.sizes(), " and ", b.sizes());
  const Tensor row = a.unsqueeze(0), column = b.unsqueeze(1);
  check_product("dot", row, column, 2);
  return narrowed(product(row, column).view(IntArrayRef{}), a.scalar_type());
}

Tensor batched_product(const Tensor& a, const Tensor& b) {
  const int64_t batch = a.size(0), m = a.size(1), n = b.size(2), k = a.size(2);
  Tensor c = new_floats({batch, m, n});
  if (c.numel() == 0) return c;
  const auto matrix = [&](int64_t index, const Parallel& threads) {
    const auto at_index = [&](const Tensor& x) {
      Operand result = operand(x, 1);
      result.data = static_cast<const char*>(result.data) + index * x.stride(0) * x.itemsize();
      return result;
    };
    kernels().gemm.gemm(m, n, k, at_index(a), at_index(b), floats(c) + index * m * n, n, threads);
  };
  const Parallel threads = pool();
  if (batch >= threads.threads) {
    parallel_for(threads, batch, [&](int64_t index) { matrix(index, serial()); });
  } else {
    for (int64_t index = 0; index < batch; ++index) matrix(index, threads);
  }
  return c;
}

void check_batched(const char* op, const Tensor& a, const Tensor& b) {
  check_product(op, a, b, 3);
  TORCH_CHECK(a.size(0) == b.size(0), "kolm portable-1: aten::", op, " expects equal batches, got ",
              a.sizes(), " and ", b.sizes());
}

Tensor bmm(const Tensor& a, const Tensor& b) {
  if (at::isIntegralType(a.scalar_type(), true)) return at::cpu::bmm(a, b);
  check_batched("bmm", a, b);
  return narrowed(batched_product(a, b), a.scalar_type());
}

Tensor baddbmm(const Tensor& c, const Tensor& a, const Tensor& b, const Scalar& beta,
               const Scalar& alpha) {
  check_batched("baddbmm", a, b);
  const Tensor t = batched_product(a, b);
  add_scaled(t, widened("baddbmm", c), beta.to<float>(), alpha.to<float>());
  return narrowed(t, a.scalar_type());
}

}  // namespace

void register_products(Registrar& registrar) {
  registrar.add("mm", &mm);
  registrar.add_out<mm>("mm.out");
  registrar.add("bmm", &bmm);
  registrar.add_out<bmm>("bmm.out");
  registrar.add_forms<addmm>("addmm");
  registrar.add_forms<addmv>("addmv");
  registrar.add_forms<baddbmm>("baddbmm");
  registrar.add("_addmm_activation", &addmm_activation);
  registrar.add_out<addmm_activation>("_addmm_activation.out");
  registrar.add("dot", &dot);
  registrar.add("vdot", &dot);
}

}  // namespace kolm::binding
