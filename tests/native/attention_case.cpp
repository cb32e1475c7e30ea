#include "attention_case.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <thread>

#include "check.h"

namespace cattn::test {
namespace {

std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (const Index n : shape) text += std::to_string(n) + ",";
  return text + ")";
}

Shape broadcast(const Shape& a, const Shape& b) {
  const size_t n = std::max(a.size(), b.size());
  Shape joined(n, 1);
  for (const Shape* shape : {&a, &b}) {
    for (size_t back = 1; back <= shape->size(); ++back) {
      const Index axis = (*shape)[shape->size() - back];
      if (axis != 1) joined[n - back] = axis;
    }
  }
  return joined;
}

// Sums a full array to the shape that broadcast to it; also counts the terms of each sum.
struct Reduced {
  reference::Array sum;
  double terms;
};
Reduced reduce(const reference::Array& full, const Shape& full_shape, const Shape& shape) {
  // Positions of the narrow array by a trick: an array that holds them, broadcast.
  Tensor<int64_t> position(shape, Layout::contiguous, LastAxis::any, Placement::heap);
  for (Index i = 0; i < position.size(); ++i) position[i] = i;
  Reduced reduced{reference::Array(static_cast<size_t>(position.size()), 0.0), 0};
  for (size_t i = 0; i < full.size(); ++i) {
    const int64_t to = position.broadcast(static_cast<Index>(i), full_shape);
    reduced.sum[static_cast<size_t>(to)] += full[i];
  }
  if (position.size() > 0) {
    reduced.terms = static_cast<double>(full.size()) / static_cast<double>(position.size());
  }
  return reduced;
}

std::map<std::string, std::map<std::string, double>> g_worst_ratios;

template <class T>
const char* dtype_name() {
  switch (kDtype<T>) {
    case CATTN_FLOAT64: return "float64";
    case CATTN_FLOAT16: return "float16";
    case CATTN_BFLOAT16: return "bfloat16";
    default: return "float32";
  }
}

void run_std_threads(void*, int32_t threads, void (*work)(void*, int32_t), void* argument) {
  std::vector<std::thread> team;
  for (int32_t t = 0; t < threads; ++t) team.emplace_back(work, argument, t);
  for (std::thread& thread : team) thread.join();
}

void run_reversed(void*, int32_t threads, void (*work)(void*, int32_t), void* argument) {
  for (int32_t t = threads - 1; t >= 0; --t) work(argument, t);
}

}  // namespace

uint64_t Random::bits() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

Shape Case::batch() const { return broadcast(broadcast(batch_q, batch_k), batch_v); }

Shape Case::with_batch(Shape inner) const {
  Shape shape = batch();
  shape.insert(shape.end(), inner.begin(), inner.end());
  return shape;
}

std::string Case::text() const {
  std::string text = "batch " + shape_text(batch()) + " heads " + std::to_string(heads_q) + "/" +
                     std::to_string(heads_kv) + " rows " + std::to_string(rows) + " keys " +
                     std::to_string(keys) + " D " + std::to_string(head_dim) + " Dv " +
                     std::to_string(value_dim) + " layout " +
                     std::to_string(static_cast<int>(layout));
  if (mask) text += " mask " + shape_text(*mask);
  if (bias) text += (bias_is_float32 ? " bias32 " : " bias ") + shape_text(*bias);
  if (causal) text += " causal";
  if (!offsets.empty()) text += " offset " + std::to_string(offsets.front());
  if (scale) text += " scale " + std::to_string(*scale);
  if (window_left >= 0 || window_right >= 0) {
    text += " window " + std::to_string(window_left) + "," + std::to_string(window_right);
  }
  if (softcap != 0) text += " softcap " + std::to_string(softcap);
  if (slopes) text += " slopes " + shape_text(*slopes);
  if (sinks) text += " sinks";
  if (!lengths.empty()) text += " lengths " + std::to_string(lengths.front());
  if (dropout != 0) text += " dropout " + std::to_string(dropout);
  if (nonfinite > 0) text += " nonfinite";
  if (dlse) text += " dlse";
  return text + " threads " + std::to_string(threads) + " seed " + std::to_string(seed);
}

template <class T>
bool same_bits(const Outputs<T>& a, const Outputs<T>& b) {
  const auto same = [](const auto& x, const auto& y) {
    return x.given() == y.given() && (!x.given() || x.same_bits(y));
  };
  return same(a.out, b.out) && same(a.lse, b.lse) && same(a.weights, b.weights) &&
         same(a.dq, b.dq) && same(a.dk, b.dk) && same(a.dv, b.dv) && same(a.dbias, b.dbias) &&
         same(a.dbias_float32, b.dbias_float32) && same(a.dsinks, b.dsinks) &&
         same(a.jvp_out, b.jvp_out) && same(a.out_tangent, b.out_tangent);
}
template bool same_bits(const Outputs<float>&, const Outputs<float>&);
template bool same_bits(const Outputs<double>&, const Outputs<double>&);
template bool same_bits(const Outputs<Half>&, const Outputs<Half>&);
template bool same_bits(const Outputs<Brain>&, const Outputs<Brain>&);

template <class T>
Attention<T>::Attention(const Case& c) : c_(c) {
  make_inputs();
  make_reference();
}

// (batch..., heads, rows, cols), or (rows, cols) of a flat case; cols < 0: no last axis.
template <class T>
Shape Attention<T>::outer(Index heads, Index rows, Index cols, const Shape& batch) const {
  Shape shape = batch;
  if (!c_.flat) shape.push_back(heads);
  shape.push_back(rows);
  if (cols >= 0) shape.push_back(cols);
  return shape;
}

template <class T>
void Attention<T>::make_inputs() {
  Random random(c_.seed);
  const auto uniform = [&]<class Element>(Tensor<Element>& t, Shape shape, LastAxis last,
                                          double size) {
    t = Tensor<Element>(std::move(shape), c_.layout, last, placement(static_cast<int>(c_.seed)));
    for (Index i = 0; i < t.size(); ++i) t[i] = static_cast<Element>(size * random.symmetric());
  };
  const auto matrix = [&](const Shape& batch, Index heads, Index rows, Index cols, double size) {
    Tensor<T> t;
    uniform(t, outer(heads, rows, cols, batch), LastAxis::contiguous, size);
    return t;
  };
  q_ = matrix(c_.batch_q, c_.heads_q, c_.rows, c_.head_dim, c_.size);
  k_ = matrix(c_.batch_k, c_.heads_kv, c_.keys, c_.head_dim, c_.size);
  v_ = matrix(c_.batch_v, c_.heads_kv, c_.keys, c_.value_dim, 1);
  dout_ = matrix(c_.batch(), c_.heads_q, c_.rows, c_.value_dim, 1);
  if (c_.dlse) {
    uniform(dlse_, outer(c_.heads_q, c_.rows, -1, c_.batch()), LastAxis::any, 1);
  }
  if (c_.nonfinite > 0) {
    // A NaN or infinity of q or k would make scores infinite: there only NaN.
    const auto spoil = [&](Tensor<T>& t, bool infinities) {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      const double values[] = {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity};
      const Index cols = t.shape().back();
      for (Index row = 0; row < t.size() / cols; ++row) {
        if (!random.chance(c_.nonfinite)) continue;
        const double value = values[infinities ? random.below(3) : 0];
        t[row * cols + random.below(cols)] = static_cast<T>(value);
      }
    };
    spoil(q_, false);
    spoil(k_, false);
    spoil(v_, true);
    spoil(dout_, true);
  }
  if (c_.mask) {
    mask_ =
        Tensor<uint8_t>(*c_.mask, c_.layout, LastAxis::any, placement(static_cast<int>(c_.seed)));
    const uint8_t open[] = {1, 2, 0x80, 0xff};
    for (Index i = 0; i < mask_.size(); ++i) {
      mask_[i] = random.chance(c_.mask_density) ? open[random.below(4)] : uint8_t{0};
    }
  }
  if (c_.bias) {
    const auto fill = [&]<class Bias>(Tensor<Bias>& t) {
      t = Tensor<Bias>(*c_.bias, c_.layout, LastAxis::any, placement(static_cast<int>(c_.seed)));
      for (Index i = 0; i < t.size(); ++i) {
        t[i] = static_cast<Bias>(random.chance(c_.bias_infinities)
                                     ? -std::numeric_limits<double>::infinity()
                                     : 2 * random.symmetric());
      }
    };
    if (c_.bias_is_float32) {
      fill(bias_float32_);
    } else {
      fill(bias_);
    }
  }
  if (c_.offset_shape) {
    offset_ = Tensor<int64_t>(*c_.offset_shape, Layout::contiguous, LastAxis::any,
                              placement(static_cast<int>(c_.seed)));
    for (Index i = 0; i < offset_.size(); ++i) {
      offset_[i] = c_.offsets[static_cast<size_t>(i) % c_.offsets.size()];
    }
  }
  if (c_.slopes) uniform(slopes_, *c_.slopes, LastAxis::any, 0.5);
  if (c_.sinks) {
    uniform(sinks_, {c_.heads_q}, LastAxis::any, 3);
    if (c_.heads_q > 1) sinks_[0] = static_cast<T>(-std::numeric_limits<double>::infinity());
  }
  if (!c_.lengths.empty()) {
    lengths_ =
        Tensor<int64_t>(c_.batch(), c_.layout, LastAxis::any, placement(static_cast<int>(c_.seed)));
    for (Index i = 0; i < lengths_.size(); ++i) {
      lengths_[i] = c_.lengths[static_cast<size_t>(i) % c_.lengths.size()];
    }
  }
  if (c_.tangents) {
    q_move_ = matrix(c_.batch_q, c_.heads_q, c_.rows, c_.head_dim, 1);
    k_move_ = matrix(c_.batch_k, c_.heads_kv, c_.keys, c_.head_dim, 1);
    v_move_ = matrix(c_.batch_v, c_.heads_kv, c_.keys, c_.value_dim, 1);
  }
}

template <class T>
void Attention<T>::make_reference() {
  const Shape batch = c_.batch();
  const auto expanded = [&](const auto& t, Index heads, Index rows, Index cols) {
    return t.template expanded<double>(c_.with_batch({heads, rows, cols}));
  };
  reference::Problem p;
  p.batch = product(batch);
  p.heads_q = c_.heads_q;
  p.heads_kv = c_.heads_kv;
  p.queries = c_.rows;
  p.keys = c_.keys;
  p.head_dim = c_.head_dim;
  p.value_dim = c_.value_dim;
  p.q = expanded(q_, c_.heads_q, c_.rows, c_.head_dim);
  p.k = expanded(k_, c_.heads_kv, c_.keys, c_.head_dim);
  p.v = expanded(v_, c_.heads_kv, c_.keys, c_.value_dim);
  if (c_.mask)
    p.mask = mask_.template expanded<uint8_t>(c_.with_batch({c_.heads_q, c_.rows, c_.keys}));
  if (bias_.given()) p.bias = expanded(bias_, c_.heads_q, c_.rows, c_.keys);
  if (bias_float32_.given()) p.bias = expanded(bias_float32_, c_.heads_q, c_.rows, c_.keys);
  p.causal = c_.causal;
  if (offset_.given()) p.causal_offset = offset_.template expanded<int64_t>(batch);
  p.scale = c_.scale ? *c_.scale : 1 / std::sqrt(static_cast<double>(c_.head_dim));
  p.window_left = c_.window_left;
  p.window_right = c_.window_right;
  p.softcap = c_.softcap;
  if (slopes_.given()) p.slopes = slopes_.template expanded<double>(c_.with_batch({c_.heads_q}));
  if (sinks_.given()) p.sinks = sinks_.template expanded<double>({c_.heads_q});
  if (lengths_.given()) p.kv_lengths = lengths_.template expanded<int64_t>(batch);
  if (c_.dropout != 0) {
    const Tensor<uint8_t> kept(c_.with_batch({c_.heads_q, c_.rows, c_.keys}), Layout::contiguous,
                               LastAxis::contiguous, placement(static_cast<int>(c_.seed)));
    const cattn_array mask = kept.array();
    check(cattn_dropout_mask(c_.dropout, c_.seed, &mask) == CATTN_OK, "cattn_dropout_mask");
    p.dropout = c_.dropout;
    p.kept = kept.template expanded<uint8_t>(kept.shape());
  }

  const reference::Array dout = expanded(dout_, c_.heads_q, c_.rows, c_.value_dim);
  reference::Array dlse;
  if (c_.dlse) dlse = dlse_.template expanded<double>(c_.with_batch({c_.heads_q, c_.rows}));
  expected_ = reference::forward(p);
  gradients_ = reference::backward(p, expected_, dout, dlse);
  const auto rounded = [this](Bounds b, const Precision& precision) {
    add_last_rounding(b.out, expected_.out, precision);
    add_last_rounding(b.weights, expected_.weights, precision);
    add_last_rounding(b.dq, gradients_.dq, precision);
    add_last_rounding(b.dk, gradients_.dk, precision);
    add_last_rounding(b.dv, gradients_.dv, precision);
    add_last_rounding(b.dsinks, gradients_.dsinks, precision);
    return b;
  };
  const Precision plain = precision<T>();
  const Bounds unrounded = bounds(p, expected_, dout, dlse, plain);
  if (c_.tangents) {
    const reference::Array dq = expanded(q_move_, c_.heads_q, c_.rows, c_.head_dim);
    const reference::Array dk = expanded(k_move_, c_.heads_kv, c_.keys, c_.head_dim);
    const reference::Array dv = expanded(v_move_, c_.heads_kv, c_.keys, c_.value_dim);
    tangent_ = reference::tangent(p, expected_, dq, dk, dv);
    tangent_bound_ = tangent_bound(p, expected_, dq, dk, dv, unrounded.out, plain);
    add_last_rounding(tangent_bound_, tangent_, plain);
  }
  for (int how = 0; how < kWaysToMultiply; ++how) {
    const Precision own = precision<T>(static_cast<Multiplied>(how));
    bounds_[how] =
        rounded(own.delta_w > 0 ? bounds(p, expected_, dout, dlse, own) : unrounded, own);
  }
}

template <class T>
Outputs<T> Attention<T>::make_outputs() const {
  const Layout layout = c_.layout == Layout::repeated ? Layout::contiguous : c_.layout;
  const auto make = [&]<class Element = T>(Shape shape, LastAxis last, Element = {}) {
    return Tensor<Element>(std::move(shape), layout, last,
                           placement(static_cast<int>(c_.seed) + 1));
  };
  const auto matrix = [&](Index heads, Index rows, Index cols) {
    return make(outer(heads, rows, cols, c_.batch()), LastAxis::contiguous);
  };
  Outputs<T> o;
  o.out = matrix(c_.heads_q, c_.rows, c_.value_dim);
  if (c_.lse) {
    o.lse = make(outer(c_.heads_q, c_.rows, -1, c_.batch()), LastAxis::any, Wide<T>{});
  }
  if (c_.weights) o.weights = matrix(c_.heads_q, c_.rows, c_.keys);
  if (c_.dq) o.dq = matrix(c_.heads_q, c_.rows, c_.head_dim);
  if (c_.dk) o.dk = matrix(c_.heads_kv, c_.keys, c_.head_dim);
  if (c_.dv) o.dv = matrix(c_.heads_kv, c_.keys, c_.value_dim);
  if (c_.dbias && bias_.given()) o.dbias = make(*c_.bias, LastAxis::any);
  if (c_.dbias && bias_float32_.given()) {
    o.dbias_float32 = Tensor<float>(*c_.bias, layout, LastAxis::any, Placement::heap);
  }
  if (c_.dsinks) o.dsinks = make({c_.heads_q}, LastAxis::any);
  if (c_.tangents) {
    o.jvp_out = matrix(c_.heads_q, c_.rows, c_.value_dim);
    o.out_tangent = matrix(c_.heads_q, c_.rows, c_.value_dim);
  }
  return o;
}

template <class T>
cattn_attention Attention<T>::problem(const Outputs<T>& o, const Run& run) const {
  cattn_attention p;
  cattn_attention_init(&p);
  p.num_threads = run.threads.value_or(c_.threads);
  p.executor = run.executor ? run.executor : options().openmp ? nullptr : &thread_executor();
  if (c_.scale) {
    p.flags |= CATTN_HAS_SCALE;
    p.scale = *c_.scale;
  }
  if (c_.causal) p.flags |= CATTN_CAUSAL;
  if (c_.softcap != 0) {
    p.flags |= CATTN_HAS_SOFTCAP;
    p.softcap = c_.softcap;
  }
  p.window_left = c_.window_left;
  p.window_right = c_.window_right;
  p.dropout = c_.dropout;
  p.seed = c_.seed;
  p.alibi_slopes = slopes_.array();
  p.sinks = sinks_.array();
  p.kv_lengths = lengths_.array();
  p.q = q_.array();
  p.k = k_.array();
  p.v = v_.array();
  p.mask = mask_.array();
  p.bias = c_.bias_is_float32 ? bias_float32_.array() : bias_.array();
  p.causal_offset = offset_.array();
  p.out = o.out.array();
  p.lse = o.lse.array();
  p.weights = o.weights.array();
  p.dout = dout_.array();
  p.dlse = dlse_.array();
  p.dq = o.dq.array();
  p.dk = o.dk.array();
  p.dv = o.dv.array();
  p.dbias = c_.bias_is_float32 ? o.dbias_float32.array() : o.dbias.array();
  p.dsinks = o.dsinks.array();
  p.q_tangent = q_move_.array();
  p.k_tangent = k_move_.array();
  p.v_tangent = v_move_.array();
  p.out_tangent = o.out_tangent.array();
  return p;
}

template <class T>
bool Attention<T>::compute_into(Outputs<T>& o, const Run& run) const {
  const cattn_attention p = problem(o, run);
  if (cattn_attention_forward(&p) != CATTN_OK) return false;
  if (c_.lse && cattn_attention_backward(&p) != CATTN_OK) return false;
  if (!c_.tangents) return true;
  cattn_attention jvp = p;
  jvp.out = o.jvp_out.array();
  return cattn_attention_jvp(&jvp) == CATTN_OK;
}

template <class T>
Outputs<T> Attention<T>::compute(const Run& run) const {
  Outputs<T> o = make_outputs();
  check(compute_into(o, run), c_.text() + ": " + cattn_error_message());
  return o;
}

template <class T>
void Attention<T>::compare(const Outputs<T>& o, const std::string& name) const {
  const auto compare_one = [&](const char* what, const auto& got, const reference::Array& expected,
                               const reference::Array& bound) {
    if (!got.given()) return;
    const double ratio = largest_ratio(got.template expanded<double>(got.shape()), expected, bound);
    check(ratio <= 1, name + " " + c_.text() + ": " + what + " has " + ratio_text(ratio));
    check(got.gaps_untouched(), name + " " + c_.text() + ": wrote between the rows of " + what);
    double& worst = g_worst_ratios[name][what];
    worst = std::max(worst, ratio);
  };
  const Multiplied how = multiplied<T>(cattn_isa());
  const Bounds& bounds = bounds_[static_cast<int>(how)];
  compare_one("out", o.out, expected_.out, bounds.out);
  compare_one("lse", o.lse, expected_.lse, bounds.lse);
  compare_one("weights", o.weights, expected_.weights, bounds.weights);
  if (c_.tangents) {
    compare_one("jvp", o.out_tangent, tangent_, tangent_bound_);
    compare_one("jvp out", o.jvp_out, expected_.out,
                bounds_[static_cast<int>(Multiplied::by_elements)].out);
    // Of few queries attention may read keys and values in place, or in parts if those are many.
    constexpr Index few_queries = 6, many_keys = 512, keys_of_query = 16;
    const bool few =
        c_.rows <= few_queries || c_.keys >= std::max(many_keys, keys_of_query * c_.rows);
    check(how != Multiplied::by_elements || few || o.jvp_out.same_bits(o.out),
          name + " " + c_.text() + ": forward mode has another out");
  }
  if (!c_.lse) return;
  compare_one("dq", o.dq, gradients_.dq, bounds.dq);
  compare_one("dk", o.dk, gradients_.dk, bounds.dk);
  compare_one("dv", o.dv, gradients_.dv, bounds.dv);
  compare_one("dsinks", o.dsinks, gradients_.dsinks, bounds.dsinks);
  if (c_.bias && c_.dbias) {
    const Shape full = c_.with_batch({c_.heads_q, c_.rows, c_.keys});
    const Reduced expected = reduce(gradients_.dbias, full, *c_.bias);
    const reference::Array size = reduce(bounds.dscore_size, full, *c_.bias).sum;
    reference::Array bound = reduce(bounds.dscore, full, *c_.bias).sum;
    for (size_t i = 0; i < bound.size(); ++i) {
      bound[i] += expected.terms * precision<T>().u * size[i];
      if (c_.bias_is_float32) bound[i] += precision<float>().u * std::abs(expected.sum[i]);
    }
    if (!c_.bias_is_float32) add_last_rounding(bound, expected.sum, precision<T>());
    compare_one("dbias", o.dbias, expected.sum, bound);
    // Rounded to float32 at the end, whatever the problem is.
    compare_one("dbias32", o.dbias_float32, expected.sum, bound);
  }
}

template class Attention<float>;
template class Attention<double>;
template class Attention<Half>;
template class Attention<Brain>;

void print_worst_ratios() {
  for (const auto& [name, outputs] : g_worst_ratios) {
    std::printf("err/bound %-15s", name.c_str());
    for (const auto& [what, ratio] : outputs) std::printf("  %s %.2g", what.c_str(), ratio);
    std::printf("\n");
  }
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int32_t i = 0; const char* name = cattn_available_isa(i); ++i) {
    if (options().isa.empty() || options().isa == name) names.emplace_back(name);
  }
  return names;
}

namespace {

template <class T>
void run_case_as(const Case& c) {
  const Attention<T> attention(c);
  for (const std::string& isa : available_isas()) {
    check(cattn_set_isa(isa.c_str()) == CATTN_OK, "cattn_set_isa(" + isa + ")");
    const std::string name = isa + " " + dtype_name<T>();
    attention.compare(attention.compute(), name);
  }
}

}  // namespace

void run_case(const Case& c) {
  run_case_as<float>(c);
  run_case_as<double>(c);
}

void run_case_in_every_dtype(const Case& c) {
  run_case(c);
  run_case_as<Half>(c);
  run_case_as<Brain>(c);
}

const cattn_executor& thread_executor() {
  static const cattn_executor executor{nullptr, run_std_threads};
  return executor;
}
const cattn_executor& reverse_executor() {
  static const cattn_executor executor{nullptr, run_reversed};
  return executor;
}

}  // namespace cattn::test
