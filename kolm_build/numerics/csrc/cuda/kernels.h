// The kernels of portable-1 on a GPU: what the host calls. Every pointer is device memory, every
// call is asynchronous on `stream`. Free of torch.
#pragma once

#include <cstdint>

#include "../maps.h"
#include "../random.h"
#include "../rows.h"

struct CUstream_st;

namespace kolm::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// ---- Matrix products (NUM-10, NUM-11).

enum class Storage : int { f32 = 0, bf16 = 1, f16 = 2 };

// One operand of a batch of products. Strides count elements. The batch has two levels, `outer` and
// `inner`; `group` inner problems in a row read the same matrix (heads that share keys).
struct Side {
  const void* data;
  int64_t row, column;
  int64_t outer = 0, inner = 0, group = 1;
};

struct Product {
  int64_t m, n, k;
  Side a, b;        // m x k and k x n
  Storage storage;  // of both
  float* c;         // row stride and column stride in elements
  int64_t c_row, c_column, c_outer, c_inner;
  int64_t outers, inners;
};

// How a product is cut up; no choice changes a bit.
struct GemmPlan {
  int variant;             // index of a tile shape
  bool split;              // one block a chunk of 256, summed in order afterwards
  int64_t chunks_at_once;  // that are summed before the next are computed, where split
  int64_t workspace_floats;
};

struct Device {
  int multiprocessors;
  int64_t shared_bytes;      // that one block may ask for
  int64_t workspace_floats;  // that one product may ask for
};

constexpr int gemm_variants = 5;
constexpr int any_variant = -1;

// `forced` names a variant, or any_variant.
GemmPlan plan_gemm(const Product& product, const Device& device, int forced = any_variant);
void gemm(const Product& product, const GemmPlan& plan, float* workspace, Stream stream);

// ---- Sums (NUM-20 to NUM-26). `workspace` has what the function beside it says.

// SUM of each of `rows` contiguous rows of n; `y` for products, `p` one shift a row, else null.
int64_t sum_workspace_floats(int64_t rows, int64_t n);
void sum(Term term, int64_t rows, int64_t n, const float* x, const float* y, const float* p,
         float* out, float* workspace, Stream stream);
// SUM down each column of x, or of x * ((y - mean[row]) * rstd[row]); a null mean is none.
int64_t column_workspace_floats(int64_t rows, int64_t columns);
void column_sums(int64_t rows, int64_t columns, const float* x, int64_t ldx, const float* y,
                 int64_t ldy, const float* mean, const float* rstd, float* out, float* workspace,
                 Stream stream);
// Of `outer` x n x `inner`, along n.
void running_sum(int64_t outer, int64_t n, int64_t inner, const float* x, float* y, Stream stream);

// ---- Rows (NUM-30 to NUM-37): `rows` contiguous rows of n.

void softmax(int64_t rows, int64_t n, const float* x, float* y, Stream stream);
void log_softmax(int64_t rows, int64_t n, const float* x, float* y, Stream stream);
void softmax_grad(int64_t rows, int64_t n, const float* dy, const float* y, float* dx, bool scaled,
                  float scale, Stream stream);  // times scale where scaled
void log_softmax_grad(int64_t rows, int64_t n, const float* dy, const float* y, float* dx,
                      Stream stream);
void log_sum_exp(int64_t rows, int64_t n, const float* x, float* y, Stream stream);
// An additive mask of attention, broadcast by zero strides; data is null without a mask.
struct Mask {
  const float* data;
  int64_t batch, head, row, column;
};
// Attention's scores [batch, heads, queries, keys] to probabilities, in place.
void probabilities(int64_t rows, int64_t keys, float* scores, float scale, const Mask& mask,
                   int64_t queries, int64_t heads, bool causal, bool safe, Stream stream);
// gain and bias may be null; layer_norm_grad with a null mean is that of the RMS norm.
void layer_norm(int64_t rows, int64_t n, const float* x, const float* gain, const float* bias,
                float eps, float* y, float* mean, float* rstd, Stream stream);
void layer_norm_grad(int64_t rows, int64_t n, const float* dy, const float* x, const float* gain,
                     const float* mean, const float* rstd, float* dx, Stream stream);
void rms_norm(int64_t rows, int64_t n, const float* x, const float* gain, float eps, float* y,
              float* rstd, Stream stream);
void nll_terms(int64_t rows, int64_t classes, const float* x, const int64_t* targets,
               const float* weights, int64_t ignored, float* terms, float* used, Stream stream);
// dx is zero before; `divisor`, one number on the device, for the mean.
void nll_grad(int64_t rows, int64_t classes, const float* dy, int64_t dy_stride,
              const int64_t* targets, const float* weights, int64_t ignored, const float* divisor,
              float* dx, Stream stream);
// out[targets[p]] += source[order[p]] for positions sorted by target, stably: in ascending order.
void add_runs(int64_t positions, int64_t width, const int64_t* targets, const int64_t* order,
              int64_t skipped, const float* source, float scale, bool scaled, float* out,
              Stream stream);

// ---- Maps (NUM-50 to NUM-56, NUM-80) over contiguous arrays.

void unary(Unary op, int64_t n, const float* x, float* y, Stream stream);
void binary(Binary op, int64_t n, const float* a, const float* b, float* y, float p, Stream stream);
void divide(int64_t n, const float* a, const float* b, int64_t b_stride, float* y, Stream stream);
void divide_scalar(int64_t n, const float* a, float b, float* y, Stream stream);
void ternary(Ternary op, int64_t n, const float* a, const float* b, const float* c, float* y,
             float p, Stream stream);
// t = alpha * t, then + beta * c where c is not null (NUM-12); t is contiguous.
void add_matrix(int64_t batch, int64_t rows, int64_t columns, float* t, float alpha, const float* c,
                int64_t batch_stride, int64_t row_stride, int64_t column_stride, float beta,
                Stream stream);
void adamw(const AdamW& scalars, int64_t n, const float* grad, float* param, float* mean,
           float* square, float* square_max, Stream stream);
void widen_bf16(int64_t n, const uint16_t* x, float* y, Stream stream);
void widen_f16(int64_t n, const uint16_t* x, float* y, Stream stream);
void narrow_bf16(int64_t n, const float* x, uint16_t* y, Stream stream);
void narrow_f16(int64_t n, const float* x, uint16_t* y, Stream stream);

// ---- Random numbers (NUM-60 to NUM-65): elements 0 .. n - 1 of a stream.

void random_words(kolm::Stream stream_of_words, int64_t n, uint32_t* out, Stream stream);
void random_uniform(kolm::Stream stream_of_words, int64_t n, float low, float high, float* out,
                    Stream stream);
void random_normal(kolm::Stream stream_of_words, int64_t n, float mean, float std, float* out,
                   Stream stream);
void random_bernoulli(kolm::Stream stream_of_words, int64_t n, double p, float* out, Stream stream);
void random_exponential(kolm::Stream stream_of_words, int64_t n, double rate, float* out,
                        Stream stream);

}  // namespace kolm::cuda
