// The counter-based generator (random.h): Philox4x32-10 (Salmon et al., SC'11) and what is drawn
// from its words.
#include "random.h"

#include "functions.h"
#include "isa.h"

namespace kolm::KOLM_ISA {
namespace {

// A block of counters is one loop for the vectoriser.
constexpr int kCounters = 64;
constexpr int kBlock = 4 * kCounters;

// Words of the counters first / 4, first / 4 + 1, ... : element 4 * c + w is out[4 * c + w].
void philox(Stream stream, int64_t first, uint32_t* out) {
  const uint64_t counter = static_cast<uint64_t>(first) / 4;
  const uint32_t stream_low = static_cast<uint32_t>(stream.stream);
  const uint32_t stream_high = static_cast<uint32_t>(stream.stream >> 32);
  uint32_t words[4][kCounters];
  for (int c = 0; c < kCounters; ++c) {
    uint32_t key_low = static_cast<uint32_t>(stream.seed);
    uint32_t key_high = static_cast<uint32_t>(stream.seed >> 32);
    const uint64_t index = counter + static_cast<uint64_t>(c);
    uint32_t a = static_cast<uint32_t>(index), b = static_cast<uint32_t>(index >> 32);
    uint32_t x = stream_low, y = stream_high;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t left = uint64_t{0xD2511F53u} * a, right = uint64_t{0xCD9E8D57u} * x;
      const uint32_t next_a = static_cast<uint32_t>(right >> 32) ^ b ^ key_low;
      const uint32_t next_x = static_cast<uint32_t>(left >> 32) ^ y ^ key_high;
      b = static_cast<uint32_t>(right);
      y = static_cast<uint32_t>(left);
      a = next_a;
      x = next_x;
      key_low += 0x9E3779B9u;
      key_high += 0xBB67AE85u;
    }
    words[0][c] = a;
    words[1][c] = b;
    words[2][c] = x;
    words[3][c] = y;
  }
  for (int c = 0; c < kCounters; ++c) {
    for (int w = 0; w < 4; ++w) out[4 * c + w] = words[w][c];
  }
}

// Calls make(words, values) for every block of kBlock elements and copies what was asked for.
template <class Value, class Make>
void blocks(Stream stream, int64_t first, int64_t n, Value* out, Make make) {
  uint32_t words[kBlock];
  Value values[kBlock];
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t count = n - start < kBlock ? n - start : kBlock;
    philox(stream, first + start, words);
    if (count == kBlock) {
      make(words, out + start);
      continue;
    }
    make(words, values);
    for (int64_t i = 0; i < count; ++i) out[start + i] = values[i];
  }
}

void words(Stream stream, int64_t first, int64_t n, uint32_t* out) {
  blocks(stream, first, n, out, [](const uint32_t* w, uint32_t* y) {
    for (int i = 0; i < kBlock; ++i) y[i] = w[i];
  });
}

// The 24 high bits of a word as a number of [0, 1): exact.
KOLM_FN float unit(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}
// The middle of one of 2^23 parts of (0, 1): exact, never 0 or 1.
KOLM_FN float open_unit(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 9)) + 0.5f) * 0x1p-23f;
}

void uniform(Stream stream, int64_t first, int64_t n, float low, float high, float* out) {
  const float width = high - low;
  blocks(stream, first, n, out, [=](const uint32_t* w, float* y) {
    for (int i = 0; i < kBlock; ++i) y[i] = low + width * unit(w[i]);
  });
}

void normal(Stream stream, int64_t first, int64_t n, float mean, float std, float* out) {
  constexpr int pairs = kBlock / 2;
  constexpr float two_pi = 0x1.921fb6p+2f;
  blocks(stream, first, n, out, [=](const uint32_t* w, float* y) {
    float radius[pairs], angle[pairs], sine[pairs], cosine[pairs];
    for (int i = 0; i < pairs; ++i) radius[i] = open_unit(w[2 * i]);
    for (int i = 0; i < pairs; ++i) radius[i] = sqrt_f32(-2.0f * log_f32(radius[i]));
    for (int i = 0; i < pairs; ++i) angle[i] = two_pi * unit(w[2 * i + 1]);
    for (int i = 0; i < pairs; ++i) sine[i] = sin_small_f32(angle[i]);
    for (int i = 0; i < pairs; ++i) cosine[i] = cos_small_f32(angle[i]);
    for (int i = 0; i < pairs; ++i) {
      y[2 * i] = mean + std * (radius[i] * cosine[i]);
      y[2 * i + 1] = mean + std * (radius[i] * sine[i]);
    }
  });
}

// floor(p * 2^32), at most 2^32; 0 for what is no probability above 0.
uint64_t threshold(double p) {
  if (!(p > 0.0)) return 0;
  return p < 1.0 ? static_cast<uint64_t>(p * 0x1p32) : uint64_t{1} << 32;
}

void bernoulli(Stream stream, int64_t first, int64_t n, double p, float* out) {
  const uint64_t limit = threshold(p);
  if (limit >> 32 != 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = 1.0f;
    return;
  }
  const uint32_t below = static_cast<uint32_t>(limit);
  blocks(stream, first, n, out, [=](const uint32_t* w, float* y) {
    for (int i = 0; i < kBlock; ++i) y[i] = w[i] < below ? 1.0f : 0.0f;
  });
}

void exponential(Stream stream, int64_t first, int64_t n, double rate, float* out) {
  const float rounded_rate = static_cast<float>(rate);
  blocks(stream, first, n, out, [=](const uint32_t* w, float* y) {
    for (int i = 0; i < kBlock; ++i) y[i] = -log_f32(open_unit(w[i])) / rounded_rate;
  });
}

}  // namespace

extern const RandomKernels random_kernels;
const RandomKernels random_kernels = {words, uniform, normal, bernoulli, exponential};

}  // namespace kolm::KOLM_ISA
