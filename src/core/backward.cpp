// The backward loop nest. Per (batch, kv head) pair: pack both sides, then key block by key block
// against all query blocks of the group; dk and dv of a key block are summed in the thread's own
// memory, dq in one accumulator per chunk of key blocks, added up in order at the end.
#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "core/attention.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/plan.h"
#include "core/workspace.h"
#include "kernels/band.h"

namespace cattn {
namespace {

// Everything packed for one pair. Blocks follow one another.
struct PackedPair {
  char *keys, *values_t, *key_rows;  // per key block
  uint8_t* key_flags;
  char *queries, *grads_out;  // per (query head of the group, query block)
  uint8_t* query_flags;
  char *lse, *delta;  // per (query head of the group, query)
  char* dq;           // per (chunk, query head of the group, query block)
};

class Backward {
 public:
  Backward(const Problem& problem, const KernelSet& kernels)
      : p_(problem),
        k_(kernels),
        tiling_(kernels.backward_tiling),
        chunks_(backward_chunks(problem, tiling_.key_block)),
        pairs_(p_.batch * p_.heads_kv),
        key_blocks_(ceil_div(p_.keys, tiling_.key_block)),
        query_blocks_(ceil_div(p_.queries, tiling_.query_block)),
        group_query_blocks_(p_.group * query_blocks_) {}

  void run() {
    const double flops = 6 * p_.score_count() * static_cast<double>(p_.head_dim + p_.value_dim);
    threads_ = threads_for(p_, flops);
    // The gradient of the bias visits the pairs once more, so it wants them all.
    const bool shared = p_.dbias || choose_packing(p_, threads_) == Packing::shared;

    lay_out(shared ? pairs_ : threads_);
    const Workspace workspace(layout_.bytes());
    data_ = workspace.data();

    if (!shared) {
      parallel_items(pairs_, threads_, p_.executor, [&](Index pair, int32_t thread) {
        const PackedPair packed = packed_pair(thread);
        for (Index b = 0; b < key_blocks_; ++b) pack_keys(pair, b, packed);
        for (Index b = 0; b < group_query_blocks_; ++b) pack_queries(pair, b, packed);
        for (Index c = 0; c < chunks_.count; ++c) chunk(pair, c, packed, thread);
        for (Index b = 0; b < group_query_blocks_; ++b) flush_dq(pair, b, packed);
      });
      return;
    }
    const Index blocks = key_blocks_ + group_query_blocks_;
    parallel_items(pairs_ * blocks, threads_, p_.executor, [&](Index item, int32_t) {
      const Index pair = item / blocks, b = item % blocks;
      if (b < key_blocks_) {
        pack_keys(pair, b, packed_pair(pair));
      } else {
        pack_queries(pair, b - key_blocks_, packed_pair(pair));
      }
    });
    // The first keys are seen by the most queries: heavy chunks first.
    parallel_items(pairs_ * chunks_.count, threads_, p_.executor, [&](Index item, int32_t thread) {
      const Index pair = item % pairs_;
      chunk(pair, item / pairs_, packed_pair(pair), thread);
    });
    parallel_items(pairs_ * group_query_blocks_, threads_, p_.executor, [&](Index item, int32_t) {
      const Index pair = item / group_query_blocks_;
      flush_dq(pair, item % group_query_blocks_, packed_pair(pair));
    });
    if (p_.dbias) run_bias_gradient();
  }

 private:
  // ---- memory ----

  void lay_out(Index packed_pairs) {
    key_bytes_ = k_.packed_bytes(Operand::key, tiling_, p_.head_dim);
    value_bytes_ = k_.packed_bytes(Operand::value_t, tiling_, p_.value_dim);
    key_rows_bytes_ = k_.packed_bytes(Operand::key_rows, tiling_, p_.head_dim);
    query_bytes_ = k_.packed_bytes(Operand::query, tiling_, p_.head_dim);
    grad_out_bytes_ = k_.packed_bytes(Operand::grad_out, tiling_, p_.value_dim);
    dq_bytes_ = k_.accumulator_bytes(tiling_.query_block, p_.head_dim);
    dk_bytes_ = k_.accumulator_bytes(tiling_.key_block, p_.head_dim);
    dv_bytes_ = k_.accumulator_bytes(tiling_.key_block, p_.value_dim);
    row_bytes_ = p_.group * p_.queries * k_.element_size;
    tile_bytes_ = tiling_.query_block * tiling_.key_block * k_.element_size;

    const Index keys = checked_multiply(packed_pairs, key_blocks_);
    const Index queries = checked_multiply(packed_pairs, group_query_blocks_);
    const auto part = [&](Index count, Index bytes) {
      return layout_.add(checked_multiply(count, bytes));
    };
    keys_at_ = part(keys, key_bytes_);
    values_at_ = part(keys, value_bytes_);
    key_rows_at_ = part(keys, key_rows_bytes_);
    key_flags_at_ = part(keys, 1);
    queries_at_ = part(queries, query_bytes_);
    grads_out_at_ = part(queries, grad_out_bytes_);
    query_flags_at_ = part(queries, 1);
    lse_at_ = part(packed_pairs, row_bytes_);
    delta_at_ = part(packed_pairs, row_bytes_);
    dq_at_ = part(checked_multiply(queries, chunks_.count), p_.dq ? dq_bytes_ : 0);

    const auto aligned = [](Index bytes) { return ceil_div(bytes, kAlignment) * kAlignment; };
    scratch_bytes_ = aligned(k_.backward_scratch_bytes(p_.head_dim, p_.value_dim));
    thread_bytes_ =
        scratch_bytes_ + aligned(dk_bytes_) + aligned(dv_bytes_) + (p_.dbias ? 2 * tile_bytes_ : 0);
    threads_at_ = part(threads_, thread_bytes_);
  }

  PackedPair packed_pair(Index i) const {
    PackedPair pair;
    pair.keys = data_ + keys_at_ + i * key_blocks_ * key_bytes_;
    pair.values_t = data_ + values_at_ + i * key_blocks_ * value_bytes_;
    pair.key_rows = data_ + key_rows_at_ + i * key_blocks_ * key_rows_bytes_;
    pair.key_flags = reinterpret_cast<uint8_t*>(data_ + key_flags_at_ + i * key_blocks_);
    pair.queries = data_ + queries_at_ + i * group_query_blocks_ * query_bytes_;
    pair.grads_out = data_ + grads_out_at_ + i * group_query_blocks_ * grad_out_bytes_;
    pair.query_flags =
        reinterpret_cast<uint8_t*>(data_ + query_flags_at_ + i * group_query_blocks_);
    pair.lse = data_ + lse_at_ + i * row_bytes_;
    pair.delta = data_ + delta_at_ + i * row_bytes_;
    pair.dq = data_ + dq_at_ + i * chunks_.count * group_query_blocks_ * dq_bytes_;
    return pair;
  }
  char* dq_accumulator(const PackedPair& packed, Index chunk_index, Index block) const {
    return packed.dq + (chunk_index * group_query_blocks_ + block) * dq_bytes_;
  }
  char* scratch(int32_t thread) const { return data_ + threads_at_ + thread * thread_bytes_; }

  // ---- indices ----

  Index batch_of(Index pair) const { return pair / p_.heads_kv; }
  Index kv_head_of(Index pair) const { return pair % p_.heads_kv; }
  Index query_head_of(Index pair, Index group_block) const {
    return kv_head_of(pair) * p_.group + group_block / query_blocks_;
  }
  Index first_query(Index group_block) const {
    return group_block % query_blocks_ * tiling_.query_block;
  }
  Index query_rows(Index group_block) const {
    return std::min(tiling_.query_block, p_.queries - first_query(group_block));
  }
  Index key_rows(Index block) const {
    return std::min(tiling_.key_block, p_.keys - block * tiling_.key_block);
  }

  // ---- the phases ----

  void pack_keys(Index pair, Index block, const PackedPair& packed) const {
    const Index b = batch_of(pair), h = kv_head_of(pair);
    const Index first = block * tiling_.key_block, rows = key_rows(block);
    const ConstRows k = p_.rows(p_.k, b, h, first), v = p_.rows(p_.v, b, h, first);
    uint8_t flags =
        k_.pack({Operand::key, k, rows, p_.head_dim, packed.keys + block * key_bytes_}, tiling_);
    flags &= k_.pack(
        {Operand::value_t, v, rows, p_.value_dim, packed.values_t + block * value_bytes_}, tiling_);
    if (p_.dq) {
      k_.pack({Operand::key_rows, k, rows, p_.head_dim, packed.key_rows + block * key_rows_bytes_},
              tiling_);
    }
    packed.key_flags[block] = flags;
  }

  void pack_queries(Index pair, Index block, const PackedPair& packed) const {
    const Index b = batch_of(pair), h = query_head_of(pair, block);
    const Index first = first_query(block), rows = query_rows(block);
    const ConstRows q = p_.rows(p_.q, b, h, first), dout = p_.rows(p_.dout, b, h, first);
    uint8_t flags = k_.pack(
        {Operand::query, q, rows, p_.head_dim, packed.queries + block * query_bytes_}, tiling_);
    flags &= k_.pack(
        {Operand::grad_out, dout, rows, p_.value_dim, packed.grads_out + block * grad_out_bytes_},
        tiling_);
    packed.query_flags[block] = flags;
    RowTermsTask terms{};
    terms.grad_out = dout;
    terms.out = p_.rows(p_.out, b, h, first);
    terms.rows = rows;
    terms.value_dim = p_.value_dim;
    terms.lse = p_.at(p_.lse, b, h, first);
    terms.lse_stride = p_.lse.row_stride;
    if (p_.dlse) {
      terms.dlse = p_.at(p_.dlse, b, h, first);
      terms.dlse_stride = p_.dlse.row_stride;
    }
    terms.lse_log2 = row_term(packed.lse, block);
    terms.delta = row_term(packed.delta, block);
    k_.row_terms(terms);
    if (p_.dq) {
      for (Index c = 0; c < chunks_.count; ++c) {
        std::memset(dq_accumulator(packed, c, block), 0, static_cast<size_t>(dq_bytes_));
      }
    }
  }
  char* row_term(char* terms, Index block) const {
    return terms + (block / query_blocks_ * p_.queries + first_query(block)) * k_.element_size;
  }

  BackwardTask task(Index key_block, Index block, const PackedPair& packed, const ScoreTerms& terms,
                    const Band& band) const {
    BackwardTask t{};
    t.rows = query_rows(block);
    t.first_query = first_query(block);
    t.cols = key_rows(key_block);
    t.first_key = key_block * tiling_.key_block;
    t.head_dim = p_.head_dim;
    t.value_dim = p_.value_dim;
    t.band = band;
    t.terms = &terms;
    t.query = packed.queries + block * query_bytes_;
    t.grad_out = packed.grads_out + block * grad_out_bytes_;
    t.key = packed.keys + key_block * key_bytes_;
    t.value_t = packed.values_t + key_block * value_bytes_;
    t.key_rows = packed.key_rows + key_block * key_rows_bytes_;
    t.finite = (packed.key_flags[key_block] & packed.query_flags[block] & kBlockFinite) != 0;
    t.lse = row_term(packed.lse, block);
    t.delta = row_term(packed.delta, block);
    return t;
  }

  // Query blocks that attend some key of a key block.
  BlockRange query_blocks_of(const Band& band, Index key_block) const {
    const Index first_key = key_block * tiling_.key_block;
    const Range queries = queries_of(band, first_key, first_key + key_rows(key_block), p_.queries);
    if (queries.begin >= queries.end) return {};
    const Index first = queries.begin / tiling_.query_block;
    return {first, ceil_div(queries.end, tiling_.query_block) - first};
  }

  void chunk(Index pair, Index c, const PackedPair& packed, int32_t thread) const {
    const Index b = batch_of(pair), h = kv_head_of(pair);
    const Band band = p_.band(b);
    char* const own = scratch(thread);
    char* const dk = own + scratch_bytes_;
    char* const dv = dk + ceil_div(dk_bytes_, kAlignment) * kAlignment;
    const Index begin = c * chunks_.blocks_per_chunk;
    const Index end = std::min(begin + chunks_.blocks_per_chunk, key_blocks_);
    for (Index key_block = begin; key_block < end; ++key_block) {
      std::memset(dk, 0, static_cast<size_t>(dk_bytes_));
      std::memset(dv, 0, static_cast<size_t>(dv_bytes_));
      const BlockRange range = query_blocks_of(band, key_block);
      for (Index g = 0; g < p_.group; ++g) {
        const ScoreTerms terms = p_.terms(b, h * p_.group + g);
        for (Index qb = range.first; qb < range.first + range.count; ++qb) {
          const Index block = g * query_blocks_ + qb;
          BackwardTask t = task(key_block, block, packed, terms, band);
          t.dq = p_.dq ? dq_accumulator(packed, c, block) : nullptr;
          t.dk = p_.dk ? dk : nullptr;
          t.dv = p_.dv ? dv : nullptr;
          t.scratch = own;
          k_.backward(t);
        }
      }
      const Index first_key = key_block * tiling_.key_block;
      if (p_.dk) flush_keys(dk, p_.dk, b, h, first_key, p_.head_dim, p_.scale);
      if (p_.dv) flush_keys(dv, p_.dv, b, h, first_key, p_.value_dim, 1.0);
    }
  }

  void flush_keys(const void* accumulator, const View& to, Index b, Index h, Index first_key,
                  Index cols, double factor) const {
    k_.flush({&accumulator,
              1,
              false,
              std::min(tiling_.key_block, p_.keys - first_key),
              cols,
              factor,
              {p_.at(to, b, h, first_key), to.row_stride}});
  }

  void flush_dq(Index pair, Index block, const PackedPair& packed) const {
    if (!p_.dq) return;
    const void* accumulators[kMostChunks];
    for (Index c = 0; c < chunks_.count; ++c) {
      accumulators[c] = dq_accumulator(packed, c, block);
    }
    const Index b = batch_of(pair), h = query_head_of(pair, block), first = first_query(block);
    k_.flush({accumulators,
              chunks_.count,
              true,
              query_rows(block),
              p_.head_dim,
              p_.scale,
              {p_.at(p_.dq, b, h, first), p_.dq.row_stride}});
  }

  // ---- the gradient of the bias ----
  // Its elements are sums of dS over what was broadcast. Every tile of it has one owner, which
  // computes the score gradients that it needs again: nothing of the size of the scores is kept,
  // and the order of the sum is fixed.

  void run_bias_gradient() const {
    // Batch entries that read the same bias: the first of them owns it.
    std::unordered_map<const char*, std::vector<Index>> readers;
    std::vector<const char*> biases;
    for (Index b = 0; b < p_.batch; ++b) {
      const char* const bias = p_.at(p_.dbias, b, 0, 0);
      auto& entries = readers[bias];
      if (entries.empty()) biases.push_back(bias);
      entries.push_back(b);
    }
    const Index query_items = p_.bias_rows_broadcast ? 1 : query_blocks_;
    const Index key_items = p_.bias_cols_broadcast ? 1 : key_blocks_;
    const Index head_items = p_.bias_heads_broadcast ? 1 : p_.heads_q;
    const Index per_bias = head_items * query_items * key_items;
    const Index items = static_cast<Index>(biases.size()) * per_bias;
    parallel_items(items, threads_, p_.executor, [&](Index item, int32_t thread) {
      const char* const bias = biases[static_cast<size_t>(item / per_bias)];
      const Index head = item % per_bias / (query_items * key_items);
      const Index query_item = item / key_items % query_items, key_item = item % key_items;
      const BiasTile tile{
          readers.at(bias), p_.bias_heads_broadcast ? Range{0, p_.heads_q} : Range{head, head + 1},
          p_.bias_rows_broadcast ? Range{0, query_blocks_} : Range{query_item, query_item + 1},
          p_.bias_cols_broadcast ? Range{0, key_blocks_} : Range{key_item, key_item + 1}};
      if (k_.element_size == 4) {
        bias_gradient<float>(tile, thread);
      } else {
        bias_gradient<double>(tile, thread);
      }
    });
  }

  // One tile of the bias: all that is added to it.
  struct BiasTile {
    const std::vector<Index>& batches;
    Range heads, query_blocks, key_blocks;
  };

  template <class T>
  void bias_gradient(const BiasTile& of, int32_t thread) const {
    const bool collapses = p_.bias_rows_broadcast || p_.bias_cols_broadcast;
    T* const sum = reinterpret_cast<T*>(scratch(thread) + thread_bytes_ - 2 * tile_bytes_);
    T* const part = sum + tile_bytes_ / k_.element_size;
    std::memset(sum, 0, static_cast<size_t>(tile_bytes_));
    for (const Index b : of.batches) {
      const Band band = p_.band(b);
      for (Index h = of.heads.begin; h < of.heads.end; ++h) {
        const ScoreTerms terms = p_.terms(b, h);
        const PackedPair packed = packed_pair(b * p_.heads_kv + h / p_.group);
        for (Index key_block = of.key_blocks.begin; key_block < of.key_blocks.end; ++key_block) {
          const BlockRange attending = query_blocks_of(band, key_block);
          const Index from = std::max(of.query_blocks.begin, attending.first);
          const Index to = std::min(of.query_blocks.end, attending.first + attending.count);
          for (Index qb = from; qb < to; ++qb) {
            BackwardTask t =
                task(key_block, h % p_.group * query_blocks_ + qb, packed, terms, band);
            t.scratch = scratch(thread);
            t.dscore = collapses ? part : sum;
            if (collapses) std::memset(part, 0, static_cast<size_t>(tile_bytes_));
            k_.backward(t);
            if (collapses) add_collapsed(part, t.rows, t.cols, sum);
          }
        }
      }
    }
    const Index rows = p_.bias_rows_broadcast ? 1 : query_rows(of.query_blocks.begin);
    const Index cols = p_.bias_cols_broadcast ? 1 : key_rows(of.key_blocks.begin);
    for (Index i = 0; i < rows; ++i) {
      char* const row = p_.at(p_.dbias, of.batches.front(), of.heads.begin,
                              of.query_blocks.begin * tiling_.query_block + i);
      for (Index j = 0; j < cols; ++j) {
        const Index column = of.key_blocks.begin * tiling_.key_block + j;
        char* const to = row + column * p_.dbias.col_stride * p_.dbias.element_size;
        const T value = sum[i * tiling_.key_block + j];
        if (p_.bias_is_float32) {
          *reinterpret_cast<float*>(to) = static_cast<float>(value);
        } else {
          *reinterpret_cast<T*>(to) = value;
        }
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
  const Chunks chunks_;
  const Index pairs_, key_blocks_, query_blocks_, group_query_blocks_;
  int32_t threads_ = 1;
  Layout layout_;
  char* data_ = nullptr;
  Index key_bytes_ = 0, value_bytes_ = 0, key_rows_bytes_ = 0, query_bytes_ = 0,
        grad_out_bytes_ = 0, dq_bytes_ = 0, dk_bytes_ = 0, dv_bytes_ = 0, row_bytes_ = 0,
        tile_bytes_ = 0, scratch_bytes_ = 0, thread_bytes_ = 0;
  Index keys_at_ = 0, values_at_ = 0, key_rows_at_ = 0, key_flags_at_ = 0, queries_at_ = 0,
        grads_out_at_ = 0, query_flags_at_ = 0, lse_at_ = 0, delta_at_ = 0, dq_at_ = 0,
        threads_at_ = 0;
};

// Zeroes every element of a strided array.
void fill_with_zeros(const cattn_array& a, int axis = 0, Index offset = 0) {
  if (axis == a.ndim) {
    const Index size = a.dtype == CATTN_FLOAT32 ? 4 : 8;
    std::memset(static_cast<char*>(a.data) + offset * size, 0, static_cast<size_t>(size));
    return;
  }
  for (Index i = 0; i < a.shape[axis]; ++i) {
    fill_with_zeros(a, axis + 1, offset + i * a.strides[axis]);
  }
}

}  // namespace

void attention_backward(const Problem& problem, const KernelSet& kernels) {
  if (problem.batch == 0 || problem.heads_kv == 0) {
    if (problem.dbias) fill_with_zeros(problem.dbias_array);  // a bias that nothing reads
    return;
  }
  Backward(problem, kernels).run();
}

}  // namespace cattn
