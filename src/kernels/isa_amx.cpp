// The kernels for AMX, in whose tile registers matrices of bfloat16 are multiplied, with AVX-512
// and AVX512-BF16 around them; and those for AMX-FP16, which multiplies matrices of float16 too.
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
#include "kernels/amx/tile.h"
using TileRegisters = HardwareTiles;
#include "kernels/amx/kernels-inl.h"
// clang-format on

}  // namespace

// From figures of a prototype with the same six products, on two cores of 3.55 GHz at D = Dv = 64:
// products 15.2 ms, softmax and splitting 6; multiply-adds at 88 % of their peak take 21.5. At half
// of that depth 13.6 against some 12.6.
constexpr Index kFloat32Depth = 96;

extern const PairKernels kernels, fp16_kernels;
const PairKernels kernels = {&highest, &high, &medium, &float16, &bfloat16, kFloat32Depth};
const PairKernels fp16_kernels = {&highest,       &high,     &medium,
                                  &whole_float16, &bfloat16, kFloat32Depth};

}  // namespace cattn::amx
