// The kernels behind a C interface, for tests and benchmarks through ctypes; and plain references,
// written from the text of spec/numerics.md alone. Not part of the product.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <string_view>

#include "kernels.h"
#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define KOLM_API extern "C" __attribute__((visibility("default")))

namespace {

using kolm::Element;
using kolm::Kernels;
using kolm::Operand;

const Kernels& table(int isa) { return *kolm::available_kernels()[isa]; }

Operand operand(const void* data, int element, int64_t row_stride, int64_t column_stride) {
  return {data, static_cast<Element>(element), row_stride, column_stride};
}

float bits(uint32_t x) {
  float y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// binary16 by its definition.
float half(uint16_t x) {
  const int exponent = (x >> 10) & 31, fraction = x & 1023;
  const float sign = x & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign *
         std::ldexp(exponent ? 1024.0f + fraction : fraction, (exponent ? exponent : 1) - 25);
}

float at(const Operand& x, int64_t row, int64_t column) {
  const int64_t i = row * x.row_stride + column * x.column_stride;
  if (x.element == Element::f32) return static_cast<const float*>(x.data)[i];
  const uint16_t stored = static_cast<const uint16_t*>(x.data)[i];
  return x.element == Element::bf16 ? bits(static_cast<uint32_t>(stored) << 16) : half(stored);
}

// NUM-10, word for word.
float product_element(const Operand& a, const Operand& b, int64_t i, int64_t j, int64_t depth) {
  float t = 0.0f;
  for (int64_t from = 0; from < depth; from += 256) {
    float s = 0.0f;
    for (int64_t k = from; k < depth && k < from + 256; ++k)
      s = std::fma(at(a, i, k), at(b, k, j), s);
    t = t + s;
  }
  return std::isnan(t) ? bits(0x7fc00000u) : t;  // NUM-5
}

}  // namespace

// The name of instruction set `isa` in this library's order, best first; null past the last.
KOLM_API const char* kolm_isa(int isa) {
  const Kernels* const* tables = kolm::available_kernels();
  for (int i = 0; i <= isa; ++i)
    if (!tables[i]) return nullptr;
  return tables[isa]->isa;
}

KOLM_API void kolm_gemm_reference(int64_t m, int64_t n, int64_t k, const void* a, int a_element,
                                  int64_t a_row, int64_t a_column, const void* b, int b_element,
                                  int64_t b_row, int64_t b_column, float* c, int64_t ldc) {
  const Operand x = operand(a, a_element, a_row, a_column);
  const Operand y = operand(b, b_element, b_row, b_column);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = product_element(x, y, i, j, k);
}

KOLM_API void kolm_gemm(int isa, int threads, int64_t m, int64_t n, int64_t k, const void* a,
                        int a_element, int64_t a_row, int64_t a_column, const void* b,
                        int b_element, int64_t b_row, int64_t b_column, float* c, int64_t ldc) {
  table(isa).gemm.gemm(m, n, k, operand(a, a_element, a_row, a_column),
                       operand(b, b_element, b_row, b_column), c, ldc, kolm::pool_of(threads));
}

KOLM_API int64_t kolm_packed_floats(int isa, int64_t k, int64_t n) {
  return table(isa).gemm.packed_floats(k, n);
}

KOLM_API void kolm_pack(int isa, int threads, int64_t k, int64_t n, const void* b, int b_element,
                        int64_t b_row, int64_t b_column, float* packed) {
  table(isa).gemm.pack(k, n, operand(b, b_element, b_row, b_column), packed,
                       kolm::pool_of(threads));
}

KOLM_API void kolm_gemm_packed(int isa, int threads, int64_t m, int64_t n, int64_t k, const void* a,
                               int a_element, int64_t a_row, int64_t a_column, const float* packed,
                               float* c, int64_t ldc) {
  table(isa).gemm.gemm_packed(m, n, k, operand(a, a_element, a_row, a_column), packed, c, ldc,
                              kolm::pool_of(threads));
}

KOLM_API void kolm_attention_forward(int isa, int threads, const kolm::AttentionShape* shape,
                                     const float* q, const kolm::Strides4* qs, const float* k,
                                     const kolm::Strides4* ks, const float* v,
                                     const kolm::Strides4* vs, const kolm::AttentionMask* mask,
                                     float* out, const kolm::Strides4* os) {
  table(isa).attention.forward(*shape, q, *qs, k, *ks, v, *vs, *mask, out, *os,
                               kolm::pool_of(threads));
}

KOLM_API void kolm_attention_backward(int isa, int threads, const kolm::AttentionShape* shape,
                                      const float* q, const kolm::Strides4* qs, const float* k,
                                      const kolm::Strides4* ks, const float* v,
                                      const kolm::Strides4* vs, const kolm::AttentionMask* mask,
                                      const float* dout, const kolm::Strides4* dos, float* dq,
                                      const kolm::Strides4* dqs, float* dk,
                                      const kolm::Strides4* dks, float* dv,
                                      const kolm::Strides4* dvs) {
  table(isa).attention.backward(*shape, q, *qs, k, *ks, v, *vs, *mask, dout, *dos, dq, *dqs, dk,
                                *dks, dv, *dvs, kolm::pool_of(threads));
}

// Rows as the instruction set computes them: what attention is checked against.
KOLM_API void kolm_softmax(int isa, int64_t n, const float* x, float* y) {
  table(isa).rows.softmax(n, x, y);
}
KOLM_API void kolm_softmax_grad(int isa, int64_t n, const float* dy, const float* y, float* dx) {
  table(isa).rows.softmax_grad(n, dy, y, dx);
}
KOLM_API void kolm_column_sums(int isa, int64_t rows, int64_t columns, const float* x, int64_t ld,
                               float* out) {
  table(isa).rows.column_sums(rows, columns, x, ld, out);
}

// Loops of nothing but independent fused multiply-adds: what the machine can do at most. They give
// their count of floating point operations; `sink` keeps them from being optimised away.
namespace {

constexpr int kChains = 24;

#if defined(__x86_64__)
__attribute__((target("avx512f"))) double multiply_adds_512(int64_t rounds, float* sink) {
  __m512 x[kChains];
  for (__m512& chain : x) chain = _mm512_set1_ps(1.0f);
  const __m512 half = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) x[c] = _mm512_fmadd_ps(x[c], half, half);
  for (const __m512& chain : x) *sink += chain[0];
  return 32.0 * kChains * static_cast<double>(rounds);
}

__attribute__((target("avx2,fma"))) double multiply_adds_256(int64_t rounds, float* sink) {
  constexpr int chains = 12;  // 16 registers
  __m256 x[chains];
  for (__m256& chain : x) chain = _mm256_set1_ps(1.0f);
  const __m256 half = _mm256_set1_ps(0.5f);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) x[c] = _mm256_fmadd_ps(x[c], half, half);
  for (const __m256& chain : x) *sink += chain[0];
  return 16.0 * chains * static_cast<double>(rounds);
}
#endif

}  // namespace

// Runs the loop of instruction set `isa` and gives its floating point operations; 0 without one.
KOLM_API double kolm_multiply_adds(int isa, int64_t rounds, float* sink) {
#if defined(__x86_64__)
  const std::string_view name = table(isa).isa;  // or with what 8-bit integers add to it
  if (name.starts_with("avx512")) return multiply_adds_512(rounds, sink);
  if (name.starts_with("avx2")) return multiply_adds_256(rounds, sink);
#endif
  (void)isa, (void)rounds, (void)sink;
  return 0.0;
}

// Whether a pool gives back what task `failing` of a job throws, and runs the next job whole.
KOLM_API int kolm_failing_job(int threads, int64_t tasks, int64_t failing) {
  const kolm::Parallel pool = kolm::pool_of(threads);
  bool caught = false;
  try {
    kolm::parallel_for(pool, tasks, [&](int64_t task) {
      if (task == failing) throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
    caught = true;
  }
  std::atomic<int64_t> done{0};
  kolm::parallel_for(pool, tasks, [&](int64_t) { done.fetch_add(1); });
  return caught && done == tasks;
}
