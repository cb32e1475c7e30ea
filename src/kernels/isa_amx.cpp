// The kernels for AMX, in whose tile registers matrices of bfloat16 are multiplied, with AVX-512,
// AVX512-BF16 and AVX512-VBMI around them; and those for AMX-FP16, which multiplies matrices of
// float16 too.
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"
#include "kernels/pair_product.h"

namespace cattn::amx {
namespace {

// clang-format off: each uses what stands before it
#include "kernels/vec/avx512.h"
#include "kernels/vec/avx512_tile.h"
#include "kernels/vec/avx512bf16.h"
#include "kernels/vec/avx512vbmi.h"
#include "kernels/amx/tile.h"
using TileRegisters = HardwareTiles;
#include "kernels/amx/kernels-inl.h"
// clang-format on

}  // namespace

// Depth: from figures of a prototype with the same six products, on two cores of 3.55 GHz at
// D = Dv = 64: products 15.2 ms, softmax and splitting 6; multiply-adds at 88 % of their peak take
// 21.5. At half of that depth 13.6 against some 12.6. Queries and keys: measured, time over that of
// multiply-adds at D = Dv = 64, forward and backward: 16 x 2048 1.42, 1.30; 64 x 512 1.02, 1.06;
// 96 x 96 1.0 to 1.1, 1.04; 512 x 32 1.09, 1.42; 512 x 64 0.97, 1.15; 512 x 96 0.90, 1.07.
constexpr HeadSize kFloat32From{96, 96, 96};

extern const PairKernels kernels, fp16_kernels;
const PairKernels kernels = {&highest, &high, &medium, &float16, &bfloat16, kFloat32From};
const PairKernels fp16_kernels = {&highest,       &high,     &medium,
                                  &whole_float16, &bfloat16, kFloat32From};

}  // namespace cattn::amx
