// The memory of large results. The C library gives large blocks back to the system when an array
// dies, and the next call gets every page of its results anew, which takes about a microsecond a
// page: a tenth of a backward pass over many short sequences. So some memory stays here.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>

namespace cattn::python {

// Results from as many bytes on come from here, smaller ones from NumPy.
constexpr size_t kLargeResult = size_t{1} << 20;
// Bytes that are kept at most, of results that are no longer in use.
constexpr size_t kKeptResults = size_t{64} << 20;

// `bytes` bytes that live as long as the capsule does.
struct ResultMemory {
  void* data;
  pybind11::capsule owner;
};
ResultMemory result_memory(size_t bytes);

}  // namespace cattn::python
