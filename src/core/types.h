// Names that all of core/ uses.
#pragma once
#include <cstdint>

#include "cattn.h"
#include "kernels/kernel_table.h"

namespace cattn {

// Of parts of a workspace, so that what one thread writes is not beside what another does: a core
// fetches cache lines in pairs.
inline constexpr Index kAlignment = 128;

// Bytes of one element; 8 for codes that validation refuses.
constexpr Index dtype_size(int32_t dtype) {
  switch (dtype) {
    case CATTN_FLOAT32: return 4;
    case CATTN_FLOAT16:
    case CATTN_BFLOAT16: return 2;
    case CATTN_BOOL: return 1;
    default: return 8;
  }
}

constexpr Storage storage_of(int32_t dtype) {
  switch (dtype) {
    case CATTN_FLOAT64: return Storage::float64;
    case CATTN_FLOAT16: return Storage::float16;
    case CATTN_BFLOAT16: return Storage::bfloat16;
    default: return Storage::float32;
  }
}

constexpr Index ceil_div(Index n, Index d) { return (n + d - 1) / d; }
constexpr Index aligned(Index n) { return ceil_div(n, kAlignment) * kAlignment; }

}  // namespace cattn
