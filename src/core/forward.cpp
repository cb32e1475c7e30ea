// The forward loop nest: pack the keys and values of a kv head once, then every query block of
// every query head of its group against them.
#include <algorithm>

#include "core/attention.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/plan.h"
#include "core/workspace.h"

namespace cattn {
namespace {

// The packed keys and values of one (batch, kv head) pair.
struct PackedPair {
  char* keys;
  char* values;
  uint8_t* value_flags;
};

class Forward {
 public:
  Forward(const Problem& problem, const KernelSet& kernels)
      : p_(problem),
        k_(kernels),
        tiling_(kernels.forward_tiling),
        key_bytes_(k_.packed_bytes(Operand::key, tiling_, p_.head_dim)),
        value_bytes_(k_.packed_bytes(Operand::value, tiling_, p_.value_dim)),
        query_blocks_(ceil_div(p_.queries, tiling_.query_block)),
        pairs_(p_.batch * p_.heads_kv) {
    for (Index b = 0; b < p_.batch; ++b) most_blocks_ = std::max(most_blocks_, blocks(b).count);
  }

  void run() {
    const double flops = 2 * p_.score_count() * static_cast<double>(p_.head_dim + p_.value_dim);
    const int32_t threads = threads_for(p_, flops);
    const bool shared = choose_packing(p_, threads) == Packing::shared;

    Layout layout;
    const Index packed_pairs = shared ? pairs_ : threads;
    const Index packed_blocks = checked_multiply(packed_pairs, most_blocks_);
    const Index keys_at = layout.add(checked_multiply(packed_blocks, key_bytes_));
    const Index values_at = layout.add(checked_multiply(packed_blocks, value_bytes_));
    const Index flags_at = layout.add(packed_blocks);
    const Index scratch_bytes =
        ceil_div(k_.forward_scratch_bytes(p_.head_dim, p_.value_dim), kAlignment) * kAlignment;
    const Index scratch_at = layout.add(threads * scratch_bytes);
    // The weights are computed from the lse, which the caller need not want.
    const bool own_lse = p_.weights && !p_.lse;
    const Index lse_bytes =
        ceil_div(tiling_.query_block * k_.element_size, kAlignment) * kAlignment;
    const Index lse_at = layout.add(own_lse ? threads * lse_bytes : 0);
    const Workspace workspace(layout.bytes());

    const auto packed = [&](Index index) {
      return PackedPair{
          workspace.data() + keys_at + index * most_blocks_ * key_bytes_,
          workspace.data() + values_at + index * most_blocks_ * value_bytes_,
          reinterpret_cast<uint8_t*>(workspace.data() + flags_at + index * most_blocks_)};
    };
    const auto query_block = [&](Index pair, Index head_in_group, Index block, Index where,
                                 int32_t thread) {
      char* const lse = own_lse ? workspace.data() + lse_at + thread * lse_bytes : nullptr;
      attend(pair, head_in_group, block, packed(where),
             workspace.data() + scratch_at + thread * scratch_bytes, lse);
    };

    if (!shared) {
      parallel_items(pairs_, threads, p_.executor, [&](Index pair, int32_t thread) {
        const Index count = blocks(pair / p_.heads_kv).count;
        for (Index b = 0; b < count; ++b) pack(pair, b, packed(thread));
        for (Index g = 0; g < p_.group; ++g) {
          for (Index qb = query_blocks_ - 1; qb >= 0; --qb) {
            query_block(pair, g, qb, thread, thread);
          }
        }
      });
      return;
    }
    parallel_items(pairs_ * most_blocks_, threads, p_.executor, [&](Index item, int32_t) {
      const Index pair = item / most_blocks_, b = item % most_blocks_;
      if (b < blocks(pair / p_.heads_kv).count) pack(pair, b, packed(pair));
    });
    // The last query blocks see the most keys: first, so that the light ones fill the gaps.
    const Index per_pair = p_.group * query_blocks_;
    parallel_items(pairs_ * per_pair, threads, p_.executor, [&](Index item, int32_t thread) {
      const Index pair = item / per_pair, rest = item % per_pair;
      query_block(pair, rest % p_.group, query_blocks_ - 1 - rest / p_.group, pair, thread);
    });
  }

 private:
  BlockRange blocks(Index batch) const {
    return key_blocks(p_.band(batch), p_.queries, tiling_.key_block);
  }

  void pack(Index pair, Index index, const PackedPair& packed) const {
    const Index b = pair / p_.heads_kv, h = pair % p_.heads_kv;
    const Index first_key = (blocks(b).first + index) * tiling_.key_block;
    const Index rows = std::min(tiling_.key_block, p_.keys - first_key);
    k_.pack({Operand::key, p_.rows(p_.k, b, h, first_key), rows, p_.head_dim,
             packed.keys + index * key_bytes_},
            tiling_);
    packed.value_flags[index] = k_.pack({Operand::value, p_.rows(p_.v, b, h, first_key), rows,
                                         p_.value_dim, packed.values + index * value_bytes_},
                                        tiling_);
  }

  void attend(Index pair, Index head_in_group, Index block, const PackedPair& packed, char* scratch,
              char* own_lse) const {
    const Index b = pair / p_.heads_kv;
    const Index h = pair % p_.heads_kv * p_.group + head_in_group;
    const Index first_query = block * tiling_.query_block;
    const ScoreTerms terms = p_.terms(b, h);
    ForwardTask task{};
    task.q = p_.rows(p_.q, b, h, first_query);
    task.rows = std::min(tiling_.query_block, p_.queries - first_query);
    task.first_query = first_query;
    task.head_dim = p_.head_dim;
    task.value_dim = p_.value_dim;
    task.band = p_.band(b);
    task.terms = &terms;
    task.keys = packed.keys;
    task.values = packed.values;
    task.value_flags = packed.value_flags;
    task.first_block = blocks(b).first;
    const Rows out{p_.at(p_.out, b, h, first_query), p_.out.row_stride};
    task.out = out;
    if (p_.lse) {
      task.lse = p_.at(p_.lse, b, h, first_query);
      task.lse_stride = p_.lse.row_stride;
    } else {
      task.lse = own_lse;
      task.lse_stride = 1;
    }
    task.scratch = scratch;
    k_.forward(task);
    if (p_.weights) {
      k_.weights({&task, p_.keys, {p_.at(p_.weights, b, h, first_query), p_.weights.row_stride}});
    }
  }

  const Problem& p_;
  const KernelSet& k_;
  const Tiling tiling_;
  const Index key_bytes_, value_bytes_;
  const Index query_blocks_, pairs_;
  Index most_blocks_ = 0;  // key blocks of the batch entry that needs the most
};

}  // namespace

void attention_forward(const Problem& problem, const KernelSet& kernels) {
  if (problem.batch == 0 || problem.heads_q == 0 || problem.queries == 0) return;
  Forward(problem, kernels).run();
}

}  // namespace cattn
