"""The `precision` of float32 products: what each word permits, and bounds that mean it."""

from functools import partial

import bounds
import numpy as np
import pytest
from cases import Case, backward, check_backward, check_forward, check_tangent, forward, problem
from support import assert_same, normal

import cattn
from cattn import _core, reference

SINGLE = np.dtype(np.float32)
WORDS = ["high", "medium"]
SHARED = {"batch": (2,), "hq": 4, "hkv": 2}
CASES = {
    "nothing": Case(49, 65, 24, 17, **SHARED),
    "causal": Case(97, 129, 8, 40, causal=True, **SHARED),
    "bias": Case(33, 70, 16, 16, bias=(4, 1, 70), **SHARED),
    "mask and sinks": Case(20, 48, 32, 8, mask=(2, 1, 20, 48), sinks=True, **SHARED),
    "softcap": Case(40, 65, 24, 24, softcap=1.5, **SHARED),
    "dropout": Case(40, 65, 64, 24, dropout=0.3, **SHARED),
    "one key": Case(5, 1, 3, 2),
    "small numbers": Case(9, 30, 16, 16, spread=1e-3),
    "long": Case(10, 700, 64, 64, causal=True),
}


def with_precision(case, precision):
    return Case(**{**vars(case), "precision": precision})


# ---- what the library computes ----


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", WORDS)
@pytest.mark.parametrize("name", CASES)
def test_results_are_within_the_bound(record, name, precision):
    case = with_precision(CASES[name], precision)
    for check in (check_forward, check_backward, check_tangent):
        check(case, SINGLE, record_as(record, precision))


def record_as(record, precision):
    return lambda function, dtype, ratio: record(f"{function}-{precision}", dtype, ratio)


def everything(q, k, v, dout, **options):
    """Every function on the same arrays, (L, H, D)."""
    blhd = {"layout": "blhd", **options}
    starts = [0, 3, len(q)], [0, 20, len(k)]
    out, lse, weights = cattn.attention(q, k, v, **blhd, return_lse=True, return_weights=True)
    packed = cattn.attention_varlen(q, k, v, *starts, **options, return_lse=True)
    return (
        (out, lse, weights),
        tuple(cattn.attention_backward(dout, q, k, v, out, lse, **blhd)),
        tuple(packed),
        tuple(cattn.attention_varlen_backward(dout, q, k, v, *packed[:2], *starts, **options)),
        cattn.attention_jvp(q, k, v, 2 * q, 3 * k, 5 * v, **blhd),
    )


def arrays(dtype):
    shapes = (40, 4, 16), (70, 2, 16), (70, 2, 12), (40, 4, 12)
    return [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.usefixtures("isa")
def test_the_highest_is_the_default(any_dtype):
    given = arrays(any_dtype)
    assert_same(everything(*given, precision="highest"), everything(*given))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["highest", *WORDS])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_scores_of_any_size(precision, scale):
    """One key has all the weight, however large its score, and a sink beside it none."""
    q = np.broadcast_to(np.geomspace(1, 1e9, 300)[:, None, None], (300, 1, 64)).astype(SINGLE)
    v = normal(300, 1, 8)
    options = {"scale": scale, "precision": precision, "return_lse": True}
    out, lse, _ = cattn.attention(q, q, v, **options)
    near = {"highest": 1e-6, "high": 2.0**-15, "medium": 2.0**-8}[precision]
    np.testing.assert_allclose(out, v, rtol=near)
    large = q[:, 0, 0] > 100
    out = cattn.attention(q, q, v, **options, sinks=np.zeros(300, np.float32)).out
    np.testing.assert_allclose(out[large], v[large], rtol=near)
    exact = reference.attention(q, q, v, scale=scale, return_lse=True).lse
    np.testing.assert_allclose(lse, exact, rtol=2.0**-6)


@pytest.mark.usefixtures("isa")
def test_blocks_at_the_end_of_the_reach_agree():
    """Rounding moves scores beyond a bound of those that were not rounded."""
    x = np.float32(1.0039064)  # a bfloat16 away from it, 1.0078125, is nearer than 1
    q = k = np.full((1, 256, 64), x, np.float32)
    v = np.repeat(np.float32([0, 1]), 128)[None, :, None] + np.zeros((1, 1, 64), np.float32)
    scale = 27.95 / (64 * float(x) ** 2 * np.log2(np.e))
    mask = np.arange(256) > 0
    options = {"scale": scale, "mask": mask, "precision": "medium"}
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    exact = reference.attention(q, k, v, scale=scale, mask=mask, return_lse=True)
    np.testing.assert_allclose(out, exact.out, rtol=1e-2)
    np.testing.assert_allclose(lse, exact.lse, rtol=2.0**-6)
    np.testing.assert_allclose(cattn.attention(q, k, v, **options), exact.out, rtol=1e-2)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", WORDS)
def test_the_backward_sees_the_scores_of_the_forward(precision):
    """Rounded alike: weights from the lse add up to 1 even where rounding moves scores far."""
    q, k, v = (normal(n, 64, seed=n) for n in (70, 300, 301))
    q, v = 100 * q, v[:300]
    out, lse, _ = cattn.attention(q, k, v, precision=precision, return_lse=True)
    given = np.ones_like(out), q, k, v, out, lse
    dv = cattn.attention_backward(*given, grads=["v"], precision=precision).dv
    np.testing.assert_allclose(dv.sum(axis=0), 70, rtol=2e-3)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["highest", *WORDS])
@pytest.mark.parametrize("size", [100, 1000])
@pytest.mark.parametrize("tiny", [False, True])
def test_rows_of_weights_add_up_in_the_backward(precision, size, tiny):
    """As above, row by row: dv of unit vectors dO are the weights themselves."""
    q, k, v = (normal(n, 64, seed=n) for n in (64, 300, 301))
    q, v = size * q, v[:300]
    if tiny:
        q[[20, 50], 30] = 1e-20  # multiplied another way, in blocks of 32 queries too
    options = {"precision": precision}
    out, lse, _ = cattn.attention(q, k, v, return_lse=True, **options)
    dout = np.eye(64, dtype=SINGLE)
    weights = cattn.attention_backward(dout, q, k, v, out, lse, grads=["v"], **options).dv
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=4e-3)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["highest", *WORDS])
@pytest.mark.parametrize("score", [-1e-6, 1e-6, 0.02, -0.02])
@pytest.mark.parametrize("keys", [1, 16])
def test_lse_of_small_scores(precision, score, keys):
    """The weights next to 1, either side of an integral exponent: the lse is that of float32."""
    ones = np.ones((keys, 1), SINGLE)
    given = score * ones[:1], ones, ones
    lse = cattn.attention(*given, scale=1.0, precision=precision, return_lse=True).lse
    exact = reference.attention(*given, scale=1.0, return_lse=True).lse
    left_out = {"highest": 0, "high": 2.0**-15, "medium": 2.0**-7}[precision] * abs(score)
    np.testing.assert_allclose(lse, exact, rtol=0, atol=5e-7 + left_out)


@pytest.mark.usefixtures("isa")
def test_sums_of_many_keys_stay_accurate():
    """Long sums start afresh now and then, with dropout too, whose weights take another way."""
    q, k, v = (normal(2, n, 64, seed=n) for n in (100, 6000, 6001))
    v = 1 + v[:, :6000]
    options = {"dropout": 1e-9, "seed": 1}
    errors = [
        np.square(cattn.attention(q, k, v, **more) - reference.attention(q, k, v, **more)).mean()
        for more in ({}, options)
    ]
    assert errors[0] <= (4e-7) ** 2
    assert errors[1] <= 4 * errors[0]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["highest", *WORDS])
@pytest.mark.parametrize("size", [1e-39, 1e-20, 1e18])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(20, 96), (96, 20), (40, 80), (77, 45)])
def test_blocks_of_numbers_that_do_not_split(any_dtype, precision, size, head_dim, value_dim):
    """Beside others of an ordinary size: a row of values, and a key."""
    q, k, v, dout = (
        normal(2, rows, cols, seed=seed)
        for seed, (rows, cols) in enumerate(
            [(130, head_dim), (300, head_dim), (300, value_dim), (130, value_dim)]
        )
    )
    v[:, 150] *= min(size, 1e4) if any_dtype == np.float16 else size
    k[:, 10] *= min(size, 1)
    given = [x.astype(any_dtype) for x in (q, k, v)]
    options = {"precision": precision} if any_dtype == SINGLE else {}
    out, lse, _ = cattn.attention(*given, return_lse=True, **options)
    limit = bounds.attention_bound(*given, **options)
    assert bounds.worst(out, reference.attention(*given), limit.out) <= 1
    if size > 1:
        return  # gradients overflow
    given = (dout.astype(any_dtype), *given, out, lse)
    gradients = cattn.attention_backward(*given, **options)
    exact = reference.attention_backward(*given)
    limits = bounds.attention_backward_bound(*given, **options)
    for one, other, limit in zip(gradients[:3], exact[:3], limits[:3], strict=True):
        assert bounds.worst(one, other, limit) <= 1


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["highest", *WORDS])
@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=["mask", "causal"])
def test_the_largest_float32_stays_hidden(precision, options):
    """It rounds to an infinite bfloat16; what is not attended is as good as zeros."""
    q, k, v, dout = (normal(2, n, 40, seed=n) for n in (140, 141, 142, 143))
    q, v, dout = q[:, :70], v[:, :140], dout[:, :70]
    k = k[:, :140]
    options = {"causal_offset": 69, **options} if options else {"mask": np.arange(140) != 139}

    def everything_of(hidden):
        for x in (k, v):
            x[:, 139] = hidden
        given = q, k, v
        out, lse, _ = cattn.attention(*given, return_lse=True, precision=precision, **options)
        given = (dout, *given, out, lse)
        gradients = cattn.attention_backward(*given, precision=precision, **options)
        return (out, lse, *gradients[:3])

    zeros, largest = everything_of(0), everything_of(np.finfo(SINGLE).max)
    near = {"highest": 1e-4, "high": 1e-3, "medium": 0.1}[precision]
    for one, other in zip(largest, zeros, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=near)
    assert not largest[3][:, 139].any()
    assert not largest[4][:, 139].any()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", WORDS)
@pytest.mark.parametrize("other", ["float64", "float16", "bfloat16"])
def test_other_dtypes_ignore_it(other, precision):
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if other == "bfloat16" else other)
    given = arrays(dtype)
    assert_same(everything(*given, precision=precision), everything(*given))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", WORDS)
def test_packed_sequences(precision):
    """Each sequence is within the bound of its own attention."""
    q, k, v, dout = arrays(SINGLE)
    cu_q, cu_k = [0, 13, 40], [0, 50, 70]
    out, lse, _ = cattn.attention_varlen(q, k, v, cu_q, cu_k, precision=precision, return_lse=True)
    gradients = cattn.attention_varlen_backward(
        dout, q, k, v, out, lse, cu_q, cu_k, precision=precision
    )
    options = {"layout": "blhd", "precision": precision}
    for n in range(2):
        rows, keys = slice(*cu_q[n : n + 2]), slice(*cu_k[n : n + 2])
        inputs = q[rows], k[keys], v[keys]
        exact = reference.attention(*inputs, **options, return_lse=True)
        limit = bounds.attention_bound(*inputs, **options)
        assert bounds.worst(out[rows], exact.out, limit.out, "out") <= 1
        assert bounds.worst(lse[:, rows], exact.lse, limit.lse, "lse") <= 1
        given = dout[rows], *inputs, out[rows], lse[:, rows]
        exact = reference.attention_backward(*given, **options)
        limit = bounds.attention_backward_bound(*given, **options)
        for name, at in (("dq", rows), ("dk", keys), ("dv", keys)):
            actual = getattr(gradients, name)[at]
            assert bounds.worst(actual, getattr(exact, name), getattr(limit, name), name) <= 1


def test_the_words_are_words():
    """A string of another type is one; an unknown one is an error in every function."""
    given = arrays(SINGLE)
    assert_same(everything(*given, precision=np.str_("highest")), everything(*given))
    ones, rows, lse = np.ones((3, 4)), np.ones((5, 2, 4)), np.ones((2, 5))
    starts = [0, 5], [0, 5]
    for word in ("low", "", "HIGH", "high ", None, 1, True, b"high", ["high"]):
        for call in (
            partial(cattn.attention, ones, ones, ones),
            partial(cattn.attention_backward, *[ones] * 5, np.ones(3)),
            partial(cattn.attention_jvp, *[ones] * 6),
            partial(cattn.attention_varlen, rows, rows, rows, *starts),
            partial(cattn.attention_varlen_backward, *[rows] * 5, lse, *starts),
            partial(reference.attention, ones, ones, ones),
            partial(reference.attention_backward, *[ones] * 5, np.ones(3)),
            partial(reference.attention_jvp, *[ones] * 6),
            partial(reference.attention_varlen, rows, rows, rows, *starts),
            partial(reference.attention_varlen_backward, *[rows] * 5, lse, *starts),
        ):
            with pytest.raises(ValueError, match=r"^precision: is .*expected 'highest', 'high' or"):
                call(precision=word)


@pytest.mark.parametrize("precision", WORDS)
def test_the_reference_is_exact_whatever_the_precision(precision):
    q, k, v, *_ = problem(CASES["nothing"], SINGLE)
    assert_same(reference.attention(q, k, v, precision=precision), reference.attention(q, k, v))


# ---- the bounds, held against arithmetic that really has the errors ----


def to_bfloat16(x):
    """To nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    return bits.view(np.float32)


def product(a, b, precision):
    """Of float32 matrices by the parts of their numbers, summed in float32."""
    if precision == "highest":
        return a @ b
    a_high, b_high = to_bfloat16(a), to_bfloat16(b)
    if precision == "medium":
        return a_high @ b_high
    a_mid, b_mid = to_bfloat16(a - a_high), to_bfloat16(b - b_high)
    return a_mid @ b_high + a_high @ b_mid + a_high @ b_high


class Simulated:
    """Attention at float32, in which every matrix product is `product`: of two operands, and of
    weights or their gradients for gradients, with other precisions if these are given."""

    def __init__(self, q, k, v, precision, scale=None, softcap=None, bias=None, sinks=None,
                 operands=None, gradients=None, **options):  # fmt: skip
        options.pop("layout", None)
        self.by = partial(product, precision=operands or precision)
        self.weighted = partial(product, precision=precision)
        self.rounds_denominator = precision == "medium"
        self.summed = partial(product, precision=gradients or precision)
        self.heads = k.shape[-3]
        self.x = reference._inputs(q, k, v, "bhld", np.float32)
        self.pairs = reference._pairs(self.x, bias=bias, scale=scale, softcap=softcap, **options)
        self.scale = np.float32(q.shape[-1] ** -0.5 if scale is None else scale)
        s = self.scale * self.by(self.x.q, self.transposed(self.x.k))
        self.slope = np.float32(1)
        if softcap is not None:
            t = np.tanh(s / np.float32(softcap))
            s, self.slope = np.float32(softcap) * t, 1 - t * t
        s = s if bias is None else s + bias
        self.s = np.where(self.pairs.seen, s, np.float32(-np.inf))
        self.sink = None if sinks is None else reference._sink_column(sinks, self.s)

    @staticmethod
    def transposed(a):
        return a.swapaxes(-1, -2)

    def dropped(self, p):
        return self.pairs.dropped(p).astype(np.float32)

    def forward(self):
        """Out and lse. Weights that have one part only are divided by the sum of these."""
        m = self.s.max(axis=-1, keepdims=True)
        if self.sink is not None:
            m = np.maximum(m, self.sink)
        m = np.where(np.isneginf(m), np.float32(0), m)
        w = np.exp(self.s - m)
        sink = 0 if self.sink is None else np.exp(self.sink - m)
        total = w.sum(axis=-1, keepdims=True) + sink
        with np.errstate(divide="ignore"):
            lse = (m + np.log(total))[..., 0]
        if self.rounds_denominator:
            total = to_bfloat16(w).sum(axis=-1, keepdims=True) + sink
        total = np.where(total == 0, np.float32(1), total)
        return self.weighted(self.dropped(w), self.x.v) / total, lse

    def weights(self, lse):
        return reference._weights(self.s, np.asarray(lse, np.float32))

    def backward(self, dout, out, lse, dlse):
        p = self.weights(lse)
        delta = ((dout * out).sum(axis=-1) - dlse)[..., None]
        ds = p * (self.dropped(self.by(dout, self.transposed(self.x.v))) - delta)
        to_scores = self.slope * ds
        dq = self.scale * self.summed(to_scores, self.x.k)
        dk = self.scale * self.summed(self.transposed(to_scores), self.x.q)
        dv = self.summed(self.transposed(self.dropped(p)), dout)
        dk, dv = (reference._sum_group(g, (self.heads, *g.shape[-2:])) for g in (dk, dv))
        return dq, dk, dv


def simulated_ratios(case, arithmetic, bound):
    """Largest error / bound of every result of this arithmetic; over 1 is an error of `worst`."""
    case = with_precision(case, bound)
    q, k, v, options, dout, dlse = problem(case, SINGLE)
    own = Simulated(q, k, v, **{**options, "precision": arithmetic})
    ratios = {}

    def compare(name, actual, exact, limit):
        assert actual.dtype == np.float32
        ratios[name] = ratio(actual, exact, limit)

    exact, limit = forward(case, SINGLE)
    out, lse = own.forward()
    compare("out", out, exact.out, limit.out)
    compare("lse", lse, exact.lse, limit.lse)
    compare("weights", own.weights(exact.lse), exact.weights, limit.weights)
    out, lse, exact, limit = backward(case, SINGLE)
    for name, actual in zip(("dq", "dk", "dv"), own.backward(dout, out, lse, dlse), strict=True):
        compare(name, actual, getattr(exact, name), getattr(limit, name))
    return ratios


def ratio(actual, exact, limit):
    error = np.abs(np.where(actual == exact, 0, actual - exact))
    return float(np.max(np.where(error == 0, 0, error / np.where(error == 0, 1, limit))))


@pytest.mark.parametrize("precision", ["highest", *WORDS])
@pytest.mark.parametrize("name", CASES)
def test_bounds_hold_for_simulated_arithmetic(name, precision):
    """Errors that are really made, forwards and backwards."""
    ratios = simulated_ratios(CASES[name], precision, precision)
    for result, worst in ratios.items():
        assert worst <= 1, result
    print({result: round(worst, 4) for result, worst in ratios.items()})


@pytest.mark.parametrize(("arithmetic", "bound"), [("high", "highest"), ("medium", "high")])
def test_less_precise_arithmetic_is_caught(arithmetic, bound):
    """Each step down is beyond the bound of the step before, forwards and backwards."""
    ratios = simulated_ratios(Case(33, 32, 4, 4, hq=2, hkv=2), arithmetic, bound)
    for result in ("out", "lse", "weights", "dq", "dk", "dv"):
        assert ratios[result] > 1, result


# Numbers whose rounding errors are nearly as large as they get: 1 and almost half a unit of
# bfloat16, or almost a unit of 2⁻⁸ and almost half a unit of that.
BADLY_SPLIT = {
    "high": np.float32(1 + 2.0**-8 - 2.0**-16 + 2.0**-17 - 2.0**-20),
    "medium": np.float32(1 + 2.0**-8 - 2.0**-13),
}


@pytest.mark.parametrize("precision", WORDS)
def test_bounds_are_nearly_reached(precision):
    """When all operands are split as badly as possible, the errors are not far from the bounds."""

    def near(actual, exact, limit):
        return 0.6 < ratio(actual, exact, limit) <= 1

    def worst(*shape):
        return np.full(shape, BADLY_SPLIT[precision])

    # One key: the lse is its score.
    q, k, v = worst(1, 3, 8), worst(1, 1, 8), worst(1, 1, 8)
    own = Simulated(q, k, v, precision, scale=1.0)
    exact = reference.attention(q, k, v, scale=1.0, return_lse=True)
    limit = bounds.attention_bound(q, k, v, scale=1.0, precision=precision)
    assert near(own.forward()[1], exact.lse, limit.lse)

    # Weights that are such numbers, by a bias: one is 1, the others are half of the worst.
    k, v, dout = worst(1, 8, 8), worst(1, 8, 8), worst(1, 3, 8)
    weights = np.where(np.arange(8) == 0, 1, BADLY_SPLIT[precision] / 2)
    options = {"scale": 0.0, "bias": np.log(weights).astype(np.float32)}
    own = Simulated(q, k, v, precision, **options)
    exact = reference.attention(q, k, v, **options)
    limit = bounds.attention_bound(q, k, v, **options, precision=precision)
    assert near(own.forward()[0], exact, limit.out)

    given = dout, q, k, v, np.zeros_like(dout), np.zeros((1, 3), np.float32)
    exact = reference.attention_backward(*given, **options)
    limit = bounds.attention_backward_bound(*given, **options, precision=precision)
    _, _, dv = own.backward(dout, *given[4:], np.float32(0))
    assert near(dv, exact.dv, limit.dv)

    # Weights of 1: the gradients of the scores are dP, and with one value so is that of q.
    k, v = worst(1, 1, 1), worst(1, 1, 8)
    options = {"scale": 1.0, "bias": -np.ones(1, np.float32) * (q[..., :1] * k).max()}
    q = q[..., :1]
    own = Simulated(q, k, v, precision, **options)
    exact = reference.attention_backward(dout, q, k, v, *given[4:], **options)
    limit = bounds.attention_backward_bound(
        dout, q, k, v, *given[4:], **options, precision=precision
    )
    dq, dk, _ = own.backward(dout, *given[4:], np.float32(0))
    assert near(dq, exact.dq, limit.dq)
    assert near(dk, exact.dk, limit.dk)


# ---- half types where pairs of bfloat16 are multiplied ----

# The precision of weights in the output, and of what is multiplied for gradients; of two operands:
# the highest.
OF_WEIGHTS = {"float16": ("high", "high"), "bfloat16": ("medium", "medium")}


@pytest.fixture
def with_pairs(monkeypatch):
    """Bounds of an instruction set that multiplies pairs, whatever runs here."""
    monkeypatch.setattr(bounds, "PAIRS", {_core.isa(): bounds.TILES})


def simulated_half_ratios(case, half, weights, gradients, operands="highest"):
    def wide(a):
        return a.astype(np.float32) if a.dtype == half else a

    q, k, v, options, dout, dlse = problem(case, half)
    options = {n: wide(o) if isinstance(o, np.ndarray) else o for n, o in options.items()}
    precisions = {"operands": operands, "gradients": gradients}
    own = Simulated(wide(q), wide(k), wide(v), weights, **precisions, **options)
    exact, limit = forward(case, half)
    out, lse = own.forward()
    actual = [out.astype(half), lse, own.weights(exact.lse).astype(half)]
    ratios = {
        name: ratio(*three)
        for name, *three in zip(exact._fields, actual, exact, limit, strict=True)
    }
    out, lse, exact, limit = backward(case, half)
    gradients = own.backward(wide(dout), wide(out), lse, dlse)
    for name, actual in zip(("dq", "dk", "dv"), gradients, strict=True):
        ratios[name] = ratio(actual.astype(half), getattr(exact, name), getattr(limit, name))
    return ratios


@pytest.mark.usefixtures("with_pairs")
@pytest.mark.parametrize("name", CASES)
def test_bounds_hold_for_simulated_pairs(half, name):
    ratios = simulated_half_ratios(CASES[name], half, *OF_WEIGHTS[half.name])
    for result, worst in ratios.items():
        assert worst <= 1, result


@pytest.mark.usefixtures("with_pairs")
def test_less_precise_pairs_are_caught():
    """Weights of one part, and operands that lost their lower halves."""
    half, case = np.dtype(np.float16), Case(33, 32, 4, 4, hq=2, hkv=2)
    ratios = simulated_half_ratios(case, half, "medium", "medium")
    assert min(ratios[name] for name in ("out", "dq", "dk", "dv")) > 1
    ratios = simulated_half_ratios(case, half, "high", "high", operands="medium")
    assert min(ratios[name] for name in ("lse", "weights", "dq", "dk")) > 1


@pytest.mark.usefixtures("with_pairs")
def test_bounds_of_pairs_are_nearly_reached(half, monkeypatch):
    """But for the last rounding: as above, with operands that are worst among half types."""
    monkeypatch.setattr(bounds, "rounded", lambda bound, *_: bound)
    weights, gradients = OF_WEIGHTS[half.name]
    operand = np.array(1 + 2.0**-8 if half == np.float16 else 1).astype(half)
    q, k, v, dout = (np.full((1, n, 8), operand) for n in (3, 16, 16, 3))
    given = [a.astype(np.float32) for a in (q, k, v)]

    def weighing(number):
        """Options that make all weights but one half of a number, up to a common factor."""
        numbers = np.where(np.arange(16) == 0, 1, number / 2)
        return {"scale": 0.0, "bias": np.log(numbers).astype(np.float32)}

    number = BADLY_SPLIT[weights]
    if weights == "medium":  # v and -v, and the weights of -v are rounded the other way
        minus = np.arange(16) % 2 == 1
        v[:, minus] *= -1
        given[2] = v.astype(np.float32)
        number = np.where(minus, np.float32(1 + 2.0**-8 + 2.0**-13), number)
    options = weighing(number)
    own = Simulated(*given, weights, operands="highest", **options)
    exact = reference.attention(q, k, v, **options)
    limit = bounds.attention_bound(q, k, v, **options)  # the roundings of sums: a good half of it
    assert 0.4 < ratio(own.forward()[0], exact, limit.out) <= 1

    options = weighing(BADLY_SPLIT[gradients])
    own = Simulated(*given, gradients, operands="highest", **options)
    out, lse = np.zeros_like(dout), np.zeros((1, 3), np.float32)
    exact = reference.attention_backward(dout, q, k, v, out, lse, **options)
    limit = bounds.attention_backward_bound(dout, q, k, v, out, lse, **options)
    _, _, dv = own.backward(dout.astype(np.float32), np.float32(0) * given[0], lse, np.float32(0))
    assert 0.6 < ratio(dv, exact.dv, limit.dv) <= 1
