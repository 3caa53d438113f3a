// Integers: quotients, histograms and products of 8-bit matrices (spec/numerics.md, NUM-14, NUM-27,
// NUM-28).
#include <ATen/Dispatch.h>

#include <cmath>
#include <tuple>
#include <type_traits>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

// ---------------------------------------------------------------------------- quotients

// A processor may end the process where the least integer is divided by -1.
template <class Integer>
Integer negative(Integer x) {
  using Bits = std::make_unsigned_t<Integer>;
  return static_cast<Integer>(Bits{0} - static_cast<Bits>(x));
}

template <class Integer>
bool is_minus_one(Integer x) {
  return std::is_signed_v<Integer> && x == static_cast<Integer>(-1);
}

struct Truncated {
  template <class Integer>
  static Integer of(Integer a, Integer b) {
    return is_minus_one(b) ? negative(a) : static_cast<Integer>(a / b);
  }
};

struct Fmod {
  template <class Integer>
  static Integer of(Integer a, Integer b) {
    return is_minus_one(b) ? Integer{0} : static_cast<Integer>(a % b);
  }
};

struct Floored {
  template <class Integer>
  static Integer of(Integer a, Integer b) {
    const bool lower = Fmod::of(a, b) != 0 && (a < 0) != (b < 0);
    return static_cast<Integer>(Truncated::of(a, b) - (lower ? 1 : 0));
  }
};

struct Remainder {
  template <class Integer>
  static Integer of(Integer a, Integer b) {
    const Integer left = Fmod::of(a, b);
    return left != 0 && (left < 0) != (b < 0) ? static_cast<Integer>(left + b) : left;
  }
};

template <class Function>
void for_integers(const char* op, Tensor& out, const Tensor& a, const Tensor& b) {
  const ScalarType type = at::result_type(a, b);
  if (!at::isIntegralType(type, false) || at::isBarebonesUnsignedType(type)) {
    refuse(op, c10::str("is not certified for ", type,
                        ", but for int64, int32, int16, int8 and uint8"));
  }
  auto iter = at::TensorIterator::binary_op(out, a, b);
  AT_DISPATCH_INTEGRAL_TYPES(iter.common_dtype(), "kolm_integers", [&] {
    iter.for_each([](char** data, const int64_t* strides, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        const auto x = *reinterpret_cast<const scalar_t*>(data[1] + i * strides[1]);
        const auto y = *reinterpret_cast<const scalar_t*>(data[2] + i * strides[2]);
        TORCH_CHECK(y != 0, "ZeroDivisionError");
        *reinterpret_cast<scalar_t*>(data[0] + i * strides[0]) = Function::of(x, y);
      }
    });
  });
  iter.cast_outputs();
  if (!out.defined()) out = iter.output();
}

void floor_divide(Tensor& out, const Tensor& a, const Tensor& b) {
  for_integers<Floored>("floor_divide", out, a, b);
}

void remainder(Tensor& out, const Tensor& a, const Tensor& b) {
  for_integers<Remainder>("remainder", out, a, b);
}

void fmod(Tensor& out, const Tensor& a, const Tensor& b) { for_integers<Fmod>("fmod", out, a, b); }

void div_mode(Tensor& out, const Tensor& a, const Tensor& b, std::optional<std::string_view> mode) {
  if (!mode) {
    if (out.defined()) {
      at::div_out(out, a, b);
    } else {
      out = at::div(a, b);
    }
  } else if (*mode == "trunc") {
    for_integers<Truncated>("div", out, a, b);
  } else if (*mode == "floor") {
    for_integers<Floored>("div", out, a, b);
  } else {
    TORCH_CHECK(false, "div expected rounding_mode to be one of None, 'trunc', or 'floor' ",
                "but found '", *mode, "'");
  }
}

// ---------------------------------------------------------------------------- histograms

// The least and the greatest number; NaN where there is one.
template <class Number>
std::pair<Number, Number> extremes_of(const Tensor& x) {
  const auto* values = x.const_data_ptr<Number>();
  Number least = values[0], greatest = values[0];
  for (int64_t i = 1; i < x.numel(); ++i) {
    if (!(values[i] >= least)) least = values[i];
    if (!(values[i] <= greatest)) greatest = values[i];
    if (std::isnan(values[i])) return {values[i], values[i]};
  }
  return {least, greatest};
}

// The ends of the bins.
template <class Number>
std::pair<Number, Number> ends_of(const Tensor& x, const Scalar& min, const Scalar& max) {
  auto a = min.to<Number>(), b = max.to<Number>();
  if (a == b && x.numel() > 0) std::tie(a, b) = extremes_of<Number>(x);
  if (a == b) {
    a = a - 1;
    b = b + 1;
  }
  TORCH_CHECK(std::isfinite(a) && std::isfinite(b), "torch.histc: range of [", a, ", ", b,
              "] is not finite");
  TORCH_CHECK(a < b, "torch.histc: max must be larger than min");
  return {a, b};
}

template <class Number>
void count(const Tensor& x, int64_t bins, const Scalar& min, const Scalar& max, double* counts) {
  const auto [a, b] = ends_of<Number>(x, min, max);
  const auto* values = x.const_data_ptr<Number>();
  const auto whole = static_cast<Number>(bins);
  for (int64_t i = 0; i < x.numel(); ++i) {
    if (!(values[i] >= a && values[i] <= b)) continue;
    const Number place = (values[i] - a) * whole / (b - a);
    counts[place < whole ? static_cast<int64_t>(place) : bins - 1] += 1;
  }
}

Tensor histc(const Tensor& self, int64_t bins, const Scalar& min, const Scalar& max) {
  TORCH_CHECK(bins > 0, "torch.histc: bins must be > 0, but got ", bins);
  // binary64 holds every count that there can be.
  Tensor counts = at::zeros({bins}, at::kDouble);
  auto* into = counts.mutable_data_ptr<double>();
  if (self.scalar_type() == at::kDouble) {
    count<double>(self.contiguous(), bins, min, max, into);
  } else {
    count<float>(widened("histc", self).contiguous(), bins, min, max, into);
  }
  return rounded(counts, self.scalar_type());
}

// ---------------------------------------------------------------------------- products

Tensor int_mm(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2, "_int_mm: expected matrices, but got ", a.sizes(),
              " and ", b.sizes());
  TORCH_CHECK(a.size(1) == b.size(0), "_int_mm: cannot multiply shapes ", a.sizes(), " and ",
              b.sizes());
  if (a.scalar_type() != at::kChar || b.scalar_type() != at::kChar) {
    refuse("_int_mm", c10::str("is not certified for ", a.scalar_type(), " and ", b.scalar_type(),
                               ", but for int8"));
  }
  const Tensor left = a.contiguous(), right = b.t().contiguous();
  const int64_t rows = a.size(0), columns = b.size(1), depth = a.size(1);
  Tensor out = at::empty({rows, columns}, a.options().dtype(at::kInt));
  const auto run = kernels().integers.products;
  const auto* x = left.const_data_ptr<int8_t>();
  const auto* y = right.const_data_ptr<int8_t>();
  auto* z = out.mutable_data_ptr<int32_t>();
  for_ranges(columns, 1 + (1 << 16) / (1 + rows * depth), [&](int64_t begin, int64_t end) {
    run(rows, end - begin, depth, x, depth, y + begin * depth, depth, z + begin, columns);
  });
  return out;
}

// `name.Tensor`, `name_.Tensor` and `name.<out>`.
template <auto function>
void add_tensor_forms(Registrar& registrar, const std::string& name, const std::string& of,
                      const std::string& out) {
  registrar.add_functional<function>(name + of);
  registrar.add_in_place<function>(name + "_.Tensor");
  registrar.add_out<function>(name + "." + out);
}

}  // namespace

void register_integers(Registrar& registrar) {
  add_tensor_forms<floor_divide>(registrar, "floor_divide", "", "out");
  add_tensor_forms<remainder>(registrar, "remainder", ".Tensor", "Tensor_out");
  add_tensor_forms<fmod>(registrar, "fmod", ".Tensor", "Tensor_out");
  registrar.add_functional<div_mode>("div.Tensor_mode");
  registrar.add_in_place<div_mode>("div_.Tensor_mode");
  registrar.add_out<div_mode>("div.out_mode");
  registrar.add_functional<histc>("histc");
  registrar.add_out<histc>("histc.out");
  registrar.add_functional<int_mm>("_int_mm");
  registrar.add_out<int_mm>("_int_mm.out");
}

}  // namespace kolm::binding
