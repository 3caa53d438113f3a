// The network of decoder.h. Every number is rounded where kolm_build/runtime/decoder.py rounds it:
// what passes from operator to operator is binary32 that holds values of the storage format.
#include "decoder.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstring>
#include <thread>

#include "pool.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace kolm::decoder {

namespace {

constexpr int64_t kMore = 64;        // least tokens of room behind what is read
constexpr int64_t kPositions = 512;  // rotary tables grow by so many
constexpr int64_t kMostRows = 256;   // tokens read at once: more are read in parts (NUM-43)
constexpr int64_t kMostNumbers = int64_t{1} << 26;  // of their rows; those of models are far less
constexpr int64_t kBlock = 1024;     // numbers on the stack; a head has no more (GEN-72)

int64_t all_tokens(const Span* spans, int64_t count) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += spans[i].tokens;
  return total;
}

// At least `n` numbers of memory that stays for the next call.
float* space(std::vector<float>& buffer, int64_t n) {
  if (static_cast<int64_t>(buffer.size()) < n) {
    buffer = {};
    buffer.resize(n);
  }
  return buffer.data();
}

}  // namespace

// ------------------------------------------------------------------------------------------ room

void Room::begin(int64_t tokens) {
  const int64_t end = length_ + tokens;
  if (end > capacity_) {
    const int64_t size = end + std::max(kMore, length_ / 2);
    std::vector<float> larger(blocks_ * size * width_);
    for (int64_t i = 0; i < blocks_; ++i)
      std::copy_n(data_.data() + i * head_step(), length_ * width_,
                  larger.data() + i * size * width_);
    data_ = std::move(larger);
    capacity_ = size;
  }
  length_ = end;
}

void Decoder::keep(Room& room, int64_t tokens, void* kept) const {
  const int64_t n = tokens * network_.width;
  for (int64_t i = 0; i < room.blocks(); ++i) {
    const float* from = room.block(i);
    if (network_.element == Element::f32) {
      std::memcpy(static_cast<float*>(kept) + i * n, from, n * sizeof(float));
    } else {
      auto* to = static_cast<uint16_t*>(kept) + i * n;
      const MapKernels& maps = kernels_.maps;
      (network_.element == Element::bf16 ? maps.narrow_bf16 : maps.narrow_f16)(n, from, to);
    }
  }
}

void Decoder::start(Room& room, const void* kept, int64_t kept_tokens, int64_t tokens) const {
  room.begin(tokens);
  const int64_t size = network_.element == Element::f32 ? sizeof(float) : sizeof(uint16_t);
  const auto* from = static_cast<const char*>(kept);
  for (int64_t i = 0; i < room.blocks(); ++i)
    widen(from + i * kept_tokens * network_.width * size, tokens * network_.width, room.block(i));
}

// ---------------------------------------------------------------------------------- environment

const char* Decoder::trouble_here() {
  if (std::fegetround() != FE_TONEAREST) return "rounding is not to nearest";
#if defined(__x86_64__)
  const unsigned control = _mm_getcsr();
  if ((control & 0x6000u) != 0) return "vector rounding is not to nearest";
  if ((control & 0x8000u) != 0) return "flush-to-zero is on";
  if ((control & 0x0040u) != 0) return "denormals-are-zero is on";
#elif defined(__aarch64__)
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  if ((control & (3ull << 22)) != 0) return "vector rounding is not to nearest";
  if ((control & (1ull << 24)) != 0) return "flush-to-zero is on";
  if ((control & (1ull << 19)) != 0) return "flush-to-zero of half precision is on";
#endif
  return nullptr;
}

// Each thread takes one task: none ends before all have begun.
const char* Decoder::trouble() const {
  const Parallel pool = pool_of(threads_);
  std::atomic<int> begun{0};
  std::atomic<const char*> found{nullptr};
  parallel_for(pool, pool.threads, [&](int64_t) {
    begun.fetch_add(1);
    while (begun.load() < pool.threads) std::this_thread::yield();
    if (const char* text = trouble_here()) found = text;
  });
  return found;
}

// ----------------------------------------------------------------------------------------- parts

Decoder::Decoder(const Network& network, const Kernels& kernels, int threads)
    : network_(network),
      kernels_(kernels),
      threads_(std::clamp(threads, 1, 64)),
      norm_(wide(network.norm, network.hidden)),
      head_(product_of(network.head)),
      frequencies_(network.frequencies, network.frequencies + network.width / 2) {
  for (int64_t i = 0; i < network.layers; ++i) {
    const Layer& from = network.layer[i];
    layers_.push_back({wide(from.norm, network.hidden), wide(from.second_norm, network.hidden),
                       product_of(from.q), product_of(from.k), product_of(from.v),
                       product_of(from.o), product_of(from.gate), product_of(from.up),
                       product_of(from.down)});
  }
}

std::vector<float> Decoder::wide(const void* data, int64_t n) const {
  std::vector<float> out(n);
  widen(data, n, out.data());
  return out;
}

Decoder::Product Decoder::product_of(const Matrix& matrix) const {
  Product product{matrix, {}};
  if (matrix.bias != nullptr) product.bias = wide(matrix.bias, matrix.rows);
  return product;
}

void Decoder::widen(const void* data, int64_t n, float* out) const {
  const auto* halves = static_cast<const uint16_t*>(data);
  if (network_.element == Element::bf16) return kernels_.maps.widen_bf16(n, halves, out);
  if (network_.element == Element::f16) return kernels_.maps.widen_f16(n, halves, out);
  std::memcpy(out, data, n * sizeof(float));
}

// To the storage format and back.
void Decoder::round(int64_t n, float* x) const {
  if (network_.element == Element::f32) return;
  const MapKernels& maps = kernels_.maps;
  const bool is_bf16 = network_.element == Element::bf16;
  uint16_t halves[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t some = std::min(kBlock, n - i);
    (is_bf16 ? maps.narrow_bf16 : maps.narrow_f16)(some, x + i, halves);
    (is_bf16 ? maps.widen_bf16 : maps.widen_f16)(some, halves, x + i);
  }
}

template <class Body>
void Decoder::for_rows(int64_t rows, const Body& body) const {
  constexpr int64_t kRows = 8;  // a task's
  const Parallel pool = pool_of(threads_);
  parallel_for(pool, (rows + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t i = task * kRows; i < std::min(rows, (task + 1) * kRows); ++i) body(i);
  });
}

// A product, its bias and one rounding (GEN-42; NUM-12, NUM-131, NUM-134).
void Decoder::multiply(const Product& product, int64_t rows, const float* x, float* y) const {
  const Matrix& w = product.matrix;
  const Parallel pool = pool_of(threads_);
  if (w.kind == Kind::plain) {
    kernels_.gemm.gemm(rows, w.rows, w.columns, {x, Element::f32, w.columns, 1},
                       {w.data, network_.element, 1, w.columns}, y, w.rows, pool);
  } else if (w.kind == Kind::quantised) {
    kernels_.quantised.linear(rows, w.rows, w.columns, x, w.columns, w.weight, y, w.rows, pool);
  } else {
    kernels_.dots.linear(rows, w.rows, w.columns, x, w.columns, w.input_scale, w.weight, y, w.rows,
                         pool);
  }
  for_rows(rows, [&](int64_t i) {
    float* row = y + i * w.rows;
    if (!product.bias.empty()) {
      for (int64_t j = 0; j < w.rows; ++j) row[j] = row[j] + product.bias[j];
    }
    round(w.rows, row);
  });
}

// RMS norm as the modules write it: the mean of the squares, 1 / sqrt as one operation, the storage
// format, and the weight.
void Decoder::normalise(const std::vector<float>& weight, int64_t rows, const float* x,
                        float* y) const {
  const int64_t n = network_.hidden;
  for_rows(rows, [&](int64_t i) {
    const float* from = x + i * n;
    float* to = y + i * n;
    float scale = kernels_.rows.sum(Term::square, n, from, nullptr, 0.0f) / static_cast<float>(n);
    scale = scale + network_.eps;
    kernels_.maps.unary(Unary::rsqrt, 1, &scale, &scale);
    for (int64_t j = 0; j < n; ++j) to[j] = from[j] * scale;
    round(n, to);
    for (int64_t j = 0; j < n; ++j) to[j] = to[j] * weight[j];
    round(n, to);
  });
}

// x + y, rows of hidden states, rounded.
void Decoder::add(int64_t rows, float* x, const float* y) const {
  const int64_t n = network_.hidden;
  for_rows(rows, [&](int64_t i) {
    float* row = x + i * n;
    for (int64_t j = 0; j < n; ++j) row[j] = row[j] + y[i * n + j];
    round(n, row);
  });
}

// ------------------------------------------------------------------------------------- positions

// The tables up to position `end`; sines of the first half with the sign that turning needs.
void Decoder::reach(int64_t end) {
  const int64_t width = network_.width, half = width / 2;
  const int64_t first = static_cast<int64_t>(cosines_.size()) / width;
  if (end <= first) return;
  const int64_t size = (end + kPositions - 1) / kPositions * kPositions;
  cosines_.reserve(size * width), sines_.reserve(size * width);  // both, or none: it may throw
  cosines_.resize(size * width), sines_.resize(size * width);
  for (int64_t i = first; i < size; ++i) {
    float *cosines = cosines_.data() + i * width, *sines = sines_.data() + i * width;
    for (int64_t j = 0; j < width; ++j) {
      const float angle = static_cast<float>(i) * frequencies_[j % half];
      cosines[j] = angle, sines[j] = angle;
    }
    kernels_.maps.unary(Unary::cos, width, cosines, cosines);
    kernels_.maps.unary(Unary::sin, width, sines, sines);
    round(width, cosines);
    round(width, sines);
    for (int64_t j = 0; j < half; ++j) sines[j] = -sines[j];
  }
}

// The heads of a row turned by its position: x * cos + (halves swapped) * sin, each rounded.
void Decoder::turn(int64_t heads, int64_t position, float* x) const {
  const int64_t width = network_.width, half = width / 2;
  const float* cosines = cosines_.data() + position * width;
  const float* sines = sines_.data() + position * width;
  float straight[kBlock], swapped[kBlock];
  for (int64_t h = 0; h < heads; ++h) {
    float* head = x + h * width;
    for (int64_t j = 0; j < half; ++j) {
      straight[j] = head[j] * cosines[j];
      straight[half + j] = head[half + j] * cosines[half + j];
      swapped[j] = head[half + j] * sines[j];
      swapped[half + j] = head[j] * sines[half + j];
    }
    round(width, straight);
    round(width, swapped);
    for (int64_t j = 0; j < width; ++j) head[j] = straight[j] + swapped[j];
    round(width, head);
  }
}

// ---------------------------------------------------------------------------------------- layers

// Tokens whose rows are in memory at once: fewer of a wide network, so that memory is not many times
// its file's.
int64_t Decoder::most_rows() const {
  const Network& net = network_;
  const int64_t widest = std::max({net.hidden, net.inner, net.heads * net.width});
  return std::clamp<int64_t>(kMostNumbers / widest, 1, kMostRows);
}

void Decoder::read(const Span* spans, int64_t count, const int32_t* ids, float* logits) {
  const int64_t most = most_rows();
  if (all_tokens(spans, count) <= most) return read_together(spans, count, ids, logits);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t left = spans[i].tokens; left > 0;) {
      const Span part{spans[i].room, std::min(left, most)};
      float* last = left == part.tokens ? logits + i * network_.vocabulary : nullptr;
      read_together(&part, 1, ids, last);
      ids += part.tokens, left -= part.tokens;
    }
  }
}

void Decoder::read_together(const Span* spans, int64_t count, const int32_t* ids, float* logits) {
  forward(spans, count, ids);
  if (logits != nullptr) expect(spans, count, logits);
}

void Decoder::forward(const Span* spans, int64_t count, const int32_t* ids) {
  const Network& net = network_;
  const int64_t rows = all_tokens(spans, count);
  positions_.clear();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t start = spans[i].room->length();
    spans[i].room->begin(spans[i].tokens);
    reach(start + spans[i].tokens);
    for (int64_t t = 0; t < spans[i].tokens; ++t) positions_.push_back(start + t);
  }
  space(x_, rows * net.hidden), space(n_, rows * net.hidden);
  space(q_, rows * net.heads * net.width), space(found_, rows * net.heads * net.width);
  space(k_, rows * net.key_heads * net.width), space(v_, rows * net.key_heads * net.width);
  space(gate_, rows * std::max(net.inner, net.hidden)), space(up_, rows * net.inner);
  embed(ids, rows);
  for (int64_t i = 0; i < net.layers; ++i) layer(i, spans, count, rows);
}

void Decoder::embed(const int32_t* ids, int64_t rows) {
  const Matrix& w = network_.embedding;
  const int64_t size = network_.element == Element::f32 ? sizeof(float) : sizeof(uint16_t);
  for (int64_t i = 0; i < rows; ++i) {
    float* row = x_.data() + i * w.columns;
    if (w.kind == Kind::plain) {
      widen(static_cast<const char*>(w.data) + ids[i] * w.columns * size, w.columns, row);
    } else {
      kernels_.quantised.row(w.columns, w.weight, ids[i], row);
      round(w.columns, row);
    }
  }
}

void Decoder::layer(int64_t number, const Span* spans, int64_t count, int64_t rows) {
  const Network& net = network_;
  const LayerParts& parts = layers_[number];
  float *x = x_.data(), *n = n_.data(), *gate = gate_.data(), *up = up_.data();
  const int64_t wide = net.heads * net.width, narrow = net.key_heads * net.width;
  normalise(parts.norm, rows, x, n);
  multiply(parts.q, rows, n, q_.data());
  multiply(parts.k, rows, n, k_.data());
  multiply(parts.v, rows, n, v_.data());
  for_rows(rows, [&](int64_t i) {
    turn(net.heads, positions_[i], q_.data() + i * wide);
    turn(net.key_heads, positions_[i], k_.data() + i * narrow);
  });
  for (int64_t i = 0, first = 0; i < count; first += spans[i++].tokens)
    attend(number, spans[i], first);
  for_rows(rows, [&](int64_t i) { round(wide, found_.data() + i * wide); });
  multiply(parts.o, rows, found_.data(), gate);
  add(rows, x, gate);

  normalise(parts.second_norm, rows, x, n);
  multiply(parts.gate, rows, n, gate);
  multiply(parts.up, rows, n, up);
  for_rows(rows, [&](int64_t i) {
    float *a = gate + i * net.inner, *b = up + i * net.inner;
    kernels_.maps.unary(Unary::silu, net.inner, a, a);
    round(net.inner, a);
    for (int64_t j = 0; j < net.inner; ++j) a[j] = a[j] * b[j];
    round(net.inner, a);
  });
  multiply(parts.down, rows, gate, n);
  add(rows, x, n);
}

// What the heads of one prompt's tokens see. Attention is computed in binary32 and rounded once.
void Decoder::attend(int64_t number, const Span& span, int64_t first) {
  const Network& net = network_;
  const int64_t wide = net.heads * net.width, narrow = net.key_heads * net.width;
  const int64_t end = span.room->length(), start = end - span.tokens, step = span.room->head_step();
  float *keys = span.room->at(number, 0), *values = span.room->at(number, 1);
  for (int64_t t = 0; t < span.tokens; ++t) {
    for (int64_t h = 0; h < net.key_heads; ++h) {
      const int64_t from = (first + t) * narrow + h * net.width;
      const int64_t to = h * step + (start + t) * net.width;
      std::memcpy(keys + to, k_.data() + from, net.width * sizeof(float));
      std::memcpy(values + to, v_.data() + from, net.width * sizeof(float));
    }
  }
  AttentionMask mask{nullptr, 0, 0, 0, 0};
  if (start > 0 && span.tokens > 1) {
    float* hidden = space(mask_, span.tokens * end);
    for (int64_t t = 0; t < span.tokens; ++t)
      for (int64_t j = 0; j < end; ++j)
        hidden[t * end + j] = j <= start + t ? 0.0f : -__builtin_inff();
    mask = {hidden, 0, 0, end, 1};
  }
  const bool causal = mask.data == nullptr && span.tokens > 1;
  const AttentionShape shape{1,         net.heads, net.key_heads, span.tokens, end,
                             net.width, net.width, net.scale,     causal};
  const Strides4 rows{0, net.width, wide}, kept{0, step, net.width};
  kernels_.attention.forward(shape, q_.data() + first * wide, rows, keys, kept, values, kept, mask,
                             found_.data() + first * wide, rows, pool_of(threads_));
}

// The logits of each span's last token.
void Decoder::expect(const Span* spans, int64_t count, float* logits) {
  const int64_t n = network_.hidden;
  float* x = x_.data();
  for (int64_t i = 0, end = 0; i < count; ++i) {
    end += spans[i].tokens;
    if (i != end - 1) std::memcpy(x + i * n, x + (end - 1) * n, n * sizeof(float));
  }
  normalise(norm_, count, x, n_.data());
  multiply(head_, count, n_.data(), logits);
}

}  // namespace kolm::decoder
