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

// Measured where figures stand, time over that of multiply-adds, forward and backward, of as many
// queries as keys:
//   D = Dv        64          96          128         256         1024
//   16            1.51, 1.35  1.32, 1.29  1.21, 1.18  1.06, 1.22  0.91, 1.17
//   24            1.25, 1.20  1.06, 1.11  0.96, 1.08  0.80, 0.97  0.65, 0.96
//   32            1.18, 1.22  0.98, 1.10  0.87, 1.01  0.72, 0.90  0.59, 0.86
//   40            1.24, 1.21  1.10, 1.11  0.96, 1.04  0.80, 0.90  0.65, 0.85
//   64            1.01, 1.20  0.99, 0.97
constexpr HeadSizes kFloat32Sizes{{{96, 96, 96}, {64, 128, 128}, {48, 256, 256}}};

extern const PairKernels kernels, fp16_kernels;
const PairKernels kernels = {&highest, &high, &medium, &float16, &bfloat16, kFloat32Sizes};
const PairKernels fp16_kernels = {&highest,       &high,     &medium,
                                  &whole_float16, &bfloat16, kFloat32Sizes};

}  // namespace cattn::amx
