"""The ONNX operators' own test cases, compared as the operators' own runner does."""

import warnings

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")

import onnx_attention  # noqa: E402
from onnx.backend.test.runner import Runner  # noqa: E402

ADAPTERS = {
    "Attention": onnx_attention.attention,
    "RotaryEmbedding": onnx_attention.rotary_embedding,
}


def collect():
    """For each operator: the cases of one node of it, and those of its definition, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators' cases overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        cases = {case.name: case for case in collect_testcases()}
    collected = {}
    for operator in ADAPTERS:
        nodes = {n: c for n, c in cases.items() if c.model.graph.node[0].op_type == operator}
        collected[operator] = nodes, {n: cases.get(f"{n}_expanded") for n in nodes}
    return collected


CASES = collect()


def run(case, module):
    """The outputs that the case asks for."""
    (node,) = case.model.graph.node
    given = iter(case.data_sets[0][0])
    inputs = [next(given) if name else None for name in node.input]
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Attention":
        options["qk_matmul_output"] = len(node.output) > 3
    result = ADAPTERS[node.op_type](*inputs, **options, module=module)
    outputs = result if isinstance(result, tuple) else (result,)
    return [output for name, output in zip(node.output, outputs, strict=False) if name]


def parameters():
    return [
        pytest.param(case, id=name) for nodes, _ in CASES.values() for name, case in nodes.items()
    ]


@pytest.mark.parametrize("case", parameters())
def test_case(case, module):
    assert len(case.data_sets) == 1
    outputs = run(case, module)
    Runner.assert_similar_outputs(case.data_sets[0][1], outputs, case.rtol, case.atol)


@pytest.mark.parametrize(("operator", "count"), [("Attention", 93), ("RotaryEmbedding", 8)])
def test_there_are_all(operator, count):
    """As many as onnx 1.23.2 has; the cases of the definition hold the same numbers."""
    nodes, definitions = CASES[operator]
    assert len(nodes) == count
    for name, case in nodes.items():
        for one, other in zip(case.data_sets[0], definitions[name].data_sets[0], strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


def by_definition(inputs, outputs, opset, **attributes):
    """The graph of simpler operators that defines Attention, evaluated.

    Not onnx's own Attention: with a softcap its mode 0 gives the scores after it, unlike the
    definition.
    """
    from onnx.reference import ReferenceEvaluator

    given = {name: a for name, a in inputs.items() if a is not None}
    names = [name if name in given else "" for name in inputs]
    node = onnx.helper.make_node("Attention", names, outputs, **attributes)
    types = [
        onnx.helper.make_tensor_type_proto(
            onnx.helper.np_dtype_to_tensor_dtype(given[name].dtype), given[name].shape
        ).SerializeToString()
        if name
        else onnx.TypeProto().SerializeToString()
        for name in names
    ]
    schema = onnx.defs.get_schema("Attention", opset)
    body = schema.get_context_dependent_function(node.SerializeToString(), types)
    function = onnx.FunctionProto.FromString(body)
    feeds = dict(zip(function.input, inputs.values(), strict=False))
    wanted = [formal for formal, name in zip(function.output, outputs, strict=True) if name]
    with np.errstate(invalid="ignore"):  # rows without a key are NaN on the way
        return ReferenceEvaluator(function).run(wanted, feeds, attributes=attributes)


@pytest.mark.parametrize("seed", range(60))
def test_against_the_definition(seed, module):
    """Combinations that the cases leave out, with every output."""
    rng = np.random.default_rng(seed)
    batch, kv_heads, group, lq, new, past, d, dv = rng.integers(1, 5, 8)
    cache = rng.choice(["none", "past", "nonpad"])
    keys = int(new + (past if cache == "past" else 0))

    def array(heads, length, features):
        return rng.standard_normal((batch, heads, length, features)).astype(np.float32)

    q = array(kv_heads * group, lq, d)
    k, v = array(kv_heads, new, d), array(kv_heads, new, dv)
    inputs = dict.fromkeys(
        ["q", "k", "v", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
    )
    shape = (batch, kv_heads * group, lq, rng.integers(1, keys + 1))[rng.integers(0, 3) :]
    kind = rng.choice(["none", "bool", "float"])
    if kind != "none":
        mask = rng.random(shape) < 0.7
        inputs["attn_mask"] = (
            mask if kind == "bool" else np.where(mask, rng.standard_normal(shape), -np.inf)
        ).astype(bool if kind == "bool" else np.float32)
    if cache == "past":
        inputs["past_key"] = array(kv_heads, past, d)
        inputs["past_value"] = array(kv_heads, past, dv)
    if cache == "nonpad":
        inputs["nonpad_kv_seqlen"] = rng.integers(0, keys + 1, batch)
    attributes = {
        "is_causal": int(rng.integers(0, 2)),
        "softcap": float(rng.choice([0.0, 1.5])),
        "scale": float(rng.choice([0.3, d**-0.5])),
        "qk_matmul_output_mode": int(rng.integers(0, 4)),
        "left_window_size": int(rng.integers(-1, 3)),
        "right_window_size": int(rng.integers(-1, 3)),
        "softmax_precision": int(rng.choice([1, 11])),
    }
    if rng.random() < 0.5:
        q, k, v = (a.swapaxes(1, 2).reshape(batch, a.shape[2], -1) for a in (q, k, v))
        attributes |= {"q_num_heads": int(kv_heads * group), "kv_num_heads": int(kv_heads)}
    inputs |= {"q": q, "k": k, "v": v}
    # The definition has no present keys and values beside nonpad_kv_seqlen.
    present = ["present_key", "present_value"] if cache != "nonpad" else ["", ""]
    outputs = ["y", *present, "qk_matmul_output"]
    expected = by_definition(inputs, outputs, 25, **attributes)
    result = onnx_attention.attention(
        *inputs.values(), **attributes, qk_matmul_output=True, module=module
    )
    actual = [a for a, name in zip(result, outputs, strict=True) if name]
    Runner.assert_similar_outputs(expected, actual, rtol=1e-5, atol=1e-6)


def test_errors(module):
    q = np.ones((1, 2, 6), np.float32)
    for options, message in (
        ({}, "q_num_heads: is None"),
        ({"q_num_heads": 4, "kv_num_heads": 2}, "q_num_heads: is 4"),
        ({"q_num_heads": 2}, "kv_num_heads"),
        ({"past_key": q}, "past_key and past_value"),
        ({"past_key": q, "past_value": q, "nonpad_kv_seqlen": [2]}, "nonpad_kv_seqlen"),
    ):
        with pytest.raises(ValueError, match=message):
            onnx_attention.attention(q, q, q, **options, module=module)
    with pytest.raises(ValueError, match="num_heads: is None"):
        onnx_attention.rotary_embedding(q, q, q, module=module)
