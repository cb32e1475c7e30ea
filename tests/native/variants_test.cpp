// Windows, soft caps, ALiBi, sinks, lengths, dropout, forward mode, half types, packed sequences
// and rotary embedding on every instruction set: against the reference, or against the sequences
// one by one.
#include <cmath>
#include <cstring>
#include <iterator>

#include "attention_case.h"
#include "check.h"
#include "tests.h"

namespace cattn::test {
namespace {

constexpr Index kRows[] = {1, 5, 13, 47, 49, 97, 129, 145};
constexpr Index kKeys[] = {1, 16, 33, 63, 65, 127, 129, 200};
constexpr Index kHeadSizes[] = {1, 8, 17, 40};
constexpr Index kSides[] = {-1, 0, 1, 7, 40, 1000, Index{1} << 62};
constexpr double kSoftcaps[] = {0.3, 2, 40};

template <class T, size_t n>
const T& pick(Random& random, const T (&choices)[n]) {
  return choices[random.below(n)];
}

Case sized(Random& random, uint64_t seed) {
  Case c;
  c.seed = seed;
  c.rows = pick(random, kRows);
  c.keys = pick(random, kKeys);
  c.head_dim = pick(random, kHeadSizes);
  c.value_dim = pick(random, kHeadSizes);
  c.heads_kv = 1 + random.below(2);
  c.heads_q = c.heads_kv * (1 + random.below(2));
  if (random.chance(0.5)) c.batch_q = c.batch_k = c.batch_v = {2};
  c.layout = static_cast<Layout>(random.below(kLayouts));
  c.dlse = random.chance(0.5);
  c.weights = random.chance(0.3);
  c.tangents = random.chance(0.5);
  c.threads = 1 + static_cast<int32_t>(random.below(3));
  return c;
}

void draw_offsets(Random& random, Case& c) {
  if (random.chance(0.5)) return;
  c.offset_shape = random.chance(0.5) ? c.batch() : Shape{};
  for (int i = 0; i < 2; ++i) c.offsets.push_back(random.below(c.rows + c.keys + 1) - c.rows);
}

using Draw = void (*)(Random& random, Case& c);

// Each option by itself, then with all the others.
constexpr Draw kOptions[] = {
    [](Random& random, Case& c) {
      c.window_left = pick(random, kSides);
      c.window_right = pick(random, kSides);
      if (c.window_left >= 0 || c.window_right >= 0) draw_offsets(random, c);
    },
    [](Random& random, Case& c) {
      c.softcap = pick(random, kSoftcaps);
      c.size = 3;
    },
    [](Random& random, Case& c) {
      c.slopes = random.chance(0.5) ? c.with_batch({c.heads_q}) : Shape{c.heads_q};
      if (!c.offset_shape) draw_offsets(random, c);
    },
    [](Random&, Case& c) { c.sinks = c.dsinks = true; },
    [](Random& random, Case& c) {
      for (int i = 0; i < 2; ++i) c.lengths.push_back(random.below(c.keys + 1));
    },
    [](Random& random, Case& c) { c.dropout = random.chance(0.5) ? 0.3 : 0.9; },
    [](Random& random, Case& c) {
      c.bias = Shape{c.heads_q, random.chance(0.5) ? c.rows : 1, c.keys};
      c.bias_infinities = 0.1;
      c.dbias = true;
    },
    [](Random&, Case& c) { c.causal = true; },
};

void test_options() {
  uint64_t seed = 1000;
  for (const Draw option : kOptions) {
    for (int i = 0; i < 6; ++i) {
      Random random(++seed);
      Case c = sized(random, seed);
      option(random, c);
      run_case_in_every_dtype(c);
    }
  }
  for (int i = 0; i < 40; ++i) {
    Random random(++seed);
    Case c = sized(random, seed);
    for (const Draw option : kOptions) {
      if (random.chance(0.5)) option(random, c);
    }
    run_case_in_every_dtype(c);
  }
}

// NaN past the lengths, outside of the window and where dropout strikes stays out.
void test_nonfinite() {
  for (uint64_t seed = 2000; seed < 2024; ++seed) {
    Random random(seed);
    Case c = sized(random, seed);
    c.layout = Layout::contiguous;
    c.nonfinite = 0.05;
    c.tangents = false;
    kOptions[seed % 2 == 0 ? 0 : 4](random, c);
    if (random.chance(0.3)) c.dropout = 0.5;
    if (random.chance(0.3)) c.sinks = c.dsinks = true;
    run_case_in_every_dtype(c);
  }
}

// ---- packed sequences: the same bits as one by one ----

// q, k, v, dout and tangents of `total` rows, every array between guard pages.
template <class T>
class Packed {
 public:
  Packed(std::vector<int64_t> starts_q, std::vector<int64_t> starts_k, uint64_t seed)
      : random_(seed), starts_q_(std::move(starts_q)), starts_k_(std::move(starts_k)) {
    for (const auto& [values, t] : {std::pair{&starts_q_, &cu_q_}, {&starts_k_, &cu_k_}}) {
      *t = make<int64_t>({static_cast<Index>(values->size())});
      for (Index i = 0; i < t->size(); ++i) (*t)[i] = (*values)[static_cast<size_t>(i)];
    }
    const Index rows = starts_q_.back(), keys = starts_k_.back();
    for (Tensor<T>* const t : {&q_, &q_move_}) *t = uniform({rows, kHeads, kSize});
    for (Tensor<T>* const t : {&k_, &k_move_}) *t = uniform({keys, kHeads / 2, kSize});
    for (Tensor<T>* const t : {&v_, &v_move_}) *t = uniform({keys, kHeads / 2, kValueSize});
    dout_ = uniform({rows, kHeads, kValueSize});
    sinks_ = uniform({kHeads});
  }

  void compare(const std::string& name, Index window, bool causal, double dropout) const {
    const Outputs all(starts_q_.back(), starts_k_.back());
    cattn_attention whole = problem(all, window, causal, dropout);
    whole.cu_seqlens_q = cu_q_.array();
    whole.cu_seqlens_k = cu_k_.array();
    run(whole, all, name);
    for (size_t n = 0; n + 1 < starts_q_.size(); ++n) {
      const Index rows = starts_q_[n + 1] - starts_q_[n], keys = starts_k_[n + 1] - starts_k_[n];
      const Outputs own(rows, keys);
      cattn_attention one = problem(own, window, causal, dropout);
      one.flags |= CATTN_BLHD;
      for (cattn_array* const a : {&one.q, &one.dout, &one.q_tangent}) cut(*a, starts_q_[n], rows);
      for (cattn_array* const a : {&one.k, &one.v, &one.k_tangent, &one.v_tangent}) {
        cut(*a, starts_k_[n], keys);
      }
      run(one, own, name);
      const std::string what = name + " sequence " + std::to_string(n) + ": ";
      const auto same = [&](const char* which, const auto& of_all, const auto& of_one, int axis,
                            Index first) {
        check(part_is(of_all, of_one, axis, first), what + which + " differs from it alone");
      };
      same("out", all.out, own.out, 0, starts_q_[n]);
      same("lse", all.lse, own.lse, 1, starts_q_[n]);
      same("out of forward mode", all.jvp_out, own.jvp_out, 0, starts_q_[n]);
      same("tangent", all.out_tangent, own.out_tangent, 0, starts_q_[n]);
      same("dq", all.dq, own.dq, 0, starts_q_[n]);
      same("dk", all.dk, own.dk, 0, starts_k_[n]);
      same("dv", all.dv, own.dv, 0, starts_k_[n]);
    }
  }

 private:
  static constexpr Index kHeads = 4, kSize = 12, kValueSize = 9;

  struct Outputs {
    Outputs(Index rows, Index keys)
        : out(make<T>({rows, kHeads, kValueSize})),
          jvp_out(make<T>({rows, kHeads, kValueSize})),
          out_tangent(make<T>({rows, kHeads, kValueSize})),
          dq(make<T>({rows, kHeads, kSize})),
          dk(make<T>({keys, kHeads / 2, kSize})),
          dv(make<T>({keys, kHeads / 2, kValueSize})),
          lse(make<Wide<T>>({kHeads, rows})) {}
    Tensor<T> out, jvp_out, out_tangent, dq, dk, dv;
    Tensor<Wide<T>> lse;
  };

  template <class Element>
  static Tensor<Element> make(const Shape& shape) {
    return Tensor<Element>(shape, Layout::contiguous, LastAxis::contiguous, placement(0));
  }
  Tensor<T> uniform(const Shape& shape) {
    Tensor<T> t(shape, Layout::padded, LastAxis::contiguous, placement(1));
    for (Index i = 0; i < t.size(); ++i) t[i] = static_cast<T>(random_.symmetric());
    return t;
  }

  cattn_attention problem(const Outputs& o, Index window, bool causal, double dropout) const {
    cattn_attention p;
    cattn_attention_init(&p);
    if (causal) p.flags |= CATTN_CAUSAL;
    p.window_left = window;
    p.dropout = dropout;
    p.seed = 77;
    p.num_threads = 3;
    p.executor = options().openmp ? nullptr : &thread_executor();
    p.q = q_.array(), p.k = k_.array(), p.v = v_.array(), p.sinks = sinks_.array();
    p.q_tangent = q_move_.array();
    p.k_tangent = k_move_.array();
    p.v_tangent = v_move_.array();
    p.out = o.out.array(), p.lse = o.lse.array(), p.out_tangent = o.out_tangent.array();
    p.dout = dout_.array();
    p.dq = o.dq.array(), p.dk = o.dk.array(), p.dv = o.dv.array();
    return p;
  }

  static void run(cattn_attention& p, const Outputs& o, const std::string& name) {
    check(cattn_attention_forward(&p) == CATTN_OK, name + ": " + cattn_error_message());
    check(cattn_attention_backward(&p) == CATTN_OK, name + ": " + cattn_error_message());
    p.out = o.jvp_out.array();
    check(cattn_attention_jvp(&p) == CATTN_OK, name + ": " + cattn_error_message());
  }

  // Rows [first, first + count) of an array.
  static void cut(cattn_array& a, Index first, Index count) {
    a.data = static_cast<T*>(a.data) + first * a.strides[0];
    a.shape[0] = count;
  }

  // Whether `part` is `whole` from `first` on along an axis.
  template <class Element>
  static bool part_is(const Tensor<Element>& whole, const Tensor<Element>& part, int axis,
                      Index first) {
    const auto at = static_cast<size_t>(axis);
    const Index inner = product({part.shape().begin() + axis + 1, part.shape().end()});
    const Index length = part.shape()[at] * inner;
    for (Index i = 0; i < part.size(); ++i) {
      const Index from = i / length * whole.shape()[at] * inner + first * inner + i % length;
      if (std::memcmp(&part[i], &whole[from], sizeof(Element)) != 0) return false;
    }
    return true;
  }

  Random random_;
  const std::vector<int64_t> starts_q_, starts_k_;
  Tensor<int64_t> cu_q_, cu_k_;
  Tensor<T> q_, k_, v_, dout_, q_move_, k_move_, v_move_, sinks_;
};

template <class T>
void test_packed_as(const std::string& isa) {
  const std::vector<int64_t> starts[][2] = {
      {{0, 70}, {0, 130}},
      {{0, 3, 3, 52, 150, 150}, {0, 9, 12, 12, 140, 203}},  // some empty on either side
      {{0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}},
      {{0, 0, 0}, {0, 0, 0}},
  };
  for (const auto& [starts_q, starts_k] : starts) {
    const Packed<T> packed(starts_q, starts_k, 5);
    const std::string name = isa + " packed " + std::to_string(starts_q.back()) + " of " +
                             std::to_string(sizeof(T)) + " bytes";
    packed.compare(name, -1, false, 0);
    packed.compare(name + " causal", -1, true, 0);
    packed.compare(name + " window", 20, true, 0);
  }
  // Only the first sequence drops like a batch entry alone: it has the same number.
  Packed<T>({0, 70}, {0, 130}, 6).compare(isa + " packed, dropout", -1, false, 0.3);
}

void test_packed() {
  for (const std::string& isa : available_isas()) {
    cattn_set_isa(isa.c_str());
    test_packed_as<float>(isa);
    test_packed_as<double>(isa);
    test_packed_as<Half>(isa);
    test_packed_as<Brain>(isa);
  }
}

// ---- dropout masks and rotary embedding ----

// Which weights are kept does not depend on the instruction set.
void test_dropout_mask() {
  for (const Index keys : {1, 63, 64, 65, 1111}) {
    std::vector<Tensor<uint8_t>> masks;
    for (const std::string& isa : available_isas()) {
      cattn_set_isa(isa.c_str());
      masks.emplace_back(Shape{2, 3, 5, keys}, Layout::contiguous, LastAxis::any, placement(0));
      const cattn_array array = masks.back().array();
      check(cattn_dropout_mask(0.4, 99, &array) == CATTN_OK, isa + " dropout mask");
      check(masks.back().same_bits(masks.front()), isa + ": another dropout mask");
    }
  }
}

// Pairs turned by tables, the last feature left alone.
template <class T>
void test_rope_as(const std::string& isa, Index pairs, bool interleaved, bool inverse) {
  constexpr Index heads = 3, rows = 70;
  const Index size = 2 * pairs + 1;
  Random random(static_cast<uint64_t>(pairs));
  const auto uniform = [&]<class Element>(Element, const Shape& shape, Layout layout) {
    Tensor<Element> t(shape, layout, LastAxis::contiguous, placement(static_cast<int>(pairs)));
    for (Index i = 0; i < t.size(); ++i) t[i] = static_cast<Element>(random.symmetric());
    return t;
  };
  const Tensor<T> x = uniform(T{}, {heads, rows, size}, Layout::padded);
  const auto cos = uniform(Wide<T>{}, {rows, pairs}, Layout::contiguous);
  const auto sin = uniform(Wide<T>{}, {rows, pairs}, Layout::padded);
  const Tensor<T> out(x.shape(), Layout::padded, LastAxis::contiguous, placement(0));
  cattn_rope problem;
  cattn_rope_init(&problem);
  problem.interleaved = interleaved;
  problem.inverse = inverse;
  problem.num_threads = 2;
  problem.executor = options().openmp ? nullptr : &thread_executor();
  problem.x = x.array();
  problem.cos = cos.array();
  problem.sin = sin.array();
  problem.out = out.array();
  const std::string name = isa + " rope of " + std::to_string(pairs) + " pairs of " +
                           std::to_string(sizeof(T)) + " bytes";
  check(cattn_rope_apply(&problem) == CATTN_OK, name + ": " + cattn_error_message());
  check(out.gaps_untouched(), name + ": wrote between the rows");

  const auto precision = cattn::test::precision<T>();
  reference::Array expected = x.template expanded<double>(x.shape()), bound(expected.size(), 0.0);
  for (Index row = 0; row < heads * rows; ++row) {
    for (Index t = 0; t < pairs; ++t) {
      const auto first = static_cast<size_t>(row * size + (interleaved ? 2 * t : t));
      const size_t second = first + static_cast<size_t>(interleaved ? 1 : pairs);
      const Index turn = row % rows * pairs + t;
      const double c = cos[turn], s = inverse ? -sin[turn] : sin[turn];
      const double x1 = expected[first], x2 = expected[second];
      expected[first] = x1 * c - x2 * s;
      expected[second] = x1 * s + x2 * c;
      bound[first] = 4 * precision.u * (std::abs(x1 * c) + std::abs(x2 * s)) + precision.tiny;
      bound[second] = 4 * precision.u * (std::abs(x1 * s) + std::abs(x2 * c)) + precision.tiny;
    }
  }
  add_last_rounding(bound, expected, precision);
  const double ratio = largest_ratio(out.template expanded<double>(out.shape()), expected, bound);
  check(ratio <= 1, name + " has " + ratio_text(ratio));
}

void test_rope() {
  for (const std::string& isa : available_isas()) {
    cattn_set_isa(isa.c_str());
    for (const Index pairs : {1, 3, 8, 17, 32}) {
      for (const bool interleaved : {false, true}) {
        for (const bool inverse : {false, true}) {
          test_rope_as<float>(isa, pairs, interleaved, inverse);
          test_rope_as<double>(isa, pairs, interleaved, inverse);
          test_rope_as<Half>(isa, pairs, interleaved, inverse);
          test_rope_as<Brain>(isa, pairs, interleaved, inverse);
        }
      }
    }
  }
}

}  // namespace

void test_variants() {
  test_options();
  test_nonfinite();
  test_packed();
  test_dropout_mask();
  test_rope();
}

}  // namespace cattn::test
