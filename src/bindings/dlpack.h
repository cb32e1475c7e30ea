// Arrays of other libraries through the DLPack protocol, without a copy.
#pragma once
#include "bindings/arrays.h"

namespace cattn::python {

// Whether the object offers its memory by `__dlpack__`.
bool has_dlpack(const py::object& object);

// Its memory as an array that keeps it alive, and whether the elements are bfloat16, which the
// array then holds as uint16: NumPy has no such type of its own.
struct DlpackArray {
  py::array array;
  bool bfloat16;
};
DlpackArray from_dlpack(const char* name, const py::object& object);

}  // namespace cattn::python
