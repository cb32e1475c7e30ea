// The kernels for AVX2 and FMA.
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"

namespace cattn::avx2 {
namespace {

#include "kernels/vec/avx2.h"

// 16 registers: 6 x 2 accumulators, 2 right operands, 1 left.
struct Tile {
  static constexpr int rows = 6, vectors = 2;
  static constexpr bool loops_by_kind = true;
  template <class T>
  struct Forward {
    static constexpr Index query_block = 144, key_block = 128;
  };
  template <class T>
  struct Backward {
    static constexpr Index query_block = 128, key_block = 128;
  };
};

#include "kernels/table-inl.h"

}  // namespace

extern const KernelTable table;
const KernelTable table = kernel_table("avx2");

}  // namespace cattn::avx2
