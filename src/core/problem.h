// A validated problem: the caller's arrays as strided (batch, head, row) views of known sizes.
#pragma once
#include "core/arrays.h"

namespace cattn {

enum class Direction { forward, backward, tangent, inputs_only };

// The rows of one batch entry in the arrays of queries and of keys.
struct Sequence {
  Index first_query, queries;
  Index first_key, keys;  // that exist: fewer than key_rows with kv_lengths
  Index key_rows;         // that gradients are written for
};

struct Problem {
  Problem(const cattn_attention& given, Direction direction);

  int32_t dtype = 0;
  cattn_precision precision = CATTN_PRECISION_HIGHEST;  // of float32 products
  bool blhd = false;                                    // the caller's axes are (..., L, H, D)
  bool single_head = false;  // q, k and v are all two-dimensional, and so are the outputs
  bool packed = false;       // batch entries are sequences packed along the rows
  Index batch = 1;           // batch entries: product of batch_shape, or number of sequences
  BatchShape batch_shape;
  Index heads_q = 0, heads_kv = 0, group = 1;
  Index queries = 0, keys = 0, head_dim = 0, value_dim = 0;  // rows of whole arrays

  double scale = 1, softcap = 0;  // softcap 0: none
  bool causal = false;
  Index window_left = -1, window_right = -1;
  Dropout dropout{};
  int32_t num_threads = 0;
  const cattn_executor* executor = nullptr;

  View q, k, v, mask, bias, causal_offset, alibi_slopes, sinks, kv_lengths, starts_q, starts_k;
  View out, lse, weights;
  View dout, dlse, dq, dk, dv;
  View q_tangent, k_tangent, v_tangent, out_tangent;
  cattn_array dbias_array{}, dsinks_array{};  // as given
  View dbias;                                 // bias's own shape, strides of 0 where broadcast
  Storage bias_storage{}, slopes_storage{}, sinks_storage{};
  bool bias_rows_broadcast = false, bias_cols_broadcast = false, bias_heads_broadcast = false;

  // dtype, ndim and shape of the forward outputs in the caller's layout; null pointers are skipped.
  void describe_outputs(cattn_array* out, cattn_array* lse, cattn_array* weights) const;

  // The address of (batch b, head h, row i); i counts from the start of the array.
  char* at(const View& view, Index b, Index h, Index i) const;
  ConstRows rows(const View& view, Index b, Index h, Index i) const {
    return {at(view, b, h, i), view.row_stride};
  }
  Rows writable_rows(const View& view, Index b, Index h, Index i) const {
    return {at(view, b, h, i), view.row_stride};
  }
  // The first element of a plane (batch b, head h) that belongs to the batch entry's sequence.
  char* plane(const View& view, Index b, Index h) const;

  Sequence sequence(Index b) const;
  // Where query 0 of batch entry b stands among its keys.
  Index offset(Index b) const;
  // Which keys the queries of batch entry b may attend.
  Band band(Index b) const;
  // What makes scores of one head.
  ScoreTerms terms(Index b, Index h) const;
  double sink(Index h) const;  // -inf: none

 private:
  struct Reader;  // in problem.cpp: validation
  int64_t integer(const View& view, Index b) const;
};

}  // namespace cattn
