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
  return out.copy_(rounded(values, out.scalar_type()).view(out.sizes()));
}

// How many numbers there are before `end`; nothing where there is no such range.
std::optional<int64_t> length_of(double start, double end, double step) {
  const double steps = (end - start) / step;
  if (!std::isfinite(start) || !std::isfinite(end) || !(steps >= 0 && steps < 0x1p62)) return {};
  return static_cast<int64_t>(std::ceil(steps));
}

std::optional<int64_t> length_of(int64_t start, int64_t end, int64_t step) {
  if (step == 0 || (step > 0 ? end < start : end > start)) return {};
  const auto distance = step > 0 ? static_cast<uint64_t>(end) - static_cast<uint64_t>(start)
                                 : static_cast<uint64_t>(start) - static_cast<uint64_t>(end);
  const uint64_t size = step > 0 ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
  return static_cast<int64_t>(distance / size + (distance % size != 0 ? 1 : 0));
}

bool is_integral(const Scalar& number) { return number.isIntegral(false); }

// Whether a number may become an integer: what it becomes otherwise is the processor's affair.
bool holds(const Scalar& number) {
  if (!number.isFloatingPoint()) return true;
  const double value = number.toDouble();
  return value >= -0x1p63 && value < 0x1p63;
}

Tensor& arange(const Scalar& start, const Scalar& end, const Scalar& step, Tensor& out) {
  // PyTorch's own kernel for integers is exact.
  if (at::isIntegralType(out.scalar_type(), false)) {
    if (!holds(start) || !holds(end) || !holds(step)) {
      refuse("arange", "is not certified for numbers that 64 bits do not hold");
    }
    return at::cpu::arange_out(out, start, end, step);
  }
  const double first = start.toDouble(), last = end.toDouble(), by = step.toDouble();
  const bool whole = is_integral(start) && is_integral(end) && is_integral(step);
  const auto n =
      whole ? length_of(start.toLong(), end.toLong(), step.toLong()) : length_of(first, last, by);
  if (!n) refuse("arange", c10::str("from ", first, " to ", last, " by ", by));
  return fill(out, *n, [=](int64_t i) { return first + static_cast<double>(i) * by; });
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
