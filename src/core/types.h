// Names that all of core/ uses.
#pragma once
#include <cstdint>

#include "cattn.h"
#include "kernels/kernel_table.h"

namespace cattn {

inline constexpr Index kAlignment = 64;

constexpr Index ceil_div(Index n, Index d) { return (n + d - 1) / d; }

}  // namespace cattn
