// What the forward's kernels are given of the caller's arrays, whichever loop nest calls them.
#pragma once
#include "core/plan.h"

namespace cattn {

// What a batch entry attends.
struct Attended {
  Index batch;
  Sequence sequence;
  Band band;
  BlockRange blocks;  // key blocks
};

// `rows` queries of a head from `first_query` of the entry on, with all key blocks of the entry.
// Where keys lie and there is room for scratch, and for an lse if the caller wants none, is the
// nest's to say, and what masks leave of its blocks.
ForwardTask forward_task(const Problem& problem, const Attended& entry, Index head,
                         Index first_query, Index rows, const ScoreTerms& terms);

// What is to be written of the weights of a task's rows, of which it knows the lse. Where rows are
// as long as all sequences together, the rest of them is cleared here.
WeightsTask weights_task(const Problem& problem, const Attended& entry, Index head,
                         const ForwardTask& task);

double forward_flops(const Problem& problem, Entries entries);

}  // namespace cattn
