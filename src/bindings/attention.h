// The functions that the Python layer calls. Arguments are positional and complete: defaults and
// documentation live in cattn/.
#pragma once
#include "bindings/arrays.h"

namespace cattn::python {

// (out, lse or None, weights or None)
py::tuple attention(const py::object& q, const py::object& k, const py::object& v,
                    const py::object& mask, const py::object& bias, const py::object& causal,
                    const py::object& causal_offset, const py::object& scale,
                    const py::object& layout, const py::object& return_lse,
                    const py::object& return_weights, const py::object& out,
                    const py::object& num_threads);

// (dq, dk, dv, dbias), each of the full broadcast shape (dbias: of bias's) or None
py::tuple attention_backward(const py::object& dout, const py::object& q, const py::object& k,
                             const py::object& v, const py::object& out, const py::object& lse,
                             const py::object& dlse, bool want_q, bool want_k, bool want_v,
                             bool want_bias, const py::object& mask, const py::object& bias,
                             const py::object& causal, const py::object& causal_offset,
                             const py::object& scale, const py::object& layout,
                             const py::object& num_threads);

}  // namespace cattn::python
