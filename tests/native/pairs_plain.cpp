// Products on pairs in plain C++, for any CPU.
#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/pair_product.h"
#include "pairs_kernels.h"

namespace cattn::test {
namespace {

// clang-format off: each uses what stands before it
#include "kernels/vec/scalar.h"
template <class T>
struct Vec;
template <>
struct Vec<float> : PlainVec<float, int32_t, 16> {};
#include "kernels/vec/pairs.h"
using Pairs = PlainPairs;
using Float16Pairs = PlainFloat16Pairs;
using ByteTable = PlainByteTable;
#include "kernels/amx/emulated_tile.h"
struct Tile {
  static constexpr int rows = 3, vectors = 2;
};
#include "pairs_kernels-inl.h"
// clang-format on

}  // namespace

extern const PairKernels kPlainRegisters, kPlainTiles;
const PairKernels kPlainRegisters = table_of<RegisterProducts>("plain registers", false, false);
const PairKernels kPlainTiles = table_of<TileProducts<EmulatedTiles>>("plain tiles", true, true);

}  // namespace cattn::test
