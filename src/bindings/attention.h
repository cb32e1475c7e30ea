// The functions that the Python layer calls. Options come as a dict of those that are given;
// defaults and documentation live in cattn/.
#pragma once
#include "bindings/arrays.h"

namespace cattn::python {

// (out, lse or None, weights or None). cu_seqlens: None, or (q's, k's) for packed sequences.
py::tuple attention(const py::object& q, const py::object& k, const py::object& v,
                    const py::object& cu_seqlens, const py::dict& options,
                    const py::object& return_lse, const py::object& return_weights,
                    const py::object& out);

// {"q", "k", "v", "bias", "sinks"}, those in `grads`: each of the full broadcast shape (bias and
// sinks: of their own), and of float32 for half types that broadcast.
py::dict attention_backward(const py::object& dout, const py::object& q, const py::object& k,
                            const py::object& v, const py::object& out, const py::object& lse,
                            const py::object& dlse, const py::object& cu_seqlens,
                            const py::set& grads, const py::dict& options);

// (out, dout)
py::tuple attention_jvp(const py::object& q, const py::object& k, const py::object& v,
                        const py::object& dq, const py::object& dk, const py::object& dv,
                        const py::object& cu_seqlens, const py::dict& options);

py::object dropout_mask(const std::vector<int64_t>& shape, const py::object& dropout,
                        const py::object& seed);

py::object rope(const py::object& x, const py::object& cos, const py::object& sin,
                const py::object& interleaved, bool inverse, const py::object& layout,
                const py::object& num_threads);

}  // namespace cattn::python
