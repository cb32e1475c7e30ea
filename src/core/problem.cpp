#include "core/problem.h"

#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "core/error.h"

namespace cattn {
namespace {

std::string dtype_text(int32_t dtype) {
  switch (dtype) {
    case CATTN_FLOAT32: return "float32";
    case CATTN_FLOAT64: return "float64";
    case CATTN_BOOL: return "bool";
    case CATTN_INT64: return "int64";
    default: return "dtype " + std::to_string(dtype);
  }
}

Index dtype_size(int32_t dtype) {
  switch (dtype) {
    case CATTN_FLOAT32: return 4;
    case CATTN_BOOL: return 1;
    default: return 8;
  }
}

bool given(const cattn_array& a) { return a.data != nullptr; }

// The arrays that have a layout: (..., L, H, D) becomes (..., H, L, D) and the other way round.
void exchange_layout(cattn_array& a) {
  if (a.ndim < 3 || a.ndim > CATTN_MAX_NDIM) return;
  std::swap(a.shape[a.ndim - 2], a.shape[a.ndim - 3]);
  std::swap(a.strides[a.ndim - 2], a.strides[a.ndim - 3]);
}

// An argument for messages: its name and its shape as the caller gave it.
std::string described(const char* name, const cattn_array& a) {
  return std::string(name) + ": shape " + shape_text(a);
}

void check_array(const char* name, const cattn_array& a, int least_ndim) {
  if (a.ndim < 0 || a.ndim > CATTN_MAX_NDIM) {
    value_error(std::string(name) + ": has " + std::to_string(a.ndim) + " axes, expected at most " +
                std::to_string(CATTN_MAX_NDIM));
  }
  if (a.ndim < least_ndim) {
    value_error(described(name, a) + " has too few axes, expected at least " +
                std::to_string(least_ndim));
  }
  // Offsets of elements, in bytes and from either end, must fit into an Index.
  Index count = 1, extent = 1;
  bool fits = true;
  for (int i = 0; i < a.ndim; ++i) {
    const Index n = a.shape[i];
    if (n < 0) value_error(described(name, a) + " has a negative axis");
    if (n <= 1) continue;
    Index step, length;
    fits = fits && !__builtin_mul_overflow(count, n, &count) &&
           !__builtin_mul_overflow(a.strides[i], a.strides[i] < 0 ? -1 : 1, &step) &&
           !__builtin_mul_overflow(step, n - 1, &length) &&
           !__builtin_add_overflow(extent, length, &extent);
  }
  const Index size = dtype_size(a.dtype);
  Index bytes;
  if (!fits || __builtin_mul_overflow(count, size, &bytes) ||
      __builtin_mul_overflow(extent, size, &bytes)) {
    value_error(described(name, a) + ": its sizes or strides do not fit into 64 bits");
  }
}

// Size of the axis that is `from_end` places before the end, 1 where the array has none.
Index axis(const cattn_array& a, int from_end) {
  return a.ndim >= from_end ? a.shape[a.ndim - from_end] : 1;
}

// Builds the broadcast batch shape from those of q, k and v.
class BatchShape {
 public:
  void join(const char* name, const cattn_array& a, int inner) {
    const int n = a.ndim > inner ? a.ndim - inner : 0;
    if (n > ndim_) {
      for (int i = 0; i < ndim_; ++i) shape_[n - 1 - i] = shape_[ndim_ - 1 - i];
      for (int i = 0; i < n - ndim_; ++i) shape_[i] = 1;
      ndim_ = n;
    }
    for (int i = 0; i < n; ++i) {
      Index& mine = shape_[ndim_ - 1 - i];
      const Index theirs = a.shape[n - 1 - i];
      if (mine == 1) {
        mine = theirs;
      } else if (theirs != 1 && theirs != mine) {
        value_error(described(name, a) + " does not broadcast: its leading axes meet " + text());
      }
    }
  }
  std::string text() const {
    cattn_array a{};
    a.ndim = ndim_;
    for (int i = 0; i < ndim_; ++i) a.shape[i] = shape_[i];
    return shape_text(a);
  }
  int ndim_ = 0;
  std::array<Index, kMaxBatchNdim> shape_{};
};

// The view of an array whose last `inner` axes are some of (head, row, col); batch axes broadcast.
struct Inner {
  bool head, row, col;
  int count() const { return head + row + col; }
};

View make_view(const char* name, const cattn_array& a, const BatchShape& batch, Inner inner,
               bool full_batch) {
  View view;
  view.data = static_cast<char*>(a.data);
  view.element_size = dtype_size(a.dtype);
  int at = a.ndim - 1;
  const auto stride = [&](bool wanted) -> Index {
    if (!wanted || at < 0) return 0;
    const Index s = a.shape[at] == 1 ? 0 : a.strides[at];
    --at;
    return s;
  };
  view.col_stride = stride(inner.col);
  view.row_stride = stride(inner.row);
  view.head_stride = stride(inner.head);
  if (at + 1 > batch.ndim_) {
    value_error(described(name, a) + " has more leading axes than " + batch.text());
  }
  for (int i = 0; i < batch.ndim_; ++i) {
    const int mine = at - i, b = batch.ndim_ - 1 - i;
    view.batch_strides[static_cast<size_t>(b)] = 0;
    if (mine < 0) {
      if (full_batch && batch.shape_[b] != 1) {
        value_error(described(name, a) + " lacks leading axes, expected " + batch.text());
      }
      continue;
    }
    const Index n = a.shape[mine];
    if (n != batch.shape_[b] && (full_batch || n != 1)) {
      value_error(described(name, a) + " does not fit the leading axes " + batch.text());
    }
    view.batch_strides[static_cast<size_t>(b)] = n == 1 ? 0 : a.strides[mine];
  }
  return view;
}

void check_dtype(const char* name, const cattn_array& a, int32_t expected, const char* whose) {
  if (a.dtype != expected) {
    type_error(std::string(name) + ": dtype " + dtype_text(a.dtype) + ", expected " +
               dtype_text(expected) + whose);
  }
}

void check_contiguous(const char* name, const cattn_array& a) {
  bool empty = false;
  for (int i = 0; i < a.ndim; ++i) empty = empty || a.shape[i] == 0;
  if (!empty && a.ndim > 0 && a.shape[a.ndim - 1] > 1 && a.strides[a.ndim - 1] != 1) {
    value_error(std::string(name) + ": the last axis must be contiguous");
  }
}

void check_axis(const char* name, const cattn_array& a, int from_end, Index expected,
                const char* what) {
  if (axis(a, from_end) != expected) {
    value_error(described(name, a) + " has " + std::to_string(axis(a, from_end)) + " " + what +
                ", expected " + std::to_string(expected));
  }
}

}  // namespace

Problem::Problem(const cattn_attention& given_problem, Direction direction) {
  cattn_attention p = given_problem;
  blhd = (p.flags & CATTN_BLHD) != 0;
  if (blhd) {
    for (cattn_array* a : {&p.q, &p.k, &p.v, &p.out, &p.dout, &p.dq, &p.dk, &p.dv}) {
      exchange_layout(*a);
    }
  }
  const auto shown = [&](const cattn_array& a) {
    cattn_array original = a;
    if (blhd) exchange_layout(original);
    return shape_text(original);
  };
  const bool backward = direction == Direction::backward;
  const auto require = [](const char* name, const cattn_array& a) {
    if (!given(a)) value_error(std::string(name) + ": is required");
  };
  require("q", p.q);
  require("k", p.k);
  require("v", p.v);
  if (direction != Direction::inputs_only) require("out", p.out);
  if (backward) {
    require("dout", p.dout);
    require("lse", p.lse);
  }

  dtype = p.q.dtype;
  if (dtype != CATTN_FLOAT32 && dtype != CATTN_FLOAT64) {
    type_error("q: dtype " + dtype_text(dtype) + ", expected float32 or float64");
  }
  check_dtype("k", p.k, dtype, " like q");
  check_dtype("v", p.v, dtype, " like q");
  check_array("q", p.q, 2);
  check_array("k", p.k, 2);
  check_array("v", p.v, 2);

  head_dim = axis(p.q, 1);
  value_dim = axis(p.v, 1);
  queries = axis(p.q, 2);
  keys = axis(p.k, 2);
  heads_q = axis(p.q, 3);
  heads_kv = axis(p.k, 3);
  if (head_dim < 1) value_error("q: shape " + shown(p.q) + ": the head size must be at least 1");
  if (value_dim < 1) value_error("v: shape " + shown(p.v) + ": the value size must be at least 1");
  if (axis(p.k, 1) != head_dim) {
    value_error("k: shape " + shown(p.k) + " does not fit q's " + shown(p.q) +
                ": the last axes (head size) must agree, expected " + std::to_string(head_dim));
  }
  if (axis(p.v, 2) != keys) {
    value_error("v: shape " + shown(p.v) + " does not fit k's " + shown(p.k) +
                ": the number of keys must agree, expected " + std::to_string(keys));
  }
  if (axis(p.v, 3) != heads_kv) {
    value_error("v: shape " + shown(p.v) + " does not fit k's " + shown(p.k) +
                ": the number of heads must agree, expected " + std::to_string(heads_kv));
  }
  if (heads_kv == 0 ? heads_q != 0 : heads_q % heads_kv != 0) {
    value_error("k: shape " + shown(p.k) + " does not fit q's " + shown(p.q) + ": " +
                std::to_string(heads_q) + " query heads are not a multiple of " +
                std::to_string(heads_kv) + " key heads");
  }
  single_head = p.q.ndim == 2 && p.k.ndim == 2 && p.v.ndim == 2;
  group = heads_kv == 0 ? 1 : heads_q / heads_kv;

  BatchShape shape;
  shape.join("q", p.q, 3);
  shape.join("k", p.k, 3);
  shape.join("v", p.v, 3);
  batch_ndim = shape.ndim_;
  batch_shape = shape.shape_;
  for (int i = 0; i < batch_ndim; ++i) {
    batch = checked_multiply(batch, batch_shape[static_cast<size_t>(i)]);
  }
  // Everything that is allocated or indexed is a product of some of these.
  checked_multiply(checked_multiply(checked_multiply(batch, heads_q + 1), queries + keys + 1),
                   checked_multiply(16, head_dim + value_dim));

  const Inner matrix{true, true, true}, row_vector{true, true, false};
  const auto input = [&](const char* name, const cattn_array& a) {
    check_contiguous(name, a);
    return make_view(name, a, shape, matrix, false);
  };
  q = input("q", p.q);
  k = input("k", p.k);
  v = input("v", p.v);

  // An array (batch..., heads, rows, cols) of which nothing is broadcast.
  const auto exact = [&](const char* name, const cattn_array& a, Index heads, Index rows,
                         Index cols) {
    if (!given(a)) return View{};
    check_dtype(name, a, dtype, " like q");
    check_array(name, a, 2);
    check_axis(name, a, 1, cols, "columns");
    check_axis(name, a, 2, rows, "rows");
    check_axis(name, a, 3, heads, "heads");
    check_contiguous(name, a);
    return make_view(name, a, shape, matrix, true);
  };
  const auto exact_rows = [&](const char* name, const cattn_array& a) {
    if (!given(a)) return View{};
    check_dtype(name, a, dtype, " like q");
    check_array(name, a, 1);
    check_axis(name, a, 1, queries, "rows");
    check_axis(name, a, 2, heads_q, "heads");
    return make_view(name, a, shape, row_vector, true);
  };
  out = exact("out", p.out, heads_q, queries, value_dim);
  lse = exact_rows("lse", p.lse);
  if (backward) {
    dout = exact("dout", p.dout, heads_q, queries, value_dim);
    dlse = exact_rows("dlse", p.dlse);
    dq = exact("dq", p.dq, heads_q, queries, head_dim);
    dk = exact("dk", p.dk, heads_kv, keys, head_dim);
    dv = exact("dv", p.dv, heads_kv, keys, value_dim);
  } else {
    weights = exact("weights", p.weights, heads_q, queries, keys);
  }

  // Right-aligned broadcast to (..., Hq, Lq, Lk).
  const auto plane = [&](const char* name, const cattn_array& a) {
    check_array(name, a, 0);
    const Index full[] = {keys, queries, heads_q};
    for (int i = 0; i < 3; ++i) {
      const Index n = axis(a, i + 1);
      if (n != 1 && n != full[i]) {
        value_error(described(name, a) + " does not broadcast to (..., " + std::to_string(heads_q) +
                    ", " + std::to_string(queries) + ", " + std::to_string(keys) + "): expected " +
                    std::to_string(full[i]) + " or 1, not " + std::to_string(n));
      }
    }
    return make_view(name, a, shape, matrix, false);
  };
  if (given(p.mask)) {
    check_dtype("mask", p.mask, CATTN_BOOL, " (True = may attend)");
    mask = plane("mask", p.mask);
  }
  if (given(p.bias)) {
    if (p.bias.dtype != CATTN_FLOAT32) check_dtype("bias", p.bias, dtype, " like q, or float32");
    bias = plane("bias", p.bias);
    bias_is_float32 = p.bias.dtype == CATTN_FLOAT32;
  }
  if (backward && given(p.dbias)) {
    if (!given(p.bias)) value_error("dbias: there is no bias to differentiate");
    check_dtype("dbias", p.dbias, p.bias.dtype, " like bias");
    dbias_array = p.dbias;
    dbias = plane("dbias", p.dbias);
    bool same = p.dbias.ndim == p.bias.ndim;
    for (int i = 0; same && i < p.bias.ndim; ++i) same = p.dbias.shape[i] == p.bias.shape[i];
    if (!same) value_error(described("dbias", p.dbias) + ", expected bias's " + shape_text(p.bias));
    bias_cols_broadcast = axis(p.bias, 1) == 1;
    bias_rows_broadcast = axis(p.bias, 2) == 1;
    bias_heads_broadcast = axis(p.bias, 3) == 1;
  }

  if ((p.flags & ~uint32_t{CATTN_CAUSAL | CATTN_HAS_SCALE | CATTN_BLHD}) != 0) {
    value_error("flags: is " + std::to_string(p.flags) + ", which this version does not know");
  }
  causal = (p.flags & CATTN_CAUSAL) != 0;
  if (given(p.causal_offset)) {
    if (!causal) value_error("causal_offset: has a meaning only with causal=True");
    check_dtype("causal_offset", p.causal_offset, CATTN_INT64, "");
    check_array("causal_offset", p.causal_offset, 0);
    causal_offset =
        make_view("causal_offset", p.causal_offset, shape, Inner{false, false, false}, false);
  }

  if (p.flags & CATTN_HAS_SCALE) {
    scale = p.scale;
    if (!std::isfinite(scale)) {
      value_error("scale: is " + std::to_string(scale) + ", expected a finite number");
    }
  } else {
    scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  }
  num_threads = p.num_threads;
  if (num_threads < 0) {
    value_error("num_threads: is " + std::to_string(num_threads) + ", expected at least 1");
  }
  executor = p.executor;
}

void Problem::describe_outputs(cattn_array* out_array, cattn_array* lse_array,
                               cattn_array* weights_array) const {
  const auto describe = [&](cattn_array* a, int inner, Index cols) {
    if (!a) return;
    a->dtype = dtype;
    a->ndim = 0;
    const auto push = [&](Index n) {
      if (a->ndim == CATTN_MAX_NDIM) value_error("q: has too many axes");
      a->shape[a->ndim++] = n;
    };
    for (int i = 0; i < batch_ndim; ++i) push(batch_shape[static_cast<size_t>(i)]);
    if (!single_head) push(heads_q);
    push(queries);
    if (inner == 2) push(cols);
    if (blhd && a == out_array) exchange_layout(*a);
  };
  describe(out_array, 2, value_dim);
  describe(lse_array, 1, 0);
  describe(weights_array, 2, keys);
}

char* Problem::at(const View& view, Index b, Index h, Index i) const {
  Index offset = h * view.head_stride + i * view.row_stride;
  for (int axis_index = batch_ndim - 1; axis_index >= 0 && b > 0; --axis_index) {
    const auto a = static_cast<size_t>(axis_index);
    offset += b % batch_shape[a] * view.batch_strides[a];
    b /= batch_shape[a];
  }
  return view.data + offset * view.element_size;
}

Band Problem::band(Index b) const {
  // Far enough that no query reaches the end, small enough that adding to it cannot overflow.
  constexpr Index kUnbounded = Index{1} << 60;
  Band band{-kUnbounded, kUnbounded, keys};
  if (causal) {
    Index offset = keys - queries;
    if (causal_offset) {
      int64_t given_offset;
      std::memcpy(&given_offset, at(causal_offset, b, 0, 0), sizeof(given_offset));
      offset = given_offset < -kUnbounded  ? -kUnbounded
               : given_offset > kUnbounded ? kUnbounded
                                           : given_offset;
    }
    band.hi_shift = offset + 1;
  }
  return band;
}

ScoreTerms Problem::terms(Index b, Index h) const {
  ScoreTerms terms{};
  terms.scale = scale;
  if (bias) {
    terms.bias = {at(bias, b, h, 0), bias.row_stride, bias.col_stride, bias_is_float32};
  }
  if (mask) terms.mask = {at(mask, b, h, 0), mask.row_stride, mask.col_stride, false};
  return terms;
}

double Problem::score_count() const {
  double per_batch = static_cast<double>(queries) * static_cast<double>(keys);
  if (causal && !causal_offset) {
    // Rows see keys - queries + 1 .. keys keys.
    const double shorter = static_cast<double>(queries < keys ? queries : keys);
    per_batch =
        keys >= queries ? per_batch - shorter * (shorter - 1) / 2 : shorter * (shorter + 1) / 2;
  }
  return per_batch * static_cast<double>(batch) * static_cast<double>(heads_q);
}

}  // namespace cattn
