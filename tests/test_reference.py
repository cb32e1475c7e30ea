"""The specification: held against loops in plain Python and against finite differences."""

import math

import numpy as np
import pytest
from support import assert_same, normal

import cattn
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
    with pytest.raises(ValueError, match=r"precision: is 'low', expected 'highest', 'high' or 'me"):
        reference.attention(q, q, q, precision="low")


@pytest.mark.parametrize("options", [
    {}, {"window": None}, {"window": (None, -1)}, {"mask": np.True_}, {"kv_lengths": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("module", [cattn, reference], ids=["cattn", "reference"])
def test_an_offset_of_nothing(module, options):
    """The offset is that of causal, window or ALiBi: without one of them it is a mistake."""
    q, lse = np.ones((1, 2, 3)), np.zeros((1, 2))
    options = {**options, "causal_offset": 0}
    packed, starts = np.ones((2, 1, 3)), [0, 2]
    own = {name: o for name, o in options.items() if name != "kv_lengths"}
    for call in (
        lambda **more: module.attention(q, q, q, **options, **more),
        lambda **more: module.attention_backward(q, q, q, q, q, lse, **options, **more),
        lambda **more: module.attention_jvp(*[q] * 6, **options, **more),
        lambda **more: module.attention_varlen(*[packed] * 3, starts, starts, **own, **more),
        lambda **more: module.attention_varlen_backward(
            *[packed] * 5, lse, starts, starts, **own, **more
        ),
    ):
        with pytest.raises(ValueError, match=r"^causal_offset: has a meaning only with causal, wi"):
            call()
        call(causal=True)
        call(alibi_slopes=np.ones(1))


def test_merge_of_nothing():
    """Without a key on one side the other side is the result; on both, 0 and -inf."""
    out, lse = np.ones((2, 3)), np.zeros(2)
    nothing, empty = np.zeros((2, 3)), np.full(2, -np.inf)
    for a, b in (((out, lse), (nothing, empty)), ((nothing, empty), (out, lse))):
        assert_same(reference.merge_attention(*a, *b), (out, lse))
    assert_same(reference.merge_attention(nothing, empty, nothing, empty), (nothing, empty))


# ---- the options, each in other words ----


def draw(lq=5, lk=7, batch=(2,), seed=0):
    """q, k, v of four query heads, two key heads."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((*batch, 4, lq, 3)),
        rng.standard_normal((*batch, 2, lk, 3)),
        rng.standard_normal((*batch, 2, lk, 2)),
    )


def everything(*arrays, **options):
    return reference.attention(*arrays, **options, return_lse=True, return_weights=True)


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("window", "seen"),
    [
        ((2, 1), lambda d: (d >= -2) & (d <= 1)),
        ((0, 0), lambda d: d == 0),
        ((None, 1), lambda d: d <= 1),
        ((2, -1), lambda d: d >= -2),
        ((-1, None), lambda d: d == d),
        ((0, 4), lambda d: (d >= 0) & (d <= 4)),
    ],
)
@pytest.mark.parametrize("offset", [None, 0, -3, [1, 4]])
def test_window_is_a_mask(window, seen, offset):
    q, k, v = draw()
    position = np.arange(5)[:, None] + np.reshape(2 if offset is None else offset, (-1, 1, 1, 1))
    distance = np.arange(7) - position
    options = {"window": window, "causal_offset": offset}
    alone = options if window != (-1, None) else {"window": window}  # without bounds, no offset
    assert_close(everything(q, k, v, **alone), everything(q, k, v, mask=seen(distance)))
    assert_close(
        everything(q, k, v, causal=True, **options),
        everything(q, k, v, mask=seen(distance) & (distance <= 0)),
    )


@pytest.mark.parametrize("slopes", [np.array([0.5, 1, 0, -2]), np.arange(8.0).reshape(2, 4)])
@pytest.mark.parametrize("offset", [None, 3, [-1, 1]])
def test_alibi_is_a_bias(slopes, offset):
    q, k, v = draw()
    position = np.arange(5)[:, None] + np.reshape(2 if offset is None else offset, (-1, 1, 1, 1))
    bias = -np.broadcast_to(slopes, (2, 4))[..., None, None] * abs(position - np.arange(7))
    assert_close(
        everything(q, k, v, alibi_slopes=slopes, causal_offset=offset),
        everything(q, k, v, bias=bias),
    )


def test_softcap_comes_before_the_bias():
    q, k, v = draw()
    bias = 5 * np.random.default_rng(1).standard_normal((5, 7))
    s = 2 * np.tanh(0.7 * (q @ k.repeat(2, axis=1).swapaxes(-1, -2)) / 2) + bias
    nothing = everything(0 * q, 0 * k, v, bias=s)
    assert_close(everything(q, k, v, scale=0.7, softcap=2.0, bias=bias), nothing)


def test_a_sink_is_a_key_without_value():
    q, k, v = draw()
    sinks = np.array([0.3, -1.0, 2.0, -np.inf])
    bias = np.zeros((4, 1, 8))
    bias[:, 0, 7] = sinks
    k1, v1 = (np.concatenate([a, 0 * a[..., :1, :]], axis=-2) for a in (k, v))
    options = {"causal_offset": 2, "causal": True}
    mask = np.arange(8) <= np.where(np.arange(8) < 7, np.arange(5)[:, None] + 2, 7)
    expected = everything(q, k1, v1, bias=bias, mask=mask)
    actual = everything(q, k, v, sinks=sinks, **options)
    assert_close(actual, (*expected[:2], expected.weights[..., :7]))

    dout, dlse = np.ones_like(actual.out), np.arange(5.0) * np.ones_like(actual.lse)
    gradients = reference.attention_backward(
        dout, q, k, v, *actual[:2], dlse=dlse, grads=("q", "sinks"), sinks=sinks, **options
    )
    by_bias = reference.attention_backward(
        dout, q, k1, v1, *expected[:2], dlse=dlse, grads=("q", "bias"), bias=bias, mask=mask
    )
    assert_close((gradients.dq, gradients.dsinks), (by_bias.dq, by_bias.dbias[:, 0, 7]))
    assert gradients.dsinks[3] == 0


def test_a_row_with_nothing_but_a_sink():
    q, k, v = draw()
    sinks = np.array([0.3, -np.inf, 2.0, 0.0])
    out, lse, weights = everything(q, k, v, sinks=sinks, kv_lengths=0)
    assert (out == 0).all()
    assert (weights == 0).all()
    assert_close([lse], [np.broadcast_to(sinks[:, None], (2, 4, 5))])
    gradients = reference.attention_backward(
        np.ones_like(out), q, k, v, out, lse, dlse=np.ones_like(lse),
        grads=("q", "k", "v", "sinks"), sinks=sinks, kv_lengths=0,
    )  # fmt: skip
    assert all((g == 0).all() for g in gradients[:3])
    assert_close([gradients.dsinks], [[10, 0, 10, 10]])  # lse is the sink in two times five rows


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (1, 1), "softcap": 3.0}])
def test_kv_lengths_slice(options):
    q, k, v = draw()
    lengths = np.array([3, 0])
    k, v = k.copy(), v.copy()
    k[0, :, 3:], v[0, :, 3:], k[1], v[1] = np.nan, np.inf, np.inf, np.nan
    result = everything(q, k, v, kv_lengths=lengths, **options)
    dlse = np.ones_like(result.lse)
    gradients = reference.attention_backward(
        q[..., :2], q, k, v, *result[:2], dlse=dlse, kv_lengths=lengths, **options
    )
    for b, n in enumerate(lengths):
        one = (q[b], k[b, :, :n], v[b, :, :n])
        expected = everything(*one, **options)
        assert_close((result.out[b], result.lse[b], result.weights[b, ..., :n]), expected)
        assert (result.weights[b, ..., n:] == 0).all()
        own = reference.attention_backward(
            q[b, ..., :2], *one, *expected[:2], dlse=dlse[b], **options
        )
        cut = (gradients.dq[b], gradients.dk[b, :, :n], gradients.dv[b, :, :n])
        assert_close(cut, own[:3])
        assert (gradients.dk[b, :, n:] == 0).all()
        assert (gradients.dv[b, :, n:] == 0).all()


def test_one_length_and_one_offset_serve_all():
    q, k, v = draw(batch=(2, 3))
    assert_close(
        everything(q, k, v, kv_lengths=4, causal=True, causal_offset=1),
        everything(
            q, k, v, kv_lengths=np.full((2, 3), 4), causal=True, causal_offset=[[1] * 3] * 2
        ),
    )


# ---- dropout ----


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_known_answers(counter, key, words):
    """The vectors that its authors publish."""

    def numbers(text):
        return [int(word, 16) for word in text.split()]

    assert [int(w) for w in reference._philox(numbers(counter), numbers(key))] == numbers(words)


def test_dropout_mask_word_by_word():
    shape, dropout, seed = (2, 3, 2, 4, 150), 0.3, 2**63 + 12345
    mask = reference.dropout_mask(shape, dropout, seed)
    assert mask.shape == shape
    assert mask.dtype == bool
    rng = np.random.default_rng(0)
    for b0, b1, h, i, j in zip(*(rng.integers(0, n, 200) for n in shape), strict=True):
        counter = (j // 64 * 16 + j % 16, i, h, 3 * b0 + b1)
        words = reference._philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
        assert mask[b0, b1, h, i, j] == (int(words[j // 16 % 4]) >= math.floor(0.3 * 2**32))


def test_dropout_mask_statistics():
    """Five standard deviations of a fair coin, and no mask like another."""
    masks = [reference.dropout_mask((2, 2, 32, 96), 0.25, seed) for seed in (0, 1, 2**32)]
    for mask in masks:
        for axes in ((0, 1, 2, 3), (0, 1, 2), (1, 2, 3), (0, 1, 3)):
            share = mask.mean(axis=axes)
            draws = mask.size / share.size
            assert (abs(share - 0.75) < 5 * np.sqrt(0.25 * 0.75 / draws)).all()
    planes = [plane for mask in masks for plane in mask.reshape(-1, 32, 96)]
    for n, plane in enumerate(planes):
        for other in planes[:n]:
            assert abs((plane == other).mean() - 0.625) < 5 * np.sqrt(0.625 * 0.375 / 3072)
    assert (reference.dropout_mask((32, 96), 0.25, 0) == masks[0][0, 0]).all()
    assert (reference.dropout_mask((2, 32, 96), 0.25, 0) == masks[0][0]).all()
    assert reference.dropout_mask((0, 2, 3, 4), 0.25, 0).shape == (0, 2, 3, 4)


def test_dropout_follows_the_softmax():
    q, k, v = draw()
    plain = everything(q, k, v)
    result = everything(q, k, v, dropout=0.4, seed=7)
    assert_same((result.lse, result.weights), (plain.lse, plain.weights))
    mask = reference.dropout_mask((2, 4, 5, 7), 0.4, 7)
    assert_close([result.out], [(plain.weights * mask / 0.6) @ v.repeat(2, axis=1)])
    with pytest.raises(ValueError, match="seed"):
        reference.attention(q, k, v, dropout=0.4)


def test_what_is_dropped_stays_out():
    q, k, v = (a[0, :1] for a in draw())
    mask = reference.dropout_mask((1, 5, 7), 0.5, 3)
    column = int(np.flatnonzero(~mask[0].all(axis=0))[0])
    rows = ~mask[0, :, column]
    assert rows.sum() > 0
    v = v.copy()
    v[0, column] = np.nan
    result = everything(q, k, v, dropout=0.5, seed=3)
    assert_same(np.isfinite(result.out[0]).all(axis=-1), rows)
    dout = np.where(rows[:, None], 1.0, 0.0)[None] * np.ones((1, 5, 2))
    kept = np.where(rows[:, None], result.out[0], 0)[None]  # of the other rows 0 comes back
    mask_rows = rows[:, None] & np.ones(7, bool)
    gradients = reference.attention_backward(
        dout,
        q,
        k,
        v,
        kept,
        np.where(rows, result.lse, -np.inf),
        mask=mask_rows,
        dropout=0.5,
        seed=3,
    )
    assert all(np.isfinite(g).all() for g in gradients[:3])


# ---- gradients and tangents of every option ----

OPTIONS = {
    "softcap": {"softcap": 0.8},
    "window": {"window": (2, 1), "causal_offset": [1, 3]},
    "alibi": {"alibi_slopes": np.arange(8.0).reshape(2, 4) / 4, "causal_offset": 1},
    "sinks": {"sinks": np.array([0.3, -1.0, 2.0, -np.inf])},
    "kv_lengths": {"kv_lengths": [5, 7], "causal": True},
    "dropout": {"dropout": 0.3, "seed": 2**40 + 5},
    "blhd": {"layout": "blhd", "causal": True},
    "all": {
        "softcap": 1.5, "window": (3, None), "causal": True, "causal_offset": [1, 3], "scale": -0.9,
        "alibi_slopes": np.array([0.5, 0.25, 0, -0.1]), "sinks": np.array([0.3, -1.0, 2.0, 0.0]),
        "kv_lengths": [5, 7], "dropout": 0.3, "seed": 11, "mask": np.arange(7) != 2,
        "bias": np.random.default_rng(5).standard_normal((4, 1, 7)),
    },
}  # fmt: skip


@pytest.fixture(params=OPTIONS)
def case(request):
    """Differentiable arrays, and the other options."""
    options = dict(OPTIONS[request.param])
    arrays = dict(zip("qkv", draw(), strict=True))
    if options.get("layout") == "blhd":
        arrays = {name: array.swapaxes(1, 2).copy() for name, array in arrays.items()}
    arrays |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    return arrays, options


def assert_gradients(loss, arrays, gradients):
    step = 1e-5
    for name, array in arrays.items():
        gradient = getattr(gradients, f"d{name}")
        assert gradient.shape == array.shape
        for at in np.flatnonzero(np.isfinite(array)):
            moved = [array.copy(), array.copy()]
            moved[0].flat[at] += step
            moved[1].flat[at] -= step
            up, down = (loss({**arrays, name: a}) for a in moved)
            assert gradient.flat[at] == pytest.approx((up - down) / (2 * step), abs=1e-8), name


def test_gradients_of_every_option(case):
    arrays, options = case
    out, lse, _ = reference.attention(**arrays, **options, return_lse=True)
    dout, dlse = np.random.default_rng(9).standard_normal((2, *out.shape))
    dlse = dlse[..., 0].reshape(lse.shape)

    def loss(arrays):
        out, lse, _ = reference.attention(**arrays, **options, return_lse=True)
        return (dout * out).sum() + (dlse * lse).sum()

    gradients = reference.attention_backward(
        dout, out=out, lse=lse, dlse=dlse, grads=list(arrays), **arrays, **options
    )
    assert_gradients(loss, arrays, gradients)


def test_tangents_of_every_option(case):
    arrays, options = case
    rng = np.random.default_rng(9)
    moves = {name: rng.standard_normal(arrays[name].shape) for name in "qkv"}
    out, dout = reference.attention_jvp(
        *(arrays[name] for name in "qkv"), *moves.values(),
        **{name: array for name, array in arrays.items() if name not in "qkv"}, **options,
    )  # fmt: skip
    assert_same(out, reference.attention(**arrays, **options))
    step = 1e-5
    up, down = (
        reference.attention(
            **arrays | {n: arrays[n] + sign * step * moves[n] for n in "qkv"}, **options
        )
        for sign in (1, -1)
    )
    np.testing.assert_allclose(dout, (up - down) / (2 * step), atol=1e-8)


def test_tangent_and_gradient_are_adjoint(case):
    """<dout, J·move> = <Jᵀ·dout, move>."""
    arrays, options = case
    rng = np.random.default_rng(9)
    moves = {name: rng.standard_normal(arrays[name].shape) for name in "qkv"}
    rest = {name: array for name, array in arrays.items() if name not in "qkv"} | options
    qkv = [arrays[name] for name in "qkv"]
    _, tangent = reference.attention_jvp(*qkv, *moves.values(), **rest)
    out, lse, _ = reference.attention(*qkv, **rest, return_lse=True)
    dout = rng.standard_normal(out.shape)
    gradients = reference.attention_backward(dout, *qkv, out, lse, **rest)
    both = sum((g * m).sum() for g, m in zip(gradients[:3], moves.values(), strict=True))
    assert (dout * tangent).sum() == pytest.approx(both, rel=1e-12)


def test_tangents_of_what_is_masked_stay_out():
    q, k, v = draw()
    mask = np.arange(7) != 3
    dq, dk, dv = draw(seed=1)
    few = [np.delete(a, 3, axis=-2) for a in (k, v, dk, dv)]
    expected = reference.attention_jvp(q, few[0], few[1], dq, few[2], few[3])
    for a in (k, v, dk, dv):
        a[..., 3, :] = np.nan
    assert_close(reference.attention_jvp(q, k, v, dq, dk, dv, mask=mask), expected)


def test_tangents_of_what_is_dropped_stay_out():
    q, k, v = (a[0, :1] for a in draw())
    dq, dk, dv = (a[0, :1] for a in draw(seed=1))
    options = {"dropout": 0.5, "seed": 3}
    mask = reference.dropout_mask((1, 5, 7), **options)
    column = int(np.flatnonzero(~mask[0].all(axis=0))[0])
    expected = reference.attention_jvp(q, k, v, dq, dk, dv, **options)
    v, dv = v.copy(), dv.copy()
    v[0, column], dv[0, column] = np.inf, np.nan
    actual = reference.attention_jvp(q, k, v, dq, dk, dv, **options)
    rows = ~mask[0, :, column]
    assert_close([a[0, rows] for a in actual], [e[0, rows] for e in expected])
    assert not np.isfinite(actual[1][0, ~rows]).any()


def test_plain_tangents():
    q, k, v = (a[0, 0] for a in draw())
    out, dout = reference.attention_jvp(q, k, v, q, k, v)
    assert out.shape == dout.shape == (5, 2)


# ---- sequences end to end ----

VARLEN = {
    "plain": {},
    "causal": {"causal": True, "scale": 2.0, "softcap": 1.0},
    "per sequence": {
        "causal": True, "causal_offset": [0, 1, 2, 3], "window": (2, 0),
        "alibi_slopes": np.arange(16.0).reshape(4, 4) / 8, "sinks": np.array([0.3, -1.0, 2.0, 0.0]),
    },
    "planes": {
        "bias": np.random.default_rng(2).standard_normal((4, 9, 1)),
        "mask": np.random.default_rng(3).random((9, 12)) < 0.7, "dropout": 0.3, "seed": 5,
        "alibi_slopes": np.array([0.5, 0.25, 0, -0.1]),
    },
}  # fmt: skip


@pytest.mark.parametrize("options", VARLEN.values(), ids=VARLEN)
def test_varlen_is_a_block_diagonal(options):
    """One sequence and another do not see each other, and each counts from 0."""
    rng = np.random.default_rng(0)
    cu_q, cu_k = np.array([0, 3, 3, 7, 9]), np.array([0, 4, 6, 6, 12])
    q = rng.standard_normal((9, 4, 3))
    k, v = rng.standard_normal((12, 2, 3)), rng.standard_normal((12, 2, 2))
    n_q, n_k = (np.repeat(np.arange(4), np.diff(cu)) for cu in (cu_q, cu_k))
    i, j = np.arange(9) - cu_q[n_q], np.arange(12) - cu_k[n_k]
    together = n_q[:, None] == n_k

    offset = np.broadcast_to(options.get("causal_offset", np.diff(cu_k) - np.diff(cu_q)), 4)
    position = (i + offset[n_q])[:, None]
    mask = together & options.get("mask", np.True_)
    if options.get("causal"):
        mask = mask & (j <= position)
    if "window" in options:
        mask = mask & (j >= position - options["window"][0])
    slopes = np.broadcast_to(options.get("alibi_slopes", 0), (4, 4))[n_q].T
    alibi = -slopes[..., None] * abs(position - j)
    dense = {name: options[name] for name in ("scale", "softcap", "sinks") if name in options}
    dense |= {"mask": mask, "bias": alibi + options.get("bias", 0)}
    expected = everything(q, k, v, layout="blhd", **dense)
    out = expected.out
    kept = np.ones((4, 9, 12))
    if "dropout" in options:
        whole = reference.dropout_mask((4, 4, 9, 12), options["dropout"], options["seed"])
        kept = whole[n_q[:, None], :, i[:, None], j].transpose(2, 0, 1) / (1 - options["dropout"])
        out = ((expected.weights * kept) @ v.repeat(2, axis=1).swapaxes(0, 1)).swapaxes(0, 1)
    result = reference.attention_varlen(
        q, k, v, cu_q, cu_k, **options, return_lse=True, return_weights=True
    )
    assert_close(result, (out, *expected[1:]))
    assert_same(reference.attention_varlen(q, k, v, cu_q, cu_k, **options), result.out)

    arrays = {"q": q, "k": k, "v": v}
    arrays |= {name: options[name] for name in ("bias", "sinks") if name in options}
    options = {name: option for name, option in options.items() if name not in arrays}
    dout, dlse = rng.standard_normal(out.shape), rng.standard_normal((4, 9))
    dlse[np.isneginf(result.lse)] = 0

    def loss(arrays):
        out, lse, _ = reference.attention_varlen(
            **arrays, **options, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_lse=True
        )
        return (dout * out).sum() + (dlse * np.where(np.isneginf(lse), 0, lse)).sum()

    gradients = reference.attention_varlen_backward(
        dout, out=result.out, lse=result.lse, dlse=dlse, grads=list(arrays),
        cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **arrays, **options,
    )  # fmt: skip
    assert_gradients(loss, arrays, gradients)


def test_varlen_sequences_keep_their_own_nan():
    q, k, v = np.random.default_rng(0).standard_normal((3, 5, 2, 4))
    k[:2], v[:2] = np.nan, np.inf
    out = reference.attention_varlen(q, k, v, [0, 2, 5], [0, 2, 5])
    assert_same(out[2:], reference.attention(q[2:], k[2:], v[2:], layout="blhd"))


def test_varlen_of_nothing():
    q = np.ones((0, 2, 3))
    result = reference.attention_varlen(q, q, q, [0], [0], return_lse=True)
    assert result.out.shape == (0, 2, 3)
    assert result.lse.shape == (2, 0)
    assert result.weights is None
    gradients = reference.attention_varlen_backward(
        q, q, q, q, *result[:2], [0], [0], grads=("k", "sinks"), sinks=np.zeros(2)
    )
    assert gradients.dq is None
    assert gradients.dk.shape == (0, 2, 3)
    assert_same(gradients.dsinks, np.zeros(2))


def test_unknown_options():
    q, cu = np.ones((2, 1, 3)), [0, 2]
    for call in (
        lambda: reference.attention(q, q, q, windows=(1, 1)),
        lambda: reference.attention_backward(q, q, q, q, q, q[..., 0], windows=(1, 1)),
        lambda: reference.attention_jvp(q, q, q, q, q, q, windows=(1, 1)),
        lambda: reference.attention_varlen(q, q, q, cu, cu, windows=(1, 1)),
    ):
        with pytest.raises(TypeError, match="windows"):
            call()
    with pytest.raises(ValueError, match="sinks"):
        reference.attention_backward(q, q, q, q, q, q[..., 0], grads=("sinks",))


# ---- rotary embedding ----


def turned(x, position, base, rotary_dim, interleaved):
    """One vector, pair by pair, as complex numbers."""
    y, half = list(x), rotary_dim // 2
    for t in range(half):
        a, b = (2 * t, 2 * t + 1) if interleaved else (t, t + half)
        angle = position * base ** (-2 * t / rotary_dim)
        z = complex(x[a], x[b]) * complex(math.cos(angle), math.sin(angle))
        y[a], y[b] = z.real, z.imag
    return y


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 8, 6, 2, 0])
def test_rope_pair_by_pair(interleaved, rotary_dim):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 8))
    positions = np.array([[0, 1, 7, 100], [5, 4, 3, 2]])
    options = {"base": 500.0, "rotary_dim": rotary_dim, "interleaved": interleaved}
    y = reference.rope(x, positions, **options)
    for b, h, i in np.ndindex(x.shape[:-1]):
        expected = turned(
            x[b, h, i], positions[b, i], 500.0, 8 if rotary_dim is None else rotary_dim, interleaved
        )
        np.testing.assert_allclose(y[b, h, i], expected, rtol=1e-12, atol=1e-14)
    blhd = reference.rope(x.swapaxes(1, 2), positions, layout="blhd", **options)
    assert_same(blhd.swapaxes(1, 2), y)
    assert_same(reference.rope(x[1, 2], positions[1], **options), y[1, 2])
    assert_same(reference.rope(x, positions[0], **options)[0], y[0])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_tables(interleaved):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 8))
    positions = np.array([[0, 1, 7, 9], [5, 4, 3, 2]])
    angles = np.arange(10)[:, None] * 100.0 ** (-2 * np.arange(3) / 6)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
    options = {"rotary_dim": 6, "interleaved": interleaved}
    expected = reference.rope(x, positions, base=100.0, **options)
    assert_close([reference.rope(x, positions, **tables, **options)], [expected])
    direct = {name: table[positions] for name, table in tables.items()}
    assert_close([reference.rope(x, None, **direct, **options)], [expected])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_keeps_norms_and_relative_products(interleaved):
    q, k = np.random.default_rng(0).standard_normal((2, 2, 5, 8))
    at = np.arange(5)
    options = {"interleaved": interleaved}
    turned_q = reference.rope(q, at, **options)
    np.testing.assert_allclose(
        np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-13
    )
    products, moved = (
        reference.rope(q, at + n, **options)
        @ reference.rope(k, 2 * at + n, **options).swapaxes(1, 2)
        for n in (0, 1000)
    )
    np.testing.assert_allclose(moved, products, atol=1e-11)
    assert not np.allclose(products, q @ k.swapaxes(1, 2))


def test_rope_backward_is_the_transpose():
    x, dy = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 8))
    options = {"positions": np.arange(4) + 0.5, "rotary_dim": 6, "interleaved": True}
    dx = reference.rope_backward(dy, **options)
    inner = (dy * reference.rope(x, **options)).sum()
    assert (dx * x).sum() == pytest.approx(inner, rel=1e-12)
    np.testing.assert_allclose(reference.rope_backward(reference.rope(x, **options), **options), x)
    assert_same(dx[..., 6:], dy[..., 6:])
