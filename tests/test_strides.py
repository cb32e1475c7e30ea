"""Any strides: views are read in place, and give what a contiguous copy gives, bit by bit."""

import numpy as np
import pytest
from cases import Case, problem
from support import assert_ran, assert_same, normal, run_python

import cattn

pytestmark = pytest.mark.usefixtures("isa")


def junk(dtype):
    """What no result may depend on."""
    return np.nan if dtype.kind in "fV" else 77


def every_other_row(a):
    wide = np.full((*a.shape[:-2], 2 * a.shape[-2] + 1, a.shape[-1]), junk(a.dtype), a.dtype)
    wide[..., 1::2, :] = a
    return wide[..., 1::2, :]


def padded_rows(a):
    wide = np.full((*a.shape[:-1], a.shape[-1] + 3), junk(a.dtype), a.dtype)
    wide[..., 1:-2] = a
    return wide[..., 1:-2]


def reversed_rows(a):
    return a[..., ::-1, :].copy()[..., ::-1, :]


def reversed_heads(a):
    return a[..., ::-1, :, :].copy()[..., ::-1, :, :]


def heads_inside(a):
    return a.swapaxes(-2, -3).copy().swapaxes(-2, -3)


def reversed_columns(a):
    return a[..., ::-1].copy()[..., ::-1]


def every_other_column(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def fortran(a):
    return np.asfortranarray(a)


def off_by_four_bytes(a):
    room = np.zeros(a.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64 + 4
    view = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def off_by_one_byte(a):
    room = np.zeros(a.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64 + 1
    room[start : start + a.nbytes] = np.frombuffer(a.tobytes(), np.uint8)
    view = room[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    assert not view.flags.aligned
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def big_endian(a):
    return a.astype(a.dtype.newbyteorder(">"))


def subclass(a):
    return a.view(np.memmap)


def field_of_records(a):
    records = np.zeros(a.shape, [("x", a.dtype), ("y", np.int32)])
    records["x"] = a
    return records["x"]


VIEWS = [
    every_other_row, padded_rows, reversed_rows, reversed_heads, heads_inside, reversed_columns,
    every_other_column, fortran, off_by_four_bytes, off_by_one_byte, read_only, big_endian,
    subclass, field_of_records,
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_views_of_every_argument(dtype, view):
    case = Case(37, 70, 10, 7, hq=4, hkv=2, batch=(2,), bias=(2, 4, 37, 70), mask=(2, 4, 37, 70))
    q, k, v, options, dout, dlse = problem(case, dtype)
    bias, mask = options["bias"], options["mask"]
    flags = {"return_lse": True, "return_weights": True}
    expected = cattn.attention(q, k, v, bias=bias, mask=mask, **flags)
    grads = ["q", "k", "v", "bias"]
    out, lse, _ = expected
    planes = {"bias": bias, "mask": mask}
    gradients = cattn.attention_backward(dout, q, k, v, out, lse, dlse=dlse, grads=grads, **planes)
    arrays = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "lse": lse, "dlse": dlse, **planes}
    for name, array in arrays.items():
        if name == "mask" and view in (off_by_one_byte, big_endian):
            continue  # a byte is always aligned and has no order
        changed = {**arrays, name: view(array)}
        np.testing.assert_array_equal(changed[name], array)
        if name in ("q", "k", "v", "bias", "mask"):
            inputs = {n: changed[n] for n in ("q", "k", "v", "bias", "mask")}
            assert_same(tuple(cattn.attention(**inputs, **flags)), tuple(expected))
        assert_same(tuple(cattn.attention_backward(**changed, grads=grads)), tuple(gradients))


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_views_of_parameters_lengths_and_tangents(any_dtype, view):
    case = Case(
        37, 70, 10, 7, hq=4, hkv=2, batch=(2, 2), window=(40, 9), alibi="entry", lengths=True,
        offsets=True,
    )  # fmt: skip
    q, k, v, options, *_ = problem(case, any_dtype)
    arrays = {"q": q, "k": k, "v": v, "dq": 2 * q, "dk": 3 * k, "dv": 5 * v}
    arrays |= {name: o for name, o in options.items() if isinstance(o, np.ndarray)}
    expected = cattn.attention_jvp(**arrays, window=(40, 9))
    for name, array in arrays.items():
        if view in (reversed_heads, heads_inside) and array.ndim < 3:
            continue
        if view is big_endian and any_dtype.name == "bfloat16" and array.dtype == any_dtype:
            continue  # it has one byte order only
        changed = {**arrays, name: view(array)}
        assert_same(cattn.attention_jvp(**changed, window=(40, 9)), expected)


def test_views_of_sinks(any_dtype):
    q, k, v = normal(4, 9, 8, dtype=any_dtype, count=3)
    sinks = normal(4, dtype=any_dtype)
    expected = cattn.attention(q, k, v, sinks=sinks)
    for one in (sinks[::-1].copy()[::-1], np.repeat(sinks, 3)[::3], off_by_one_byte(sinks)):
        assert_same(cattn.attention(q, k, v, sinks=one), expected)
    same = np.broadcast_to(sinks[:1], (4,))
    assert_same(cattn.attention(q, k, v, sinks=same), cattn.attention(q, k, v, sinks=same.copy()))


def test_broadcast_views(dtype):
    """Zero strides over batch, heads, rows and keys."""
    q, k, v, _, dout, _ = problem(Case(20, 40, 8, 6, hq=4, hkv=4, batch=(3,)), dtype)
    for index in ((slice(1), slice(None)), (slice(None), slice(1)), (slice(1), slice(1))):
        views = [np.broadcast_to(a[index], a.shape) for a in (q, k, v, dout)]
        copies = [view.copy() for view in views]
        out, lse, _ = cattn.attention(*views[:3], return_lse=True)
        assert_same((out, lse), tuple(cattn.attention(*copies[:3], return_lse=True)[:2]))
        assert_same(
            tuple(cattn.attention_backward(views[3], *views[:3], out, lse)),
            tuple(cattn.attention_backward(copies[3], *copies[:3], out, lse)),
        )
    same_row = np.broadcast_to(q[..., :1, :], q.shape)
    same_key = np.broadcast_to(k[..., :1, :], k.shape)
    assert_same(
        cattn.attention(same_row, same_key, v), cattn.attention(same_row.copy(), same_key.copy(), v)
    )


COPIES = """
import tracemalloc, numpy as np, cattn
cattn.set_num_threads(2)
queries, keys = 400, 600
q, k, v = (np.ones((1, n, 8), np.float32) for n in (queries, keys, keys))
lse = np.zeros((1, queries), np.float32)
wide = np.zeros((1, keys, 2 * queries), np.float32)
for bias in (wide[..., :queries].swapaxes(1, 2), wide[..., ::-2].swapaxes(1, 2),
             np.zeros((1, queries, 3 * keys), np.float32)[..., ::3]):
    tracemalloc.start()  # NumPy tells it of every array
    cattn.attention(q, k, v, bias=bias)
    cattn.attention_backward(q, q, k, v, q, lse, bias=bias)
    cattn.attention_jvp(q, k, v, q, k, v, bias=bias)
    peak = tracemalloc.get_traced_memory()[1]
    assert peak < bias.nbytes / 4, (peak, bias.nbytes)
    bias.copy(order="C")
    assert tracemalloc.get_traced_memory()[1] >= bias.nbytes  # it would have seen a copy
    tracemalloc.stop()
"""


def test_a_bias_of_any_strides_is_not_copied(isa):
    assert_ran(run_python(COPIES, env={"CATTN_ISA": isa}))


@pytest.mark.parametrize("shape", [(2, 4, 37, 70), (4, 1, 70), (37, 1), (1, 70), (37, 70)])
def test_a_bias_of_any_strides(any_dtype, shape):
    """Transposed, reversed and spread out in memory, with its gradient."""
    case = Case(37, 70, 10, 7, hq=4, hkv=2, batch=(2,), bias=shape)
    q, k, v, options, dout, dlse = problem(case, any_dtype)
    bias = options["bias"]

    def everything(bias):
        out, lse, weights = cattn.attention(
            q, k, v, bias=bias, return_lse=True, return_weights=True
        )
        more = {"bias": bias, "dlse": dlse, "grads": ["q", "k", "v", "bias"]}
        gradients = cattn.attention_backward(dout, q, k, v, out, lse, **more)
        return out, lse, weights, tuple(gradients), cattn.attention_jvp(q, k, v, q, k, v, bias=bias)

    expected = everything(bias)
    for view in (fortran, reversed_columns, every_other_column, heads_inside, reversed_rows):
        if view is heads_inside and bias.ndim < 3:
            continue
        assert_same(everything(view(bias)), expected)


def test_bias_and_mask_broadcast_views(dtype):
    q, k, v = normal(2, 30, 8, dtype=dtype, count=3)
    for plane in (normal(30, dtype=dtype), normal(30, 1, dtype=dtype), normal(1, 1, dtype=dtype)):
        wide = np.broadcast_to(plane, (2, 30, 30))
        assert_same(cattn.attention(q, k, v, bias=wide), cattn.attention(q, k, v, bias=wide.copy()))
        seen = np.broadcast_to(plane > 0, (2, 30, 30))
        assert_same(cattn.attention(q, k, v, mask=seen), cattn.attention(q, k, v, mask=seen.copy()))


def test_lists_are_arrays():
    rows = [[1.0, 2.0], [3.0, 4.0]]
    assert_same(cattn.attention(rows, rows, rows), cattn.attention(*[np.array(rows)] * 3))


def test_inputs_are_left_alone(dtype):
    case = Case(37, 70, 10, 7, hq=4, hkv=2, bias=(37, 70), mask=(37, 70), causal=True)
    q, k, v, options, dout, dlse = problem(case, dtype)
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    arrays = [q, k, v, dout, dlse, out, lse, options["bias"], options["mask"]]
    before = [a.copy() for a in arrays]
    cattn.attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    cattn.attention(q, k, v, **options, return_weights=True)
    assert_same(tuple(arrays), tuple(before))


# ---- layout ----


@pytest.mark.parametrize("causal", [False, True])
def test_layout_is_an_exchange_of_axes(dtype, causal):
    case = Case(37, 70, 10, 7, hq=4, hkv=2, batch=(3, 2), bias=(2, 4, 37, 70))
    q, k, v, options, dout, dlse = problem(case, dtype)
    options = {"bias": options["bias"], "causal": causal}
    flags = {"return_lse": True, "return_weights": True}

    def swap(a):
        return a.swapaxes(-2, -3)

    out, lse, weights = cattn.attention(q, k, v, **options, **flags)
    swapped = cattn.attention(
        *(swap(a).copy() for a in (q, k, v)), layout="blhd", **options, **flags
    )
    assert_same(tuple(swapped), (swap(out), lse, weights))
    options["grads"] = ["q", "k", "v", "bias"]
    dq, dk, dv, dbias, _ = cattn.attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    swapped = cattn.attention_backward(
        *(swap(a).copy() for a in (dout, q, k, v, out)), lse, dlse=dlse, layout="blhd", **options
    )
    assert_same(tuple(swapped), (swap(dq), swap(dk), swap(dv), dbias, None))


def test_layout_broadcasts_leading_axes(dtype):
    q, k, v = (normal(*s, dtype=dtype) for s in ((3, 5, 4, 8), (1, 7, 2, 8), (7, 2, 6)))
    out = cattn.attention(q, k, v, layout="blhd")
    expected = cattn.attention(*(a.swapaxes(-2, -3) for a in (q, k, v)))
    assert_same(out, expected.swapaxes(-2, -3))


# ---- out= ----


def outputs(shape, dtype):
    """Memory for a result: contiguous, strided, reversed, heads inside, part of something."""
    whole = np.full((*shape[:-2], 2 * shape[-2], shape[-1] + 5), np.nan, dtype)
    yield whole[..., : shape[-2], : shape[-1]].copy()
    yield whole[..., ::2, 2:-3]
    yield whole[..., ::-2, 2:-3]
    yield np.full((shape[0], shape[2], shape[1], shape[3]), np.nan, dtype).swapaxes(1, 2)
    yield (
        off_by_four_bytes(np.full(shape, np.nan, np.float32))
        if dtype == np.float32
        else (np.full((2, *shape), np.nan, dtype)[1])
    )


def test_out(dtype):
    q, k, v, *_ = problem(Case(37, 70, 10, 7, hq=4, hkv=2, batch=(2,)), dtype)
    expected = cattn.attention(q, k, v)
    for out in outputs(expected.shape, dtype):
        base = out.base
        outside = None if base is None else np.isnan(base).sum() - np.isnan(out).sum()
        assert cattn.attention(q, k, v, out=out) is out
        assert_same(out, expected)
        if base is not None and base.dtype == dtype:
            assert np.isnan(base).sum() == outside, "written outside of the view"
        assert cattn.attention(q, k, v, out=out, return_lse=True).out is out


def test_out_in_the_other_layout(dtype):
    q, k, v = normal(2, 5, 3, 8, dtype=dtype, count=3)
    out = np.empty_like(q)
    assert cattn.attention(q, k, v, layout="blhd", out=out) is out
    assert_same(out, cattn.attention(q, k, v, layout="blhd"))


@pytest.mark.parametrize("which", ["q", "k", "v", "bias", "shifted q", "reversed q"])
def test_out_may_overlap_an_input(dtype, which):
    """The result is as if nothing overlapped."""
    q, k, v = normal(2, 70, 70, dtype=dtype, count=3)
    bias = normal(2, 70, 70, dtype=dtype, seed=4)
    expected = cattn.attention(q, k, v, bias=bias)
    memory = np.zeros((3, 70, 70), dtype)
    if which == "shifted q":
        memory[:2] = q
        q, out = memory[:2], memory[1:]
    elif which == "reversed q":
        q = q.copy()
        out = q[::-1, ::-1]
    else:
        out = {"q": q, "k": k, "v": v, "bias": bias}[which]
    assert cattn.attention(q, k, v, bias=bias, out=out) is out
    assert_same(out, expected)
