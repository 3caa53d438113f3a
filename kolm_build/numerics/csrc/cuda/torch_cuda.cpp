// The operators torch.ops.kolm_portable_cuda.*: nothing is registered over ATen's kernels until
// `enable`; `disable` gives them back.
#include <c10/util/Exception.h>
#include <torch/version.h>

#include <memory>

#include "binding.h"

namespace kolm::cuda::binding {
namespace {

// What `enable` registered. Destroying a library takes its registrations back.
struct Enabled {
  torch::Library kernels{torch::Library::IMPL, "aten", device_key, __FILE__, __LINE__};
  torch::Library above_autograd{torch::Library::IMPL, "aten", autograd_key, __FILE__, __LINE__};
  std::vector<std::string> names;
};

std::unique_ptr<Enabled>& enabled() {
  static std::unique_ptr<Enabled> instance;
  return instance;
}

// PyTorch warns of every kernel that is replaced; replacing them is what `enable` is for.
class Silence : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

void enable() {
  if (enabled()) return;
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  auto fresh = std::make_unique<Enabled>();
  Registrar registrar(fresh->kernels, fresh->names);
  register_products(registrar);
  register_maps(registrar);
  register_rows(registrar);
  register_random(registrar);
  register_lists(registrar);
  fresh->above_autograd.impl("scaled_dot_product_attention", &attention_with_gradient);
  enabled() = std::move(fresh);
}

std::vector<std::string> operators() {
  return enabled() ? enabled()->names : std::vector<std::string>{};
}

#if defined(KOLM_EMULATED)
constexpr bool emulated = true;
#else
constexpr bool emulated = false;
#endif

}  // namespace

TORCH_LIBRARY(kolm_portable_cuda, library) {
  library.def("enable() -> ()", &enable);
  library.def("disable() -> ()", [] { enabled().reset(); });
  library.def("is_enabled() -> bool", [] { return enabled() != nullptr; });
  library.def("is_emulated() -> bool", [] { return emulated; });
  library.def("operators() -> str[]", &operators);
  library.def("force_variant(int variant) -> ()", &force_variant);
  library.def("variants() -> int", [] { return static_cast<int64_t>(gemm_variants); });
  library.def("torch_version() -> str", [] { return std::string(TORCH_VERSION); });
}

}  // namespace kolm::cuda::binding
