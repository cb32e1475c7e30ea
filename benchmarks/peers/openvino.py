"""OpenVINO: a model of one ScaledDotProductAttention."""

from __future__ import annotations

import openvino
from openvino import opset13

from cases import Case
from peers.base import Inputs, Task, require_float32, require_forward


def prepare(case: Case, inputs: Inputs) -> Task:
    """Compiled for latency, in place. Repeating the keys of grouped heads is not timed."""
    require_forward(case)
    require_float32(case)
    inputs = inputs.expanded()
    added = inputs.added()
    arrays = [inputs.q, inputs.k, inputs.v, *([] if added is None else [added[None]])]
    parameters = [opset13.parameter(list(x.shape), x.dtype.type) for x in arrays]
    attention = opset13.scaled_dot_product_attention(*parameters, causal=case.causal)
    compiled = openvino.Core().compile_model(
        openvino.Model([attention], parameters),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": case.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()
    for index, array in enumerate(arrays):
        request.set_input_tensor(index, openvino.Tensor(array))
    return Task(
        lambda: request.infer(share_outputs=True),
        lambda _: (request.get_output_tensor().data.copy(),),
    )
