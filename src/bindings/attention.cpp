#include "bindings/attention.h"

#include <string>

namespace cattn::python {
namespace {

int32_t parse_num_threads(const py::object& object) {
  if (object.is_none()) return 0;
  if (!PyIndex_Check(object.ptr()) || PyBool_Check(object.ptr())) {
    throw py::type_error("num_threads: is " + py::repr(object).cast<std::string>() +
                         ", expected an integer");
  }
  const py::int_ number = py::reinterpret_steal<py::int_>(PyNumber_Index(object.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long n = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0 || n < 1 || n > 4096) {
    throw py::value_error("num_threads: is " + py::repr(object).cast<std::string>() +
                          ", expected 1 to 4096");
  }
  return static_cast<int32_t>(n);
}

// The inputs and options that both directions share. Holds the arrays that the problem points to.
struct Inputs {
  Inputs(const py::object& q_object, const py::object& k_object, const py::object& v_object,
         const py::object& mask_object, const py::object& bias_object, const py::object& causal,
         const py::object& offset_object, const py::object& scale, const py::object& layout,
         const py::object& num_threads)
      : q(required("q", q_object)),
        k(required("k", k_object)),
        v(required("v", v_object)),
        mask(input("mask", mask_object, Kind::boolean)),
        bias(input("bias", bias_object, Kind::floating)),
        causal_offset(input("causal_offset", offset_object, Kind::integer)) {
    cattn_attention_init(&problem);
    problem.q = q.description;
    problem.k = k.description;
    problem.v = v.description;
    problem.mask = mask.description;
    problem.bias = bias.description;
    problem.causal_offset = causal_offset.description;
    if (parse_bool("causal", causal)) problem.flags |= CATTN_CAUSAL;
    problem.flags |= parse_layout(layout);
    if (!scale.is_none()) {
      const double value = PyFloat_AsDouble(scale.ptr());
      if (value == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        throw py::type_error("scale: is " + py::repr(scale).cast<std::string>() +
                             ", expected a number");
      }
      problem.flags |= CATTN_HAS_SCALE;
      problem.scale = value;
    }
    problem.num_threads = parse_num_threads(num_threads);
  }

  static Argument required(const char* name, const py::object& object) {
    Argument argument = input(name, object, Kind::floating);
    if (!argument) throw py::type_error(std::string(name) + ": is None, expected an array");
    return argument;
  }

  Argument q, k, v, mask, bias, causal_offset;
  cattn_attention problem;
};

}  // namespace

py::tuple attention(const py::object& q, const py::object& k, const py::object& v,
                    const py::object& mask, const py::object& bias, const py::object& causal,
                    const py::object& causal_offset, const py::object& scale,
                    const py::object& layout, const py::object& return_lse,
                    const py::object& return_weights, const py::object& out,
                    const py::object& num_threads) {
  Inputs inputs(q, k, v, mask, bias, causal, causal_offset, scale, layout, num_threads);
  cattn_attention& problem = inputs.problem;
  cattn_array out_shape{}, lse_shape{}, weights_shape{};
  raise_on_error(cattn_attention_shapes(&problem, &out_shape, &lse_shape, &weights_shape));

  Argument result, target, lse, weights;
  if (out.is_none()) {
    result = target = new_output(out_shape);
  } else {
    result = target = given_output("out", out, out_shape);
    for (const Argument* a :
         {&inputs.q, &inputs.k, &inputs.v, &inputs.mask, &inputs.bias, &inputs.causal_offset}) {
      if (*a && may_overlap(result.array, a->array)) {
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

  cattn_status status;
  {
    const py::gil_scoped_release release;
    status = cattn_attention_forward(&problem);
  }
  raise_on_error(status);
  if (!target.array.is(result.array)) result.array[py::ellipsis()] = target.array;
  const auto or_none = [](const Argument& a) -> py::object {
    return a ? py::object(a.array) : py::none();
  };
  return py::make_tuple(result.array, or_none(lse), or_none(weights));
}

py::tuple attention_backward(const py::object& dout, const py::object& q, const py::object& k,
                             const py::object& v, const py::object& out, const py::object& lse,
                             const py::object& dlse, bool want_q, bool want_k, bool want_v,
                             bool want_bias, const py::object& mask, const py::object& bias,
                             const py::object& causal, const py::object& causal_offset,
                             const py::object& scale, const py::object& layout,
                             const py::object& num_threads) {
  Inputs inputs(q, k, v, mask, bias, causal, causal_offset, scale, layout, num_threads);
  cattn_attention& problem = inputs.problem;
  cattn_array out_shape{};
  raise_on_error(cattn_attention_shapes(&problem, &out_shape, nullptr, nullptr));

  const Argument dout_argument = inputs.required("dout", dout);
  const Argument out_argument = inputs.required("out", out);
  const Argument lse_argument = input("lse", lse, Kind::floating);
  const Argument dlse_argument = input("dlse", dlse, Kind::floating);
  problem.dout = dout_argument.description;
  problem.out = out_argument.description;
  problem.lse = lse_argument.description;
  problem.dlse = dlse_argument.description;

  // The shape of a gradient before sums over broadcast axes: out's leading axes, then its input's.
  const auto gradient = [&](bool wanted, const Argument& of) {
    if (!wanted) return Argument{};
    cattn_array shape = out_shape;
    const cattn_array& own = of.description;
    // One head has no head axis: in (..., L, H, D) that is the axis before the last.
    const bool blhd_without_heads = (problem.flags & CATTN_BLHD) != 0 && own.ndim == 2;
    for (int i = 1; i <= 3 && i <= shape.ndim; ++i) {
      const int from_end = blhd_without_heads && shape.ndim > 2 && i > 1 ? 5 - i : i;
      shape.shape[shape.ndim - from_end] = i <= own.ndim ? own.shape[own.ndim - i] : 1;
    }
    return new_output(shape);
  };
  const Argument dq = gradient(want_q, inputs.q);
  const Argument dk = gradient(want_k, inputs.k);
  const Argument dv = gradient(want_v, inputs.v);
  Argument dbias;
  if (want_bias) {
    if (!inputs.bias) throw py::value_error("grads: contains 'bias', but there is no bias");
    cattn_array shape = inputs.bias.description;
    dbias = new_output(shape);
  }
  problem.dq = dq.description;
  problem.dk = dk.description;
  problem.dv = dv.description;
  problem.dbias = dbias.description;

  cattn_status status;
  {
    const py::gil_scoped_release release;
    status = cattn_attention_backward(&problem);
  }
  raise_on_error(status);
  const auto or_none = [](const Argument& a) -> py::object {
    return a ? py::object(a.array) : py::none();
  };
  return py::make_tuple(or_none(dq), or_none(dk), or_none(dv), or_none(dbias));
}

}  // namespace cattn::python
