// One attention problem: its description, its arrays, a call of the library on them and the
// comparison of what came out with the reference.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "bound.h"
#include "cattn.h"
#include "reference/reference.h"
#include "tensor.h"

namespace cattn::test {

// A reproducible stream of numbers (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits();
  Index below(Index n) { return static_cast<Index>(bits() % static_cast<uint64_t>(n)); }
  bool chance(double probability) { return unit() < probability; }
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }  // [0, 1)
  double symmetric() { return 2 * unit() - 1; }                          // [-1, 1)

 private:
  uint64_t state_;
};

struct Case {
  Index rows = 4, keys = 4, head_dim = 8, value_dim = 8;
  Index heads_q = 1, heads_kv = 1;
  Shape batch_q, batch_k, batch_v;  // they broadcast
  bool flat = false;                // two-dimensional q, k and v: one head
  Layout layout = Layout::contiguous;
  double size = 1;  // of the elements of q and k

  std::optional<Shape> mask, bias;  // their shapes
  double mask_density = 0.7;        // share of positions that are open
  double bias_infinities = 0;       // share of the bias that is -inf
  bool bias_is_float32 = false;     // else q's dtype

  bool causal = false;
  std::optional<Shape> offset_shape;
  std::vector<int64_t> offsets;  // filled into it in turn
  std::optional<double> scale;
  Index window_left = -1, window_right = -1;
  double softcap = 0;            // 0: none
  std::optional<Shape> slopes;   // their shape
  bool sinks = false;            // the first of them is -inf
  std::vector<int64_t> lengths;  // one per batch entry, in turn; empty: none
  double dropout = 0;

  double nonfinite = 0;  // share of the rows of q, k, v, dout that hold a NaN or an infinity
  bool lse = true, weights = false, dlse = false;
  bool dq = true, dk = true, dv = true, dbias = false, dsinks = false;
  bool tangents = false;
  int32_t threads = 1;
  uint64_t seed = 1;

  Shape batch() const;                  // the broadcast leading axes
  Shape with_batch(Shape inner) const;  // leading axes, then these
  std::string text() const;
};

// Where a call runs.
struct Run {
  std::optional<int32_t> threads;            // else the case's
  const cattn_executor* executor = nullptr;  // null: the default of options()
};

template <class T>
struct Outputs {
  Tensor<T> out, weights, dq, dk, dv;
  Tensor<Wide<T>> lse;
  Tensor<T> dbias, dsinks;
  Tensor<T> jvp_out, out_tangent;
  Tensor<float> dbias_float32;
};

template <class T>
bool same_bits(const Outputs<T>& a, const Outputs<T>& b);

template <class T>
class Attention {
 public:
  explicit Attention(const Case& c);

  // Forward, then backward on what it returned, with the instruction set in use.
  Outputs<T> compute(const Run& run = {}) const;
  // The same with outputs in the caller's hands, for those who call at once from many threads.
  bool compute_into(Outputs<T>& to, const Run& run) const;
  Outputs<T> make_outputs() const;

  // Checks every output against the reference; `name` says which kernels made them.
  void compare(const Outputs<T>& outputs, const std::string& name) const;

 private:
  cattn_attention problem(const Outputs<T>& outputs, const Run& run) const;
  void make_inputs();
  void make_reference();
  Shape outer(Index heads, Index rows, Index cols, const Shape& batch) const;

  Case c_;
  Tensor<T> q_, k_, v_, dout_, bias_, slopes_, sinks_;
  Tensor<T> q_move_, k_move_, v_move_;
  Tensor<Wide<T>> dlse_;
  Tensor<float> bias_float32_;
  Tensor<uint8_t> mask_;
  Tensor<int64_t> offset_, lengths_;

  reference::Result expected_;
  reference::Gradients gradients_;
  reference::Array tangent_, tangent_bound_;
  Bounds bounds_[kWaysToMultiply];
};

// Prints the largest err/bound of each output so far, per instruction set and dtype.
void print_worst_ratios();

// The instruction sets that run here, or the one that was asked for.
std::vector<std::string> available_isas();

// Runs a case on every instruction set in float32 and float64, or in all dtypes.
void run_case(const Case& c);
void run_case_in_every_dtype(const Case& c);

// Teams of std::threads; tasks serially, the last first.
const cattn_executor& thread_executor();
const cattn_executor& reverse_executor();

}  // namespace cattn::test
