// The kernels for AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"

namespace cattn::avx512 {
namespace {

#include "kernels/vec/avx512.h"
#include "kernels/vec/avx512_tile.h"
using Tile = VectorTile<128, 128>;

#include "kernels/table-inl.h"

}  // namespace

extern const KernelTable table;
const KernelTable table = kernel_table("avx512");

}  // namespace cattn::avx512
