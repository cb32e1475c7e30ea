"""Keys that have their turn in units of 32 or 64, beside the products of others (AMX): sizes that
straddle the units, their chunks, groups of rows and panels of values."""

import dataclasses

import bounds
import numpy as np
import pytest
from cases import Case, check_backward, check_forward, problem

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")

CASES = [
    Case(113, 545, 24, 80),
    Case(120, 161, 64, 64, hq=2, mask=(120, 161)),
    Case(150, 641, 40, 200, causal=True),
    Case(256, 1100, 16, 96, window=(300, 7)),
    Case(128, 256, 32, 64, causal=True, causal_offset=40, sinks=True),
    Case(145, 129, 72, 130, hq=4, hkv=2),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_float32(case, precision):
    q, k, v, options, *_ = problem(case, np.dtype(np.float32))
    exact = reference.attention(q, k, v, **options)
    limit = bounds.attention_bound(q, k, v, **options, precision=precision).out
    assert bounds.worst(cattn.attention(q, k, v, **options, precision=precision), exact, limit) <= 1


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_half(case, half, record):
    check_forward(case, half, record)
    check_backward(case, half, record)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_gradients(case, record):
    check_backward(case, np.dtype(np.float32), record)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(
    "case",
    [
        Case(70, 3400, 64, 64),
        Case(300, 3400, 64, 64, hq=2, causal=True, causal_offset=3100),
        Case(33, 3400, 64, 64, window=(2900, 100), causal_offset=3300),
        Case(140, 1800, 128, 96),
        Case(140, 1800, 128, 128, causal=True, causal_offset=1660),
        Case(40, 2200, 260, 140),
    ],
    ids=range(6),
)
def test_keys_that_do_not_stay_in_the_cache(case, precision, record):
    """More than 1.6 MB of them: multiply-adds fetch them ahead, and AMX with three parts, which
    takes fewer at a time then; but not what is as large as in the last case."""
    check_forward(dataclasses.replace(case, precision=precision), np.dtype(np.float32), record)


@pytest.mark.parametrize(("keys", "head_dim"), [(1100, 128), (3400, 96)])
def test_the_size_of_other_rows_does_not_tell(keys, head_dim):
    """Large numbers in one row of a block take another way through the kernels."""
    rng = np.random.default_rng(5)
    q, k, v = (
        rng.standard_normal((1, length, head_dim), dtype=np.float32) for length in (96, keys, keys)
    )
    large = q.copy()
    large[:, ::8] *= 10
    same = np.arange(96) % 8 != 0
    ours, beside_large = (cattn.attention(x, k, v)[:, same] for x in (q, large))
    np.testing.assert_array_equal(ours.view(np.uint8), beside_large.view(np.uint8))


# Weights of so few keys that they are one block are rounded with maxima, which a mask does not
# know: no narrow windows of bfloat16. Three parts are summed afresh every few blocks from the first
# one that is attended, with a mask from the first of all: no left edge alone of "highest".
WIDE, NARROW, LEFT = [(None, 0), (250, 7)], [(10, 5), (40, 3)], [(30, None)]
EDGES = [
    (kind, window)
    for kind, windows in {
        "bfloat16": WIDE + LEFT,
        "high": WIDE + NARROW + LEFT,
        "highest": WIDE + NARROW,
    }.items()
    for window in windows
]


@pytest.mark.parametrize(("kind", "window"), EDGES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_bits_are_those_of_a_mask(kind, window, head_dim):
    """An edge of the band in many places of a unit and of a group of rows; what a mask hides is
    hidden in a pass over the scores."""
    rng = np.random.default_rng(3)
    half = kind == "bfloat16"
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if half else np.float32
    q, k, v = (
        rng.standard_normal((heads, length, head_dim)).astype(dtype)
        for heads, length in ((2, 90), (1, 600), (1, 600))
    )
    precision = "highest" if half else kind
    left, right = (600 if side is None else side for side in window)
    key = np.arange(600)
    for offset in (200, 201, 215, 216, 231, 232, 247, 249, 263):
        position = np.arange(90)[:, None] + offset
        mask = (key >= position - left) & (key <= position + right)

        def attention(**seen):
            out = cattn.attention(q, k, v, precision=precision, **seen)
            with_lse = cattn.attention(q, k, v, precision=precision, return_lse=True, **seen)
            return out, *with_lse[:2]

        ours = attention(window=window, causal_offset=offset)
        masked = attention(mask=mask)
        for x, y in zip(ours, masked, strict=True):
            np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))
