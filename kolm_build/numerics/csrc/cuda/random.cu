// Random numbers of spec/numerics.md, section random: one thread a counter, four elements.
#include "device.h"
#include "kernels.h"
#include "math.cuh"

namespace kolm::cuda {
namespace {

struct Words {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon et al., SC'11).
__device__ __forceinline__ Words philox(kolm::Stream stream, uint64_t counter) {
  uint32_t key_low = static_cast<uint32_t>(stream.seed);
  uint32_t key_high = static_cast<uint32_t>(stream.seed >> 32);
  uint32_t a = static_cast<uint32_t>(counter), b = static_cast<uint32_t>(counter >> 32);
  uint32_t x = static_cast<uint32_t>(stream.stream), y = static_cast<uint32_t>(stream.stream >> 32);
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
  return {{a, b, x, y}};
}

// The 24 high bits of a word as a number of [0, 1): exact.
KOLM_FN float unit(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}
// The middle of one of 2^23 parts of (0, 1): exact, never 0 or 1.
KOLM_FN float open_unit(uint32_t word) {
  return (static_cast<float>(static_cast<int32_t>(word >> 9)) + 0.5f) * 0x1p-23f;
}

struct UniformDraw {
  float low, width;
  __device__ __forceinline__ void operator()(const Words& w, float (&out)[4]) const {
    for (int i = 0; i < 4; ++i) out[i] = low + width * unit(w.word[i]);
  }
};
struct NormalDraw {
  float mean, std;
  __device__ __forceinline__ void operator()(const Words& w, float (&out)[4]) const {
    constexpr float two_pi = 0x1.921fb6p+2f;
    for (int i = 0; i < 4; i += 2) {
      const float radius = sqrt_f32(-2.0f * log_f32(open_unit(w.word[i])));
      const float angle = two_pi * unit(w.word[i + 1]);
      out[i] = mean + std * (radius * cos_small_f32(angle));
      out[i + 1] = mean + std * (radius * sin_small_f32(angle));
    }
  }
};
struct BernoulliDraw {
  uint64_t limit;
  __device__ __forceinline__ void operator()(const Words& w, float (&out)[4]) const {
    for (int i = 0; i < 4; ++i) out[i] = w.word[i] < limit ? 1.0f : 0.0f;
  }
};
struct ExponentialDraw {
  float rate;
  __device__ __forceinline__ void operator()(const Words& w, float (&out)[4]) const {
    for (int i = 0; i < 4; ++i) out[i] = -log_f32(open_unit(w.word[i])) / rate;
  }
};

template <class Draw>
__global__ void draw_kernel(kolm::Stream stream, int64_t n, Draw draw, float* out) {
  const int64_t counter = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (4 * counter >= n) return;
  float values[4];
  draw(philox(stream, static_cast<uint64_t>(counter)), values);
  for (int i = 0; i < 4; ++i)
    if (4 * counter + i < n) out[4 * counter + i] = values[i];
}

__global__ void words_kernel(kolm::Stream stream, int64_t n, uint32_t* out) {
  const int64_t counter = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (4 * counter >= n) return;
  const Words words = philox(stream, static_cast<uint64_t>(counter));
  for (int i = 0; i < 4; ++i)
    if (4 * counter + i < n) out[4 * counter + i] = words.word[i];
}

dim3 counters(int64_t n) { return dim3(static_cast<unsigned>(ceil_div(ceil_div(n, 4), 256))); }

template <class Draw>
void draw(kolm::Stream words, int64_t n, Draw how, float* out, Stream stream) {
  if (n == 0) return;
  launch_flat(draw_kernel<Draw>, counters(n), dim3(256), stream, words, n, how, out);
}

// floor(p * 2^32), at most 2^32; 0 for what is no probability above 0.
uint64_t threshold(double p) {
  if (!(p > 0.0)) return 0;
  return p < 1.0 ? static_cast<uint64_t>(p * 0x1p32) : uint64_t{1} << 32;
}

}  // namespace

void random_words(kolm::Stream words, int64_t n, uint32_t* out, Stream stream) {
  if (n == 0) return;
  launch_flat(words_kernel, counters(n), dim3(256), stream, words, n, out);
}
void random_uniform(kolm::Stream words, int64_t n, float low, float high, float* out,
                    Stream stream) {
  draw(words, n, UniformDraw{low, high - low}, out, stream);
}
void random_normal(kolm::Stream words, int64_t n, float mean, float std, float* out,
                   Stream stream) {
  draw(words, n, NormalDraw{mean, std}, out, stream);
}
void random_bernoulli(kolm::Stream words, int64_t n, double p, float* out, Stream stream) {
  draw(words, n, BernoulliDraw{threshold(p)}, out, stream);
}
void random_exponential(kolm::Stream words, int64_t n, double rate, float* out, Stream stream) {
  draw(words, n, ExponentialDraw{static_cast<float>(rate)}, out, stream);
}

}  // namespace kolm::cuda
