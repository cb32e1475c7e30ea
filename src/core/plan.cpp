#include "core/plan.h"

#include "core/parallel.h"
#include "kernels/band.h"

namespace cattn {
namespace {

// What a thread must have to do: awake it costs a microsecond or two, else a hundred or more.
constexpr double kFlopsPerThread = 0.5e6;
constexpr double kFlopsPerThreadAsleep = 8e6;

}  // namespace

BlockRange key_blocks(const Band& band, Index first_query, Index queries, Index key_block) {
  if (queries == 0) return {};
  const Index begin = lowest_key(band, first_query);
  const Index end = highest_key(band, first_query + queries - 1);
  if (begin >= end) return {};
  const Index first = begin / key_block;
  return {first, ceil_div(end, key_block) - first};
}

Way way_of(const Problem& problem, const Sequence& sequence, Index most_in_parts) {
  constexpr Index few = 2, few_of_group = 6;
  static_assert(few <= kMostDecodeRows && few_of_group <= kMostDecodeRows);
  constexpr Index some_of_group = 128, many_keys = 512, keys_of_query = 16;
  const Index queries = sequence.queries, of_group = queries * problem.group;
  if (queries <= few || of_group <= few_of_group) return Way::in_place;
  const bool has_some = queries <= most_in_parts && of_group <= some_of_group;
  const bool has_many_keys = sequence.keys >= std::max(many_keys, keys_of_query * queries);
  return has_some && has_many_keys ? Way::in_parts : Way::whole;
}

bool are_among(Entries entries, const Problem& problem, const Sequence& sequence) {
  if (entries.which == Entries::all) return true;
  if (sequence.queries == 0) return false;
  const bool whole = way_of(problem, sequence, entries.most_in_parts) == Way::whole;
  return whole == (entries.which == Entries::many_queries);
}

double estimated_scores(const Problem& problem, Entries entries) {
  double scores = 0;
  for (Index b = 0; b < problem.batch; ++b) {
    const Index queries = problem.sequence(b).queries;
    if (queries == 0 || !are_among(entries, problem, problem.sequence(b))) continue;
    const Band band = problem.band(b);
    const auto width = [&](Index i) {
      return static_cast<double>(std::max<Index>(highest_key(band, i) - lowest_key(band, i), 0));
    };
    // A band's width is piecewise linear: Simpson's rule is close enough.
    const double mean = (width(0) + 4 * width(queries / 2) + width(queries - 1)) / 6;
    scores += static_cast<double>(queries) * mean;
  }
  return scores * static_cast<double>(problem.heads_q);
}

int32_t threads_for(const Problem& problem, double flops, Call& call) {
  const int32_t most = problem.num_threads > 0 ? problem.num_threads : default_num_threads();
  const auto worth = [&](double flops_per_thread) {
    return std::max(1, static_cast<int32_t>(std::min<double>(flops / flops_per_thread, most)));
  };
  const int32_t threads = worth(kFlopsPerThread);
  if (threads == 1 || problem.executor) return threads;
  const bool is_told = problem.num_threads > 0;
  return call.threads(threads, is_told ? threads : worth(kFlopsPerThreadAsleep));
}

Index query_block_of(const Problem& problem, Index longest) {
  constexpr Index fewest_queries = 32;
  constexpr Index long_block = 256, many = 128;  // such a block is halved where there are fewer
  const bool is_long = longest >= long_block;
  const Index query_block = is_long ? longest / 2 : longest;
  const double flops = 2 * static_cast<double>(problem.heads_q * problem.queries) *
                       static_cast<double>(problem.keys) *
                       static_cast<double>(problem.head_dim + problem.value_dim);
  if (problem.packed || flops < 2 * kFlopsPerThread) return query_block;
  if (is_long && problem.heads_q * (problem.queries / longest) >= many) return longest;
  const Index wanted = flops < 6 * kFlopsPerThread ? 2 : 4;  // smaller blocks take longer
  const Index per_head = ceil_div(wanted, problem.heads_q);
  const Index queries = ceil_div(ceil_div(problem.queries, per_head), fewest_queries);
  return std::min(query_block, queries * fewest_queries);
}

Packing choose_packing(const Problem& problem, int32_t threads) {
  // Packed sequences differ in length: as many pairs as the longest would make of the whole.
  Index pairs = problem.batch * problem.heads_kv;
  if (problem.packed) {
    Index longest = 1;
    for (Index b = 0; b < problem.batch; ++b) longest = std::max(longest, problem.sequence(b).keys);
    pairs = problem.keys / longest * problem.heads_kv;
  }
  // Threads that are left without a pair can help with the queries of the others, not with packing.
  const bool even = pairs % threads == 0 || pairs >= 8 * threads;
  const bool many_queries = problem.group * problem.queries >= 512;
  return pairs >= threads && (even || many_queries) ? Packing::per_thread : Packing::shared;
}

}  // namespace cattn
