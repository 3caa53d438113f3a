// Sums over dimensions and what is made of them (spec/numerics.md, section Sums).
#include <ATen/WrapDimUtilsMulti.h>

#include <cmath>
#include <limits>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

constexpr int64_t kSumBlock = 4096;  // NUM-20
constexpr int64_t kGrain = 16384;    // elements a thread should have before it is worth waking

// ---- Which elements belong to which sum ------------------------------------------------------

// A list of dimensions as few as the strides allow, outermost first.
struct Dims {
  std::vector<int64_t> sizes, strides;

  void append(int64_t size, int64_t stride) {
    if (size == 1) return;
    if (!sizes.empty() && strides.back() == stride * size) {
      sizes.back() *= size;
      strides.back() = stride;
    } else {
      sizes.push_back(size);
      strides.push_back(stride);
    }
  }
  int64_t count() const {
    int64_t n = 1;
    for (int64_t size : sizes) n *= size;
    return n;
  }
  // Where the element of row-major `index` lies.
  int64_t offset(int64_t index) const {
    int64_t result = 0;
    for (size_t d = sizes.size(); d-- > 0;) {
      result += index % sizes[d] * strides[d];
      index /= sizes[d];
    }
    return result;
  }
};

struct Reduction {
  std::vector<int64_t> kept, reduced;  // dimensions, ascending
  std::vector<int64_t> out_sizes;
  int64_t rows = 1, length = 1;  // how many results, of how many elements each
};

Reduction reduction_of(const Tensor& x, OptionalIntArrayRef dims, bool keepdim) {
  Reduction result;
  const bool all = !dims.has_value() || dims->empty();
  const auto mask = at::dim_list_to_bitset(all ? IntArrayRef{} : *dims, x.dim());
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (all || mask[d]) {
      result.reduced.push_back(d);
      result.length *= x.size(d);
      if (keepdim) result.out_sizes.push_back(1);
    } else {
      result.kept.push_back(d);
      result.rows *= x.size(d);
      result.out_sizes.push_back(x.size(d));
    }
  }
  return result;
}

Dims dims_of(const Tensor& x, const std::vector<int64_t>& which) {
  Dims dims;
  for (int64_t d : which) dims.append(x.size(d), x.stride(d));
  return dims;
}

// ---- SUM --------------------------------------------------------------------------------------

// SUM of a long row, its blocks on all threads: blocks are independent (NUM-20).
float long_sum(Term term, int64_t n, const float* x, float p) {
  const auto sum = kernels().rows.sum;
  if (n <= 4 * kSumBlock) return sum(term, n, x, nullptr, p);
  std::vector<float> blocks((n + kSumBlock - 1) / kSumBlock);
  for_ranges(static_cast<int64_t>(blocks.size()), kGrain / kSumBlock,
             [&](int64_t begin, int64_t end) {
               for (int64_t b = begin; b < end; ++b) {
                 const int64_t first = b * kSumBlock;
                 blocks[b] = sum(term, std::min(kSumBlock, n - first), x + first, nullptr, p);
               }
             });
  return long_sum(Term::value, static_cast<int64_t>(blocks.size()), blocks.data(), 0.0f);
}

// `shift` has one number a row, for terms that need one.
void sum_rows(Term term, const Dims& kept, int64_t rows, int64_t length, const float* x,
              const float* shift, float* out) {
  if (rows == 1) {
    out[0] = long_sum(term, length, x, shift ? shift[0] : 0.0f);
    return;
  }
  const auto sum = kernels().rows.sum;
  for_ranges(rows, kGrain / std::max<int64_t>(length, 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      out[row] = sum(term, length, x + kept.offset(row), nullptr, shift ? shift[row] : 0.0f);
    }
  });
}

// Sums down the columns of matrices whose rows lie `ld` apart.
void sum_columns(const Dims& outer, int64_t columns, int64_t length, int64_t ld, const float* x,
                 float* out) {
  const auto sums = kernels().rows.column_sums;
  const int64_t width = 64;  // columns a task: whole cache lines
  const int64_t strips = (columns + width - 1) / width;
  for_ranges(outer.count() * strips, kGrain / std::max<int64_t>(length * width, 1),
             [&](int64_t begin, int64_t end) {
               for (int64_t task = begin; task < end;) {
                 // Neighbouring strips of one matrix are one call.
                 const int64_t matrix = task / strips, strip = task % strips;
                 const int64_t last = std::min(end, (matrix + 1) * strips);
                 const int64_t first_column = strip * width;
                 const int64_t end_column = std::min(columns, (strip + last - task) * width);
                 sums(length, end_column - first_column, x + outer.offset(matrix) + first_column,
                      ld, out + matrix * columns + first_column);
                 task = last;
               }
             });
}

// SUM of `term` over the reduced dimensions of the binary32 tensor `x`.
Tensor sum_terms(Term term, const Tensor& x, const Reduction& reduction,
                 const float* shift = nullptr) {
  Tensor out = new_floats(reduction.out_sizes);
  if (out.numel() == 0) return out;
  if (reduction.length == 0) return out.zero_();
  const Dims reduced = dims_of(x, reduction.reduced);
  const Dims kept = dims_of(x, reduction.kept);
  const bool one_run = reduced.sizes.size() <= 1;
  if (reduced.sizes.empty() || (one_run && reduced.strides[0] == 1)) {
    sum_rows(term, kept, reduction.rows, reduction.length, const_floats(x), shift, floats(out));
  } else if (one_run && term == Term::value && !kept.sizes.empty() && kept.strides.back() == 1) {
    Dims outer = kept;
    outer.sizes.pop_back();
    outer.strides.pop_back();
    sum_columns(outer, kept.sizes.back(), reduction.length, reduced.strides[0], const_floats(x),
                floats(out));
  } else {
    std::vector<int64_t> order = reduction.kept;
    order.insert(order.end(), reduction.reduced.begin(), reduction.reduced.end());
    const Tensor rows = x.permute(order).contiguous();
    Dims row_starts;
    row_starts.append(reduction.rows, reduction.length);
    sum_rows(term, row_starts, reduction.rows, reduction.length, const_floats(rows), shift,
             floats(out));
  }
  return out;
}

// ---- sum and mean -----------------------------------------------------------------------------

void divide(const Tensor& x, float divisor) {
  float* values = floats(x);
  for_ranges(x.numel(), 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) values[i] = values[i] / divisor;
  });
}

bool sums_exactly(const Tensor& x, std::optional<ScalarType> dtype) {
  return at::isIntegralType(x.scalar_type(), true) && (!dtype || at::isIntegralType(*dtype, true));
}

// What a reduction of `x` with `dtype` reads: `x` itself, or `x` converted first.
Tensor source(const char* op, const Tensor& x, std::optional<ScalarType> dtype) {
  if (dtype && !is_storage(*dtype)) {
    refuse(op, c10::str("is not certified for a result of ", *dtype, "; the operand has shape ",
                        x.sizes()));
  }
  // A longer format is exact; a shorter one, or an integer, is rounded as the caller asked.
  return widened(op, dtype && *dtype != at::kFloat ? x.to(*dtype) : dtype ? x.to(*dtype) : x);
}

ScalarType result_type_of(const Tensor& x, std::optional<ScalarType> dtype) {
  return dtype.value_or(x.scalar_type());
}

Tensor sum(const Tensor& x, OptionalIntArrayRef dims, bool keepdim,
           std::optional<ScalarType> dtype) {
  if (sums_exactly(x, dtype)) return at::cpu::sum(x, dims, keepdim, dtype);
  const Tensor values = source("sum", x, dtype);
  return narrowed(sum_terms(Term::value, values, reduction_of(values, dims, keepdim)),
                  result_type_of(x, dtype));
}

Tensor mean(const Tensor& x, OptionalIntArrayRef dims, bool keepdim,
            std::optional<ScalarType> dtype) {
  const Tensor values = source("mean", x, dtype);
  const Reduction reduction = reduction_of(values, dims, keepdim);
  const Tensor result = sum_terms(Term::value, values, reduction);
  divide(result, static_cast<float>(reduction.length));
  return narrowed(result, result_type_of(x, dtype));
}

// ---- variance -----------------------------------------------------------------------------------

struct Moments {
  Tensor variance, mean;
};

Moments moments(const char* op, const Tensor& x, OptionalIntArrayRef dims,
                const std::optional<Scalar>& correction, bool keepdim) {
  const Tensor values = widened(op, x);
  const Reduction reduction = reduction_of(values, dims, keepdim);
  const Tensor average = sum_terms(Term::value, values, reduction);
  divide(average, static_cast<float>(reduction.length));
  const Tensor variance = sum_terms(Term::centred_square, values, reduction, const_floats(average));
  const double degrees =
      static_cast<double>(reduction.length) - (correction ? correction->to<double>() : 1.0);
  divide(variance, static_cast<float>(std::max(degrees, 0.0)));
  return {variance, average};
}

Tensor var(const Tensor& x, OptionalIntArrayRef dims, const std::optional<Scalar>& correction,
           bool keepdim) {
  return narrowed(moments("var", x, dims, correction, keepdim).variance, x.scalar_type());
}

// sqrt is an operation of IEEE 754; the map's form gives the same bits.
void take_roots(const Tensor& x) {
  kernels().maps.unary(Unary::sqrt, x.numel(), const_floats(x), floats(x));
}

Tensor std_deviation(const Tensor& x, OptionalIntArrayRef dims,
                     const std::optional<Scalar>& correction, bool keepdim) {
  const Tensor result = moments("std", x, dims, correction, keepdim).variance;
  take_roots(result);
  return narrowed(result, x.scalar_type());
}

std::tuple<Tensor, Tensor> var_mean(const Tensor& x, OptionalIntArrayRef dims,
                                    const std::optional<Scalar>& correction, bool keepdim) {
  const Moments result = moments("var_mean", x, dims, correction, keepdim);
  return {narrowed(result.variance, x.scalar_type()), narrowed(result.mean, x.scalar_type())};
}

std::tuple<Tensor, Tensor> std_mean(const Tensor& x, OptionalIntArrayRef dims,
                                    const std::optional<Scalar>& correction, bool keepdim) {
  const Moments result = moments("std_mean", x, dims, correction, keepdim);
  take_roots(result.variance);
  return {narrowed(result.variance, x.scalar_type()), narrowed(result.mean, x.scalar_type())};
}

// ---- norms --------------------------------------------------------------------------------------

Tensor infinity_norm(const Tensor& values, const Reduction& reduction) {
  if (reduction.reduced.empty()) return values.abs().contiguous();
  const bool keepdim = static_cast<int64_t>(reduction.out_sizes.size()) == values.dim();
  return at::amax(values.abs(), reduction.reduced, keepdim);
}

Tensor vector_norm(const Tensor& x, const Scalar& order, OptionalIntArrayRef dims, bool keepdim,
                   std::optional<ScalarType> dtype) {
  const Tensor values = source("linalg_vector_norm", x, dtype);
  const Reduction reduction = reduction_of(values, dims, keepdim);
  const double p = order.to<double>();
  Tensor result;
  if (p == 2.0) {
    result = sum_terms(Term::square, values, reduction);
    take_roots(result);
  } else if (p == 1.0) {
    result = sum_terms(Term::magnitude, values, reduction);
  } else if (p == std::numeric_limits<double>::infinity()) {
    result = infinity_norm(values, reduction);
  } else {
    refuse("linalg_vector_norm", c10::str("is certified for the orders 1, 2 and inf, got ", p));
  }
  return narrowed(result, result_type_of(x, dtype));
}

// ---- logsumexp, prod, cumsum --------------------------------------------------------------------

Tensor logsumexp(const Tensor& x, IntArrayRef dims, bool keepdim) {
  const bool integral = at::isIntegralType(x.scalar_type(), true);
  const Tensor values = widened("logsumexp", integral ? x.to(at::kFloat) : x);
  const Reduction reduction = reduction_of(values, dims, keepdim);
  std::vector<int64_t> order = reduction.kept;
  order.insert(order.end(), reduction.reduced.begin(), reduction.reduced.end());
  const Tensor rows = values.permute(order).contiguous();
  Tensor out = new_floats(reduction.out_sizes);
  const auto kernel = kernels().rows.log_sum_exp;
  const float* in = const_floats(rows);
  float* results = floats(out);
  const int64_t n = reduction.length;
  for_ranges(out.numel(), kGrain / 8 / std::max<int64_t>(n, 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) results[row] = kernel(n, in + row * n);
  });
  return integral ? out : narrowed(out, x.scalar_type());
}

// NUM-24: ascending from 1.
Tensor product_of(const Tensor& values, const Reduction& reduction) {
  std::vector<int64_t> order = reduction.kept;
  order.insert(order.end(), reduction.reduced.begin(), reduction.reduced.end());
  const Tensor rows = values.permute(order).contiguous();
  Tensor out = new_floats(reduction.out_sizes);
  const float* in = const_floats(rows);
  float* results = floats(out);
  const int64_t n = reduction.length;
  for_ranges(out.numel(), kGrain / std::max<int64_t>(n, 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float result = 1.0f;
      for (int64_t i = 0; i < n; ++i) result = result * in[row * n + i];
      results[row] = result;
    }
  });
  return out;
}

Tensor prod(const Tensor& x, std::optional<ScalarType> dtype) {
  if (sums_exactly(x, dtype)) return at::native::prod(x, dtype);
  const Tensor values = source("prod", x, dtype);
  return narrowed(product_of(values, reduction_of(values, std::nullopt, false)),
                  result_type_of(x, dtype));
}

Tensor prod_dim(const Tensor& x, int64_t dim, bool keepdim, std::optional<ScalarType> dtype) {
  if (sums_exactly(x, dtype)) return at::cpu::prod(x, dim, keepdim, dtype);
  const Tensor values = source("prod", x, dtype);
  return narrowed(product_of(values, reduction_of(values, IntArrayRef(dim), keepdim)),
                  result_type_of(x, dtype));
}

Tensor cumsum(const Tensor& x, int64_t dim, std::optional<ScalarType> dtype) {
  if (sums_exactly(x, dtype)) return at::cpu::cumsum(x, dim, dtype);
  const Tensor values = source("cumsum", x, dtype).contiguous();
  const ScalarType type = result_type_of(x, dtype);
  Tensor out = new_floats(values.sizes());
  if (values.numel() == 0) return narrowed(out, type);
  const int64_t axis = values.dim() ? at::maybe_wrap_dim(dim, values.dim()) : 0;
  const int64_t n = values.dim() ? values.size(axis) : 1;
  const int64_t stride = values.dim() ? values.stride(axis) : 1;
  const auto kernel = kernels().rows.cumulative_sum;
  const float* in = const_floats(values);
  float* results = floats(out);
  for_ranges(values.numel() / n, kGrain / n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = row / stride * stride * n + row % stride;
      kernel(n, in + first, stride, results + first, stride);
    }
  });
  return narrowed(out, type);
}

// ---- largest and smallest
// ------------------------------------------------------------------------- ATen's kernels find the
// right element; which zero, and which NaN, they leave open (NUM-5, NUM-25).

Tensor settled(Tensor x) {
  if (!at::isFloatingType(x.scalar_type())) return x;
  Tensor result = x.add_(0);
  return result.masked_fill_(result.isnan(), std::numeric_limits<double>::quiet_NaN());
}

// Comparing rounds nothing, so float64 is as good as the storage formats.
void require_order(const char* op, const Tensor& x) {
  if (!at::isIntegralType(x.scalar_type(), true) && x.scalar_type() != at::kDouble) {
    require_storage(op, x);
  }
}

Tensor amax(const Tensor& x, IntArrayRef dims, bool keepdim) {
  require_order("amax", x);
  return settled(at::cpu::amax(x, dims, keepdim));
}

Tensor amin(const Tensor& x, IntArrayRef dims, bool keepdim) {
  require_order("amin", x);
  return settled(at::cpu::amin(x, dims, keepdim));
}

Tensor max(const Tensor& x) {
  require_order("max", x);
  return settled(at::native::max(x));
}

Tensor min(const Tensor& x) {
  require_order("min", x);
  return settled(at::native::min(x));
}

std::tuple<Tensor, Tensor> max_dim(const Tensor& x, int64_t dim, bool keepdim) {
  require_order("max", x);
  auto [values, indices] = at::cpu::max(x, dim, keepdim);
  return {settled(values), indices};
}

std::tuple<Tensor, Tensor> min_dim(const Tensor& x, int64_t dim, bool keepdim) {
  require_order("min", x);
  auto [values, indices] = at::cpu::min(x, dim, keepdim);
  return {settled(values), indices};
}

template <std::tuple<Tensor, Tensor> (*function)(const Tensor&, int64_t, bool)>
std::tuple<Tensor&, Tensor&> with_indices_out(const Tensor& x, int64_t dim, bool keepdim,
                                              Tensor& values, Tensor& indices) {
  const auto [new_values, new_indices] = function(x, dim, keepdim);
  deliver(new_values, values);
  deliver(new_indices, indices);
  return {values, indices};
}

}  // namespace

void register_reductions(Registrar& registrar) {
  registrar.add("sum.dim_IntList", &sum);
  registrar.add_out<sum>("sum.IntList_out");
  registrar.add("mean.dim", &mean);
  registrar.add_out<mean>("mean.out");
  registrar.add("var.correction", &var);
  registrar.add_out<var>("var.correction_out");
  registrar.add("std.correction", &std_deviation);
  registrar.add_out<std_deviation>("std.correction_out");
  registrar.add("var_mean.correction", &var_mean);
  registrar.add("std_mean.correction", &std_mean);
  registrar.add("linalg_vector_norm", &vector_norm);
  registrar.add_out<vector_norm>("linalg_vector_norm.out");
  registrar.add("logsumexp", &logsumexp);
  registrar.add_out<logsumexp>("logsumexp.out");
  registrar.add("prod", &prod);
  registrar.add("prod.dim_int", &prod_dim);
  registrar.add_out<prod_dim>("prod.int_out");
  registrar.add_forms<cumsum>("cumsum");
  registrar.add("amax", &amax);
  registrar.add_out<amax>("amax.out");
  registrar.add("amin", &amin);
  registrar.add_out<amin>("amin.out");
  registrar.add("max", &max);
  registrar.add_out<max>("max.unary_out");
  registrar.add("min", &min);
  registrar.add_out<min>("min.unary_out");
  registrar.add("max.dim", &max_dim);
  registrar.add("max.dim_max", &with_indices_out<max_dim>);
  registrar.add("min.dim", &min_dim);
  registrar.add("min.dim_min", &with_indices_out<min_dim>);
}

}  // namespace kolm::binding
