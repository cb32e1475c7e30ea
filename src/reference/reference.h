// Attention as the formulas say it, in float64 and plain loops: what every kernel is held against.
// Depends on nothing; masked positions are skipped, so what they hold cannot matter.
#pragma once
#include <cstdint>
#include <vector>

namespace cattn::reference {

using Index = int64_t;
using Array = std::vector<double>;

// Dense row-major arrays, nothing broadcast:
//   q (batch, heads_q, queries, head_dim)    k (batch, heads_kv, keys, head_dim)
//   v (batch, heads_kv, keys, value_dim)     mask, bias (batch, heads_q, queries, keys)
struct Problem {
  Index batch = 1, heads_q = 1, heads_kv = 1, queries = 0, keys = 0, head_dim = 1, value_dim = 1;
  Array q, k, v;
  std::vector<uint8_t> mask;           // empty: every position is open; nonzero = may attend
  Array bias;                          // empty: none; -inf masks
  bool causal = false;                 // key j is seen by query i when j <= i + causal_offset
  std::vector<int64_t> causal_offset;  // one per batch entry; empty: keys - queries
  double scale = 1;

  Index rows() const { return batch * heads_q * queries; }
  // The kv row (batch, heads_kv, key) that key j of a query row (batch, heads_q, query) is.
  Index kv_row(Index row, Index j) const {
    const Index b = row / (heads_q * queries), h = row / queries % heads_q;
    return (b * heads_kv + h / (heads_q / heads_kv)) * keys + j;
  }
  bool attends(Index row, Index j) const;
};

struct Result {
  Array out;      // (batch, heads_q, queries, value_dim)
  Array lse;      // (batch, heads_q, queries)
  Array weights;  // (batch, heads_q, queries, keys)
};

struct Gradients {
  Array dq, dk, dv;  // the shapes of q, k and v
  Array dbias;       // (batch, heads_q, queries, keys): the gradient of every score
};

Result forward(const Problem& p);

// `dout` is shaped like out; `dlse` like lse, or empty for none.
Gradients backward(const Problem& p, const Result& result, const Array& dout, const Array& dlse);

}  // namespace cattn::reference
