// Products on pairs in AVX512-BF16, with emulated tiles too, and weights in AVX512-VBMI.
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/pair_product.h"
#include "pairs_kernels.h"

namespace cattn::test {
namespace {

// clang-format off: each uses what stands before it
#include "kernels/vec/avx512.h"
#include "kernels/vec/avx512bf16.h"
#include "kernels/vec/avx512vbmi.h"
#include "kernels/amx/emulated_tile.h"
struct Tile {
  static constexpr int rows = 12, vectors = 2;
};
#include "pairs_kernels-inl.h"
// clang-format on

}  // namespace

extern const PairKernels kAvx512Registers, kAvx512EmulatedTiles;
const PairKernels kAvx512Registers =
    table_of<RegisterProducts>("avx512bf16 registers", false, false);
const PairKernels kAvx512EmulatedTiles =
    table_of<TileProducts<EmulatedTiles>>("avx512bf16 emulated tiles", true, true);

}  // namespace cattn::test
