// Prints a named hash for every kernel of one instruction set on inputs made from integers. The
// same lines on every machine, compiler and instruction set: spec/vectors/numerics-conformance.txt.
//   conformance [ISA]            the best instruction set of this machine, or the one named
//   conformance --flush [ISA]    with subnormal numbers flushed to zero: must print other lines
//   conformance --list           the instruction sets of this binary and machine
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

using kolm::Element;
using kolm::Kernels;
using Floats = std::vector<float>;

// ---- inputs: integers, and floating point numbers of exact construction

class Source {
 public:
  explicit Source(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t word() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  // A multiple of 2^-20 in [-scale, scale).
  float number(int scale) {
    const int32_t integer = static_cast<int32_t>(word() >> 11) - (1 << 20);
    return static_cast<float>(integer) * 0x1p-20f * static_cast<float>(scale);
  }
  Floats numbers(int64_t n, int scale) {
    Floats x(static_cast<size_t>(n));
    for (float& v : x) v = number(scale);
    return x;
  }

 private:
  uint64_t state_;
};

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// What a function is asked at: specials, every exponent, and numbers around 1.
Floats arguments() {
  Floats x;
  for (const uint32_t b :
       {0x00000000u, 0x00000001u, 0x007fffffu, 0x00800000u, 0x3f800000u, 0x3f000000u, 0x40490fdbu,
        0x42b17218u, 0x42cff1b5u, 0x7f7fffffu, 0x7f800000u, 0x7fc00000u, 0x7f800001u, 0x7fffffffu,
        0x33800000u, 0x3effffffu, 0x41200000u, 0x4b800000u, 0x4f000000u, 0x5f3759dfu}) {
    x.push_back(from_bits(b));
    x.push_back(from_bits(b | 0x80000000u));
  }
  Source source(7);
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (int i = 0; i < 4; ++i) {
      x.push_back(from_bits(exponent << 23 | (source.word() & 0x807fffffu)));
    }
  }
  for (const int scale : {1, 10, 100}) {
    const Floats more = source.numbers(1000, scale);
    x.insert(x.end(), more.begin(), more.end());
  }
  return x;
}

// ---- output: one line a name

uint64_t hash(const void* data, size_t size, uint64_t start = 0xcbf29ce484222325u) {
  const unsigned char* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) start = (start ^ bytes[i]) * 0x100000001b3u;
  return start;
}

template <class T>
void print(const std::string& name, const std::vector<T>& values) {
  std::printf("%s %016llx\n", name.c_str(),
              static_cast<unsigned long long>(hash(values.data(), values.size() * sizeof(T))));
}

std::string text(int64_t n) { return std::to_string(n); }

// ---- functions

constexpr const char* kUnary[] = {
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
constexpr const char* kBinary[] = {
    "add_scaled",       "lerp",           "pow",
    "silu_grad",        "sigmoid_grad",   "tanh_grad",
    "gelu_grad",        "gelu_tanh_grad", "softplus_grad",
    "log_sigmoid_grad", "mish_grad",
};
static_assert(sizeof kUnary / sizeof kUnary[0] == kolm::kUnaryCount);
static_assert(sizeof kBinary / sizeof kBinary[0] == kolm::kBinaryCount);

void unary(const Kernels& kernels) {
  const Floats x = arguments();
  for (int op = 0; op < kolm::kUnaryCount; ++op) {
    Floats y(x.size());
    kernels.maps.unary(static_cast<kolm::Unary>(op), static_cast<int64_t>(x.size()), x.data(),
                       y.data());
    print(std::string("unary/") + kUnary[op], y);
    // Alone, without the vector loop's neighbours: the same numbers, so the same hash.
    for (size_t i = 0; i < x.size(); ++i) {
      kernels.maps.unary(static_cast<kolm::Unary>(op), 1, &x[i], &y[i]);
    }
    print(std::string("unary-alone/") + kUnary[op], y);
  }
}

void binary(const Kernels& kernels) {
  const Floats some = arguments();
  Floats a, b;
  for (size_t i = 0; i < 40; ++i) {
    for (size_t j = 0; j < 40; ++j) {
      a.push_back(some[i]);
      b.push_back(some[j]);
    }
  }
  for (size_t i = 0; i < some.size(); ++i) {
    a.push_back(some[i]);
    b.push_back(some[(i * 7 + 3) % some.size()]);
  }
  const int64_t n = static_cast<int64_t>(a.size());
  for (int op = 0; op < kolm::kBinaryCount; ++op) {
    for (const float p : {1.0f, -0x1.99999ap-4f, 0.75f}) {
      const bool scalar = op < 2;
      if (!scalar && p != 1.0f) continue;
      Floats y(a.size());
      kernels.maps.binary(static_cast<kolm::Binary>(op), n, a.data(), b.data(), y.data(), p);
      print(std::string("binary/") + kBinary[op] + (scalar ? "/" + text(to_bits(p)) : ""), y);
    }
  }
  Floats c(a.rbegin(), a.rend());
  for (const float p : {1.0f, -0x1.0624dep-10f}) {
    Floats y(a.size());
    kernels.maps.ternary(kolm::Ternary::addcmul, n, a.data(), b.data(), c.data(), y.data(), p);
    print("ternary/addcmul/" + text(to_bits(p)), y);
    kernels.maps.ternary(kolm::Ternary::addcdiv, n, a.data(), b.data(), c.data(), y.data(), p);
    print("ternary/addcdiv/" + text(to_bits(p)), y);
  }
  Source source(11);
  const Floats base = source.numbers(4000, 40), power = source.numbers(4000, 8);
  Floats y(4000);
  kernels.maps.binary(kolm::Binary::pow, 4000, base.data(), power.data(), y.data(), 0.0f);
  print("binary/pow/numbers", y);
}

void adamw(const Kernels& kernels) {
  for (int chosen = 0; chosen < 16; ++chosen) {
    Source source(21);
    const kolm::AdamW scalars = {
        0x1.fffcb9p-1f,    0x1.47ae14p-7f,  (chosen & 8) != 0 ? 0x1.4cccccp-1f : 0x1.99999ap-4f,
        0x1.ff7cedp-1f,    0x1.0624dep-10f, 0x1.a36e2ep-12f,
        0x1.cp-3f,         0x1.5798eep-27f, (chosen & 1) != 0,
        (chosen & 2) != 0,
    };
    const int64_t n = 1003;
    const Floats grad = source.numbers(n, 2);
    Floats param = source.numbers(n, 1), mean(n), square(n), most(n);
    for (int step = 0; step < 3; ++step) {
      kernels.maps.adamw(scalars, n, grad.data(), param.data(), mean.data(), square.data(),
                         (chosen & 4) != 0 ? most.data() : nullptr);
    }
    param.insert(param.end(), mean.begin(), mean.end());
    param.insert(param.end(), square.begin(), square.end());
    param.insert(param.end(), most.begin(), most.end());
    print("adamw/" + text(chosen), param);
  }
}

// ---- storage formats

template <class Code>
void format(const std::string& name, int64_t codes, void (*widen)(int64_t, const Code*, float*),
            void (*narrow)(int64_t, const float*, Code*)) {
  std::vector<Code> code(static_cast<size_t>(codes));
  for (int64_t i = 0; i < codes; ++i) code[static_cast<size_t>(i)] = static_cast<Code>(i);
  Floats wide(code.size());
  widen(codes, code.data(), wide.data());
  print("widen/" + name, wide);
  // Every code, the middles between codes, and the neighbours of those.
  Floats x = arguments();
  for (const float v : wide) {
    const uint32_t bits = to_bits(v);
    for (const uint32_t half : {0x0u, 0x800u, 0x1000u, 0x8000u, 0x80000u, 0x100000u, 0x200000u}) {
      for (const uint32_t off : {0u, 1u, 0xffffffffu}) x.push_back(from_bits(bits + half + off));
    }
  }
  std::vector<Code> y(x.size());
  narrow(static_cast<int64_t>(x.size()), x.data(), y.data());
  print("narrow/" + name, y);
}

void formats(const Kernels& kernels) {
  const kolm::MapKernels& maps = kernels.maps;
  format("bf16", 65536, maps.widen_bf16, maps.narrow_bf16);
  format("f16", 65536, maps.widen_f16, maps.narrow_f16);
  format("e4m3", 256, maps.widen_e4m3, maps.narrow_e4m3);
  format("e5m2", 256, maps.widen_e5m2, maps.narrow_e5m2);
  format("e2m1", 16, maps.widen_e2m1, maps.narrow_e2m1);
}

// ---- sums and rows

void sums(const Kernels& kernels) {
  constexpr const char* terms[] = {"value",   "square",         "magnitude",
                                   "product", "centred_square", "exp_shifted"};
  Source source(31);
  const Floats x = source.numbers(70000, 3), y = source.numbers(70000, 3);
  for (int term = 0; term < 6; ++term) {
    for (const int64_t n :
         {0, 1, 2, 31, 33, 63, 64, 65, 100, 1000, 4095, 4096, 4097, 5003, 65537}) {
      const float s =
          kernels.rows.sum(static_cast<kolm::Term>(term), n, x.data(), y.data(), 0.3125f);
      print(std::string("sum/") + terms[term] + "/" + text(n), Floats{s});
    }
  }
  // Three levels of blocks.
  Floats long_row(static_cast<size_t>(4096) * 4096 + 5000);
  for (size_t i = 0; i < long_row.size(); ++i) long_row[i] = x[i % 69997];
  print("sum/value/levels",
        Floats{kernels.rows.sum(kolm::Term::value, static_cast<int64_t>(long_row.size()),
                                long_row.data(), nullptr, 0.0f)});
}

void column_sums(const Kernels& kernels) {
  Source source(41);
  const Floats x = source.numbers(700000, 3), y = source.numbers(700000, 3);
  const Floats mean = source.numbers(9000, 1), rstd = source.numbers(9000, 2);
  for (const int64_t rows : {0, 1, 2, 63, 64, 65, 200, 4096, 4097, 8200}) {
    for (const int64_t columns : {1, 3, 15, 64, 81}) {
      const std::string shape = text(rows) + "x" + text(columns);
      Floats out(static_cast<size_t>(columns));
      kernels.rows.column_sums(rows, columns, x.data(), columns, out.data());
      print("column_sums/" + shape, out);
      if (rows > 200) continue;
      kernels.rows.column_sums(rows, columns, x.data(), columns + 3, out.data());
      print("column_sums/apart/" + shape, out);
      kernels.rows.column_sums_centred(rows, columns, x.data(), columns, y.data(), columns + 1,
                                       mean.data(), rstd.data(), out.data());
      print("column_sums_centred/" + shape, out);
    }
  }
}

void rows_of(const Kernels& kernels, int64_t n) {
  Source source(static_cast<uint64_t>(50 + n));
  const kolm::RowKernels& rows = kernels.rows;
  const Floats x = source.numbers(n, 12), dy = source.numbers(n, 1), gain = source.numbers(n, 2);
  const Floats bias = source.numbers(n, 1);
  const std::string size = "/" + text(n);
  Floats y(x.size()), dx(x.size());
  rows.softmax(n, x.data(), y.data());
  print("softmax" + size, y);
  rows.softmax_grad(n, dy.data(), y.data(), dx.data());
  print("softmax_grad" + size, dx);
  rows.log_softmax(n, x.data(), y.data());
  print("log_softmax" + size, y);
  rows.log_softmax_grad(n, dy.data(), y.data(), dx.data());
  print("log_softmax_grad" + size, dx);
  print("log_sum_exp" + size, Floats{rows.log_sum_exp(n, x.data())});
  float mean = 0.0f, rstd = 0.0f;
  rows.layer_norm(n, x.data(), gain.data(), bias.data(), 0x1.4f8b58p-17f, y.data(), &mean, &rstd);
  y.insert(y.end(), {mean, rstd});
  print("layer_norm" + size, y);
  y.resize(x.size());
  rows.layer_norm_grad(n, dy.data(), x.data(), gain.data(), mean, rstd, dx.data());
  print("layer_norm_grad" + size, dx);
  rows.layer_norm_grad(n, dy.data(), x.data(), nullptr, mean, rstd, dx.data());
  print("layer_norm_grad/plain" + size, dx);
  rows.rms_norm(n, x.data(), gain.data(), 0x1.0c6f7ap-20f, y.data(), &rstd);
  y.push_back(rstd);
  print("rms_norm" + size, y);
  y.resize(x.size());
  rows.rms_norm_grad(n, dy.data(), x.data(), gain.data(), rstd, dx.data());
  print("rms_norm_grad" + size, dx);
  rows.rms_norm_grad(n, dy.data(), x.data(), nullptr, rstd, dx.data());
  print("rms_norm_grad/plain" + size, dx);
  rows.cumulative_sum(n, x.data(), 1, y.data(), 1);
  print("cumulative_sum" + size, y);
}

// Rows with infinities, NaN and subnormal numbers.
void special_rows(const Kernels& kernels) {
  const float inf = from_bits(0x7f800000u), nan = from_bits(0xffc12345u), tiny = from_bits(3);
  const std::vector<Floats> rows = {
      {-inf, -inf, -inf},
      {-inf, 1.0f, 2.0f},
      {inf, 1.0f},
      {nan, 1.0f, inf},
      {1.0f, nan},
      {-0.0f, 0.0f, -0.0f},
      {-0.0f},
      {tiny, tiny, -tiny},
      {-inf, -inf, 0.0f, nan},
      {inf, inf, -inf},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    const Floats& x = rows[i];
    const int64_t n = static_cast<int64_t>(x.size());
    Floats all, y(x.size());
    const auto keep = [&] { all.insert(all.end(), y.begin(), y.end()); };
    kernels.rows.softmax(n, x.data(), y.data());
    keep();
    kernels.rows.log_softmax(n, x.data(), y.data());
    keep();
    kernels.rows.softmax_grad(n, x.data(), x.data(), y.data());
    keep();
    float mean = 0.0f, rstd = 0.0f;
    kernels.rows.layer_norm(n, x.data(), nullptr, nullptr, 0.0f, y.data(), &mean, &rstd);
    keep();
    kernels.rows.cumulative_sum(n, x.data(), 1, y.data(), 1);
    keep();
    all.insert(all.end(), {mean, rstd, kernels.rows.log_sum_exp(n, x.data())});
    for (int term = 0; term < 6; ++term) {
      all.push_back(kernels.rows.sum(static_cast<kolm::Term>(term), n, x.data(), x.data(), 1.0f));
    }
    print("special_rows/" + text(static_cast<int64_t>(i)), all);
  }
}

// ---- random numbers

void random(const Kernels& kernels) {
  const kolm::RandomKernels& draw = kernels.random;
  const kolm::Stream streams[] = {{0, 0}, {0x123456789abcdefu, 0xfedcba9876543210u}};
  for (const kolm::Stream& stream : streams) {
    for (const int64_t first : {int64_t{0}, (int64_t{1} << 34) - 8}) {
      const int64_t n = 2003;
      const std::string name =
          "/" + text(static_cast<int64_t>(stream.seed & 0xffff)) + "/" + text(first);
      std::vector<uint32_t> words(n);
      Floats y(n);
      draw.words(stream, first, n, words.data());
      print("words" + name, words);
      draw.uniform(stream, first, n, -1.5f, 0x1.0cp+2f, y.data());
      print("uniform" + name, y);
      draw.normal(stream, first, n, 0.5f, 0x1.47ae14p-6f, y.data());
      print("normal" + name, y);
      draw.bernoulli(stream, first, n, 0.1, y.data());
      print("bernoulli" + name, y);
      draw.exponential(stream, first, n, 1.7, y.data());
      print("exponential" + name, y);
    }
  }
}

// ---- products and attention

void products(const Kernels& kernels) {
  const kolm::Parallel pool = kolm::serial();
  const int64_t shapes[][3] = {{1, 1, 1},     {3, 5, 7},      {14, 32, 256}, {15, 33, 257},
                               {29, 70, 600}, {1, 100, 1025}, {40, 3, 511},  {5, 5, 0},
                               {64, 48, 512}, {7, 130, 2049}};
  for (const auto& s : shapes) {
    const int64_t m = s[0], n = s[1], k = s[2];
    Source source(static_cast<uint64_t>(m * 1000003 + n * 1009 + k));
    const Floats a = source.numbers(m * k + 1, 3), b = source.numbers(k * n + 1, 3);
    const std::string shape = text(m) + "x" + text(n) + "x" + text(k);
    Floats c(static_cast<size_t>(m * n));
    const kolm::Operand left = {a.data(), Element::f32, k, 1},
                        right = {b.data(), Element::f32, n, 1};
    kernels.gemm.gemm(m, n, k, left, right, c.data(), n, pool);
    print("gemm/" + shape, c);
    kernels.gemm.gemm(m, n, k, {a.data(), Element::f32, 1, m}, {b.data(), Element::f32, 1, k},
                      c.data(), n, pool);
    print("gemm/transposed/" + shape, c);
    Floats packed(static_cast<size_t>(kernels.gemm.packed_floats(k, n)) + 1);
    kernels.gemm.pack(k, n, right, packed.data(), pool);
    kernels.gemm.gemm_packed(m, n, k, left, packed.data(), c.data(), n, pool);
    print("gemm/packed/" + shape, c);
    std::vector<uint16_t> narrow_a(a.size()), narrow_b(b.size());
    kernels.maps.narrow_bf16(static_cast<int64_t>(a.size()), a.data(), narrow_a.data());
    kernels.maps.narrow_f16(static_cast<int64_t>(b.size()), b.data(), narrow_b.data());
    kernels.gemm.gemm(m, n, k, {narrow_a.data(), Element::bf16, k, 1},
                      {narrow_b.data(), Element::f16, n, 1}, c.data(), n, pool);
    print("gemm/16bit/" + shape, c);
  }
}

void attention(const Kernels& kernels) {
  const kolm::Parallel pool = kolm::serial();
  const kolm::AttentionShape shapes[] = {
      {1, 1, 1, 1, 1, 8, 8, 0.5f, false},          {2, 2, 1, 17, 17, 16, 16, 0.25f, true},
      {1, 4, 2, 33, 300, 64, 64, 0.125f, false},   {1, 2, 2, 70, 70, 64, 32, 0.125f, true},
      {1, 1, 1, 5, 520, 80, 80, 0.109375f, false},
  };
  for (const kolm::AttentionShape& s : shapes) {
    Source source(static_cast<uint64_t>(s.queries * 1009 + s.keys));
    const int64_t nq = s.batch * s.heads * s.queries, nk = s.batch * s.key_heads * s.keys;
    const Floats q = source.numbers(nq * s.width, 2), k = source.numbers(nk * s.width, 2);
    const Floats v = source.numbers(nk * s.value_width, 2),
                 dout = source.numbers(nq * s.value_width, 1);
    const Floats bias = source.numbers(s.queries * s.keys, 4);
    const auto strides = [](int64_t heads, int64_t rows, int64_t width) {
      return kolm::Strides4{heads * rows * width, rows * width, width};
    };
    const kolm::Strides4 qs = strides(s.heads, s.queries, s.width),
                         ks = strides(s.key_heads, s.keys, s.width);
    const kolm::Strides4 vs = strides(s.key_heads, s.keys, s.value_width);
    const kolm::Strides4 os = strides(s.heads, s.queries, s.value_width);
    const std::string name = text(s.queries) + "x" + text(s.keys) + "x" + text(s.width);
    for (const bool masked : {false, true}) {
      const kolm::AttentionMask mask = {masked ? bias.data() : nullptr, 0, 0, s.keys, 1};
      const std::string which = masked ? "masked/" : "";
      Floats out(dout.size()), dq(q.size()), dk(k.size()), dv(v.size());
      kernels.attention.forward(s, q.data(), qs, k.data(), ks, v.data(), vs, mask, out.data(), os,
                                pool);
      print("attention/" + which + name, out);
      kernels.attention.backward(s, q.data(), qs, k.data(), ks, v.data(), vs, mask, dout.data(), os,
                                 dq.data(), qs, dk.data(), ks, dv.data(), vs, pool);
      print("attention_grad/" + which + "q/" + name, dq);
      print("attention_grad/" + which + "k/" + name, dk);
      print("attention_grad/" + which + "v/" + name, dv);
    }
  }
}

// ---- integers

// Of one sign where `bits` is 7.
std::vector<int8_t> codes(Source& source, int64_t n, int bits) {
  std::vector<int8_t> x(static_cast<size_t>(n));
  for (int8_t& v : x) v = static_cast<int8_t>(source.word() >> (32 - bits));
  return x;
}

void integer_products(const Kernels& kernels) {
  struct Shape {
    int64_t rows, columns, depth;
  };
  for (const Shape& s :
       {Shape{1, 1, 0}, Shape{1, 33, 1031}, Shape{7, 5, 64}, Shape{9, 2, 700001}}) {
    Source source(static_cast<uint64_t>(s.depth));
    const int bits = s.depth > 100000 ? 7 : 8;  // the long sums wrap
    const auto a = codes(source, s.rows * s.depth, bits);
    const auto b = codes(source, s.columns * s.depth, bits);
    std::vector<int32_t> c(static_cast<size_t>(s.rows * s.columns));
    kernels.integers.products(s.rows, s.columns, s.depth, a.data(), s.depth, b.data(), s.depth,
                              c.data(), s.columns);
    print("int_mm/" + text(s.rows) + "x" + text(s.columns) + "x" + text(s.depth), c);
  }
}

// ---- quantised weights

using Bytes = std::vector<uint8_t>;

Bytes bytes(Source& source, int64_t n) {
  Bytes x(static_cast<size_t>(n));
  for (uint8_t& v : x) v = static_cast<uint8_t>(source.word() >> 24);
  return x;
}

// A weight of n rows and k columns of random codes. `Scale` of every format is a usual number.
struct Quantised {
  Bytes codes, eighths;
  std::vector<uint16_t> halves;
  std::vector<uint32_t> zeros;
  Floats scales;
  kolm::QuantisedWeight weight;

  Quantised(Source& source, const Kernels& kernels, kolm::Code code, kolm::Scale scale, bool zero,
            int64_t n, int64_t k, int64_t group) {
    const bool four = code == kolm::Code::offset4 || code == kolm::Code::e2m1;
    const int64_t groups = (k + group - 1) / group, row = four ? (k + 1) / 2 : k;
    codes = bytes(source, n * row + 1);
    scales = source.numbers(n * groups + 1, 1);
    eighths = bytes(source, n * groups + 1);
    for (uint8_t& v : eighths)
      v = static_cast<uint8_t>(v % 24 + (scale == kolm::Scale::e8m0 ? 110 : 40));
    halves.resize(scales.size());
    const auto narrow =
        scale == kolm::Scale::f16 ? kernels.maps.narrow_f16 : kernels.maps.narrow_bf16;
    narrow(static_cast<int64_t>(scales.size()), scales.data(), halves.data());
    zeros.resize(static_cast<size_t>((n / (four ? 8 : 4) + 1) * groups));
    for (uint32_t& v : zeros) v = source.word();
    const void* stored = scale == kolm::Scale::f32 ? scales.data()
                         : scale == kolm::Scale::e4m3 || scale == kolm::Scale::e8m0
                             ? static_cast<const void*>(eighths.data())
                             : halves.data();
    weight = {codes.data(), row,   code,    stored,
              groups,       scale, 1234.5f, zero ? zeros.data() : nullptr,
              groups,       group};
  }
};

void quantised(const Kernels& kernels) {
  struct Format {
    const char* name;
    kolm::Code code;
    kolm::Scale scale;
    bool zeros;
    int64_t group;  // 0: a row
  };
  using kolm::Code;
  using kolm::Scale;
  const Format formats[] = {
      {"int4/32", Code::offset4, Scale::bf16, false, 32},
      {"int4/row", Code::offset4, Scale::f32, false, 0},
      {"int4/zeros", Code::offset4, Scale::f16, true, 64},
      {"int8/packed", Code::offset8, Scale::f32, false, 24},
      {"int8/zeros", Code::offset8, Scale::bf16, true, 0},
      {"int8", Code::signed8, Scale::bf16, false, 0},
      {"fp8", Code::e4m3, Scale::f32, false, 0},
      {"nvfp4", Code::e2m1, Scale::e4m3, false, 16},
      {"mxfp4", Code::e2m1, Scale::e8m0, false, 32},
  };
  const int64_t shapes[][3] = {
      {1, 1, 64}, {1, 70, 1031}, {3, 33, 300}, {8, 40, 576}, {21, 75, 257}};
  const kolm::Parallel pool = kolm::serial();
  for (const Format& f : formats) {
    for (const auto& s : shapes) {
      const int64_t m = s[0], n = s[1], k = s[2], group = f.group == 0 ? k : f.group;
      Source source(static_cast<uint64_t>(m * 1000003 + n * 1009 + k));
      const Quantised weight(source, kernels, f.code, f.scale, f.zeros, n, k, group);
      const Floats x = source.numbers(m * k, 3);
      Floats y(static_cast<size_t>(m * n)), row(static_cast<size_t>(k));
      const std::string name = std::string(f.name) + "/" + text(m) + "x" + text(n) + "x" + text(k);
      kernels.quantised.linear(m, n, k, x.data(), k, weight.weight, y.data(), n, pool);
      print("quantised/" + name, y);
      kernels.quantised.row(k, weight.weight, n - 1, row.data());
      print("quantised/row/" + name, row);
      if (f.code == Code::e4m3 || f.code == Code::e2m1) continue;
      kernels.dots.linear(m, n, k, x.data(), k, nullptr, weight.weight, y.data(), n, pool);
      print("quantised/dots/" + name, y);
      const float fixed = 0x1.47ae14p-7f;
      kernels.dots.linear(m, n, k, x.data(), k, &fixed, weight.weight, y.data(), n, pool);
      print("quantised/dots/fixed/" + name, y);
    }
  }
}

// ---- the program

void flush_subnormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" : : "r"(control | uint64_t{1} << 24));
#else
  std::fputs("this machine cannot flush subnormal numbers\n", stderr);
  std::exit(2);
#endif
}

const Kernels& table(const char* isa) {
  const Kernels* const* tables = kolm::available_kernels();
  for (int i = 0; tables[i] != nullptr; ++i) {
    if (isa == nullptr || std::strcmp(isa, tables[i]->isa) == 0) return *tables[i];
  }
  std::fprintf(stderr, "no instruction set %s here\n", isa);
  std::exit(2);
}

void list() {
  for (const Kernels* const* t = kolm::available_kernels(); *t != nullptr; ++t)
    std::puts((*t)->isa);
}

void run(const Kernels& kernels) {
  unary(kernels);
  binary(kernels);
  adamw(kernels);
  formats(kernels);
  sums(kernels);
  column_sums(kernels);
  for (const int64_t n : {1, 7, 64, 100, 768, 4097}) rows_of(kernels, n);
  special_rows(kernels);
  random(kernels);
  products(kernels);
  attention(kernels);
  integer_products(kernels);
  quantised(kernels);
}

}  // namespace

int main(int count, char** values) {
  int next = 1;
  bool flush = false;
  if (next < count && std::strcmp(values[next], "--list") == 0) return list(), 0;
  if (next < count && std::strcmp(values[next], "--flush") == 0) flush = true, ++next;
  const Kernels& kernels = table(next < count ? values[next] : nullptr);
  if (flush) flush_subnormals();
  run(kernels);
  return 0;
}
