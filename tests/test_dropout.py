"""Dropout: which weights are dropped, always the same, and what becomes of the others."""

import bounds
import numpy as np
import pytest
from support import assert_same, normal

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")

SEEDS = [0, 1, 2**32 - 1, 2**32, 0x0123_4567_89AB_CDEF, 2**64 - 1]


def identity_values(batch, heads, lk, dtype):
    """Values by which the output is the weights themselves."""
    return np.broadcast_to(np.eye(lk, dtype=dtype), (batch, heads, lk, lk)).copy()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (2, 5, 64), (2, 3, 7, 65), (2, 2, 1, 3, 300)])
def test_the_mask_is_the_references(shape, seed):
    for dropout in (0.0, 1e-6, 0.1, 0.5, 0.999):
        mask = cattn.dropout_mask(shape, dropout, seed)
        assert_same(mask, reference.dropout_mask(shape, dropout, seed))


@pytest.mark.parametrize(("lq", "lk"), [(3, 9), (49, 65), (100, 300)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (70, 9)}], ids=str)
def test_weights_outside_of_the_mask_are_exactly_zero(any_dtype, lq, lk, options):
    """The same mask for every dtype, number of threads, shape of blocks and layout."""
    q = normal(2, 4, lq, 8, dtype=any_dtype, seed=1)
    k = normal(2, 2, lk, 8, dtype=any_dtype, seed=2)
    v = identity_values(2, 2, lk, any_dtype)
    mask = cattn.dropout_mask((2, 4, lq, lk), 0.4, 7)
    plain = cattn.attention(q, k, v, **options)
    for threads in (1, 3):
        more = {"dropout": 0.4, "seed": 7, "num_threads": threads, **options}
        dropped = cattn.attention(q, k, v, **more)
        np.testing.assert_array_equal(dropped != 0, mask & (plain != 0))
        expected = np.where(mask, plain.astype(np.float64) / 0.6, 0)
        eps = 2.0**-7 if any_dtype.name == "bfloat16" else np.finfo(any_dtype).eps
        np.testing.assert_allclose(dropped.astype(np.float64), expected, rtol=3 * eps, atol=1e-7)
        swapped = (a.swapaxes(1, 2) for a in (q, k, v))
        assert_same(cattn.attention(*swapped, **more, layout="blhd").swapaxes(1, 2), dropped)


@pytest.mark.parametrize(("lq", "lk"), [(3, 9), (49, 65), (100, 300)])
def test_the_backward_pass_drops_the_same(any_dtype, lq, lk):
    """With dout the identity, dv holds the dropped weights."""
    q = normal(2, 4, lq, 8, dtype=any_dtype, seed=1)
    k = normal(2, 2, lk, 8, dtype=any_dtype, seed=2)
    v = normal(2, 2, lk, lq, dtype=any_dtype, seed=3)
    options = {"dropout": 0.4, "seed": 2**63, "num_threads": 2}
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    mask = cattn.dropout_mask((2, 4, lq, lk), 0.4, 2**63)
    for head in range(4):
        dout = np.zeros_like(out)
        dout[:, head] = np.eye(lq, dtype=any_dtype)
        dv = cattn.attention_backward(dout, q, k, v, out, lse, grads=["v"], **options).dv
        np.testing.assert_array_equal(dv[:, head // 2] != 0, mask[:, head].swapaxes(1, 2))
        assert (dv[:, 1 - head // 2] == 0).all()


def test_lse_and_weights_are_those_before(any_dtype):
    q, k, v = normal(2, 70, 8, dtype=any_dtype, count=3)
    flags = {"return_lse": True, "return_weights": True}
    plain = cattn.attention(q, k, v, **flags)
    dropped = cattn.attention(q, k, v, dropout=0.5, seed=1, **flags)
    assert_same(dropped[1:], plain[1:])
    assert (dropped.out != plain.out).any()
    assert_same(tuple(cattn.attention(q, k, v, dropout=0.0, seed=1, **flags)), tuple(plain))


def test_dropped_values_may_be_nan(dtype):
    """What is dropped does not contribute, whatever its value holds; nor has it a gradient."""
    q, k, v, dout = normal(70, 8, dtype=dtype, count=4)
    keys = cattn.dropout_mask((70, 70), 0.9, 3)
    row = int(keys.sum(axis=1).argmin())
    dropped = ~keys[row]
    assert 0 < dropped.sum() < dropped.size
    options = {"dropout": 0.9, "seed": 3}
    clean = cattn.attention(q, k, v, **options, return_lse=True)
    bad = v.copy()
    bad[dropped] = np.nan
    dirty = cattn.attention(q, k, bad, **options)
    limit = bounds.attention_bound(q, k, v, **options).out
    assert bounds.worst(dirty[row], clean.out[row], 2 * limit[row], "out") <= 1
    only = np.zeros_like(dout)
    only[row] = dout[row]
    arguments = (only, q, k, v, *clean[:2])
    one = cattn.attention_backward(*arguments, grads=["q"], **options)
    two = cattn.attention_backward(only, q, k, bad, *clean[:2], grads=["q"], **options)
    limit = bounds.attention_backward_bound(*arguments, grads=["q"], **options).dq
    assert bounds.worst(two.dq[row], one.dq[row], 2 * limit[row], "dq") <= 1


def test_a_row_with_a_nan_score_is_nan_whatever_is_dropped(any_dtype):
    q, k, v = (normal(2, n, 8, dtype=any_dtype, seed=n) for n in (40, 4, 4))
    k[:, 1] = np.nan
    options = {"dropout": 0.7, "seed": 3}
    kept = cattn.dropout_mask((2, 40, 4), **options)
    assert not kept.any(axis=-1).all()  # some rows keep nothing
    for module in (cattn, reference):
        assert np.isnan(module.attention(q, k, v, **options)).all()
        for result in module.attention_jvp(q, k, v, q, k, v, **options):
            assert np.isnan(result).all()


@pytest.mark.parametrize("dropout", [0.01, 0.25, 0.5, 0.9])
def test_how_many_are_kept(dropout):
    """As many as a binomial distribution lets expect, in all and along every axis."""
    shape = (2, 4, 256, 512)
    mask = cattn.dropout_mask(shape, dropout, 99)
    for axis in range(5):
        along = tuple(a for a in range(4) if a != axis)
        means = mask.mean(axis=along)
        count = mask.size / means.size
        sigma = np.sqrt(dropout * (1 - dropout) / count)
        assert np.abs(means - (1 - dropout)).max() < 5 * sigma
    # Neighbours along each axis are independent of each other.
    centred = mask - (1 - dropout)
    for axis in range(4):
        one, other = (np.take(centred, range(a, shape[axis] - 1 + a), axis) for a in (0, 1))
        covariance = (one * other).mean()
        assert abs(covariance) < 5 * dropout * (1 - dropout) / np.sqrt(one.size)


def test_other_seeds_drop_others():
    masks = [cattn.dropout_mask((64, 64), 0.5, seed) for seed in SEEDS]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert 0.4 < (one == other).mean() < 0.6


def test_packed_sequences_are_batch_entries(dtype):
    starts = np.array([0, 5, 5, 47, 120])
    q = normal(120, 4, 8, dtype=dtype, seed=1)
    k = normal(120, 2, 8, dtype=dtype, seed=2)
    v = normal(120, 2, 6, dtype=dtype, seed=3)
    options = {"dropout": 0.3, "seed": 11}
    out = cattn.attention_varlen(q, k, v, starts, starts, **options)
    exact = reference.attention_varlen(q, k, v, starts, starts, **options)
    np.testing.assert_allclose(out, exact, atol=100 * np.finfo(dtype).eps)
    mask = cattn.dropout_mask((4, 4, 73, 73), 0.3, 11)
    values = np.zeros((120, 2, 73), dtype)
    rows = np.arange(47, 120)
    values[rows, :, rows - 47] = 1
    last = cattn.attention_varlen(q, k, values, starts, starts, **options)[47:]
    np.testing.assert_array_equal(last.swapaxes(0, 1) != 0, mask[3])
