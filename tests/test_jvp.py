"""Forward mode: tangents against differences, against the gradients, and where they must be 0.

That they are within the error bound under every option is test_options' matter.
"""

import bounds
import numpy as np
import pytest
from cases import Case, check_tangent, forward, problem, tangent
from support import assert_same, normal

import cattn

pytestmark = pytest.mark.usefixtures("isa")

CASES = {
    "plain": Case(49, 65, 8, 6),
    "groups": Case(20, 70, 8, 6, hq=4, hkv=2, batch=(2,), layout="blhd"),
    "band": Case(49, 65, 8, 6, causal=True, window=(30, 0)),
    "scores": Case(20, 70, 8, 6, hq=2, hkv=2, softcap=1.5, bias=(20, 70), alibi="head", scale=0.7),
    "softmax": Case(20, 70, 8, 6, hq=2, hkv=1, batch=(3,), sinks=True, lengths=True, dropout=0.4),
    "everything": Case(
        49, 65, 8, 6, hq=4, hkv=2, batch=(2,), mask=(49, 65), bias=(65,), softcap=2.0, sinks=True,
        alibi="entry", lengths=True, window=(40, 9), offsets=True, dropout=0.2,
    ),
}  # fmt: skip
DOUBLE = np.dtype(np.float64)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_within_the_bound_around_blocks(any_dtype, record):
    for i, (lq, lk) in enumerate([(1, 1), (47, 64), (48, 129), (97, 63), (96, 256), (2, 1000)]):
        check_tangent(
            Case(lq, lk, 5 + 9 * i, 33 - 4 * i, hq=2, causal=i % 2 > 0), any_dtype, record
        )


def test_the_output_is_that_of_attention(any_dtype, case):
    """To the last bit, unless attention multiplies pairs of bfloat16, which forward mode does not:
    then as near as both are to the exact one."""
    q, k, v, options, *_ = problem(case, any_dtype)
    moves = tangent(case, any_dtype).moves
    out, _ = cattn.attention_jvp(q, k, v, *moves, **options)
    expected = cattn.attention(q, k, v, **options)
    if bounds.multiplies_pairs(any_dtype):
        limit = forward(case, any_dtype).bound.out + tangent(case, any_dtype).bound[0]
        bounds.worst(out, expected.astype(np.float64), limit)
    else:
        assert_same(out, expected)


def test_central_differences(case):
    """Truncation is about step², rounding about 1e-16 / step."""
    q, k, v, options, *_ = problem(case, DOUBLE)
    step = 1e-5
    for which in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        moves = [a * on for a, on in zip(tangent(case, DOUBLE).moves, which, strict=True)]
        _, dout = cattn.attention_jvp(q, k, v, *moves, **options)
        ahead, behind = (
            cattn.attention(*(a + s * m for a, m in zip((q, k, v), moves, strict=True)), **options)
            for s in (step, -step)
        )
        difference = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(dout, difference, rtol=0, atol=1e-8 * (1 + abs(dout).max()))


def test_tangent_and_gradient_are_adjoint(case):
    """⟨dO, J (dq, dk, dv)⟩ = ⟨Jᵀ dO, (dq, dk, dv)⟩, by forward and by reverse mode."""
    q, k, v, options, dout, _ = problem(case, DOUBLE)
    moves = tangent(case, DOUBLE).moves
    _, moved = cattn.attention_jvp(q, k, v, *moves, **options)
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    gradients = cattn.attention_backward(dout, q, k, v, out, lse, **options)
    terms = [g * m for g, m in zip(gradients[:3], moves, strict=True)]
    size = sum(np.abs(t).sum() for t in terms) + np.abs(dout * moved).sum()
    assert abs((dout * moved).sum() - sum(t.sum() for t in terms)) < 1e-13 * size


def test_gradients_by_central_differences(case):
    """Every gradient along random directions; bias and sinks too."""
    q, k, v, options, dout, dlse = problem(case, DOUBLE)
    arrays = {"q": q, "k": k, "v": v}
    arrays |= {n: options[n] for n in ("bias", "sinks") if n in options}
    options = {n: o for n, o in options.items() if n not in arrays}
    result = cattn.attention(**arrays, **options, return_lse=True)
    full = np.isfinite(result.lse)
    dlse = np.where(full, dlse, 0)
    gradients = cattn.attention_backward(
        dout, out=result.out, lse=result.lse, dlse=dlse, grads=list(arrays), **arrays, **options
    )

    def loss(moved):
        out, lse, _ = cattn.attention(**moved, **options, return_lse=True)
        return (dout * out).sum() + (dlse * np.where(full, lse, 0)).sum()

    step, rng = 1e-5, np.random.default_rng(0)
    for name, array in arrays.items():
        gradient = getattr(gradients, f"d{name}")
        for _ in range(2):
            move = np.where(np.isfinite(array), rng.standard_normal(array.shape), 0)
            ahead, behind = (loss(arrays | {name: array + s * move}) for s in (step, -step))
            size = np.abs(gradient * move).sum() + np.abs(dout).sum() + np.abs(dlse).sum()
            slope = (ahead - behind) / (2 * step)
            assert abs((gradient * move).sum() - slope) < 1e-8 * size, name


def test_linear_in_the_tangents(dtype, case):
    q, k, v, options, *_ = problem(case, dtype)
    moves = tangent(case, dtype).moves
    _, once = cattn.attention_jvp(q, k, v, *moves, **options)
    _, twice = cattn.attention_jvp(q, k, v, *(2 * m for m in moves), **options)
    assert_same(twice, 2 * once)  # powers of two are exact
    _, nothing = cattn.attention_jvp(q, k, v, *(0 * m for m in moves), **options)
    assert (nothing == 0).all()
    parts = [
        cattn.attention_jvp(q, k, v, *(m * (i == j) for j, m in enumerate(moves)), **options)[1]
        for i in range(3)
    ]
    limit = tangent(case, dtype).bound[1]
    sized = limit + sum(np.abs(p) for p in parts) * 4 * np.finfo(dtype).eps
    assert (np.abs(sum(parts) - once) <= 4 * sized + 16 * np.finfo(dtype).eps).all()


def test_tangents_of_what_is_masked_stay_out(dtype):
    """NaN in keys, values and their tangents, where no query attends them."""
    q, k, v, dq, dk, dv = normal(2, 70, 8, dtype=dtype, count=6)
    options = {"kv_lengths": 40, "causal": True}
    clean = cattn.attention_jvp(q, k, v, dq, dk, dv, **options)
    for a in (k, v, dk, dv):
        a[:, 40:] = np.nan
    assert_same(cattn.attention_jvp(q, k, v, dq, dk, dv, **options), clean)
    mask = np.arange(70) < 40
    q, k, v, dq, dk, dv = (np.where(np.isnan(a), np.inf, a) for a in (q, k, v, dq, dk, dv))
    out, dout = cattn.attention_jvp(q, k, v, dq, dk, dv, mask=mask)
    assert np.isfinite(out).all()
    assert np.isfinite(dout).all()


def test_rows_without_a_key(any_dtype):
    q, k, v, dq, dk, dv = normal(2, 9, 8, dtype=any_dtype, count=6)
    for options in ({"mask": np.False_}, {"kv_lengths": 0}, {"causal": True, "causal_offset": -9}):
        for result in cattn.attention_jvp(q, k, v, dq, dk, dv, **options):
            assert_same(result, np.zeros_like(q))


def test_any_strides_and_leading_axes(dtype):
    q, dq = normal(3, 2, 20, 8, dtype=dtype, count=2)
    k, v, dk, dv = normal(1, 1, 30, 8, dtype=dtype, seed=1, count=4)
    expected = cattn.attention_jvp(q, k, v, dq, dk, dv, causal=True)
    views = [np.repeat(a, 2, axis=-1)[..., ::2] for a in (q, k, v, dq, dk, dv)]
    assert_same(cattn.attention_jvp(*views, causal=True), expected)
    full = [np.broadcast_to(a, (3, 1, 30, 8)) for a in (k, v, dk, dv)]
    k, v, dk, dv = full
    assert_same(cattn.attention_jvp(q, k, v, dq, dk, dv, causal=True), expected)
