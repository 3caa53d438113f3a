// Numbers at equal distances (spec/numerics.md, NUM-56): PyTorch's own kernels contract them.
#include <cmath>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

// Writes `body(i)` into the one-dimensional `out`, rounded to its type.
template <class Body>
Tensor& fill(Tensor& out, int64_t n, const Body& body) {
  if (out.numel() != n) at::native::resize_output(out, {n});
  Tensor values = at::empty({n}, at::kDouble);
  double* x = values.mutable_data_ptr<double>();
  for_ranges(n, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x[i] = body(i);
  });
  return out.copy_(values.view(out.sizes()));
}

Tensor& arange(const Scalar& start, const Scalar& end, const Scalar& step, Tensor& out) {
  // Whole numbers are exact in any order; PyTorch's kernel also knows how many there are.
  if (at::isIntegralType(out.scalar_type(), false) ||
      (start.isIntegral(false) && end.isIntegral(false) && step.isIntegral(false))) {
    return at::cpu::arange_out(out, start, end, step);
  }
  const double first = start.toDouble(), last = end.toDouble(), by = step.toDouble();
  if (!std::isfinite(first) || !std::isfinite(last) || by == 0 || (last - first) / by < 0) {
    refuse("arange", c10::str("from ", first, " to ", last, " by ", by));
  }
  const auto n = static_cast<int64_t>(std::ceil((last - first) / by));
  return fill(out, n, [=](int64_t i) { return first + static_cast<double>(i) * by; });
}

Tensor& linspace(const Scalar& start, const Scalar& end, int64_t steps, Tensor& out) {
  if (steps < 0) refuse("linspace", "with a negative number of steps");
  const double first = start.toDouble(), last = end.toDouble();
  const double by = steps > 1 ? (last - first) / static_cast<double>(steps - 1) : 0.0;
  return fill(out, steps, [=](int64_t i) {
    return i < steps / 2 ? first + static_cast<double>(i) * by
           : steps == 1  ? first
                         : last - static_cast<double>(steps - 1 - i) * by;
  });
}

}  // namespace

void register_ranges(Registrar& registrar) {
  registrar.add("arange.start_out", &arange);
  registrar.add("linspace.out", &linspace);
}

}  // namespace kolm::binding
