// A network of Llama's form, read by the kernels alone (spec/generation.md, GEN-50 and GEN-70 on):
// what kolm_build/runtime/decoder.py does by PyTorch's operators, bit for bit. Free of torch.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace kolm::decoder {

// How a matrix takes part in a product.
enum class Kind : int32_t {
  plain = 0,      // in the network's storage format, row after row
  quantised = 1,  // codes and scales (NUM-131)
  integers = 2,   // codes, times rows that are made integers (NUM-134)
};

// A matrix of a file, with its bias. Written by kolm_build/numerics/decoder_library.py, too.
struct Matrix {
  int64_t rows, columns;
  const void* data;          // of a plain one
  const void* bias;          // in the network's storage format; null for none
  const float* input_scale;  // of `integers`; null where each row of the input has its own
  QuantisedWeight weight;    // of the other two
  Kind kind;
};

// One layer; the norms are in the network's storage format.
struct Layer {
  const void *norm, *second_norm;
  Matrix q, k, v, o, gate, up, down;
};

// A network. What it points to stays where it is as long as it is read.
struct Network {
  int64_t vocabulary, hidden, inner, layers, heads, key_heads, width;
  const float* frequencies;  // width / 2: how fast each pair of a head's numbers turns
  const Layer* layer;
  const void* norm;
  Matrix embedding, head;
  Element element;  // what is stored, and rounded to
  float eps, scale;
};

// Keys and values of a prompt, in binary32: [2 * layers, key_heads, capacity, width].
class Room {
 public:
  explicit Room(const Network& network)
      : blocks_(2 * network.layers * network.key_heads),
        heads_(network.key_heads),
        width_(network.width) {}

  int64_t length() const { return length_; }
  int64_t blocks() const { return blocks_; }
  int64_t head_step() const { return capacity_ * width_; }

  // Counts `tokens` more, which are put next.
  void begin(int64_t tokens);
  // The keys (part 0) or values (part 1) of a layer, [key_heads, capacity, width].
  float* at(int64_t layer, int part) {
    return data_.data() + (2 * layer + part) * heads_ * head_step();
  }
  // The tokens of one head of one layer.
  float* block(int64_t number) { return data_.data() + number * head_step(); }

 private:
  int64_t blocks_, heads_, width_;
  int64_t length_ = 0, capacity_ = 0;
  std::vector<float> data_;
};

// Tokens of one prompt, read after what is in its room.
struct Span {
  Room* room;
  int64_t tokens;
};

class Decoder {
 public:
  Decoder(const Network& network, const Kernels& kernels, int threads);

  // Reads the spans' tokens, which follow one another in `ids`; the logits of each span's last one
  // are written, [spans, vocabulary].
  void read(const Span* spans, int64_t count, const int32_t* ids, float* logits);

  // The first `tokens` of a room, [blocks, tokens, width], in the network's storage format.
  void keep(Room& room, int64_t tokens, void* kept) const;
  // Fills an empty room with the first `tokens` of the `kept_tokens` that were kept.
  void start(Room& room, const void* kept, int64_t kept_tokens, int64_t tokens) const;

  const Network& network() const { return network_; }
  const Kernels& kernels() const { return kernels_; }

  // What is wrong with the floating point environment of the calling thread, or of any that
  // computes; null where nothing is (NUM-3).
  static const char* trouble_here();
  const char* trouble() const;

 private:
  // A matrix and its bias in binary32.
  struct Product {
    Matrix matrix;
    std::vector<float> bias;
  };
  struct LayerParts {
    std::vector<float> norm, second_norm;
    Product q, k, v, o, gate, up, down;
  };

  Product product_of(const Matrix& matrix) const;
  std::vector<float> wide(const void* data, int64_t n) const;
  void widen(const void* data, int64_t n, float* out) const;
  void round(int64_t n, float* x) const;

  int64_t most_rows() const;
  void read_together(const Span* spans, int64_t count, const int32_t* ids, float* logits);
  void forward(const Span* spans, int64_t count, const int32_t* ids);
  void embed(const int32_t* ids, int64_t rows);
  void expect(const Span* spans, int64_t count, float* logits);
  void layer(int64_t number, const Span* spans, int64_t count, int64_t rows);
  void attend(int64_t number, const Span& span, int64_t first);
  void multiply(const Product& product, int64_t rows, const float* x, float* y) const;
  void normalise(const std::vector<float>& weight, int64_t rows, const float* x, float* y) const;
  void add(int64_t rows, float* x, const float* y) const;
  void turn(int64_t heads, int64_t position, float* x) const;
  void reach(int64_t end);
  template <class Body>
  void for_rows(int64_t rows, const Body& body) const;

  Network network_;
  const Kernels& kernels_;
  int threads_;
  std::vector<LayerParts> layers_;
  std::vector<float> norm_;
  Product head_;
  std::vector<float> frequencies_, cosines_, sines_;  // tables: [positions, width]
  // What tokens are on their way through a layer: a row each.
  std::vector<float> x_, n_, q_, k_, v_, found_, gate_, up_, mask_;
  std::vector<int64_t> positions_;
};

}  // namespace kolm::decoder
