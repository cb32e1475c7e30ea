// The kernels for AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"

namespace cattn::avx512 {
namespace {

#include "kernels/vec/avx512.h"

// 32 registers: 12 x 2 accumulators and 2 right operands; the left one is broadcast from memory.
struct Tile {
  static constexpr int rows = 12, vectors = 2;
  template <class T>
  struct Forward {
    static constexpr Index query_block = 128, key_block = 128;
  };
  template <class T>
  struct Backward {
    static constexpr Index query_block = 128, key_block = 128;
  };
};

// clang-format off: each uses what stands before it
#include "kernels/exp-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/score-inl.h"
#include "kernels/dropout-inl.h"
#include "kernels/forward-inl.h"
#include "kernels/backward-inl.h"
#include "kernels/jvp-inl.h"
#include "kernels/rope-inl.h"
#include "kernels/table-inl.h"
// clang-format on

}  // namespace

extern const KernelTable table;
const KernelTable table = kernel_table("avx512");

}  // namespace cattn::avx512
