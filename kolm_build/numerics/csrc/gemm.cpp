// Matrix products: packing, cache blocks and tasks around the tiles of gemm_tile.h (NUM-10,
// NUM-11).
#include "gemm.h"

#include <algorithm>
#include <cstdint>

#include "gemm_inside.h"
#include "gemm_pack.h"
#include "gemm_thin.h"
#include "gemm_tile.h"
#include "isa.h"
#include "scratch.h"

namespace kolm::KOLM_ISA {
namespace {

constexpr int64_t kDepthBlock = 4 * kChunk;  // of B, packed at once
constexpr int64_t kColumnBlock = 1024;       // the same, at most
// What one task holds in its core's L2 cache: a chunk of A's strips and the t of its tiles.
constexpr int64_t kTaskRowStrips = 256 / kRows;
constexpr int64_t kTaskColumnStrips = 1024 / kColumns;
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kShortDepth = 64;      // products so short are bound by writing c
constexpr int64_t kShortStrips = 2;      // of A: so few at once, to write c row after row
constexpr int64_t kStripsAtOnce = 8;     // of B, packed side by side
constexpr int64_t kDirectStride = 3072;  // floats: rows of B so near are read where they lie
constexpr int64_t kDenseStride = 64;     // floats: lines so near cost what packed ones cost
constexpr int64_t kAliasStride = 1024;   // floats: lines a multiple apart share few cache lines

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

Strip strip_of(const Operand& x, int64_t line_step, int64_t depth_step, int64_t line,
               int64_t depth_from, int64_t width, int64_t depth) {
  const int64_t offset = line * line_step + depth_from * depth_step;
  const char* data = static_cast<const char*>(x.data) + offset * element_bytes(x.element);
  return {data, line_step, depth_step, width, depth};
}

void pack_rows(const Operand& a, int64_t row, int64_t k, int64_t rows, int64_t depth,
               float* packed) {
  pack_strips<kRows>(a.element, strip_of(a, a.row_stride, a.column_stride, row, k, rows, depth),
                     packed);
}
void pack_columns(const Operand& b, int64_t column, int64_t k, int64_t columns, int64_t depth,
                  float* packed) {
  pack_strips<kColumns>(
      b.element, strip_of(b, b.column_stride, b.row_stride, column, k, columns, depth), packed);
}

constexpr int64_t kTileFloats = std::max(kRows, kTallRows) * kColumns;

// B of one product: packed strips of kColumns columns, or the operand as it lies.
struct Columns {
  const float* packed;  // null: b is read
  int64_t strip;        // floats from one packed strip to the next
  const Operand* b;
};

// A part of the product. Depths and columns of `b` are counted from the part's first.
struct Block {
  const Operand* a;
  Columns b;
  int64_t row, column, from;  // where the part starts in the operands
  int64_t rows, columns, depth;
  float* c;
  int64_t ldc;
  bool first, last;  // whether the part has the first and the last chunk of the depth
  int64_t height;    // rows of a tile
};

// Where a tile's t lies between two chunks of a block: tile after tile in a thread's own memory,
// since rows of c may lie a power of two apart and then share few cache lines.
struct Between {
  float* data;
  int64_t column_tiles;

  float* tile(int64_t row_tile, int64_t j) const {
    return data + (row_tile * column_tiles + j / kColumns) * kTileFloats;
  }
};

// The memory of one thread for one task.
struct Room {
  Scratch a, b, between;
};

// One chunk of the columns from j on, as a tile reads them.
struct StripView {
  const float* data;
  int64_t step;
};

// Whether A is read where it lies: packing pays where many columns read the packed rows.
bool rows_direct(const Operand& a, int64_t columns) {
  if (a.element != Element::f32 || std::min(a.row_stride, a.column_stride) != 1) return false;
  const int64_t stride = std::max(a.row_stride, a.column_stride);
  return stride <= kDenseStride ||
         (a.column_stride == 1 && columns <= 2 * kColumns && stride % kAliasStride != 0);
}

bool dense(const Operand& b, int64_t columns) {
  return b.element == Element::f32 && b.column_stride == 1 && b.row_stride <= kDenseStride &&
         columns % kLanes == 0;
}

// Whether few rows of A find the rows of B where they lie, as fast as if they were packed.
bool lies_near(const Operand& b) {
  return b.element == Element::f32 && b.column_stride == 1 && b.row_stride <= kDirectStride &&
         b.row_stride % kAliasStride != 0;
}

// Whether the columns of a strip, `width` of them, are read where they lie.
bool direct(const Block& block, int64_t width) {
  const Operand& b = *block.b.b;
  return lies_near(b) && (block.rows <= 2 * kRows || b.row_stride <= kDenseStride) &&
         (width >= kColumns || width % kLanes == 0);
}

// The height of tiles: as even as can be, so that few rows are not one full tile and a rest.
int64_t tile_height(const Operand& a, int64_t rows, int64_t columns) {
  const int64_t most = columns <= kLanes && rows_direct(a, columns) ? kTallRows : kRows;
  return rows > 4 * most && most == kRows ? kRows : ceil_div(rows, ceil_div(rows, most));
}

StripView columns_at(const Block& block, int64_t k, int64_t j, Room& room) {
  const Columns& b = block.b;
  if (b.packed) return {b.packed + j / kColumns * b.strip + k * kColumns, kColumns};
  const int64_t left = block.columns - j, column = block.column + j, from = block.from + k;
  if (direct(block, left))
    return {static_cast<const float*>(b.b->data) + from * b.b->row_stride + column,
            b.b->row_stride};
  const bool side_by_side = b.b->column_stride == 1 && !direct(block, kColumns);
  const int64_t at_once = side_by_side ? kStripsAtOnce : 1;
  const int64_t depth = std::min(kChunk, block.depth - k), strip = j / kColumns % at_once;
  float* packed = room.b.floats(kStripsAtOnce * kColumns * kChunk);
  if (strip == 0)
    pack_columns(*b.b, column, from, std::min(at_once * kColumns, left), depth, packed);
  return {packed + strip * kColumns * depth, kColumns};
}

// One chunk of A as tiles read it: tile i at data + i * tile, row and depth of it apart by steps.
struct RowsView {
  const float* data;
  int64_t tile, line, step;
};

RowsView rows_at(const Block& block, int64_t k, float* packed) {
  const Operand& a = *block.a;
  if (rows_direct(a, block.columns))
    return {static_cast<const float*>(a.data) + block.row * a.row_stride +
                (block.from + k) * a.column_stride,
            block.height * a.row_stride, a.row_stride, a.column_stride};
  const int64_t depth = std::min(kChunk, block.depth - k);
  // Strips side by side read each depth's rows once, in order.
  const int64_t at_once = block.height == kRows ? block.rows : block.height;
  for (int64_t i = 0; i < block.rows; i += at_once)
    pack_rows(a, block.row + i, block.from + k, std::min(at_once, block.rows - i), depth,
              packed + i / block.height * kRows * depth);
  return {packed, kRows * depth, 1, kRows};
}

// The tiles of one chunk in rows [row_from, row_to), multiples of the height, of one strip of
// columns.
void multiply_strip(const Block& block, const Between& between, int64_t k, int64_t j,
                    int64_t row_from, int64_t row_to, const RowsView& a, StripView b) {
  const bool first = k == 0, last = k + kChunk >= block.depth;
  TileTask task;
  task.a_line = a.line;
  task.a_step = a.step;
  task.b = b.data;
  task.b_step = b.step;
  task.depth = std::min(kChunk, block.depth - k);
  task.from_step = first ? block.ldc : kColumns;
  task.to_step = last ? block.ldc : kColumns;
  task.last = block.last && last;
  const int width = static_cast<int>(std::min<int64_t>(kColumns, block.columns - j));
  // A short product is done before what it writes has come: then the next tile's is fetched.
  const auto soon = [&](const float* to, bool more) {
    if (task.depth > kShortDepth || !last) return to;
    return more ? to + block.height * task.to_step : block.c + row_from * block.ldc + j + kColumns;
  };
  for (int64_t i = row_from, tile = row_from / block.height; i < row_to;
       i += block.height, ++tile) {
    float* c = block.c + i * block.ldc + j;
    float* t = between.tile(tile, j);
    task.a = a.data + tile * a.tile;
    task.from = !first ? t : block.first ? nullptr : c;
    task.to = last ? c : t;
    task.soon = soon(task.to, i + block.height < row_to);
    run_tile(static_cast<int>(std::min(block.height, block.rows - i)), width, task);
  }
}

void multiply(const Block& block) {
  static thread_local Room room;
  const int64_t row_tiles = ceil_div(block.rows, block.height);
  const int64_t column_tiles = ceil_div(block.columns, kColumns);
  const Between between{room.between.floats(row_tiles * column_tiles * kTileFloats), column_tiles};
  float* packed = room.a.floats(row_tiles * kRows * kChunk);
  for (int64_t k = 0; k < block.depth; k += kChunk) {
    const RowsView a = rows_at(block, k, packed);
    const bool in_rows = block.b.packed && block.depth <= kShortDepth;
    const int64_t at_once = in_rows ? block.height * kShortStrips : block.rows;
    for (int64_t i = 0; i < block.rows; i += at_once)
      for (int64_t j = 0; j < block.columns; j += kColumns)
        multiply_strip(block, between, k, j, i, std::min(block.rows, i + at_once), a,
                       columns_at(block, k, j, room));
  }
}

// How many strips a task takes, so that there are enough tasks for every thread.
struct Split {
  int64_t row_strips, column_strips;

  Split(const Block& block, int threads)
      : row_strips(ceil_div(block.rows, block.height)),
        column_strips(ceil_div(block.columns, kColumns)) {
    int64_t down = ceil_div(row_strips, kTaskRowStrips);
    int64_t across = ceil_div(column_strips, kTaskColumnStrips);
    const int64_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
    while (down * across < wanted && row_strips / (2 * down) >= 4) down *= 2;
    while (down * across < wanted && column_strips / (2 * across) >= 2) across *= 2;
    row_strips = ceil_div(row_strips, down);
    column_strips = ceil_div(column_strips, across);
  }
};

// The block's tiles as tasks.
void multiply(const Block& block, const Parallel& pool) {
  const Split split(block, pool.threads);
  const int64_t rows = split.row_strips * block.height, columns = split.column_strips * kColumns;
  const int64_t down = ceil_div(block.rows, rows);
  parallel_for(pool, down * ceil_div(block.columns, columns), [&](int64_t task) {
    const int64_t i = task % down * rows, j = task / down * columns;
    Block part = block;
    part.row += i;
    part.column += j;
    part.rows = std::min(rows, block.rows - i);
    part.columns = std::min(columns, block.columns - j);
    if (block.b.packed) part.b.packed += j / kColumns * block.b.strip;
    part.c += i * block.ldc + j;
    multiply(part);
  });
}

void clear(int64_t m, int64_t n, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) std::fill(c + i * ldc, c + i * ldc + n, 0.0f);
}

// Packs columns a few strips a task.
void pack_columns_of(const Operand& b, int64_t column, int64_t from, int64_t columns, int64_t depth,
                     float* packed, const Parallel& pool) {
  constexpr int64_t at_once = kStripsAtOnce * kColumns;
  parallel_for(pool, ceil_div(columns, at_once), [&](int64_t task) {
    const int64_t line = task * at_once;
    pack_columns(b, column + line, from, std::min(at_once, columns - line), depth,
                 packed + line * depth);
  });
}

// `block` has every row; its columns and depth are packed first, block by block.
void multiply_packing(Block whole, const Parallel& pool) {
  static thread_local Scratch scratch;
  const Operand& b = *whole.b.b;
  const int64_t depth_block = std::min(whole.depth, kDepthBlock);
  const int64_t blocks = ceil_div(whole.columns, kColumnBlock);
  // Even blocks, and few: every block packs the rows of A again.
  const int64_t strips = ceil_div(ceil_div(whole.columns, blocks), kColumns);
  const int64_t column_block = strips * kColumns;
  float* packed = scratch.floats(strips * kColumns * depth_block);
  for (int64_t j = 0; j < whole.columns; j += column_block)
    for (int64_t from = 0; from < whole.depth; from += depth_block) {
      Block block = whole;
      block.column = j;
      block.columns = std::min(column_block, whole.columns - j);
      block.from = from;
      block.depth = std::min(depth_block, whole.depth - from);
      block.b.packed = packed;
      block.b.strip = kColumns * block.depth;
      block.c = whole.c + j;
      block.first = from == 0;
      block.last = from + block.depth == whole.depth;
      pack_columns_of(b, j, from, block.columns, block.depth, packed, pool);
      multiply(block, pool);
    }
}

Block whole_product(int64_t m, int64_t n, int64_t k, const Operand& a, Columns b, float* c,
                    int64_t ldc) {
  return {&a, b, 0, 0, 0, m, n, k, c, ldc, true, true, tile_height(a, m, n)};
}

// Few rows of A as ThinRows reads them: where they lie, or copied and widened into `scratch`.
ThinRows thin_rows(int64_t m, int64_t k, const Operand& a, Scratch& scratch) {
  if (a.element == Element::f32 && a.column_stride == 1)
    return {static_cast<const float*>(a.data), a.row_stride, k};
  float* rows = scratch.floats(m * k);
  for (int64_t i = 0; i < m; ++i)
    pack_strips<1>(a.element, strip_of(a, a.row_stride, a.column_stride, i, 0, 1, k), rows + i * k);
  return {rows, k, k};
}

constexpr int64_t kThinTask = 64;  // columns of one task of few rows

template <Element E>
void gemm_thin_of(int64_t m, int64_t n, const ThinRows& rows, const Operand& b, float* c,
                  int64_t ldc, const Parallel& pool) {
  const auto* data = static_cast<const Storage<E>*>(b.data);
  parallel_for(pool, ceil_div(n, kThinTask), [&](int64_t task) {
    with_rows<kFewRows>(m, [&]<int Rows>() {
      const int64_t end = std::min(n, (task + 1) * kThinTask);
      for (int64_t j = task * kThinTask; j < end; j += kGroups<Rows> * kLanes)
        thin_columns<E, Rows>(rows, data + j * b.column_stride, b.column_stride, c + j, ldc,
                              std::min<int64_t>(kGroups<Rows> * kLanes, end - j));
    });
  });
}

// Few rows of A and a B whose columns are contiguous: a linear layer's weight as it lies.
void gemm_thin(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
               int64_t ldc, const Parallel& pool) {
  static thread_local Scratch scratch;
  const ThinRows rows = thin_rows(m, k, a, scratch);
  switch (b.element) {
    case Element::f32:
      return gemm_thin_of<Element::f32>(m, n, rows, b, c, ldc, pool);
    case Element::bf16:
      return gemm_thin_of<Element::bf16>(m, n, rows, b, c, ldc, pool);
    case Element::f16:
      return gemm_thin_of<Element::f16>(m, n, rows, b, c, ldc, pool);
  }
}

void gemm_thin_packed(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed,
                      float* c, int64_t ldc, const Parallel& pool) {
  static thread_local Scratch scratch;
  const ThinRows rows = thin_rows(m, k, a, scratch);
  parallel_for(pool, ceil_div(n, kThinTask), [&](int64_t task) {
    with_rows<kThinRows>(m, [&]<int Rows>() {
      const int64_t j = task * kThinTask, width = std::min(n - j, kThinTask);
      thin_packed<Rows>(rows, packed + j * k, c + j, ldc, width);
    });
  });
}

void gemm_straight(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
                   int64_t ldc, const Parallel& pool) {
  if (m <= kFewRows && b.row_stride == 1) return gemm_thin(m, n, k, a, b, c, ldc, pool);
  const Block whole = whole_product(m, n, k, a, {nullptr, 0, &b}, c, ldc);
  // One task has all rows of few: then each part of B is read once, and packed where it is used.
  if (m <= kTaskRowStrips * kRows || dense(b, n))
    multiply(whole, pool);
  else
    multiply_packing(whole, pool);
}

Operand flipped(const Operand& x) { return {x.data, x.element, x.column_stride, x.row_stride}; }

// c[i][j] = flip[j][i] for the first `columns` and `rows` of a block of vectors.
void copy_flipped(const float* flip, int64_t step, int64_t columns, int64_t rows, float* c,
                  int64_t ldc) {
  Vector block[kLanes];
  load_transposed<Element::f32>(flip, step, columns, block);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i >= rows) continue;
    if (columns >= kLanes)
      store(c + i * ldc, block[i]);
    else
      store_partial(c + i * ldc, block[i], columns);
  }
}

// Whether the product of the transposes is the faster one: where few columns would not fill
// vectors, or where both operands can then be read as they lie.
bool better_flipped(int64_t m, int64_t n, const Operand& a, const Operand& b) {
  if (m <= kFewRows && b.row_stride == 1) return false;
  if (n < m && n <= kThinRows) return true;
  if (!rows_direct(flipped(b), m)) return false;
  return (m <= kLanes && n > kLanes && b.row_stride == 1) ||
         (n <= kLanes && m > kLanes && lies_near(flipped(a)));
}

// The product of the transposes, transposed: fma's factors commute.
void gemm_flipped(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
                  int64_t ldc, const Parallel& pool) {
  static thread_local Scratch scratch;
  float* flip = scratch.floats(m * n);
  gemm_straight(n, m, k, flipped(b), flipped(a), flip, m, pool);
  for (int64_t j = 0; j < n; j += kLanes)
    for (int64_t i = 0; i < m; i += kLanes)
      copy_flipped(flip + j * m + i, m, n - j, m - i, c + i * ldc + j, ldc);
}

void gemm(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
          int64_t ldc, const Parallel& pool) {
  if (m == 0 || n == 0) return;
  if (k == 0) return clear(m, n, c, ldc);
  if (better_flipped(m, n, a, b)) return gemm_flipped(m, n, k, a, b, c, ldc, pool);
  gemm_straight(m, n, k, a, b, c, ldc, pool);
}

int64_t packed_floats(int64_t k, int64_t n) { return ceil_div(n, kColumns) * kColumns * k; }

void pack(int64_t k, int64_t n, const Operand& b, float* packed, const Parallel& pool) {
  pack_columns_of(b, 0, 0, n, k, packed, pool);
}

void gemm_packed(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed, float* c,
                 int64_t ldc, const Parallel& pool) {
  if (m == 0 || n == 0) return;
  if (k == 0) return clear(m, n, c, ldc);
  if (m <= kThinRows) return gemm_thin_packed(m, n, k, a, packed, c, ldc, pool);
  multiply(whole_product(m, n, k, a, {packed, kColumns * k, nullptr}, c, ldc), pool);
}

}  // namespace

void gemm_strips(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed,
                 int64_t packed_depth, float* c, int64_t ldc, const Parallel& pool) {
  if (m == 0 || n == 0) return;
  if (k == 0) return clear(m, n, c, ldc);
  multiply(whole_product(m, n, k, a, {packed, kColumns * packed_depth, nullptr}, c, ldc), pool);
}

void add_strips(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed,
                int64_t packed_depth, float* c, int64_t ldc, const Parallel& pool) {
  if (m == 0 || n == 0 || k == 0) return;
  Block whole = whole_product(m, n, k, a, {packed, kColumns * packed_depth, nullptr}, c, ldc);
  whole.first = false;
  multiply(whole, pool);
}

const float* strips_from(const float* packed, int64_t k) { return packed + k * kColumns; }

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels = {gemm, packed_floats, pack, gemm_packed};

}  // namespace kolm::KOLM_ISA
