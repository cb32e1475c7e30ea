// A validated problem: the caller's arrays as strided (batch, head, row) views of known sizes.
#pragma once
#include <array>

#include "core/types.h"

namespace cattn {

// The axes that every array shares, outermost first, merged where all strides allow.
inline constexpr int kMaxBatchNdim = CATTN_MAX_NDIM;

// One array, broadcast to (batch..., heads, rows, cols). Strides in elements, 0 where broadcast.
struct View {
  char* data = nullptr;
  Index element_size = 0;
  std::array<Index, kMaxBatchNdim> batch_strides;  // set up to the problem's batch_ndim
  Index head_stride = 0, row_stride = 0, col_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

enum class Direction { forward, backward, inputs_only };

struct Problem {
  Problem(const cattn_attention& given, Direction direction);

  int32_t dtype = 0;
  bool blhd = false;         // the caller's axes are (..., L, H, D)
  bool single_head = false;  // q, k and v are all two-dimensional, and so are the outputs
  Index batch = 1;           // product of batch_shape
  int batch_ndim = 0;
  std::array<Index, kMaxBatchNdim> batch_shape;  // set up to batch_ndim
  Index heads_q = 0, heads_kv = 0, group = 1;
  Index queries = 0, keys = 0, head_dim = 0, value_dim = 0;

  double scale = 1;
  bool causal = false;
  int32_t num_threads = 0;
  const cattn_executor* executor = nullptr;

  View q, k, v, mask, bias, causal_offset;
  View out, lse, weights;
  View dout, dlse, dq, dk, dv;
  cattn_array dbias_array{};  // as given
  View dbias;                 // bias's own shape, with strides of 0 where it is broadcast
  bool bias_is_float32 = false;
  bool bias_rows_broadcast = false, bias_cols_broadcast = false, bias_heads_broadcast = false;

  // dtype, ndim and shape of the forward outputs in the caller's layout; null pointers are skipped.
  void describe_outputs(cattn_array* out, cattn_array* lse, cattn_array* weights) const;

  // The address of (batch b, head h, row i).
  char* at(const View& view, Index b, Index h, Index i) const;
  ConstRows rows(const View& view, Index b, Index h, Index i) const {
    return {at(view, b, h, i), view.row_stride};
  }
  // Which keys the queries of batch entry b may attend.
  Band band(Index b) const;
  // Bias and mask of one head.
  ScoreTerms terms(Index b, Index h) const;
  // The scores that the bands let through, over all batch entries and query heads.
  double score_count() const;
};

}  // namespace cattn
