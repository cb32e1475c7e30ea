// NumPy arrays as cattn_array, and back.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cattn.h"

namespace cattn::python {

namespace py = pybind11;

// What an argument may hold. Rows are floating too, with a contiguous last axis.
enum class Kind { rows, floating, boolean, integer };

// Words and flags, with errors that name the argument.
bool parse_bool(const char* name, const py::object& object);
uint32_t parse_layout(const py::object& word);  // 0 or CATTN_BLHD

// An argument: the array that keeps the memory alive and its description. Absent for None.
struct Argument {
  py::object array;  // null for an absent one: making an empty array takes longer than a small call
  cattn_array description{};

  explicit operator bool() const { return description.data != nullptr; }
};

// An input as it is, or as one copy where the core could not walk it (rows that are not contiguous,
// misaligned, foreign byte order). Integers become int64.
Argument input(const char* name, const py::object& object, Kind kind);

// The floating-point array that input() reads, for Python to look at.
py::object as_array(const char* name, const py::object& object);

// A new array for an output that the core has described.
Argument new_output(const cattn_array& description);

// The caller's `out=`, checked against the description. Shape and dtype must be exact.
Argument given_output(const char* name, const py::object& object, const cattn_array& description);

// to[...] = from
void copy(const py::object& from, const py::object& to);

// Whether the memory of two arrays may overlap.
bool may_overlap(const Argument& a, const Argument& b);

// Raises the Python exception of a status other than CATTN_OK.
void raise_on_error(cattn_status status);

}  // namespace cattn::python
