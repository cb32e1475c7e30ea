"""Grouped heads and leading axes that broadcast as in numpy.matmul, forward and backward."""

import bounds
import numpy as np
import pytest
from cases import Case, check_backward, check_forward, exact_dtype, problem
from support import assert_same, normal

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize(("hq", "hkv"), [(2, 2), (4, 2), (6, 2), (5, 1), (9, 3), (8, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads(dtype, record, hq, hkv, causal):
    for lq, lk in ((7, 9), (40, 130)):
        case = Case(lq, lk, 8, 6, hq=hq, hkv=hkv, batch=(2,), causal=causal)
        check_forward(case, dtype, record)
        check_backward(case, dtype, record)


@pytest.mark.parametrize(("hq", "hkv"), [(4, 2), (6, 2), (5, 1)])
def test_grouped_heads_are_repeated_heads(dtype, hq, hkv):
    q, k, v, _, dout, _ = problem(Case(40, 70, 8, 6, hq=hq, hkv=hkv, batch=(2,)), dtype)
    group = hq // hkv
    many_k, many_v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    grouped = cattn.attention(q, k, v, return_lse=True, return_weights=True)
    repeated = cattn.attention(q, many_k, many_v, return_lse=True, return_weights=True)
    assert_same(tuple(grouped), tuple(repeated))
    few = cattn.attention_backward(dout, q, k, v, *grouped[:2])
    many = cattn.attention_backward(dout, q, many_k, many_v, *grouped[:2])
    bound = bounds.attention_backward_bound(dout, q, k, v, *grouped[:2])
    bounds.worst(few.dq, many.dq, 2 * bound.dq, "dq")

    def summed(gradient):
        return gradient.astype(np.longdouble).reshape(2, hkv, group, *k.shape[2:3], -1).sum(axis=2)

    bounds.worst(few.dk, summed(many.dk), 2 * bound.dk, "dk")
    bounds.worst(few.dv, summed(many.dv), 2 * bound.dv, "dv")


SHAPES = [
    # q, k, v
    ((5, 3), (7, 3), (7, 2)),
    ((4, 5, 3), (7, 3), (7, 2)),
    ((5, 3), (1, 7, 3), (1, 7, 2)),
    ((4, 5, 3), (2, 7, 3), (2, 7, 2)),
    ((3, 4, 5, 3), (4, 7, 3), (4, 7, 2)),
    ((4, 5, 3), (3, 4, 7, 3), (3, 4, 7, 2)),
    ((3, 4, 5, 3), (1, 2, 7, 3), (3, 2, 7, 2)),
    ((1, 4, 5, 3), (3, 2, 7, 3), (1, 2, 7, 2)),
    ((1, 4, 5, 3), (1, 2, 7, 3), (3, 2, 7, 2)),
    ((2, 1, 4, 5, 3), (3, 2, 7, 3), (2, 1, 2, 7, 2)),
    ((2, 3, 4, 5, 3), (2, 7, 3), (3, 2, 7, 2)),
    ((1, 1, 1, 4, 5, 3), (7, 3), (7, 2)),
    ((3, 1, 5, 3), (5, 3), (3, 1, 5, 2)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_leading_axes_broadcast(dtype, record, shapes, causal):
    """Gradients are summed over broadcast axes and have the input's own shape."""
    q, k, v = (normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    options = {"causal": causal}
    wide = {"_dtype": exact_dtype(dtype)}
    flags = {"return_lse": True, "return_weights": True}
    exact = reference.attention(q, k, v, **options, **flags, **wide)
    actual = cattn.attention(q, k, v, **options, **flags)
    bound = bounds.attention_bound(q, k, v, **options)
    for name, *three in zip(exact._fields, actual, exact, bound, strict=True):
        record(name, dtype, bounds.worst(*three, name))

    dout = normal(*exact.out.shape, dtype=dtype, seed=9)
    dlse = normal(*exact.lse.shape, dtype=dtype, seed=8)
    arguments = (dout, q, k, v, exact.out.astype(dtype), exact.lse.astype(dtype))
    options["dlse"] = dlse
    exact = reference.attention_backward(*arguments, **options, **wide)
    actual = cattn.attention_backward(*arguments, **options)
    bound = bounds.attention_backward_bound(*arguments, **options)
    for name, *three in zip(exact._fields, actual, exact, bound, strict=True):
        record(name, dtype, bounds.worst(*three, name))
    assert [g.shape for g in actual[:3]] == [a.shape for a in (q, k, v)]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting_is_repeating(dtype, shapes):
    q, k, v = (normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    lead = np.broadcast_shapes(*(shape[:-3] for shape in shapes))
    out = cattn.attention(q, k, v)

    def full(a):
        heads = a if a.ndim > 2 else a[None]
        return np.broadcast_to(heads, (*lead, *heads.shape[-3:])).copy()

    assert_same(out.reshape(*lead, -1, *out.shape[-2:]), cattn.attention(*map(full, (q, k, v))))


def test_two_dimensional_arrays_are_one_head(dtype):
    q, k, v = (normal(n, 4, dtype=dtype, seed=n) for n in (5, 6, 6))
    flat = cattn.attention(q, k, v, return_lse=True, return_weights=True)
    one = cattn.attention(q[None], k[None], v[None], return_lse=True, return_weights=True)
    assert flat.out.shape == (5, 4)
    assert flat.lse.shape == (5,)
    assert flat.weights.shape == (5, 6)
    assert_same(tuple(flat), tuple(a[0] for a in one))
    assert_same(flat.out, cattn.attention(q, k, v, layout="blhd"))
    gradients = cattn.attention_backward(flat.out, q, k, v, flat.out, flat.lse)
    assert [g.shape for g in gradients[:3]] == [(5, 4), (6, 4), (6, 4)]


@pytest.mark.parametrize("flat", [(1, 2), (0,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("lead", [(), (2,), (3, 2)], ids=str)
def test_one_head_without_an_axis_beside_others(dtype, flat, lead):
    """Rows and heads change places where there are heads."""
    arrays = [normal(*lead, n, 1, 4, dtype=dtype, seed=n) for n in (5, 7, 7)]
    arrays = [normal(5 + 2 * (i > 0), 4, dtype=dtype, seed=i) if i in flat else a
              for i, a in enumerate(arrays)]  # fmt: skip
    out, lse, _ = cattn.attention(*arrays, layout="blhd", return_lse=True)
    gradients = cattn.attention_backward(out, *arrays, out, lse, layout="blhd")
    assert [g.shape for g in gradients[:3]] == [a.shape for a in arrays]

    def swapped(a):
        return a if a.ndim == 2 else a.swapaxes(-2, -3)

    rows = swapped(out)
    expected = cattn.attention_backward(rows, *map(swapped, arrays), rows, lse)
    for actual, of in zip(gradients[:3], expected[:3], strict=True):
        assert_same(actual, swapped(of))


@pytest.mark.parametrize("axes", [4, 8, 12, 16])
def test_many_axes(dtype, axes):
    """Up to sixteen axes, of which some broadcast."""
    lead = (2, *(1,) * (axes - 5), 3)
    q, k = normal(*lead, 2, 4, 3, dtype=dtype), normal(3, 2, 5, 3, dtype=dtype)
    out = cattn.attention(q, k, k)
    assert out.shape == (*lead, 2, 4, 3)
    assert_same(
        out.reshape(2, 3, 2, 4, 3),
        cattn.attention(q.reshape(2, 3, 2, 4, 3), k[None], k[None]),
    )
