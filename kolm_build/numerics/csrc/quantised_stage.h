// Columns of a product with a quantised weight, brought into the order of vectors: words of codes
// transposed, scales widened. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "formats.h"
#include "quantised.h"
#include "scratch.h"
#include "vector.h"

namespace kolm::KOLM_ISA {

constexpr int kAbreast = 2;  // vectors of columns that are staged at once
constexpr int64_t kStaged = kAbreast * kLanes;
constexpr int64_t kLineBytes = 64;
constexpr uint32_t kSignBits = 0x80808080u;

typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));

inline Words load_words(const uint32_t* p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return words;
}
inline void store_words(uint32_t* p, Words words) { std::memcpy(p, &words, sizeof words); }

inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline bool is_4_bits(Code code) { return code == Code::offset4 || code == Code::e2m1; }
inline int64_t codes_of_word(Code code) { return is_4_bits(code) ? 8 : 4; }

// Codes, scales and zeros of kStaged columns (rows of the weight) from `column` on, in a thread's
// own memory; columns past the last have codes and scales of 0. signed8 becomes offset8.
//   words[(w * kAbreast + g) * kLanes + lane], scales[(group * kAbreast + g) * kLanes + lane]
struct Staged {
  const uint32_t* words;
  const float* scales;
  const float* zeros;  // null: none
  int64_t group;       // columns of the weight that share a scale, at most k
};

// The values of all codes of a scale of 8 bits.
struct ScaleTable {
  float values[256];

  explicit ScaleTable(const QuantisedWeight& w) {
    for (int code = 0; code < 256; ++code) values[code] = value(w, static_cast<uint8_t>(code));
  }

 private:
  static float value(const QuantisedWeight& w, uint8_t code) {
    if (w.scale == Scale::e4m3) return e4m3_to_f32(code) / w.global;
    if (w.scale != Scale::e8m0) return 0.0f;
    const uint32_t power = code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23;
    return binary32_of(code == 255 ? kQuietNaN : power);
  }
};

// kLanes rows of at most kLanes words each, transposed: of rows past the last, +0.
inline void transpose_bytes(const char* data, int64_t step, int64_t rows, int64_t bytes,
                            Vector (&block)[kLanes]) {
  if (rows >= kLanes && bytes == kLanes * 4) {
    load_transposed<Element::f32>(
        [&](int i) { return reinterpret_cast<const float*>(data + i * step); }, block);
  } else if (step % 4 == 0 && bytes % 4 == 0) {
    load_transposed_partial<Element::f32>(reinterpret_cast<const float*>(data), step / 4, rows,
                                          bytes / 4, block);
  } else {
    float copy[kLanes][kLanes] = {};
    for (int64_t i = 0; i < std::min<int64_t>(rows, kLanes); ++i)
      std::memcpy(copy[i], data + i * step, static_cast<size_t>(bytes));
    load_transposed<Element::f32>(copy[0], kLanes, kLanes, block);
  }
}

// What is staged next, by another turn, is fetched meanwhile.
inline void fetch_rows(const char* data, int64_t step) {
  for (int64_t i = 0; i < kLanes; ++i) __builtin_prefetch(data + i * step);
}

class Stage {
 public:
  // `words` of codes in a row.
  Staged columns(const QuantisedWeight& w, const ScaleTable& table, int64_t column, int64_t n,
                 int64_t k) {
    const int64_t groups = up(k, w.group), per_word = codes_of_word(w.code);
    const int64_t words = up(k, per_word);
    uint32_t* codes = integers(words_, words * kStaged);
    float* scales = scales_.floats(groups * kStaged);
    float* zeros = w.zeros ? zeros_.floats(groups * kStaged) : nullptr;
    for (int g = 0; g < kAbreast; ++g) {
      const int64_t first = column + g * kLanes, left = n - first;
      put_words(w, first, left, words, up(k, per_word / 4), codes + g * kLanes);
      put_scales(w, table, first, left, groups, scales + g * kLanes);
      if (zeros) put_zeros(w, first, left, groups, zeros + g * kLanes);
    }
    return {codes, scales, zeros, std::min(w.group, k)};
  }

 private:
  static uint32_t* integers(Scratch& scratch, int64_t count) {
    return reinterpret_cast<uint32_t*>(scratch.floats(count));
  }

  static void put_words(const QuantisedWeight& w, int64_t row, int64_t rows, int64_t words,
                        int64_t bytes, uint32_t* to) {
    const char* data = static_cast<const char*>(w.codes) + row * w.row_bytes;
    const Words flip = Words{} + (w.code == Code::signed8 ? kSignBits : 0u);
    for (int64_t word = 0; word < words; word += kLanes) {
      const int64_t deep = std::min<int64_t>(kLanes, words - word);
      Vector block[kLanes];
      const int64_t now = std::min<int64_t>(kLanes * 4, bytes - word * 4);
      transpose_bytes(data + word * 4, w.row_bytes, rows, now, block);
      if (rows >= 2 * kStaged && word * 4 % kLineBytes == 0)
        fetch_rows(data + kStaged * w.row_bytes + word * 4, w.row_bytes);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        if (j >= deep) break;
        store_words(to + (word + j) * kStaged, reinterpret_cast<Words>(block[j]) ^ flip);
      }
    }
  }

  static void put_scales(const QuantisedWeight& w, const ScaleTable& table, int64_t row,
                         int64_t rows, int64_t groups, float* to) {
    switch (w.scale) {
      case Scale::f32:
        return widen_scales<Element::f32>(w, row, rows, groups, to);
      case Scale::bf16:
        return widen_scales<Element::bf16>(w, row, rows, groups, to);
      case Scale::f16:
        return widen_scales<Element::f16>(w, row, rows, groups, to);
      default:
        return look_up_scales(w, table, row, rows, groups, to);
    }
  }

  template <Element E>
  static void widen_scales(const QuantisedWeight& w, int64_t row, int64_t rows, int64_t groups,
                           float* to) {
    const auto* data = static_cast<const Storage<E>*>(w.scales) + row * w.scale_step;
    for (int64_t group = 0; group < groups; group += kLanes) {
      const int64_t deep = std::min<int64_t>(kLanes, groups - group);
      Vector block[kLanes];
      load_transposed_partial<E>(data + group, w.scale_step, rows, deep, block);
      for (int64_t j = 0; j < deep; ++j) store(to + (group + j) * kStaged, block[j]);
    }
  }

  static void look_up_scales(const QuantisedWeight& w, const ScaleTable& table, int64_t row,
                             int64_t rows, int64_t groups, float* to) {
    const auto* data = static_cast<const uint8_t*>(w.scales);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const uint8_t* codes = data + (row + std::min(lane, rows - 1)) * w.scale_step;
      for (int64_t group = 0; group < groups; ++group)
        to[group * kStaged + lane] = lane < rows ? table.values[codes[group]] : 0.0f;
    }
  }

  static void put_zeros(const QuantisedWeight& w, int64_t row, int64_t rows, int64_t groups,
                        float* to) {
    const int bits = w.code == Code::offset4 ? 4 : 8, per_word = 32 / bits;
    const int offset = 1 << (bits - 1);
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t line = row + std::min(lane, rows - 1);
        const uint32_t word = w.zeros[line / per_word * w.zero_step + group];
        const int code = static_cast<int>(word >> (line % per_word * bits) & ((1u << bits) - 1));
        to[group * kStaged + lane] = static_cast<float>(code - offset);
      }
  }

  Scratch words_, scales_, zeros_;
};

}  // namespace kolm::KOLM_ISA
