"""ONNX Runtime: its own fused operators, whichever it has for the case."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper

from cases import Case
from environment import held_to
from peers.base import (
    Array,
    Inputs,
    Task,
    Unsupported,
    require_float32,
    require_forward,
    require_memory,
)


def prepare(case: Case, inputs: Inputs) -> Task:
    """MultiHeadAttention if dense, GroupQueryAttention, always causal, if causal."""
    require_forward(case)
    require_float32(case)
    if case.causal and (case.mask or case.bias):
        raise Unsupported("masks and biases are not measured with causality")
    if held_to() in ("generic", "avx2"):
        raise Unsupported("cannot be held to an instruction set")
    if case.causal:
        require_memory(case, 2)
        session, feeds = _causal(case, inputs)
    else:
        session, feeds = _dense(case, inputs)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    out = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(feeds["q"]))
    binding.bind_ortvalue_output("out", out)

    def result() -> tuple[Array, ...]:
        heads = out.numpy().reshape(case.batch, -1, case.heads, case.head_dim)
        return (heads.transpose(0, 2, 1, 3),)

    return Task(lambda: session.run_with_iobinding(binding), lambda _: result())


def _tokens_first(x: Array) -> Array:
    """(B, H, L, D) as (B, L, H·D)."""
    batch, _, length, _ = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(batch, length, -1)


def _dense(case: Case, inputs: Inputs) -> tuple[onnxruntime.InferenceSession, dict[str, Array]]:
    inputs = inputs.expanded()
    feeds = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    feeds = {name: _tokens_first(array) for name, array in feeds.items()}
    names, added = ["q", "k", "v"], inputs.added()
    if added is not None:
        names += ["", "", "added"]  # behind a bias of projections and a mask of keys
        feeds["added"] = added[None]
    node = helper.make_node(
        "MultiHeadAttention", names, ["out"], domain="com.microsoft", num_heads=case.heads
    )
    return _session(case, node, feeds), feeds


def _causal(case: Case, inputs: Inputs) -> tuple[onnxruntime.InferenceSession, dict[str, Array]]:
    node = helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "", "", "last_key", "length"],
        ["out", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=case.heads,
        kv_num_heads=inputs.k.shape[1],
    )
    feeds = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    feeds = {name: _tokens_first(array) for name, array in feeds.items()}
    feeds["last_key"] = np.full(case.batch, case.length - 1, dtype=np.int32)
    feeds["length"] = np.array([case.length], dtype=np.int32)
    return _session(case, node, feeds), feeds


def _session(case: Case, node: NodeProto, feeds: dict[str, Array]) -> onnxruntime.InferenceSession:
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, feeds["q"].shape)
    graph = helper.make_graph([node], "attention", values, [out])
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    # Its threads would go on spinning while the next library is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
