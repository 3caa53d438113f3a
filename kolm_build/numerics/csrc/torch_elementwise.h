// Runs a kernel over contiguous binary32 blocks of a TensorIterator's operands, whatever their
// strides, broadcasting and storage format.
#pragma once

#include <array>

#include "torch_binding.h"

namespace kolm::binding {

constexpr int64_t kBlock = 1024;  // elements a buffer holds: a few of them stay in the first cache

// An operand's elements as binary32. `stride` counts bytes; `buffer` holds kBlock elements and is
// used where the elements do not lie in memory as binary32, one after another.
const float* read_block(ScalarType type, const char* data, int64_t stride, int64_t n,
                        float* buffer);
void write_block(ScalarType type, char* data, int64_t stride, int64_t n, const float* values);

// A result in the form of `x`, which the caller writes whole: PyTorch would fill it first
// (NUM-125). Undefined where TensorIterator is to choose the form.
Tensor new_like(const Tensor& x);

// `body(n, inputs, output)` computes n elements from n elements of each input.
template <size_t input_count, class Body>
void map_elements(const char* op, at::TensorIteratorBase& iter, const Body& body) {
  if (iter.numel() == 0) return;
  const ScalarType type = iter.dtype(1);
  // A number beside tensors of a shorter format is not rounded to that format (NUM-55).
  std::array<std::optional<float>, input_count> numbers;
  for (size_t k = 0; k < input_count; ++k) {
    const int arg = static_cast<int>(k) + 1;
    if (type != at::kFloat && iter.is_cpu_scalar(arg)) {
      numbers[k] = iter.original_scalar_value<float>(arg);
    }
  }
  const ScalarType out_type = iter.dtype(0);
  if (!is_storage(type) || !is_storage(out_type)) require_storage(op, iter.tensor(1));
  iter.for_each([&](char** data, const int64_t* strides, int64_t n) {
    alignas(64) float buffers[input_count + 1][kBlock];
    const auto direct = [&](size_t k) {
      const ScalarType operand_type = k == 0 ? out_type : type;
      return operand_type == at::kFloat && strides[k] == sizeof(float);
    };
    bool all_direct = direct(0);
    for (size_t k = 0; k < input_count; ++k) all_direct = all_direct && direct(k + 1);
    const int64_t step = all_direct ? n : kBlock;
    for (int64_t begin = 0; begin < n; begin += step) {
      const int64_t length = std::min(step, n - begin);
      std::array<const float*, input_count> inputs;
      for (size_t k = 0; k < input_count; ++k) {
        const int64_t stride = strides[k + 1];
        if (numbers[k]) {
          std::fill_n(buffers[k], length, *numbers[k]);
          inputs[k] = buffers[k];
        } else {
          inputs[k] = read_block(type, data[k + 1] + begin * stride, stride, length, buffers[k]);
        }
      }
      if (direct(0)) {
        body(length, inputs, reinterpret_cast<float*>(data[0]) + begin);
      } else {
        body(length, inputs, buffers[input_count]);
        write_block(out_type, data[0] + begin * strides[0], strides[0], length,
                    buffers[input_count]);
      }
    }
  });
  iter.cast_outputs();
}

}  // namespace kolm::binding
