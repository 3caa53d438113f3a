// Products of matrices of 8-bit integers: exact, so the order of the sums is free.
#include "integers.h"

#include <algorithm>

#include "isa.h"

namespace kolm::KOLM_ISA {

namespace {

constexpr int64_t kRows = 4;      // rows of a that share one reading of b
constexpr int64_t kDepth = 1024;  // terms that 32 bits hold whatever they are: up to 2^17

// The sums of one piece of the depth, for `kRows` rows of a against one of b. 16 bits, because
// processors multiply and add pairs of those.
inline void add_piece(int64_t depth, const int16_t (*a)[kDepth], const int8_t* b, uint32_t* sums) {
  int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
  for (int64_t k = 0; k < depth; ++k) {
    const int16_t weight = b[k];
    sum0 += a[0][k] * weight;
    sum1 += a[1][k] * weight;
    sum2 += a[2][k] * weight;
    sum3 += a[3][k] * weight;
  }
  sums[0] += static_cast<uint32_t>(sum0);
  sums[1] += static_cast<uint32_t>(sum1);
  sums[2] += static_cast<uint32_t>(sum2);
  sums[3] += static_cast<uint32_t>(sum3);
}

void products(int64_t rows, int64_t columns, int64_t depth, const int8_t* a, int64_t lda,
              const int8_t* b, int64_t ldb, int32_t* c, int64_t ldc) {
  alignas(64) int16_t wide[kRows][kDepth] = {};
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t count = std::min(kRows, rows - row);
    for (int64_t i = 0; i < count; ++i) std::fill_n(c + (row + i) * ldc, columns, 0);
    for (int64_t begin = 0; begin < depth; begin += kDepth) {
      const int64_t piece = std::min(kDepth, depth - begin);
      for (int64_t i = 0; i < count; ++i) std::copy_n(a + (row + i) * lda + begin, piece, wide[i]);
      for (int64_t column = 0; column < columns; ++column) {
        uint32_t sums[kRows] = {};
        add_piece(piece, wide, b + column * ldb + begin, sums);
        for (int64_t i = 0; i < count; ++i) {
          int32_t& out = c[(row + i) * ldc + column];
          out = static_cast<int32_t>(static_cast<uint32_t>(out) + sums[i]);
        }
      }
    }
  }
}

}  // namespace

extern const IntegerKernels integer_kernels;
const IntegerKernels integer_kernels = {products};

}  // namespace kolm::KOLM_ISA
