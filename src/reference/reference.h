// Attention as the formulas say it, in float64 and plain loops: what every kernel is held against.
// Depends on nothing; masked positions are skipped, so what they hold cannot matter.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cattn::reference {

using Index = int64_t;
using Array = std::vector<double>;

// Dense row-major arrays, nothing broadcast:
//   q (batch, heads_q, queries, head_dim)    k (batch, heads_kv, keys, head_dim)
//   v (batch, heads_kv, keys, value_dim)     mask, bias, kept (batch, heads_q, queries, keys)
struct Problem {
  Index batch = 1, heads_q = 1, heads_kv = 1, queries = 0, keys = 0, head_dim = 1, value_dim = 1;
  Array q, k, v;
  std::vector<uint8_t> mask;           // empty: every position is open; nonzero = may attend
  Array bias;                          // empty: none; -inf masks
  bool causal = false;                 // key j is seen by query i when j <= i + causal_offset
  std::vector<int64_t> causal_offset;  // one per batch entry; empty: its keys - queries
  // Keys from i + offset - left to i + offset + right are seen; -1: no limit.
  Index window_left = -1, window_right = -1;
  std::vector<int64_t> kv_lengths;  // keys that exist, one per batch entry; empty: all
  double scale = 1;
  double softcap = 0;         // 0: none
  Array slopes;               // ALiBi's (batch, heads_q); empty: none
  Array sinks;                // (heads_q); empty: none
  double dropout = 0;         // the probability, and
  std::vector<uint8_t> kept;  // what is left

  Index rows() const { return batch * heads_q * queries; }
  // The kv row (batch, heads_kv, key) that key j of a query row (batch, heads_q, query) is.
  Index kv_row(Index row, Index j) const {
    return (entry(row) * heads_kv + head(row) / (heads_q / heads_kv)) * keys + j;
  }
  // Query row's batch entry, and its head.
  Index entry(Index row) const { return row / (heads_q * queries); }
  Index head(Index row) const { return row / queries % heads_q; }
  Index keys_of(Index entry) const {
    return kv_lengths.empty() ? keys : kv_lengths[static_cast<std::size_t>(entry)];
  }
  Index offset(Index entry) const {
    return causal_offset.empty() ? keys_of(entry) - queries
                                 : causal_offset[static_cast<std::size_t>(entry)];
  }
  bool attends(Index row, Index j) const;
  // scale q . k before a softcap, and the slope of the softcap there.
  double product(Index row, Index j) const;
  double slope(Index row, Index j) const;
  // What is subtracted for ALiBi.
  double penalty(Index row, Index j) const;
  // -inf without one.
  double sink(Index row) const;
  // The factor of a weight on its way to the values: 0 or 1 / (1 - dropout).
  double kept_factor(Index row, Index j) const;
};

struct Result {
  Array out;      // (batch, heads_q, queries, value_dim)
  Array lse;      // (batch, heads_q, queries)
  Array weights;  // (batch, heads_q, queries, keys), before dropout
};

struct Gradients {
  Array dq, dk, dv;  // the shapes of q, k and v
  Array dbias;       // (batch, heads_q, queries, keys): the gradient of every score
  Array dsinks;      // (heads_q), or empty
};

Result forward(const Problem& p);

// `dout` is shaped like out; `dlse` like lse, or empty for none.
Gradients backward(const Problem& p, const Result& result, const Array& dout, const Array& dlse);

// How out moves when q, k and v move by dq, dk and dv.
Array tangent(const Problem& p, const Result& result, const Array& dq, const Array& dk,
              const Array& dv);

}  // namespace cattn::reference
