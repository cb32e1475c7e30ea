// The forward loop nest: pack the keys and values of a kv head once, then every query block of
// every query head of its group against them. Forward mode is the same with tangents beside.
#include <algorithm>
#include <vector>

#include "core/attention.h"
#include "core/error.h"
#include "core/forward_task.h"
#include "core/key_packer.h"
#include "core/mask_blocks.h"
#include "core/parallel.h"
#include "core/plan.h"
#include "core/workspace.h"

namespace cattn {
namespace {

// One batch entry. Work and packed memory are numbered entry after entry.
struct Entry : Attended {
  Index query_blocks;  // of one head
  Index first_packed;  // (kv head, key block) in order
  Index first_item;    // (kv head, query block, head of the group) in order
};

struct QueryBlock {
  Index head, block;
};

// Where the packed blocks of a (batch, kv head) pair begin, and where their flags.
struct Place {
  Index block, flags;
};

class Forward {
 public:
  Forward(const Problem& problem, const KernelSet& kernels, Entries wanted, bool tangents)
      : p_(problem),
        k_(kernels),
        packer_(problem, kernels),
        tangents_(tangents),
        wanted_(wanted),
        threads_(threads_for(p_, forward_flops(p_, wanted), call_)),
        tiling_{query_block_of(p_, kernels.forward_tiling.query_block), packer_.key_block()} {
    entries_.reserve(static_cast<size_t>(p_.batch));
    for (Index b = 0; b < p_.batch; ++b) {
      Entry e{{b, p_.sequence(b), p_.band(b), {}}, 0, packed_blocks_, items_};
      entries_.push_back(e);
      if (!are_among(wanted_, p_, e.sequence)) continue;
      e.blocks = key_blocks(e.band, 0, e.sequence.queries, tiling_.key_block);
      e.query_blocks = ceil_div(e.sequence.queries, tiling_.query_block);
      packed_blocks_ = checked_add(packed_blocks_, p_.heads_kv * e.blocks.count);
      items_ = checked_add(items_, p_.heads_q * e.query_blocks);
      most_blocks_ = std::max(most_blocks_, e.blocks.count);
      entries_.back() = e;
    }
  }

  void run() {
    // The only block of the only pair is so little that every thread packs it for itself.
    const bool alone = p_.batch * p_.heads_kv == 1 && packed_blocks_ == 1;
    const bool shared = !alone && choose_packing(p_, threads_) == Packing::shared;
    const Place end = shared ? Place{packed_blocks_, packed_blocks_} : place_of(threads_);
    lay_out(end);
    const Workspace workspace(layout_.bytes());
    data_ = workspace.data();
    const MaskBlocks mask_blocks(p_, tiling_, threads_, wanted_);
    mask_blocks_ = &mask_blocks;
    if (alone) {
      run_alone();
    } else if (shared) {
      run_shared();
    } else {
      run_pairs();
    }
  }

 private:
  // The only pair, in every thread's own memory.
  void run_alone() const {
    struct alignas(kAlignment) Packed {
      bool done = false;
    };
    std::vector<Packed> of_threads(static_cast<size_t>(threads_));
    const Entry& e = entries_.front();
    parallel_items(items_, threads_, p_.executor, [&](Index part, int32_t thread) {
      bool& done = of_threads[static_cast<size_t>(thread)].done;
      if (!done) pack_pair(e, 0, place_of(thread));
      done = true;
      attend(e, 0, part, place_of(thread), thread);
    });
  }

  // Pair by pair, each in its thread's own memory.
  void run_pairs() const {
    const auto entry = [&](Index pair) -> const Entry& {
      return entries_[static_cast<size_t>(pair / p_.heads_kv)];
    };
    parallel_parts(
        p_.batch * p_.heads_kv, threads_, p_.executor,
        [&](Index pair) { return p_.group * entry(pair).query_blocks; },
        [&](Index pair, int32_t thread) {
          pack_pair(entry(pair), pair % p_.heads_kv, place_of(thread));
        },
        [&](Index pair, Index part, int32_t owner, int32_t thread) {
          attend(entry(pair), pair % p_.heads_kv, part, place_of(owner), thread);
        });
  }

  // All pairs, in memory that every thread reads.
  void run_shared() const {
    const auto packed_at = [](const Entry& e, Index h) {
      const Index first = e.first_packed + h * e.blocks.count;
      return Place{first, first};
    };
    const auto pack_operand = [&](Index item, int32_t) {
      const Index of_both = item / 2;
      const Entry& e = entry_of(entries_, &Entry::first_packed, of_both);
      const Index rest = of_both - e.first_packed, h = rest / e.blocks.count;
      pack(e, h, rest % e.blocks.count, item % 2 == 0 ? Operand::key : Operand::value,
           packed_at(e, h));
    };
    const auto attend_block = [&](Index item, int32_t thread) {
      const Entry& e = entry_of(entries_, &Entry::first_item, item);
      const Index per_pair = p_.group * e.query_blocks, rest = item - e.first_item;
      const Index h = rest / per_pair;
      attend(e, h, rest % per_pair, packed_at(e, h), thread);
    };
    // The last query blocks see the most keys: first, so that the light ones fill the gaps.
    parallel_phases({2 * packed_blocks_, pack_operand}, {items_, attend_block, Order::one_by_one},
                    threads_, p_.executor);
  }

  void lay_out(Place end) {
    const auto part = [&](Index count, Index bytes) {
      return layout_.add(checked_multiply(count, bytes));
    };
    for (int set = 0; set < (tangents_ ? 2 : 1); ++set) {
      keys_at_[set] = part(end.block, packer_.key_bytes());
      values_at_[set] = part(end.block, packer_.value_bytes());
      flags_at_[set] = part(end.flags, 1);
    }
    scratch_bytes_ = aligned(tangents_ ? k_.jvp_scratch_bytes(p_.head_dim, p_.value_dim)
                                       : k_.forward_scratch_bytes(p_.head_dim, p_.value_dim));
    scratch_at_ = part(threads_, scratch_bytes_);
    // The weights are computed from the lse, which the caller need not want.
    own_lse_ = p_.weights && !p_.lse;
    lse_bytes_ = aligned(tiling_.query_block * k_.arithmetic_size);
    lse_at_ = part(own_lse_ ? threads_ : 0, lse_bytes_);
  }

  // Of what a thread packs for itself.
  Place place_of(int32_t thread) const {
    return {thread * most_blocks_, thread * aligned(most_blocks_)};
  }

  // Set 1 holds the tangents.
  PackedPair packed(Place where, int set) const {
    return {data_ + keys_at_[set] + where.block * packer_.key_bytes(),
            data_ + values_at_[set] + where.block * packer_.value_bytes(),
            reinterpret_cast<uint8_t*>(data_ + flags_at_[set] + where.flags)};
  }

  // All that is attended of a pair.
  void pack_pair(const Entry& e, Index h, Place where) const {
    for (Index block = 0; block < e.blocks.count; ++block) {
      for (const Operand operand : {Operand::key, Operand::value})
        pack(e, h, block, operand, where);
    }
  }

  // Keys or values of a block, and their tangents.
  void pack(const Entry& e, Index h, Index index, Operand operand, Place where) const {
    const auto pack_set = [&](const View& k, const View& v, int set) {
      const View& view = operand == Operand::key ? k : v;
      packer_.pack(operand, view, e.batch, h, e.blocks, index, packed(where, set));
    };
    pack_set(p_.k, p_.v, 0);
    if (tangents_) pack_set(p_.k_tangent, p_.v_tangent, 1);
  }

  // The query block of a part of the work for a kv head.
  QueryBlock query_block(const Entry& e, Index kv_head, Index part) const {
    return {kv_head * p_.group + part % p_.group, e.query_blocks - 1 - part / p_.group};
  }

  void attend(const Entry& e, Index kv_head, Index part, Place where, int32_t thread) const {
    const auto [h, block] = query_block(e, kv_head, part);
    const Index first_query = block * tiling_.query_block;
    const Index rows = std::min(tiling_.query_block, e.sequence.queries - first_query);
    const ScoreTerms terms = p_.terms(e.batch, h);
    const PackedPair keys = packed(where, 0);
    ForwardTask task = forward_task(p_, e, h, first_query, rows, terms);
    task.keys = keys.keys;
    task.values = keys.values;
    task.value_flags = keys.value_flags;
    task.mask_kinds = mask_blocks_->of(e.batch, h, block);
    if (own_lse_) {
      task.lse = data_ + lse_at_ + thread * lse_bytes_;
      task.lse_stride = 1;
    }
    if (part + 1 < p_.group * e.query_blocks) {
      const auto [next_head, next_block] = query_block(e, kv_head, part + 1);
      const Index next_row = e.sequence.first_query + next_block * tiling_.query_block;
      task.next_q = p_.rows(p_.q, e.batch, next_head, next_row).data;
    }
    task.scratch = data_ + scratch_at_ + thread * scratch_bytes_;
    if (tangents_) {
      const PackedPair moved = packed(where, 1);
      const Index row = e.sequence.first_query + first_query;
      k_.jvp({&task, p_.rows(p_.q_tangent, e.batch, h, row), moved.keys, moved.values,
              moved.value_flags, p_.writable_rows(p_.out_tangent, e.batch, h, row)});
      return;
    }
    k_.forward(task);
    if (!p_.weights) return;
    k_.weights(weights_task(p_, e, h, task));
  }

  const Problem& p_;
  const KernelSet& k_;
  const KeyPacker packer_;
  const bool tangents_;
  const Entries wanted_;
  Call call_;
  const int32_t threads_;
  const Tiling tiling_;
  std::vector<Entry> entries_;
  Index packed_blocks_ = 0, items_ = 0;
  Index most_blocks_ = 0;  // key blocks of the entry that needs the most
  Layout layout_;
  char* data_ = nullptr;
  const MaskBlocks* mask_blocks_ = nullptr;
  bool own_lse_ = false;
  Index keys_at_[2], values_at_[2], flags_at_[2];
  Index scratch_at_ = 0, scratch_bytes_ = 0, lse_at_ = 0, lse_bytes_ = 0;
};

}  // namespace

void attention_forward(const Problem& problem, const Kernels& kernels) {
  if (problem.batch == 0 || problem.heads_q == 0 || problem.queries == 0) return;
  // Other kernels leave no parts; where all are multiply-adds, these are the best too.
  const bool leaves_parts = kernels.best.forward == kernels.multiply_adds.forward;
  const Index most_in_parts = leaves_parts ? kernels.best.forward_tiling.query_block : 0;
  const Entries few{Entries::few_queries, most_in_parts};
  const Entries many{Entries::many_queries, most_in_parts};
  const auto has_some = [&](Entries entries) {
    for (Index b = 0; b < (problem.packed || problem.kv_lengths ? problem.batch : 1); ++b) {
      if (are_among(entries, problem, problem.sequence(b))) return true;
    }
    return false;
  };
  if (has_some(few)) attention_decode(problem, kernels.multiply_adds, few);
  if (has_some(many)) Forward(problem, kernels.best, many, false).run();
}

void attention_jvp(const Problem& problem, const Kernels& kernels) {
  if (problem.batch == 0 || problem.heads_q == 0 || problem.queries == 0) return;
  Forward(problem, kernels.multiply_adds, {}, true).run();
}

}  // namespace cattn
