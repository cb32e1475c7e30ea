// How a problem is cut into blocks and shared out.
//
// What is computed for a row depends only on the blocks, which depend only on the shape: threads
// and modes decide who computes, never what, so results are the same to the last bit.
#pragma once
#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "core/problem.h"

namespace cattn {

// Key blocks that some of `queries` queries from `first_query` on may attend.
struct BlockRange {
  Index first = 0, count = 0;
};
BlockRange key_blocks(const Band& band, Index first_query, Index queries, Index key_block);

// How the keys and values of a batch entry are read in the forward.
enum class Way : uint8_t {
  whole,     // all of them packed first
  in_parts,  // packed part by part: there are far fewer queries
  in_place,  // where they lie: to pack them would take longer than it saves
};
// `most_in_parts`: queries of a head that kernels can take in parts.
Way way_of(const Problem& problem, const Sequence& sequence, Index most_in_parts);

// Batch entries by their queries, which are few where keys are not packed whole: attention_decode()
// is for these.
struct Entries {
  enum Which : uint8_t { all, few_queries, many_queries };
  Which which = all;
  Index most_in_parts = 0;
};
bool are_among(Entries entries, const Problem& problem, const Sequence& sequence);

// Scores that the bands let through, estimated: over some batch entries and all query heads.
double estimated_scores(const Problem& problem, Entries entries = {});

// Threads that `flops` of work are worth.
int32_t threads_for(const Problem& problem, double flops, Call& call);

// The query block of the forward: the longest one of the kernels; where a batch entry has not many
// to share out, half of a very long one, or less. Whether numbers split into parts, or scores are
// within reach, is decided for all queries of a block, so that it must depend neither on the
// threads nor on the other entries.
Index query_block_of(const Problem& problem, Index longest);

// What is packed for a whole pair (batch, kv head), the key side in the forward and the query side
// in the backward, is either that of one pair at a time, in its thread's own memory, where it stays
// in the cache and nobody waits for the others' packing; or, where there are not enough pairs to go
// round, that of all pairs, so that every thread can work on every pair.
enum class Packing { shared, per_thread };
Packing choose_packing(const Problem& problem, int32_t threads);

// Finds the batch entry of an item in work that is numbered entry after entry: `first` is the
// member that holds the first number of an entry. Entries without items are never found.
template <class Entry>
const Entry& entry_of(const std::vector<Entry>& entries, Index Entry::* first, Index item) {
  const auto after = std::upper_bound(entries.begin(), entries.end(), item,
                                      [&](Index i, const Entry& e) { return i < e.*first; });
  return *(after - 1);
}

}  // namespace cattn
