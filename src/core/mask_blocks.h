// What a bool mask leaves of every block of scores, found once and shared by all heads that read
// the same mask: a block with nothing to attend costs nothing, a full one needs no mask.
#pragma once
#include <vector>

#include "core/plan.h"

namespace cattn {

class MaskBlocks {
 public:
  // Of those entries. Nothing is read where the problem has no mask.
  MaskBlocks(const Problem& problem, const Tiling& tiling, int32_t threads, Entries entries = {});

  // The kinds of a query block's key blocks, by the number of the key block; null without a mask.
  const MaskKind* of(Index batch, Index head, Index query_block) const;

 private:
  // One batch entry. Its planes follow one another, each query block by query block.
  struct Entry {
    Index query_blocks, key_blocks;
    Index first_kind;
    Index first_item;  // (plane, query block) in order
    Index batch;
  };
  void classify(const Problem& problem, const Tiling& tiling, const Entry& e, Index head,
                Index query_block);

  bool per_head_ = false, same_rows_ = false;
  std::vector<Entry> entries_;
  std::vector<MaskKind> kinds_;
};

}  // namespace cattn
