#include "core/plan.h"

#include <algorithm>

#include "core/parallel.h"
#include "kernels/band.h"

namespace cattn {

int32_t threads_for(const Problem& problem, double flops) {
  // Waking a team costs some microseconds, in which one core does about this much.
  constexpr double kFlopsPerThread = 1e6;
  const int32_t most = problem.num_threads > 0 ? problem.num_threads : default_num_threads();
  const double worth = flops / kFlopsPerThread;
  return worth >= most ? most : std::max<int32_t>(1, static_cast<int32_t>(worth));
}

Packing choose_packing(const Problem& problem, int32_t threads) {
  const Index pairs = problem.batch * problem.heads_kv;
  if (threads == 1) return Packing::per_thread;
  // Enough pairs to share out evenly, each small enough to be done within a cache.
  const Index bytes_per_pair = problem.keys * (problem.head_dim + problem.value_dim) * 4;
  const bool small = bytes_per_pair <= Index{512} << 10;
  return pairs >= (small ? 4 : 16) * threads ? Packing::per_thread : Packing::shared;
}

BlockRange key_blocks(const Band& band, Index queries, Index key_block) {
  const Index begin = lowest_key(band, 0), end = highest_key(band, queries - 1);
  if (begin >= end) return {};
  const Index first = begin / key_block;
  return {first, ceil_div(end, key_block) - first};
}

Chunks backward_chunks(const Problem& problem, Index key_block) {
  constexpr Index kBlocksWorthIt = 4;
  const Index pairs = std::max<Index>(problem.batch * problem.heads_kv, 1);
  const Index blocks = ceil_div(problem.keys, key_block);
  const Index wanted = std::clamp<Index>(blocks / kBlocksWorthIt, 1, ceil_div(kMostChunks, pairs));
  const Index per_chunk = std::max<Index>(ceil_div(blocks, wanted), 1);
  return {std::max<Index>(ceil_div(blocks, per_chunk), 1), per_chunk};
}

}  // namespace cattn
