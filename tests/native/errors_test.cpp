// Bad problems: the right status, a message that names the argument, and nothing written.
#include <cstring>
#include <functional>
#include <limits>

#include "attention_case.h"
#include "check.h"
#include "tests.h"

namespace cattn::test {
namespace {

constexpr Index kHuge = std::numeric_limits<int64_t>::max();

using Change = std::function<void(cattn_attention&)>;

// A problem in good order (2 batch entries, 4 query heads, 2 kv heads, 3 queries, 5 keys, D 6,
// Dv 7) for a Change to spoil.
class Good {
 public:
  Good() {
    for (const Tensor<float>* t : {&q_, &k_, &v_, &dout_, &bias_}) {
      for (Index i = 0; i < t->size(); ++i) (*t)[i] = 0.5f;
    }
    for (Index i = 0; i < mask_.size(); ++i) mask_[i] = 1;
    offset_[0] = 0;
    cattn_attention_init(&problem);
    problem.q = q_.array();
    problem.k = k_.array();
    problem.v = v_.array();
    problem.out = out_.array();
    problem.lse = lse_.array();
    problem.weights = weights_.array();
    problem.mask = mask_.array();
    problem.bias = bias_.array();
    problem.causal_offset = offset_.array();
    problem.flags = CATTN_CAUSAL;
    problem.dout = dout_.array();
    problem.dlse = dlse_.array();
    problem.dq = dq_.array();
    problem.dk = dk_.array();
    problem.dv = dv_.array();
    problem.dbias = dbias_.array();
  }

  bool outputs_untouched() const {
    for (const Tensor<float>* t : {&out_, &lse_, &weights_, &dq_, &dk_, &dv_, &dbias_}) {
      const auto* const bytes = reinterpret_cast<const unsigned char*>(t->data());
      for (size_t i = 0; i < static_cast<size_t>(t->size()) * sizeof(float); ++i) {
        if (bytes[i] != Memory::kPoison) return false;
      }
    }
    return true;
  }

  cattn_attention problem;

 private:
  template <class T>
  static Tensor<T> make(const Shape& shape) {
    return Tensor<T>(shape, Layout::contiguous, LastAxis::any, Placement::heap);
  }
  Tensor<float> q_ = make<float>({2, 4, 3, 6}), k_ = make<float>({2, 2, 5, 6}),
                v_ = make<float>({2, 2, 5, 7}), out_ = make<float>({2, 4, 3, 7}),
                lse_ = make<float>({2, 4, 3}), weights_ = make<float>({2, 4, 3, 5}),
                bias_ = make<float>({3, 5}), dout_ = make<float>({2, 4, 3, 7}),
                dlse_ = make<float>({2, 4, 3}), dq_ = make<float>({2, 4, 3, 6}),
                dk_ = make<float>({2, 2, 5, 6}), dv_ = make<float>({2, 2, 5, 7}),
                dbias_ = make<float>({3, 5});
  Tensor<uint8_t> mask_ = make<uint8_t>({3, 5});
  Tensor<int64_t> offset_ = make<int64_t>({});
};

using Call = cattn_status (*)(const cattn_attention*);

void expect_error(Call call, const std::string& what, cattn_status status, const char* fragment,
                  const Change& change) {
  Good good;
  change(good.problem);
  const cattn_status got = call(&good.problem);
  const std::string message = got == CATTN_OK ? "" : cattn_error_message();
  check(got == status, what + ": status " + std::to_string(got) + ", expected " +
                           std::to_string(status) + " (" + message + ")");
  check(message.find(fragment) != std::string::npos,
        what + ": '" + message + "' does not say '" + fragment + "'");
  check(good.outputs_untouched(), what + ": an output was written");
}

void forward_error(const std::string& what, cattn_status status, const char* fragment,
                   const Change& change) {
  expect_error(cattn_attention_forward, what, status, fragment, change);
  expect_error(cattn_attention_backward, what + " (backward)", status, fragment, change);
}

void backward_error(const std::string& what, cattn_status status, const char* fragment,
                    const Change& change) {
  expect_error(cattn_attention_backward, what, status, fragment, change);
}

void test_missing() {
  check(cattn_attention_forward(nullptr) == CATTN_ERROR_VALUE, "forward of no problem");
  check(cattn_attention_backward(nullptr) == CATTN_ERROR_VALUE, "backward of no problem");
  check(cattn_attention_shapes(nullptr, nullptr, nullptr, nullptr) == CATTN_ERROR_VALUE,
        "shapes of no problem");
  for (const uint32_t size : {0u, 1u, static_cast<uint32_t>(sizeof(cattn_attention)) - 1,
                              static_cast<uint32_t>(sizeof(cattn_attention)) + 8, ~0u}) {
    forward_error("struct_size " + std::to_string(size), CATTN_ERROR_VALUE, "cattn_attention_init",
                  [&](cattn_attention& p) { p.struct_size = size; });
  }
  forward_error("no q", CATTN_ERROR_VALUE, "q: is required",
                [](cattn_attention& p) { p.q.data = nullptr; });
  forward_error("no k", CATTN_ERROR_VALUE, "k: is required",
                [](cattn_attention& p) { p.k.data = nullptr; });
  forward_error("no v", CATTN_ERROR_VALUE, "v: is required",
                [](cattn_attention& p) { p.v.data = nullptr; });
  forward_error("no out", CATTN_ERROR_VALUE, "out: is required",
                [](cattn_attention& p) { p.out.data = nullptr; });
  backward_error("no dout", CATTN_ERROR_VALUE, "dout: is required",
                 [](cattn_attention& p) { p.dout.data = nullptr; });
  backward_error("no lse", CATTN_ERROR_VALUE, "lse: is required",
                 [](cattn_attention& p) { p.lse.data = nullptr; });
  backward_error("dbias without bias", CATTN_ERROR_VALUE, "dbias",
                 [](cattn_attention& p) { p.bias.data = nullptr; });
}

void test_dtypes() {
  for (const int32_t dtype : {0, -1, 99, int32_t{CATTN_BOOL}, int32_t{CATTN_INT64}}) {
    forward_error("q of dtype " + std::to_string(dtype), CATTN_ERROR_TYPE, "q: dtype",
                  [&](cattn_attention& p) { p.q.dtype = dtype; });
  }
  struct Named {
    const char* name;
    cattn_array cattn_attention::* array;
    int32_t wrong;
    bool backward_only;
  };
  const Named arrays[] = {
      {"k", &cattn_attention::k, CATTN_FLOAT64, false},
      {"v", &cattn_attention::v, CATTN_FLOAT64, false},
      {"out", &cattn_attention::out, CATTN_FLOAT64, false},
      {"lse", &cattn_attention::lse, CATTN_FLOAT64, false},
      {"mask", &cattn_attention::mask, CATTN_FLOAT32, false},
      {"bias", &cattn_attention::bias, CATTN_FLOAT64, false},
      {"bias", &cattn_attention::bias, CATTN_BOOL, false},
      {"causal_offset", &cattn_attention::causal_offset, CATTN_FLOAT64, false},
      {"dout", &cattn_attention::dout, CATTN_FLOAT64, true},
      {"dlse", &cattn_attention::dlse, CATTN_INT64, true},
      {"dq", &cattn_attention::dq, CATTN_FLOAT64, true},
      {"dk", &cattn_attention::dk, 0, true},
      {"dv", &cattn_attention::dv, CATTN_FLOAT64, true},
      {"dbias", &cattn_attention::dbias, CATTN_FLOAT64, true},
  };
  for (const Named& a : arrays) {
    const std::string fragment = std::string(a.name) + ": dtype";
    (a.backward_only ? backward_error : forward_error)(
        std::string(a.name) + " of another dtype", CATTN_ERROR_TYPE, fragment.c_str(),
        [&](cattn_attention& p) { (p.*a.array).dtype = a.wrong; });
  }
  expect_error(cattn_attention_forward, "weights of another dtype", CATTN_ERROR_TYPE,
               "weights: dtype", [](cattn_attention& p) { p.weights.dtype = CATTN_FLOAT64; });
}

void test_shapes() {
  struct Named {
    const char* name;
    cattn_array cattn_attention::* array;
    bool backward_only;
  };
  const Named arrays[] = {
      {"q", &cattn_attention::q, false},
      {"k", &cattn_attention::k, false},
      {"v", &cattn_attention::v, false},
      {"out", &cattn_attention::out, false},
      {"lse", &cattn_attention::lse, false},
      {"mask", &cattn_attention::mask, false},
      {"bias", &cattn_attention::bias, false},
      {"causal_offset", &cattn_attention::causal_offset, false},
      {"dout", &cattn_attention::dout, true},
      {"dlse", &cattn_attention::dlse, true},
      {"dq", &cattn_attention::dq, true},
      {"dk", &cattn_attention::dk, true},
      {"dv", &cattn_attention::dv, true},
      {"dbias", &cattn_attention::dbias, true},
  };
  for (const Named& a : arrays) {
    const auto error = a.backward_only ? backward_error : forward_error;
    const std::string name = a.name;
    for (const int32_t ndim : {-1, CATTN_MAX_NDIM + 1, std::numeric_limits<int32_t>::max(),
                               std::numeric_limits<int32_t>::min()}) {
      error(name + " with " + std::to_string(ndim) + " axes", CATTN_ERROR_VALUE, a.name,
            [&](cattn_attention& p) { (p.*a.array).ndim = ndim; });
    }
    // Every axis in turn.
    const int32_t ndim = (Good().problem.*a.array).ndim;
    for (int32_t axis = 0; axis < ndim; ++axis) {
      const std::string place = name + " axis " + std::to_string(axis);
      for (const Index n : {Index{-1}, std::numeric_limits<int64_t>::min()}) {
        error(place + " negative", CATTN_ERROR_VALUE, a.name,
              [&](cattn_attention& p) { (p.*a.array).shape[axis] = n; });
      }
      for (const Index n : {kHuge, Index{1} << 61, Index{1} << 40}) {
        error(place + " of size " + std::to_string(n), CATTN_ERROR_VALUE, "",
              [&](cattn_attention& p) { (p.*a.array).shape[axis] = n; });
      }
      error(place + " of size 9", CATTN_ERROR_VALUE, "",
            [&](cattn_attention& p) { (p.*a.array).shape[axis] = 9; });
    }
    if (ndim == 0) continue;
    // Offsets within an array are products of strides and indices.
    for (const Index stride : {kHuge, Index{1} << 62, std::numeric_limits<int64_t>::min()}) {
      error(name + " with stride " + std::to_string(stride), CATTN_ERROR_VALUE, a.name,
            [&](cattn_attention& p) { (p.*a.array).strides[0] = stride; });
    }
  }
  for (const Named& a : {arrays[0], arrays[1], arrays[2], arrays[3]}) {
    forward_error(std::string(a.name) + " not contiguous", CATTN_ERROR_VALUE, "contiguous",
                  [&](cattn_attention& p) { (p.*a.array).strides[3] = 2; });
    forward_error(std::string(a.name) + " of one axis", CATTN_ERROR_VALUE, a.name,
                  [&](cattn_attention& p) { (p.*a.array).ndim = 1; });
  }
  forward_error("no head size", CATTN_ERROR_VALUE, "head size",
                [](cattn_attention& p) { p.q.shape[3] = p.k.shape[3] = 0; });
  forward_error("no value size", CATTN_ERROR_VALUE, "value size",
                [](cattn_attention& p) { p.v.shape[3] = p.out.shape[3] = 0; });
  forward_error("3 query heads for 2 kv heads", CATTN_ERROR_VALUE, "multiple",
                [](cattn_attention& p) { p.q.shape[1] = 3; });
  forward_error("query heads but no kv heads", CATTN_ERROR_VALUE, "multiple",
                [](cattn_attention& p) { p.k.shape[1] = p.v.shape[1] = 0; });
  forward_error("batch entries too many to count", CATTN_ERROR_VALUE, "too large",
                [](cattn_attention& p) {
                  // Views of stride 0 whose product overflows although no array does.
                  p.q.ndim = p.k.ndim = 6;
                  const Index q[] = {1, Index{1} << 40, 1, 4, 3, 6};
                  const Index k[] = {Index{1} << 40, 1, 1, 2, 5, 6};
                  for (int i = 0; i < 6; ++i) {
                    p.q.shape[i] = q[i], p.k.shape[i] = k[i];
                    p.q.strides[i] = p.k.strides[i] = i == 5;
                  }
                });
}

void test_options() {
  for (const double scale :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    forward_error("a scale that is not finite", CATTN_ERROR_VALUE, "scale",
                  [&](cattn_attention& p) {
                    p.flags |= CATTN_HAS_SCALE;
                    p.scale = scale;
                  });
  }
  for (const int32_t threads : {-1, CATTN_MOST_THREADS + 1, INT32_MAX}) {
    forward_error("num_threads " + std::to_string(threads), CATTN_ERROR_VALUE, "num_threads",
                  [&](cattn_attention& p) { p.num_threads = threads; });
  }
  forward_error("offset without causal", CATTN_ERROR_VALUE, "causal_offset",
                [](cattn_attention& p) { p.flags = 0; });
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  for (const double softcap : {0.0, -1.0, kNaN, std::numeric_limits<double>::infinity()}) {
    forward_error("softcap " + std::to_string(softcap), CATTN_ERROR_VALUE, "softcap: is",
                  [&](cattn_attention& p) {
                    p.flags |= CATTN_HAS_SOFTCAP;
                    p.softcap = softcap;
                  });
  }
  for (const double dropout : {-0.1, 1.0, kNaN}) {
    forward_error("dropout " + std::to_string(dropout), CATTN_ERROR_VALUE, "dropout: is",
                  [&](cattn_attention& p) { p.dropout = dropout; });
  }
  for (const int64_t side : {int64_t{-2}, std::numeric_limits<int64_t>::min()}) {
    forward_error("a window of " + std::to_string(side), CATTN_ERROR_VALUE, "window: contains",
                  [&](cattn_attention& p) { p.window_left = side; });
    forward_error("a window of " + std::to_string(side), CATTN_ERROR_VALUE, "window: contains",
                  [&](cattn_attention& p) { p.window_right = side; });
  }
  forward_error("an option of another version", CATTN_ERROR_VALUE, "flags",
                [](cattn_attention& p) { p.flags |= 1u << 31; });
  for (const int32_t precision : {-1, 3, std::numeric_limits<int32_t>::max()}) {
    forward_error("precision " + std::to_string(precision), CATTN_ERROR_VALUE, "precision: is",
                  [&](cattn_attention& p) { p.precision = precision; });
  }
  // What is packed for all of the call: the keys in the forward, the queries in the backward. Two
  // rows of memory seen as 2^45 of them.
  const auto many = [](cattn_attention& p, std::initializer_list<cattn_array*> arrays) {
    for (cattn_array* a : arrays) {
      a->shape[2] = Index{1} << 45;
      a->strides[0] = a->strides[1] = a->strides[2] = 0;
    }
    p.mask.data = p.bias.data = p.weights.data = p.dbias.data = nullptr;
    p.flags = 0;
    p.causal_offset.data = nullptr;
  };
  expect_error(cattn_attention_forward, "a workspace that no machine has", CATTN_ERROR_MEMORY, "",
               [&](cattn_attention& p) { many(p, {&p.k, &p.v}); });
  backward_error(
      "a workspace that no machine has (backward)", CATTN_ERROR_MEMORY, "",
      [&](cattn_attention& p) { many(p, {&p.q, &p.out, &p.dout, &p.dq, &p.lse, &p.dlse}); });
}

// Parameters of heads and entries, given as these values of this shape.
template <class T>
class Parameter {
 public:
  Parameter(const Shape& shape, std::initializer_list<double> values)
      : tensor_(shape, Layout::contiguous, LastAxis::any, placement(0)) {
    for (Index i = 0; i < tensor_.size(); ++i) {
      tensor_[i] = static_cast<T>(values.begin()[static_cast<size_t>(i) % values.size()]);
    }
  }
  cattn_array array() const { return tensor_.array(); }

 private:
  Tensor<T> tensor_;
};

void test_parameters() {
  const auto given = [](const char* what, cattn_status status, const char* fragment,
                        cattn_array cattn_attention::* member, const cattn_array& array) {
    forward_error(what, status, fragment, [&](cattn_attention& p) { p.*member = array; });
  };
  const Parameter<float> three({3}, {1}), matrix({2, 4}, {1}), wrong_entries({3, 4}, {1});
  const Parameter<double> wide({4}, {1});
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  const Parameter<float> not_finite({4}, {1, 0, kNaN, 2});
  const auto slopes = &cattn_attention::alibi_slopes, sinks = &cattn_attention::sinks;
  given("slopes of 3 heads", CATTN_ERROR_VALUE, "alibi_slopes: shape (3,)", slopes, three.array());
  given("slopes of 3 entries", CATTN_ERROR_VALUE, "alibi_slopes", slopes, wrong_entries.array());
  given("slopes that are not finite", CATTN_ERROR_VALUE, "alibi_slopes: contains", slopes,
        not_finite.array());
  given("float64 slopes", CATTN_ERROR_TYPE, "alibi_slopes: dtype", slopes, wide.array());
  given("sinks of 3 heads", CATTN_ERROR_VALUE, "sinks: shape (3,)", sinks, three.array());
  given("sinks of entries", CATTN_ERROR_VALUE, "sinks: shape (2, 4)", sinks, matrix.array());
  given("float64 sinks", CATTN_ERROR_TYPE, "sinks: dtype", sinks, wide.array());

  const Parameter<int64_t> negative({2}, {5, -1}), too_long({2}, {6, 0}), of_three({3}, {1});
  const auto lengths = &cattn_attention::kv_lengths;
  given("a negative length", CATTN_ERROR_VALUE, "kv_lengths: contains -1", lengths,
        negative.array());
  given("a length of 6", CATTN_ERROR_VALUE, "kv_lengths: contains 6", lengths, too_long.array());
  given("lengths of 3 entries", CATTN_ERROR_VALUE, "kv_lengths", lengths, of_three.array());
  given("float lengths", CATTN_ERROR_TYPE, "kv_lengths: dtype", lengths, three.array());
  given("cu_seqlens_q alone", CATTN_ERROR_VALUE, "", &cattn_attention::cu_seqlens_q,
        of_three.array());

  const Tensor<float> dsinks({4}, Layout::contiguous, LastAxis::any, placement(0));
  backward_error("dsinks without sinks", CATTN_ERROR_VALUE, "dsinks",
                 [&](cattn_attention& p) { p.dsinks = dsinks.array(); });
}

// q, k, v and out (5 rows, 2 heads, size 3) of packed sequences that start here and there.
void test_packed() {
  const Tensor<float> rows({5, 2, 3}, Layout::contiguous, LastAxis::contiguous, placement(0));
  const auto error = [&](const std::string& what, const char* fragment,
                         std::initializer_list<double> starts_q,
                         std::initializer_list<double> starts_k, const Change& change = {}) {
    const Parameter<int64_t> cu_q({static_cast<Index>(starts_q.size())}, starts_q);
    const Parameter<int64_t> cu_k({static_cast<Index>(starts_k.size())}, starts_k);
    cattn_attention p;
    cattn_attention_init(&p);
    p.q = p.k = p.v = p.out = rows.array();
    p.cu_seqlens_q = cu_q.array();
    p.cu_seqlens_k = cu_k.array();
    if (change) change(p);
    const bool refused = cattn_attention_forward(&p) == CATTN_ERROR_VALUE;
    check(refused, what + " is an error");
    const std::string message = refused ? cattn_error_message() : "";
    check(message.find(fragment) != std::string::npos, what + ": '" + message + "'");
  };
  error("a start after 0", "cu_seqlens_q: element 0 is 1", {1, 5}, {0, 5});
  error("a start before 0", "cu_seqlens_k: element 0 is -1", {0, 5}, {-1, 5});
  error("starts that decrease", "cu_seqlens_k: element 2 is 2", {0, 1, 3, 5}, {0, 3, 2, 5});
  error("an end past the rows", "cu_seqlens_q: element 1 is 6", {0, 6}, {0, 5});
  error("an end before the rows", "cu_seqlens_k: element 1 is 4", {0, 5}, {0, 4});
  error("an end far away", "cu_seqlens_k: element 1 is", {0, 5}, {0, 0x1p62});
  error("other numbers of sequences", "cu_seqlens_k", {0, 5}, {0, 5, 5});
  error("no sequences and rows", "cu_seqlens_q: element 0 is 0", {0}, {0});
  error("no k starts", "cu_seqlens_k: is required", {0, 5}, {0, 5},
        [](cattn_attention& p) { p.cu_seqlens_k.data = nullptr; });
  error("two axes", "q: shape", {0, 5}, {0, 5}, [](cattn_attention& p) { p.q.ndim = 2; });
  const Parameter<int64_t> lengths({1}, {5});
  error("lengths as well", "kv_lengths", {0, 5}, {0, 5},
        [&](cattn_attention& p) { p.kv_lengths = lengths.array(); });
}

void test_tangents() {
  Good good;
  check(cattn_attention_jvp(nullptr) == CATTN_ERROR_VALUE, "forward mode of no problem");
  check(cattn_attention_jvp(&good.problem) == CATTN_ERROR_VALUE, "no tangents");
  check(std::strstr(cattn_error_message(), "dq, the tangent of q: is required") != nullptr,
        cattn_error_message());
  Good other;
  const auto with = [&](const char* fragment, const Change& change) {
    cattn_attention p = good.problem;
    p.q_tangent = other.problem.q;
    p.k_tangent = other.problem.k;
    p.v_tangent = other.problem.v;
    p.out_tangent = other.problem.out;
    change(p);
    const bool refused = cattn_attention_jvp(&p) != CATTN_OK;
    check(refused && std::strstr(cattn_error_message(), fragment) != nullptr,
          std::string("forward mode: ") + cattn_error_message() + " is not about " + fragment);
    check(good.outputs_untouched() && other.outputs_untouched(), "forward mode wrote something");
  };
  with("dq, the tangent of q: shape", [](cattn_attention& p) { p.q_tangent.shape[2] = 2; });
  with("dk, the tangent of k: dtype",
       [](cattn_attention& p) { p.k_tangent.dtype = CATTN_FLOAT64; });
  with("dv, the tangent of v: shape", [](cattn_attention& p) { p.v_tangent = p.k; });
  with("out_tangent: is required", [](cattn_attention& p) { p.out_tangent.data = nullptr; });
  with("out_tangent", [](cattn_attention& p) { p.out_tangent.shape[3] = 6; });
}

void test_dropout_and_rope() {
  // A mask is drawn without an executor: by one thread where OpenMP's are not to be used.
  cattn_set_num_threads(options().openmp ? 0 : 1);
  const Tensor<uint8_t> kept({2, 3, 5}, Layout::contiguous, LastAxis::any, placement(0));
  const cattn_array mask = kept.array();
  check(cattn_dropout_mask(1, 0, &mask) == CATTN_ERROR_VALUE, "a mask that keeps nothing");
  cattn_array wrong = mask;
  wrong.dtype = CATTN_FLOAT32;
  check(cattn_dropout_mask(0.5, 0, &wrong) == CATTN_ERROR_TYPE, "a float dropout mask");
  const auto refused = [](const cattn_array* array, const char* message) {
    check(cattn_dropout_mask(0.5, 0, array) == CATTN_ERROR_VALUE, message);
    check(std::strstr(cattn_error_message(), message) != nullptr, cattn_error_message());
  };
  refused(nullptr, "mask: is required");
  wrong = mask;
  wrong.data = nullptr;
  refused(&wrong, "mask: is required");
  for (const int axis : {0, 2}) {
    wrong = mask;
    wrong.strides[axis] *= 2;
    refused(&wrong, "mask: must be contiguous");
  }
  check(kept[0] == Memory::kPoison, "a refused dropout mask was written");
  check(cattn_dropout_mask(0.5, 0, &mask) == CATTN_OK && kept[29] <= 1, "a dropout mask");

  const Tensor<float> x({2, 5, 6}, Layout::contiguous, LastAxis::contiguous, placement(0));
  const Tensor<float> table({5, 3}, Layout::contiguous, LastAxis::contiguous, placement(1));
  const auto rope = [&](const std::function<void(cattn_rope&)>& change) {
    cattn_rope p;
    cattn_rope_init(&p);
    p.x = p.out = x.array();
    p.cos = p.sin = table.array();
    change(p);
    return cattn_rope_apply(&p);
  };
  check(cattn_rope_apply(nullptr) == CATTN_ERROR_VALUE, "rope of no problem");
  check(rope([](cattn_rope&) {}) == CATTN_OK, "rope in place");
  check(rope([](cattn_rope& p) { p.struct_size = 8; }) == CATTN_ERROR_VALUE, "rope's version");
  check(rope([](cattn_rope& p) { p.cos.data = nullptr; }) == CATTN_ERROR_VALUE, "rope, no cos");
  check(rope([](cattn_rope& p) { p.num_threads = -1; }) == CATTN_ERROR_VALUE, "rope, threads");
  check(rope([](cattn_rope& p) { p.x.dtype = CATTN_INT64; }) == CATTN_ERROR_TYPE, "integer rope");
  check(rope([](cattn_rope& p) { p.x.dtype = p.out.dtype = CATTN_FLOAT64; }) == CATTN_ERROR_TYPE,
        "float32 tables of float64");
  check(rope([](cattn_rope& p) { p.cos.shape[0] = p.sin.shape[0] = 4; }) == CATTN_ERROR_VALUE,
        "rope with 4 rows of tables for 5");
  check(rope([](cattn_rope& p) { p.x.shape[2] = p.out.shape[2] = 5; }) == CATTN_ERROR_VALUE,
        "rope with more pairs than features");
  check(rope([](cattn_rope& p) { p.out.shape[1] = 4; }) == CATTN_ERROR_VALUE, "rope's output");
  cattn_set_num_threads(0);
}

void test_settings() {
  const std::string isa = cattn_isa();
  for (const char* name : {"", "AVX2", "avx", "avx512 ", static_cast<const char*>(nullptr)}) {
    check(cattn_set_isa(name) == CATTN_ERROR_VALUE, "an instruction set that does not exist");
    check(isa == cattn_isa(), "a failed cattn_set_isa changed it");
  }
  check(std::strstr(cattn_error_message(), "generic") != nullptr,
        "the message lists what there is");
  check(cattn_available_isa(-1) == nullptr && cattn_available_isa(1000) == nullptr,
        "no instruction set outside the list");
  check(std::string(cattn_available_isa(0)) == "generic", "generic runs everywhere");

  const int32_t usual = cattn_get_num_threads();
  check(usual >= 1, "at least one thread");
  for (const int32_t threads : {-1, CATTN_MOST_THREADS + 1}) {
    check(cattn_set_num_threads(threads) == CATTN_ERROR_VALUE && cattn_get_num_threads() == usual,
          "as many threads as " + std::to_string(threads));
  }
  check(cattn_set_num_threads(5) == CATTN_OK && cattn_get_num_threads() == 5, "five threads");
  check(cattn_set_num_threads(0) == CATTN_OK && cattn_get_num_threads() == usual,
        "back to the default");
}

void test_described_shapes() {
  Good good;
  cattn_array out{}, lse{}, weights{};
  check(cattn_attention_shapes(&good.problem, &out, &lse, &weights) == CATTN_OK, "shapes");
  const auto is = [](const cattn_array& a, const Shape& shape) {
    return a.dtype == CATTN_FLOAT32 && Shape(a.shape, a.shape + a.ndim) == shape;
  };
  check(is(out, {2, 4, 3, 7}), "shape of out");
  check(is(lse, {2, 4, 3}), "shape of lse");
  check(is(weights, {2, 4, 3, 5}), "shape of weights");
  check(cattn_attention_shapes(&good.problem, nullptr, nullptr, nullptr) == CATTN_OK,
        "shapes of nothing");
  check(good.problem.precision == CATTN_PRECISION_HIGHEST, "the precision of a new problem");
  check(cattn_attention_forward(&good.problem) == CATTN_OK &&
            cattn_attention_backward(&good.problem) == CATTN_OK,
        std::string("the problem in good order: ") + cattn_error_message());
}

}  // namespace

void test_errors() {
  test_missing();
  test_dtypes();
  test_shapes();
  test_options();
  test_parameters();
  test_packed();
  test_tangents();
  test_dropout_and_rope();
  test_settings();
  test_described_shapes();
}

}  // namespace cattn::test
