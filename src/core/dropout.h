// Dropout outside the loop nests: its parameters, and its mask to look at.
#pragma once
#include "core/types.h"

namespace cattn {

// Checks the probability.
Dropout dropout_of(double dropout, uint64_t seed);

// Writes which weights are kept to a contiguous bool array (..., heads, queries, keys).
void dropout_mask(const Dropout& dropout, const cattn_array& mask,
                  void (*dropout_row)(const DropoutRow&));

}  // namespace cattn
