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

// clang-format off: each uses what stands before it
#include "kernels/exp-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/score-inl.h"
#include "kernels/dropout-inl.h"
#include "kernels/queries-inl.h"
#include "kernels/fma_matrices-inl.h"
#include "kernels/forward-inl.h"
#include "kernels/backward-inl.h"
#include "kernels/matrix_kernels-inl.h"
#include "kernels/jvp-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/rope-inl.h"
#include "kernels/table-inl.h"
// clang-format on

}  // namespace

extern const KernelTable table;
const KernelTable table = kernel_table("avx512");

}  // namespace cattn::avx512
