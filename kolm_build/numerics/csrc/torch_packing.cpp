// Weights that were packed once for many products. Packing changes no bit (NUM-11).
#include "torch_packing.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace kolm::binding {

namespace {

struct Packed {
  Tensor weight;  // holds the memory, so that no other tensor can have the address
  uint32_t version;
  int64_t k, n;
  std::unique_ptr<float[]> data;
};

std::shared_mutex mutex;
std::unordered_map<const void*, Packed> packed_weights;
std::atomic<int64_t> count{0};

uint32_t version_of(const Tensor& x) {
  return x.is_inference() ? 0 : x.unsafeGetTensorImpl()->version_counter().current_version();
}

std::unique_ptr<float[]> pack(const Tensor& weight) {
  const int64_t n = weight.size(0), k = weight.size(1);
  auto data = std::make_unique<float[]>(kernels().gemm.packed_floats(k, n));
  const Operand operand{weight.const_data_ptr(), element_of(weight.scalar_type()), weight.stride(1),
                        weight.stride(0)};
  kernels().gemm.pack(k, n, operand, data.get(), pool());
  return data;
}

}  // namespace

const float* packed_weight(const Tensor& b) {
  if (count.load(std::memory_order_relaxed) == 0) return nullptr;
  std::shared_lock lock(mutex);
  const auto found = packed_weights.find(b.const_data_ptr());
  if (found == packed_weights.end()) return nullptr;
  const Packed& packed = found->second;
  const bool same =
      b.size(0) == packed.k && b.size(1) == packed.n && b.stride(0) == packed.weight.stride(1) &&
      b.stride(1) == packed.weight.stride(0) && b.scalar_type() == packed.weight.scalar_type() &&
      version_of(packed.weight) == packed.version;
  return same ? packed.data.get() : nullptr;
}

void pack_weight(const Tensor& weight) {
  require_storage("linear", weight);
  TORCH_CHECK(weight.dim() == 2, "kolm portable-1: a weight to pack is a matrix, got ",
              weight.sizes());
  std::unique_lock lock(mutex);
  packed_weights[weight.const_data_ptr()] = {weight.detach(), version_of(weight), weight.size(1),
                                             weight.size(0), pack(weight)};
  count = static_cast<int64_t>(packed_weights.size());
}

bool is_packed_as_is(const Tensor& weight) {
  std::shared_lock lock(mutex);
  const auto found = packed_weights.find(weight.const_data_ptr());
  if (found == packed_weights.end()) return false;
  const Packed& packed = found->second;
  if (weight.size(0) != packed.n || weight.size(1) != packed.k) return false;
  const int64_t bytes = kernels().gemm.packed_floats(packed.k, packed.n) * sizeof(float);
  return std::memcmp(pack(weight).get(), packed.data.get(), bytes) == 0;
}

void forget_packed_weights() {
  std::unique_lock lock(mutex);
  packed_weights.clear();
  count = 0;
}

}  // namespace kolm::binding
