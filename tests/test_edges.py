"""Rows with no key, empty arrays, and what masked positions may hold: anything."""

import bounds
import numpy as np
import pytest
from cases import Case, exact_dtype, problem
from support import assert_same, normal

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")


def no_keys(how, q, k):
    """Options under which no query of q may attend a key of k."""
    lq, lk = q.shape[-2], k.shape[-2]
    return {
        "mask": {"mask": np.zeros((lq, lk), bool)},
        "scalar mask": {"mask": np.False_},
        "bias": {"bias": np.full((lq, lk), -np.inf, q.dtype)},
        "causal": {"causal": True, "causal_offset": -lq},
        "far offset": {"causal": True, "causal_offset": -(2**62)},
        "mask and causal": {"mask": np.tri(lq, lk, -1) == 0, "causal": True, "causal_offset": -1},
    }[how]


@pytest.mark.parametrize(
    "how", ["mask", "scalar mask", "bias", "causal", "far offset", "mask and causal"]
)
@pytest.mark.parametrize(("lq", "lk"), [(3, 5), (130, 70), (1, 300)])
def test_rows_without_a_key(dtype, how, lq, lk):
    q, k, v, dout = (normal(2, n, 6, dtype=dtype, seed=i) for i, n in enumerate((lq, lk, lk, lq)))
    options = no_keys(how, q, k)
    result = cattn.attention(q, k, v, **options, return_lse=True, return_weights=True)
    assert_same(result.out, np.zeros((2, lq, 6), dtype))
    assert_same(result.lse, np.full((2, lq), -np.inf, dtype))
    assert_same(result.weights, np.zeros((2, lq, lk), dtype))
    grads = ["q", "k", "v"] + ["bias"] * ("bias" in options)
    gradients = cattn.attention_backward(
        dout, q, k, v, result.out, result.lse, dlse=dout[..., 0], grads=grads, **options
    )
    for gradient, of in zip(gradients, (q, k, v, options.get("bias"), None), strict=True):
        assert_same(gradient, None if of is None else np.zeros_like(of))


@pytest.mark.parametrize(
    ("q_shape", "k_shape", "v_shape", "out_shape"),
    [
        ((3, 4), (0, 4), (0, 5), (3, 5)),
        ((2, 3, 4), (2, 0, 4), (2, 0, 5), (2, 3, 5)),
        ((0, 4), (3, 4), (3, 5), (0, 5)),
        ((2, 0, 4), (2, 3, 4), (2, 3, 5), (2, 0, 5)),
        ((2, 0, 4), (2, 0, 4), (2, 0, 5), (2, 0, 5)),
        ((0, 2, 3, 4), (0, 2, 6, 4), (0, 2, 6, 5), (0, 2, 3, 5)),
        ((0, 2, 3, 4), (1, 2, 6, 4), (2, 6, 5), (0, 2, 3, 5)),
        ((4, 0, 2, 3, 4), (1, 2, 6, 4), (2, 6, 5), (4, 0, 2, 3, 5)),
        ((0, 3, 4), (0, 6, 4), (0, 6, 5), (0, 3, 5)),
        ((0, 3, 4), (2, 6, 4), (2, 6, 5), (0, 3, 5)),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_empty_arrays(dtype, q_shape, k_shape, v_shape, out_shape, causal):
    q, k, v = (np.ones(shape, dtype) for shape in (q_shape, k_shape, v_shape))
    lk = k_shape[-2]
    result = cattn.attention(q, k, v, causal=causal, return_lse=True, return_weights=True)
    assert_same(result.out, np.zeros(out_shape, dtype))
    assert_same(result.lse, np.full(out_shape[:-1], -np.inf, dtype))
    assert_same(result.weights, np.zeros((*out_shape[:-1], lk), dtype))
    gradients = cattn.attention_backward(
        np.ones(out_shape, dtype), q, k, v, result.out, result.lse, causal=causal
    )
    assert_same(tuple(gradients[:3]), (np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)))


@pytest.mark.parametrize(
    ("lead", "lq", "lk", "bias_shape"),
    [((0, 2), 3, 4, (3, 4)), ((0, 2), 3, 4, (2, 1, 4)), ((0, 2), 3, 4, (1, 1, 3, 1)),
     ((0,), 3, 4, (3, 4)), ((2,), 0, 4, (4,)), ((2,), 0, 4, (1, 1)), ((2,), 3, 0, (3, 1)),
     ((2,), 3, 0, (2, 3, 0)), ((2,), 0, 4, (2, 1, 4)), ((2,), 3, 0, ())],
)  # fmt: skip
def test_gradient_of_a_bias_of_nothing(dtype, lead, lq, lk, bias_shape):
    """A bias that is broadcast over an empty axis took part in nothing: its gradient is zero."""
    q, k = np.ones((*lead, lq, 4), dtype), np.ones((*lead, lk, 4), dtype)
    bias = np.ones(bias_shape, dtype)
    out, lse, _ = cattn.attention(q, k, k, bias=bias, return_lse=True)
    for _ in range(5):  # memory that is not written may be zero by chance
        np.full(64, np.nan, dtype)
        np.full(bias.size, np.nan, dtype)
        gradients = cattn.attention_backward(out, q, k, k, out, lse, bias=bias, grads=["bias"])
        assert_same(gradients.dbias, np.zeros_like(bias))


# ---- poison ----


POISON = (np.nan, np.inf, -np.inf)
WHERE_MASKED = ["mask", "bias", "causal", "key mask", "blocks"]


def masking(how, lq, lk, dtype):
    """Options that mask some pairs, and which pairs they let through."""
    rng = np.random.default_rng(5)
    i, j = np.arange(lq)[:, None], np.arange(lk)
    if how == "causal":
        return {"causal": True}, j <= i + lk - lq
    seen = {
        "mask": rng.random((lq, lk)) < 0.5,
        "bias": rng.random((lq, lk)) < 0.5,
        "key mask": np.broadcast_to(rng.random(lk) < 0.7, (lq, lk)),
        "blocks": i * 4 // lq == j * 4 // lk,
    }[how]
    if how == "bias":
        return {"bias": np.where(seen, rng.standard_normal((lq, lk)), -np.inf).astype(dtype)}, seen
    return {"mask": seen[:1] if how == "key mask" else seen}, seen


def assert_as_exact(actual, exact, bound, name):
    """NaN and infinities where the exact result has them, the rest within the bound."""
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact), err_msg=name)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(actual[~finite], exact[~finite].astype(actual.dtype), name)
    bounds.worst(np.where(finite, actual, 0), np.where(finite, exact, 0), bound, name)


@pytest.mark.parametrize("value", POISON, ids=str)
@pytest.mark.parametrize("how", WHERE_MASKED)
@pytest.mark.parametrize(("lq", "lk"), [(5, 7), (40, 70), (100, 300)])
def test_poisoned_keys_and_values(dtype, lq, lk, how, value):
    """A NaN or inf in a key or value reaches the rows that attend it, and no other."""
    options, seen = masking(how, lq, lk, dtype)
    q, k, v, _, dout, dlse = problem(Case(lq, lk, 6, 9, seed=3), dtype)
    hidden = np.flatnonzero(~seen.any(axis=0))
    some = np.random.default_rng(0).permutation(lk)[: max(1, lk // 20)]
    for which, keys in (("k", hidden), ("v", hidden), ("kv", hidden), ("v", some), ("k", some)):
        if keys is some and which == "k" and not np.isnan(value):
            continue  # q · inf is inf of either sign, which is test_attended_infinity's matter
        bad_k, bad_v = k.copy(), v.copy()
        if "k" in which:
            bad_k[:, keys, ::2] = value
        if "v" in which:
            bad_v[:, keys, ::2] = value
        check_poisoned(q, bad_k, bad_v, dout, dlse, q, k, v, options, dtype)


@pytest.mark.parametrize("value", POISON, ids=str)
@pytest.mark.parametrize("how", ["mask", "bias", "causal"])
def test_poisoned_rows_without_a_key(dtype, how, value):
    """What a row without keys holds, queries and gradients, does not reach dk and dv."""
    lq, lk = 70, 90
    options, seen = masking(how, lq, lk, dtype)
    empty = np.arange(lq) % 7 == 3
    if how == "causal":
        options["causal_offset"] = -20
        empty = np.arange(lq) < 20
    elif how == "mask":
        options["mask"] = seen & ~empty[:, None]
    else:
        options["bias"] = np.where(empty[:, None], -np.inf, options["bias"]).astype(dtype)
    q, k, v, _, dout, dlse = problem(Case(lq, lk, 6, 9, seed=3), dtype)
    bad_q, bad_dout, bad_dlse = q.copy(), dout.copy(), dlse.copy()
    bad_q[:, empty] = value
    bad_dout[:, empty] = value
    bad_dlse[:, empty] = value
    dout, dlse = dout.copy(), dlse.copy()
    dout[:, empty] = 0
    check_poisoned(bad_q, k, v, bad_dout, bad_dlse, q, k, v, options, dtype, dout, dlse)


def check_poisoned(q, k, v, dout, dlse, q0, k0, v0, options, dtype, dout0=None, dlse0=None):
    """q, k, v, dout, dlse hold poison; those with 0 are the same without, for the bound."""
    flags = {"return_lse": True, "return_weights": True}
    exact = reference.attention(q, k, v, **options, **flags, _dtype=exact_dtype(dtype))
    actual = cattn.attention(q, k, v, **options, **flags)
    bound = bounds.attention_bound(q0, k0, v0, **options)
    for name, *three in zip(exact._fields, actual, exact, bound, strict=True):
        assert_as_exact(*three, name)

    grads = ["q", "k", "v"] + ["bias"] * ("bias" in options)
    out, lse = exact.out.astype(dtype), exact.lse.astype(dtype)
    options = {**options, "grads": grads}
    exact = reference.attention_backward(
        dout, q, k, v, out, lse, dlse=dlse, **options, _dtype=exact_dtype(dtype)
    )
    actual = cattn.attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    clean_out, clean_lse = (np.where(np.isnan(a), 0, a) for a in (out, lse))
    clean_out = np.where(np.isfinite(clean_out), clean_out, 0)
    bound = bounds.attention_backward_bound(
        dout if dout0 is None else dout0, q0, k0, v0, clean_out, clean_lse,
        dlse=dlse if dlse0 is None else dlse0, **options,
    )  # fmt: skip
    for name, a, e, b in zip(exact._fields, actual, exact, bound, strict=True):
        if e is not None:
            assert_as_exact(a, e, b, name)


def test_masked_bias_may_be_nan(dtype):
    """The mask decides, whatever the bias holds there."""
    q, k, v, _, dout, _ = problem(Case(40, 70, 6, 9), dtype)
    mask = np.random.default_rng(1).random((40, 70)) < 0.5
    bias = normal(40, 70, dtype=dtype)
    flags = {"mask": mask, "return_lse": True, "return_weights": True}
    clean = cattn.attention(q, k, v, bias=bias, **flags)
    for value in POISON:
        poisoned = np.where(mask, bias, value).astype(dtype)
        assert_same(cattn.attention(q, k, v, bias=poisoned, **flags), clean)
        gradients = [
            cattn.attention_backward(
                dout, q, k, v, *clean[:2], mask=mask, bias=b, grads=["q", "k", "v", "bias"]
            )
            for b in (bias, poisoned)
        ]
        assert_same(gradients[1], gradients[0])


def test_attended_nan_propagates(dtype):
    """A NaN in a query makes its row NaN; in a value, its column of the rows that attend it."""
    q, k, v = normal(5, 4, dtype=dtype, count=3)
    bad = q.copy()
    bad[2, 1] = np.nan
    out, lse, _ = cattn.attention(bad, k, v, return_lse=True)
    np.testing.assert_array_equal(np.isnan(out).all(axis=1), np.arange(5) == 2)
    np.testing.assert_array_equal(np.isnan(out).any(axis=1), np.arange(5) == 2)
    np.testing.assert_array_equal(np.isnan(lse), np.arange(5) == 2)
    bad = v.copy()
    bad[3, 1] = np.nan
    out = cattn.attention(q, k, bad, causal=True)
    expected = (np.arange(5)[:, None] >= 3) & (np.arange(4) == 1)
    np.testing.assert_array_equal(np.isnan(out), expected)
    bad = k.copy()
    bad[3, 1] = np.nan
    out = cattn.attention(q, bad, v, causal=True)
    np.testing.assert_array_equal(np.isnan(out), np.repeat(expected[:, 1:2], 4, axis=1))


def test_attended_infinity(dtype):
    """An infinite value gives an infinite output; a score of +inf gives NaN (inf - inf)."""
    q, k, v = np.abs(normal(5, 4, dtype=dtype, count=3))
    bad = v.copy()
    bad[3, 1], bad[4, 2] = np.inf, -np.inf
    out = cattn.attention(q, k, bad)
    assert (out[:, 1] == np.inf).all()
    assert (out[:, 2] == -np.inf).all()
    assert np.isfinite(out[:, [0, 3]]).all()
    bad = k.copy()
    bad[3, 1] = np.inf
    assert np.isnan(cattn.attention(q, bad, v)).all()


def test_poisoned_output_memory(dtype):
    """Every element of out is written, whatever was there: NaN is not read."""
    for lq, lk, dv in ((0, 3, 2), (3, 0, 2), (7, 9, 5), (97, 129, 33)):
        case = Case(lq, lk, 8, dv, hq=2, hkv=1)
        q, k, v, *_ = problem(case, dtype)
        for options in ({}, {"causal": True}, {"mask": np.zeros((lq, lk), bool)}):
            out = np.full((2, lq, dv), np.nan, dtype)
            cattn.attention(q, k, v, **options, out=out)
            assert_same(out, cattn.attention(q, k, v, **options))
            assert not np.isnan(out).any()


def test_a_scale_below_float32(any_dtype):
    """As good as 0: every key that is seen weighs the same, and one that is masked nothing."""
    q, k, v = normal(1, 5, 8, dtype=any_dtype, count=3)
    expected = cattn.attention(q, k, v, scale=0.0, causal=True, return_lse=True)
    assert_same(cattn.attention(q, k, v, scale=1e-50, causal=True, return_lse=True), expected)


@pytest.mark.parametrize(("lq", "d", "dv"), [(1, 32, 32), (7, 5, 17), (61, 64, 33), (64, 40, 96)])
@pytest.mark.parametrize("causal", [False, True])
def test_masked_blocks_of_keys_change_no_bit(isa, dtype, lq, d, dv, causal):
    """Results of one block of keys go straight to memory, those of several through accumulators."""
    lk, hidden = 128, 100
    q, dout = normal(3, lq, d, dtype=dtype, seed=0), normal(3, lq, dv, dtype=dtype, seed=1)
    k, v = (normal(3, lk + hidden, n, dtype=dtype, seed=2 + i) for i, n in enumerate((d, dv)))
    options = {"causal": causal, "causal_offset": 20} if causal else {}
    mask = np.arange(lk + hidden) < lk
    all_keys = cattn.attention(q, k, v, mask=mask, return_lse=True, **options)
    all_gradients = cattn.attention_backward(
        dout, q, k, v, all_keys.out, all_keys.lse, mask=mask, **options
    )
    k, v = k[:, :lk], v[:, :lk]
    seen = cattn.attention(q, k, v, return_lse=True, **options)
    gradients = cattn.attention_backward(dout, q, k, v, seen.out, seen.lse, **options)
    assert_same(seen.out, all_keys.out)
    assert_same(seen.lse, all_keys.lse)
    if isa.startswith("amx"):
        return  # tiles of products round gradients in another way where there is a mask
    assert_same(gradients.dq, all_gradients.dq)
    for one, both in ((gradients.dk, all_gradients.dk), (gradients.dv, all_gradients.dv)):
        assert_same(one, both[:, :lk])
        assert_same(both[:, lk:], np.zeros_like(both[:, lk:]))


@pytest.mark.parametrize(("lq", "lk", "d", "dv"), [(7, 30, 5, 17), (128, 128, 32, 32)])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_changes_no_other_head(dtype, lq, lk, d, dv, number):
    """Gradients of a head with one go through accumulators, those of the others do not."""
    shapes = ((lq, d), (lk, d), (lk, dv), (lq, dv))
    q, k, v, dout = (normal(2, 2, *s, dtype=dtype, seed=i) for i, s in enumerate(shapes))
    mask = np.ones((2, 2, lq, lk), bool)
    mask[1, 0, :, 3] = False
    expected = cattn.attention(q, k, v, mask=mask, return_lse=True)
    wanted = cattn.attention_backward(dout, q, k, v, expected.out, expected.lse, mask=mask)
    k[1, 0, 3, 1] = v[1, 0, 3, 2] = number
    result = cattn.attention(q, k, v, mask=mask, return_lse=True)
    gradients = cattn.attention_backward(dout, q, k, v, result.out, result.lse, mask=mask)
    actuals = (result.out, result.lse, *gradients[:3])
    for actual, of in zip(actuals, (expected.out, expected.lse, *wanted[:3]), strict=True):
        np.testing.assert_allclose(actual[1, 0], of[1, 0], rtol=1e-4, atol=1e-5)
        actual[1, 0] = of[1, 0]
        assert_same(actual, of)


def test_an_entry_without_keys_and_a_mask(dtype):
    shapes, lengths = ((5, 6), (7, 6), (7, 3), (5, 3)), np.array([5, 0])
    q, k, v, dout = (normal(2, 1, *s, dtype=dtype, seed=i) for i, s in enumerate(shapes))
    mask = np.arange(7) != 2
    result = cattn.attention(q, k, v, mask=mask, kv_lengths=lengths, return_lse=True)
    gradients = cattn.attention_backward(
        dout, q, k, v, result.out, result.lse, mask=mask, kv_lengths=lengths
    )
    one = cattn.attention(q[0], k[0, :, :5], v[0, :, :5], mask=mask[:5], return_lse=True)
    of_one = cattn.attention_backward(
        dout[0], q[0], k[0, :, :5], v[0, :, :5], one.out, one.lse, mask=mask[:5]
    )
    for both, alone in zip((result.out, *gradients[:3]), (one.out, *of_one[:3]), strict=True):
        assert_same(both[0, :, : alone.shape[-2]], alone)
        assert not both[0, :, alone.shape[-2] :].any()
        assert not both[1].any()


@pytest.mark.parametrize("sink", [-200.0, -2000.0])
def test_rows_without_keys_beside_a_very_small_sink(dtype, sink):
    q, k, v = normal(2, 8, 16, dtype=dtype, count=3)
    sinks = np.array([sink, sink], dtype)
    out, lse, _ = cattn.attention(q, k[:, :4], v[:, :4], causal=True, sinks=sinks, return_lse=True)
    np.testing.assert_array_equal(out[:, :4], 0)
    np.testing.assert_allclose(lse[:, :4], sink, rtol=1e-6)
    without = cattn.attention(q, k[:, :4], v[:, :4], causal=True)
    np.testing.assert_allclose(out[:, 4:], without[:, 4:], rtol=1e-6)


def test_a_sink_that_is_nan_is_in_every_row(dtype):
    """In rows that attend nothing too: 0 / NaN."""
    q, k, v = (normal(1, n, 8, dtype=dtype, seed=i) for i, n in enumerate((24, 12, 12)))
    sinks = np.array([np.nan], dtype)
    out = cattn.attention(q, k, v, causal=True, causal_offset=-12, sinks=sinks)
    assert np.isnan(out).all()


@pytest.mark.parametrize("lq", [1, 8, 40])
@pytest.mark.parametrize("lk", [5, 300, 2000])
def test_a_sink_far_above_bounded_scores(dtype, lq, lk):
    """Tiny weights are not 0, as long as they are numbers."""
    sink = 65 if dtype == np.float32 else 690
    q, k, v = np.ones((lq, 1), dtype), np.full((lk, 1), 54, dtype), np.ones((lk, 1), dtype)
    options = {"scale": 0.5, "sinks": np.array([sink], dtype)}
    exact = reference.attention(q, k, v, **options, return_lse=True)
    assert 0 < exact.out[0, 0] < 1e-10
    bound = bounds.attention_bound(q, k, v, **options)
    result = cattn.attention(q, k, v, **options, return_lse=True)
    assert bounds.worst(result.out, exact.out, bound.out) <= 1
    assert bounds.worst(result.lse, exact.lse, bound.lse) <= 1


def test_the_largest_sinks(dtype):
    largest = np.finfo(dtype).max
    if dtype == np.float64:
        largest /= 2  # times log2(e) it is to be a number
    q = normal(2, 5, 4, dtype=dtype)
    sinks = np.array([largest, -largest], dtype)
    result = cattn.attention(q, q, q, sinks=sinks, return_lse=True, return_weights=True)
    assert not result.out[0].any()
    assert not result.weights[0].any()
    np.testing.assert_allclose(result.lse[0], largest, rtol=1e-6)
    plain = cattn.attention(q[1], q[1], q[1], return_lse=True)
    assert_same(result.out[1], plain.out)
    rows, dlse = result[:2], np.ones_like(result.lse)
    grads = ("q", "k", "v", "sinks")
    a = cattn.attention_backward(q, q, q, q, *rows, dlse=dlse, sinks=sinks, grads=grads)
    alone = cattn.attention_backward(q[1], q[1], q[1], q[1], *plain[:2], dlse=dlse[1])
    for gradient, of in zip(a[:3], alone[:3], strict=True):
        assert not gradient[0].any()
        assert_same(gradient[1], of)
    np.testing.assert_allclose(a.dsinks, [5, 0], rtol=1e-6)  # all of each row's lse


@pytest.mark.parametrize("cap", [1e39, 1e300, 1e-46])
def test_softcaps_beyond_float32(any_dtype, cap):
    """So large that they change nothing, or so small that all scores are 0."""
    q, k, v = normal(3, 5, 4, dtype=any_dtype, count=3)
    out, lse, _ = cattn.attention(q, k, v, softcap=cap, return_lse=True)
    exact = reference.attention(*(a.astype("f8") for a in (q, k, v)), softcap=cap)
    rounding = np.finfo("f4").eps if any_dtype.itemsize == 4 else np.finfo("f8").eps
    if any_dtype.itemsize == 2:
        rounding = 2**-7 if any_dtype.kind == "V" else 2**-10
    np.testing.assert_allclose(out.astype("f8"), exact, rtol=20 * rounding, atol=20 * rounding)
    gradients = cattn.attention_backward(out, q, k, v, out, lse, softcap=cap)
    assert all(np.isfinite(g.astype("f8")).all() for g in gradients[:3])


def test_extreme_softcaps_and_scores():
    """Scores near the largest numbers, and a scale so large that it is none over the cap."""
    v = np.array([[0], [1]], "f4")
    q, k = np.array([[1e17]], "f4"), np.array([[1e17], [2e17]], "f4")
    assert_same(cattn.attention(q, k, v, scale=1.0, softcap=1e37), v[1:])
    k = np.array([[0], [1e-3]], "f4")
    assert cattn.attention(q / q, k, v, scale=1e20, softcap=1e-20) == 0.5


@pytest.mark.parametrize("number", [-1e9, -1e20, -1e30])
def test_rows_masked_by_a_finite_bias(any_dtype, number):
    """Their lse does not tell their weights: gradients are as if they attended nothing."""
    kinds = any_dtype if any_dtype == np.float64 else np.float32
    if kinds == np.float64:
        number *= 1e10
    q, k, v, dout = normal(2, 7, 8, dtype=any_dtype, count=4)
    bias = np.zeros((7, 7), kinds)
    bias[2:4] = number
    options = {"return_lse": True, "return_weights": True}
    result = cattn.attention(q, k, v, bias=bias, **options)
    assert not result.weights[:, 2:4].any()
    gradients = cattn.attention_backward(dout, q, k, v, *result[:2], bias=bias)
    bias[2:4] = -np.inf
    result = cattn.attention(q, k, v, bias=bias, **options)
    assert_same(gradients, cattn.attention_backward(dout, q, k, v, *result[:2], bias=bias))
