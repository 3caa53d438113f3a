// The guard of portable-1 (spec/numerics.md, NUM-90 and on): every kernel that the table of
// certified operations does not name is replaced by one that refuses. A certified operation pays
// nothing, unless the table puts a condition on its arguments. Links torch_cpu; knows no Python.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>
#include <torch/csrc/autograd/function.h>
#include <torch/library.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "torch_binding.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#if !defined(NDEBUG)
#error "PyTorch's release build lays out its classes for NDEBUG"
#endif

namespace kolm {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

// ---------------------------------------------------------------------------- what a call was

std::string text_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  std::ostringstream out;
  out << c10::toString(tensor.scalar_type()) << tensor.sym_sizes();
  if (!tensor.device().is_cpu()) out << '@' << tensor.device();
  return out.str();
}

std::string text_of(const IValue& value) {
  if (value.isTensor()) return text_of(value.toTensor());
  std::ostringstream out;
  if (value.isTensorList()) {
    out << '[';
    const char* comma = "";
    for (const at::Tensor& one : value.toTensorVector())
      out << std::exchange(comma, ", ") << text_of(one);
    out << ']';
  } else if (value.isNone() || value.isScalar() || value.isBool() || value.isIntList() ||
             value.isDoubleList() || value.isString()) {
    out << value;
  } else {
    out << value.tagKind();
  }
  return out.str();
}

std::string arguments_of(const c10::FunctionSchema& schema, const Stack& stack) {
  const auto& names = schema.arguments();
  const size_t first = stack.size() - names.size();
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += ", ";
    text += names[i].name() + "=" + text_of(stack[first + i]);
  }
  return text;
}

// The name as PyTorch writes it: aten::add.Tensor.
std::string name_of(const c10::OperatorName& name) { return c10::toString(name); }

std::string autograd_node() {
  const auto node = torch::autograd::get_current_node();
  return node ? node->name() : "";
}

// One line that kolm_build/numerics/guard.py reads back.
[[noreturn]] void refuse(const OperatorHandle& op, const Stack& stack, const std::string& reason) {
  TORCH_CHECK(false, "kolm refuses {", name_of(op.operator_name()), "} {", reason, "} {",
              autograd_node(), "} {", arguments_of(op.schema(), stack), "}");
}

// ---------------------------------------------------------------------------- refusing kernels

void poison(const OperatorHandle& op, DispatchKeySet, Stack* stack) {
  refuse(op, *stack, "the operation is not certified");
}

void poison_foreign(const OperatorHandle& op, DispatchKeySet, Stack* stack) {
  refuse(op, *stack, "a library put a kernel of its own over PyTorch's");
}

void poison_autocast(const OperatorHandle& op, DispatchKeySet, Stack* stack) {
  refuse(op, *stack, "autocast is on: it casts as a table inside PyTorch says");
}

// ---------------------------------------------------------------------------- conditions

bool is_complex(const IValue& value) {
  if (value.isTensor()) return value.toTensor().defined() && value.toTensor().is_complex();
  if (value.isTensorList()) {
    for (const at::Tensor& one : value.toTensorVector())
      if (one.defined() && one.is_complex()) return true;
    return false;
  }
  return value.isComplexDouble();
}

bool no_complex(const c10::FunctionSchema& schema, const Stack& stack) {
  const size_t n = schema.arguments().size();
  return std::none_of(stack.end() - n, stack.end(), is_complex);
}

const IValue* argument(const c10::FunctionSchema& schema, const Stack& stack, const char* name) {
  const auto& names = schema.arguments();
  for (size_t i = 0; i < names.size(); ++i)
    if (names[i].name() == name) return &stack[stack.size() - names.size() + i];
  return nullptr;
}

bool no_floats(const c10::FunctionSchema& schema, const Stack& stack) {
  const size_t n = schema.arguments().size();
  return std::none_of(stack.end() - n, stack.end(), [](const IValue& value) {
    if (value.isTensor())
      return value.toTensor().defined() &&
             !c10::isIntegralType(value.toTensor().scalar_type(), true);
    return value.isDouble() || value.isComplexDouble();
  });
}

template <class Format>
bool holds_exactly(double value) {
  return static_cast<double>(static_cast<float>(Format(static_cast<float>(value)))) == value;
}

bool fits(double value, at::ScalarType type) {
  constexpr double kLimit = 9223372036854775808.0;
  if (c10::isIntegralType(type, false)) return value >= -kLimit && value < kLimit;
  if (!c10::isFloat8Type(type) || value == 0 || std::isnan(value)) return true;
  if (type == at::kFloat8_e4m3fn) return holds_exactly<c10::Float8_e4m3fn>(value);
  return type == at::kFloat8_e5m2 && holds_exactly<c10::Float8_e5m2>(value);
}

// The type of the tensor that a call makes or fills; binary32 where it does not say.
at::ScalarType type_of(const c10::FunctionSchema& schema, const Stack& stack) {
  if (const IValue* self = argument(schema, stack, "self")) return self->toTensor().scalar_type();
  const IValue* type = argument(schema, stack, "dtype");
  return type == nullptr || type->isNone() ? at::kFloat : type->toScalarType();
}

// No number that would become another one in the processor's own way (NUM-87).
bool numbers_fit(const c10::FunctionSchema& schema, const Stack& stack) {
  const at::ScalarType type = type_of(schema, stack);
  const auto& names = schema.arguments();
  for (size_t i = 0; i < names.size(); ++i) {
    const IValue& value = stack[stack.size() - names.size() + i];
    if (names[i].type()->kind() != c10::TypeKind::NumberType || !value.isScalar()) continue;
    if (value.isInt() && c10::isIntegralType(type, true)) continue;  // PyTorch checks it
    if (!value.isComplexDouble() && !fits(value.toScalar().toDouble(), type)) return false;
  }
  return true;
}

struct Condition {
  bool (*holds)(const c10::FunctionSchema&, const Stack&);
  const char* reason;
};

const std::map<std::string, Condition>& conditions() {
  static const std::map<std::string, Condition> table = {
      {"real", {no_complex, "complex numbers are not certified"}},
      {"fits", {numbers_fit, "the tensor's type does not hold the number"}},
      {"integers", {no_floats, "it is certified for integers and booleans"}},
  };
  return table;
}

// A stock kernel behind a check of its arguments.
struct Checked final : c10::OperatorKernel {
  Checked(const Condition& condition, c10::SafeKernelFunction kernel)
      : condition(condition), kernel(std::move(kernel)) {}
  void operator()(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    if (!condition.holds(op.schema(), *stack)) refuse(op, *stack, condition.reason);
    kernel.callBoxed(op, keys, stack);
  }
  const Condition& condition;
  c10::SafeKernelFunction kernel;
};

// copy_: what a processor makes of a number that the integer type cannot hold is its own affair,
// and what PyTorch makes of one beyond an 8-bit format is, too; so those become what the spec says
// here (NUM-57, NUM-58, NUM-93).
struct Converting final : c10::OperatorKernel {
  explicit Converting(c10::SafeKernelFunction kernel) : kernel(std::move(kernel)) {}
  void operator()(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    const at::ScalarType to = argument(op.schema(), *stack, "self")->toTensor().scalar_type();
    IValue& source = (*stack)[stack->size() - op.schema().arguments().size() + 1];
    const at::ScalarType from = source.toTensor().scalar_type();
    if (c10::isComplexType(to) || c10::isComplexType(from))
      refuse(op, *stack, conditions().at("real").reason);
    if (to != from) {
      if (!is_converted(to) || !is_converted(from))
        refuse(op, *stack, "this storage format is moved, and not converted");
      if (is_eighth(from)) source = widened(source.toTensor());
      if (c10::isIntegralType(to, false) && c10::isFloatingType(from)) {
        source = whole(source.toTensor());
      } else if (is_eighth(to)) {
        source = narrowed(source.toTensor(), to);
      }
    }
    kernel.callBoxed(op, keys, stack);
  }
  c10::SafeKernelFunction kernel;

 private:
  static bool is_eighth(at::ScalarType type) {
    return type == at::kFloat8_e4m3fn || type == at::kFloat8_e5m2;
  }

  static bool is_converted(at::ScalarType type) {
    return is_eighth(type) || c10::isIntegralType(type, true) || type == at::kFloat ||
           type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
  }

  // Rounded towards zero; -2^63 for NaN and what 64 bits do not hold.
  static at::Tensor whole(const at::Tensor& from) {
    const at::Tensor wide = from.to(at::kDouble).contiguous();
    at::Tensor out = at::empty(from.sizes(), from.options().dtype(at::kLong));
    const double* x = wide.const_data_ptr<double>();
    int64_t* y = out.mutable_data_ptr<int64_t>();
    constexpr double kLimit = 9223372036854775808.0;
    at::parallel_for(0, wide.numel(), 32768, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        y[i] = x[i] >= -kLimit && x[i] < kLimit ? static_cast<int64_t>(x[i])
                                                : std::numeric_limits<int64_t>::min();
    });
    return out;
  }

  static at::Tensor widened(const at::Tensor& from) {
    const at::Tensor codes = from.contiguous();
    at::Tensor out = at::empty(from.sizes(), from.options().dtype(at::kFloat));
    const MapKernels& maps = binding::kernels().maps;
    const auto run = from.scalar_type() == at::kFloat8_e5m2 ? maps.widen_e5m2 : maps.widen_e4m3;
    const auto* x = static_cast<const uint8_t*>(codes.const_data_ptr());
    float* y = out.mutable_data_ptr<float>();
    at::parallel_for(0, codes.numel(), 32768,
                     [&](int64_t begin, int64_t end) { run(end - begin, x + begin, y + begin); });
    return out;
  }

  static at::Tensor narrowed(const at::Tensor& from, at::ScalarType to) {
    const at::Tensor wide = from.to(at::kFloat).contiguous();
    at::Tensor out = at::empty(from.sizes(), from.options().dtype(to));
    const MapKernels& maps = binding::kernels().maps;
    const auto run = to == at::kFloat8_e5m2 ? maps.narrow_e5m2 : maps.narrow_e4m3;
    const float* x = wide.const_data_ptr<float>();
    auto* y = static_cast<uint8_t*>(out.mutable_data_ptr());
    at::parallel_for(0, wide.numel(), 32768,
                     [&](int64_t begin, int64_t end) { run(end - begin, x + begin, y + begin); });
    return out;
  }
};

// PyTorch's own kernel in place of the portable one: to show what a kernel is for.
struct Stock final : c10::OperatorKernel {
  explicit Stock(c10::SafeKernelFunction kernel) : kernel(std::move(kernel)) {}
  void operator()(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    kernel.callBoxed(op, keys, stack);
  }
  c10::SafeKernelFunction kernel;
};

// Whether a value is no tensor with data, nor holds one.
bool is_without_data(const IValue& value) {
  if (value.isTensor()) return !value.toTensor().defined() || value.toTensor().is_meta();
  if (value.isTensorList()) {
    const auto tensors = value.toTensorVector();
    return std::all_of(tensors.begin(), tensors.end(),
                       [](const at::Tensor& one) { return one.is_meta(); });
  }
  return true;
}

// The kernel of an uncertified operation that may be called without a tensor: on the device meta
// it makes tensors that have no data, so none can be wrong. Anything else is refused.
struct OnMetaAlone final : c10::OperatorKernel {
  explicit OnMetaAlone(c10::SafeKernelFunction kernel) : kernel(std::move(kernel)) {}
  void operator()(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    const auto arguments = stack->end() - op.schema().arguments().size();
    const bool on_meta = std::any_of(arguments, stack->end(), [](const IValue& value) {
      return value.isDevice() && value.toDevice().is_meta();
    });
    if (!on_meta || !std::all_of(arguments, stack->end(), is_without_data)) poison(op, keys, stack);
    kernel.callBoxed(op, keys, stack);
    const auto results = stack->end() - op.schema().returns().size();
    TORCH_CHECK(std::all_of(results, stack->end(), is_without_data), "kolm refuses {",
                name_of(op.operator_name()), "} {it made data on the device meta} {} {}");
  }
  c10::SafeKernelFunction kernel;
};

std::map<std::string, c10::SafeKernelFunction>& remembered() {
  static std::map<std::string, c10::SafeKernelFunction> kernels;
  return kernels;
}

// Keeps the kernels that run now for the next guard; called before the portable ones are there.
void remember(const std::vector<std::string>& names) {
  remembered().clear();
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (std::find(names.begin(), names.end(), name_of(name)) == names.end()) continue;
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    remembered().emplace(name_of(name), op->getComputedKernelForDispatchKey(DispatchKey::CPU));
  }
}

// ---------------------------------------------------------------------------- installing

constexpr DispatchKey kOtherBackends[] = {
    DispatchKey::QuantizedCPU, DispatchKey::SparseCPU,       DispatchKey::SparseCsrCPU,
    DispatchKey::MkldnnCPU,    DispatchKey::NestedTensorCPU,
};

// The stages that a call on the CPU may go through before its kernel.
constexpr DispatchKey kStages[] = {
    DispatchKey::BackendSelect,
    DispatchKey::ADInplaceOrView,
    DispatchKey::AutogradCPU,
    DispatchKey::Python,
    DispatchKey::PythonTLSSnapshot,
    DispatchKey::Negative,
    DispatchKey::Conjugate,
    DispatchKey::ZeroTensor,
    DispatchKey::FuncTorchBatched,
    DispatchKey::FuncTorchVmapMode,
    DispatchKey::FuncTorchGradWrapper,
    DispatchKey::FuncTorchDynamicLayerBackMode,
    DispatchKey::FuncTorchDynamicLayerFrontMode,
};

// One body for all devices, or above autograd.
constexpr DispatchKey kBodies[] = {
    DispatchKey::CompositeImplicitAutograd,
    DispatchKey::CompositeExplicitAutograd,
    DispatchKey::CompositeExplicitAutogradNonFunctional,
};

std::string space_of(const c10::OperatorName& name) {
  return name.name.substr(0, name.name.find("::"));
}

bool is_pytorchs(const c10::OperatorName& name) { return space_of(name) == "aten"; }

bool has_kernel(const OperatorHandle& op, DispatchKey key) {
  return op.hasKernelForDispatchKey(key) ||
         (key == DispatchKey::AutogradCPU && op.hasKernelForDispatchKey(DispatchKey::Autograd));
}

// A call on the CPU may reach code that was registered for this operation.
bool computes(const OperatorHandle& op) {
  const auto has = [&](DispatchKey key) { return has_kernel(op, key); };
  return has(DispatchKey::CPU) || std::any_of(std::begin(kBodies), std::end(kBodies), has) ||
         (!is_pytorchs(op.operator_name()) &&
          std::any_of(std::begin(kStages), std::end(kStages), has));
}

// A call may have no tensor at all, and so no device.
bool may_lack_tensors(const c10::FunctionSchema& schema) {
  return std::none_of(schema.arguments().begin(), schema.arguments().end(), [](const auto& one) {
    return one.type()->kind() == c10::TypeKind::TensorType;
  });
}

// Where the kernel that runs at a stage was registered; empty if none runs there.
std::string origin_of(const OperatorHandle& op, DispatchKey key) {
  if (!op.hasComputedKernelForDispatchKey(key)) return "";
  return op.getComputedKernelForDispatchKey(key).debug();
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// From a file of this library.
bool is_ours(const std::string& origin) {
  static const std::string file = __FILE__;
  return contains(origin, file.substr(0, file.rfind('/')) + "/torch_");
}

// "registered at " and the folder that PyTorch was built in. Its fallback for Python tells: PyTorch
// lets no library put another one there.
std::string pytorchs_place() {
  const auto op = c10::Dispatcher::singleton().findSchema({"kolm_guard::release", ""});
  const std::string origin = origin_of(*op, DispatchKey::Python);
  const size_t end = origin.find("aten/src/ATen/");
  TORCH_CHECK(end != std::string::npos, "kolm: this PyTorch does not tell where it was built");
  return origin.substr(0, end);
}

// From a file of PyTorch's own source tree, or of this library.
bool is_trusted(const std::string& origin) {
  static const std::string place = pytorchs_place();
  return origin.empty() || is_ours(origin) ||
         (contains(origin, place) &&
          (contains(origin, "aten/src/ATen/") || contains(origin, "torch/csrc/")));
}

// An operation of this library: it serves the guard, and no model.
bool is_service(const OperatorHandle& op) {
  const std::string space = space_of(op.operator_name());
  return (space == "kolm_guard" || space == "kolm_portable") &&
         is_ours(origin_of(op, DispatchKey::Undefined));
}

// Replacing kernels is what this file is for: PyTorch need not warn of it.
struct Silent final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

class Guard {
 public:
  Guard(const std::vector<std::string>& certified, const std::vector<std::string>& conditional) {
    Silent silent;
    const c10::WarningUtils::WarningHandlerGuard quiet(&silent);
    certified_.insert(certified.begin(), certified.end());
    for (const auto& pair : conditional) {
      const size_t at = pair.find(' ');
      conditional_[pair.substr(0, at)] = pair.substr(at + 1);
    }
    for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) cover(name);
  }

  int64_t refused() const { return refused_; }

  // Operations that came with a library loaded after the guard, or got another kernel from it.
  std::vector<std::string> uncovered() const {
    std::vector<std::string> names;
    for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
      const auto op = c10::Dispatcher::singleton().findSchema(name);
      if (!op) continue;
      const std::string full = name_of(name);
      const auto seen = origins_.find(full);
      const bool late = seen == origins_.end();
      if (late ? computes(*op) && certified_.count(full) == 0 : seen->second != origins_of(*op))
        names.push_back(full);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  void cover(const c10::OperatorName& name) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op) return;
    const std::string full = name_of(name);
    if (is_service(*op)) {
      origins_[full] = origins_of(*op);
      return;
    }
    if (certified_.count(full) == 0) {
      cover_uncertified(*op);
    } else if (is_pytorchs(name)) {
      cover_certified(*op, full);
    }
    for (const DispatchKey key : kOtherBackends)
      if (op->hasKernelForDispatchKey(key)) put(*op, key, boxed<&poison>());
    if (op->hasKernelForDispatchKey(DispatchKey::AutocastCPU))
      put(*op, DispatchKey::AutocastCPU, boxed<&poison_autocast>());
    origins_[full] = origins_of(*op);
  }

  void cover_certified(const OperatorHandle& op, const std::string& full) {
    if (!is_trusted(origin_of(op, DispatchKey::CPU))) {
      put(op, DispatchKey::CPU, boxed<&poison_foreign>());
    } else if (const auto stock = remembered().find(full); stock != remembered().end()) {
      put(op, DispatchKey::CPU, functor<Stock>(stock->second));
    } else if (const auto condition = conditional_.find(full); condition != conditional_.end()) {
      put(op, DispatchKey::CPU, checked(op, condition->second));
    }
    for (const DispatchKey key : kStages)
      if (!is_trusted(origin_of(op, key))) put(op, key, boxed<&poison_foreign>());
  }

  // A kernel for the CPU takes the place of a body above autograd, too. What PyTorch registers for
  // its own operations at a stage calls the next stage; what others do there is not known.
  void cover_uncertified(const OperatorHandle& op) {
    const bool own = is_pytorchs(op.operator_name());
    put(op, DispatchKey::CPU, boxed<&poison>());
    for (const DispatchKey key : kStages)
      if (!is_trusted(origin_of(op, key)) || (!own && has_kernel(op, key)))
        put(op, key, key == DispatchKey::BackendSelect ? on_meta(op, key) : boxed<&poison>());
    if (may_lack_tensors(op.schema()) && !op.hasKernelForDispatchKey(DispatchKey::BackendSelect))
      for (const DispatchKey key : kBodies)
        if (op.hasKernelForDispatchKey(key)) put(op, key, on_meta(op, DispatchKey::Undefined));
    refused_ += computes(op) ? 1 : 0;
  }

  // Which stages run a kernel, and where those of this operation were registered: this changes when
  // a library registers one. A fallback that PyTorch has is not looked at, for it takes no second.
  static size_t origins_of(const OperatorHandle& op) {
    const bool has_body = std::any_of(std::begin(kBodies), std::end(kBodies), [&](DispatchKey key) {
      return op.hasKernelForDispatchKey(key);
    });
    size_t text = 0;
    const auto add = [&](DispatchKey key, bool is_own) {
      const bool runs = op.hasComputedKernelForDispatchKey(key);
      text = text * 31 + (runs && is_own ? std::hash<std::string>()(origin_of(op, key)) : runs);
    };
    add(DispatchKey::Undefined, has_body && may_lack_tensors(op.schema()));
    add(DispatchKey::CPU, has_body || op.hasKernelForDispatchKey(DispatchKey::CPU));
    for (const DispatchKey key : kStages)
      add(key, has_kernel(op, key) || (has_body && key == DispatchKey::AutogradCPU));
    return text;
  }

  static torch::CppFunction on_meta(const OperatorHandle& op, DispatchKey key) {
    if (!op.hasComputedKernelForDispatchKey(key)) return boxed<&poison>();
    return functor<OnMetaAlone>(op.getComputedKernelForDispatchKey(key));
  }

  static torch::CppFunction checked(const OperatorHandle& op, const std::string& condition) {
    auto kernel = op.getComputedKernelForDispatchKey(DispatchKey::CPU);
    if (condition == "converts") return functor<Converting>(std::move(kernel));
    return functor<Checked>(conditions().at(condition), std::move(kernel));
  }

  template <class Kernel, class... Arguments>
  static torch::CppFunction functor(Arguments&&... arguments) {
    return torch::CppFunction::makeFromBoxedFunctor(
        std::make_unique<Kernel>(std::forward<Arguments>(arguments)...));
  }

  template <c10::BoxedKernel::BoxedKernelFunction_withDispatchKeys* kernel>
  static torch::CppFunction boxed() {
    return torch::CppFunction::makeFromBoxedFunction<kernel>();
  }

  void put(const OperatorHandle& op, DispatchKey key, torch::CppFunction&& kernel) {
    library(space_of(op.operator_name()), key)
        .impl(name_of(op.operator_name()).c_str(), std::move(kernel));
  }

  torch::Library& library(const std::string& space, DispatchKey key) {
    auto& library = libraries_[{space, key}];
    if (!library)
      library =
          std::make_unique<torch::Library>(torch::Library::IMPL, space, key, __FILE__, __LINE__);
    return *library;
  }

  std::unordered_set<std::string> certified_;
  std::unordered_map<std::string, std::string> conditional_;
  std::unordered_map<std::string, size_t> origins_;
  std::map<std::pair<std::string, DispatchKey>, std::unique_ptr<torch::Library>> libraries_;
  int64_t refused_ = 0;
};

std::unique_ptr<Guard>& installed() {
  static std::unique_ptr<Guard> guard;
  return guard;
}

int64_t install(const std::vector<std::string>& certified,
                const std::vector<std::string>& conditional) {
  TORCH_CHECK(!installed(), "the guard is installed already");
  installed() = std::make_unique<Guard>(certified, conditional);
  return installed()->refused();
}

void release() {
  installed().reset();
  remembered().clear();
}

std::vector<std::string> uncovered() {
  return installed() ? installed()->uncovered() : std::vector<std::string>{};
}

// ---------------------------------------------------------------------------- the FP environment

// What is wrong with this thread's floating point environment; empty if nothing is.
std::string floating_point_trouble() {
  std::string trouble;
  const auto add = [&](bool wrong, const char* text) {
    if (wrong) trouble += (trouble.empty() ? "" : ", ") + std::string(text);
  };
  add(std::fegetround() != FE_TONEAREST, "rounding is not to nearest");
#if defined(__x86_64__)
  const unsigned control = _mm_getcsr();
  add((control & 0x6000u) != 0, "vector rounding is not to nearest");
  add((control & 0x8000u) != 0, "flush-to-zero is on");
  add((control & 0x0040u) != 0, "denormals-are-zero is on");
#elif defined(__aarch64__)
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  add((control & (3ull << 22)) != 0, "vector rounding is not to nearest");
  add((control & (1ull << 24)) != 0, "flush-to-zero is on");
  add((control & (1ull << 19)) != 0, "flush-to-zero of half precision is on");
#endif
  return trouble;
}

// One entry a thread of the pool, the caller's first.
std::vector<std::string> floating_point_troubles() {
  const int64_t threads = at::get_num_threads();
  std::vector<std::string> troubles(threads);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) troubles[i] = floating_point_trouble();
  });
  return troubles;
}

// ---------------------------------------------------------------------------- watching

// The profiler's marks and this project's own services: nothing that a model does.
bool is_silent(const c10::OperatorName& name) {
  const std::string space = space_of(name);
  return space == "profiler" || space == "kolm_guard" ||
         (space == "kolm_portable" && !contains(name.name, "quantise"));
}

// Which operations ran, under which label, with which dtypes: for `kolm numerics check`.
class Watch {
 public:
  void label(std::string text) {
    const std::lock_guard<std::mutex> held(mutex_);
    label_ = std::move(text);
  }

  void saw(const at::RecordFunction& call) {
    const auto name = call.operator_name();
    if (!name) return;
    const auto op = c10::Dispatcher::singleton().findSchema(*name);
    if (!op || is_silent(*name) || !computes(*op)) return;
    std::set<std::string> types;
    for (const IValue& value : call.inputs()) add_types(value, types);
    const std::string node = autograd_node();
    const std::lock_guard<std::mutex> held(mutex_);
    std::string line =
        name_of(*name) + "\t" + (node.empty() ? label_ : "backward of " + node) + "\t";
    for (const auto& type : types) line += type + " ";
    ++calls_[line];
  }

  std::vector<std::string> take() {
    const std::lock_guard<std::mutex> held(mutex_);
    std::vector<std::string> lines;
    for (const auto& [line, count] : calls_) lines.push_back(line + "\t" + std::to_string(count));
    calls_.clear();
    return lines;
  }

 private:
  static void add_types(const IValue& value, std::set<std::string>& types) {
    if (value.isTensor() && value.toTensor().defined())
      types.insert(c10::toString(value.toTensor().scalar_type()));
    if (value.isTensorList())
      for (const at::Tensor& one : value.toTensorVector())
        if (one.defined()) types.insert(c10::toString(one.scalar_type()));
  }

  std::mutex mutex_;
  std::string label_;
  std::map<std::string, int64_t> calls_;
};

Watch& watch() {
  static Watch instance;
  return instance;
}

at::CallbackHandle& watching() {
  static at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
  return handle;
}

void start_watching() {
  if (watching() != at::INVALID_CALLBACK_HANDLE) return;
  watching() = at::addGlobalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& call) {
        watch().saw(call);
        return std::unique_ptr<at::ObserverContext>();
      })
          .needsInputs(true)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
}

std::vector<std::string> stop_watching() {
  if (watching() != at::INVALID_CALLBACK_HANDLE) at::removeCallback(watching());
  watching() = at::INVALID_CALLBACK_HANDLE;
  return watch().take();
}

// ---------------------------------------------------------------------------- what PyTorch has

// Every operation that a tensor on the CPU may reach: its schema.
std::vector<std::string> operations() {
  std::vector<std::string> lines;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op || !computes(*op)) continue;
    std::ostringstream line;
    line << op->schema();
    lines.push_back(line.str());
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace

TORCH_LIBRARY(kolm_guard, library) {
  library.def("install(str[] certified, str[] conditional) -> int", &install);
  library.def("remember(str[] names) -> ()", &remember);
  library.def("release() -> ()", &release);
  library.def("uncovered() -> str[]", &uncovered);
  library.def("floating_point_trouble() -> str", &floating_point_trouble);
  library.def("floating_point_troubles() -> str[]", &floating_point_troubles);
  library.def("label(str text) -> ()", [](std::string text) { watch().label(std::move(text)); });
  library.def("start_watching() -> ()", &start_watching);
  library.def("stop_watching() -> str[]", &stop_watching);
  library.def("operations() -> str[]", &operations);
}

}  // namespace kolm
