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

// Columns of one task, many enough that what is staged next is mostly the same thread's.
inline int64_t task_columns(int64_t n, int threads) {
  constexpr int64_t tasks_per_thread = 2, most = 16;
  const int64_t blocks = (n + kStaged - 1) / kStaged;
  const int64_t each = blocks / (tasks_per_thread * std::max(threads, 1));
  return std::clamp<int64_t>(each, 1, most) * kStaged;
}

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
  const char* next;    // codes that are staged next
  bool has_nan;        // of e4m3: some code is NaN

  // Asks for a part of what is staged next; called for every word, so that the rest of the work
  // hides the wait. Codes of neighbouring rows are neighbours in memory.
  inline __attribute__((always_inline)) void fetch(int64_t word) const {
    constexpr int64_t bytes = kStaged * sizeof(uint32_t);
#pragma GCC unroll 2
    for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(next + word * bytes + at);
  }
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

class Stage {
 public:
  // Columns from `column` on; of those up to `end` the next are staged after them.
  Staged columns(const QuantisedWeight& w, const ScaleTable& table, int64_t column, int64_t end,
                 int64_t n, int64_t k) {
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
    const bool more = column + kStaged < end;
    if (more) fetch_scales(w, column + kStaged);
    const char* next = more ? static_cast<const char*>(w.codes) + (column + kStaged) * w.row_bytes
                            : reinterpret_cast<const char*>(codes);
    const bool nan = w.code == Code::e4m3 && has_nan(codes, words * kStaged);
    return {codes, scales, zeros, std::min(w.group, k), next, nan};
  }

 private:
  static uint32_t* integers(Scratch& scratch, int64_t count) {
    return reinterpret_cast<uint32_t*>(scratch.floats(count));
  }

  // Whether any byte has all of its low seven bits.
  static bool has_nan(const uint32_t* codes, int64_t count) {
    uint32_t seen = 0;
    for (int64_t i = 0; i < count; ++i) seen |= (codes[i] & 0x7f7f7f7fu) + 0x01010101u;
    return (seen & kSignBits) != 0;
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
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        if (j >= deep) break;
        store_words(to + (word + j) * kStaged, reinterpret_cast<Words>(block[j]) ^ flip);
      }
    }
  }

  static void fetch_scales(const QuantisedWeight& w, int64_t row) {
    const int64_t size = w.scale == Scale::f32 ? 4 : w.scale >= Scale::e4m3 ? 1 : 2;
    const char* data = static_cast<const char*>(w.scales) + row * w.scale_step * size;
    for (int64_t at = 0; at < kStaged * w.scale_step * size; at += kLineBytes)
      __builtin_prefetch(data + at);
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
    const uint32_t mask = (1u << bits) - 1;
    const uint32_t* lines[kLanes];
    Words shift;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t line = row + std::min(lane, rows - 1);
      lines[lane] = w.zeros + line / per_word * w.zero_step;
      shift[lane] = static_cast<uint32_t>(line % per_word * bits);
    }
    for (int64_t group = 0; group < groups; ++group) {
      Words words;
      for (int64_t lane = 0; lane < kLanes; ++lane) words[lane] = lines[lane][group];
      const Words codes = words >> shift & mask;
      store(to + group * kStaged, to_numbers(codes) - broadcast(static_cast<float>(mask / 2 + 1)));
    }
  }

  // Words below 256 as numbers.
  static Vector to_numbers(Words words) {
    return reinterpret_cast<Vector>(words | 0x4b000000u) - broadcast(0x1p23f);
  }

  Scratch words_, scales_, zeros_;
};

}  // namespace kolm::KOLM_ISA
