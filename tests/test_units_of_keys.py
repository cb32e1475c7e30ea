"""Keys that have their turn in units of 32 or 64, beside the products of others (AMX): sizes that
straddle the units, their chunks, groups of rows and panels of values."""

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
