// The kernels for AVX512-BF16, beside those of isa_avx512.cpp: bfloat16, whose products run at
// twice the rate of multiply-adds on Zen 4.
#include <immintrin.h>

#include "kernels/band.h"
#include "kernels/compiler.h"
#include "kernels/half.h"
#include "kernels/kernel_table.h"
#include "kernels/pair_product.h"

namespace cattn::avx512bf16 {
namespace {

#include "kernels/vec/avx512.h"
#include "kernels/vec/avx512_tile.h"
using Tile = VectorTile<128, 128>;
#include "kernels/vec/avx512bf16.h"

// clang-format off: each uses what stands before it
#include "kernels/exp-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/parts-inl.h"
#include "kernels/pairs-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/score-inl.h"
#include "kernels/dropout-inl.h"
#include "kernels/queries-inl.h"
#include "kernels/fma_matrices-inl.h"
#include "kernels/pair_matrices-inl.h"
#include "kernels/forward-inl.h"
#include "kernels/backward-inl.h"
#include "kernels/matrix_kernels-inl.h"
// clang-format on

constexpr MatrixKernels medium =
    matrix_kernels<PairMatrices<OnePart, RegisterProducts, false>, float>();
constexpr MatrixKernels bfloat16 =
    matrix_kernels<PairMatrices<OnePart, RegisterProducts, false>, BFloat16>();

}  // namespace

extern const PairKernels kernels;
const PairKernels kernels = {nullptr, nullptr, &medium, nullptr, &bfloat16};

}  // namespace cattn::avx512bf16
