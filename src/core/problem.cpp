#include "core/problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/dropout.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/scalar.h"

namespace cattn {
namespace {

// Far enough that no query reaches the end, small enough that adding to it cannot overflow.
constexpr Index kUnbounded = Index{1} << 60;

// a + b, no further than that.
Index moved(Index a, Index b) {
  Index sum;
  if (__builtin_add_overflow(a, b, &sum)) sum = b < 0 ? -kUnbounded : kUnbounded;
  return std::clamp(sum, -kUnbounded, kUnbounded);
}

constexpr Inner kMatrix{true, true, true}, kRowVector{true, true, false},
    kHeadVector{true, false, false}, kNumber{false, false, false};

}  // namespace

// Reads the caller's struct into a Problem, a group of arguments at a time.
struct Problem::Reader {
  Reader(Problem& problem, const cattn_attention& given_problem)
      : o(problem), p(in_bhld(given_problem)) {}

  // The struct with its arrays in layout (..., H, L, D): itself, or a copy. (Some kilobytes, which
  // small calls should not copy.)
  const cattn_attention& in_bhld(const cattn_attention& from) {
    o.packed = given(from.cu_seqlens_q) || given(from.cu_seqlens_k);
    o.blhd = o.packed || (from.flags & CATTN_BLHD) != 0;  // (total, H, D) is (L, H, D)
    if (!o.blhd) return from;
    copy = from;
    cattn_attention& to = copy;
    for (cattn_array* a : {&to.q, &to.k, &to.v, &to.out, &to.dout, &to.dq, &to.dk, &to.dv,
                           &to.q_tangent, &to.k_tangent, &to.v_tangent, &to.out_tangent}) {
      exchange_layout(*a);
    }
    return to;
  }

  // ---- q, k, v: they give the sizes ----

  void read_inputs() {
    for (const auto& [name, a] : {std::pair{"q", &p.q}, {"k", &p.k}, {"v", &p.v}}) {
      require(name, *a);
    }
    o.dtype = p.q.dtype;
    switch (o.dtype) {
      case CATTN_FLOAT32:
      case CATTN_FLOAT64:
      case CATTN_FLOAT16:
      case CATTN_BFLOAT16: break;
      default:
        type_error("q: dtype " + dtype_text(o.dtype) +
                   ", expected float32, float64, float16 or bfloat16");
    }
    check_dtype("k", p.k, o.dtype, " like q");
    check_dtype("v", p.v, o.dtype, " like q");
    for (const auto& [name, a] : {std::pair{"q", &p.q}, {"k", &p.k}, {"v", &p.v}}) {
      check_array(ours(name), *a, 2);
      if (o.packed && a->ndim != 3) {
        value_error(std::string(name) + ": shape " + shown(*a) +
                    ", expected three axes (total, heads, size) for packed sequences");
      }
    }
    o.head_dim = axis(p.q, 1);
    o.value_dim = axis(p.v, 1);
    o.queries = axis(p.q, 2);
    o.keys = axis(p.k, 2);
    o.heads_q = axis(p.q, 3);
    o.heads_kv = axis(p.k, 3);
    if (o.head_dim < 1) {
      value_error("q: shape " + shown(p.q) + ": the head size must be at least 1");
    }
    if (o.value_dim < 1) {
      value_error("v: shape " + shown(p.v) + ": the value size must be at least 1");
    }
    const auto fit = [&](const char* name, const cattn_array& a, const char* of,
                         const cattn_array& b, int from_end, const char* what) {
      if (axis(a, from_end) == axis(b, from_end)) return;
      value_error(std::string(name) + ": shape " + shown(a) + " does not fit " + of + "'s " +
                  shown(b) + ": the " + what + " must agree, expected " +
                  std::to_string(axis(b, from_end)));
    };
    fit("k", p.k, "q", p.q, 1, "last axes (head size)");
    fit("v", p.v, "k", p.k, 2, "number of keys");
    fit("v", p.v, "k", p.k, 3, "number of heads");
    if (o.heads_kv == 0 ? o.heads_q != 0 : o.heads_q % o.heads_kv != 0) {
      value_error("k: shape " + shown(p.k) + " does not fit q's " + shown(p.q) + ": " +
                  std::to_string(o.heads_q) + " query heads are not a multiple of " +
                  std::to_string(o.heads_kv) + " key heads");
    }
    o.single_head = p.q.ndim == 2 && p.k.ndim == 2 && p.v.ndim == 2;
    o.group = o.heads_kv == 0 ? 1 : o.heads_q / o.heads_kv;

    arrays.join(ours("q"), p.q, 3);
    arrays.join(ours("k"), p.k, 3);
    arrays.join(ours("v"), p.v, 3);
    o.q = input("q", p.q);
    o.k = input("k", p.k);
    o.v = input("v", p.v);
  }

  View input(const char* name, const cattn_array& a) const {
    check_contiguous(name, a);
    return make_view(ours(name), a, arrays, kMatrix, false);
  }

  // ---- the batch entries: leading axes, or packed sequences ----

  void read_entries() {
    o.batch_shape = arrays;
    if (o.packed) {
      require("cu_seqlens_q", p.cu_seqlens_q);
      require("cu_seqlens_k", p.cu_seqlens_k);
      if (given(p.kv_lengths)) {
        value_error("kv_lengths: cannot go together with cu_seqlens_k, which gives the lengths");
      }
      o.batch_shape = {1, {starts("cu_seqlens_q", p.cu_seqlens_q, o.queries, "q", o.starts_q) - 1}};
      const Index n = starts("cu_seqlens_k", p.cu_seqlens_k, o.keys, "k", o.starts_k) - 1;
      if (n != o.batch_shape.shape[0]) {
        value_error(described("cu_seqlens_k", p.cu_seqlens_k) + ", expected cu_seqlens_q's " +
                    shape_text(p.cu_seqlens_q));
      }
      // The arrays have no axis of sequences: every sequence reads the same ones.
      for (View* view : {&o.q, &o.k, &o.v}) view->batch_strides[0] = 0;
    }
    for (int i = 0; i < o.batch_shape.ndim; ++i) {
      o.batch = checked_multiply(o.batch, o.batch_shape.shape[i]);
    }
    // Everything that is allocated or indexed is a product of some of these.
    checked_multiply(
        checked_multiply(checked_multiply(o.batch, o.heads_q + 1), o.queries + o.keys + 1),
        checked_multiply(16, o.head_dim + o.value_dim));
    if (given(p.kv_lengths)) {
      o.kv_lengths = per_entry("kv_lengths", p.kv_lengths);
      for (Index b = 0; b < o.batch; ++b) {
        const int64_t length = o.integer(o.kv_lengths, b);
        if (length < 0 || length > o.keys) {
          value_error("kv_lengths: contains " + std::to_string(length) + ", expected 0 to " +
                      std::to_string(o.keys) + ", the number of keys");
        }
      }
    }
  }

  // Checks cu_seqlens and returns how many numbers it has.
  Index starts(const char* name, const cattn_array& a, Index total, const char* of,
               View& view) const {
    check_dtype(name, a, CATTN_INT64, "");
    check_array(name, a, 1);
    if (a.ndim != 1 || a.shape[0] < 1) {
      value_error(described(name, a) + ", expected (sequences + 1,)");
    }
    view = make_view(name, a, {1, {a.shape[0]}}, kNumber, true);
    const auto value = [&](Index n) {
      return load_element<int64_t>(view.data + n * view.batch_strides[0] * view.element_size);
    };
    const auto wrong = [&](Index n, const std::string& expected) {
      value_error(std::string(name) + ": element " + std::to_string(n) + " is " +
                  std::to_string(value(n)) + ", expected " + expected);
    };
    if (value(0) != 0) wrong(0, "0");
    for (Index n = 1; n < a.shape[0]; ++n) {
      if (value(n) < value(n - 1)) {
        wrong(n, "at least the one before, " + std::to_string(value(n - 1)));
      }
    }
    const Index last = a.shape[0] - 1;
    if (value(last) != total) {
      wrong(last, std::to_string(total) + ", the number of rows of " + of);
    }
    return a.shape[0];
  }

  // One integer per batch entry.
  View per_entry(const char* name, const cattn_array& a) const {
    check_dtype(name, a, CATTN_INT64, "");
    check_array(name, a, 0);
    return make_view(name, a, o.batch_shape, kNumber, false);
  }

  // ---- outputs, and what the backward reads of them ----

  bool is_half() const { return o.dtype != CATTN_FLOAT32 && o.dtype != CATTN_FLOAT64; }

  // An array (batch..., heads, rows, cols) of which nothing is broadcast.
  View exact(Name name, const cattn_array& a, Index heads, Index rows, Index cols,
             bool may_be_wide = false) const {
    if (!given(a)) return View{};
    if (!(may_be_wide && is_half() && a.dtype == CATTN_FLOAT32)) {
      check_dtype(name, a, o.dtype, " like q");
    }
    check_array(name, a, 2);
    check_axis(name, a, 1, cols, "columns");
    check_axis(name, a, 2, rows, "rows");
    check_axis(name, a, 3, heads, "heads");
    check_contiguous(name, a);
    return shared_by_sequences(make_view(name, a, arrays, kMatrix, true));
  }
  View exact_rows(const char* name, const cattn_array& a) const {
    if (!given(a)) return View{};
    const bool half = is_half();
    check_dtype(name, a, half ? CATTN_FLOAT32 : o.dtype, half ? " for half types" : " like q");
    check_array(name, a, 1);
    check_axis(name, a, 1, o.queries, "rows");
    check_axis(name, a, 2, o.heads_q, "heads");
    return shared_by_sequences(make_view(name, a, arrays, kRowVector, true));
  }
  View shared_by_sequences(View view) const {
    if (o.packed) view.batch_strides[0] = 0;
    return view;
  }

  void read_outputs(Direction direction) {
    if (direction == Direction::inputs_only) return;
    require("out", p.out);
    o.out = exact(ours("out"), p.out, o.heads_q, o.queries, o.value_dim);
    if (direction == Direction::backward) {
      require("dout", p.dout);
      require("lse", p.lse);
      o.dout = exact(ours("dout"), p.dout, o.heads_q, o.queries, o.value_dim);
      o.dlse = exact_rows("dlse", p.dlse);
      o.dq = exact(ours("dq"), p.dq, o.heads_q, o.queries, o.head_dim, true);
      o.dk = exact(ours("dk"), p.dk, o.heads_kv, o.keys, o.head_dim, true);
      o.dv = exact(ours("dv"), p.dv, o.heads_kv, o.keys, o.value_dim, true);
    } else {
      o.weights = exact("weights", p.weights, o.heads_q, o.queries, o.keys);
    }
    o.lse = exact_rows("lse", p.lse);
  }

  void read_tangents() {
    o.q_tangent = tangent("dq, the tangent of q", p.q_tangent, "q", p.q);
    o.k_tangent = tangent("dk, the tangent of k", p.k_tangent, "k", p.k);
    o.v_tangent = tangent("dv, the tangent of v", p.v_tangent, "v", p.v);
    require("out_tangent", p.out_tangent);
    o.out_tangent = exact(ours("out_tangent"), p.out_tangent, o.heads_q, o.queries, o.value_dim);
  }
  View tangent(const char* name, const cattn_array& a, const char* of, const cattn_array& like) {
    require(name, a);
    check_dtype(name, a, o.dtype, " like q");
    check_array(ours(name), a, 2);
    check_same_shape(ours(name), a, of, like);
    return shared_by_sequences(input(name, a));
  }
  // ---- mask and bias ----

  // Right-aligned broadcast to (..., Hq, Lq, Lk).
  View plane(const char* name, const cattn_array& a) const {
    check_array(name, a, 0);
    const Index full[] = {o.keys, o.queries, o.heads_q};
    for (int i = 0; i < 3; ++i) {
      const Index n = axis(a, i + 1);
      if (n != 1 && n != full[i]) {
        value_error(described(name, a) + " does not broadcast to (..., " +
                    std::to_string(o.heads_q) + ", " + std::to_string(o.queries) + ", " +
                    std::to_string(o.keys) + "): expected " + std::to_string(full[i]) +
                    " or 1, not " + std::to_string(n));
      }
    }
    return shared_by_sequences(make_view(name, a, arrays, kMatrix, false));
  }

  void read_planes(bool backward) {
    if (given(p.mask)) {
      check_dtype("mask", p.mask, CATTN_BOOL, " (True = may attend)");
      o.mask = plane("mask", p.mask);
    }
    if (given(p.bias)) {
      check_parameter_dtype("bias", p.bias);
      o.bias = plane("bias", p.bias);
      o.bias_storage = storage_of(p.bias.dtype);
    }
    if (backward && given(p.dbias)) {
      if (!given(p.bias)) value_error("dbias: there is no bias to differentiate");
      check_dtype("dbias", p.dbias, p.bias.dtype, " like bias");
      check_array("dbias", p.dbias, 0);
      check_same_shape("dbias", p.dbias, "bias", p.bias);
      o.dbias_array = p.dbias;
      o.dbias = plane("dbias", p.dbias);
      o.bias_cols_broadcast = axis(p.bias, 1) == 1;
      o.bias_rows_broadcast = axis(p.bias, 2) == 1;
      o.bias_heads_broadcast = axis(p.bias, 3) == 1;
    }
  }
  void check_parameter_dtype(const char* name, const cattn_array& a) const {
    if (a.dtype != CATTN_FLOAT32) check_dtype(name, a, o.dtype, " like q, or float32");
  }
  // ---- options ----

  void read_options(bool backward) {
    constexpr uint32_t known = CATTN_CAUSAL | CATTN_HAS_SCALE | CATTN_BLHD | CATTN_HAS_SOFTCAP;
    if ((p.flags & ~known) != 0) {
      value_error("flags: is " + std::to_string(p.flags) + ", which this version does not know");
    }
    read_precision();
    read_scores();
    read_positions();
    read_softmax(backward);
    o.num_threads = checked_num_threads(p.num_threads);
    o.executor = p.executor;
  }

  void read_precision() {
    switch (p.precision) {
      case CATTN_PRECISION_HIGHEST:
      case CATTN_PRECISION_HIGH:
      case CATTN_PRECISION_MEDIUM: break;
      default:
        value_error("precision: is " + std::to_string(p.precision) +
                    ", expected 0 (highest), 1 (high) or 2 (medium)");
    }
    o.precision = static_cast<cattn_precision>(p.precision);
  }

  bool computes_in_double() const { return storage_of(p.q.dtype) == Storage::float64; }

  void read_scores() {
    o.scale = 1.0 / std::sqrt(static_cast<double>(o.head_dim));
    if (p.flags & CATTN_HAS_SCALE) {
      o.scale = p.scale;
      const double most = computes_in_double() ? std::numeric_limits<double>::max()
                                               : std::numeric_limits<float>::max();
      if (!(std::abs(o.scale) <= most / 2)) {  // it is multiplied by log2(e)
        value_error(
            "scale: is " + std::to_string(o.scale) + ", expected a finite number" +
            (std::isfinite(o.scale) ? " within half of the range of what is computed in" : ""));
      }
    }
    if (p.flags & CATTN_HAS_SOFTCAP) {
      o.softcap = p.softcap;
      if (!(o.softcap > 0) || !std::isfinite(o.softcap)) {
        value_error("softcap: is " + std::to_string(o.softcap) +
                    ", expected a finite number above 0");
      }
      // So large a one changes no score, and below so small a one they are as good as 0.
      if (o.softcap > (computes_in_double() ? 1e300 : 1e30)) o.softcap = 0;
      if (o.softcap > 0) o.softcap = std::max(o.softcap, computes_in_double() ? 1e-200 : 1e-20);
    }
  }

  void read_positions() {
    o.causal = (p.flags & CATTN_CAUSAL) != 0;
    o.window_left = p.window_left;
    o.window_right = p.window_right;
    for (const Index side : {o.window_left, o.window_right}) {
      if (side < -1) {
        value_error("window: contains " + std::to_string(side) +
                    ", expected at least 0, or -1 for unbounded");
      }
    }
    const bool window = o.window_left >= 0 || o.window_right >= 0;
    if (given(p.alibi_slopes)) {
      check_parameter_dtype("alibi_slopes", p.alibi_slopes);
      check_array("alibi_slopes", p.alibi_slopes, 1);
      check_axis("alibi_slopes", p.alibi_slopes, 1, o.heads_q, "heads");
      o.alibi_slopes = make_view("alibi_slopes", p.alibi_slopes, o.batch_shape, kHeadVector, false);
      o.slopes_storage = storage_of(p.alibi_slopes.dtype);
      for (Index b = 0; b < o.batch; ++b) {
        for (Index h = 0; h < o.heads_q; ++h) {
          const double slope = load_scalar(o.at(o.alibi_slopes, b, h, 0), o.slopes_storage);
          if (!std::isfinite(slope)) {
            value_error("alibi_slopes: contains " + std::to_string(slope) +
                        ", expected finite numbers");
          }
        }
      }
    }
    if (given(p.causal_offset)) {
      if (!o.causal && !window && !given(p.alibi_slopes)) {
        value_error("causal_offset: has a meaning only with causal, window or alibi_slopes");
      }
      o.causal_offset = per_entry("causal_offset", p.causal_offset);
    }
  }

  void read_softmax(bool backward) {
    if (given(p.sinks)) {
      check_parameter_dtype("sinks", p.sinks);
      check_array("sinks", p.sinks, 1);
      if (p.sinks.ndim != 1) {
        value_error(described("sinks", p.sinks) + ", expected (" + std::to_string(o.heads_q) +
                    ",)");
      }
      check_axis("sinks", p.sinks, 1, o.heads_q, "heads");
      o.sinks = make_view("sinks", p.sinks, {}, kHeadVector, false);
      o.sinks_storage = storage_of(p.sinks.dtype);
    }
    if (backward && given(p.dsinks)) {
      if (!given(p.sinks)) value_error("dsinks: there are no sinks to differentiate");
      check_dtype("dsinks", p.dsinks, p.sinks.dtype, " like sinks");
      check_array("dsinks", p.dsinks, 1);
      check_same_shape("dsinks", p.dsinks, "sinks", p.sinks);
      o.dsinks_array = p.dsinks;
    }
    o.dropout = dropout_of(p.dropout, p.seed);
    if (o.dropout.on && (o.batch > kMostWord || o.heads_q > kMostWord || o.queries > kMostWord ||
                         o.keys > kMostWord)) {
      value_error("dropout: an axis is longer than 2^32, beyond which it would repeat");
    }
  }
  static constexpr Index kMostWord = Index{1} << 32;

  // ---- helpers ----

  static void require(const char* name, const cattn_array& a) {
    if (!given(a)) value_error(std::string(name) + ": is required");
  }
  // The name of an array in the caller's layout.
  Name ours(const char* name) const { return {name, o.blhd}; }
  // The shape of one, as the caller gave it.
  std::string shown(const cattn_array& a) const { return shown_shape(a, o.blhd); }
  // Arrays of one layout.
  static void check_same_shape(Name name, const cattn_array& a, const char* of,
                               const cattn_array& like) {
    bool same = a.ndim == like.ndim;
    for (int i = 0; same && i < a.ndim; ++i) same = a.shape[i] == like.shape[i];
    if (!same) {
      value_error(described(name, a) + ", expected " + of + "'s " +
                  shown_shape(like, name.exchanged));
    }
  }

  Problem& o;
  cattn_attention copy;      // set if the caller's layout is another
  const cattn_attention& p;  // in layout (..., H, L, D)
  BatchShape arrays;         // leading axes of q, k and v
};

Problem::Problem(const cattn_attention& given_problem, Direction direction) {
  Reader reader(*this, given_problem);
  const bool backward = direction == Direction::backward;
  reader.read_inputs();
  reader.read_entries();
  reader.read_outputs(direction);
  reader.read_planes(backward);
  reader.read_options(backward);
  if (direction == Direction::tangent) reader.read_tangents();
}

void Problem::describe_outputs(cattn_array* out_array, cattn_array* lse_array,
                               cattn_array* weights_array) const {
  const auto describe = [&](cattn_array* a, int inner, Index cols) {
    if (!a) return;
    a->dtype = inner == 1 && dtype != CATTN_FLOAT64 ? static_cast<int32_t>(CATTN_FLOAT32) : dtype;
    a->ndim = 0;
    const auto push = [&](Index n) {
      if (a->ndim == CATTN_MAX_NDIM) value_error("q: has too many axes");
      a->shape[a->ndim++] = n;
    };
    if (!packed) {
      for (int i = 0; i < batch_shape.ndim; ++i) push(batch_shape.shape[i]);
    }
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
  return element_at(view, batch_shape, b, h, i);
}

char* Problem::plane(const View& view, Index b, Index h) const {
  const Sequence s = sequence(b);
  return at(view, b, h, s.first_query) + s.first_key * view.col_stride * view.element_size;
}

int64_t Problem::integer(const View& view, Index b) const {
  return load_element<int64_t>(at(view, b, 0, 0));
}

Sequence Problem::sequence(Index b) const {
  if (packed) {
    const auto start = [](const View& view, Index n) -> Index {
      return load_element<int64_t>(view.data + n * view.batch_strides[0] * view.element_size);
    };
    const Index first_query = start(starts_q, b), first_key = start(starts_k, b);
    const Index length = start(starts_k, b + 1) - first_key;
    return {first_query, start(starts_q, b + 1) - first_query, first_key, length, length};
  }
  return {0, queries, 0, kv_lengths ? integer(kv_lengths, b) : keys, keys};
}

Index Problem::offset(Index b) const {
  if (causal_offset) return integer(causal_offset, b);
  const Sequence s = sequence(b);
  return s.keys - s.queries;
}

Band Problem::band(Index b) const {
  Band band{-kUnbounded, kUnbounded, sequence(b).keys};
  if (causal || window_left >= 0 || window_right >= 0) {
    const Index centre = offset(b);
    if (causal) band.hi_shift = moved(centre, 1);
    if (window_left >= 0) band.lo_shift = moved(centre, -window_left);
    if (window_right >= 0) {
      band.hi_shift = std::min(band.hi_shift, moved(moved(centre, window_right), 1));
    }
  }
  return band;
}

ScoreTerms Problem::terms(Index b, Index h) const {
  ScoreTerms terms{};
  terms.scale = scale;
  terms.softcap = softcap;
  if (bias) terms.bias = {plane(bias, b, h), bias.row_stride, bias.col_stride, bias_storage};
  if (alibi_slopes) {
    terms.alibi_slope = load_scalar(at(alibi_slopes, b, h, 0), slopes_storage);
    terms.alibi_shift = std::clamp(offset(b), -4 * kUnbounded, 4 * kUnbounded);
  }
  if (mask) terms.mask = {plane(mask, b, h), mask.row_stride, mask.col_stride, {}};
  terms.dropout = dropout;
  terms.dropout.batch = static_cast<uint32_t>(b);
  terms.dropout.head = static_cast<uint32_t>(h);
  return terms;
}

double Problem::sink(Index h) const {
  if (!sinks) return -std::numeric_limits<double>::infinity();
  return load_scalar(sinks.data + h * sinks.head_stride * sinks.element_size, sinks_storage);
}

}  // namespace cattn
