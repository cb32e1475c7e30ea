// What isa_amx.cpp and isa_amx_emulated.cpp have in common: all kernels on `TileRegisters`, which
// is HardwareTiles or EmulatedTiles. Included behind it, and behind Vec, VectorTile and Pairs,
// inside the ISA's anonymous namespace.

using Tile = VectorTile<256, 256>;

// clang-format off: each uses what stands before it
#include "kernels/exp-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/parts-inl.h"
#include "kernels/pairs-inl.h"
#include "kernels/amx/tile_products-inl.h"
#include "kernels/pack-inl.h"
#include "kernels/score-inl.h"
#include "kernels/dropout-inl.h"
#include "kernels/queries-inl.h"
#include "kernels/fma_matrices-inl.h"
#include "kernels/rounded_weights-inl.h"
#include "kernels/pair_matrices-inl.h"
#include "kernels/forward-inl.h"
#include "kernels/backward-inl.h"
#include "kernels/matrix_kernels-inl.h"
// clang-format on

template <class P, bool kScales, class S>
constexpr MatrixKernels tile_kernels() {
  return matrix_kernels<PairMatrices<P, TileProducts<TileRegisters>, kScales, BFloat16Weights>,
                        S>();
}
constexpr MatrixKernels highest = tile_kernels<ThreeParts, true, float>();
constexpr MatrixKernels high = tile_kernels<TwoParts, false, float>();
constexpr MatrixKernels medium = tile_kernels<OnePart, false, float>();
constexpr MatrixKernels float16 = tile_kernels<Float16Parts, false, Float16>();
constexpr MatrixKernels whole_float16 = tile_kernels<WholeFloat16, false, Float16>();
constexpr MatrixKernels bfloat16 = tile_kernels<OnePart, false, BFloat16>();
