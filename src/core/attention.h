// The loop nests.
#pragma once
#include "core/problem.h"

namespace cattn {

void attention_forward(const Problem& problem, const KernelSet& kernels);
void attention_jvp(const Problem& problem, const KernelSet& kernels);
void attention_backward(const Problem& problem, const KernelSet& kernels);

}  // namespace cattn
