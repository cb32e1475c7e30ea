"""mask, bias and causal: every broadcast, one offset per batch entry, and their intersection."""

import numpy as np
import pytest
from cases import Case, check_backward, check_forward, problem
from support import assert_same, normal

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")

SHAPES = [
    (), (1,), (70,), (40, 1), (1, 70), (40, 70), (4, 1, 1), (1, 40, 70), (4, 1, 70), (4, 40, 70),
    (2, 1, 1, 70), (2, 4, 40, 1), (1, 4, 1, 70), (3, 1, 1, 40, 70), (3, 2, 4, 40, 70),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("plane", ["mask", "bias"])
def test_every_broadcast(dtype, record, plane, shape):
    case = Case(40, 70, 8, 8, hq=4, hkv=2, batch=(3, 2), **{plane: shape})
    check_forward(case, dtype, record)
    check_backward(case, dtype, record)


def test_mask_and_bias_and_causal_intersect(dtype, record):
    for causal_offset in (None, 0, 10):
        for mask, bias in (((40, 70), (70,)), ((70,), (4, 40, 1)), ((4, 1, 70), (40, 70))):
            case = Case(
                40, 70, 8, 8, hq=4, hkv=2, causal=True, causal_offset=causal_offset,
                mask=mask, bias=bias,
            )  # fmt: skip
            check_forward(case, dtype, record)
            check_backward(case, dtype, record)


@pytest.mark.parametrize("integer", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64])
def test_one_offset_per_batch_entry(dtype, integer):
    """Integers of any width; each batch entry as if it were alone."""
    q, k, v, _, dout, dlse = problem(Case(40, 70, 8, 8, hq=4, hkv=2, batch=(3,)), dtype)
    offsets = np.array([0, 35, 7], integer)
    options = {"causal": True, "causal_offset": offsets}
    out, lse, weights = cattn.attention(q, k, v, **options, return_lse=True, return_weights=True)
    gradients = cattn.attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    for b, offset in enumerate(offsets):
        alone = {"causal": True, "causal_offset": int(offset)}
        one = slice(b, b + 1)
        result = cattn.attention(
            q[one], k[one], v[one], **alone, return_lse=True, return_weights=True
        )
        assert_same(tuple(result), (out[one], lse[one], weights[one]))
        own = cattn.attention_backward(
            dout[one], q[one], k[one], v[one], out[one], lse[one], dlse=dlse[one], **alone
        )
        assert_same(tuple(own[:3]), tuple(g[one] for g in gradients[:3]))


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.uint16, np.uint64])
@pytest.mark.parametrize("which", ["kv_lengths", "causal_offset"])
def test_the_reference_takes_integers_of_any_width(integer, which):
    """Differences of lengths, offsets and numbers of queries do not wrap around."""
    q = normal(2, 1, 200, 4, dtype=np.float64)
    k, v = normal(2, 1, 90, 4, dtype=np.float64, count=2)
    numbers = [3, 90]
    expected = reference.attention(q, k, v, causal=True, **{which: numbers})
    narrow = reference.attention(q, k, v, causal=True, **{which: np.array(numbers, integer)})
    assert_same(narrow, expected)
    out = cattn.attention(q, k, v, causal=True, **{which: np.array(numbers, integer)})
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_windows_and_offsets_as_far_as_integers_reach():
    q, k, v = np.zeros((1, 2)), np.zeros((4, 2)), np.arange(4.0)[:, None]

    def seen(**options):
        weights = cattn.attention(q, k, v, return_weights=True, **options).weights
        return (weights[0] > 0).tolist()

    everything, nothing, last = [True] * 4, [False] * 4, [False, True, True, True]
    far, farthest = 2**62, 2**63 - 1
    assert seen(window=(far - 1, None), causal_offset=far) == last
    assert seen(window=(None, far - 2), causal_offset=-far + 3) == [True, True, False, False]
    assert seen(window=(2**60, None), causal_offset=2**61) == nothing
    assert seen(window=(farthest, farthest), causal_offset=farthest) == everything
    assert seen(window=(farthest, 0), causal_offset=-farthest - 1) == nothing
    assert seen(causal=True, causal_offset=farthest) == everything
    slopes = np.array([1e-18])
    result = cattn.attention(
        q, k, v, causal_offset=far, alibi_slopes=slopes, causal=True, return_lse=True
    )
    assert result.lse[0] == pytest.approx(np.log(4) - 1e-18 * far)


def test_negative_offsets_per_batch_entry(dtype):
    q, k, v = normal(3, 2, 20, 8, dtype=dtype, count=3)
    offsets = np.array([-30, -5, -19], np.int32)
    out = cattn.attention(q, k, v, causal=True, causal_offset=offsets)
    for b, offset in enumerate(offsets):
        assert_same(out[b], cattn.attention(q[b], k[b], v[b], causal=True, causal_offset=offset))
        assert (out[b, :, : -int(offset)] == 0).all()


def test_offsets_broadcast_over_the_leading_axes(dtype):
    q, k, v = normal(3, 2, 1, 9, 4, dtype=dtype, count=3)
    grid = np.arange(6).reshape(3, 2)
    full = cattn.attention(q, k, v, causal=True, causal_offset=grid)
    for a in range(3):
        for b in range(2):
            one = cattn.attention(
                q[a, b], k[a, b], v[a, b], causal=True, causal_offset=int(grid[a, b])
            )
            assert_same(full[a, b], one)
    column = cattn.attention(q, k, v, causal=True, causal_offset=grid[:, :1])
    repeated = cattn.attention(q, k, v, causal=True, causal_offset=grid[:, :1].repeat(2, axis=1))
    assert_same(column, repeated)


def test_default_offset_shows_the_last_query_every_key(dtype):
    q, k, v = (normal(n, 4, dtype=dtype, seed=n) for n in (3, 8, 8))
    default = cattn.attention(q, k, v, causal=True, return_weights=True).weights
    explicit = cattn.attention(q, k, v, causal=True, causal_offset=5, return_weights=True).weights
    assert_same(default, explicit)
    np.testing.assert_array_equal(default > 0, np.arange(8) <= np.arange(3)[:, None] + 5)


def test_offsets_that_are_numpy_or_python_integers(dtype):
    q = normal(6, 4, dtype=dtype)
    expected = cattn.attention(q, q, q, causal=True, causal_offset=2)
    for offset in (np.int8(2), np.uint16(2), np.array(2), np.array([2])[0]):
        assert_same(cattn.attention(q, q, q, causal=True, causal_offset=offset), expected)


def test_mask_views(dtype):
    """A mask of any strides, transposed or reversed, is read in place."""
    q, k, v = normal(2, 30, 4, dtype=dtype, count=3)
    mask = np.random.default_rng(2).random((30, 30)) < 0.5
    for view in (mask.T, mask[::-1], mask[:, ::-1], mask[::-1, ::-1].T):
        assert_same(cattn.attention(q, k, v, mask=view), cattn.attention(q, k, v, mask=view.copy()))
    wide = np.random.default_rng(3).random((60, 90)) < 0.5
    assert_same(
        cattn.attention(q, k, v, mask=wide[::2, ::3]),
        cattn.attention(q, k, v, mask=wide[::2, ::3].copy()),
    )
    bias = normal(60, 90, dtype=dtype)
    assert_same(
        cattn.attention(q, k, v, bias=bias[::2, ::3]),
        cattn.attention(q, k, v, bias=bias[::2, ::3].copy()),
    )


def test_minus_infinity_in_bias_is_a_mask(dtype):
    q, k, v = normal(2, 40, 8, dtype=dtype, count=3)
    seen = np.random.default_rng(4).random((40, 40)) < 0.5
    bias = normal(40, 40, dtype=dtype)
    by_mask = cattn.attention(q, k, v, mask=seen, bias=bias, return_weights=True)
    by_bias = cattn.attention(
        q, k, v, bias=np.where(seen, bias, -np.inf).astype(dtype), return_weights=True
    )
    assert_same(by_bias, by_mask)
