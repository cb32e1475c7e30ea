// The loop nests.
#pragma once
#include "core/plan.h"
#include "core/problem.h"

namespace cattn {

struct Kernels {
  const KernelSet& best;           // for the heads' size
  const KernelSet& multiply_adds;  // what has kernels for every nest
};

void attention_forward(const Problem& problem, const Kernels& kernels);
void attention_jvp(const Problem& problem, const Kernels& kernels);
void attention_backward(const Problem& problem, const Kernels& kernels);

// The forward's batch entries with few queries, whose keys are read in place or packed in parts, by
// multiply-adds.
void attention_decode(const Problem& problem, const KernelSet& kernels, Entries few);

}  // namespace cattn
