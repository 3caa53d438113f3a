// Matrix products: packing, cache blocks and tasks around the tiles of gemm_tile.h (NUM-10,
// NUM-11).
#include "gemm.h"

#include <algorithm>
#include <cstdint>

#include "gemm_pack.h"
#include "gemm_tile.h"
#include "isa.h"
#include "scratch.h"

namespace kolm::KOLM_ISA {
namespace {

constexpr int64_t kDepthBlock = 4 * kChunk;      // packed at once
constexpr int64_t kRowBlock = 144 * kRows;       // the same
constexpr int64_t kColumnBlock = 64 * kColumns;  // the same
constexpr int64_t kTaskRows = 36 * kRows;        // one task's tiles: A's part stays in L2
constexpr int64_t kTaskColumns = 8 * kColumns;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

Strip strip_of(const Operand& x, int64_t line_step, int64_t depth_step, int64_t line,
               int64_t depth_from, int64_t width, int64_t depth) {
  const int64_t offset = line * line_step + depth_from * depth_step;
  const char* data = static_cast<const char*>(x.data) + offset * element_bytes(x.element);
  return {data, line_step, depth_step, width, depth};
}

// A part of the product whose operands are packed: strips of kRows and kColumns lines.
struct Block {
  int64_t rows, columns, depth;
  const float* a;
  int64_t a_strip;  // floats from one strip to the next
  const float* b;
  int64_t b_strip;
  float* c;
  int64_t ldc;
  bool first, last;
};

void multiply(const Block& block) {
  for (int64_t k = 0; k < block.depth; k += kChunk)
    for (int64_t j = 0; j < block.columns; j += kColumns)
      for (int64_t i = 0; i < block.rows; i += kRows) {
        TileTask task;
        task.a = block.a + i / kRows * block.a_strip + k * kRows;
        task.a_step = kRows;
        task.b = block.b + j / kColumns * block.b_strip + k * kColumns;
        task.b_step = kColumns;
        task.depth = std::min(kChunk, block.depth - k);
        task.c = block.c + i * block.ldc + j;
        task.ldc = block.ldc;
        task.first = block.first && k == 0;
        task.last = block.last && k + kChunk >= block.depth;
        run_tile(static_cast<int>(std::min<int64_t>(kRows, block.rows - i)),
                 static_cast<int>(std::min<int64_t>(kColumns, block.columns - j)), task);
      }
}

// The block's tiles as tasks.
void multiply(const Block& block, const Parallel& pool) {
  const int64_t down = ceil_div(block.rows, kTaskRows);
  const int64_t across = ceil_div(block.columns, kTaskColumns);
  parallel_for(pool, down * across, [&](int64_t task) {
    const int64_t i = task % down * kTaskRows, j = task / down * kTaskColumns;
    Block part = block;
    part.rows = std::min(kTaskRows, block.rows - i);
    part.columns = std::min(kTaskColumns, block.columns - j);
    part.a += i / kRows * block.a_strip;
    part.b += j / kColumns * block.b_strip;
    part.c += i * block.ldc + j;
    multiply(part);
  });
}

void pack_rows(const Operand& a, int64_t row, int64_t k, int64_t rows, int64_t depth,
               float* packed) {
  pack_strip<kRows>(a.element, strip_of(a, a.row_stride, a.column_stride, row, k, rows, depth),
                    packed);
}
void pack_columns(const Operand& b, int64_t column, int64_t k, int64_t columns, int64_t depth,
                  float* packed) {
  pack_strip<kColumns>(
      b.element, strip_of(b, b.column_stride, b.row_stride, column, k, columns, depth), packed);
}

void clear(int64_t m, int64_t n, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) std::fill(c + i * ldc, c + i * ldc + n, 0.0f);
}

// `packed` is B as `pack` writes it, or null: then b is packed block by block.
void multiply_blocks(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand* b,
                     const float* packed, float* c, int64_t ldc, const Parallel& pool) {
  static thread_local Scratch a_scratch, b_scratch;
  const int64_t depth_block = std::min(k, kDepthBlock);
  const int64_t row_strips = ceil_div(std::min(m, kRowBlock), kRows);
  const int64_t column_strips = ceil_div(std::min(n, kColumnBlock), kColumns);
  float* a_packed = a_scratch.floats(row_strips * kRows * depth_block);
  float* b_packed = b ? b_scratch.floats(column_strips * kColumns * depth_block) : nullptr;
  for (int64_t j = 0; j < n; j += kColumnBlock)
    for (int64_t from = 0; from < k; from += depth_block)
      for (int64_t i = 0; i < m; i += kRowBlock) {
        Block block;
        block.rows = std::min(kRowBlock, m - i);
        block.columns = std::min(kColumnBlock, n - j);
        block.depth = std::min(depth_block, k - from);
        block.a = a_packed;
        block.a_strip = kRows * block.depth;
        block.b = b ? b_packed : packed + j * k + from * kColumns;
        block.b_strip = kColumns * (b ? block.depth : k);
        block.c = c + i * ldc + j;
        block.ldc = ldc;
        block.first = from == 0;
        block.last = from + block.depth == k;
        const int64_t a_strips = ceil_div(block.rows, kRows);
        const int64_t b_strips = b && i == 0 ? ceil_div(block.columns, kColumns) : 0;
        parallel_for(pool, a_strips + b_strips, [&](int64_t strip) {
          if (strip < a_strips) {
            const int64_t line = strip * kRows;
            pack_rows(a, i + line, from, std::min<int64_t>(kRows, block.rows - line), block.depth,
                      a_packed + line * block.depth);
          } else {
            const int64_t line = (strip - a_strips) * kColumns;
            pack_columns(*b, j + line, from, std::min<int64_t>(kColumns, block.columns - line),
                         block.depth, b_packed + line * block.depth);
          }
        });
        multiply(block, pool);
      }
}

void gemm(int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b, float* c,
          int64_t ldc, const Parallel& pool) {
  if (k == 0) return clear(m, n, c, ldc);
  multiply_blocks(m, n, k, a, &b, nullptr, c, ldc, pool);
}

int64_t packed_floats(int64_t k, int64_t n) { return ceil_div(n, kColumns) * kColumns * k; }

void pack(int64_t k, int64_t n, const Operand& b, float* packed, const Parallel& pool) {
  parallel_for(pool, ceil_div(n, kColumns), [&](int64_t strip) {
    const int64_t column = strip * kColumns;
    pack_columns(b, column, 0, std::min<int64_t>(kColumns, n - column), k, packed + column * k);
  });
}

void gemm_packed(int64_t m, int64_t n, int64_t k, const Operand& a, const float* packed, float* c,
                 int64_t ldc, const Parallel& pool) {
  if (k == 0) return clear(m, n, c, ldc);
  multiply_blocks(m, n, k, a, nullptr, packed, c, ldc, pool);
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels = {gemm, packed_floats, pack, gemm_packed};

}  // namespace kolm::KOLM_ISA
