// Products with quantised weights and rows of them, as compressed-tensors stores them
// (spec/numerics.md, section Quantised weights). No operator has a gradient.
#include "torch_quantised.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

namespace kolm::binding {

namespace {

using Optional = std::optional<Tensor>;

constexpr int64_t kMostDot = 65536;  // columns of a group whose sum of products 32 bits hold

template <class... Parts>
void require(bool holds, const char* op, const Parts&... parts) {
  TORCH_CHECK(holds, "kolm portable-1: ", op, " ", parts...);
}

// Contiguous rows; a tensor of a file is mapped, and stays where it is.
Tensor matrix(const char* op, const char* name, const Tensor& x) {
  require(x.dim() == 2, op, "expects a matrix as ", name, ", got the shape ", x.sizes());
  require(x.is_cpu(), op, "computes on the CPU, and ", name, " is on ", x.device());
  return x.stride(1) == 1 || x.size(1) <= 1 ? x : x.contiguous();
}

void require_size(const char* op, const char* name, const Tensor& x, int64_t rows,
                  int64_t columns) {
  require(x.size(0) == rows && x.size(1) == columns, op, "expects ", name, " of shape [", rows,
          ", ", columns, "], got ", x.sizes());
}

void require_type(const char* op, const char* name, const Tensor& x, ScalarType type) {
  require(x.scalar_type() == type, op, "expects ", name, " in ", type, ", got ", x.scalar_type());
}

int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A weight of the operator's arguments: the tensors hold the memory that `described` points to.
struct Weight {
  Tensor codes, scale;
  Optional zeros;
  int64_t rows, columns;
  QuantisedWeight described;
};

void set_codes(Weight& weight, Code code) {
  weight.rows = weight.codes.size(0);
  weight.described = {};
  weight.described.codes = weight.codes.const_data_ptr();
  weight.described.row_bytes = weight.codes.stride(0) * weight.codes.itemsize();
  weight.described.code = code;
  weight.described.group = std::max<int64_t>(weight.columns, 1);
}

void set_scale(Weight& weight, Scale scale) {
  weight.described.scales = weight.scale.const_data_ptr();
  weight.described.scale_step = weight.scale.stride(0);
  weight.described.scale = scale;
}

void set_stored_scale(const char* op, Weight& weight, const Tensor& scale, int64_t groups) {
  weight.scale = matrix(op, "scale", scale);
  require_size(op, "scale", weight.scale, weight.rows, groups);
  require(is_storage(scale.scalar_type()), op,
          "expects scale in float32, bfloat16 or float16, got ", scale.scalar_type());
  set_scale(weight, static_cast<Scale>(element_of(scale.scalar_type())));
}

void set_zeros(const char* op, Weight& weight, const Optional& zeros, int64_t bits,
               int64_t groups) {
  if (!zeros || !zeros->defined()) return;
  require(weight.codes.scalar_type() == at::kInt, op, "knows no zero_point of a weight in ",
          weight.codes.scalar_type(), ", but of packed ones");
  require_type(op, "zero_point", *zeros, at::kInt);
  weight.zeros = matrix(op, "zero_point", *zeros);
  require_size(op, "zero_point", *weight.zeros, up(weight.rows * bits, 32), groups);
  weight.described.zeros = static_cast<const uint32_t*>(weight.zeros->const_data_ptr());
  weight.described.zero_step = weight.zeros->stride(0);
}

void set_group(const char* op, Weight& weight, int64_t group) {
  if (group == 0 || group == weight.columns) return;
  require(group > 0 && group % 8 == 0 && weight.columns % group == 0, op,
          "expects a group of 0 (a row), or a multiple of 8 that divides the ", weight.columns,
          " columns, got ", group);
  weight.described.group = group;
}

Weight integers(const char* op, const Tensor& codes, const Tensor& scale, const Optional& zeros,
                int64_t bits, int64_t group, int64_t columns) {
  Weight weight;
  weight.codes = matrix(op, "weight", codes);
  weight.columns = columns;
  const bool packed = codes.scalar_type() == at::kInt;
  require(packed || codes.scalar_type() == at::kChar, op,
          "expects weight in int32 (packed) or int8, got ", codes.scalar_type());
  require(bits == 8 || (bits == 4 && packed), op, "knows packed weights of 4 and 8 bits, and int8 ",
          "ones of 8, got ", bits, " bits in ", codes.scalar_type());
  require_size(op, "weight", weight.codes, codes.size(0),
               packed ? up(columns * bits, 32) : columns);
  set_codes(weight, !packed ? Code::signed8 : bits == 4 ? Code::offset4 : Code::offset8);
  set_group(op, weight, group);
  const int64_t groups = up(columns, weight.described.group);
  set_stored_scale(op, weight, scale, groups);
  set_zeros(op, weight, zeros, bits, groups);
  return weight;
}

Weight fp8(const char* op, const Tensor& codes, const Tensor& scale) {
  Weight weight;
  require_type(op, "weight", codes, at::kFloat8_e4m3fn);
  weight.codes = matrix(op, "weight", codes);
  weight.columns = codes.size(1);
  set_codes(weight, Code::e4m3);
  set_stored_scale(op, weight, scale, 1);
  return weight;
}

// Pairs of e2m1 numbers in bytes, and one byte of scale for `group` of them.
Weight pairs(const char* op, const Tensor& packed, const Tensor& scale, ScalarType scale_type,
             int64_t group) {
  Weight weight;
  require_type(op, "packed", packed, at::kByte);
  weight.codes = matrix(op, "packed", packed);
  weight.columns = 2 * packed.size(1);
  set_codes(weight, Code::e2m1);
  require(weight.columns % group == 0, op, "expects columns in groups of ", group, ", got ",
          weight.columns);
  require_type(op, "scale", scale, scale_type);
  weight.scale = matrix(op, "scale", scale);
  require_size(op, "scale", weight.scale, weight.rows, weight.columns / group);
  weight.described.group = group;
  set_scale(weight, scale_type == at::kByte ? Scale::e8m0 : Scale::e4m3);
  return weight;
}

float number(const char* op, const char* name, const Tensor& x) {
  require(x.numel() == 1 && is_storage(x.scalar_type()) && x.is_cpu(), op, "expects ", name,
          " to be one floating point number, got ", x.scalar_type(), " of shape ", x.sizes());
  const float value = *const_floats(x.to(at::kFloat).contiguous());
  require(std::isfinite(value) && value > 0.0f, op, "expects ", name,
          " to be a number above 0, got ", value);
  return value;
}

Weight nvfp4(const char* op, const Tensor& packed, const Tensor& scale, const Tensor& global) {
  Weight weight = pairs(op, packed, scale, at::kFloat8_e4m3fn, 16);
  weight.described.global = number(op, "global_scale", global);
  return weight;
}

Weight mxfp4(const char* op, const Tensor& packed, const Tensor& scale) {
  return pairs(op, packed, scale, at::kByte, 32);
}

// ---------------------------------------------------------------------------- products

// The rows of x in binary32, contiguous.
Tensor rows_of(const char* op, const Tensor& x) {
  require(is_storage(x.scalar_type()), op, "expects x in float32, bfloat16 or float16, got ",
          x.scalar_type());
  require(x.is_cpu(), op, "computes on the CPU, and x is on ", x.device());
  require(x.dim() >= 1, op, "expects x to have columns, got a number");
  require(!(at::GradMode::is_enabled() && x.requires_grad()), op,
          "has no gradient: call it in torch.no_grad() or torch.inference_mode()");
  return x.to(at::kFloat).contiguous();
}

void require_columns(const char* op, const Tensor& x, int64_t columns) {
  require(x.size(-1) == columns, op, "cannot multiply x of ", x.size(-1),
          " columns with a weight of ", columns);
}

// y + bias, rounded (NUM-131, NUM-134).
void add_bias(const char* op, const Tensor& y, int64_t rows, int64_t columns,
              const Optional& bias) {
  if (!bias || !bias->defined()) return;
  require(is_storage(bias->scalar_type()) && bias->dim() == 1 && bias->size(0) == columns, op,
          "expects a bias of ", columns, " numbers, got ", bias->scalar_type(), " of shape ",
          bias->sizes());
  const Tensor wide = bias->to(at::kFloat).contiguous();
  const float* addend = const_floats(wide);
  float* to = floats(y);
  for_ranges(rows, 32768 / std::max<int64_t>(columns, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels().maps.binary(Binary::add_scaled, columns, to + i * columns, addend, to + i * columns,
                            1.0f);
  });
}

// run(rows of x, x, y) and what is around it.
template <class Run>
Tensor product(const char* op, const Tensor& x, const Weight& weight, const Optional& bias,
               const Run& run) {
  const Tensor rows = rows_of(op, x);
  require_columns(op, x, weight.columns);
  auto sizes = x.sizes().vec();
  sizes.back() = weight.rows;
  const Tensor y = new_floats(sizes);
  const int64_t count = weight.rows ? y.numel() / weight.rows : 0;
  run(count, const_floats(rows), floats(y));
  add_bias(op, y, count, weight.rows, bias);
  return narrowed(y, x.scalar_type());
}

Tensor widened_product(const char* op, const Tensor& x, const Weight& weight,
                       const Optional& bias) {
  return product(op, x, weight, bias, [&](int64_t rows, const float* in, float* out) {
    kernels().quantised.linear(rows, weight.rows, weight.columns, in, weight.columns,
                               weight.described, out, weight.rows, pool());
  });
}

Tensor linear_int(const Tensor& x, const Tensor& weight, const Tensor& scale,
                  const Optional& zero_point, int64_t bits, int64_t group, const Optional& bias) {
  constexpr const char* op = "quantised_linear_int";
  require(x.dim() >= 1, op, "expects x to have columns, got a number");
  return widened_product(op, x, integers(op, weight, scale, zero_point, bits, group, x.size(-1)),
                         bias);
}

Tensor linear_int_dynamic(const Tensor& x, const Tensor& weight, const Tensor& scale,
                          const Optional& zero_point, int64_t bits, int64_t group,
                          const Optional& bias, const Optional& input_scale) {
  constexpr const char* op = "quantised_linear_int_dynamic";
  require(x.dim() >= 1, op, "expects x to have columns, got a number");
  const Weight described = integers(op, weight, scale, zero_point, bits, group, x.size(-1));
  require(described.described.group <= kMostDot, op, "sums at most ", kMostDot,
          " products in a group, got ", described.described.group);
  const bool is_static = input_scale && input_scale->defined();
  const float fixed = is_static ? number(op, "input_scale", *input_scale) : 0.0f;
  return product(op, x, described, bias, [&](int64_t rows, const float* in, float* out) {
    kernels().dots.linear(rows, described.rows, described.columns, in, described.columns,
                          is_static ? &fixed : nullptr, described.described, out, described.rows,
                          pool());
  });
}

Tensor linear_fp8(const Tensor& x, const Tensor& weight, const Tensor& scale,
                  const Optional& bias) {
  constexpr const char* op = "quantised_linear_fp8";
  return widened_product(op, x, fp8(op, weight, scale), bias);
}

Tensor linear_nvfp4(const Tensor& x, const Tensor& packed, const Tensor& scale,
                    const Tensor& global, const Optional& bias) {
  constexpr const char* op = "quantised_linear_nvfp4";
  return widened_product(op, x, nvfp4(op, packed, scale, global), bias);
}

Tensor linear_mxfp4(const Tensor& x, const Tensor& packed, const Tensor& scale,
                    const Optional& bias) {
  constexpr const char* op = "quantised_linear_mxfp4";
  return widened_product(op, x, mxfp4(op, packed, scale), bias);
}

// ---------------------------------------------------------------------------- rows

Tensor gathered(const char* op, const Tensor& indices, const Weight& weight,
                std::optional<ScalarType> dtype) {
  require(indices.scalar_type() == at::kLong || indices.scalar_type() == at::kInt, op,
          "expects indices in int64 or int32, got ", indices.scalar_type());
  const ScalarType type = dtype.value_or(at::kFloat);
  require(is_storage(type), op, "gives float32, bfloat16 or float16, not ", type);
  const Tensor which = indices.to(at::kLong).contiguous();
  auto sizes = indices.sizes().vec();
  sizes.push_back(weight.columns);
  const Tensor y = new_floats(sizes);
  const auto* index = which.const_data_ptr<int64_t>();
  float* to = floats(y);
  for (int64_t i = 0; i < which.numel(); ++i)
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < weight.rows, "kolm portable-1: ", op,
                      " has no row ", index[i], " among ", weight.rows);
  for_ranges(which.numel(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels().quantised.row(weight.columns, weight.described, index[i], to + i * weight.columns);
  });
  return narrowed(y, type);
}

Tensor rows_int(const Tensor& indices, const Tensor& weight, const Tensor& scale,
                const Optional& zero_point, int64_t bits, int64_t group, int64_t columns,
                std::optional<ScalarType> dtype) {
  constexpr const char* op = "dequantise_int";
  require(columns >= 0, op, "expects a number of columns, got ", columns);
  return gathered(op, indices, integers(op, weight, scale, zero_point, bits, group, columns),
                  dtype);
}

Tensor rows_fp8(const Tensor& indices, const Tensor& weight, const Tensor& scale,
                std::optional<ScalarType> dtype) {
  return gathered("dequantise_fp8", indices, fp8("dequantise_fp8", weight, scale), dtype);
}

Tensor rows_nvfp4(const Tensor& indices, const Tensor& packed, const Tensor& scale,
                  const Tensor& global, std::optional<ScalarType> dtype) {
  constexpr const char* op = "dequantise_nvfp4";
  return gathered(op, indices, nvfp4(op, packed, scale, global), dtype);
}

Tensor rows_mxfp4(const Tensor& indices, const Tensor& packed, const Tensor& scale,
                  std::optional<ScalarType> dtype) {
  return gathered("dequantise_mxfp4", indices, mxfp4("dequantise_mxfp4", packed, scale), dtype);
}

}  // namespace

void define_quantised(torch::Library& library) {
  library.def(
      "quantised_linear_int(Tensor x, Tensor weight, Tensor scale, Tensor? zero_point, int bits, "
      "int group, Tensor? bias=None) -> Tensor",
      &linear_int);
  library.def(
      "quantised_linear_int_dynamic(Tensor x, Tensor weight, Tensor scale, Tensor? zero_point, "
      "int bits, int group, Tensor? bias=None, Tensor? input_scale=None) -> Tensor",
      &linear_int_dynamic);
  library.def(
      "quantised_linear_fp8(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None) -> Tensor",
      &linear_fp8);
  library.def(
      "quantised_linear_nvfp4(Tensor x, Tensor packed, Tensor scale, Tensor global_scale, "
      "Tensor? bias=None) -> Tensor",
      &linear_nvfp4);
  library.def(
      "quantised_linear_mxfp4(Tensor x, Tensor packed, Tensor scale, Tensor? bias=None) -> Tensor",
      &linear_mxfp4);
  library.def(
      "dequantise_int(Tensor indices, Tensor weight, Tensor scale, Tensor? zero_point, int bits, "
      "int group, int columns, ScalarType? dtype=None) -> Tensor",
      &rows_int);
  library.def(
      "dequantise_fp8(Tensor indices, Tensor weight, Tensor scale, ScalarType? dtype=None) "
      "-> Tensor",
      &rows_fp8);
  library.def(
      "dequantise_nvfp4(Tensor indices, Tensor packed, Tensor scale, Tensor global_scale, "
      "ScalarType? dtype=None) -> Tensor",
      &rows_nvfp4);
  library.def(
      "dequantise_mxfp4(Tensor indices, Tensor packed, Tensor scale, ScalarType? dtype=None) "
      "-> Tensor",
      &rows_mxfp4);
}

}  // namespace kolm::binding
