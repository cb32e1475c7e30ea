"""Rotary position embedding: the reference's values on every instruction set; its properties."""

import bounds
import numpy as np
import pytest
from support import assert_same, normal

import cattn
from cattn import reference

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("size", "rotary"), [(2, 2), (8, 4), (34, 34), (66, 64), (128, 128)])
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_within_the_bound(any_dtype, isa, record, layout, size, rotary, interleaved):
    x = normal(2, 3, 5, size, dtype=any_dtype)
    length = x.shape[-3 if layout == "blhd" else -2]
    frequencies = 10000.0 ** (-np.arange(0, rotary, 2) / rotary)
    options = {"rotary_dim": rotary, "interleaved": interleaved, "layout": layout}
    for positions in (
        np.arange(length),
        np.arange(2 * length).reshape(2, length) * 7,
        np.linspace(-3, 1e5, length),
    ):
        angles = positions[..., None] * frequencies
        tables = np.cos(angles), np.sin(angles)
        for ours, theirs in (
            (cattn.rope, reference.rope),
            (cattn.rope_backward, reference.rope_backward),
        ):
            actual = ours(x, positions, **options)
            assert actual.dtype == any_dtype
            expected = theirs(x, positions, **options)
            limit = bounds.rope_bound(x, *tables, of=theirs, **options)
            record("rope", any_dtype, bounds.worst(actual, expected, limit, "rope"))
            assert_same(actual[..., rotary:], x[..., rotary:])


def test_tables(dtype):
    x = normal(3, 5, 8, dtype=dtype)
    angles = np.arange(9)[:, None] * 10000.0 ** -(np.arange(0, 8, 2) / 8)
    cos, sin = np.cos(angles), np.sin(angles)
    positions = np.array([8, 0, 3, 3, 1])
    expected = cattn.rope(x, positions)
    np.testing.assert_array_equal(cattn.rope(x, positions, cos=cos, sin=sin), expected)
    rows = {"cos": cos[positions], "sin": sin[positions]}
    np.testing.assert_array_equal(cattn.rope(x, None, **rows), expected)
    # A table of fewer columns turns fewer features.
    np.testing.assert_array_equal(
        cattn.rope(x, positions, cos=cos[:, :2], sin=sin[:, :2])[..., 4:], x[..., 4:]
    )


def test_scores_depend_on_the_distance_alone(dtype):
    q, k = normal(1, 16, dtype=dtype), normal(1, 16, dtype=dtype, seed=1)
    scores = [
        float(cattn.rope(q, [i])[0] @ cattn.rope(k, [j])[0]) for i, j in [(5, 2), (13, 10), (3, 0)]
    ]
    tolerance = 100 * UNIT[np.dtype(dtype).name]
    assert np.ptp(scores) <= tolerance * np.abs(q).sum() * np.abs(k).max()


def test_rotations_keep_lengths_and_are_undone(any_dtype):
    x = normal(2, 70, 32, dtype=any_dtype)
    turned = cattn.rope(x, np.arange(70))
    tolerance = 8 * max(UNIT[np.dtype(any_dtype).name], 2.0**-24)
    lengths = [np.linalg.norm(np.asarray(a, np.float64), axis=-1) for a in (x, turned)]
    np.testing.assert_allclose(*lengths, rtol=tolerance)
    back = cattn.rope_backward(turned, np.arange(70))
    np.testing.assert_allclose(
        np.asarray(back, np.float64), np.asarray(x, np.float64), atol=4 * tolerance
    )


def test_strides_and_threads(dtype):
    whole = normal(4, 300, 3, 64, dtype=dtype)
    view = whole[::2, ::-1, 1:]
    expected = cattn.rope(view.copy(), np.arange(300), layout="blhd", num_threads=1)
    actual = cattn.rope(view, np.arange(300), layout="blhd", num_threads=3)
    np.testing.assert_array_equal(actual, expected)
    assert cattn.rope(whole[:, :0], np.arange(0), layout="blhd").shape == (4, 0, 3, 64)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"x": np.ones(4)}, ValueError, r"INPUT: shape \(4,\)"),
    ({"x": np.ones((2, 4), int)}, TypeError, r"INPUT: dtype int64"),
    ({"positions": [0, 1, 2]}, ValueError, r"positions: 3 rows, expected 2"),
    ({"positions": None}, ValueError, r"positions: is None"),
    ({"positions": ["a", "b"]}, TypeError, r"positions: dtype"),
    ({"rotary_dim": 3}, ValueError, r"rotary_dim: is 3"),
    ({"rotary_dim": 6}, ValueError, r"rotary_dim: is 6"),
    ({"base": 0.0}, ValueError, r"base: is 0.0"),
    ({"base": np.nan}, ValueError, r"base: is nan"),
    ({"cos": np.ones((2, 2))}, ValueError, r"cos, sin: one table"),
    ({"cos": np.ones((2, 2)), "sin": np.ones((3, 2))}, ValueError, r"sin: shape \(3, 2\)"),
    ({"cos": np.ones((1, 2)), "sin": np.ones((1, 2))}, ValueError, r"positions: contains 1"),
    ({"cos": np.ones((2, 4)), "sin": np.ones((2, 4))}, ValueError, r"cos: shape \(2, 4\)"),
    ({"positions": [0, -1], "cos": np.ones((2, 2)), "sin": np.ones((2, 2))}, ValueError,
     r"positions: contains -1"),
    ({"cos": np.ones((1, 2, 2)), "sin": np.ones((1, 2, 2))}, ValueError, r"cos: shape \(1, 2, 2\)"),
    ({"cos": 1.0, "sin": 1.0}, ValueError, r"cos: shape \(\)"),
    ({"positions": None, "cos": np.ones((9, 2)), "sin": np.ones((9, 2))}, ValueError,
     r"cos: 9 rows"),
    ({"cos": np.ones((2, 2)), "sin": np.ones((2, 2)), "rotary_dim": 2}, ValueError,
     r"rotary_dim: is 2, the tables have 2 columns"),
    ({"rotary_dim": 2.0}, TypeError, r"rotary_dim: is 2.0"),
    ({"rotary_dim": False}, TypeError, r"rotary_dim: is False"),
    ({"base": "x"}, TypeError, r"base: is 'x'"),
    ({"base": 10**400}, ValueError, r"base: is 1000"),
    ({"positions": np.zeros((3, 2))}, ValueError, r"positions: has leading axes \(3,\)"),
    ({"layout": np.array(["bhld", "blhd"])}, ValueError, r"layout: is array"),
    ({"base": True}, TypeError, r"base: is True"),
    ({"interleaved": 1}, TypeError, r"interleaved: is 1"),
    ({"x": np.ones((2, 3))}, ValueError, r"INPUT: has 3 features"),
    ({"layout": "lbhd"}, ValueError, r"layout: is 'lbhd'"),
    ({"num_threads": 0}, ValueError, r"num_threads: is 0"),
])  # fmt: skip
def test_errors(arguments, error, message):
    arguments = {"x": np.ones((2, 4)), "positions": [0, 1], **arguments}
    x = arguments.pop("x")
    for function, name in ((cattn.rope, "x"), (cattn.rope_backward, "dout")):
        with pytest.raises(error, match="^" + message.replace("INPUT", name)):
            function(x, **arguments)


def test_what_is_an_array_to_attention_is_one_to_rope(dtype):
    x = normal(2, 4, dtype=dtype)
    expected = cattn.rope(x, [0, 1])
    assert_same(cattn.rope(list(x), [0, 1]), expected)
    assert_same(cattn.rope(x.astype(x.dtype.newbyteorder(">")), [0, 1]), expected)
