// Packs strips of an operand for the tiles, widening 16-bit elements on the way. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace kolm::KOLM_ISA {

// Part of an operand: `width` lines (rows of A or columns of B) of `depth` elements.
struct Strip {
  const void* data;
  int64_t line_step;
  int64_t depth_step;
  int64_t width;
  int64_t depth;
};

// Stores lanes of depth k: the whole vector where the strip goes on after it (what spills over is
// written again by depth k + 1), exactly the lanes that belong to the strip at its end.
template <int Width>
inline void put(float* packed, int64_t k, int64_t depth, int64_t line, Vector v) {
  float* to = packed + k * Width + line;
  if (line + kLanes <= Width || k + 1 < depth)
    store(to, v);
  else
    store_partial(to, v, Width - line);
}

constexpr int64_t kDepthsAtOnce = 16;

// Depths [from, to) of strips whose lines are neighbours in memory.
template <Element E, int Width>
inline void pack_depths(const Strip& strips, int64_t from, int64_t to, float* packed) {
  const auto* data = static_cast<const Storage<E>*>(strips.data);
  for (int64_t first = 0; first < strips.width; first += Width)
    for (int64_t k = from; k < to; ++k)
#pragma GCC unroll 4
      for (int64_t line = 0; line < Width; line += kLanes) {
        const auto* at = data + k * strips.depth_step + first + line;
        const int64_t left = strips.width - first - line;
        const Vector v = left >= kLanes ? widen<E>(at)
                         : left > 0     ? widen_partial<E>(at, left)
                                        : zero();
        put<Width>(packed + first * strips.depth, k, strips.depth, line, v);
      }
}

// Strips whose lines are neighbours in memory, side by side: of a few depths at once, so that both
// what is read and what is written stays near.
template <Element E, int Width>
inline void pack_along_lines(const Strip& strips, float* packed) {
  for (int64_t k = 0; k < strips.depth; k += kDepthsAtOnce)
    pack_depths<E, Width>(strips, k, std::min(strips.depth, k + kDepthsAtOnce), packed);
}

template <Element E, int Width>
inline void pack_block(const Strip& strip, int64_t k, int64_t line, float* packed) {
  const auto* data = static_cast<const Storage<E>*>(strip.data) + line * strip.line_step + k;
  const int64_t lines = strip.width - line, deep = std::min<int64_t>(kLanes, strip.depth - k);
  Vector block[kLanes];
  if (deep == kLanes) {
    load_transposed<E>(data, strip.line_step, lines, block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) put<Width>(packed, k + i, strip.depth, line, block[i]);
  } else {
    load_transposed_partial<E>(data, strip.line_step, lines, deep, block);
    for (int64_t i = 0; i < deep; ++i) put<Width>(packed, k + i, strip.depth, line, block[i]);
  }
}

template <Element E, int Width>
inline void pack_along_depth(const Strip& strip, float* packed) {
  for (int64_t k = 0; k < strip.depth; k += kLanes)
    for (int64_t line = 0; line < Width; line += kLanes)
      pack_block<E, Width>(strip, k, line, packed);
}

template <Element E, int Width>
inline void pack_scattered(const Strip& strip, float* packed) {
  const auto* data = static_cast<const Storage<E>*>(strip.data);
  for (int64_t k = 0; k < strip.depth; ++k)
    for (int64_t line = 0; line < Width; ++line)
      packed[k * Width + line] =
          line < strip.width ? widen_one<E>(data[line * strip.line_step + k * strip.depth_step])
                             : 0.0f;
}

template <Element E, int Width>
inline void pack_strips_of(const Strip& strips, float* packed) {
  static_assert(Width % kLanes == 0 || Width < kLanes, "a spilled store must stay in its strip");
  if (strips.line_step == 1) return pack_along_lines<E, Width>(strips, packed);
  for (int64_t first = 0; first < strips.width; first += Width) {
    Strip strip = strips;
    strip.data = static_cast<const Storage<E>*>(strips.data) + first * strips.line_step;
    strip.width = std::min<int64_t>(Width, strips.width - first);
    if (strip.depth_step == 1)
      pack_along_depth<E, Width>(strip, packed + first * strips.depth);
    else
      pack_scattered<E, Width>(strip, packed + first * strips.depth);
  }
}

// Strips of Width lines, one after another: line `l` at depth k goes to
// packed[l / Width * Width * depth + k * Width + l % Width]; +0 for lines past the last.
template <int Width>
inline void pack_strips(Element element, const Strip& strips, float* packed) {
  switch (element) {
    case Element::f32:
      return pack_strips_of<Element::f32, Width>(strips, packed);
    case Element::bf16:
      return pack_strips_of<Element::bf16, Width>(strips, packed);
    case Element::f16:
      return pack_strips_of<Element::f16, Width>(strips, packed);
  }
}

}  // namespace kolm::KOLM_ISA
