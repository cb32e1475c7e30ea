// The kernels for AMX, in whose tile registers matrices of bfloat16 are multiplied, with AVX-512
// and AVX512-BF16 around them.
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/bfloat16_product.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"

namespace cattn::amx {
namespace {

// clang-format off: each uses what stands before it
#include "kernels/vec/avx512.h"
#include "kernels/vec/avx512_tile.h"
#include "kernels/vec/avx512bf16.h"
#include "kernels/amx/tile.h"
using TileRegisters = HardwareTiles;
#include "kernels/amx/kernels-inl.h"
// clang-format on

}  // namespace

extern const PairKernels kernels;
const PairKernels kernels = all_kernels;

}  // namespace cattn::amx
