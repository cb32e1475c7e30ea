// The loop over heads and rows of the rotary position embedding.
#pragma once
#include "core/types.h"

namespace cattn {

void apply_rope(const cattn_rope& problem, const KernelSet& kernels);

}  // namespace cattn
