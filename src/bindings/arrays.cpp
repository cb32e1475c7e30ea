#include "bindings/arrays.h"

#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/dlpack.h"
#include "bindings/gil.h"
#include "bindings/result_memory.h"

namespace cattn::python {
namespace {

// ml_dtypes' bfloat16, which NumPy knows by name only.
bool is_bfloat16(const py::dtype& dtype) {
  return dtype.kind() == 'V' && dtype.itemsize() == 2 &&
         py::str(dtype.attr("name")).cast<std::string>() == "bfloat16";
}

int32_t dtype_code(const py::array& a, Kind kind) {
  const py::dtype dtype = a.dtype();
  const char type = dtype.kind();
  switch (kind) {
    case Kind::rows:
    case Kind::floating:
      if (type == 'f' && dtype.itemsize() == 4) return CATTN_FLOAT32;
      if (type == 'f' && dtype.itemsize() == 8) return CATTN_FLOAT64;
      if (type == 'f' && dtype.itemsize() == 2) return CATTN_FLOAT16;
      return is_bfloat16(dtype) ? CATTN_BFLOAT16 : 0;
    case Kind::boolean: return type == 'b' ? CATTN_BOOL : 0;
    case Kind::integer: return type == 'i' || type == 'u' ? CATTN_INT64 : 0;
  }
  return 0;
}

const char* expected(Kind kind) {
  switch (kind) {
    case Kind::rows:
    case Kind::floating: return "float32, float64, float16 or bfloat16";
    case Kind::boolean: return "bool (True = may attend)";
    case Kind::integer: return "an integer of at most 64 bits";
  }
  return "";
}

bool walkable(const py::array& a, bool contiguous_rows) {
  if (a.size() == 0) return true;
  const auto& dtype = a.dtype();
  if (dtype.byteorder() == '>' || !(a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
    return false;
  }
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    if (a.strides(i) % a.itemsize() != 0) return false;
  }
  const py::ssize_t last = a.ndim() - 1;
  return !contiguous_rows || last < 0 || a.shape(last) <= 1 || a.strides(last) == a.itemsize();
}

void describe(const char* name, const py::array& a, int32_t dtype, cattn_array& description) {
  if (a.ndim() > CATTN_MAX_NDIM) {
    throw py::value_error(std::string(name) + ": has " + std::to_string(a.ndim()) +
                          " axes, expected at most " + std::to_string(CATTN_MAX_NDIM));
  }
  // Empty arrays are given too, whatever their pointer.
  static char nothing;
  description.data = a.data() ? const_cast<void*>(a.data()) : &nothing;
  description.dtype = dtype;
  description.ndim = static_cast<int32_t>(a.ndim());
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    description.shape[i] = a.shape(i);
    description.strides[i] = a.strides(i) / a.itemsize();
  }
}

std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::vector<py::ssize_t> shape_of(const cattn_array& description) {
  return {description.shape, description.shape + description.ndim};
}

// A C-ordered copy.
py::array converted(const py::array& a, const py::object& dtype) {
  PyObject* const copy = returning_to_python(
      [&] { return PyObject_CallMethod(a.ptr(), "astype", "Os", dtype.ptr(), "C"); });
  if (!copy) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(copy);
}

// What numpy.asarray makes of an object.
py::array as_numpy(const char* name, const py::object& object) {
  const py::object asarray = py::module_::import("numpy").attr("asarray");
  PyObject* const array = returning_to_python(
      [&] { return PyObject_CallFunctionObjArgs(asarray.ptr(), object.ptr(), nullptr); });
  if (array) return py::reinterpret_steal<py::array>(array);
  py::error_already_set error;
  if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw error;
  py::raise_from(error, PyExc_TypeError, (std::string(name) + ": is not an array").c_str());
  throw py::error_already_set();
}

py::dtype dtype_of(int32_t code) {
  switch (code) {
    case CATTN_FLOAT64: return py::dtype::of<double>();
    case CATTN_FLOAT16: return py::dtype("float16");
    case CATTN_BOOL: return py::dtype::of<bool>();
    case CATTN_BFLOAT16: break;
    default: return py::dtype::of<float>();
  }
  try {
    const py::object type = py::module_::import("ml_dtypes").attr("bfloat16");
    return py::reinterpret_borrow<py::dtype>(py::module_::import("numpy").attr("dtype")(type));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_ImportError)) throw;
    py::raise_from(error, PyExc_ImportError, "a bfloat16 result needs the package ml_dtypes");
    throw py::error_already_set();
  }
}

py::array new_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
  size_t bytes = static_cast<size_t>(dtype.itemsize());
  for (const py::ssize_t n : shape) bytes *= static_cast<size_t>(n);
  if (bytes < kLargeResult) return py::array(dtype, shape);
  const ResultMemory memory = result_memory(bytes);
  return py::array(dtype, shape, memory.data, memory.owner);
}

}  // namespace

bool parse_bool(const char* name, const py::object& object) {
  if (PyBool_Check(object.ptr())) return object.ptr() == Py_True;
  const std::string_view type = Py_TYPE(object.ptr())->tp_name;
  if (type != "numpy.bool" && type != "numpy.bool_") {
    throw py::type_error(std::string(name) + ": is " + py::repr(object).cast<std::string>() +
                         ", expected True or False");
  }
  return PyObject_IsTrue(object.ptr()) == 1;
}

uint32_t parse_layout(const py::object& word) {
  if (py::isinstance<py::str>(word)) {
    const auto text = word.cast<std::string_view>();
    if (text == "bhld") return 0;
    if (text == "blhd") return CATTN_BLHD;
  }
  throw py::value_error("layout: is " + py::repr(word).cast<std::string>() +
                        ", expected 'bhld' or 'blhd'");
}

Argument input(const char* name, const py::object& object, Kind kind) {
  Argument argument;
  if (object.is_none()) return argument;
  py::array array = py::reinterpret_steal<py::array>(py::handle());
  int32_t dtype = 0;
  if (py::isinstance<py::array>(object)) {
    array = py::reinterpret_borrow<py::array>(object);
  } else if (has_dlpack(object)) {
    DlpackArray foreign = from_dlpack(name, object);
    array = std::move(foreign.array);
    if (foreign.bfloat16) {  // whose elements travel as integers
      if (kind != Kind::rows && kind != Kind::floating) {
        throw py::type_error(std::string(name) + ": dtype bfloat16, expected " + expected(kind));
      }
      dtype = CATTN_BFLOAT16;
    }
  } else {
    array = as_numpy(name, object);
  }
  if (dtype == 0) dtype = dtype_code(array, kind);
  if (dtype == 0) {
    throw py::type_error(std::string(name) + ": dtype " +
                         py::str(array.dtype()).cast<std::string>() + ", expected " +
                         expected(kind));
  }
  if (kind == Kind::integer) {
    if (array.dtype().kind() == 'u' && array.itemsize() == 8) {
      // Beyond int64 there is no key anyway: the largest int64 says the same.
      const py::object largest = py::int_(std::numeric_limits<int64_t>::max());
      array =
          py::module_::import("numpy").attr("minimum")(array, array.dtype().attr("type")(largest));
    }
    array = converted(array, py::dtype::of<int64_t>());
  } else if (!walkable(array, kind == Kind::rows)) {
    // In native byte order.
    array = converted(array, array.dtype().attr("newbyteorder")("="));
  }
  describe(name, array, dtype, argument.description);
  argument.array = std::move(array);
  return argument;
}

py::object as_array(const char* name, const py::object& object) {
  const Argument argument = input(name, object, Kind::floating);
  if (!argument) throw py::type_error(std::string(name) + ": is None, expected an array");
  // Of NumPy's own class: matrices and masked arrays have an arithmetic of their own.
  const py::object array = py::module_::import("numpy").attr("asarray")(argument.array);
  if (array.attr("dtype").attr("kind").cast<std::string>() != "u") return array;
  return array.attr("view")(dtype_of(argument.description.dtype));
}

Argument new_output(const cattn_array& description) {
  Argument argument;
  const py::array array = new_array(dtype_of(description.dtype), shape_of(description));
  describe("out", array, description.dtype, argument.description);
  argument.array = array;
  return argument;
}

Argument given_output(const char* name, const py::object& object, const cattn_array& description) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + ": is not a numpy.ndarray");
  }
  Argument argument;
  const auto a = py::reinterpret_borrow<py::array>(object);
  argument.array = a;
  const std::vector<py::ssize_t> shape(a.shape(), a.shape() + a.ndim());
  const std::vector<py::ssize_t> wanted = shape_of(description);
  if (shape != wanted) {
    throw py::value_error(std::string(name) + ": shape " + shape_text(shape) + ", expected " +
                          shape_text(wanted));
  }
  if (dtype_code(a, Kind::rows) != description.dtype || a.dtype().byteorder() == '>') {
    throw py::type_error(std::string(name) + ": dtype " + py::str(a.dtype()).cast<std::string>() +
                         ", expected " + py::str(dtype_of(description.dtype)).cast<std::string>());
  }
  if (!a.writeable()) throw py::value_error(std::string(name) + ": is read-only");
  if (!walkable(a, true)) {
    throw py::value_error(std::string(name) + ": the last axis must be contiguous and aligned");
  }
  describe(name, a, description.dtype, argument.description);
  return argument;
}

void copy(const py::object& from, const py::object& to) {
  const int failed =
      returning_to_python([&] { return PyObject_SetItem(to.ptr(), Py_Ellipsis, from.ptr()); });
  if (failed) throw py::error_already_set();
}

bool may_overlap(const Argument& a, const Argument& b) {
  const auto bytes = [](const Argument& argument) {  // from the first to past the last, in memory
    const auto array = py::reinterpret_borrow<py::array>(argument.array);
    auto begin = reinterpret_cast<intptr_t>(array.data());
    auto end = begin + array.itemsize();
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
      const py::ssize_t span = (array.shape(i) - 1) * array.strides(i);
      (span < 0 ? begin : end) += span;
    }
    return std::pair(begin, array.size() == 0 ? begin : end);
  };
  const auto [a_begin, a_end] = bytes(a);
  const auto [b_begin, b_end] = bytes(b);
  return a_begin < b_end && b_begin < a_end;
}

void raise_on_error(cattn_status status) {
  switch (status) {
    case CATTN_OK: return;
    case CATTN_ERROR_VALUE: throw py::value_error(cattn_error_message());
    case CATTN_ERROR_TYPE: throw py::type_error(cattn_error_message());
    case CATTN_ERROR_MEMORY:
      PyErr_SetString(PyExc_MemoryError, cattn_error_message());
      throw py::error_already_set();
    case CATTN_ERROR_INTERNAL: break;
  }
  throw std::runtime_error(cattn_error_message());
}

}  // namespace cattn::python
