// Reductions and row operations of spec/numerics.md, sections sums and rows. A row that one block
// of SUM covers belongs to one warp; a longer one to eight warps.
#include <stdexcept>

#include "device.h"
#include "kernels.h"
#include "math.cuh"
#include "sum.cuh"

namespace kolm::cuda {
namespace {

constexpr int long_warps = 8;
constexpr int short_rows = 4;  // rows a block of threads, where a warp has one

__device__ __forceinline__ float* scratch() { return reinterpret_cast<float*>(dynamic_shared()); }

// Launches `one` or `many`, the forms of a kernel for one warp and for several warps a row.
template <class... Parameters, class... Arguments>
void launch_rows(void (*one)(Parameters...), void (*many)(Parameters...), int64_t rows, int64_t n,
                 Stream stream, Arguments... arguments) {
  if (rows == 0) return;
  if (n <= sum_block) {
    launch(one, dim3(static_cast<unsigned>(ceil_div(rows, short_rows))), dim3(32, short_rows), 0,
           stream, arguments...);
  } else {
    const int64_t parts = ceil_div(n, sum_block);
    if (parts > sum_block) throw std::invalid_argument("a row of more than 2^24 elements");
    launch(many, dim3(static_cast<unsigned>(rows)), dim3(32 * long_warps),
           4 * (parts < long_warps ? long_warps : parts), stream, arguments...);
  }
}

// ---- SUM

__device__ __forceinline__ float term_of(Term term, const float* x, const float* y, float p,
                                         int64_t i) {
  switch (term) {
    case Term::square:
      return x[i] * x[i];
    case Term::magnitude:
      return fabsf(x[i]);
    case Term::product:
      return x[i] * y[i];
    case Term::centred_square:
      return (x[i] - p) * (x[i] - p);
    default:
      return x[i];
  }
}

// One warp a block of 4096: out[row * blocks + block]. Grid: blocks x, rows y and z.
__global__ void sum_kernel(Term term, int64_t rows, int64_t n, const float* x, const float* y,
                           const float* p, float* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  const int64_t blocks = (n + sum_block - 1) / sum_block;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows || block >= blocks) return;
  const int64_t first = block * sum_block, left = n - first;
  const float* from = x + row * n + first;
  const float* other = y + row * n + first;
  const float shift = p == nullptr ? 0.0f : p[row];
  const float sum = warp_sum(left < sum_block ? left : sum_block,
                             [&](int64_t i) { return term_of(term, from, other, shift, i); });
  if (threadIdx.x == 0) out[row * blocks + block] = canonical(sum);
}

// ---- SUM down columns

constexpr int column_width = 32, column_depth = 16;

// The sums of 4096 rows: lane l of 64 has rows l, l + 64, …; thread (x, y) has lanes y, y + 16, ….
__global__ void column_kernel(int64_t rows, int64_t columns, const float* x, int64_t ldx,
                              const float* y, int64_t ldy, const float* mean, const float* rstd,
                              float* out) {
  __shared__ float lanes[64][column_width + 1];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * column_width + threadIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * sum_block;
  const int64_t last = first + sum_block < rows ? first + sum_block : rows;
  for (int lane = threadIdx.y; lane < 64; lane += column_depth) {
    float sum = 0.0f;
    if (column < columns)
#pragma unroll 4
      for (int64_t row = first + lane; row < last; row += 64) {
        const float value = x[row * ldx + column];
        if (y == nullptr)
          sum = sum + value;
        else if (mean == nullptr)
          sum = sum + value * (y[row * ldy + column] * rstd[row]);
        else
          sum = sum + value * ((y[row * ldy + column] - mean[row]) * rstd[row]);
      }
    lanes[lane][threadIdx.x] = sum;
  }
  for (int w = 32; w > 0; w /= 2) {
    __syncthreads();
    for (int lane = threadIdx.y; lane < w; lane += column_depth)
      lanes[lane][threadIdx.x] = lanes[lane][threadIdx.x] + lanes[lane + w][threadIdx.x];
  }
  if (threadIdx.y == 0 && column < columns)
    out[blockIdx.y * columns + column] = canonical(lanes[0][threadIdx.x]);
}

// ---- Softmax

template <int warps>
__global__ void softmax_kernel(int64_t rows, int64_t n, const float* x, float* y) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float* from = x + row * n;
  float* to = y + row * n;
  const float most = Row::maximum(n, scratch(), [&](int64_t i) { return from[i]; });
  const float sum =
      Row::sum(n, scratch(), [&](int64_t i) { return to[i] = exp_f32(from[i] - most); });
  const float scale = 1.0f / sum;
  Row::each(n, [&](int64_t i) { to[i] = canonical(to[i] * scale); });
}

template <int warps>
__global__ void log_softmax_kernel(int64_t rows, int64_t n, const float* x, float* y) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float* from = x + row * n;
  const float most = Row::maximum(n, scratch(), [&](int64_t i) { return from[i]; });
  const float sum = Row::sum(n, scratch(), [&](int64_t i) { return exp_f32(from[i] - most); });
  const float log = log_f32(sum);
  Row::each(n, [&](int64_t i) { y[row * n + i] = canonical((from[i] - most) - log); });
}

template <int warps>
__global__ void softmax_grad_kernel(int64_t rows, int64_t n, const float* dy, const float* y,
                                    float* dx, bool scaled, float scale) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float *g = dy + row * n, *p = y + row * n;
  const float sum = Row::sum(n, scratch(), [&](int64_t i) { return g[i] * p[i]; });
  Row::barrier();
  Row::each(n, [&](int64_t i) {
    const float d = (g[i] - sum) * p[i];
    dx[row * n + i] = canonical(scaled ? d * scale : d);
  });
}

template <int warps>
__global__ void log_softmax_grad_kernel(int64_t rows, int64_t n, const float* dy, const float* y,
                                        float* dx) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float *g = dy + row * n, *p = y + row * n;
  const float sum = Row::sum(n, scratch(), [&](int64_t i) { return g[i]; });
  Row::barrier();
  Row::each(n, [&](int64_t i) { dx[row * n + i] = canonical(g[i] - exp_f32(p[i]) * sum); });
}

// Scores to probabilities in place (NUM-40): times scale, plus mask, softmax over the keys.
template <int warps>
__global__ void probabilities_kernel(int64_t rows, int64_t keys, float* scores, float scale,
                                     Mask mask, int64_t queries, int64_t heads, bool causal,
                                     bool safe) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const int64_t query = row % queries, head = row / queries % heads, batch = row / queries / heads;
  const float* added = mask.data == nullptr
                           ? nullptr
                           : mask.data + batch * mask.batch + head * mask.head + query * mask.row;
  float* p = scores + row * keys;
  const float hidden = __uint_as_float(0xff800000u);
  const float most = Row::maximum(keys, scratch(), [&](int64_t j) {
    float s = p[j] * scale;
    if (added != nullptr) s = s + added[j * mask.column];
    if (causal && j > query) s = hidden;
    return p[j] = s;
  });
  if (safe && most == hidden) {
    Row::each(keys, [&](int64_t j) { p[j] = 0.0f; });
    return;
  }
  const float sum =
      Row::sum(keys, scratch(), [&](int64_t j) { return p[j] = exp_f32(p[j] - most); });
  const float inverse = 1.0f / sum;
  Row::each(keys, [&](int64_t j) { p[j] = canonical(p[j] * inverse); });
}

template <int warps>
__global__ void log_sum_exp_kernel(int64_t rows, int64_t n, const float* x, float* y) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float* from = x + row * n;
  const float most = Row::maximum(n, scratch(), [&](int64_t i) { return from[i]; });
  const float sum = Row::sum(n, scratch(), [&](int64_t i) { return exp_f32(from[i] - most); });
  if (threadIdx.x == 0)
    y[row] = canonical(fabsf(most) == __uint_as_float(0x7f800000u) ? most : most + log_f32(sum));
}

// ---- Norms

template <int warps>
__global__ void layer_norm_kernel(int64_t rows, int64_t n, const float* x, const float* gain,
                                  const float* bias, float eps, float* y, float* mean_out,
                                  float* rstd_out) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float* from = x + row * n;
  const float count = static_cast<float>(n);
  const float mean = Row::sum(n, scratch(), [&](int64_t i) { return from[i]; }) / count;
  const float square =
      Row::sum(n, scratch(), [&](int64_t i) { return (from[i] - mean) * (from[i] - mean); });
  const float r = 1.0f / __fsqrt_rn(square / count + eps);
  Row::each(n, [&](int64_t i) {
    float value = (from[i] - mean) * r;
    if (gain != nullptr) value = value * gain[i];
    if (bias != nullptr) value = value + bias[i];
    y[row * n + i] = canonical(value);
  });
  if (threadIdx.x == 0) mean_out[row] = canonical(mean), rstd_out[row] = canonical(r);
}

template <int warps>
__global__ void layer_norm_grad_kernel(int64_t rows, int64_t n, const float* dy, const float* x,
                                       const float* gain, const float* means, const float* rstds,
                                       float* dx) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float *g = dy + row * n, *from = x + row * n;
  const float r = rstds[row], mean = means == nullptr ? 0.0f : means[row];
  const float count = static_cast<float>(n);
  const auto h = [&](int64_t i) { return gain == nullptr ? g[i] : g[i] * gain[i]; };
  const auto u = [&](int64_t i) { return (means == nullptr ? from[i] : from[i] - mean) * r; };
  const float a = means == nullptr ? 0.0f : Row::sum(n, scratch(), h) / count;
  const float c = Row::sum(n, scratch(), [&](int64_t i) { return h(i) * u(i); }) / count;
  Row::barrier();
  Row::each(n, [&](int64_t i) {
    const float centred = means == nullptr ? h(i) : h(i) - a;
    dx[row * n + i] = canonical(r * (centred - u(i) * c));
  });
}

template <int warps>
__global__ void rms_norm_kernel(int64_t rows, int64_t n, const float* x, const float* gain,
                                float eps, float* y, float* rstd_out) {
  using Row = Team<warps>;
  const int64_t row = Row::row();
  if (row >= rows) return;
  const float* from = x + row * n;
  const float square = Row::sum(n, scratch(), [&](int64_t i) { return from[i] * from[i]; });
  const float r = 1.0f / __fsqrt_rn(square / static_cast<float>(n) + eps);
  Row::each(n, [&](int64_t i) {
    const float value = from[i] * r;
    y[row * n + i] = canonical(gain == nullptr ? value : value * gain[i]);
  });
  if (threadIdx.x == 0) rstd_out[row] = canonical(r);
}

// ---- Running sums, losses, gathered sums

__global__ void running_sum_kernel(int64_t outer, int64_t n, int64_t inner, const float* x,
                                   float* y) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= outer * inner) return;
  const int64_t at = index / inner * n * inner + index % inner;
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[at + i * inner];
    sum = i == 0 ? value : sum + value;
    y[at + i * inner] = canonical(sum);
  }
}

__global__ void nll_terms_kernel(int64_t rows, int64_t classes, const float* x,
                                 const int64_t* targets, const float* weights, int64_t ignored,
                                 float* terms, float* used) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const int64_t target = targets[row];
  float term = 0.0f, weight = 0.0f;
  if (target != ignored) {
    if (target < 0 || target >= classes) {
      term = weight = __uint_as_float(0x7fc00000u);  // no class: a NaN ends the build
    } else {
      weight = weights == nullptr ? 1.0f : weights[target];
      term = -x[row * classes + target];
      if (weights != nullptr) term = term * weight;
    }
  }
  terms[row] = term;
  used[row] = weight;
}

// dx is zero before. `dy` has one element a row where dy_stride is 1.
__global__ void nll_grad_kernel(int64_t rows, int64_t classes, const float* dy, int64_t dy_stride,
                                const int64_t* targets, const float* weights, int64_t ignored,
                                const float* divisor, float* dx) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const int64_t target = targets[row];
  if (target == ignored || target < 0 || target >= classes) return;
  float g = dy[row * dy_stride];
  if (divisor != nullptr) g = g / *divisor;
  dx[row * classes + target] = canonical(weights == nullptr ? -g : -g * weights[target]);
}

// Positions sorted by target: the first thread of each run of equal targets adds the run in order.
__global__ void add_runs_kernel(int64_t positions, int64_t width, const int64_t* targets,
                                const int64_t* order, int64_t skipped, const float* source,
                                float scale, bool scaled, float* out) {
  const int64_t position = blockIdx.x, target = targets[position];
  if (target == skipped || (position > 0 && targets[position - 1] == target)) return;
  for (int64_t column = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; column < width;
       column += static_cast<int64_t>(gridDim.y) * blockDim.x) {
    float sum = out[target * width + column];
    for (int64_t p = position; p < positions && targets[p] == target; ++p) {
      const float value = source[order[p] * width + column];
      sum = sum + (scaled ? scale * value : value);
    }
    out[target * width + column] = canonical(sum);
  }
}

__global__ void zero_kernel(int64_t n, float* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < n) out[index] = 0.0f;
}

dim3 flat_grid(int64_t count) { return dim3(static_cast<unsigned>(ceil_div(count, 256))); }

}  // namespace

int64_t sum_workspace_floats(int64_t rows, int64_t n) {
  const int64_t blocks = ceil_div(n, sum_block);
  return blocks > 1 ? rows * (blocks + ceil_div(blocks, sum_block)) : 0;
}

void sum(Term term, int64_t rows, int64_t n, const float* x, const float* y, const float* p,
         float* out, float* workspace, Stream stream) {
  if (rows == 0) return;
  const int64_t blocks = n == 0 ? 1 : ceil_div(n, sum_block);
  float* to = blocks == 1 ? out : workspace;
  const int64_t planes = ceil_div(rows, 32768);
  const dim3 grid(static_cast<unsigned>(ceil_div(blocks, 4)),
                  static_cast<unsigned>(rows < 32768 ? rows : 32768),
                  static_cast<unsigned>(planes));
  if (n == 0) return launch_flat(zero_kernel, flat_grid(rows), dim3(256), stream, rows, out);
  launch(sum_kernel, grid, dim3(32, blocks == 1 ? 1 : 4), 0, stream, term, rows, n, x,
         y == nullptr ? x : y, p, to);
  if (blocks > 1)
    sum(Term::value, rows, blocks, to, nullptr, nullptr, out, workspace + rows * blocks, stream);
}

int64_t column_workspace_floats(int64_t rows, int64_t columns) {
  const int64_t blocks = ceil_div(rows, sum_block);
  return blocks > 1 ? columns * (blocks + ceil_div(blocks, sum_block)) : 0;
}

void column_sums(int64_t rows, int64_t columns, const float* x, int64_t ldx, const float* y,
                 int64_t ldy, const float* mean, const float* rstd, float* out, float* workspace,
                 Stream stream) {
  if (columns == 0) return;
  if (rows == 0)
    return launch_flat(zero_kernel, flat_grid(columns), dim3(256), stream, columns, out);
  const int64_t blocks = ceil_div(rows, sum_block);
  float* to = blocks == 1 ? out : workspace;
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, column_width)),
                  static_cast<unsigned>(blocks));
  launch(column_kernel, grid, dim3(column_width, column_depth), 0, stream, rows, columns, x, ldx, y,
         ldy, mean, rstd, to);
  if (blocks > 1)
    column_sums(blocks, columns, to, columns, nullptr, 0, nullptr, nullptr, out,
                workspace + columns * blocks, stream);
}

void softmax(int64_t rows, int64_t n, const float* x, float* y, Stream stream) {
  launch_rows(softmax_kernel<1>, softmax_kernel<long_warps>, rows, n, stream, rows, n, x, y);
}
void log_softmax(int64_t rows, int64_t n, const float* x, float* y, Stream stream) {
  launch_rows(log_softmax_kernel<1>, log_softmax_kernel<long_warps>, rows, n, stream, rows, n, x,
              y);
}
void softmax_grad(int64_t rows, int64_t n, const float* dy, const float* y, float* dx, bool scaled,
                  float scale, Stream stream) {
  launch_rows(softmax_grad_kernel<1>, softmax_grad_kernel<long_warps>, rows, n, stream, rows, n, dy,
              y, dx, scaled, scale);
}
void log_softmax_grad(int64_t rows, int64_t n, const float* dy, const float* y, float* dx,
                      Stream stream) {
  launch_rows(log_softmax_grad_kernel<1>, log_softmax_grad_kernel<long_warps>, rows, n, stream,
              rows, n, dy, y, dx);
}
void log_sum_exp(int64_t rows, int64_t n, const float* x, float* y, Stream stream) {
  launch_rows(log_sum_exp_kernel<1>, log_sum_exp_kernel<long_warps>, rows, n, stream, rows, n, x,
              y);
}
void probabilities(int64_t rows, int64_t keys, float* scores, float scale, const Mask& mask,
                   int64_t queries, int64_t heads, bool causal, bool safe, Stream stream) {
  launch_rows(probabilities_kernel<1>, probabilities_kernel<long_warps>, rows, keys, stream, rows,
              keys, scores, scale, mask, queries, heads, causal, safe);
}
void layer_norm(int64_t rows, int64_t n, const float* x, const float* gain, const float* bias,
                float eps, float* y, float* mean, float* rstd, Stream stream) {
  launch_rows(layer_norm_kernel<1>, layer_norm_kernel<long_warps>, rows, n, stream, rows, n, x,
              gain, bias, eps, y, mean, rstd);
}
void layer_norm_grad(int64_t rows, int64_t n, const float* dy, const float* x, const float* gain,
                     const float* mean, const float* rstd, float* dx, Stream stream) {
  launch_rows(layer_norm_grad_kernel<1>, layer_norm_grad_kernel<long_warps>, rows, n, stream, rows,
              n, dy, x, gain, mean, rstd, dx);
}
void rms_norm(int64_t rows, int64_t n, const float* x, const float* gain, float eps, float* y,
              float* rstd, Stream stream) {
  launch_rows(rms_norm_kernel<1>, rms_norm_kernel<long_warps>, rows, n, stream, rows, n, x, gain,
              eps, y, rstd);
}
void running_sum(int64_t outer, int64_t n, int64_t inner, const float* x, float* y, Stream stream) {
  if (outer * inner == 0) return;
  launch_flat(running_sum_kernel, flat_grid(outer * inner), dim3(256), stream, outer, n, inner, x,
              y);
}
void nll_terms(int64_t rows, int64_t classes, const float* x, const int64_t* targets,
               const float* weights, int64_t ignored, float* terms, float* used, Stream stream) {
  if (rows == 0) return;
  launch_flat(nll_terms_kernel, flat_grid(rows), dim3(256), stream, rows, classes, x, targets,
              weights, ignored, terms, used);
}
void nll_grad(int64_t rows, int64_t classes, const float* dy, int64_t dy_stride,
              const int64_t* targets, const float* weights, int64_t ignored, const float* divisor,
              float* dx, Stream stream) {
  if (rows == 0) return;
  launch_flat(nll_grad_kernel, flat_grid(rows), dim3(256), stream, rows, classes, dy, dy_stride,
              targets, weights, ignored, divisor, dx);
}
void add_runs(int64_t positions, int64_t width, const int64_t* targets, const int64_t* order,
              int64_t skipped, const float* source, float scale, bool scaled, float* out,
              Stream stream) {
  if (positions == 0 || width == 0) return;
  const dim3 grid(static_cast<unsigned>(positions), static_cast<unsigned>(ceil_div(width, 256)));
  launch_flat(add_runs_kernel, grid, dim3(256), stream, positions, width, targets, order, skipped,
              source, scale, scaled, out);
}

}  // namespace kolm::cuda
