#include "bindings/options.h"

#include <string>
#include <string_view>

namespace cattn::python {
namespace {

std::string shown(const py::handle& object) { return py::repr(object).cast<std::string>(); }

[[noreturn]] void wrong_type(const char* name, const py::handle& object, const char* expected) {
  throw py::type_error(std::string(name) + ": is " + shown(object) + ", expected " + expected);
}

bool is_integer(const py::handle& object) {
  return PyIndex_Check(object.ptr()) && !PyBool_Check(object.ptr());
}

// An integer of at most 64 bits; others saturate, which the range checks that follow refuse.
long long parse_integer(const char* name, const py::handle& object, const char* expected) {
  if (!is_integer(object)) wrong_type(name, object, expected);
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long n = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  return overflow == 0 ? n : overflow > 0 ? INT64_MAX : INT64_MIN;
}

// One side of a window: None and -1 are unbounded.
int64_t parse_side(const py::handle& side) {
  if (side.is_none()) return -1;
  return parse_integer("window", side, "two integers, each at least 0, or None for unbounded");
}

void parse_window(const py::object& window, cattn_attention& problem) {
  if (window.is_none()) return;
  if (!py::isinstance<py::tuple>(window) && !py::isinstance<py::list>(window)) {
    wrong_type("window", window, "(left, right)");
  }
  const py::sequence sides = py::reinterpret_borrow<py::sequence>(window);
  if (sides.size() != 2) {
    throw py::value_error("window: is " + shown(window) + ", expected (left, right)");
  }
  problem.window_left = parse_side(sides[0]);
  problem.window_right = parse_side(sides[1]);
}

cattn_precision parse_precision(const py::object& word) {
  if (py::isinstance<py::str>(word)) {
    const auto text = word.cast<std::string_view>();
    if (text == "highest") return CATTN_PRECISION_HIGHEST;
    if (text == "high") return CATTN_PRECISION_HIGH;
    if (text == "medium") return CATTN_PRECISION_MEDIUM;
  }
  throw py::value_error("precision: is " + shown(word) +
                        ", expected 'highest', 'high' or 'medium'");
}

}  // namespace

Argument required(const char* name, const py::object& object) {
  Argument argument = input(name, object, Kind::rows);
  if (!argument) throw py::type_error(std::string(name) + ": is None, expected an array");
  return argument;
}

double parse_number(const char* name, const py::object& object) {
  if (PyBool_Check(object.ptr())) wrong_type(name, object, "a number");
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    wrong_type(name, object, "a number");
  }
  return value;
}

int32_t parse_num_threads(const py::object& object) {
  if (object.is_none()) return 0;
  const long long n = parse_integer("num_threads", object, "an integer");
  if (n < 1 || n > 4096) {
    throw py::value_error("num_threads: is " + shown(object) + ", expected 1 to 4096");
  }
  return static_cast<int32_t>(n);
}

uint64_t parse_seed(const py::object& object) {
  if (object.is_none()) {
    throw py::value_error("seed: is None, but dropout needs one, so that the backward drops alike");
  }
  if (!is_integer(object)) wrong_type("seed", object, "an integer");
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!number) throw py::error_already_set();
  const unsigned long long seed = PyLong_AsUnsignedLongLong(number.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    throw py::value_error("seed: is " + shown(object) + ", expected 0 <= seed < 2**64");
  }
  return seed;
}

Inputs::Inputs(const py::object& q_object, const py::object& k_object, const py::object& v_object,
               const py::object& cu_seqlens, const py::dict& options)
    : q(required("q", q_object)), k(required("k", k_object)), v(required("v", v_object)) {
  cattn_attention_init(&problem);
  if (!cu_seqlens.is_none()) {
    const auto pair = cu_seqlens.cast<py::tuple>();
    const auto starts = [](const char* name, const py::object& object) {
      Argument argument = input(name, object, Kind::integer);
      if (!argument) throw py::type_error(std::string(name) + ": is None, expected integers");
      return argument;
    };
    cu_seqlens_q = starts("cu_seqlens_q", pair[0]);
    cu_seqlens_k = starts("cu_seqlens_k", pair[1]);
  }
  py::object seed = py::none();
  for (const auto& [key, item] : options) {
    const auto value = py::reinterpret_borrow<py::object>(item);
    Py_ssize_t length = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(key.ptr(), &length);
    if (!text) throw py::error_already_set();
    const std::string_view name(text, static_cast<size_t>(length));
    if (name == "layout" && cu_seqlens.is_none()) {
      problem.flags |= parse_layout(value);
    } else if (name == "precision") {
      problem.precision = parse_precision(value);
    } else if (name == "causal") {
      if (parse_bool("causal", value)) problem.flags |= CATTN_CAUSAL;
    } else if (name == "dropout") {
      problem.dropout = parse_number("dropout", value);
    } else if (name == "seed") {
      seed = value;
    } else if (name == "num_threads") {
      problem.num_threads = parse_num_threads(value);
    } else if (name == "window") {
      parse_window(value, problem);
    } else if (name == "scale") {
      if (value.is_none()) continue;
      problem.flags |= CATTN_HAS_SCALE;
      problem.scale = parse_number("scale", value);
    } else if (name == "softcap") {
      if (value.is_none()) continue;
      problem.flags |= CATTN_HAS_SOFTCAP;
      problem.softcap = parse_number("softcap", value);
    } else if (name == "mask") {
      mask = input("mask", value, Kind::boolean);
    } else if (name == "bias") {
      bias = input("bias", value, Kind::floating);
    } else if (name == "causal_offset") {
      causal_offset = input("causal_offset", value, Kind::integer);
    } else if (name == "alibi_slopes") {
      alibi_slopes = input("alibi_slopes", value, Kind::floating);
    } else if (name == "sinks") {
      sinks = input("sinks", value, Kind::floating);
    } else if (name == "kv_lengths") {
      kv_lengths = input("kv_lengths", value, Kind::integer);
    } else {
      throw py::type_error("unknown option '" + std::string(name) + "'");
    }
  }
  if (problem.dropout > 0 || !seed.is_none()) problem.seed = parse_seed(seed);
  problem.q = q.description;
  problem.k = k.description;
  problem.v = v.description;
  problem.mask = mask.description;
  problem.bias = bias.description;
  problem.causal_offset = causal_offset.description;
  problem.alibi_slopes = alibi_slopes.description;
  problem.sinks = sinks.description;
  problem.kv_lengths = kv_lengths.description;
  problem.cu_seqlens_q = cu_seqlens_q.description;
  problem.cu_seqlens_k = cu_seqlens_k.description;
}

}  // namespace cattn::python
