// Random numbers: streams of the seeded generator (spec/numerics.md, section Random numbers).
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "torch_binding.h"

namespace kolm::binding {

namespace {

using at::Generator;

constexpr int64_t kTask = 1 << 14;  // elements; a multiple of 4, as RandomKernels wants

// One stream of `generator`, or of the default one (NUM-62).
Stream next_stream(const std::optional<Generator>& generator) {
  auto* source = at::get_generator_or_default<at::CPUGeneratorImpl>(
      generator, at::detail::getDefaultCPUGenerator());
  std::lock_guard lock(source->mutex_);
  return {source->current_seed(), source->random64()};
}

// Calls `fill(first, count, out)` for parts of a new tensor of `sizes`, on all threads.
template <class Fill>
Tensor drawn(IntArrayRef sizes, const Fill& fill) {
  Tensor out = new_floats(sizes);
  float* values = floats(out);
  const int64_t n = out.numel();
  for_ranges((n + kTask - 1) / kTask, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kTask;
    fill(first, std::min(n, end * kTask) - first, values + first);
  });
  return out;
}

Tensor& store(const char* op, Tensor& self, const Tensor& values) {
  require_storage(op, self);
  return self.copy_(narrowed(values, self.scalar_type()));
}

// `fill` as in `drawn`, into `self`; straight into its memory where that is binary32 in order.
template <class Fill>
Tensor& draw(const char* op, Tensor& self, const Fill& fill) {
  require_storage(op, self);
  if (self.scalar_type() != at::kFloat || !self.is_contiguous()) {
    return store(op, self, drawn(self.sizes(), fill));
  }
  float* values = floats(self);
  const int64_t n = self.numel();
  for_ranges((n + kTask - 1) / kTask, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kTask;
    fill(first, std::min(n, end * kTask) - first, values + first);
  });
  return self;
}

Tensor& normal_(Tensor& self, double mean, double std, std::optional<Generator> generator) {
  TORCH_CHECK(std >= 0.0, "normal expects std >= 0.0, but found std ", std);
  const Stream stream = next_stream(generator);
  return draw("normal_", self, [&](int64_t first, int64_t n, float* out) {
    kernels().random.normal(stream, first, n, static_cast<float>(mean), static_cast<float>(std),
                            out);
  });
}

Tensor& uniform_(Tensor& self, double low, double high, std::optional<Generator> generator) {
  TORCH_CHECK(low <= high, "uniform_ expects from <= to, but found from=", low, " > to=", high);
  const Stream stream = next_stream(generator);
  return draw("uniform_", self, [&](int64_t first, int64_t n, float* out) {
    kernels().random.uniform(stream, first, n, static_cast<float>(low), static_cast<float>(high),
                             out);
  });
}

Tensor& exponential_(Tensor& self, double rate, std::optional<Generator> generator) {
  TORCH_CHECK(rate > 0.0, "exponential_ expects lambda > 0.0, but found lambda=", rate);
  const Stream stream = next_stream(generator);
  return draw("exponential_", self, [&](int64_t first, int64_t n, float* out) {
    kernels().random.exponential(stream, first, n, rate, out);
  });
}

// ---- Bernoulli and dropout
// ------------------------------------------------------------------------

Tensor bernoulli_values(IntArrayRef sizes, double p, const std::optional<Generator>& generator) {
  const Stream stream = next_stream(generator);
  return drawn(sizes, [&](int64_t first, int64_t n, float* out) {
    kernels().random.bernoulli(stream, first, n, p, out);
  });
}

void check_probability(double p) {
  TORCH_CHECK(p >= 0.0 && p <= 1.0, "bernoulli_ expects p to be in [0, 1], but got p=", p);
}

// 0 and 1 fit in every dtype, so every dtype is served.
Tensor& bernoulli_float(Tensor& self, double p, std::optional<Generator> generator) {
  check_probability(p);
  if (self.scalar_type() != at::kFloat || !self.is_contiguous()) {
    return self.copy_(bernoulli_values(self.sizes(), p, generator));
  }
  const Stream stream = next_stream(generator);
  return draw("bernoulli_", self, [&](int64_t first, int64_t n, float* out) {
    kernels().random.bernoulli(stream, first, n, p, out);
  });
}

// Each element's own probability; words below floor(p * 2^32) are 1 (NUM-63).
Tensor& bernoulli_tensor(Tensor& self, const Tensor& p_in, std::optional<Generator> generator) {
  const Tensor p = widened("bernoulli_", p_in).expand(self.sizes()).contiguous();
  const float* probabilities = const_floats(p);
  const Stream stream = next_stream(generator);
  const Tensor values = drawn(self.sizes(), [&](int64_t first, int64_t n, float* out) {
    std::vector<uint32_t> words(n);
    kernels().random.words(stream, first, n, words.data());
    for (int64_t i = 0; i < n; ++i) {
      const double probability = probabilities[first + i];
      check_probability(probability);
      const auto bound = static_cast<uint64_t>(std::floor(probability * 4294967296.0));
      out[i] = words[i] < bound ? 1.0f : 0.0f;
    }
  });
  return self.copy_(values);
}

Tensor& bernoulli_out(const Tensor& p, std::optional<Generator> generator, Tensor& out) {
  at::native::resize_output(out, p.sizes());
  return bernoulli_tensor(out, p, generator);
}

// As torch.dropout, which PyTorch composes: x * (mask / (1 - p)).
std::tuple<Tensor, Tensor> native_dropout(const Tensor& x, double p, std::optional<bool> train) {
  if (x.numel() == 0 || (train && !*train)) {
    return {x.clone(), at::ones_like(x, x.options().dtype(at::kBool))};
  }
  const Tensor kept = bernoulli_values(x.sizes(), 1.0 - p, std::nullopt);
  const Tensor scale = p == 1.0 ? kept : at::div(kept, 1.0 - p);
  const Tensor y = at::mul(widened("native_dropout", x), scale);
  return {narrowed(y, x.scalar_type()), kept.to(at::kBool)};
}

Tensor native_dropout_backward(const Tensor& grad, const Tensor& mask, double scale) {
  const Tensor dx = at::mul(at::mul(widened("native_dropout_backward", grad), mask), scale);
  return narrowed(dx, grad.scalar_type());
}

// ---- integers
// -------------------------------------------------------------------------------------

// 64-bit elements 0..n of a stream (NUM-61: words 2i, 2i + 1, the low one first).
std::vector<uint64_t> long_words(Stream stream, int64_t n) {
  std::vector<uint64_t> elements(n);
  for_ranges((n + kTask - 1) / kTask, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kTask, count = std::min(n, end * kTask) - first;
    std::vector<uint32_t> words(2 * count);
    kernels().random.words(stream, 2 * first, 2 * count, words.data());
    for (int64_t i = 0; i < count; ++i) {
      elements[first + i] = words[2 * i] | static_cast<uint64_t>(words[2 * i + 1]) << 32;
    }
  });
  return elements;
}

// Integers in [from, from + range); range 0 means all 2^64.
Tensor& random_integers(Tensor& self, int64_t from, uint64_t range,
                        const std::optional<Generator>& generator) {
  const Stream stream = next_stream(generator);
  const std::vector<uint64_t> elements = long_words(stream, self.numel());
  const Tensor values = at::empty(self.sizes(), at::kLong);
  int64_t* out = values.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < elements.size(); ++i) {
    const uint64_t offset = range ? elements[i] % range : elements[i];
    out[i] = static_cast<int64_t>(static_cast<uint64_t>(from) + offset);
  }
  return self.copy_(values);
}

// One more than the largest integer up to which a dtype holds every integer; 0 for all of int64.
uint64_t integers_of(ScalarType type) {
  switch (type) {
    case at::kBool:
      return 2;
    case at::kByte:
      return uint64_t{1} << 8;
    case at::kChar:
      return uint64_t{1} << 7;
    case at::kShort:
      return uint64_t{1} << 15;
    case at::kInt:
      return uint64_t{1} << 31;
    case at::kLong:
      return uint64_t{1} << 63;
    case at::kFloat:
      return (uint64_t{1} << 24) + 1;
    case at::kBFloat16:
      return (uint64_t{1} << 8) + 1;
    case at::kHalf:
      return (uint64_t{1} << 11) + 1;
    case at::kDouble:
      return (uint64_t{1} << 53) + 1;
    default:
      refuse("random_", c10::str("is not certified for ", type));
  }
}

Tensor& random_(Tensor& self, std::optional<Generator> generator) {
  return random_integers(self, 0, integers_of(self.scalar_type()), generator);
}

Tensor& random_from(Tensor& self, int64_t from, std::optional<int64_t> to,
                    std::optional<Generator> generator) {
  if (!to) {
    const uint64_t end = integers_of(self.scalar_type());
    return random_integers(self, from, end - static_cast<uint64_t>(from), generator);
  }
  TORCH_CHECK(from < *to, "random_ expects 'from' to be less than 'to', but got from=", from,
              " >= to=", *to);
  return random_integers(self, from, static_cast<uint64_t>(*to) - static_cast<uint64_t>(from),
                         generator);
}

Tensor& random_to(Tensor& self, int64_t to, std::optional<Generator> generator) {
  return random_from(self, 0, to, generator);
}

Tensor& randperm_out(int64_t n, std::optional<Generator> generator, Tensor& out) {
  TORCH_CHECK(n >= 0, "n must be non-negative, got ", n);
  const std::vector<uint64_t> keys = long_words(next_stream(generator), n);
  const Tensor order = at::arange(n, at::kLong);
  int64_t* indices = order.mutable_data_ptr<int64_t>();
  std::stable_sort(indices, indices + n, [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
  return deliver(order, out);
}

// ---- multinomial
// ------------------------------------------------------------------------------------

void check_distributions(const Tensor& p, int64_t samples, bool replacement) {
  TORCH_CHECK(p.dim() == 1 || p.dim() == 2, "prob_dist must be 1 or 2 dim");
  TORCH_CHECK(samples > 0, "cannot sample n_sample <= 0 samples");
  TORCH_CHECK(replacement || samples <= p.size(-1),
              "cannot sample n_sample > prob_dist.size(-1) samples without replacement");
  const bool valid = at::isfinite(p).logical_and(p >= 0).all().item<bool>();
  TORCH_CHECK(valid, "probability tensor contains either `inf`, `nan` or element < 0");
  TORCH_CHECK((p > 0).any(-1).all().item<bool>(),
              "invalid multinomial distribution (sum of probabilities <= 0)");
}

// The largest p / e, e exponential of rate 1; ties to the lowest index (NUM-65).
Tensor largest_races(const Tensor& p, int64_t samples, const std::optional<Generator>& generator) {
  Tensor e = new_floats(p.sizes());
  exponential_(e, 1.0, generator);
  return std::get<1>(at::topk(at::div(p, e), samples, -1, true, true));
}

Tensor multinomial(const Tensor& probabilities, int64_t samples, bool replacement,
                   std::optional<Generator> generator) {
  const Tensor p = widened("multinomial", probabilities).contiguous();
  check_distributions(p, samples, replacement);
  if (!replacement || samples == 1) return largest_races(p, samples, generator);
  // Each sample is a race of its own.
  std::vector<Tensor> draws;
  for (int64_t i = 0; i < samples; ++i) draws.push_back(largest_races(p, 1, generator));
  return at::cat(draws, -1);
}

Tensor& multinomial_out(const Tensor& p, int64_t samples, bool replacement,
                        std::optional<Generator> generator, Tensor& out) {
  return deliver(binding::multinomial(p, samples, replacement, generator), out);
}

}  // namespace

void register_random(Registrar& registrar) {
  registrar.add("normal_", &normal_);
  registrar.add("uniform_", &uniform_);
  registrar.add("exponential_", &exponential_);
  registrar.add("bernoulli_.float", &bernoulli_float);
  registrar.add("bernoulli_.Tensor", &bernoulli_tensor);
  registrar.add("bernoulli.out", &bernoulli_out);
  registrar.add("native_dropout", &native_dropout);
  registrar.add("native_dropout_backward", &native_dropout_backward);
  registrar.add("random_", &random_);
  registrar.add("random_.from", &random_from);
  registrar.add("random_.to", &random_to);
  registrar.add("randperm.generator_out", &randperm_out);
  registrar.add("multinomial", &multinomial);
  registrar.add("multinomial.out", &multinomial_out);
}

}  // namespace kolm::binding
