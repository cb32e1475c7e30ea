#include "core/mask_blocks.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/parallel.h"

namespace cattn {
namespace {

// Stops at the first row that shows the block to be partial.
MaskKind kind_of(const ScorePlane& mask, Index i, Index rows, Index j, Index cols) {
  const uint8_t* const corner =
      static_cast<const uint8_t*>(mask.data) + i * mask.row_stride + j * mask.col_stride;
  if (mask.row_stride == 0) rows = 1;
  if (mask.col_stride == 0) cols = 1;
  constexpr uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
  uint64_t some = 0, holes = 0;  // nonzero: a byte that is not zero; one that is
  for (Index r = 0; r < rows; ++r) {
    const uint8_t* const row = corner + r * mask.row_stride;
    Index c = 0;
    if (mask.col_stride == 1) {
      for (; c + 8 <= cols; c += 8) {
        uint64_t bytes;
        std::memcpy(&bytes, row + c, sizeof(bytes));
        some |= bytes;
        holes |= (bytes - ones) & ~bytes & tops;
      }
    }
    for (; c < cols; ++c) {
      const uint8_t byte = row[c * mask.col_stride];
      some |= byte;
      holes |= byte == 0;
    }
    if (some && holes) return MaskKind::partial;
  }
  return some ? MaskKind::full : MaskKind::empty;
}

}  // namespace

MaskBlocks::MaskBlocks(const Problem& problem, const Tiling& tiling, int32_t threads,
                       Entries entries) {
  if (!problem.mask) return;
  per_head_ = problem.mask.head_stride != 0;
  same_rows_ = problem.mask.row_stride == 0;
  const Index planes = per_head_ ? problem.heads_q : 1;
  Index kinds = 0, items = 0;
  for (Index b = 0; b < problem.batch; ++b) {
    const Sequence s = problem.sequence(b);
    const Index queries = are_among(entries, problem, s) ? s.queries : 0;
    // Of a mask that is the same for all queries one row of blocks says it all.
    Entry e{same_rows_ ? std::min<Index>(queries, 1) : ceil_div(queries, tiling.query_block),
            ceil_div(s.keys, tiling.key_block), kinds, items, b};
    // Batch entries mostly share one mask.
    if (b > 0 && problem.plane(problem.mask, b, 0) == problem.plane(problem.mask, 0, 0) &&
        e.query_blocks == entries_[0].query_blocks && e.key_blocks == entries_[0].key_blocks &&
        s.keys == problem.sequence(0).keys && s.queries == problem.sequence(0).queries &&
        !problem.causal_offset) {
      e.first_kind = 0;
    } else {
      kinds = checked_add(kinds, checked_multiply(planes, e.query_blocks * e.key_blocks));
      items = checked_add(items, checked_multiply(planes, e.query_blocks));
    }
    entries_.push_back(e);
  }
  kinds_.resize(static_cast<size_t>(kinds));
  parallel_items(items, threads, problem.executor, [&](Index item, int32_t) {
    const Entry& e = entry_of(entries_, &Entry::first_item, item);
    const Index rest = item - e.first_item;
    classify(problem, tiling, e, rest / e.query_blocks, rest % e.query_blocks);
  });
}

void MaskBlocks::classify(const Problem& problem, const Tiling& tiling, const Entry& e, Index head,
                          Index query_block) {
  const Sequence s = problem.sequence(e.batch);
  const View& mask = problem.mask;
  const ScorePlane plane{problem.plane(mask, e.batch, head), mask.row_stride, mask.col_stride, {}};
  const Index i = query_block * tiling.query_block;
  const Index rows = std::min(tiling.query_block, s.queries - i);
  const Index at = e.first_kind + (head * e.query_blocks + query_block) * e.key_blocks;
  const BlockRange attended = same_rows_
                                  ? BlockRange{0, e.key_blocks}
                                  : key_blocks(problem.band(e.batch), i, rows, tiling.key_block);
  for (Index b = attended.first; b < attended.first + attended.count; ++b) {
    const Index j = b * tiling.key_block;
    kinds_[static_cast<size_t>(at + b)] =
        kind_of(plane, i, rows, j, std::min(tiling.key_block, s.keys - j));
  }
}

const MaskKind* MaskBlocks::of(Index batch, Index head, Index query_block) const {
  if (entries_.empty()) return nullptr;
  const Entry& e = entries_[static_cast<size_t>(batch)];
  const Index plane = per_head_ ? head : 0;
  if (same_rows_) query_block = 0;
  return kinds_.data() + e.first_kind + (plane * e.query_blocks + query_block) * e.key_blocks;
}

}  // namespace cattn
