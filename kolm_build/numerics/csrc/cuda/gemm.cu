// GEMM of spec/numerics.md, section matrix products. Each thread keeps a block of sums in registers
// and walks the depth upwards; at the end of a chunk of 256 they are added to the totals.
#include <algorithm>
#include <utility>

#include "device.h"
#include "kernels.h"
#include "math.cuh"

namespace kolm::cuda {
namespace {

constexpr int chunk = 256;

// A tile shape: `rows` x `columns` of C a block, `depth` of K a stage, `tm` x `tn` a thread.
template <int rows_, int columns_, int depth_, int tm_, int tn_, int stages_, bool shared_totals_,
          int blocks_>
struct Tile {
  static constexpr int rows = rows_, columns = columns_, depth = depth_, tm = tm_, tn = tn_;
  static constexpr int stages = stages_, blocks = blocks_;
  static constexpr bool shared_totals = shared_totals_;
  static constexpr int across = columns / tn, down = rows / tm, threads = across * down;
  static constexpr int pad = 4;
  static constexpr int a_stage = depth * (rows + pad), b_stage = depth * (columns + pad);
  static constexpr int stage_floats = a_stage + b_stage;
  static constexpr int total_floats = shared_totals ? rows * columns : 0;
  static constexpr int64_t shared_bytes = 4ll * (stages * stage_floats + total_floats);
  static_assert(chunk % depth == 0 && depth % 8 == 0 && threads % 32 == 0);
};

using Wide = Tile<128, 256, 16, 8, 16, 2, true, 1>;
using Large = Tile<128, 128, 16, 8, 8, 2, true, 2>;
using Roomy = Tile<128, 128, 16, 8, 8, 3, false, 1>;
using Small = Tile<64, 64, 16, 4, 8, 3, false, 3>;
using Thin = Tile<8, 128, 32, 8, 1, 3, false, 4>;

// How a tile is copied to shared memory; the lanes of a warp go along the unit stride.
enum class Copying : int { along_depth, along_width, vectors_along_width };

struct Arguments {
  int64_t m, n, k;
  Side a, b;
  Copying copying_a, copying_b;
  float* c;
  int64_t c_row, c_column, c_outer, c_inner;
  int64_t inners;
  int tiles_m, tiles_n;
  bool vector_store;
  float* partial;  // chunk sums, where the chunks are split over blocks
  int64_t partial_chunk;
  int64_t first_chunk;  // of those in `partial`
};

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
__device__ __forceinline__ float widen(Bf16 x) { return widen_bf16(x.bits); }
__device__ __forceinline__ float widen(F16 x) { return widen_f16(x.bits); }

template <class T>
__device__ __forceinline__ void copy_one(float* to, const T* from, bool valid) {
  *to = valid ? widen(*from) : 0.0f;
}
template <>
__device__ __forceinline__ void copy_one<float>(float* to, const float* from, bool valid) {
  copy_async<4>(to, from, valid);
}
template <class T>
__device__ __forceinline__ void copy_four(float* to, const T* from, bool valid) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = valid ? widen(from[i]) : 0.0f;
}
template <>
__device__ __forceinline__ void copy_four<float>(float* to, const float* from, bool valid) {
  copy_async<16>(to, from, valid);
}

// Copies a `depth` x `width` piece to shared memory, depth-major: to[k * (width + pad) + w] is the
// element `w` of the panel at depth `k`. Outside the matrix it is +0, which changes no bit: a zero
// added to a sum only turns -0 into +0, and so does the addition to a total that starts from +0.
template <int width, int depth, int threads, int pad, class T>
__device__ __forceinline__ void copy_panel(float* to, const T* from, int64_t along_width,
                                           int64_t along_depth, int valid_width, int valid_depth,
                                           Copying copying) {
  const int thread = threadIdx.x;
  constexpr int pitch = width + pad;
  if (copying == Copying::vectors_along_width) {
    constexpr int per_row = width / 4, step = threads / per_row;
    if constexpr (threads % per_row == 0 && depth % (step > 0 ? step : 1) == 0 && step > 0) {
      const int w = thread % per_row * 4, k0 = thread / per_row;
      const T* source = from + w + k0 * along_depth;
      const int64_t stride = step * along_depth;
      const bool inside = w < valid_width;
#pragma unroll
      for (int k = 0; k < depth; k += step)
        copy_four<T>(to + (k0 + k) * pitch + w, source + k / step * stride,
                     inside && k0 + k < valid_depth);
    } else {
      for (int i = thread; i < per_row * depth; i += threads) {
        const int w = i % per_row * 4, k = i / per_row;
        copy_four<T>(to + k * pitch + w, from + w + k * along_depth,
                     w < valid_width && k < valid_depth);
      }
    }
  } else if (copying == Copying::along_depth) {
    constexpr int step = threads / 8;
    const int k0 = thread % 8, w0 = thread / 8;
    const T* source = from + k0 * along_depth + w0 * along_width;
    const int64_t stride = step * along_width, eight = 8 * along_depth;
#pragma unroll
    for (int w = 0; w < width; w += step) {
      const bool inside = w0 + w < valid_width;
#pragma unroll
      for (int k = 0; k < depth; k += 8)
        if (width % step == 0 || w0 + w < width)
          copy_one<T>(to + (k0 + k) * pitch + w0 + w, source + k / 8 * eight + w / step * stride,
                      inside && k0 + k < valid_depth);
    }
  } else {
    for (int i = thread; i < width * depth; i += threads) {
      const int w = i % width, k = i / width;
      copy_one<T>(to + k * pitch + w, from + w * along_width + k * along_depth,
                  w < valid_width && k < valid_depth);
    }
  }
}

template <int count>
__device__ __forceinline__ void read_fragment(float (&fragment)[count], const float* from,
                                              int group_stride) {
  if constexpr (count % 4 == 0) {
#pragma unroll
    for (int g = 0; g < count / 4; ++g) {
      const float4 four = *reinterpret_cast<const float4*>(from + g * group_stride);
      fragment[4 * g] = four.x;
      fragment[4 * g + 1] = four.y;
      fragment[4 * g + 2] = four.z;
      fragment[4 * g + 3] = four.w;
    }
  } else {
    static_assert(count == 1);
    fragment[0] = *from;
  }
}

// The thread's place in the block: a warp covers 4 x 8 threads, so that its reads of shared memory
// are broadcasts of few addresses.
template <class Shape>
__device__ __forceinline__ void place(int& tx, int& ty) {
  const int thread = threadIdx.x;
  if constexpr (Shape::across % 8 == 0 && Shape::down % 4 == 0) {
    const int warp = thread / 32, lane = thread % 32;
    tx = warp % (Shape::across / 8) * 8 + lane % 8;
    ty = warp / (Shape::across / 8) * 4 + lane / 8;
  } else {
    tx = thread % Shape::across;
    ty = thread / Shape::across;
  }
}

__device__ __forceinline__ int64_t batch_offset(const Side& side, int64_t inners, int64_t z) {
  return z / inners * side.outer + z % inners / side.group * side.inner;
}

// Tiles in groups of eight rows: blocks that run together share rows and columns in the cache.
__device__ __forceinline__ void tile_of(int index, int tiles_m, int tiles_n, int& tm, int& tn) {
  constexpr int height = 8;
  const int group = index / (height * tiles_n), first = group * height;
  const int rows = tiles_m - first < height ? tiles_m - first : height;
  const int rest = index - group * height * tiles_n;
  tm = first + rest % rows;
  tn = rest / rows;
}

template <class Shape>
__device__ __forceinline__ void multiply_stage(float (&sum)[Shape::tm][Shape::tn], const float* a,
                                               const float* b) {
  constexpr int vm = Shape::tm % 4 == 0 ? 4 : 1, vn = Shape::tn % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int k = 0; k < Shape::depth; ++k) {
    float x[Shape::tm], y[Shape::tn];
    read_fragment(x, a + k * (Shape::rows + Shape::pad), Shape::down * vm);
    read_fragment(y, b + k * (Shape::columns + Shape::pad), Shape::across * vn);
#pragma unroll
    for (int i = 0; i < Shape::tm; ++i)
#pragma unroll
      for (int j = 0; j < Shape::tn; ++j) sum[i][j] = __fmaf_rn(x[i], y[j], sum[i][j]);
  }
}

// The totals of a thread: in registers, or in shared memory where registers are short.
template <class Shape, bool shared>
struct Totals {
  float value[Shape::tm][Shape::tn] = {};

  __device__ __forceinline__ explicit Totals(float*) {}
  __device__ __forceinline__ void add(float (&sum)[Shape::tm][Shape::tn], bool) {
#pragma unroll
    for (int i = 0; i < Shape::tm; ++i)
#pragma unroll
      for (int j = 0; j < Shape::tn; ++j) {
        value[i][j] = value[i][j] + sum[i][j];
        sum[i][j] = 0.0f;
      }
  }
  __device__ __forceinline__ void read(float (&out)[Shape::tm][Shape::tn]) {
#pragma unroll
    for (int i = 0; i < Shape::tm; ++i)
#pragma unroll
      for (int j = 0; j < Shape::tn; ++j) out[i][j] = value[i][j];
  }
};

template <class Shape>
struct Totals<Shape, true> {
  float4* mine;  // element s of this thread is mine[s * threads]

  __device__ __forceinline__ explicit Totals(float* pool)
      : mine(reinterpret_cast<float4*>(pool) + threadIdx.x) {}
  __device__ __forceinline__ void add(float (&sum)[Shape::tm][Shape::tn], bool first) {
#pragma unroll
    for (int i = 0; i < Shape::tm; ++i)
#pragma unroll
      for (int j = 0; j < Shape::tn; j += 4) {
        float4& slot = mine[(i * (Shape::tn / 4) + j / 4) * Shape::threads];
        float4 t = {0.0f, 0.0f, 0.0f, 0.0f};
        if (!first) t = slot;
        t.x = t.x + sum[i][j];
        t.y = t.y + sum[i][j + 1];
        t.z = t.z + sum[i][j + 2];
        t.w = t.w + sum[i][j + 3];
        slot = t;
        sum[i][j] = sum[i][j + 1] = sum[i][j + 2] = sum[i][j + 3] = 0.0f;
      }
  }
  __device__ __forceinline__ void read(float (&out)[Shape::tm][Shape::tn]) {
#pragma unroll
    for (int i = 0; i < Shape::tm; ++i)
#pragma unroll
      for (int j = 0; j < Shape::tn; j += 4) {
        const float4 t = mine[(i * (Shape::tn / 4) + j / 4) * Shape::threads];
        out[i][j] = t.x;
        out[i][j + 1] = t.y;
        out[i][j + 2] = t.z;
        out[i][j + 3] = t.w;
      }
  }
};

template <class Shape>
__device__ __forceinline__ void store(float (&value)[Shape::tm][Shape::tn], float* c, int64_t row,
                                      int64_t column, int64_t rows_left, int64_t columns_left,
                                      bool vectors) {
  constexpr int vm = Shape::tm % 4 == 0 ? 4 : 1, vn = Shape::tn % 4 == 0 ? 4 : 1;
  int tx, ty;
  place<Shape>(tx, ty);
#pragma unroll
  for (int i = 0; i < Shape::tm; ++i) {
    const int r = i / vm * Shape::down * vm + ty * vm + i % vm;
    if (r >= rows_left) continue;
#pragma unroll
    for (int j = 0; j < Shape::tn; j += vn) {
      const int s = j / vn * Shape::across * vn + tx * vn;
      float* to = c + r * row + s * column;
      if (vn == 4 && vectors && s + 3 < columns_left) {
        *reinterpret_cast<float4*>(to) = {value[i][j], value[i][j + vn / 2 / 2],
                                          value[i][j + vn / 2], value[i][j + vn - 1]};
      } else {
#pragma unroll
        for (int e = 0; e < vn; ++e)
          if (s + e < columns_left) to[e * column] = value[i][j + e];
      }
    }
  }
}

template <class Shape, class T>
__device__ __forceinline__ void copy_stage(const Arguments& g, float* pool, const T* a, const T* b,
                                           int64_t k, int64_t end, int rows, int columns) {
  const int depth = end - k < Shape::depth ? static_cast<int>(end - k) : Shape::depth;
  if (k < end) {
    copy_panel<Shape::rows, Shape::depth, Shape::threads, Shape::pad, T>(
        pool, a + k * g.a.column, g.a.row, g.a.column, rows, depth, g.copying_a);
    copy_panel<Shape::columns, Shape::depth, Shape::threads, Shape::pad, T>(
        pool + Shape::a_stage, b + k * g.b.row, g.b.column, g.b.row, columns, depth, g.copying_b);
  }
  commit_copies();
}

// Grid: (tiles, 1 or chunks, batch).
template <class Shape, class T>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks) gemm_kernel(Arguments g) {
  float* pool = reinterpret_cast<float*>(dynamic_shared());
  int tile_m, tile_n, tx, ty;
  tile_of(blockIdx.x, g.tiles_m, g.tiles_n, tile_m, tile_n);
  place<Shape>(tx, ty);
  const int64_t z = blockIdx.z, row = static_cast<int64_t>(tile_m) * Shape::rows,
                column = static_cast<int64_t>(tile_n) * Shape::columns;
  const T* a = static_cast<const T*>(g.a.data) + batch_offset(g.a, g.inners, z) + row * g.a.row;
  const T* b =
      static_cast<const T*>(g.b.data) + batch_offset(g.b, g.inners, z) + column * g.b.column;
  const int rows = g.m - row < Shape::rows ? static_cast<int>(g.m - row) : Shape::rows;
  const int columns =
      g.n - column < Shape::columns ? static_cast<int>(g.n - column) : Shape::columns;
  const bool split = g.partial != nullptr;
  const int64_t begin = split ? (g.first_chunk + blockIdx.y) * chunk : 0;
  const int64_t end = split && begin + chunk < g.k ? begin + chunk : g.k;

  constexpr int vm = Shape::tm % 4 == 0 ? 4 : 1, vn = Shape::tn % 4 == 0 ? 4 : 1;
  float sum[Shape::tm][Shape::tn] = {};
  Totals<Shape, Shape::shared_totals> totals(pool + Shape::stages * Shape::stage_floats);
#pragma unroll
  for (int s = 0; s < Shape::stages - 1; ++s)
    copy_stage<Shape, T>(g, pool + s * Shape::stage_floats, a, b, begin + s * Shape::depth, end,
                         rows, columns);
  int stage = 0;
  for (int64_t k = begin; k < end; k += Shape::depth) {
    wait_copies<Shape::stages - 2>();
    __syncthreads();
    const int ahead = (stage + Shape::stages - 1) % Shape::stages;
    copy_stage<Shape, T>(g, pool + ahead * Shape::stage_floats, a, b,
                         k + (Shape::stages - 1) * Shape::depth, end, rows, columns);
    const float* now = pool + stage * Shape::stage_floats;
    multiply_stage<Shape>(sum, now + ty * vm, now + Shape::a_stage + tx * vn);
    stage = (stage + 1) % Shape::stages;
    const int64_t next = k + Shape::depth;
    if (!split && (next % chunk == 0 || next >= end)) totals.add(sum, next <= chunk);
  }
  wait_copies<0>();

  if (split) {
    store<Shape>(sum, g.partial + blockIdx.y * g.partial_chunk + (z * g.m + row) * g.n + column,
                 g.n, 1, rows, columns, g.n % 4 == 0);
    return;
  }
  totals.read(sum);
#pragma unroll
  for (int i = 0; i < Shape::tm; ++i)
#pragma unroll
    for (int j = 0; j < Shape::tn; ++j) sum[i][j] = canonical(sum[i][j]);
  float* c = g.c + z / g.inners * g.c_outer + z % g.inners * g.c_inner + row * g.c_row +
             column * g.c_column;
  store<Shape>(sum, c, g.c_row, g.c_column, rows, columns, g.vector_store);
}

// Adds the chunks' sums in order, to those of earlier chunks in C. One thread an element of C.
__global__ void fold_kernel(const float* partial, int64_t chunks, int64_t per_chunk, Arguments g) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= per_chunk) return;
  const int64_t j = index % g.n, i = index / g.n % g.m, z = index / g.n / g.m;
  float& c =
      g.c[z / g.inners * g.c_outer + z % g.inners * g.c_inner + i * g.c_row + j * g.c_column];
  float total = g.first_chunk == 0 ? 0.0f : c;
#pragma unroll 4
  for (int64_t s = 0; s < chunks; ++s) total = total + partial[s * per_chunk + index];
  c = canonical(total);
}

// A depth of 0.
__global__ void zero_kernel(int64_t count, Arguments g) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t j = index % g.n, i = index / g.n % g.m, z = index / g.n / g.m;
  g.c[z / g.inners * g.c_outer + z % g.inners * g.c_inner + i * g.c_row + j * g.c_column] = 0.0f;
}

int64_t storage_bytes(Storage storage) { return storage == Storage::f32 ? 4 : 2; }

Copying copying_of(const Side& side, int64_t width_stride, int64_t depth_stride, int64_t width,
                   Storage storage) {
  const bool aligned = reinterpret_cast<uintptr_t>(side.data) % (4 * storage_bytes(storage)) == 0 &&
                       depth_stride % 4 == 0 && side.outer % 4 == 0 && side.inner % 4 == 0 &&
                       width % 4 == 0;
  if (width_stride == 1 && aligned) return Copying::vectors_along_width;
  return width_stride == 1 && depth_stride != 1 ? Copying::along_width : Copying::along_depth;
}

bool vector_store(const Product& p) {
  return p.c_column == 1 && p.c_row % 4 == 0 && p.c_outer % 4 == 0 && p.c_inner % 4 == 0 &&
         reinterpret_cast<uintptr_t>(p.c) % 16 == 0;
}

Arguments arguments_of(const Product& p, float* partial) {
  Arguments g = {};
  g.m = p.m, g.n = p.n, g.k = p.k;
  g.a = p.a, g.b = p.b;
  g.copying_a = copying_of(p.a, p.a.row, p.a.column, p.m, p.storage);
  g.copying_b = copying_of(p.b, p.b.column, p.b.row, p.n, p.storage);
  g.c = p.c, g.c_row = p.c_row, g.c_column = p.c_column;
  g.c_outer = p.c_outer, g.c_inner = p.c_inner, g.inners = p.inners;
  g.vector_store = vector_store(p);
  g.partial = partial;
  g.partial_chunk = p.outers * p.inners * p.m * p.n;
  return g;
}

template <class Shape, class T>
void run(const Product& p, Arguments g, int64_t chunks, Stream stream) {
  g.tiles_m = static_cast<int>(ceil_div(p.m, Shape::rows));
  g.tiles_n = static_cast<int>(ceil_div(p.n, Shape::columns));
  const dim3 grid(static_cast<unsigned>(g.tiles_m) * g.tiles_n,
                  g.partial ? static_cast<unsigned>(chunks) : 1,
                  static_cast<unsigned>(p.outers * p.inners));
  launch(gemm_kernel<Shape, T>, grid, dim3(Shape::threads), Shape::shared_bytes, stream, g);
}

template <class T>
void run_variant(int variant, const Product& p, const Arguments& g, int64_t chunks, Stream stream) {
  switch (variant) {
    case 0:
      return run<Wide, T>(p, g, chunks, stream);
    case 1:
      return run<Large, T>(p, g, chunks, stream);
    case 2:
      return run<Roomy, T>(p, g, chunks, stream);
    case 3:
      return run<Small, T>(p, g, chunks, stream);
    default:
      return run<Thin, T>(p, g, chunks, stream);
  }
}

Product swapped(const Product& p) {
  Product q = p;
  q.m = p.n, q.n = p.m;
  q.a = p.b, q.b = p.a;
  std::swap(q.a.row, q.a.column);
  std::swap(q.b.row, q.b.column);
  std::swap(q.c_row, q.c_column);
  return q;
}

struct VariantSize {
  int rows, columns;
  int64_t shared_bytes;
};
template <class Shape>
constexpr VariantSize size_of() {
  return {Shape::rows, Shape::columns, Shape::shared_bytes};
}
constexpr VariantSize sizes[gemm_variants] = {size_of<Wide>(), size_of<Large>(), size_of<Roomy>(),
                                              size_of<Small>(), size_of<Thin>()};
// Fewer chunks at once than these, and the passes cost more than the idle multiprocessors.
constexpr int64_t least_chunks_at_once = 16;
// Where a wide tile is ahead of a large one: so many chunks, or blocks a multiprocessor. Measured
// on an H100.
constexpr int64_t deep_chunks = 8, wide_waves = 3;

int64_t blocks_of(const Product& p, int variant) {
  return ceil_div(p.m, sizes[variant].rows) * ceil_div(p.n, sizes[variant].columns) * p.outers *
         p.inners;
}

// Whether the columns fill wide tiles but for a sixteenth.
bool fills_wide_tiles(const Product& p) {
  return ceil_div(p.n, sizes[0].columns) * sizes[0].columns - p.n <= p.n / 16;
}

int choose_variant(const Product& p, const Device& device) {
  if (p.m <= 8) return 4;
  if (p.m <= 64 || p.n <= 64) return 3;
  const bool wide = p.storage == Storage::f32 && device.shared_bytes >= sizes[0].shared_bytes;
  const bool busy =
      ceil_div(p.k, chunk) >= deep_chunks || blocks_of(p, 0) >= wide_waves * device.multiprocessors;
  if (wide && busy && fills_wide_tiles(p)) return 0;
  if (device.shared_bytes >= sizes[1].shared_bytes) return 1;
  return 3;
}

}  // namespace

namespace {

// As many chunks as the workspace holds, in passes of about the same size.
int64_t chunks_at_once(int64_t chunks, int64_t floats_per_chunk, const Device& device) {
  const int64_t most = std::min<int64_t>(device.workspace_floats / floats_per_chunk, 65535);
  return most == 0 || chunks == 0 ? 0 : ceil_div(chunks, ceil_div(chunks, most));
}

}  // namespace

GemmPlan plan_gemm(const Product& given, const Device& device, int forced) {
  const Product p = given.n <= 8 && given.m > given.n ? swapped(given) : given;
  const int64_t chunks = ceil_div(p.k, chunk);
  GemmPlan plan = {};
  plan.variant = forced == any_variant ? choose_variant(p, device) : forced;
  const int64_t per_chunk = p.outers * p.inners * p.m * p.n;
  plan.chunks_at_once = per_chunk == 0 ? 0 : chunks_at_once(chunks, per_chunk, device);
  plan.split = chunks > 1 && plan.chunks_at_once >= std::min(chunks, least_chunks_at_once) &&
               blocks_of(p, plan.variant) < 2 * device.multiprocessors;
  plan.workspace_floats = plan.split ? plan.chunks_at_once * per_chunk : 0;
  return plan;
}

namespace {

void multiply(const Product& p, int variant, const Arguments& g, int64_t chunks, Stream stream) {
  if (p.storage == Storage::f32)
    run_variant<float>(variant, p, g, chunks, stream);
  else if (p.storage == Storage::bf16)
    run_variant<Bf16>(variant, p, g, chunks, stream);
  else
    run_variant<F16>(variant, p, g, chunks, stream);
}

}  // namespace

void gemm(const Product& given, const GemmPlan& plan, float* workspace, Stream stream) {
  const int64_t count = given.outers * given.inners * given.m * given.n;
  if (count == 0) return;
  const Product p = given.n <= 8 && given.m > given.n ? swapped(given) : given;
  Arguments g = arguments_of(p, plan.split ? workspace : nullptr);
  const int64_t chunks = ceil_div(p.k, chunk);
  const dim3 flat_grid(static_cast<unsigned>(ceil_div(count, 256)));
  if (p.k == 0) return launch_flat(zero_kernel, flat_grid, dim3(256), stream, count, g);
  if (!plan.split) return multiply(p, plan.variant, g, chunks, stream);
  for (; g.first_chunk < chunks; g.first_chunk += plan.chunks_at_once) {
    const int64_t now = std::min(plan.chunks_at_once, chunks - g.first_chunk);
    multiply(p, plan.variant, g, now, stream);
    launch_flat(fold_kernel, flat_grid, dim3(256), stream, workspace, now, count, g);
  }
}

}  // namespace kolm::cuda
