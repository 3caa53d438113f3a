// Gradients of look-ups: sums in ascending order of the source (spec/numerics.md, NUM-37).
#include <ATen/ExpandUtils.h>
#include <ATen/TensorIndexing.h>
#include <ATen/WrapDimUtils.h>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

// ---- rows added to rows
// ---------------------------------------------------------------------------

// out[index[i]] += rows[i] for ascending i. Threads share the columns, so each element is added to
// by one thread, in order.
void add_rows(float* out, int64_t columns, const int64_t* index, int64_t count, const float* rows,
              int64_t skipped) {
  for_ranges(columns, std::max<int64_t>(16, 16384 / std::max<int64_t>(count, 1)),
             [&](int64_t begin, int64_t end) {
               for (int64_t i = 0; i < count; ++i) {
                 if (index[i] == skipped) continue;
                 float* to = out + index[i] * columns;
                 const float* from = rows + i * columns;
                 for (int64_t j = begin; j < end; ++j) to[j] = to[j] + from[j];
               }
             });
}

void check_range(const char* op, const int64_t* index, int64_t count, int64_t size) {
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < size, "kolm portable-1: aten::", op,
                      " has index ", index[i], " in a dimension of size ", size);
  }
}

Tensor embedding_dense_backward(const Tensor& grad, const Tensor& indices, int64_t num_weights,
                                int64_t padding_idx, bool scale_grad_by_freq) {
  const char* op = "embedding_dense_backward";
  if (scale_grad_by_freq) refuse(op, "is not certified for scale_grad_by_freq");
  const Tensor index = indices.to(at::kLong).contiguous();
  const int64_t count = index.numel(), columns = grad.size(-1);
  const Tensor rows = widened(op, grad).contiguous();
  const Tensor out = new_zeros({num_weights, columns});
  const int64_t* numbers = index.const_data_ptr<int64_t>();
  check_range(op, numbers, count, num_weights);
  add_rows(floats(out), columns, numbers, count, const_floats(rows), padding_idx);
  return narrowed(out, grad.scalar_type());
}

// `x` with `dim` first, and the tensor of its other elements behind it.
Tensor with_dim_first(const Tensor& x, int64_t dim) {
  return (x.dim() == 0 ? x.view({1}) : x.movedim(dim, 0)).contiguous();
}

Tensor index_add(const Tensor& self, int64_t dim_in, const Tensor& index_in, const Tensor& source,
                 const Scalar& alpha) {
  const char* op = "index_add";
  if (!is_storage(self.scalar_type())) {
    if (at::isIntegralType(self.scalar_type(), true)) {
      return at::cpu::index_add(self, dim_in, index_in, source, alpha);
    }
    require_storage(op, self);
  }
  const int64_t dim = self.dim() ? at::maybe_wrap_dim(dim_in, self.dim()) : 0;
  Tensor rows = with_dim_first(widened(op, source), dim);
  if (!alpha.equal(1)) rows = rows * alpha;
  Tensor out = with_dim_first(widened(op, self), dim).clone();
  const Tensor index = index_in.to(at::kLong).contiguous();
  const int64_t count = index.numel();
  TORCH_CHECK(rows.size(0) == count, "kolm portable-1: aten::index_add has ", count,
              " indices for a source of shape ", source.sizes());
  const int64_t columns = count ? rows.numel() / count : 0;
  TORCH_CHECK(count == 0 || out.numel() == columns * out.size(0),
              "kolm portable-1: aten::index_add cannot add shape ", source.sizes(), " to ",
              self.sizes());
  check_range(op, index.const_data_ptr<int64_t>(), count, out.size(0));
  add_rows(floats(out), columns, index.const_data_ptr<int64_t>(), count, const_floats(rows), -1);
  if (self.dim() > 0) out = out.movedim(0, dim);
  return narrowed(out.reshape(self.sizes()), self.scalar_type());
}

// ---- elements added to elements
// ---------------------------------------------------------------------

// Where element i of a row-major walk over `sizes` lies in a contiguous tensor of `strides`, its
// coordinate along `dim` replaced by `index[i]`.
class ScatterWalk {
 public:
  ScatterWalk(IntArrayRef sizes, IntArrayRef strides, int64_t dim)
      : sizes_(sizes.vec()), strides_(strides.vec()), dim_(dim), at_(sizes.size(), 0) {}

  int64_t offset(int64_t index) const { return base_ + index * strides_[dim_]; }

  void next() {
    for (int64_t d = static_cast<int64_t>(sizes_.size()) - 1; d >= 0; --d) {
      if (d != dim_) base_ += strides_[d];
      if (++at_[d] < sizes_[d]) return;
      if (d != dim_) base_ -= strides_[d] * sizes_[d];
      at_[d] = 0;
    }
  }

 private:
  std::vector<int64_t> sizes_, strides_;
  int64_t dim_;
  std::vector<int64_t> at_;
  int64_t base_ = 0;
};

// `out` is contiguous binary32; source elements are taken in row-major order.
void scatter_add_into(const char* op, const Tensor& out, int64_t dim, const Tensor& index,
                      const Tensor& source) {
  if (index.numel() == 0) return;
  if (out.dim() == 0) {
    floats(out)[0] = floats(out)[0] + source.reshape({-1})[0].item<float>();
    return;
  }
  const Tensor numbers = index.contiguous();
  Tensor used = source;
  for (int64_t d = 0; d < index.dim(); ++d) used = used.narrow(d, 0, index.size(d));
  used = used.contiguous();
  const int64_t* at = numbers.const_data_ptr<int64_t>();
  check_range(op, at, numbers.numel(), out.size(dim));
  const float* from = const_floats(used);
  float* to = floats(out);
  ScatterWalk walk(index.sizes(), out.strides(), dim);
  for (int64_t i = 0; i < numbers.numel(); ++i, walk.next()) {
    float& element = to[walk.offset(at[i])];
    element = element + from[i];
  }
}

Tensor scatter_sum(const char* op, const Tensor& self, int64_t dim_in, const Tensor& index,
                   const Tensor& source) {
  const int64_t dim = self.dim() ? at::maybe_wrap_dim(dim_in, self.dim()) : 0;
  const Tensor out = widened(op, self).clone(at::MemoryFormat::Contiguous);
  scatter_add_into(op, out, dim, index.to(at::kLong), widened(op, source));
  return narrowed(out, self.scalar_type());
}

Tensor scatter_add(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source) {
  if (at::isIntegralType(self.scalar_type(), true)) {
    return at::cpu::scatter_add(self, dim, index, source);
  }
  return scatter_sum("scatter_add", self, dim, index, source);
}

Tensor scatter_reduce(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source,
                      std::string_view reduce, bool include_self) {
  if (at::isIntegralType(self.scalar_type(), true)) {
    return at::cpu::scatter_reduce(self, dim, index, source, reduce, include_self);
  }
  if (reduce != "sum") {
    refuse("scatter_reduce", c10::str("is certified for sum, got ", reduce));
  }
  const Tensor start = include_self ? self : self.scatter(dim, index, 0);
  return scatter_sum("scatter_reduce", start, dim, index, source);
}

// ---- index_put
// --------------------------------------------------------------------------------------

// The row-major number of each element that the indices select, shaped like the selection.
Tensor selected_elements(const Tensor& self, const c10::List<std::optional<Tensor>>& indices) {
  const Tensor numbers = at::arange(self.numel(), at::kLong).view(self.sizes());
  return numbers.index(indices);
}

Tensor& index_put(Tensor& self, const c10::List<std::optional<Tensor>>& indices,
                  const Tensor& values, bool accumulate, bool unsafe) {
  if (!accumulate || at::isIntegralType(self.scalar_type(), true)) {
    return at::native::_index_put_impl_(self, indices, values, accumulate, unsafe);
  }
  const char* op = "_index_put_impl_";
  const Tensor selection = selected_elements(self, indices);
  const Tensor source = widened(op, values).expand(selection.sizes()).contiguous();
  const Tensor out = widened(op, self).clone(at::MemoryFormat::Contiguous);
  const Tensor numbers = selection.contiguous();
  const int64_t* at = numbers.const_data_ptr<int64_t>();
  const float* from = const_floats(source);
  float* to = floats(out);
  for (int64_t i = 0; i < numbers.numel(); ++i) to[at[i]] = to[at[i]] + from[i];
  return self.copy_(narrowed(out, self.scalar_type()));
}

}  // namespace

void register_indexing(Registrar& registrar) {
  registrar.add("embedding_dense_backward", &embedding_dense_backward);
  registrar.add_forms<index_add>("index_add");
  registrar.add_forms<scatter_add>("scatter_add");
  registrar.add_functional<scatter_reduce>("scatter_reduce.two");
  registrar.add_in_place<scatter_reduce>("scatter_reduce_.two");
  registrar.add_out<scatter_reduce>("scatter_reduce.two_out");
  registrar.add("_index_put_impl_", &index_put);
}

}  // namespace kolm::binding
