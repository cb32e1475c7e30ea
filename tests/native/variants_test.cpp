// Every option and every type in memory through the C interface, on every instruction set, against
// the plain kernels in float64 (which the Python tests hold against the reference).
#include <cmath>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/scalar.h"
#include "kernels/half.h"
#include "tests.h"

namespace cattn::test {
namespace {

constexpr Index kHeads = 4, kKvHeads = 2, kRows = 70, kKeys = 150, kSize = 19, kValueSize = 37;
constexpr Index kStarts[] = {0, 9, 9, 70}, kKeyStarts[] = {0, 30, 40, 150};

// One option set. Packed sequences take the rows as they are, else there is one batch entry.
struct OptionSet {
  const char* name;
  bool packed = false, causal = false, mask = false, bias = false, alibi = false, sinks = false,
       length = false;
  Index left = -1, right = -1;
  double softcap = 0, dropout = 0;
};

// Numbers of some dtype in memory of exactly their size, and as float64.
struct Buffer {
  int32_t dtype;
  std::vector<uint8_t> bytes;
  std::vector<Index> shape;

  Buffer(int32_t type, std::vector<Index> sizes) : dtype(type), shape(std::move(sizes)) {
    Index count = 1;
    for (const Index n : shape) count *= n;
    bytes.resize(static_cast<size_t>(count * dtype_size(dtype)));
  }
  Index size() const { return static_cast<Index>(bytes.size()) / dtype_size(dtype); }
  void set(Index i, double x) {
    store_scalar(bytes.data() + i * dtype_size(dtype), storage_of(dtype), x);
  }
  double get(Index i) const {
    return load_scalar(bytes.data() + i * dtype_size(dtype), storage_of(dtype));
  }
  cattn_array array() const {
    cattn_array a{};
    static uint8_t nothing;
    a.data = bytes.empty() ? &nothing : const_cast<uint8_t*>(bytes.data());
    a.dtype = dtype;
    a.ndim = static_cast<int32_t>(shape.size());
    Index stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      a.shape[i] = shape[i];
      a.strides[i] = stride;
      stride *= shape[i];
    }
    return a;
  }
  // The same numbers in another dtype.
  Buffer as(int32_t type) const {
    Buffer other(type, shape);
    for (Index i = 0; i < size(); ++i) other.set(i, get(i));
    return other;
  }
};

Buffer random(int32_t dtype, std::vector<Index> shape, uint64_t seed) {
  Buffer buffer(dtype, std::move(shape));
  Random numbers(seed);
  for (Index i = 0; i < buffer.size(); ++i) buffer.set(i, 2 * numbers.symmetric());
  return buffer;
}

// Inputs rounded to `dtype`, held in `wide` (the same dtype, or float64 for what is expected).
struct Call {
  Call(const OptionSet& o, int32_t dtype, int32_t wide)
      : q(random(dtype, rows(o, kRows, kHeads, kSize), 1).as(wide)),
        k(random(dtype, rows(o, kKeys, kKvHeads, kSize), 2).as(wide)),
        v(random(dtype, rows(o, kKeys, kKvHeads, kValueSize), 3).as(wide)),
        dout(random(dtype, rows(o, kRows, kHeads, kValueSize), 4).as(wide)),
        tangents{random(dtype, q.shape, 5).as(wide), random(dtype, k.shape, 6).as(wide),
                 random(dtype, v.shape, 7).as(wide)},
        bias(random(CATTN_FLOAT32, {kHeads, kRows, kKeys}, 8)),
        slopes(random(CATTN_FLOAT32, {kHeads}, 9)),
        sinks(random(CATTN_FLOAT32, {kHeads}, 10)),
        out(wide, dout.shape),
        out_tangent(wide, dout.shape),
        lse(wide == CATTN_FLOAT64 ? CATTN_FLOAT64 : CATTN_FLOAT32, {kHeads, kRows}),
        dq(wide, q.shape),
        dk(wide, k.shape),
        dv(wide, v.shape),
        dbias(CATTN_FLOAT32, bias.shape),
        dsinks(CATTN_FLOAT32, sinks.shape) {
    mask.resize(static_cast<size_t>(kRows * kKeys));
    Random numbers(11);
    for (uint8_t& open : mask) open = numbers.chance(0.6);
    cattn_attention_init(&problem);
    problem.q = q.array();
    problem.k = k.array();
    problem.v = v.array();
    problem.num_threads = 2;
    if (o.causal) problem.flags |= CATTN_CAUSAL;
    if (o.softcap > 0) problem.flags |= CATTN_HAS_SOFTCAP;
    problem.softcap = o.softcap;
    problem.dropout = o.dropout;
    problem.seed = 12345678901234567u;
    problem.window_left = o.left;
    problem.window_right = o.right;
    if (o.bias) problem.bias = bias.array();
    if (o.alibi) problem.alibi_slopes = slopes.array();
    if (o.sinks) problem.sinks = sinks.array();
    if (o.mask) problem.mask = integers(mask.data(), CATTN_BOOL, {kRows, kKeys});
    static const int64_t length = 101;
    if (o.length) problem.kv_lengths = integers(&length, CATTN_INT64, {});
    if (o.packed) {
      problem.cu_seqlens_q = integers(kStarts, CATTN_INT64, {4});
      problem.cu_seqlens_k = integers(kKeyStarts, CATTN_INT64, {4});
    }
    problem.out = out.array();
    problem.lse = lse.array();
  }
  Call(const Call&) = delete;

  static std::vector<Index> rows(const OptionSet& o, Index count, Index heads, Index size) {
    if (o.packed) return {count, heads, size};
    return {heads, count, size};
  }
  static cattn_array integers(const void* data, int32_t dtype, std::vector<Index> shape) {
    cattn_array a = Buffer(CATTN_BOOL, std::move(shape)).array();
    a.data = const_cast<void*>(data);
    a.dtype = dtype;
    return a;
  }

  void run(const std::string& name) {
    ok(cattn_attention_forward(&problem), name + " forward");
    problem.dout = dout.array();
    problem.dq = dq.array();
    problem.dk = dk.array();
    problem.dv = dv.array();
    if (problem.bias.data) problem.dbias = dbias.array();
    if (problem.sinks.data) problem.dsinks = dsinks.array();
    ok(cattn_attention_backward(&problem), name + " backward");
    problem.q_tangent = tangents[0].array();
    problem.k_tangent = tangents[1].array();
    problem.v_tangent = tangents[2].array();
    problem.out_tangent = out_tangent.array();
    ok(cattn_attention_jvp(&problem), name + " jvp");
  }
  static void ok(cattn_status status, const std::string& name) {
    check(status == CATTN_OK, name + ": " + cattn_error_message());
  }

  Buffer q, k, v, dout, tangents[3], bias, slopes, sinks;
  Buffer out, out_tangent, lse, dq, dk, dv, dbias, dsinks;
  std::vector<uint8_t> mask;
  cattn_attention problem;
};

// Largest difference, relative to the largest value.
double difference(const Buffer& a, const Buffer& b) {
  double most = 0, size = 1e-3;
  for (Index i = 0; i < a.size(); ++i) {
    const double x = a.get(i), y = b.get(i);
    if (std::isinf(y) && x == y) continue;
    most = std::fmax(most, std::isnan(x) ? INFINITY : std::fabs(x - y));
    size = std::fmax(size, std::fabs(y));
  }
  return most / size;
}

void compare(const Call& got, const Call& expected, double tolerance, const std::string& name) {
  const auto same = [&](const char* what, const Buffer& a, const Buffer& b, double factor) {
    const double d = difference(a, b);
    check(d <= factor * tolerance, name + ": " + what + " differs by " + std::to_string(d));
  };
  same("out", got.out, expected.out, 1);
  same("lse", got.lse, expected.lse, 1);
  // The gradients start from the rounded out.
  same("dq", got.dq, expected.dq, 4);
  same("dk", got.dk, expected.dk, 4);
  same("dv", got.dv, expected.dv, 4);
  same("out_tangent", got.out_tangent, expected.out_tangent, 4);
  if (got.problem.bias.data) same("dbias", got.dbias, expected.dbias, 4);
  if (got.problem.sinks.data) same("dsinks", got.dsinks, expected.dsinks, 4);
}

constexpr OptionSet kOptions[] = {
    {.name = "plain"},
    {.name = "window", .left = 20, .right = 3},
    {.name = "causal window", .causal = true, .left = 40},
    {.name = "softcap", .softcap = 1.5},
    {.name = "alibi and sinks", .causal = true, .alibi = true, .sinks = true},
    {.name = "length", .mask = true, .length = true},
    {.name = "dropout", .bias = true, .dropout = 0.3},
    {.name = "packed", .packed = true, .causal = true},
    {.name = "all",
     .packed = true,
     .mask = true,
     .bias = true,
     .alibi = true,
     .sinks = true,
     .left = 50,
     .right = 30,
     .softcap = 3,
     .dropout = 0.2},
};

struct Precision {
  int32_t dtype;
  const char* name;
  double tolerance;
};
constexpr Precision kPrecisions[] = {{CATTN_FLOAT64, "float64", 1e-12},
                                     {CATTN_FLOAT32, "float32", 1e-5},
                                     {CATTN_FLOAT16, "float16", 4e-3},
                                     {CATTN_BFLOAT16, "bfloat16", 3e-2}};

void test_attention() {
  for (const OptionSet& o : kOptions) {
    for (const Precision& precision : kPrecisions) {
      cattn_set_isa("generic");
      Call expected(o, precision.dtype, CATTN_FLOAT64);
      expected.run(o.name);
      for (const std::string& isa : available_isas()) {
        cattn_set_isa(isa.c_str());
        Call got(o, precision.dtype, precision.dtype);
        const std::string name = isa + " " + precision.name + " " + o.name;
        got.run(name);
        compare(got, expected, precision.tolerance, name);
      }
    }
  }
}

// Which weights are kept does not depend on the instruction set.
void test_dropout_mask() {
  std::vector<std::vector<uint8_t>> masks;
  for (const std::string& isa : available_isas()) {
    cattn_set_isa(isa.c_str());
    std::vector<uint8_t> mask(2 * 3 * 5 * 1111);
    const cattn_array array = Call::integers(mask.data(), CATTN_BOOL, {2, 3, 5, 1111});
    Call::ok(cattn_dropout_mask(0.4, 99, &array), isa + " dropout mask");
    masks.push_back(mask);
    check(mask == masks.front(), isa + ": another dropout mask");
  }
}

void test_rope() {
  for (const Precision& precision : kPrecisions) {
    for (const int interleaved : {0, 1}) {
      const int32_t table = precision.dtype == CATTN_FLOAT64 ? CATTN_FLOAT64 : CATTN_FLOAT32;
      const Buffer x = random(precision.dtype, {3, 21, 43}, 1);
      const Buffer cos = random(table, {21, 20}, 2), sin = random(table, {21, 20}, 3);
      for (const std::string& isa : available_isas()) {
        cattn_set_isa(isa.c_str());
        const Buffer out(precision.dtype, x.shape);
        cattn_rope problem;
        cattn_rope_init(&problem);
        problem.interleaved = interleaved;
        problem.x = x.array();
        problem.cos = cos.array();
        problem.sin = sin.array();
        problem.out = out.array();
        const std::string name = isa + " " + precision.name + " rope";
        Call::ok(cattn_rope_apply(&problem), name);
        Buffer expected(CATTN_FLOAT64, x.shape);
        for (Index row = 0; row < 63; ++row) {
          const Index at = row * 43, turn = row % 21 * 20;
          for (Index t = 0; t < 20; ++t) {
            const Index a = at + (interleaved ? 2 * t : t), b = a + (interleaved ? 1 : 20);
            const double c = cos.get(turn + t), s = sin.get(turn + t);
            expected.set(a, x.get(a) * c - x.get(b) * s);
            expected.set(b, x.get(a) * s + x.get(b) * c);
          }
          for (Index t = 40; t < 43; ++t) expected.set(at + t, x.get(at + t));
        }
        const double d = difference(out, expected);
        check(d <= precision.tolerance, name + " differs by " + std::to_string(d));
      }
    }
  }
}

}  // namespace

void test_variants() {
  test_attention();
  test_dropout_mask();
  test_rope();
}

}  // namespace cattn::test
