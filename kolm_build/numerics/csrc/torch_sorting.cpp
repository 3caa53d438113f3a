// Order (spec/numerics.md, section Order): stable by index, NaN the largest, -0 and +0 equal.
#include <ATen/WrapDimUtils.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

// A number's place in the order, as an integer.
uint32_t rank(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = std::bit_cast<uint32_t>(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Keys of a row whose ascending order is the wanted one: the rank, then the index.
void make_keys(const float* x, int64_t n, bool descending, uint64_t* keys) {
  const uint32_t flip = descending ? 0xffffffffu : 0u;
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = static_cast<uint64_t>(rank(x[i]) ^ flip) << 32 | static_cast<uint64_t>(i);
  }
}

struct Ordered {
  Tensor values, indices;
};

// The first `count` of every row along `dim`, in order.
Ordered first_of(const char* op, const Tensor& x, int64_t dim_in, int64_t count, bool descending) {
  const int64_t dim = x.dim() ? at::maybe_wrap_dim(dim_in, x.dim()) : 0;
  const Tensor wide = widened(op, x);
  const Tensor rows =
      x.dim() ? wide.transpose(dim, -1).contiguous() : wide.reshape({1}).contiguous();
  const int64_t n = rows.size(-1);
  std::vector<int64_t> sizes = rows.sizes().vec();
  sizes.back() = count;
  Tensor values = new_floats(sizes), indices = at::empty(sizes, at::kLong);
  TORCH_CHECK(n < (int64_t{1} << 32), "kolm portable-1: aten::", op, " sorts rows below 2^32, got ",
              n);
  const float* in = const_floats(rows);
  float* out = floats(values);
  int64_t* at = indices.mutable_data_ptr<int64_t>();
  for_ranges(n ? rows.numel() / n : 0, 4096 / std::max<int64_t>(n, 1),
             [&](int64_t begin, int64_t end) {
               std::vector<uint64_t> keys(n);
               for (int64_t row = begin; row < end; ++row) {
                 make_keys(in + row * n, n, descending, keys.data());
                 if (count < n) {
                   std::nth_element(keys.begin(), keys.begin() + count, keys.end());
                 }
                 std::sort(keys.begin(), keys.begin() + count);
                 for (int64_t i = 0; i < count; ++i) {
                   const auto index = static_cast<int64_t>(keys[i] & 0xffffffffu);
                   at[row * count + i] = index;
                   out[row * count + i] = in[row * n + index];
                 }
               }
             });
  if (x.dim() == 0)
    return {narrowed(values.view(IntArrayRef{}), x.scalar_type()), indices.view(IntArrayRef{})};
  return {narrowed(values, x.scalar_type()).transpose(dim, -1).contiguous(),
          indices.transpose(dim, -1).contiguous()};
}

// Comparing rounds nothing: ATen's stable sort serves integers and float64.
bool is_stock(const Tensor& x) {
  return at::isIntegralType(x.scalar_type(), true) || x.scalar_type() == at::kDouble;
}

std::tuple<Tensor, Tensor> sort(const Tensor& x, std::optional<bool>, int64_t dim,
                                bool descending) {
  if (is_stock(x)) return at::cpu::sort(x, true, dim, descending);
  const int64_t n = x.dim() ? x.size(dim) : 1;
  Ordered result = first_of("sort", x, dim, n, descending);
  return {result.values, result.indices};
}

std::tuple<Tensor&, Tensor&> sort_out(const Tensor& x, std::optional<bool> stable, int64_t dim,
                                      bool descending, Tensor& values, Tensor& indices) {
  const auto [new_values, new_indices] = binding::sort(x, stable, dim, descending);
  return {deliver(new_values, values), deliver(new_indices, indices)};
}

// Sorted whether or not the caller asks for it: "unsorted" leaves the order open.
std::tuple<Tensor, Tensor> topk(const Tensor& x, int64_t k, int64_t dim, bool largest, bool) {
  const int64_t n = x.dim() ? x.size(dim) : 1;
  TORCH_CHECK(k >= 0 && k <= n, "selected index k out of range");
  if (is_stock(x)) {
    const auto [values, indices] = at::cpu::sort(x, true, dim, largest);
    if (x.dim() == 0) return {values, indices};
    return {values.narrow(dim, 0, k).contiguous(), indices.narrow(dim, 0, k).contiguous()};
  }
  Ordered result = first_of("topk", x, dim, k, largest);
  return {result.values, result.indices};
}

std::tuple<Tensor&, Tensor&> topk_out(const Tensor& x, int64_t k, int64_t dim, bool largest,
                                      bool sorted, Tensor& values, Tensor& indices) {
  const auto [new_values, new_indices] = binding::topk(x, k, dim, largest, sorted);
  return {deliver(new_values, values), deliver(new_indices, indices)};
}

}  // namespace

void register_sorting(Registrar& registrar) {
  registrar.add("sort.stable", &sort);
  registrar.add("sort.values_stable", &sort_out);
  registrar.add("topk", &topk);
  registrar.add("topk.values", &topk_out);
}

}  // namespace kolm::binding
