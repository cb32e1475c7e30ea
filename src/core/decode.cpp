// The decode loop nest: few queries against keys and values where they lie, or packed just before.
// Long ones are cut into parts, which any thread may take and whose results are merged, so that one
// head has work for all, and what is packed stays in the cache.
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

// Keys and values of a part: what the first query head of a group has read, or what was packed, the
// next ones find in the L2 cache. Each part of packed ones costs some passes over its results.
constexpr Index kBytesOfPart = 1 << 18, kBytesOfPackedPart = 1 << 19;

// Parts of a packed batch entry, at least, over all its heads: for threads to share.
constexpr Index kFewestPackedParts = 4;

// Operations on what comes from memory or a far cache take so many times as long as others.
constexpr double kTimesAsLong = 4;

// One batch entry. Its parts and rows are numbered behind those of the entries before.
struct Entry : Attended {
  Way way;
  Index parts;       // of one head; 0: the entry is not for this nest
  Index first_part;  // (kv head, part) in order
  Index first_kept;  // (query head, part, query) in order: rows that wait to be merged
};

class Decode {
 public:
  Decode(const Problem& problem, const KernelSet& kernels, Entries few)
      : p_(problem),
        k_(kernels),
        packer_(problem, kernels),
        threads_(threads_for(p_, kTimesAsLong * forward_flops(p_, few), call_)),
        mask_blocks_(p_, k_.forward_tiling, threads_, few),
        row_bytes_((kPartNumbers + ceil_div(p_.value_dim, kPartStep) * kPartStep) *
                   k_.arithmetic_size) {
    entries_.reserve(static_cast<size_t>(p_.batch));
    for (Index b = 0; b < p_.batch; ++b) {
      Entry e{{b, p_.sequence(b), p_.band(b), {}}, Way::in_place, 0, parts_, kept_};
      if (are_among(few, p_, e.sequence)) {
        e.blocks = key_blocks(e.band, 0, e.sequence.queries, k_.forward_tiling.key_block);
        e.way = way_of(p_, e.sequence, few.most_in_parts);
        e.parts = parts_for(e);
        const Index blocks_of_part = ceil_div(e.blocks.count, e.parts);
        if (e.way == Way::in_parts) most_packed_ = std::max(most_packed_, blocks_of_part);
        parts_ = checked_add(parts_, p_.heads_kv * e.parts);
        if (e.parts > 1) kept_ = checked_add(kept_, p_.heads_q * e.parts * e.sequence.queries);
      }
      entries_.push_back(e);
    }
  }

  void run() {
    Layout layout;
    const auto part = [&](Index count, Index bytes) {
      return layout.add(checked_multiply(count, bytes));
    };
    scratch_bytes_ = aligned(k_.forward_scratch_bytes(p_.head_dim, p_.value_dim));
    const Index kept_at = part(kept_, row_bytes_);
    const Index scratch_at = part(threads_, scratch_bytes_);
    const Index team = std::min<Index>(threads_, std::max(parts_, p_.batch * p_.heads_q));
    const Index keys_at = part(team * most_packed_, packer_.key_bytes());
    const Index values_at = part(team * most_packed_, packer_.value_bytes());
    const Index flags_at = part(team, aligned(most_packed_));
    // The weights are computed from the lse, which the caller need not want.
    own_lse_ = p_.weights && !p_.lse;
    const Index entries = p_.packed ? 1 : p_.batch;
    const Index lse_at = part(own_lse_ ? entries * p_.heads_q : 0, p_.queries * k_.arithmetic_size);
    const Workspace workspace(layout.bytes());
    kept_data_ = workspace.data() + kept_at;
    scratch_ = workspace.data() + scratch_at;
    lse_ = workspace.data() + lse_at;
    packed_ = {workspace.data() + keys_at, workspace.data() + values_at,
               reinterpret_cast<uint8_t*>(workspace.data() + flags_at)};
    const auto attend = [&](Index item, int32_t thread) { attend_part(item, thread); };
    const auto finish = [&](Index item, int32_t thread) { finish_head(item, thread); };
    if (kept_ == 0 && !p_.weights) {
      parallel_items(parts_, threads_, p_.executor, attend);
    } else {
      parallel_phases({parts_, attend}, {p_.batch * p_.heads_q, finish}, threads_, p_.executor);
    }
  }

 private:
  // Of one head.
  Index parts_for(const Entry& e) const {
    const Index key_bytes = (p_.head_dim + p_.value_dim) * p_.k.element_size;
    const bool in_place = e.way == Way::in_place;
    const Index block_bytes = in_place ? key_bytes * k_.forward_tiling.key_block
                                       : packer_.key_bytes() + packer_.value_bytes();
    const Index part_bytes = in_place ? kBytesOfPart : kBytesOfPackedPart;
    const Index parts = ceil_div(e.blocks.count, std::max<Index>(part_bytes / block_bytes, 1));
    const Index fewest = in_place ? 1 : ceil_div(kFewestPackedParts, p_.heads_kv);
    return std::max<Index>(std::max(parts, std::min(fewest, e.blocks.count)), 1);
  }

  // All queries of a head, as far as they do not depend on keys.
  ForwardTask task_of(const Entry& e, Index h, const ScoreTerms& terms, int32_t thread) const {
    ForwardTask task = forward_task(p_, e, h, 0, e.sequence.queries, terms);
    task.mask_kinds = mask_blocks_.of(e.batch, h, 0);
    if (own_lse_) {
      const Index of_sequence =
          p_.packed ? e.sequence.first_query : e.batch * p_.heads_q * p_.queries;
      task.lse = lse_ + (of_sequence + h * p_.queries) * k_.arithmetic_size;
      task.lse_stride = 1;
    }
    task.scratch = scratch_ + thread * scratch_bytes_;
    return task;
  }

  Index part_bytes(const Entry& e) const { return e.sequence.queries * row_bytes_; }
  char* kept_of(const Entry& e, Index h, Index part) const {
    return kept_data_ + e.first_kept * row_bytes_ + (h * e.parts + part) * part_bytes(e);
  }
  ConstRows keys_of(const Entry& e, const View& view, Index kv_head) const {
    return p_.rows(view, e.batch, kv_head, e.sequence.first_key);
  }

  // What becomes of a part of the keys for a query head; null: it is all of them.
  char* part_of(const Entry& e, Index h, Index part) const {
    return e.parts > 1 ? kept_of(e, h, part) : nullptr;
  }

  // All query heads of a group.
  void attend_part(Index item, int32_t thread) const {
    const Entry& e = entry_of(entries_, &Entry::first_part, item);
    const Index kv_head = (item - e.first_part) / e.parts, part = (item - e.first_part) % e.parts;
    const Index first = e.blocks.count * part / e.parts;
    const Index end = e.blocks.count * (part + 1) / e.parts;
    const BlockRange blocks{e.blocks.first + first, end - first};
    if (e.way == Way::in_place) {
      attend_in_place(e, kv_head, part, blocks, thread);
    } else {
      attend_packed(e, kv_head, part, blocks, thread);
    }
  }

  // One query head after the other.
  void attend_packed(const Entry& e, Index kv_head, Index part, BlockRange blocks,
                     int32_t thread) const {
    const PackedPair packed{packed_.keys + thread * most_packed_ * packer_.key_bytes(),
                            packed_.values + thread * most_packed_ * packer_.value_bytes(),
                            packed_.value_flags + thread * aligned(most_packed_)};
    for (Index i = 0; i < blocks.count; ++i) {
      packer_.pack(Operand::key, p_.k, e.batch, kv_head, blocks, i, packed);
      packer_.pack(Operand::value, p_.v, e.batch, kv_head, blocks, i, packed);
    }
    for (Index h = kv_head * p_.group; h < (kv_head + 1) * p_.group; ++h) {
      const ScoreTerms terms = p_.terms(e.batch, h);
      ForwardTask task = task_of(e, h, terms, thread);
      task.keys = packed.keys;
      task.values = packed.values;
      task.value_flags = packed.value_flags;
      task.first_block = blocks.first;
      task.end_block = blocks.first + blocks.count;
      task.part = part_of(e, h, part);
      k_.forward(task);
    }
  }

  // As many query heads at a time as the kernel takes.
  void attend_in_place(const Entry& e, Index kv_head, Index part, BlockRange blocks,
                       int32_t thread) const {
    const ConstRows k = keys_of(e, p_.k, kv_head), v = keys_of(e, p_.v, kv_head);
    const Index at_once = kMostDecodeRows / e.sequence.queries;
    const Index behind = (kv_head + 1) * p_.group;
    for (Index h = kv_head * p_.group; h < behind; h += at_once) {
      ScoreTerms terms[kMostDecodeRows];
      ForwardTask heads[kMostDecodeRows];
      const Index count = std::min(at_once, behind - h);
      for (Index i = 0; i < count; ++i) {
        terms[i] = p_.terms(e.batch, h + i);
        heads[i] = task_of(e, h + i, terms[i], thread);
      }
      k_.decode({heads, count, k, v, blocks.first, blocks.count, part_of(e, h, part),
                 e.parts * part_bytes(e)});
    }
  }

  void finish_head(Index item, int32_t thread) const {
    const Entry& e = entries_[static_cast<size_t>(item / p_.heads_q)];
    if (e.parts == 0) return;
    const Index h = item % p_.heads_q;
    const ScoreTerms terms = p_.terms(e.batch, h);
    const ForwardTask task = task_of(e, h, terms, thread);
    if (e.parts > 1) k_.merge({&task, kept_of(e, h, 0), e.parts});
    if (p_.weights) {
      k_.decode_weights(weights_task(p_, e, h, task), keys_of(e, p_.k, h / p_.group));
    }
  }

  const Problem& p_;
  const KernelSet& k_;
  const KeyPacker packer_;
  Call call_;
  const int32_t threads_;
  const MaskBlocks mask_blocks_;
  const Index row_bytes_;
  std::vector<Entry> entries_;
  Index parts_ = 0, kept_ = 0;
  Index most_packed_ = 0;  // blocks of a part
  PackedPair packed_{};    // of the first thread
  char *kept_data_ = nullptr, *scratch_ = nullptr, *lse_ = nullptr;
  Index scratch_bytes_ = 0;
  bool own_lse_ = false;
};

}  // namespace

void attention_decode(const Problem& problem, const KernelSet& kernels, Entries few) {
  Decode(problem, kernels, few).run();
}

}  // namespace cattn
