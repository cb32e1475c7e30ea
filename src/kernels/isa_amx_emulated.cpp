// The kernels for AMX on emulated tiles: for tests, on any CPU with AVX512-BF16 and AVX512-VBMI.
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"
#include "kernels/pair_product.h"

namespace cattn::amx_emulated {
namespace {

// clang-format off: each uses what stands before it
#include "kernels/vec/avx512.h"
#include "kernels/vec/avx512_tile.h"
#include "kernels/vec/avx512bf16.h"
#include "kernels/vec/avx512vbmi.h"
#include "kernels/amx/emulated_tile.h"
using TileRegisters = EmulatedTiles;
#include "kernels/amx/kernels-inl.h"
// clang-format on

}  // namespace

// Of any size, since this is for tests.
extern const PairKernels kernels, fp16_kernels;
const PairKernels kernels = {&highest, &high, &medium, &float16, &bfloat16};
const PairKernels fp16_kernels = {&highest, &high, &medium, &whole_float16, &bfloat16};

}  // namespace cattn::amx_emulated
