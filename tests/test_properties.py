"""What must hold between results: metamorphic relations.

Two computed results that are equal in exact arithmetic differ by at most the sum of their bounds.
"""

import bounds
import numpy as np
import pytest
from cases import Case, problem
from support import assert_same, normal

import cattn
from cattn import AttentionResult

pytestmark = pytest.mark.usefixtures("isa")

SIZES = [(5, 7), (40, 70), (97, 260)]
FLAGS = {"return_lse": True, "return_weights": True}


def drawn(lq, lk, dtype, **more):
    return problem(Case(lq, lk, 12, 10, hq=2, hkv=2, **more), dtype)[:3]


def assert_close(one, other, bound_one, bound_other, fields=("out", "lse", "weights")):
    for name in fields:
        a, b, x, y = (getattr(r, name) for r in (one, other, bound_one, bound_other))
        bounds.worst(a, b, x + y, name)


@pytest.mark.parametrize(("lq", "lk"), SIZES)
def test_the_order_of_keys_does_not_matter(dtype, lq, lk):
    q, k, v = drawn(lq, lk, dtype)
    bias = normal(2, lq, lk, dtype=dtype)
    order = np.random.default_rng(1).permutation(lk)
    plain = cattn.attention(q, k, v, bias=bias, **FLAGS)
    mixed = cattn.attention(q, k[:, order], v[:, order], bias=bias[..., order], **FLAGS)
    bound = bounds.attention_bound(q, k, v, bias=bias)
    assert_close(plain, mixed, bound, bound, ("out", "lse"))
    bounds.worst(plain.weights[..., order], mixed.weights, 2 * bound.weights[..., order])
    dout = normal(*plain.out.shape, dtype=dtype)
    grads = {"grads": ["q", "k", "v", "bias"]}
    out, lse = plain[:2]
    one = cattn.attention_backward(dout, q, k, v, out, lse, bias=bias, **grads)
    two = cattn.attention_backward(
        dout, q, k[:, order], v[:, order], out, lse, bias=bias[..., order], **grads
    )
    limit = bounds.attention_backward_bound(dout, q, k, v, out, lse, bias=bias, **grads)
    bounds.worst(one.dq, two.dq, 2 * limit.dq, "dq")
    bounds.worst(one.dk[:, order], two.dk, 2 * limit.dk[:, order], "dk")
    bounds.worst(one.dv[:, order], two.dv, 2 * limit.dv[:, order], "dv")
    bounds.worst(one.dbias[..., order], two.dbias, 2 * limit.dbias[..., order], "dbias")


@pytest.mark.parametrize(("lq", "lk"), SIZES)
def test_the_order_of_queries_does_not_matter(dtype, lq, lk):
    """Rows do not see each other: their order changes no bit of them."""
    q, k, v = drawn(lq, lk, dtype)
    order = np.random.default_rng(1).permutation(lq)
    plain = cattn.attention(q, k, v, **FLAGS)
    mixed = cattn.attention(q[:, order], k, v, **FLAGS)
    assert_same(tuple(mixed), tuple(a[:, order] for a in plain))


@pytest.mark.parametrize("shift", [-1000.0, -1.0, 0.5, 40.0, 1000.0])
@pytest.mark.parametrize(("lq", "lk"), SIZES)
def test_a_constant_added_to_a_row_of_scores_moves_its_lse_only(dtype, lq, lk, shift):
    q, k, v = drawn(lq, lk, dtype)
    bias = (shift * np.linspace(0.5, 1, lq))[:, None].astype(dtype)
    plain = cattn.attention(q, k, v, **FLAGS)
    moved = cattn.attention(q, k, v, bias=bias, **FLAGS)
    assert_close(
        AttentionResult(plain.out, plain.lse.astype(np.longdouble) + bias[:, 0], plain.weights),
        moved,
        bounds.attention_bound(q, k, v),
        bounds.attention_bound(q, k, v, bias=bias),
    )


@pytest.mark.parametrize(("lq", "lk"), [*SIZES, (70, 40), (260, 97), (1, 128), (128, 1)])
@pytest.mark.parametrize("offset", [None, 0, -3, 11])
def test_causal_is_a_mask(dtype, lq, lk, offset):
    q, k, v = drawn(lq, lk, dtype)
    allowed = np.tri(lq, lk, lk - lq if offset is None else offset, bool)
    causal = cattn.attention(q, k, v, causal=True, causal_offset=offset, **FLAGS)
    masked = cattn.attention(q, k, v, mask=allowed, **FLAGS)
    bound = bounds.attention_bound(q, k, v, mask=allowed)
    assert_close(causal, masked, bound, bound)
    dout = normal(*causal.out.shape, dtype=dtype)
    arguments = (dout, q, k, v, causal.out, causal.lse)
    one = cattn.attention_backward(*arguments, causal=True, causal_offset=offset)
    two = cattn.attention_backward(*arguments, mask=allowed)
    limit = bounds.attention_backward_bound(*arguments, mask=allowed)
    for name, *three in zip(one._fields, one, two, limit, strict=True):
        bounds.worst(*three[:2], 2 * three[2] if three[2] is not None else None, name)


@pytest.mark.parametrize(("lq", "lk"), SIZES)
def test_masked_keys_are_absent_keys(dtype, lq, lk):
    q, k, v = drawn(lq, lk, dtype)
    kept = np.random.default_rng(2).random(lk) < 0.5
    kept[0] = True
    masked = cattn.attention(q, k, v, mask=kept, **FLAGS)
    absent = cattn.attention(q, k[:, kept], v[:, kept], **FLAGS)
    bound = bounds.attention_bound(q, k, v, mask=kept)
    assert_close(masked, absent, bound, bound, ("out", "lse"))
    bounds.worst(masked.weights[..., kept], absent.weights, 2 * bound.weights[..., kept])
    assert (masked.weights[..., ~kept] == 0).all()


@pytest.mark.parametrize(("lq", "lk"), SIZES)
@pytest.mark.parametrize("cut", [0, 1, 0.5])
def test_split_and_merge_by_lse(dtype, lq, lk, cut):
    q, k, v = drawn(lq, lk, dtype)
    cut = int(cut * lk) if isinstance(cut, float) else cut
    first = cattn.attention(q, k[:, :cut], v[:, :cut], return_lse=True)
    last = cattn.attention(q, k[:, cut:], v[:, cut:], return_lse=True)
    out, lse = cattn.merge_attention(first.out, first.lse, last.out, last.lse)
    whole = cattn.attention(q, k, v, return_lse=True)
    bound = bounds.attention_bound(q, k, v)
    u = bounds.unit_roundoff(dtype)
    # Merging rounds a few times, and its exponentials magnify the errors of either lse.
    more = np.abs(lse) * 8 * u + bound.lse
    lse_bound = 2 * bound.lse + more
    out_bound = 2 * bound.out + (8 * u + 4 * more[..., None]) * np.abs(v).max()
    bounds.worst(out, whole.out, out_bound, "out")
    bounds.worst(lse, whole.lse, lse_bound, "lse")


@pytest.mark.parametrize(("lq", "lk"), SIZES)
@pytest.mark.parametrize("times", [2, 3])
def test_duplicated_keys_add_a_logarithm(dtype, lq, lk, times):
    q, k, v = drawn(lq, lk, dtype)
    once = cattn.attention(q, k, v, return_lse=True)
    keys, values = (np.concatenate([a] * times, axis=1) for a in (k, v))
    more = cattn.attention(q, keys, values, return_lse=True)
    one, many = bounds.attention_bound(q, k, v), bounds.attention_bound(q, keys, values)
    bounds.worst(once.out, more.out, one.out + many.out, "out")
    raised = once.lse.astype(np.longdouble) + np.log(np.longdouble(times))
    bounds.worst(raised, more.lse, one.lse + many.lse, "lse")


@pytest.mark.parametrize(("lq", "lk"), SIZES)
@pytest.mark.parametrize("scale", [-1.5, 0.25, 3.0])
def test_scale_may_be_folded_into_the_queries(dtype, lq, lk, scale):
    q, k, v = drawn(lq, lk, dtype)
    q = np.round(q * 64) / 64  # few enough bits for the products to be exact
    scaled = q * dtype.type(scale)
    one = cattn.attention(q, k, v, scale=scale, **FLAGS)
    two = cattn.attention(scaled, k, v, scale=1.0, **FLAGS)
    bound = bounds.attention_bound(q, k, v, scale=scale)
    assert_close(one, two, bound, bound)


@pytest.mark.parametrize(("lq", "lk"), SIZES)
def test_zero_scale_averages(dtype, lq, lk):
    q, k, v = drawn(lq, lk, dtype)
    result = cattn.attention(q, k, v, scale=0.0, **FLAGS)
    bound = bounds.attention_bound(q, k, v, scale=0.0)
    mean = np.broadcast_to(v.mean(axis=1, keepdims=True, dtype=np.longdouble), result.out.shape)
    bounds.worst(result.out, mean, bound.out, "out")
    lse = np.full_like(result.lse, np.log(np.longdouble(lk)), np.longdouble)
    bounds.worst(result.lse, lse, bound.lse, "lse")


def test_equal_values_come_out(dtype):
    """A weighted mean of equal vectors is that vector, whatever the weights."""
    q, k, _ = drawn(40, 260, dtype)
    v = np.broadcast_to(normal(2, 1, 10, dtype=dtype), (2, 260, 10))
    out = cattn.attention(q, k, v)
    np.testing.assert_allclose(
        out, np.broadcast_to(v[:, :1], out.shape), rtol=300 * np.finfo(dtype).eps
    )


def test_weights_are_probabilities(dtype):
    q, k, v = drawn(97, 260, dtype)
    out, _, weights = cattn.attention(q, k, v, causal=True, **FLAGS)
    assert (weights >= 0).all()
    bound = bounds.attention_bound(q, k, v, causal=True)
    sums = weights.astype(np.longdouble).sum(axis=-1)
    bounds.worst(sums, np.ones_like(sums), bound.weights.sum(axis=-1), "sum of weights")
    product = weights.astype(np.longdouble) @ v.astype(np.longdouble)
    allowance = bound.out + bound.weights @ np.abs(v).astype(np.float64)
    bounds.worst(out, product, allowance, "weights @ v")


def test_attention_is_linear_in_the_values(dtype):
    q, k, v = drawn(40, 70, dtype)
    w = normal(*v.shape, dtype=dtype, seed=9)
    both = np.concatenate([v, w], axis=-1)
    joined = cattn.attention(q, k, both)
    bound = bounds.attention_bound(q, k, both).out
    bounds.worst(joined[..., :10], cattn.attention(q, k, v), 2 * bound[..., :10])
    bounds.worst(joined[..., 10:], cattn.attention(q, k, w), 2 * bound[..., 10:])


def test_padding_the_head_with_zeros_changes_nothing(dtype):
    q, k, v = drawn(40, 70, dtype)

    def padded(a):
        return np.concatenate([a, np.zeros_like(a[..., :5])], axis=-1)

    bound = bounds.attention_bound(q, k, v, scale=0.3)
    one = cattn.attention(q, k, v, scale=0.3, **FLAGS)
    two = cattn.attention(padded(q), padded(k), v, scale=0.3, **FLAGS)
    wide = bounds.attention_bound(padded(q), padded(k), v, scale=0.3)
    assert_close(one, two, bound, wide)
