// The backward loop nest. Per (batch, kv head) pair: pack the query side, then a run of key blocks
// at a time against all query blocks of the group. The keys of a run are packed, and its dk and dv
// summed, in the thread's own memory; dq of a query block in one accumulator, to which the key
// blocks add in their order, whichever threads compute them. A run and all that belongs to it stay
// in the L2 cache, through which the query blocks pass once for each run. What is only one block of
// queries and one of keys mostly needs no accumulators.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <unordered_map>
#include <vector>

#include "core/attention.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/mask_blocks.h"
#include "core/parallel.h"
#include "core/plan.h"
#include "core/scalar.h"
#include "core/workspace.h"
#include "kernels/band.h"

namespace cattn {
namespace {

// Zeroes every element of a strided array.
void fill_with_zeros(const cattn_array& a, int axis = 0, Index offset = 0) {
  const Index size = dtype_size(a.dtype);
  const bool last = axis + 1 == a.ndim && a.strides[axis] == 1;
  if (axis == a.ndim || last) {
    const Index count = last ? a.shape[axis] : 1;
    std::memset(static_cast<char*>(a.data) + offset * size, 0, static_cast<size_t>(count * size));
    return;
  }
  for (Index i = 0; i < a.shape[axis]; ++i) {
    fill_with_zeros(a, axis + 1, offset + i * a.strides[axis]);
  }
}

// One batch entry. Work and packed memory are numbered entry after entry.
struct Entry {
  Index batch;
  Sequence sequence;
  Band band;
  Index key_blocks;          // over all rows that gradients are written for
  Index query_blocks;        // of one head
  Index group_query_blocks;  // of all heads of a group
  Index first_queries;       // (query head, query block) in order
  Index first_row;           // (query head, query) in order
};

// The query side of one pair. Blocks follow one another.
struct QuerySide {
  char *queries, *grads_out;  // per (query head of the group, query block)
  uint8_t* flags;
  char *row_scales, *delta;   // per (query head of the group, query)
  char* dq;                   // per (query head of the group, query block)
  std::atomic<Index>* turns;  // likewise: the key block that may add to dq next
};

// A key block and its sums.
struct PackedKeys {
  char *keys, *values_t, *key_rows;
  uint8_t* flags;
  char *dk, *dv;
};

class Backward {
 public:
  Backward(const Problem& problem, const KernelSet& kernels)
      : p_(problem), k_(kernels), tiling_(kernels.backward_tiling), pairs_(p_.batch * p_.heads_kv) {
    const auto is_wide = [&](const View& to) {
      return !to || to.element_size == k_.arithmetic_size;
    };
    writes_rows_ =
        k_.writes_rows && !p_.dbias && is_wide(p_.dq) && is_wide(p_.dk) && is_wide(p_.dv);
    entries_.reserve(static_cast<size_t>(p_.batch));
    for (Index b = 0; b < p_.batch; ++b) {
      Entry e{b, p_.sequence(b), p_.band(b), 0, 0, 0, total_.queries, total_.rows};
      e.key_blocks = ceil_div(e.sequence.key_rows, tiling_.key_block);
      e.query_blocks = ceil_div(e.sequence.queries, tiling_.query_block);
      e.group_query_blocks = p_.group * e.query_blocks;
      const Sizes mine{e.group_query_blocks, p_.group * e.sequence.queries, e.group_query_blocks};
      total_.add(mine, p_.heads_kv);
      most_.raise(mine);
      most_key_blocks_ = std::max(most_key_blocks_, e.key_blocks);
      entries_.push_back(e);
    }
  }

  void run() {
    const double flops = 6 * estimated_scores(p_) * static_cast<double>(p_.head_dim + p_.value_dim);
    Call call;
    threads_ = threads_for(p_, flops, call);
    // The gradient of the bias visits the pairs once more, so it wants them all.
    shared_ = p_.dbias || choose_packing(p_, threads_) == Packing::shared;

    Sizes sizes = total_;
    if (!shared_) {
      sizes = {};
      most_.rows = aligned(most_.rows);
      most_.marks = aligned(most_.marks);
      sizes.add(most_, threads_);
    }
    lay_out(sizes);
    const Workspace workspace(layout_.bytes());
    data_ = workspace.data();
    const MaskBlocks mask_blocks(p_, tiling_, threads_);
    mask_blocks_ = &mask_blocks;
    if (shared_) {
      run_shared();
    } else {
      parallel_parts(
          pairs_, threads_, p_.executor,
          [&](Index pair) { return ceil_div(entry(pair).key_blocks, run_length_); },
          [&](Index pair, int32_t thread) {
            const Entry& e = entry(pair);
            const Index h = pair % p_.heads_kv;
            const QuerySide packed = packed_queries(e, h, thread);
            for (Index b = 0; b < e.group_query_blocks; ++b) pack_queries(e, h, b, packed);
          },
          [&](Index pair, Index run, int32_t owner, int32_t thread) {
            const Entry& e = entry(pair);
            const Index h = pair % p_.heads_kv;
            key_blocks_at(e, h, run * run_length_, packed_queries(e, h, owner), thread);
          });
    }
    if (p_.dsinks_array.data) add_up_sinks();
  }

 private:
  // What the query side of one pair needs, or of all of them.
  struct Sizes {
    Index queries = 0, rows = 0;
    Index marks = 0;  // flags and turns of `queries`
    void add(const Sizes& pair, Index count) {
      queries = checked_add(queries, checked_multiply(count, pair.queries));
      rows = checked_add(rows, checked_multiply(count, pair.rows));
      marks = checked_add(marks, checked_multiply(count, pair.marks));
    }
    void raise(const Sizes& pair) {
      queries = std::max(queries, pair.queries);
      rows = std::max(rows, pair.rows);
      marks = std::max(marks, pair.marks);
    }
  };

  void run_shared() const {
    const auto pack_block = [&](Index item, int32_t thread) {
      const Entry& e = entry_of(entries_, &Entry::first_queries, item);
      const Index rest = item - e.first_queries, h = rest / e.group_query_blocks;
      pack_queries(e, h, rest % e.group_query_blocks, packed_queries(e, h, thread));
    };
    // As many pairs at a time as threads, so that they rarely wait for one another; run by run,
    // since the first keys are seen by the most queries: the light ones fill the gaps.
    const Index at_once = threads_, runs = ceil_div(most_key_blocks_, run_length_);
    const auto run_of_keys = [&](Index item, int32_t thread) {
      const Index first = item / (at_once * runs) * at_once;
      const Index pairs = std::min(at_once, pairs_ - first);
      const Index rest = item - first * runs, block = rest / pairs * run_length_;
      const Index pair = first + rest % pairs, h = pair % p_.heads_kv;
      const Entry& e = entry(pair);
      if (block < e.key_blocks) {
        key_blocks_at(e, h, block, packed_queries(e, h, thread), thread);
      }
    };
    parallel_phases({total_.queries, pack_block},
                    {checked_multiply(pairs_, runs), run_of_keys, Order::one_by_one}, threads_,
                    p_.executor);
    if (p_.dbias) run_bias_gradient();
  }

  // ---- memory ----

  void lay_out(const Sizes& sizes) {
    query_bytes_ = k_.packed_bytes(Operand::query, tiling_, p_.head_dim);
    grad_out_bytes_ = k_.packed_bytes(Operand::grad_out, tiling_, p_.value_dim);
    dq_bytes_ = k_.accumulator_bytes(tiling_.query_block, p_.head_dim);
    tile_bytes_ = tiling_.query_block * tiling_.key_block * k_.arithmetic_size;
    scratch_bytes_ = aligned(k_.backward_scratch_bytes(p_.head_dim, p_.value_dim));
    block_keys_at_ = block_layout_.add(k_.packed_bytes(Operand::key, tiling_, p_.head_dim));
    block_values_at_ = block_layout_.add(k_.packed_bytes(Operand::value_t, tiling_, p_.value_dim));
    block_key_rows_at_ =
        block_layout_.add(k_.packed_bytes(Operand::key_rows, tiling_, p_.head_dim));
    block_flags_at_ = block_layout_.add(1);
    block_dk_at_ = block_layout_.add(k_.accumulator_bytes(tiling_.key_block, p_.head_dim));
    block_dv_at_ = block_layout_.add(k_.accumulator_bytes(tiling_.key_block, p_.value_dim));
    run_length_ = run_length();

    const auto part = [&](Index count, Index bytes) {
      return layout_.add(checked_multiply(count, bytes));
    };
    queries_at_ = part(sizes.queries, query_bytes_);
    grads_out_at_ = part(sizes.queries, grad_out_bytes_);
    query_flags_at_ = part(sizes.marks, 1);
    row_scales_at_ = part(sizes.rows, kRowScaleNumbers * k_.arithmetic_size);
    delta_at_ = part(sizes.rows, k_.arithmetic_size);
    dq_at_ = part(p_.dq ? sizes.queries : 0, dq_bytes_);
    turns_at_ = part(p_.dq ? sizes.marks : 0, sizeof(std::atomic<Index>));
    dsinks_at_ = part(p_.dsinks_array.data ? total_.queries : 0, sizeof(double));

    thread_bytes_ =
        scratch_bytes_ + run_length_ * block_layout_.bytes() + (p_.dbias ? 2 * tile_bytes_ : 0);
    threads_at_ = part(threads_, thread_bytes_);
  }

  // Key blocks of a run: what three eighths of the L2 cache hold, but enough runs to share out.
  // Neither tells in the results.
  Index run_length() const {
    constexpr Index runs_per_thread = 8;
    const Index blocks = checked_multiply(pairs_, most_key_blocks_);
    const Index in_cache = l2_cache_bytes() / 8 * 3 / block_layout_.bytes();
    const Index fair = blocks / (runs_per_thread * threads_);
    return std::max<Index>(std::min({in_cache, fair, most_key_blocks_}), 1);
  }

  // Where the query side of a pair is packed: in its own place, or in its thread's.
  QuerySide packed_queries(const Entry& e, Index h, int32_t thread) const {
    Sizes at;
    if (shared_) {
      const Index first = e.first_queries + h * e.group_query_blocks;
      at = {first, e.first_row + h * p_.group * e.sequence.queries, first};
    } else {
      at.add(most_, thread);
    }
    QuerySide pair;
    pair.queries = data_ + queries_at_ + at.queries * query_bytes_;
    pair.grads_out = data_ + grads_out_at_ + at.queries * grad_out_bytes_;
    pair.flags = reinterpret_cast<uint8_t*>(data_ + query_flags_at_ + at.marks);
    pair.row_scales = data_ + row_scales_at_ + at.rows * kRowScaleNumbers * k_.arithmetic_size;
    pair.delta = data_ + delta_at_ + at.rows * k_.arithmetic_size;
    pair.dq = data_ + dq_at_ + at.queries * dq_bytes_;
    pair.turns = reinterpret_cast<std::atomic<Index>*>(data_ + turns_at_) + at.marks;
    return pair;
  }
  char* scratch(int32_t thread) const { return data_ + threads_at_ + thread * thread_bytes_; }

  // The thread's own place for a key block of a run.
  PackedKeys packed_keys(Index in_run, int32_t thread) const {
    char* const block = scratch(thread) + scratch_bytes_ + in_run * block_layout_.bytes();
    return {block + block_keys_at_,     block + block_values_at_,
            block + block_key_rows_at_, reinterpret_cast<uint8_t*>(block + block_flags_at_),
            block + block_dk_at_,       block + block_dv_at_};
  }

  // ---- indices ----

  const Entry& entry(Index pair) const { return entries_[static_cast<size_t>(pair / p_.heads_kv)]; }
  // A group block is (query head of the group, query block).
  Index query_head_of(const Entry& e, Index h, Index group_block) const {
    return h * p_.group + group_block / e.query_blocks;
  }
  Index first_query(const Entry& e, Index group_block) const {
    return group_block % e.query_blocks * tiling_.query_block;
  }
  Index query_rows(const Entry& e, Index group_block) const {
    return std::min(tiling_.query_block, e.sequence.queries - first_query(e, group_block));
  }
  // Keys of a block: those that exist, and those that gradients are written for.
  Index key_rows(const Entry& e, Index block) const {
    return std::clamp<Index>(e.sequence.keys - block * tiling_.key_block, 0, tiling_.key_block);
  }
  Index written_rows(const Entry& e, Index block) const {
    return std::min(tiling_.key_block, e.sequence.key_rows - block * tiling_.key_block);
  }

  // ---- the phases ----

  void pack_keys(const Entry& e, Index h, Index block, bool for_dq,
                 const PackedKeys& packed) const {
    const Index rows = key_rows(e, block);
    const Index first = e.sequence.first_key + block * tiling_.key_block;
    const ConstRows k = p_.rows(p_.k, e.batch, h, first), v = p_.rows(p_.v, e.batch, h, first);
    uint8_t flags = k_.pack({Operand::key, k, rows, p_.head_dim, packed.keys}, tiling_);
    flags &= k_.pack({Operand::value_t, v, rows, p_.value_dim, packed.values_t}, tiling_);
    if (for_dq) k_.pack({Operand::key_rows, k, rows, p_.head_dim, packed.key_rows}, tiling_);
    *packed.flags = flags;
  }

  void pack_queries(const Entry& e, Index h, Index block, const QuerySide& packed) const {
    const Index b = e.batch, head = query_head_of(e, h, block);
    const Index first = e.sequence.first_query + first_query(e, block), rows = query_rows(e, block);
    const ConstRows q = p_.rows(p_.q, b, head, first), dout = p_.rows(p_.dout, b, head, first);
    uint8_t flags = k_.pack(
        {Operand::query, q, rows, p_.head_dim, packed.queries + block * query_bytes_}, tiling_);
    flags &= k_.pack(
        {Operand::grad_out, dout, rows, p_.value_dim, packed.grads_out + block * grad_out_bytes_},
        tiling_);
    packed.flags[block] = flags;
    RowTermsTask terms{};
    terms.grad_out = dout;
    terms.out = p_.rows(p_.out, b, head, first);
    terms.rows = rows;
    terms.value_dim = p_.value_dim;
    terms.lse = p_.at(p_.lse, b, head, first);
    terms.lse_stride = p_.lse.row_stride;
    if (p_.dlse) {
      terms.dlse = p_.at(p_.dlse, b, head, first);
      terms.dlse_stride = p_.dlse.row_stride;
    }
    terms.row_scales = row_term(e, packed.row_scales, kRowScaleNumbers, block);
    terms.delta = row_term(e, packed.delta, 1, block);
    if (p_.dsinks_array.data) {
      terms.sink = p_.sink(head);
      terms.dsink = dsink_part(e, head, block % e.query_blocks);
    }
    k_.row_terms(terms);
    if (p_.dq) {
      if (!is_one_block(e)) clear_dq(e, block, packed);
      const BlockRange attended = key_blocks_of(e, block);
      ::new (packed.turns + block) std::atomic<Index>(attended.first);
      if (attended.count == 0) flush_dq(e, h, block, nullptr);
    }
  }
  void clear_dq(const Entry& e, Index block, const QuerySide& packed) const {
    k_.clear({packed.dq + block * dq_bytes_, true, query_rows(e, block), p_.head_dim});
  }
  // Where the `numbers` per row of a query block stand.
  char* row_term(const Entry& e, char* terms, Index numbers, Index block) const {
    return terms + (block / e.query_blocks * e.sequence.queries + first_query(e, block)) * numbers *
                       k_.arithmetic_size;
  }

  BackwardTask task(const Entry& e, Index key_block, const PackedKeys& keys, Index block,
                    const QuerySide& packed, const ScoreTerms& terms) const {
    BackwardTask t{};
    t.rows = query_rows(e, block);
    t.first_query = first_query(e, block);
    t.cols = key_rows(e, key_block);
    t.first_key = key_block * tiling_.key_block;
    t.head_dim = p_.head_dim;
    t.value_dim = p_.value_dim;
    t.band = e.band;
    t.terms = &terms;
    t.query = packed.queries + block * query_bytes_;
    t.grad_out = packed.grads_out + block * grad_out_bytes_;
    t.key = keys.keys;
    t.value_t = keys.values_t;
    t.key_rows = keys.key_rows;
    t.flags = *keys.flags & packed.flags[block];
    t.row_scales = row_term(e, packed.row_scales, kRowScaleNumbers, block);
    t.delta = row_term(e, packed.delta, 1, block);
    return t;
  }

  // Key blocks that a query block attends, and the other way round.
  BlockRange key_blocks_of(const Entry& e, Index group_block) const {
    return key_blocks(e.band, first_query(e, group_block), query_rows(e, group_block),
                      tiling_.key_block);
  }
  BlockRange query_blocks_of(const Entry& e, Index key_block, Index count = 1) const {
    const Index first_key = key_block * tiling_.key_block;
    const Index end_key = std::min(first_key + count * tiling_.key_block, e.sequence.keys);
    if (first_key >= end_key) return {};
    const Range queries = queries_of(e.band, first_key, end_key, e.sequence.queries);
    if (queries.begin >= queries.end) return {};
    const Index first = queries.begin / tiling_.query_block;
    return {first, ceil_div(queries.end, tiling_.query_block) - first};
  }

  // Whether the pairs of an entry are one block of queries and one of keys each, to whose gradients
  // nothing else adds.
  bool is_one_block(const Entry& e) const {
    return writes_rows_ && e.group_query_blocks == 1 && e.key_blocks == 1;
  }
  // Adds to nothing: the gradients of such a pair go to memory, for a task without accumulators.
  void write_gradients(const Entry& e, Index h, BackwardTask& t) const {
    const Index b = e.batch, first_query = e.sequence.first_query, first_key = e.sequence.first_key;
    t.dk = t.dv = nullptr;
    if (p_.dq) t.dq_rows = {p_.writable_rows(p_.dq, b, h, first_query), p_.scale};
    if (p_.dk) t.dk_rows = {p_.writable_rows(p_.dk, b, h, first_key), p_.scale};
    if (p_.dv) t.dv_rows = {p_.writable_rows(p_.dv, b, h, first_key), p_.dropout.kept_scale};
    k_.backward(t);
  }
  void clear_sums(const PackedKeys& keys, Index rows) const {
    if (p_.dk) k_.clear({keys.dk, false, rows, p_.head_dim});
    if (p_.dv) k_.clear({keys.dv, false, rows, p_.value_dim});
  }

  // A run of key blocks from `first` on against all the query blocks that attend them.
  void key_blocks_at(const Entry& e, Index h, Index first, const QuerySide& packed,
                     int32_t thread) const {
    const Index end = std::min(first + run_length_, e.key_blocks);
    const BlockRange range = query_blocks_of(e, first, end - first);
    const auto keys_of = [&](Index b) { return packed_keys(b - first, thread); };
    // Whether gradients may go to memory without accumulators: they do if all operands are finite,
    // which is known once they are packed.
    const bool may_be_written = is_one_block(e) && range.count > 0;
    bool is_written = false;
    for (Index b = first; b < end; ++b) {
      const PackedKeys keys = keys_of(b);
      const Index rows = key_rows(e, b);
      if (range.count > 0 && rows > 0) pack_keys(e, h, b, static_cast<bool>(p_.dq), keys);
      if (!may_be_written) clear_sums(keys, rows);
    }
    for (Index g = 0; g < p_.group; ++g) {
      const Index head = h * p_.group + g;
      const ScoreTerms terms = p_.terms(e.batch, head), unmasked = without_mask(terms);
      for (Index qb = range.first; qb < range.first + range.count; ++qb) {
        const Index block = g * e.query_blocks + qb;
        const BlockRange attended = key_blocks_of(e, block);
        const Index last = std::min(end, attended.first + attended.count);
        for (Index b = std::max(first, attended.first); b < last; ++b) {
          const MaskKind kind = mask_kind(e, head, qb, b);
          const PackedKeys keys = keys_of(b);
          BackwardTask t =
              task(e, b, keys, block, packed, kind == MaskKind::full ? unmasked : terms);
          t.dk = p_.dk ? keys.dk : nullptr;
          t.dv = p_.dv ? keys.dv : nullptr;
          t.scratch = scratch(thread);
          const bool attends = kind != MaskKind::empty;
          if (may_be_written) {
            is_written = attends && (t.flags & kBlockFinite);
            if (is_written) {
              write_gradients(e, h, t);
              continue;
            }
            clear_sums(keys, t.cols);
            if (p_.dq) clear_dq(e, block, packed);
          }
          if (p_.dq) {
            backward_in_turn(e, h, b, block, packed, t, attends);
          } else if (attends) {
            k_.backward(t);
          }
        }
      }
    }
    for (Index b = first; b < end; ++b) {
      const PackedKeys keys = keys_of(b);
      if (p_.dk && !is_written) flush_keys(e, h, b, keys.dk, p_.dk, p_.head_dim, p_.scale);
      if (p_.dv && !is_written)
        flush_keys(e, h, b, keys.dv, p_.dv, p_.value_dim, p_.dropout.kept_scale);
      if (p_.dk) clear_past_end(e, h, b, p_.dk, p_.head_dim);
      if (p_.dv) clear_past_end(e, h, b, p_.dv, p_.value_dim);
    }
  }

  static ScoreTerms without_mask(ScoreTerms terms) {
    terms.mask.data = nullptr;
    return terms;
  }
  MaskKind mask_kind(const Entry& e, Index head, Index query_block, Index key_block) const {
    const MaskKind* const kinds = mask_blocks_->of(e.batch, head, query_block);
    return kinds ? kinds[key_block] : MaskKind::full;
  }

  // The key blocks of a query block take turns in adding to dq; the last one writes the result.
  // Where the turn has come already, dq is done with the rest.
  void backward_in_turn(const Entry& e, Index h, Index key_block, Index block,
                        const QuerySide& packed, BackwardTask& t, bool attends) const {
    std::atomic<Index>& turn = packed.turns[block];
    void* const dq = packed.dq + block * dq_bytes_;
    if (turn.load(std::memory_order_acquire) == key_block) t.dq = dq;
    if (attends) k_.backward(t);
    if (!t.dq) {
      wait_for_turn(turn, key_block);
      t.dq = dq;
      if (attends) k_.backward_dq(t);
    }
    const BlockRange attended = key_blocks_of(e, block);
    if (key_block + 1 == attended.first + attended.count) flush_dq(e, h, block, dq);
    turn.store(key_block + 1, std::memory_order_release);
  }

  // The gradient of keys that exist.
  void flush_keys(const Entry& e, Index h, Index block, const void* accumulator, const View& to,
                  Index cols, double factor) const {
    const Index first = e.sequence.first_key + block * tiling_.key_block;
    flush(to, {accumulator, false, key_rows(e, block), cols, factor,
               p_.writable_rows(to, e.batch, h, first)});
  }
  // Zeros for keys past the end of the sequence.
  void clear_past_end(const Entry& e, Index h, Index block, const View& to, Index cols) const {
    const Index rows = key_rows(e, block), written = written_rows(e, block);
    const Index first = e.sequence.first_key + block * tiling_.key_block + rows;
    flush(to, {nullptr, false, written - rows, cols, 1, p_.writable_rows(to, e.batch, h, first)});
  }

  void flush(const View& to, const FlushTask& task) const {
    (to.element_size == k_.arithmetic_size ? k_.flush_wide : k_.flush)(task);
  }

  void flush_dq(const Entry& e, Index h, Index block, const void* accumulator) const {
    const Index first = e.sequence.first_query + first_query(e, block);
    flush(p_.dq, {accumulator, true, query_rows(e, block), p_.head_dim, p_.scale,
                  p_.writable_rows(p_.dq, e.batch, query_head_of(e, h, block), first)});
  }

  // ---- the gradient of the sinks: a part per query block, added up in order ----

  double* dsink_part(const Entry& e, Index head, Index query_block) const {
    return reinterpret_cast<double*>(data_ + dsinks_at_) + e.first_queries + head * e.query_blocks +
           query_block;
  }

  void add_up_sinks() const {
    const cattn_array& to = p_.dsinks_array;
    for (Index head = 0; head < p_.heads_q; ++head) {
      double sum = 0;
      for (const Entry& e : entries_) {
        for (Index qb = 0; qb < e.query_blocks; ++qb) sum += *dsink_part(e, head, qb);
      }
      char* const element =
          static_cast<char*>(to.data) + head * to.strides[0] * dtype_size(to.dtype);
      store_scalar(element, p_.sinks_storage, sum);
    }
  }

  // ---- the gradient of the bias ----
  // Its elements are sums of dS over what was broadcast. Every tile of it has one owner, which
  // computes the score gradients that it needs again: nothing of the size of the scores is kept,
  // and the order of the sum is fixed.

  void run_bias_gradient() const {
    fill_with_zeros(p_.dbias_array);  // what no sequence reads
    // Batch entries that read the same bias: the first of them owns it.
    std::unordered_map<const char*, std::vector<const Entry*>> readers;
    std::vector<const std::vector<const Entry*>*> biases;
    for (const Entry& e : entries_) {
      if (e.sequence.queries == 0 || e.sequence.keys == 0) continue;
      auto& entries = readers[p_.plane(p_.dbias, e.batch, 0)];
      if (entries.empty()) biases.push_back(&entries);
      entries.push_back(&e);
    }
    for (const auto* const entries : biases) {
      const Entry& owner = *entries->front();
      // Where rows or columns are not broadcast, all readers have the same of them.
      const Index query_items = p_.bias_rows_broadcast ? 1 : owner.query_blocks;
      const Index key_items = p_.bias_cols_broadcast ? 1 : owner.key_blocks;
      const Index head_items = p_.bias_heads_broadcast ? 1 : p_.heads_q;
      const Index items = head_items * query_items * key_items;
      std::vector<KeyBlock> packed(static_cast<size_t>(threads_));
      parallel_items(items, threads_, p_.executor, [&](Index item, int32_t thread) {
        const BiasTile tile{*entries, item / (query_items * key_items), item % query_items,
                            item / query_items % key_items};
        KeyBlock& mine = packed[static_cast<size_t>(thread)];
        if (k_.arithmetic_size == 4) {
          bias_gradient<float>(tile, mine, thread);
        } else {
          bias_gradient<double>(tile, mine, thread);
        }
      });
    }
  }

  // One tile of the bias. An axis that is broadcast has one block, which stands for all.
  struct BiasTile {
    const std::vector<const Entry*>& readers;
    Index head, query_block, key_block;
  };

  // The key block that a thread has packed last.
  struct KeyBlock {
    const Entry* entry = nullptr;
    Index kv_head = 0, block = 0;
    bool operator==(const KeyBlock&) const = default;
  };

  template <class T>
  void bias_gradient(const BiasTile& of, KeyBlock& in_place, int32_t thread) const {
    const bool collapses = p_.bias_rows_broadcast || p_.bias_cols_broadcast;
    T* const sum = reinterpret_cast<T*>(scratch(thread) + thread_bytes_ - 2 * tile_bytes_);
    T* const part = sum + tile_bytes_ / k_.arithmetic_size;
    const PackedKeys own_keys = packed_keys(0, thread);
    std::memset(sum, 0, static_cast<size_t>(tile_bytes_));
    const auto range = [](bool all, Index count, Index one) {
      return all ? Range{0, count} : Range{one, one + 1};
    };
    for (const Entry* const reader : of.readers) {
      const Entry& e = *reader;
      const Range heads = range(p_.bias_heads_broadcast, p_.heads_q, of.head);
      const Range queries = range(p_.bias_rows_broadcast, e.query_blocks, of.query_block);
      const Range keys = range(p_.bias_cols_broadcast, e.key_blocks, of.key_block);
      for (Index h = heads.begin; h < heads.end; ++h) {
        const ScoreTerms terms = p_.terms(e.batch, h), unmasked = without_mask(terms);
        const QuerySide packed = packed_queries(e, h / p_.group, thread);
        for (Index key_block = keys.begin; key_block < keys.end; ++key_block) {
          const BlockRange attending = query_blocks_of(e, key_block);
          const Index from = std::max(queries.begin, attending.first);
          const Index to = std::min(queries.end, attending.first + attending.count);
          for (Index qb = from; qb < to; ++qb) {
            const MaskKind kind = mask_kind(e, h, qb, key_block);
            if (kind == MaskKind::empty) continue;
            const KeyBlock wanted{&e, h / p_.group, key_block};
            if (in_place != wanted) pack_keys(e, h / p_.group, key_block, false, own_keys);
            in_place = wanted;
            const Index block = h % p_.group * e.query_blocks + qb;
            BackwardTask t = task(e, key_block, own_keys, block, packed,
                                  kind == MaskKind::full ? unmasked : terms);
            t.scratch = scratch(thread);
            t.dscore = collapses ? part : sum;
            if (collapses) std::memset(part, 0, static_cast<size_t>(tile_bytes_));
            k_.backward(t);
            if (collapses) add_collapsed(part, t.rows, t.cols, sum);
          }
        }
      }
    }
    const Entry& owner = *of.readers.front();
    const Index rows = p_.bias_rows_broadcast ? 1 : query_rows(owner, of.query_block);
    const Index cols = p_.bias_cols_broadcast ? 1 : written_rows(owner, of.key_block);
    const Index element = p_.dbias.element_size;
    char* const first = p_.plane(p_.dbias, owner.batch, of.head) +
                        (of.query_block * tiling_.query_block * p_.dbias.row_stride +
                         of.key_block * tiling_.key_block * p_.dbias.col_stride) *
                            element;
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < cols; ++j) {
        store_scalar(first + (i * p_.dbias.row_stride + j * p_.dbias.col_stride) * element,
                     p_.bias_storage, static_cast<double>(sum[i * tiling_.key_block + j]));
      }
    }
  }

  // Adds a tile to `sum`, rows to row 0 and columns to column 0 where the bias has only one.
  template <class T>
  void add_collapsed(const T* tile, Index rows, Index cols, T* sum) const {
    const Index stride = tiling_.key_block;
    for (Index i = 0; i < rows; ++i) {
      T* const to = sum + (p_.bias_rows_broadcast ? 0 : i) * stride;
      if (!p_.bias_cols_broadcast) {
        for (Index j = 0; j < cols; ++j) to[j] += tile[i * stride + j];
        continue;
      }
      T row_sum = 0;
      for (Index j = 0; j < cols; ++j) row_sum += tile[i * stride + j];
      *to += row_sum;
    }
  }

  const Problem& p_;
  const KernelSet& k_;
  const Tiling tiling_;
  const Index pairs_;
  std::vector<Entry> entries_;
  Sizes total_, most_;
  Index most_key_blocks_ = 0;
  int32_t threads_ = 1;
  Index run_length_ = 1;  // key blocks at a time
  bool shared_ = false;
  bool writes_rows_ = false;  // whether gradients may go to memory without an accumulator
  Layout layout_;
  char* data_ = nullptr;
  const MaskBlocks* mask_blocks_ = nullptr;
  Layout block_layout_;  // of a key block in a thread's memory
  Index block_keys_at_ = 0, block_values_at_ = 0, block_key_rows_at_ = 0, block_flags_at_ = 0,
        block_dk_at_ = 0, block_dv_at_ = 0;
  Index query_bytes_ = 0, grad_out_bytes_ = 0, dq_bytes_ = 0, tile_bytes_ = 0, scratch_bytes_ = 0,
        thread_bytes_ = 0;
  Index queries_at_ = 0, grads_out_at_ = 0, query_flags_at_ = 0, row_scales_at_ = 0, delta_at_ = 0,
        dq_at_ = 0, turns_at_ = 0, dsinks_at_ = 0, threads_at_ = 0;
};

}  // namespace

void attention_backward(const Problem& problem, const Kernels& kernels) {
  if (problem.batch == 0 || problem.heads_kv == 0) {
    // Parameters that nothing reads.
    if (problem.dbias) fill_with_zeros(problem.dbias_array);
    if (problem.dsinks_array.data) fill_with_zeros(problem.dsinks_array);
    return;
  }
  Backward(problem, kernels.best).run();
}

}  // namespace cattn
