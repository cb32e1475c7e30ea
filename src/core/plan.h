// How a problem is cut into blocks and shared out.
//
// What is computed for a row depends only on the blocks, which depend only on the shape: threads
// and modes decide who computes, never what, so results are the same to the last bit.
#pragma once
#include "core/problem.h"

namespace cattn {

// Threads worth waking for `flops` of work.
int32_t threads_for(const Problem& problem, double flops);

// Packed operands either live in memory for all (batch, kv head) pairs, so that every thread can
// work on every pair (few pairs, long sequences), or one pair at a time in its thread's own memory,
// where they stay in the cache (many pairs).
enum class Packing { shared, per_thread };
Packing choose_packing(const Problem& problem, int32_t threads);

// Key blocks that some query of a batch entry may attend.
struct BlockRange {
  Index first = 0, count = 0;
};
BlockRange key_blocks(const Band& band, Index queries, Index key_block);

// The backward of one pair is cut into chunks of key blocks, each with a dq of its own, so that few
// heads still occupy many cores.
inline constexpr Index kMostChunks = 32;
struct Chunks {
  Index count;             // at least 1
  Index blocks_per_chunk;  // of the key blocks
};
Chunks backward_chunks(const Problem& problem, Index key_block);

}  // namespace cattn
