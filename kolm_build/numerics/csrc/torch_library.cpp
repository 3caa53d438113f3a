// The operators of libkolm_portable.so: torch.ops.kolm_portable.*. Nothing is registered over
// ATen's kernels until `enable`; `disable` gives them back.
#include <c10/util/Exception.h>
#include <torch/version.h>

#include <memory>

#include "torch_binding.h"
#include "torch_packing.h"
#include "torch_quantised.h"

extern "C" const char* kolm_sources();

namespace kolm::binding {

namespace {

// What `enable` registered. Destroying a library takes its registrations back.
struct Enabled {
  torch::Library kernels{torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__};
  // Operators that PyTorch composes run above autograd, and below it in inference mode.
  torch::Library composites{torch::Library::IMPL, "aten", c10::DispatchKey::AutogradCPU, __FILE__,
                            __LINE__};
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

void register_all(Registrar& registrar) {
  register_products(registrar);
  register_arithmetic(registrar);
  register_integers(registrar);
  register_maps(registrar);
  register_reductions(registrar);
  register_rows(registrar);
  register_indexing(registrar);
  register_random(registrar);
  register_ranges(registrar);
  register_sorting(registrar);
  register_attention(registrar);
  register_optimisers(registrar);
}

void enable() {
  if (enabled()) return;
  Silence silence;
  c10::WarningUtils::WarningHandlerGuard guard(&silence);
  auto fresh = std::make_unique<Enabled>();
  Registrar registrar(fresh->kernels, fresh->names);
  register_all(registrar);
  register_composites(registrar);
  std::vector<std::string> ignored;
  Registrar above_autograd(fresh->composites, ignored);
  register_composites(above_autograd);
  enabled() = std::move(fresh);
}

void disable() {
  enabled().reset();
  forget_packed_weights();
}

std::vector<std::string> operators() {
  return enabled() ? enabled()->names : std::vector<std::string>{};
}

std::string isa() { return kernels().isa; }

void set_isa(std::string_view name) {
  use_kernels(name);
  forget_packed_weights();  // every instruction set packs in its own way
}

}  // namespace

TORCH_LIBRARY(kolm_portable, library) {
  library.def("enable() -> ()", &enable);
  library.def("disable() -> ()", &disable);
  library.def("is_enabled() -> bool", [] { return enabled() != nullptr; });
  library.def("operators() -> str[]", &operators);
  library.def("isa() -> str", &isa);
  library.def("isas() -> str[]", &kernel_names);
  library.def("set_isa(str name) -> ()", [](std::string name) { set_isa(name); });
  library.def("sources() -> str", [] { return std::string(kolm_sources()); });
  library.def("torch_version() -> str", [] { return std::string(TORCH_VERSION); });
  library.def("pack_weight(Tensor weight) -> ()", &pack_weight);
  library.def("is_packed_as_is(Tensor weight) -> bool", &is_packed_as_is);
  library.def("forget_packed_weights() -> ()", &forget_packed_weights);
  define_quantised(library);
}

}  // namespace kolm::binding
