"""The specification: held against loops in plain Python and against finite differences."""

import math

import numpy as np
import pytest
from support import assert_same, normal

from cattn import AttentionGrads, AttentionResult, reference


def loops(q, k, v, mask, bias, causal, offset, scale):
    """One head, written out: (out, lse, weights)."""
    lq, lk, dv = len(q), len(k), v.shape[1]
    out, lse, weights = np.zeros((lq, dv)), np.full(lq, -np.inf), np.zeros((lq, lk))
    for i in range(lq):
        scores = {}
        for j in range(lk):
            if (mask is None or mask[i, j]) and (not causal or j <= i + offset):
                s = scale * sum(float(a) * float(b) for a, b in zip(q[i], k[j], strict=True))
                s += 0 if bias is None else float(bias[i, j])
                if s > -math.inf:
                    scores[j] = s
        if scores:
            lse[i] = math.log(sum(math.exp(s) for s in scores.values()))
        for j, s in scores.items():
            weights[i, j] = math.exp(s - lse[i])
            out[i] += weights[i, j] * v[j]
    return out, lse, weights


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("lq", "lk"), [(5, 7), (7, 5), (1, 1), (3, 0), (0, 3)])
def test_against_loops(lq, lk, planes, causal):
    rng = np.random.default_rng(lq + 10 * lk)
    q, k, v = (rng.standard_normal((2, 4, n, d)) for n, d in ((lq, 3), (lk, 3), (lk, 2)))
    k, v = k[:, :2], v[:, :2]
    mask = rng.random((2, 4, lq, lk)) < 0.6 if planes else None
    bias = rng.standard_normal((2, 4, lq, lk)) if planes else None
    if planes:
        bias[rng.random(bias.shape) < 0.2] = -np.inf
    result = reference.attention(
        q, k, v, mask=mask, bias=bias, causal=causal, return_lse=True, return_weights=True
    )
    assert isinstance(result, AttentionResult)
    for b in range(2):
        for h in range(4):
            expected = loops(
                q[b, h], k[b, h // 2], v[b, h // 2],
                None if mask is None else mask[b, h], None if bias is None else bias[b, h],
                causal, lk - lq, 3**-0.5,
            )  # fmt: skip
            for a, e in zip(result, expected, strict=True):
                np.testing.assert_allclose(a[b, h], e, rtol=1e-12, atol=1e-14)


def test_gradients_by_finite_differences():
    rng = np.random.default_rng(0)
    arrays = {
        "q": rng.standard_normal((2, 4, 5, 3)),
        "k": rng.standard_normal((2, 7, 3)),
        "v": rng.standard_normal((2, 1, 7, 2)).repeat(2, axis=1),
        "bias": rng.standard_normal((4, 1, 7)),
    }
    options = {"causal": True, "causal_offset": 1, "mask": rng.random((5, 7)) < 0.8}
    options["mask"][:, 0] = True
    dout, dlse = rng.standard_normal((2, 4, 5, 2)), rng.standard_normal((2, 4, 5))

    def loss(arrays):
        out, lse, _ = reference.attention(**arrays, **options, return_lse=True)
        return (dout * out).sum() + (dlse * lse).sum()

    out, lse, _ = reference.attention(**arrays, **options, return_lse=True)
    gradients = reference.attention_backward(
        dout, out=out, lse=lse, dlse=dlse, grads=list(arrays), **arrays, **options
    )
    assert isinstance(gradients, AttentionGrads)
    step = 1e-5
    for name, array in arrays.items():
        gradient = getattr(gradients, f"d{name}")
        assert gradient.shape == array.shape
        for at in range(array.size):
            moved = [array.copy(), array.copy()]
            moved[0].flat[at] += step
            moved[1].flat[at] -= step
            up, down = (loss({**arrays, name: a}) for a in moved)
            assert gradient.flat[at] == pytest.approx((up - down) / (2 * step), abs=1e-8)


def test_float64_whatever_comes_in():
    q = normal(3, 4, dtype=np.float32)
    for array in (q, q.astype(np.float16), q.astype(np.float64), q.tolist()):
        result = reference.attention(array, array, array, return_lse=True)
        assert result.out.dtype == result.lse.dtype == np.float64
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    half = q.astype(bfloat16)
    assert_same(
        reference.attention(half, half, half), reference.attention(*[half.astype(float)] * 3)
    )


def test_what_is_masked_stays_out():
    q, k, v = normal(3, 4, 2, dtype=np.float64, count=3)
    mask = np.array([True, True, True, False])
    k, v = k.copy(), v.copy()
    k[:, 3], v[:, 3] = np.nan, np.inf
    few = reference.attention(q, k[:, :3], v[:, :3], return_lse=True)
    result = reference.attention(q, k, v, mask=mask, return_lse=True)
    for a, e in zip(result[:2], few[:2], strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-14)
    dq, dk, dv, *_ = reference.attention_backward(q, q, k, v, *result[:2], mask=mask)
    assert all(np.isfinite(g).all() for g in (dq, dk, dv))
    assert (dk[:, 3] == 0).all()
    assert (dv[:, 3] == 0).all()


def test_only_what_is_asked_for():
    q = normal(3, 4, dtype=np.float64)
    assert isinstance(reference.attention(q, q, q), np.ndarray)
    result = reference.attention(q, q, q, return_weights=True)
    assert result.lse is None
    out, lse, _ = reference.attention(q, q, q, return_lse=True)
    gradients = reference.attention_backward(q, q, q, q, out, lse, grads=("k",))
    assert [g is None for g in gradients] == [True, False, True, True, True]


def test_unknown_words():
    q = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"layout.*'lbhd'"):
        reference.attention(q, q, q, layout="lbhd")
    with pytest.raises(ValueError, match=r"grads.*'w'"):
        reference.attention_backward(q, q, q, q, q, q[:, 0], grads=("w",))
    with pytest.raises(ValueError, match="bias"):
        reference.attention_backward(q, q, q, q, q, q[:, 0], grads=("bias",))


def test_merge_of_nothing():
    """Without a key on one side the other side is the result; on both, 0 and -inf."""
    out, lse = np.ones((2, 3)), np.zeros(2)
    nothing, empty = np.zeros((2, 3)), np.full(2, -np.inf)
    for a, b in (((out, lse), (nothing, empty)), ((nothing, empty), (out, lse))):
        assert_same(reference.merge_attention(*a, *b), (out, lse))
    assert_same(reference.merge_attention(nothing, empty, nothing, empty), (nothing, empty))
