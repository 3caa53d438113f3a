// The guard of portable-1 (spec/numerics.md, NUM-90 and on): every kernel that the table of
// certified operations does not name is replaced by one that refuses. A certified operation pays
// nothing, unless the table puts a condition on its arguments. Links torch_cpu; knows no Python.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/library.h>

#include <algorithm>
#include <cfenv>
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

struct Condition {
  bool (*holds)(const c10::FunctionSchema&, const Stack&);
  const char* reason;
};

const std::map<std::string, Condition>& conditions() {
  static const std::map<std::string, Condition> table = {
      {"real", {no_complex, "complex numbers are not certified"}},
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

// copy_: what a processor makes of a number that the integer type cannot hold is its own affair, so
// such numbers become integers here (NUM-93).
struct Converting final : c10::OperatorKernel {
  explicit Converting(c10::SafeKernelFunction kernel) : kernel(std::move(kernel)) {}
  void operator()(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    const at::Tensor& to = argument(op.schema(), *stack, "self")->toTensor();
    IValue& source = (*stack)[stack->size() - op.schema().arguments().size() + 1];
    const at::Tensor& from = source.toTensor();
    if (to.is_complex() || from.is_complex()) refuse(op, *stack, conditions().at("real").reason);
    if (c10::isIntegralType(to.scalar_type(), false) && c10::isFloatingType(from.scalar_type()))
      source = whole(from);
    kernel.callBoxed(op, keys, stack);
  }
  c10::SafeKernelFunction kernel;

 private:
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
};

// PyTorch's own kernel in place of the portable one: to show what a kernel is for.
struct Stock final : c10::OperatorKernel {
  explicit Stock(c10::SafeKernelFunction kernel) : kernel(std::move(kernel)) {}
  void operator()(const OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
    kernel.callBoxed(op, keys, stack);
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

// Namespaces that do not compute: the profiler's marks, the engine's own.
bool computes(const std::string& space) {
  static const std::unordered_set<std::string> silent = {"prim",       "profiler", "kolm",
                                                         "kolm_guard", "_test",    "debugprims"};
  return silent.count(space) == 0;
}

std::string space_of(const c10::OperatorName& name) {
  return name.name.substr(0, name.name.find("::"));
}

// A tensor on the CPU may reach a kernel of this operation.
bool has_cpu_kernel(const OperatorHandle& op) {
  return op.hasKernelForDispatchKey(DispatchKey::CPU) ||
         op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd) ||
         op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutogradNonFunctional);
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
      if (!op || !computes(space_of(name)) || !has_cpu_kernel(*op)) continue;
      const auto seen = kernels_.find(name_of(name));
      const bool late = seen == kernels_.end();
      if (late ? certified_.count(name_of(name)) == 0 : seen->second != kernel_of(*op))
        names.push_back(name_of(name));
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  void cover(const c10::OperatorName& name) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op || !computes(space_of(name))) return;
    const std::string full = name_of(name);
    if (has_cpu_kernel(*op)) cover_cpu(*op, full);
    for (const DispatchKey key : kOtherBackends)
      if (op->hasKernelForDispatchKey(key)) put(*op, key, refusing());
    if (op->hasKernelForDispatchKey(DispatchKey::AutocastCPU))
      put(*op, DispatchKey::AutocastCPU,
          torch::CppFunction::makeFromBoxedFunction<&poison_autocast>());
  }

  void cover_cpu(const OperatorHandle& op, const std::string& full) {
    const auto condition = conditional_.find(full);
    const auto stock = remembered().find(full);
    if (stock != remembered().end()) {
      put(op, DispatchKey::CPU, functor<Stock>(stock->second));
    } else if (condition != conditional_.end()) {
      put(op, DispatchKey::CPU,
          condition->second == "converts"
              ? functor<Converting>(op.getComputedKernelForDispatchKey(DispatchKey::CPU))
              : functor<Checked>(conditions().at(condition->second),
                                 op.getComputedKernelForDispatchKey(DispatchKey::CPU)));
    } else if (certified_.count(full) == 0) {
      put(op, DispatchKey::CPU, refusing());
      ++refused_;
    }
    kernels_[full] = kernel_of(op);
  }

  // Where the kernel that runs was registered.
  static std::string kernel_of(const OperatorHandle& op) {
    return op.getComputedKernelForDispatchKey(DispatchKey::CPU).debug();
  }

  template <class Kernel, class... Arguments>
  static torch::CppFunction functor(Arguments&&... arguments) {
    return torch::CppFunction::makeFromBoxedFunctor(
        std::make_unique<Kernel>(std::forward<Arguments>(arguments)...));
  }

  static torch::CppFunction refusing() {
    return torch::CppFunction::makeFromBoxedFunction<&poison>();
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
  std::unordered_map<std::string, std::string> conditional_, kernels_;
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
    if (!op || !computes(space_of(*name)) || !has_cpu_kernel(*op)) return;
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
    if (!op || !has_cpu_kernel(*op)) continue;
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
