// Blocks of operands as binary32.
#include "torch_elementwise.h"

namespace kolm::binding {

namespace {

template <class Stored>
void gather(const char* data, int64_t stride, int64_t n, Stored* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = *reinterpret_cast<const Stored*>(data + i * stride);
}

template <class Stored>
void scatter(char* data, int64_t stride, int64_t n, const Stored* values) {
  for (int64_t i = 0; i < n; ++i) *reinterpret_cast<Stored*>(data + i * stride) = values[i];
}

}  // namespace

Tensor new_like(const Tensor& x) {
  if (!is_storage(x.scalar_type()) || !x.is_non_overlapping_and_dense()) return {};
  return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.options());
}

const float* read_block(ScalarType type, const char* data, int64_t stride, int64_t n,
                        float* buffer) {
  if (type == at::kFloat) {
    if (stride == sizeof(float)) return reinterpret_cast<const float*>(data);
    gather(data, stride, n, buffer);
    return buffer;
  }
  uint16_t halves[kBlock];
  const auto* source = reinterpret_cast<const uint16_t*>(data);
  if (stride != sizeof(uint16_t)) {
    gather(data, stride, n, halves);
    source = halves;
  }
  const MapKernels& maps = kernels().maps;
  (type == at::kBFloat16 ? maps.widen_bf16 : maps.widen_f16)(n, source, buffer);
  return buffer;
}

void write_block(ScalarType type, char* data, int64_t stride, int64_t n, const float* values) {
  if (type == at::kFloat) return scatter(data, stride, n, values);
  uint16_t halves[kBlock];
  const bool contiguous = stride == sizeof(uint16_t);
  const MapKernels& maps = kernels().maps;
  (type == at::kBFloat16 ? maps.narrow_bf16 : maps.narrow_f16)(
      n, values, contiguous ? reinterpret_cast<uint16_t*>(data) : halves);
  if (!contiguous) scatter(data, stride, n, halves);
}

}  // namespace kolm::binding
