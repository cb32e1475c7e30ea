#include "bindings/options.h"

#include <array>
#include <iterator>
#include <string>
#include <string_view>

namespace cattn::python {
namespace {

std::string shown(const py::handle& object) { return py::repr(object).cast<std::string>(); }

[[noreturn]] void wrong_type(const char* name, const py::handle& object, const char* expected) {
  throw py::type_error(std::string(name) + ": is " + shown(object) + ", expected " + expected);
}

// Whether the error that is set says what an object is, and not, say, that Ctrl-C was pressed.
bool is_about_value() {
  return PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError) ||
         PyErr_ExceptionMatches(PyExc_OverflowError);
}

bool is_integer(const py::handle& object) {
  return PyIndex_Check(object.ptr()) && !PyBool_Check(object.ptr());
}

// As Python's int.
py::object integer_of(const char* name, const py::handle& object, const char* expected) {
  if (!is_integer(object)) wrong_type(name, object, expected);
  auto number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!number) {  // an array, say
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
    wrong_type(name, object, expected);
  }
  return number;
}

// An integer of at most 64 bits; others saturate, which the range checks that follow refuse.
long long parse_integer(const char* name, const py::handle& object, const char* expected) {
  const py::object number = integer_of(name, object, expected);
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

// What the value of an option does to the inputs.
struct Option {
  const char* name;
  bool may_be_none;  // which is as good as not given
  void (*read)(Inputs& to, const py::object& value);
};
constexpr Option kOptions[] = {
    {"mask", true,
     [](Inputs& to, const py::object& value) { to.mask = input("mask", value, Kind::boolean); }},
    {"bias", true,
     [](Inputs& to, const py::object& value) { to.bias = input("bias", value, Kind::floating); }},
    {"causal", false,
     [](Inputs& to, const py::object& value) {
       if (parse_bool("causal", value)) to.problem.flags |= CATTN_CAUSAL;
     }},
    {"causal_offset", true,
     [](Inputs& to, const py::object& value) {
       to.causal_offset = input("causal_offset", value, Kind::integer);
     }},
    {"window", true, [](Inputs& to, const py::object& value) { parse_window(value, to.problem); }},
    {"scale", true,
     [](Inputs& to, const py::object& value) {
       to.problem.flags |= CATTN_HAS_SCALE;
       to.problem.scale = parse_number("scale", value);
     }},
    {"softcap", true,
     [](Inputs& to, const py::object& value) {
       to.problem.flags |= CATTN_HAS_SOFTCAP;
       to.problem.softcap = parse_number("softcap", value);
     }},
    {"alibi_slopes", true,
     [](Inputs& to, const py::object& value) {
       to.alibi_slopes = input("alibi_slopes", value, Kind::floating);
     }},
    {"sinks", true,
     [](Inputs& to, const py::object& value) { to.sinks = input("sinks", value, Kind::floating); }},
    {"kv_lengths", true,
     [](Inputs& to, const py::object& value) {
       to.kv_lengths = input("kv_lengths", value, Kind::integer);
     }},
    {"dropout", false,
     [](Inputs& to, const py::object& value) {
       to.problem.dropout = parse_number("dropout", value);
     }},
    {"seed", true, [](Inputs& to, const py::object& value) { to.seed = value; }},
    {"precision", false,
     [](Inputs& to, const py::object& value) { to.problem.precision = parse_precision(value); }},
    {"num_threads", true,
     [](Inputs& to, const py::object& value) {
       to.problem.num_threads = parse_num_threads(value);
     }},
    {"layout", false,  // last: packed sequences have none
     [](Inputs& to, const py::object& value) { to.problem.flags |= parse_layout(value); }},
};

// The option of that name. Names in a program are interned, so that mostly pointers are compared:
// in a small call it counts.
const Option& find(const py::handle& name, bool packed) {
  constexpr size_t count = std::size(kOptions);
  static const std::array<PyObject*, count> names = [] {
    std::array<PyObject*, count> interned{};
    for (size_t i = 0; i < count; ++i) interned[i] = PyUnicode_InternFromString(kOptions[i].name);
    return interned;
  }();
  const size_t known = packed ? count - 1 : count;
  for (size_t i = 0; i < known; ++i) {
    if (name.ptr() == names[i]) return kOptions[i];
  }
  for (size_t i = 0; i < known && PyUnicode_Check(name.ptr()); ++i) {
    if (PyUnicode_CompareWithASCIIString(name.ptr(), kOptions[i].name) == 0) return kOptions[i];
  }
  throw py::type_error("unknown option " + shown(name));
}

}  // namespace

void Inputs::read(const py::dict& options, bool packed) {
  for (const auto& [key, item] : options) {
    const Option& option = find(key, packed);
    if (item.is_none() && option.may_be_none) continue;
    option.read(*this, py::reinterpret_borrow<py::object>(item));
  }
}

Argument required(const char* name, const py::object& object) {
  Argument argument = input(name, object, Kind::rows);
  if (!argument) throw py::type_error(std::string(name) + ": is None, expected an array");
  return argument;
}

double parse_number(const char* name, const py::object& object) {
  if (PyBool_Check(object.ptr())) wrong_type(name, object, "a number");
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred()) {
    if (!is_about_value()) throw py::error_already_set();
    PyErr_Clear();
    wrong_type(name, object, "a number");
  }
  return value;
}

int32_t parse_num_threads(const py::object& object) {
  if (object.is_none()) return 0;
  const long long n = parse_integer("num_threads", object, "an integer");
  if (n < 1 || n > CATTN_MOST_THREADS) {
    throw py::value_error("num_threads: is " + shown(object) + ", expected 1 to " +
                          std::to_string(CATTN_MOST_THREADS));
  }
  return static_cast<int32_t>(n);
}

uint64_t parse_seed(const py::object& object) {
  if (object.is_none()) {
    throw py::value_error("seed: is None, but dropout needs one, so that the backward drops alike");
  }
  const py::object number = integer_of("seed", object, "an integer");
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
  read(options, !cu_seqlens.is_none());
  if (problem.dropout > 0 || seed) problem.seed = parse_seed(seed ? seed : py::none());
  const auto put = [](cattn_array& to, const Argument& argument) {
    if (argument) to = argument.description;
  };
  put(problem.q, q);
  put(problem.k, k);
  put(problem.v, v);
  put(problem.mask, mask);
  put(problem.bias, bias);
  put(problem.causal_offset, causal_offset);
  put(problem.alibi_slopes, alibi_slopes);
  put(problem.sinks, sinks);
  put(problem.kv_lengths, kv_lengths);
  put(problem.cu_seqlens_q, cu_seqlens_q);
  put(problem.cu_seqlens_k, cu_seqlens_k);
}

}  // namespace cattn::python
