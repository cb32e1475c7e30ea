// Products on pairs in AMX.
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "pairs_kernels.h"

namespace cattn::test {
namespace {

// clang-format off: each uses what stands before it
#include "kernels/vec/avx512.h"
#include "kernels/vec/avx512bf16.h"
#include "kernels/vec/avx512vbmi.h"
#include "kernels/amx/tile.h"
struct Tile {
  static constexpr int rows = 12, vectors = 2;
};
#include "pairs_kernels-inl.h"
// clang-format on

}  // namespace

extern const PairKernels kAmxTiles, kAmxFp16Tiles;
const PairKernels kAmxTiles = table_of<TileProducts<HardwareTiles>>("amx tiles", true, false);
const PairKernels kAmxFp16Tiles =
    table_of<TileProducts<HardwareTiles>>("amx_fp16 tiles", true, true);

}  // namespace cattn::test
