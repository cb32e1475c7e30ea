"""float16 and bfloat16: what float32 gives for the same numbers, rounded once, to the last bit.

Where half types have kernels of their own, on pairs of bfloat16 or float16, they do not give
float32's bits and are held to their bounds instead.
"""

import bounds
import numpy as np
import pytest
from cases import Case, check_backward, check_forward, problem, tangent, wanted
from support import assert_same, normal

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture
def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


CASES = [
    Case(49, 65, 8, 6, hq=4, hkv=2, batch=(2,)),
    Case(97, 260, 33, 17, causal=True, layout="blhd"),
    Case(20, 130, 8, 16, hq=2, batch=(2,), bias=(2, 1, 20, 130), softcap=2.0, sinks=True),
    Case(49, 130, 5, 9, hq=2, batch=(2,), mask=(49, 130), alibi="head", lengths=True, dropout=0.3),
    Case(300, 300, 16, 40, window=(9, 3), causal_offset=0, spread=4.0),
    # more than one block of 256 queries and of 256 keys
    Case(270, 300, 16, 24, mask=(270, 300), softcap=2.0, dropout=0.2),
    Case(270, 520, 24, 16, bias=(270, 520), causal=True),
]


def wide(x, half):
    return x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype == half else x


def narrow(x, half):
    return None if x is None else x.astype(half)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_float32_rounded_once(half, case, record):
    if bounds.multiplies_pairs(half):
        check_forward(case, half, record)
        check_backward(case, half, record)
        return
    q, k, v, options, dout, dlse = problem(case, half)
    same = {name: wide(option, half) for name, option in options.items()}
    in_float32 = [wide(a, half) for a in (q, k, v)]
    flags = {"return_lse": True, "return_weights": True}
    actual = cattn.attention(q, k, v, **options, **flags)
    expected = cattn.attention(*in_float32, **same, **flags)
    assert_same(actual.out, narrow(expected.out, half))
    assert_same(actual.lse, expected.lse)
    assert_same(actual.weights, narrow(expected.weights, half))

    more = {"dlse": dlse, "grads": wanted(options)}
    gradients = cattn.attention_backward(dout, q, k, v, *actual[:2], **more, **options)
    expected = cattn.attention_backward(
        wide(dout, half), *in_float32, wide(actual.out, half), actual.lse, **more, **same
    )
    for one, other in zip(gradients, expected, strict=True):
        assert_same(one, narrow(other, half))


@pytest.mark.parametrize("size", [0.3, 8.0], ids=["within reach", "beyond"])
@pytest.mark.parametrize("causal", [False, True], ids=["dense", "causal"])
def test_lengths_around_blocks_of_pairs(half, causal, size, record):
    """Blocks of 128 or 256 queries and keys, scores with and without maxima."""
    if not bounds.multiplies_pairs(half):
        pytest.skip("computed in float32")
    lengths = (95, 127, 128, 129, 160, 161, 255, 256, 257, 385, 511, 513)
    for i, lq in enumerate(lengths):
        lk = lengths[(3 * i + 2) % len(lengths)]
        case = Case(lq, lk, 32, 32, causal=causal, spread=size)
        check_forward(case, half, record)
        check_backward(case, half, record)


@pytest.mark.parametrize("lq", [256, 257, 390])
def test_long_blocks_of_queries(half, lq, record):
    """Many heads: blocks of 256 queries on amx, where others have 128."""
    check_forward(Case(lq, 150, 32, 32, hq=128, hkv=2, causal=True), half, record)


@pytest.mark.parametrize(("q", "v"), [(0.0, 2.0**-123), (1.5, 2.0**-100), (1.5, 2.0**-47)])
def test_tiny_values_of_many_keys(bfloat16, q, v):
    """Values that products with weights below 1 would lose, in more than one block."""
    queries, keys = (np.full((1, 256, 64), x, bfloat16) for x in (q, -q))
    values = normal(1, 256, 64, dtype=bfloat16)
    values[..., 0] = v
    out = cattn.attention(queries, keys, values)
    np.testing.assert_allclose(out[..., 0].astype(np.float64), v, rtol=1e-2)


def test_tiny_queries_of_huge_keys(bfloat16):
    """Scores that are far from the product of norms that underflow."""
    queries, keys = (np.full((1, 256, 64), x, bfloat16) for x in (2.0**-64, -(2.0**58)))
    values = normal(1, 256, 64, dtype=bfloat16)
    out, lse, _ = cattn.attention(queries, keys, values, scale=100.0, return_lse=True)
    np.testing.assert_allclose(lse, np.log(256) - 100, rtol=1e-5)
    alone = cattn.attention(queries, keys, values, scale=100.0)
    mean = np.broadcast_to(values.astype(np.float32).mean(axis=1), out.shape)
    for x in (out, alone):
        np.testing.assert_allclose(x.astype(np.float32), mean, atol=2e-3)


def test_nan_of_any_bits_stays_one(half):
    """A row whose lse is NaN has NaN for gradients, whatever its payload."""
    q, k, v, dout = normal(1, 40, 32, dtype=half, count=4)
    out, lse, _ = cattn.attention(q, k, v, return_lse=True)
    lse.view(np.uint32)[0, 5] = 0xFFFFFFFF
    gradients = cattn.attention_backward(dout, q, k, v, out, lse)
    assert np.isnan(gradients.dq[0, 5].astype(np.float32)).all()
    assert np.isnan(gradients.dk.astype(np.float32)).all()
    assert np.isnan(gradients.dv.astype(np.float32)).all()


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_forward_mode_is_that_of_float32_rounded_once(half, case):
    q, k, v, options, *_ = problem(case, half)
    same = {name: wide(option, half) for name, option in options.items()}
    in_float32 = [wide(a, half) for a in (q, k, v)]
    moves = tangent(case, half).moves
    expected = cattn.attention_jvp(*in_float32, *(wide(m, half) for m in moves), **same)
    for one, other in zip(cattn.attention_jvp(q, k, v, *moves, **options), expected, strict=True):
        assert_same(one, narrow(other, half))


@pytest.mark.parametrize(("q_shape", "k_shape"), [
    ((3, 1, 4, 20, 8), (2, 2, 30, 8)),
    ((20, 8), (3, 1, 30, 8)),
    ((2, 4, 20, 8), (30, 8)),
])  # fmt: skip
def test_gradients_of_broadcast_inputs_are_rounded_once(half, q_shape, k_shape):
    """Summed in float32 over the axes that were broadcast, then rounded."""
    q, k = (normal(*shape, dtype=half, seed=len(shape)) for shape in (q_shape, k_shape))
    v = normal(*k_shape, dtype=half, seed=9)
    out, lse, _ = cattn.attention(q, k, v, return_lse=True)
    dout = normal(*out.shape, dtype=half)
    given = dout, q, k, v, out
    gradients = cattn.attention_backward(*given, lse)[:3]
    for one, of in zip(gradients, (q, k, v), strict=True):
        assert one.shape == of.shape
    if bounds.multiplies_pairs(half):
        exact, limit = (
            of(*given, lse)[:3]
            for of in (reference.attention_backward, bounds.attention_backward_bound)
        )
        for one, other, bound in zip(gradients, exact, limit, strict=True):
            bounds.worst(one, other, bound)
        return
    expected = cattn.attention_backward(*(wide(a, half) for a in given), lse)[:3]
    for one, other in zip(gradients, expected, strict=True):
        assert_same(one, narrow(other, half))


def test_every_number_comes_through(half):
    """A softmax over one key copies its value: all 65,536 of them, NaN and subnormals included."""
    v = np.arange(2**16, dtype=np.uint16).view(half).reshape(1, 1, 256, 256)
    q = np.zeros((256, 1, 1, 4), half)
    for values, count in ((v.reshape(256, 1, 1, 256), 256), (v.reshape(4096, 1, 1, 16), 4096)):
        queries = np.broadcast_to(q[:1], (count, 1, 1, 4))
        out = cattn.attention(queries, queries, values)
        with np.errstate(invalid="ignore"):  # some NaN are signalling
            nan = np.isnan(values)
            np.testing.assert_array_equal(np.isnan(out), nan)
        assert_same(out[~nan], values[~nan])


@pytest.mark.parametrize("width", [1, 5, 8, 33])
def test_rounding_to_nearest_with_ties_to_even(half, width):
    """Means of two neighbours are ties; dk and dv of float32 numbers in between are not."""
    digits = 10 if half == np.float16 else 7
    bits = np.random.default_rng(0).integers(0, 2 ** (digits + 3), (300, width)).astype(np.uint16)
    bits += np.uint16(1 << digits)
    one, next_one = bits.view(half), (bits + np.uint16(1)).view(half)
    values = np.stack([one, next_one], axis=1)  # two keys that weigh the same
    q = np.zeros((300, 1, 2), half)
    out = cattn.attention(q[:, None], np.zeros((300, 1, 2, 2), half), values[:, None])[:, 0, 0]
    middle = (one.astype(np.float64) + next_one.astype(np.float64)) / 2
    assert_same(out, middle.astype(half))
    even = np.where(bits % 2 == 0, one, next_one)
    assert_same(out, even.astype(half))


def test_overflow_is_infinity():
    """A gradient beyond 65504 is infinite in float16, as a conversion of float32 would be."""
    q = np.full((1, 4, 2), 100, np.float16)
    dout = np.full((1, 4, 2), 60000, np.float16)
    out, lse, _ = cattn.attention(q, q, q, return_lse=True)
    dv = cattn.attention_backward(dout, q, q[:, :1], q[:, :1], out, lse * 0, scale=0.0).dv
    assert (dv == np.inf).all()


def test_small_numbers_are_not_flushed(half):
    """Subnormal values of the half type survive, and so do sums of them."""
    smallest = np.array([1], np.uint16).view(half)
    v = np.broadcast_to(smallest, (1, 3, 8)).copy()
    q = np.zeros((1, 5, 4), half)
    out = cattn.attention(q, np.zeros((1, 3, 4), half), v)
    assert_same(out, np.broadcast_to(smallest, (1, 5, 8)).astype(half))
    dout = np.broadcast_to(smallest, (1, 6, 8)).copy()
    lse = np.zeros((1, 6), np.float32)  # every weight is 1: the sum of six
    zero = np.zeros((1, 6, 8), half)
    dv = cattn.attention_backward(
        dout, zero[..., :4], np.zeros((1, 3, 4), half), v, zero, lse, grads=["v"]
    ).dv
    assert_same(dv, np.full((1, 3, 8), 6, np.uint16).view(half))


@pytest.mark.parametrize("scale", [None, 3.0])
def test_scores_of_any_size(half, scale):
    """One key has all the weight, however large its score, and a sink beside it none."""
    sizes = np.geomspace(1, 6e4, 300)[:, None, None]
    q = np.broadcast_to(sizes, (300, 1, 64)).astype(half)
    v = normal(300, 1, 8, dtype=half)
    out, lse, _ = cattn.attention(q, q, v, scale=scale, return_lse=True)
    assert_same(out, v)
    exact = reference.attention(q, q, v, scale=scale, return_lse=True).lse
    np.testing.assert_allclose(lse, exact, rtol=1e-5)
    large = sizes[:, 0, 0] > 100
    sinks = np.zeros(300, np.float32)
    assert_same(cattn.attention(q, q, v, scale=scale, sinks=sinks)[large], v[large])


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 3e3])
def test_output_without_lse(half, size):
    """Its weights may come another way: as accurate, and 1 for the only key of a row."""
    kinds = [{}, {"causal": True}, {"window": (30, 9)}, {"kv_lengths": [1, 129, 290]}]
    errors = np.zeros((4, 2))
    for turn in range(4):
        q, k, v = (normal(3, 1, n, 64, seed=1000 * turn + n) for n in (40, 290, 291))
        q, k, v = (x.astype(half) for x in (size * q, k, v[:, :, :290]))
        for kind, options in enumerate(kinds):
            out = cattn.attention(q, k, v, **options)
            exact = reference.attention(q, k, v, **options)
            limit = bounds.attention_bound(q, k, v, **options).out
            assert bounds.worst(out, exact, limit) <= 1
            with_lse = cattn.attention(q, k, v, **options, return_lse=True).out
            errors[kind] += [
                np.square(x.astype(np.float64) - exact).mean() for x in (out, with_lse)
            ]
    # A table is 1.04 times as far off as a rounding.
    assert (errors[:, 0] <= 1.08 * errors[:, 1]).all()
    assert errors[:, 0].sum() <= 1.06 * errors[:, 1].sum()
    one_key = k[:, :, :1], v[:, :, :1]
    assert_same(cattn.attention(q, *one_key), np.broadcast_to(one_key[1], q.shape))


def test_output_without_lse_of_odd_queries(half):
    """Zeros whatever the scale, and NaN beside others."""
    q, k, v = (normal(1, n, 64, dtype=half, seed=n) for n in (40, 129, 130))
    v = v[:, :129]
    even = cattn.attention(np.zeros_like(q), k, v, scale=1e37).astype(np.float32)
    expected = np.broadcast_to(v.astype(np.float32).mean(axis=1), q.shape)
    np.testing.assert_allclose(even, expected, rtol=0, atol=2e-3)
    exact = cattn.attention(q, k, v)
    q[:, 7] = np.nan
    out = cattn.attention(q, k, v)
    assert np.isnan(out[:, 7].astype(np.float32)).all()
    others = np.arange(40) != 7
    difference = out[:, others].astype(np.float32) - exact[:, others].astype(np.float32)
    assert np.abs(difference).max() <= 1e-2


def test_wide_range(half):
    """Rows of all sizes that the half type has, side by side, in one block: none costs another."""
    q, k = normal(1, 60, 16, dtype=half, count=2)
    low, high = (-22, 5) if half == np.float16 else (-100, 40)  # gradients do not overflow
    sizes = 2.0 ** np.random.default_rng(0).integers(low, high, (60, 1))
    v, dout = ((sizes * normal(1, 60, 16, seed=i)).astype(half) for i in (5, 6))
    out, lse, _ = cattn.attention(q, k, v, return_lse=True)
    given = q, k, v
    exact, limit = reference.attention(*given), bounds.attention_bound(*given).out
    assert bounds.worst(out, exact, limit) <= 1
    given = dout, *given, out, lse
    gradients = cattn.attention_backward(*given)
    exact, limit = reference.attention_backward(*given), bounds.attention_backward_bound(*given)
    for one, other, bound in zip(gradients[:3], exact[:3], limit[:3], strict=True):
        assert bounds.worst(one, other, bound) <= 1


def test_dtypes_beside_half(half):
    """Bias, sinks and slopes are of the half type or float32; lse and its gradient float32."""
    q, k, v, dout = normal(2, 9, 8, dtype=half, count=4)
    numbers = {"bias": normal(9, 9), "sinks": normal(2), "alibi_slopes": normal(2)}
    for name, number in numbers.items():
        number = number.astype(half)
        one = cattn.attention(q, k, v, **{name: number})
        assert_same(cattn.attention(q, k, v, **{name: number.astype(np.float32)}), one)
        with pytest.raises(TypeError, match=rf"^{name}: dtype float64.*float32"):
            cattn.attention(q, k, v, **{name: number.astype(np.float64)})
    out, lse, _ = cattn.attention(q, k, v, return_lse=True)
    with pytest.raises(TypeError, match=rf"^lse: dtype {half}, expected float32"):
        cattn.attention_backward(dout, q, k, v, out, lse.astype(half))
    with pytest.raises(TypeError, match=r"^k: dtype float32"):
        cattn.attention(q, k.astype(np.float32), v)
