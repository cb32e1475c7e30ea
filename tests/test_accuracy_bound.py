"""The bounds themselves: tight enough to mean something, and errors that they must catch."""

import bounds
import numpy as np
import pytest
from cases import Case, backward, forward, problem

import cattn
from cattn import reference


def test_bounds_are_small_for_a_usual_problem(dtype):
    """At L = 256, D = 64 some units for each of the terms that are summed."""
    u = bounds.unit_roundoff(dtype)
    case = Case(64, 256, 64, 64)
    exact, bound = forward(case, dtype)
    terms = 256 + 64
    assert bound.out.max() < 5 * terms * u
    assert bound.lse.max() < 5 * terms * u
    assert (bound.weights / exact.weights).max() < 10 * terms * u
    gradients = backward(case, dtype)
    for b in gradients.bound[:3]:
        assert b.max() < 20 * terms * u


def test_bounds_are_a_few_units_for_a_tiny_problem(dtype):
    """With one key and one number there is hardly anything to round."""
    u = bounds.unit_roundoff(dtype)
    _, bound = forward(Case(1, 1, 1, 1, scale=1.0), dtype)
    q, k, v, *_ = problem(Case(1, 1, 1, 1, scale=1.0), dtype)
    assert bound.out.item() < 80 * u * (1 + abs(q * k).item()) * abs(v).item()


def test_bounds_shrink_with_the_precision():
    case = Case(20, 70, 16, 16)
    single, double = (forward(case, np.dtype(d)).bound for d in (np.float32, np.float64))
    for s, d in zip(single, double, strict=True):
        ratio = np.median(s / d)
        assert 2.0**28 < ratio < 2.0**30


def test_empty_rows_have_no_room_for_error(dtype):
    _, bound = forward(Case(6, 4, 3, 3, causal=True), dtype)
    assert (bound.out[:, :2] == 0).all()
    assert (bound.lse[:, :2] == 0).all()


def test_masked_weights_have_no_room_for_error(dtype):
    case = Case(20, 30, 4, 4, causal=True)
    _, bound = forward(case, dtype)
    assert (bound.weights[0][~np.tri(20, 30, 10, bool)] == 0).all()


@pytest.mark.parametrize("flaw", [
    "weak exponential", "half precision", "one key lost", "mask off by one", "no scale",
])  # fmt: skip
def test_flawed_kernels_are_caught(flaw):
    """Each flaw is the sort of thing that a kernel could do; float32 has to show it."""
    dtype = np.dtype(np.float32)
    q, k, v, *_ = problem(Case(40, 48, 8, 8), dtype)
    scale = 1.0 if flaw == "no scale" else 8**-0.5
    s = scale * (q @ k.swapaxes(1, 2)).astype(np.float64)
    if flaw == "mask off by one":
        s[..., -1] = -np.inf
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    if flaw == "weak exponential":  # a polynomial of too low a degree: error 2e-5
        p *= 1 + 2e-5 * np.sign(np.sin(5 * s))
    if flaw == "half precision":
        p = p.astype(np.float16).astype(np.float64)
    if flaw == "one key lost":
        p[:, :, 31] = 0
    out = (p @ v.astype(np.float64)) / p.sum(axis=-1, keepdims=True)
    exact, bound = forward(Case(40, 48, 8, 8), dtype)
    with pytest.raises(AssertionError, match="error / bound"):
        bounds.worst(out.astype(dtype), exact.out, bound.out)


@pytest.mark.parametrize(("right", "wrong"), [
    ({"window": (9, 3)}, {"window": (9, 4)}),
    ({"window": (9, 3)}, {"window": (8, 3)}),
    ({"softcap": 3.0}, {"softcap": 3.0 + 2e-4}),
    ({"softcap": 30.0}, {"softcap": 30.0 + 2e-1}),
    ({"alibi_slopes": [0.5]}, {"alibi_slopes": [0.5 + 1e-5]}),
    ({"alibi_slopes": [0.1], "causal_offset": 8}, {"alibi_slopes": [0.1], "causal_offset": 9}),
    ({"sinks": [1.0]}, {"sinks": [1.0 + 1e-3]}),
    ({"sinks": [-6.0]}, {}),
    ({"kv_lengths": 40}, {"kv_lengths": 41}),
    ({"dropout": 0.2, "seed": 1}, {"dropout": 0.2, "seed": 2}),
    ({"dropout": 0.2, "seed": 1}, {"dropout": 0.2001, "seed": 1}),
], ids=str)  # fmt: skip
def test_slightly_wrong_options_are_caught(right, wrong):
    """Each is the sort of thing that a kernel could get wrong; float32 has to show it."""

    def arrays(options):
        return {n: np.array(o, np.float32) if type(o) is list else o for n, o in options.items()}

    q, k, v, _, dout, dlse = problem(Case(40, 48, 8, 8), np.dtype(np.float32))
    right, wrong = arrays(right), arrays(wrong)
    exact = reference.attention(q, k, v, **right, return_lse=True)
    out = cattn.attention(q, k, v, **wrong)
    with pytest.raises(AssertionError, match="error / bound"):
        bounds.worst(out, exact.out, bounds.attention_bound(q, k, v, **right).out)
    arguments = (dout, q, k, v, *(a.astype(np.float32) for a in exact[:2]))
    exact = reference.attention_backward(*arguments, dlse=dlse, **right)
    limit = bounds.attention_backward_bound(*arguments, dlse=dlse, **right)
    actual = cattn.attention_backward(*arguments, dlse=dlse, **wrong)
    if "sinks" not in right:  # the weights come from the lse, whatever the sinks
        with pytest.raises(AssertionError, match="error / bound"):
            bounds.worst(actual.dq, exact.dq, limit.dq)


def test_half_types_must_be_rounded_once(half, monkeypatch):
    """Truncation, and a second rounding to fewer digits, are more than half an ulp off."""
    # Of multiply-adds: products of pairs have another error of half an ulp.
    monkeypatch.setattr(bounds, "PAIRS", {})
    case = Case(40, 48, 8, 8)
    exact, bound = forward(case, half)
    good = exact.out.astype(half)
    assert bounds.worst(good, exact.out, bound.out) <= 1
    truncated = exact.out.astype(np.float32).view(np.uint32)
    truncated = truncated & np.uint32(0xFFFFE000 if half == np.float16 else 0xFFFF0000)
    for bad in (truncated.view(np.float32), (exact.out / 3).astype(half).astype(float) * 3):
        with pytest.raises(AssertionError, match="error / bound"):
            bounds.worst(bad.astype(half), exact.out, bound.out)


def test_worst_reports_nan_and_wrong_shapes():
    one = np.ones(3)
    assert bounds.worst(one, one, 0 * one) == 0
    assert bounds.worst(one + 1e-3, one, 2e-3 * one) == pytest.approx(0.5)
    for wrong in (one * np.nan, one + 1e-9, one[:2], np.array([1, 1, np.inf])):
        with pytest.raises(AssertionError):
            bounds.worst(wrong, one, 0 * one)
    with pytest.raises(AssertionError):
        bounds.worst(one, one * np.nan, one)
    infinite = np.full(3, -np.inf)
    assert bounds.worst(infinite, infinite, 0 * one) == 0


@pytest.mark.usefixtures("isa")
def test_float32_is_no_worse_than_numpy():
    """The mean error is at most that of the textbook formula in NumPy at float32."""
    dtype = np.dtype(np.float32)
    for lk, d in ((256, 64), (1000, 32)):
        case = Case(128, lk, d, d)
        q, k, v, *_ = problem(case, dtype)
        s = (q @ k.swapaxes(1, 2)) * np.float32(d**-0.5)
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        textbook = (p / p.sum(axis=-1, keepdims=True)) @ v
        exact = forward(case, dtype).exact.out
        ours = np.abs(cattn.attention(q, k, v) - exact).mean()
        assert ours <= 1.2 * np.abs(textbook - exact).mean()
