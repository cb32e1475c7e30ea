"""What each option is in other words: a mask, a bias, a slice, one more key.

Two computed results that are equal in exact arithmetic differ by at most the sum of their bounds.
"""

import bounds
import numpy as np
import pytest
from support import assert_same, normal

import cattn

pytestmark = pytest.mark.usefixtures("isa")

SIZES = [(5, 7), (49, 65), (97, 200), (130, 40)]
FLAGS = {"return_lse": True, "return_weights": True}


def drawn(lq, lk, dtype):
    """q, k, v, dout and dlse of two batch entries, four query heads, two key heads."""
    shapes = (2, 4, lq, 10), (2, 2, lk, 10), (2, 2, lk, 7), (2, 4, lq, 7), (2, 4, lq)
    return [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


def assert_equal_in_words(arrays, one, other, same_terms=False):
    """Attention under two sets of options, forward and backward, within the sum of the bounds.

    `same_terms`: both are the same sums, and so have the same bound.
    """
    q, k, v, dout, dlse = arrays
    results = [cattn.attention(q, k, v, **options, **FLAGS) for options in (one, other)]
    bounded = (one,) if same_terms else (one, other)
    limits = [bounds.attention_bound(q, k, v, **options) for options in bounded]
    limits.append(limits[-1])
    for name, a, b, x, y in zip(results[0]._fields, *results, *limits[:2], strict=True):
        bounds.worst(a, b, x + y, name)
    arguments = (dout, q, k, v, *results[0][:2])
    results = [cattn.attention_backward(*arguments, dlse=dlse, **o) for o in (one, other)]
    limits = [bounds.attention_backward_bound(*arguments, dlse=dlse, **o) for o in bounded]
    limits.append(limits[-1])
    for name, a, b, x, y in zip(results[0]._fields, *results, *limits[:2], strict=True):
        if a is not None:
            bounds.worst(a, b, x + y, name)


# ---- window ----


def seen_through(window, lq, lk, offset, causal=False):
    position, j = np.arange(lq)[:, None] + offset, np.arange(lk)
    seen = np.ones((lq, lk), bool)
    if window[0] not in (None, -1):
        seen &= j >= position - window[0]
    if window[1] not in (None, -1):
        seen &= j <= position + window[1]
    return seen & (j <= position) if causal else seen


@pytest.mark.parametrize(("lq", "lk"), SIZES)
@pytest.mark.parametrize("window", [(0, 0), (3, 2), (None, 5), (40, -1), (70, 33)])
def test_window_is_a_mask(dtype, lq, lk, window):
    arrays = drawn(lq, lk, dtype)
    for causal, offset in ((False, None), (True, -20)) if lq > 5 else ((True, None), (False, 3)):
        options = {"window": window, "causal": causal, "causal_offset": offset}
        seen = seen_through(window, lq, lk, lk - lq if offset is None else offset, causal)
        assert_equal_in_words(arrays, options, {"mask": seen}, same_terms=True)


def test_unbounded_windows_are_no_window(dtype):
    q, k, v, *_ = drawn(100, 260, dtype)
    plain = cattn.attention(q, k, v, **FLAGS)
    for window in ((None, None), (-1, -1), [None, -1], (360, 360), (2**63 - 1, 2**62)):
        assert_same(tuple(cattn.attention(q, k, v, window=window, **FLAGS)), tuple(plain))
    assert_same(
        tuple(cattn.attention(q, k, v, window=(20, 7), causal=True, **FLAGS)),
        tuple(cattn.attention(q, k, v, window=(20, 0), **FLAGS)),
    )


def test_a_window_of_one_key_copies_its_value(dtype):
    q, k, v, *_ = drawn(100, 260, dtype)
    out = cattn.attention(q, k, v, window=(0, 0), causal_offset=[11, 200])
    for entry, offset in enumerate((11, 200)):
        count = min(100, 260 - offset)
        values = v[entry, :, offset : offset + count].repeat(2, axis=0)
        np.testing.assert_allclose(out[entry, :, :count], values, rtol=2 * np.finfo(dtype).eps)
        assert (out[entry, :, count:] == 0).all()


# ---- kv_lengths ----


@pytest.mark.parametrize(("lq", "lk"), SIZES)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (9, 30)}], ids=str)
def test_lengths_are_slices(dtype, lq, lk, options):
    """What lies past the lengths may be NaN: nothing of it is read, and its gradients are 0."""
    q, clean_k, clean_v, dout, dlse = drawn(lq, lk, dtype)
    for lengths in ((0, lk), (1, lk - 1), (lk // 2, min(64, lk))):
        k, v = clean_k.copy(), clean_v.copy()
        for entry, length in enumerate(lengths):
            k[entry, :, length:] = np.nan
            v[entry, :, length:] = np.inf
        more = {**options, "kv_lengths": np.array(lengths)}
        whole = cattn.attention(q, k, v, **more, **FLAGS)
        gradients = cattn.attention_backward(dout, q, k, v, *whole[:2], dlse=dlse, **more)
        for entry, n in enumerate(lengths):
            q1, k1, v1 = q[entry], k[entry, :, :n], v[entry, :, :n]
            one = cattn.attention(q1, k1, v1, **options, **FLAGS)
            limit = bounds.attention_bound(q1, k1, v1, **options)
            bounds.worst(whole.out[entry], one.out, 2 * limit.out, "out")
            bounds.worst(whole.lse[entry], one.lse, 2 * limit.lse, "lse")
            bounds.worst(whole.weights[entry, ..., :n], one.weights, 2 * limit.weights, "weights")
            assert (whole.weights[entry, ..., n:] == 0).all()
            arguments = dout[entry], q1, k1, v1, whole.out[entry], whole.lse[entry]
            one = cattn.attention_backward(*arguments, dlse=dlse[entry], **options)
            limit = bounds.attention_backward_bound(*arguments, dlse=dlse[entry], **options)
            bounds.worst(gradients.dq[entry], one.dq, 2 * limit.dq, "dq")
            bounds.worst(gradients.dk[entry, :, :n], one.dk, 2 * limit.dk, "dk")
            bounds.worst(gradients.dv[entry, :, :n], one.dv, 2 * limit.dv, "dv")
            assert (gradients.dk[entry, :, n:] == 0).all()
            assert (gradients.dv[entry, :, n:] == 0).all()


@pytest.mark.parametrize("integer", ["int8", "int32", "int64", "uint16", "uint64", ">i4"])
def test_lengths_of_any_integer_type(dtype, integer):
    q, k, v, *_ = drawn(5, 7, dtype)
    expected = cattn.attention(q, k, v, kv_lengths=[3, 6])
    assert_same(cattn.attention(q, k, v, kv_lengths=np.array([3, 6], integer)), expected)
    for one in (4, np.array(4, integer), np.array([4], integer)):
        assert_same(
            cattn.attention(q, k, v, kv_lengths=one), cattn.attention(q, k, v, kv_lengths=[4, 4])
        )


def test_bias_past_the_lengths_is_not_read(dtype):
    q, k, v, dout, _ = drawn(20, 70, dtype)
    bias = normal(2, 1, 20, 70, dtype=dtype)
    lengths = np.array([30, 65])
    clean = cattn.attention(q, k, v, bias=bias, kv_lengths=lengths, **FLAGS)
    bias[0, ..., 30:], bias[1, ..., 65:] = np.nan, np.inf
    options = {"bias": bias, "kv_lengths": lengths}
    assert_same(tuple(cattn.attention(q, k, v, **options, **FLAGS)), tuple(clean))
    dbias = cattn.attention_backward(dout, q, k, v, *clean[:2], grads=["bias"], **options).dbias
    assert np.isfinite(dbias).all()
    assert (dbias[0, ..., 30:] == 0).all()
    assert (dbias[1, ..., 65:] == 0).all()


# ---- softcap, ALiBi, sinks ----


@pytest.mark.parametrize(("lq", "lk"), SIZES)
def test_a_very_loose_softcap_is_none(dtype, lq, lk):
    arrays = drawn(lq, lk, dtype)
    assert_equal_in_words(arrays, {"softcap": 1e12}, {})
    # c tanh(s / c) is s - s³ / 3c² + ...: at c = 1e12 less than a rounding of float64.


def test_a_softcap_keeps_scores_within(dtype):
    """Huge scores of either sign come out as ±c: two values of weight, e^(2c) apart."""
    q, k, v, *_ = drawn(49, 65, dtype)
    weights = cattn.attention(1e4 * q, k, v, softcap=0.5, return_weights=True).weights
    ratio = weights.max(axis=-1) / weights.min(axis=-1)
    np.testing.assert_allclose(ratio, np.e, rtol=40 * np.finfo(dtype).eps)


def test_a_softcap_of_nan_and_infinity(dtype):
    """tanh of an infinity is ±1; a NaN goes through, to its own row."""
    q, k, v, *_ = drawn(5, 7, dtype)
    q, k = np.abs(q), np.abs(k)
    q[0, 0, 1] = np.inf
    q[0, 0, 2, 0] = np.nan
    out, _, weights = cattn.attention(q, k, v, softcap=2.0, **FLAGS)
    np.testing.assert_allclose(weights[0, 0, 1], 1 / 7, rtol=20 * np.finfo(dtype).eps)
    rows = np.isnan(out).any(axis=-1)
    assert rows[0, 0, 2]
    assert rows.sum() == 1


@pytest.mark.parametrize(("lq", "lk"), SIZES)
@pytest.mark.parametrize("per_entry", [False, True])
def test_alibi_is_a_bias(dtype, lq, lk, per_entry):
    arrays = drawn(lq, lk, dtype)
    slopes = normal(*(2, 4) if per_entry else (4,), dtype=dtype)
    slopes = np.round(slopes * 64) / 64  # slope times distance is exact: so is the bias
    for more in ({}, {"causal": True, "causal_offset": np.array([3, -11])}, {"softcap": 2.0}):
        offset = np.asarray(more.get("causal_offset", lk - lq))[..., None, None, None]
        distance = np.abs(np.arange(lq)[:, None] + offset - np.arange(lk))
        bias = (-slopes[..., None, None] * distance).astype(dtype)
        assert_equal_in_words(arrays, {**more, "alibi_slopes": slopes}, {**more, "bias": bias})


def test_alibi_far_away(dtype):
    """Distances beyond the integers of float32 are rounded like any number."""
    q, k, v, *_ = drawn(5, 70, dtype)
    slopes = np.array([1e-9, -2e-9, 0, 1e-8], dtype)
    options = {"alibi_slopes": slopes, "causal_offset": np.array(2**40 + 12345)}
    result = cattn.attention(q, k, v, **options, **FLAGS)
    exact = cattn.reference.attention(q, k, v, **options, **FLAGS)
    limit = bounds.attention_bound(q, k, v, **options)
    for name, *three in zip(result._fields, result, exact, limit, strict=True):
        bounds.worst(*three, name)


@pytest.mark.parametrize(("lq", "lk"), SIZES)
def test_a_sink_is_a_key_without_value(dtype, lq, lk):
    """One more key with the sink for its score: by a key of zeros and a bias."""
    q, k, v, dout, dlse = drawn(lq, lk, dtype)
    sinks = np.array([0.5, -3, 9, 30], dtype)
    with_sink = cattn.attention(q, k, v, sinks=sinks, **FLAGS)
    longer_k, longer_v = (np.concatenate([a, 0 * a[..., :1, :]], axis=-2) for a in (k, v))
    bias = np.zeros((4, lq, lk + 1), dtype)
    bias[..., -1] = sinks[:, None]
    with_key = cattn.attention(q, longer_k, longer_v, bias=bias, **FLAGS)
    one = bounds.attention_bound(q, k, v, sinks=sinks)
    two = bounds.attention_bound(q, longer_k, longer_v, bias=bias)
    bounds.worst(with_sink.out, with_key.out, one.out + two.out, "out")
    bounds.worst(with_sink.lse, with_key.lse, one.lse + two.lse, "lse")
    limit = one.weights + two.weights[..., :-1]
    bounds.worst(with_sink.weights, with_key.weights[..., :-1], limit, "weights")

    rows = with_sink[:2]
    grads = {"dlse": dlse, "grads": ["q", "k", "v", "sinks"], "sinks": sinks}
    a = cattn.attention_backward(dout, q, k, v, *rows, **grads)
    x = bounds.attention_backward_bound(dout, q, k, v, *rows, **grads)
    grads = {"dlse": dlse, "grads": ["q", "k", "v", "bias"], "bias": bias}
    b = cattn.attention_backward(dout, q, longer_k, longer_v, *rows, **grads)
    y = bounds.attention_backward_bound(dout, q, longer_k, longer_v, *rows, **grads)
    bounds.worst(a.dq, b.dq, x.dq + y.dq, "dq")
    bounds.worst(a.dk, b.dk[..., :-1, :], x.dk + y.dk[..., :-1, :], "dk")
    bounds.worst(a.dv, b.dv[..., :-1, :], x.dv + y.dv[..., :-1, :], "dv")
    of_key, limit = (g.dbias[..., -1].astype(np.longdouble).sum(axis=-1) for g in (b, y))
    bounds.worst(a.dsinks, of_key, x.dsinks + limit, "dsinks")


def test_a_sink_of_minus_infinity_is_none(dtype):
    q, k, v, dout, _ = drawn(49, 65, dtype)
    plain = cattn.attention(q, k, v, **FLAGS)
    sinks = np.full(4, -np.inf, dtype)
    assert_same(tuple(cattn.attention(q, k, v, sinks=sinks, **FLAGS)), tuple(plain))
    gradients = cattn.attention_backward(
        dout, q, k, v, *plain[:2], sinks=sinks, grads=["q", "sinks"]
    )
    assert_same(gradients.dsinks, np.zeros_like(sinks))
    assert_same(gradients.dq, cattn.attention_backward(dout, q, k, v, *plain[:2]).dq)


def test_a_row_with_nothing_but_a_sink(dtype):
    """All weight is the sink's: the output is 0, and the lse is the sink, which has a gradient."""
    q, k, v, dout, dlse = drawn(49, 65, dtype)
    sinks = np.array([0.5, -3, 9, 100], dtype)
    options = {"sinks": sinks, "mask": np.False_}
    out, lse, weights = cattn.attention(q, k, v, **options, **FLAGS)
    assert (out == 0).all()
    assert (weights == 0).all()
    exact = np.broadcast_to(sinks[:, None], lse.shape)
    np.testing.assert_allclose(lse, exact, rtol=4 * np.finfo(dtype).eps)
    gradients = cattn.attention_backward(
        dout, q, k, v, out, exact.copy(), dlse=dlse, grads=["q", "k", "v", "sinks"], **options
    )
    for gradient in gradients[:3]:
        assert (gradient == 0).all()
    total = dlse.astype(np.longdouble).sum(axis=(0, 2))
    np.testing.assert_allclose(
        gradients.dsinks, total, atol=100 * np.finfo(dtype).eps * np.abs(dlse).sum()
    )
    empty = cattn.attention(q, k[..., :0, :], v[..., :0, :], sinks=sinks, return_lse=True)
    assert_same((empty.out, empty.lse), (out, lse))


# ---- layout and out ----


EVERYTHING = {
    "window": (90, 40), "softcap": 3.0, "dropout": 0.25, "seed": 5,
    "alibi_slopes": np.array([0.5, 0.1, 0, -0.1], np.float32),
    "sinks": np.array([1, -1, 0, -np.inf], np.float32),
    "kv_lengths": np.array([200, 260]), "causal_offset": np.array([120, 100]),
}  # fmt: skip


def test_layout_with_every_option(dtype):
    q, k, v, dout, dlse = drawn(100, 260, dtype)
    swapped = [a.swapaxes(1, 2) for a in (q, k, v, dout)]
    expected = cattn.attention(q, k, v, **EVERYTHING, **FLAGS)
    actual = cattn.attention(*swapped[:3], **EVERYTHING, **FLAGS, layout="blhd")
    assert_same(actual.out, expected.out.swapaxes(1, 2))
    assert_same(actual[1:], expected[1:])
    grads = {"grads": ["q", "k", "v", "sinks"], "dlse": dlse, **EVERYTHING}
    expected = cattn.attention_backward(dout, q, k, v, *expected[:2], **grads)
    actual = cattn.attention_backward(swapped[3], *swapped[:3], *actual[:2], **grads, layout="blhd")
    assert_same(actual.dsinks, expected.dsinks)
    assert_same(actual[:3], tuple(g.swapaxes(1, 2) for g in expected[:3]))


def test_out_with_every_option(dtype):
    """Into a view, and into the queries themselves."""
    q, k, v, *_ = drawn(100, 260, dtype)
    v = np.concatenate([v, v], axis=-1)[..., :10].copy()
    expected = cattn.attention(q, k, v, **EVERYTHING)
    room = np.full((2, 100, 4, 12), np.nan, dtype)
    view = room[..., 1:-1].swapaxes(1, 2)
    assert cattn.attention(q, k, v, **EVERYTHING, out=view) is view
    assert_same(view, expected)
    assert np.isnan(room[..., [0, -1]]).all()
    assert cattn.attention(q, k, v, **EVERYTHING, out=q) is q
    assert_same(q, expected)
