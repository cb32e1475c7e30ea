// Options of the attention functions: from Python to the C struct.
#pragma once
#include "bindings/arrays.h"

namespace cattn::python {

// The inputs and options that all directions share. Holds the arrays that the problem points to.
struct Inputs {
  Inputs(const py::object& q, const py::object& k, const py::object& v,
         const py::object& cu_seqlens, const py::dict& options);

  Argument q, k, v, mask, bias, causal_offset, alibi_slopes, sinks, kv_lengths, cu_seqlens_q,
      cu_seqlens_k;
  py::object seed;  // null if not given
  cattn_attention problem;

 private:
  void read(const py::dict& options, bool packed);
};

// An argument of rows, which must not be None.
Argument required(const char* name, const py::object& object);

int32_t parse_num_threads(const py::object& object);
double parse_number(const char* name, const py::object& object);
uint64_t parse_seed(const py::object& object);

}  // namespace cattn::python
