// Every function of functions.h at every binary32 number against the correctly rounded value.
//   exhaustive [isa=NAME] [step=N] [from=HEX] [to=HEX] [function ...]
// step=N takes one run of 4096 numbers of N; from and to bound the numbers' bits (ends included).
// Prints, for each function: how many of the inputs are wrong, by how many units in the last place
// at most, how many cases were too close for binary64 and went to MPFR, and a hash of all outputs.
// All functions where none is named. Exit status 1 if anything is wrong.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "close.h"
#include "exact.h"
#include "kernels.h"

namespace {

using exhaustive::kChunk;
using kolm::Unary;

constexpr const char* kNames[] = {
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "tanh",
    "erf",
    "erfc",
    "sigmoid",
    "log_sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "rsqrt",
    "sqrt",
    "reciprocal",
    "square",
    "cube",
    "sin",
    "cos",
    "softplus",
    "mish",
    "silu_derivative",
    "gelu_derivative",
    "gelu_tanh_derivative",
    "softplus_derivative",
    "log_sigmoid_derivative",
    "mish_derivative",
};
static_assert(sizeof kNames / sizeof kNames[0] == kolm::kUnaryCount);

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
float value_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The place of a number among all binary32 numbers in ascending order.
int64_t place(float x) {
  const uint32_t bits = bits_of(x);
  return bits >> 31 ? -static_cast<int64_t>(bits & 0x7fffffffu) : static_cast<int64_t>(bits);
}

struct Result {
  std::mutex mutex;
  uint64_t wrong = 0, close = 0, hash = 0;
  int64_t worst = 0;
  std::vector<std::string> examples;
};

bool is_derivative(Unary function) { return function >= Unary::silu_derivative; }

void complain(Result& result, float x, float actual, float expected) {
  const std::lock_guard<std::mutex> lock(result.mutex);
  ++result.wrong;
  const bool nan = std::isnan(actual) || std::isnan(expected);
  const int64_t off = nan ? INT64_MAX : std::llabs(place(actual) - place(expected));
  if (off > result.worst) result.worst = off;
  if (result.examples.size() >= 40) return;
  char text[200];
  std::snprintf(text, sizeof text, "  at %08x (%a): %08x, not %08x", bits_of(x), x, bits_of(actual),
                bits_of(expected));
  result.examples.emplace_back(text);
}

constexpr int kGroup = 64;

// Independent chains, for the vectoriser.
uint64_t hash_of(const float* x) {
  uint32_t lanes[kGroup] = {};
  for (int i = 0; i < kChunk; i += kGroup) {
    for (int l = 0; l < kGroup; ++l) lanes[l] = (lanes[l] ^ bits_of(x[i + l])) * 0x01000193u;
  }
  uint64_t hash = 0;
  for (const uint32_t lane : lanes) hash = (hash ^ lane) * 0x100000001b3u;
  return hash;
}

// The correctly rounded value; counts what binary64 could not decide.
float decide(Unary function, float x, double middle, float low, float high, uint64_t& close) {
  if (std::isnan(x) || std::isnan(middle)) return value_of(0x7fc00000u);
  if (std::isinf(x) || std::isinf(middle) || middle == 0.0) return static_cast<float>(middle);
  if (bits_of(low) == bits_of(high)) return low;
  ++close;
  return exhaustive::exact(function, x);
}

void check(const kolm::Kernels& kernels, Unary function, const std::vector<float>& inputs,
           uint64_t index, Result& result) {
  static thread_local double wide[kChunk], middle[kChunk];
  static thread_local float outputs[kChunk], low[kChunk], high[kChunk];
  kernels.maps.unary(function, kChunk, inputs.data(), outputs);
  for (int i = 0; i < kChunk; ++i) wide[i] = static_cast<double>(inputs[i]);
  exhaustive::close(function, wide, middle);
  const double beside = is_derivative(function) ? 0x1p-44 : 0.0;
  for (int i = 0; i < kChunk; ++i) {
    const double error = std::fabs(middle[i]) * 0x1p-42 + (std::fabs(wide[i]) < 4.0 ? beside : 0.0);
    low[i] = static_cast<float>(middle[i] - error);
    high[i] = static_cast<float>(middle[i] + error);
  }
  uint64_t close = 0;
  for (int start = 0; start < kChunk; start += kGroup) {
    uint32_t differs = 0;
    for (int i = start; i < start + kGroup; ++i) {
      const uint32_t actual = bits_of(outputs[i]);
      differs |= (bits_of(low[i]) ^ actual) | (bits_of(high[i]) ^ actual);
    }
    if (differs == 0) continue;
    for (int i = start; i < start + kGroup; ++i) {
      if (bits_of(low[i]) == bits_of(outputs[i]) && bits_of(high[i]) == bits_of(outputs[i]))
        continue;
      const float expected = decide(function, inputs[i], middle[i], low[i], high[i], close);
      if (bits_of(expected) != bits_of(outputs[i]))
        complain(result, inputs[i], outputs[i], expected);
    }
  }
  const uint64_t hash = hash_of(outputs) ^ index * 0x9e3779b97f4a7c15u;
  const std::lock_guard<std::mutex> lock(result.mutex);
  result.close += close;
  result.hash += hash;
}

// Which chunks of the numbers are checked: every `step`th of [first, end).
struct Choice {
  uint64_t first = 0, end = (uint64_t{1} << 32) / kChunk, step = 1;
};

void run(const kolm::Kernels& kernels, Unary function, const Choice& choice, Result& result) {
  std::atomic<uint64_t> next{0};
  const auto work = [&] {
    std::vector<float> inputs(kChunk);
    for (uint64_t index; (index = choice.first + next.fetch_add(1) * choice.step) < choice.end;) {
      for (int i = 0; i < kChunk; ++i)
        inputs[i] = value_of(static_cast<uint32_t>(index * kChunk + i));
      check(kernels, function, inputs, index, result);
    }
    mpfr_free_cache();
  };
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t)
    threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
}

const kolm::Kernels& table(const std::string& isa) {
  const kolm::Kernels* const* tables = kolm::available_kernels();
  for (int i = 0; tables[i] != nullptr; ++i) {
    if (isa.empty() || isa == tables[i]->isa) return *tables[i];
  }
  std::fprintf(stderr, "this machine has no instruction set %s\n", isa.c_str());
  std::exit(2);
}

int number_of(const char* name) {
  for (int i = 0; i < kolm::kUnaryCount; ++i) {
    if (std::strcmp(kNames[i], name) == 0) return i;
  }
  std::fprintf(stderr, "no function is called %s\n", name);
  std::exit(2);
}

}  // namespace

int main(int count, char** arguments) {
  std::string isa;
  Choice choice;
  std::vector<int> functions;
  for (int i = 1; i < count; ++i) {
    if (std::strncmp(arguments[i], "isa=", 4) == 0) {
      isa = arguments[i] + 4;
    } else if (std::strncmp(arguments[i], "step=", 5) == 0) {
      choice.step = std::strtoull(arguments[i] + 5, nullptr, 10);
    } else if (std::strncmp(arguments[i], "from=", 5) == 0) {
      choice.first = std::strtoull(arguments[i] + 5, nullptr, 16) / kChunk;
    } else if (std::strncmp(arguments[i], "to=", 3) == 0) {
      choice.end = std::strtoull(arguments[i] + 3, nullptr, 16) / kChunk + 1;
    } else {
      functions.push_back(number_of(arguments[i]));
    }
  }
  if (functions.empty()) {
    functions.resize(kolm::kUnaryCount);
    std::iota(functions.begin(), functions.end(), 0);
  }
  const kolm::Kernels& kernels = table(isa);
  bool good = true;
  int checked = 0;
  for (const int f : functions) {
    if (static_cast<Unary>(f) == Unary::cube) continue;  // two roundings by definition
    Result result;
    run(kernels, static_cast<Unary>(f), choice, result);
    std::printf("%-24s %s wrong %llu worst %lld close %llu hash %016llx\n", kNames[f], kernels.isa,
                static_cast<unsigned long long>(result.wrong), static_cast<long long>(result.worst),
                static_cast<unsigned long long>(result.close),
                static_cast<unsigned long long>(result.hash));
    for (const std::string& example : result.examples) std::puts(example.c_str());
    std::fflush(stdout);
    good = good && result.wrong == 0;
    ++checked;
  }
  std::printf("%d functions checked: %s\n", checked, good ? "nothing wrong" : "WRONG");
  return good ? 0 : 1;
}
