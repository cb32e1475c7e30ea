#include "bindings/attention.h"

#include <algorithm>
#include <string>

#include "bindings/gil.h"
#include "bindings/options.h"

namespace cattn::python {
namespace {

// Runs a call of the C interface without the GIL and raises what it reports.
template <class F>
void run(F call) {
  raise_on_error(without_gil(call));
}

py::object or_none(const Argument& a) { return a ? a.array : py::none(); }

}  // namespace

py::tuple attention(const py::object& q, const py::object& k, const py::object& v,
                    const py::object& cu_seqlens, const py::dict& options,
                    const py::object& return_lse, const py::object& return_weights,
                    const py::object& out) {
  Inputs inputs(q, k, v, cu_seqlens, options);
  cattn_attention& problem = inputs.problem;
  cattn_array out_shape{}, lse_shape{}, weights_shape{};
  raise_on_error(cattn_attention_shapes(&problem, &out_shape, &lse_shape, &weights_shape));

  Argument result, target, lse, weights;
  if (out.is_none()) {
    result = target = new_output(out_shape);
  } else {
    result = target = given_output("out", out, out_shape);
    for (const Argument* a : {&inputs.q, &inputs.k, &inputs.v, &inputs.mask, &inputs.bias,
                              &inputs.causal_offset, &inputs.alibi_slopes, &inputs.sinks,
                              &inputs.kv_lengths, &inputs.cu_seqlens_q, &inputs.cu_seqlens_k}) {
      if (*a && may_overlap(result, *a)) {
        target = new_output(out_shape);
        break;
      }
    }
  }
  if (parse_bool("return_lse", return_lse)) lse = new_output(lse_shape);
  if (parse_bool("return_weights", return_weights)) weights = new_output(weights_shape);
  problem.out = target.description;
  problem.lse = lse.description;
  problem.weights = weights.description;
  run([&] { return cattn_attention_forward(&problem); });
  if (!target.array.is(result.array)) copy(target.array, result.array);
  return py::make_tuple(result.array, or_none(lse), or_none(weights));
}

py::dict attention_backward(const py::object& dout, const py::object& q, const py::object& k,
                            const py::object& v, const py::object& out, const py::object& lse,
                            const py::object& dlse, const py::object& cu_seqlens,
                            const py::set& grads, const py::dict& options) {
  Inputs inputs(q, k, v, cu_seqlens, options);
  cattn_attention& problem = inputs.problem;
  cattn_array out_shape{};
  raise_on_error(cattn_attention_shapes(&problem, &out_shape, nullptr, nullptr));

  const Argument dout_argument = required("dout", dout);
  const Argument out_argument = required("out", out);
  const Argument lse_argument = input("lse", lse, Kind::floating);
  const Argument dlse_argument = input("dlse", dlse, Kind::floating);
  problem.dout = dout_argument.description;
  problem.out = out_argument.description;
  problem.lse = lse_argument.description;
  problem.dlse = dlse_argument.description;

  // The shape of a gradient before sums over broadcast axes: out's leading axes, then its input's.
  py::dict results;
  const auto gradient = [&](const char* name, const Argument& of, cattn_array& to) {
    if (!grads.contains(name)) return;
    cattn_array shape = out_shape;
    const cattn_array& own = of.description;
    // One head has no head axis: in (..., L, H, D) that is the axis before the last.
    const bool blhd_without_heads = (problem.flags & CATTN_BLHD) != 0 && own.ndim == 2;
    for (int i = 1; i <= 3 && i <= shape.ndim; ++i) {
      const int from_end = blhd_without_heads && shape.ndim > 2 && i > 1 ? 5 - i : i;
      shape.shape[shape.ndim - from_end] = i <= own.ndim ? own.shape[own.ndim - i] : 1;
    }
    bool same = shape.ndim == own.ndim;
    for (int i = 0; same && i < own.ndim; ++i) same = shape.shape[i] == own.shape[i];
    const bool half = shape.dtype == CATTN_FLOAT16 || shape.dtype == CATTN_BFLOAT16;
    if (half && !same) shape.dtype = CATTN_FLOAT32;
    const Argument result = new_output(shape);
    to = result.description;
    results[name] = result.array;
  };
  gradient("q", inputs.q, problem.dq);
  gradient("k", inputs.k, problem.dk);
  gradient("v", inputs.v, problem.dv);
  const auto parameter = [&](const char* name, const char* missing, const Argument& of,
                             cattn_array& to) {
    if (!grads.contains(name)) return;
    if (!of) throw py::value_error(missing);
    const Argument result = new_output(of.description);
    to = result.description;
    results[name] = result.array;
  };
  parameter("bias", "grads: contains 'bias', but there is no bias", inputs.bias, problem.dbias);
  parameter("sinks", "grads: contains 'sinks', but there are no sinks", inputs.sinks,
            problem.dsinks);
  run([&] { return cattn_attention_backward(&problem); });
  return results;
}

py::tuple attention_jvp(const py::object& q, const py::object& k, const py::object& v,
                        const py::object& dq, const py::object& dk, const py::object& dv,
                        const py::object& cu_seqlens, const py::dict& options) {
  Inputs inputs(q, k, v, cu_seqlens, options);
  cattn_attention& problem = inputs.problem;
  cattn_array out_shape{};
  raise_on_error(cattn_attention_shapes(&problem, &out_shape, nullptr, nullptr));
  const Argument q_tangent = required("dq", dq), k_tangent = required("dk", dk),
                 v_tangent = required("dv", dv);
  const Argument out = new_output(out_shape), out_tangent = new_output(out_shape);
  problem.q_tangent = q_tangent.description;
  problem.k_tangent = k_tangent.description;
  problem.v_tangent = v_tangent.description;
  problem.out = out.description;
  problem.out_tangent = out_tangent.description;
  run([&] { return cattn_attention_jvp(&problem); });
  return py::make_tuple(out.array, out_tangent.array);
}

py::object dropout_mask(const std::vector<int64_t>& shape, const py::object& dropout,
                        const py::object& seed) {
  cattn_array description{};
  description.dtype = CATTN_BOOL;
  description.ndim = static_cast<int32_t>(shape.size());
  if (shape.size() < 2 || shape.size() > CATTN_MAX_NDIM) {
    throw py::value_error("shape: has " + std::to_string(shape.size()) +
                          " axes, expected (..., Hq, Lq, Lk)");
  }
  std::copy(shape.begin(), shape.end(), description.shape);
  const Argument mask = new_output(description);
  const double probability = parse_number("dropout", dropout);
  const uint64_t number = probability == 0 && seed.is_none() ? 0 : parse_seed(seed);
  run([&] { return cattn_dropout_mask(probability, number, &mask.description); });
  return mask.array;
}

py::object rope(const py::object& x, const py::object& cos, const py::object& sin,
                const py::object& interleaved, bool inverse, const py::object& layout,
                const py::object& num_threads) {
  const Argument x_argument = required("x", x);
  const Argument cos_argument = required("cos", cos), sin_argument = required("sin", sin);
  const Argument out = new_output(x_argument.description);
  cattn_rope problem;
  cattn_rope_init(&problem);
  problem.flags = parse_layout(layout);
  problem.interleaved = parse_bool("interleaved", interleaved);
  problem.inverse = inverse;
  problem.num_threads = parse_num_threads(num_threads);
  problem.x = x_argument.description;
  problem.cos = cos_argument.description;
  problem.sin = sin_argument.description;
  problem.out = out.description;
  run([&] { return cattn_rope_apply(&problem); });
  return out.array;
}

}  // namespace cattn::python
