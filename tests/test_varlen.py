"""Packed sequences: each attends to itself, as if it were alone."""

import bounds
import numpy as np
import pytest
from cases import exact_dtype
from support import assert_same, normal

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")

FLAGS = {"return_lse": True, "return_weights": True}
STARTS = {  # of queries and of keys
    "one": ([0, 70], [0, 130]),
    "some": ([0, 3, 3, 52, 150, 150], [0, 9, 12, 12, 140, 203]),  # 3 and 49: empty on either side
    "none": ([0], [0]),
    "only empty": ([0, 0, 0], [0, 0, 0]),
    "single rows": (range(8), range(8)),
}
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (20, 5)},
    "offsets": {"causal": True, "causal_offset": "per sequence"},
    "alibi": {"alibi_slopes": "per sequence"},
    "all": {"window": (60, 20), "alibi_slopes": "per head", "softcap": 2.0, "sinks": "per head",
            "dropout": 0.3, "seed": 3, "scale": 0.5, "mask": True},
}  # fmt: skip


def packed(which, dtype, hq=4, hkv=2):
    """q, k, v, dout, dlse and the starts."""
    starts_q, starts_k = (np.array(starts) for starts in STARTS[which])
    lq, lk = starts_q[-1], starts_k[-1]
    shapes = (lq, hq, 8), (lk, hkv, 8), (lk, hkv, 6), (lq, hq, 6), (hq, lq)
    return [normal(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes)], (starts_q, starts_k)


def options_for(name, arrays, starts, dtype):
    options = dict(OPTIONS[name])
    sequences, heads = len(starts[0]) - 1, arrays[0].shape[1]
    rng = np.random.default_rng(4)
    for option in ("causal_offset", "alibi_slopes", "sinks"):
        if option not in options:
            continue
        shape = (heads,) if options[option] == "per head" else (sequences, heads)
        if option == "causal_offset":
            options[option] = rng.integers(-9, 30, sequences)
        else:
            options[option] = rng.standard_normal(shape).astype(dtype)
    if "mask" in options:
        options["mask"] = rng.random((heads, len(arrays[0]), len(arrays[1]))) < 0.7
    return options


def each(arrays, starts, options):
    """Of every sequence: its rows, its keys, and its options; dropout counts it as an entry."""
    q, k = arrays[:2]
    return reference._sequences(q, k, *starts, options)


def check(arrays, starts, options, record, dtype, grads=("q", "k", "v")):
    """Every sequence's part is within the bounds of the sequence alone."""
    q, k, v, dout, dlse = arrays
    out, lse, weights = cattn.attention_varlen(q, k, v, *starts, **options, **FLAGS)
    assert (out.shape, lse.shape) == (dout.shape, dlse.shape)
    wide = {"_dtype": exact_dtype(dtype)}
    exact = reference.attention_varlen(q, k, v, *starts, **options, **FLAGS, **wide)
    own_lse = exact.lse.astype(lse.dtype)
    arguments = (dout, q, k, v, exact.out.astype(dtype), own_lse, *starts)
    more = {"dlse": dlse.astype(lse.dtype), "grads": grads, **options}
    gradients = cattn.attention_varlen_backward(*arguments, **more)
    exact_gradients = reference.attention_varlen_backward(*arguments, **more, **wide)
    between = np.ones(weights.shape, bool)
    for rows, keys, own in each(arrays, starts, options):
        own |= {"layout": "blhd"}
        limit = bounds.attention_bound(q[rows], k[keys], v[keys], **own)
        record("out", dtype, bounds.worst(out[rows], exact.out[rows], limit.out, "out"))
        at = (slice(None), rows)
        record("lse", dtype, bounds.worst(lse[at], exact.lse[at], limit.lse, "lse"))
        at = (slice(None), rows, keys)
        bounds.worst(weights[at], exact.weights[at], limit.weights, "weights")
        between[at] = False
        limit = bounds.attention_backward_bound(
            *(a[n] for a, n in zip(arguments[:5], (rows, rows, keys, keys, rows), strict=True)),
            own_lse[:, rows], dlse=dlse[:, rows], grads=("q", "k", "v"), **own,
        )  # fmt: skip
        for name, part in (("dq", rows), ("dk", keys), ("dv", keys)):
            a, e = (getattr(g, name)[part] for g in (gradients, exact_gradients))
            record(name, dtype, bounds.worst(a, e, getattr(limit, name), name))
    assert (weights[between] == 0).all()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("which", STARTS)
def test_every_sequence_within_its_bound(any_dtype, record, which, name):
    arrays, starts = packed(which, any_dtype)
    check(arrays, starts, options_for(name, arrays, starts, any_dtype), record, any_dtype)


@pytest.mark.parametrize("name", ["plain", "causal", "window"])
def test_a_sequence_alone_is_the_same_to_the_last_bit(any_dtype, name):
    """Blocks count from a sequence's own start, so its rows do not depend on its neighbours."""
    (q, k, v, *_), starts = packed("some", any_dtype)
    options = OPTIONS[name]
    out, lse, _ = cattn.attention_varlen(q, k, v, *starts, **options, return_lse=True)
    for n in range(len(starts[0]) - 1):
        rows, keys = (slice(*s[n : n + 2]) for s in starts)
        alone = cattn.attention(
            q[rows], k[keys], v[keys], **options, layout="blhd", return_lse=True
        )
        assert_same((out[rows], lse[:, rows]), (alone.out, alone.lse))


@pytest.mark.parametrize("which", ["one", "some"])
def test_varlen_is_a_block_diagonal(dtype, which):
    (q, k, v, *_), starts = packed(which, dtype)
    mask = np.zeros((len(q), len(k)), bool)
    for n in range(len(starts[0]) - 1):
        mask[slice(*starts[0][n : n + 2]), slice(*starts[1][n : n + 2])] = True
    one = cattn.attention_varlen(q, k, v, *starts, **FLAGS)
    two = cattn.attention(q, k, v, mask=mask, **FLAGS, layout="blhd")
    limit = bounds.attention_bound(q, k, v, mask=mask, layout="blhd")
    for name, *three in zip(one._fields, one, two, limit, strict=True):
        assert bounds.worst(*three[:2], 2 * three[2], name) <= 1


@pytest.mark.parametrize("integer", ["int32", "int64", "uint8", "uint32", "uint64", "list", ">i8"])
def test_starts_of_any_integer_type(dtype, integer):
    (q, k, v, *_), starts = packed("some", dtype)
    expected = cattn.attention_varlen(q, k, v, *starts, causal=True)
    others = [s.tolist() if integer == "list" else s.astype(integer) for s in starts]
    assert_same(cattn.attention_varlen(q, k, v, *others, causal=True), expected)


BIAS_SHAPES = [
    (), (1,), (203,), (150, 1), (150, 203), (4, 1, 1), (4, 1, 203), (4, 150, 1), (1, 150, 203),
    (4, 150, 203),
]  # fmt: skip


@pytest.mark.parametrize("shape", BIAS_SHAPES, ids=str)
def test_gradients_of_bias_and_sinks(any_dtype, record, shape):
    """Summed over what was broadcast, sequences included; 0 between one sequence and another."""
    arrays, starts = packed("some", any_dtype)
    q, k, v, dout, dlse = arrays
    bias, sinks = normal(*shape, dtype=any_dtype, seed=8), normal(4, dtype=any_dtype, seed=9)
    bias = np.asarray(bias, any_dtype)
    options = {"bias": bias, "sinks": sinks, "causal": True}
    wide = {"_dtype": exact_dtype(any_dtype)}
    exact = reference.attention_varlen(q, k, v, *starts, **options, return_lse=True, **wide)
    own = exact.out.astype(any_dtype), exact.lse.astype(bounds.computed_in(any_dtype))
    more = {"dlse": dlse.astype(own[1].dtype), "grads": ["q", "bias", "sinks"], **options}
    actual = cattn.attention_varlen_backward(dout, q, k, v, *own, *starts, **more)
    exact = reference.attention_varlen_backward(dout, q, k, v, *own, *starts, **more, **wide)
    assert actual.dbias.shape == shape
    assert actual.dbias.dtype == actual.dsinks.dtype == any_dtype

    # The bounds of every element of dS, summed; u more for every addition.
    u = bounds.unit_roundoff(bounds.computed_in(any_dtype))
    error, total, of_sinks = np.zeros((4, 150, 203)), np.zeros((4, 150, 203)), np.zeros(4)
    for rows, keys, one in each(arrays, starts, options):
        one["bias"] = np.broadcast_to(
            one["bias"], (4, rows.stop - rows.start, keys.stop - keys.start)
        ).astype(np.float32)
        one |= {"layout": "blhd", "dlse": dlse[:, rows], "grads": ["bias", "sinks"]}
        arguments = (dout[rows], q[rows], k[keys], v[keys], own[0][rows], own[1][:, rows])
        limit = bounds.attention_backward_bound(*arguments, **one)
        at = (slice(None), rows, keys)
        error[at], of_sinks = limit.dbias, of_sinks + limit.dsinks
        total[at] = np.abs(reference.attention_backward(*arguments, **one).dbias)
    n = error.size / max(bias.size, 1) + 5
    limit = reference._sum_to(error + bounds.gamma(n, u) * (total + error), shape)
    limit = bounds.rounded(limit, exact.dbias, any_dtype)
    record("dbias", any_dtype, bounds.worst(actual.dbias, exact.dbias, limit, "dbias"))
    limit = bounds.rounded(of_sinks, exact.dsinks, any_dtype) + 150 * u * of_sinks
    record("dsinks", any_dtype, bounds.worst(actual.dsinks, exact.dsinks, limit, "dsinks"))


def test_what_a_neighbour_holds_does_not_matter(any_dtype):
    (q, k, v, dout, _), starts = packed("some", any_dtype)
    clean = cattn.attention_varlen(q, k, v, *starts, return_lse=True)
    gradients = cattn.attention_varlen_backward(dout, q, k, v, *clean[:2], *starts)
    bad = [a.copy() for a in (q, k, v, dout)]
    rows, keys = slice(52, 150), slice(12, 140)
    for a, others in zip(bad, (rows, keys, keys, rows), strict=True):
        a[others] = np.nan
    q, k, v, dout = bad
    dirty = cattn.attention_varlen(q, k, v, *starts, return_lse=True)
    assert_same(dirty.out[:52], clean.out[:52])
    again = cattn.attention_varlen_backward(dout, q, k, v, *dirty[:2], *starts)
    assert_same(again.dq[:52], gradients.dq[:52])
    for name in ("dk", "dv"):
        for kept in (slice(12), slice(140, None)):
            assert_same(getattr(again, name)[kept], getattr(gradients, name)[kept])


def test_out_and_strides(dtype):
    (q, k, v, dout, dlse), starts = packed("some", dtype)
    expected = cattn.attention_varlen(q, k, v, *starts, causal=True, return_lse=True)

    def strided(a):
        room = np.full((*a.shape[:-1][::-1], a.shape[-1] + 2), np.nan, a.dtype)
        view = room.swapaxes(0, 1)[..., 1:-1]
        view[...] = a
        return view

    out = strided(np.zeros_like(expected.out))
    views = [strided(a) for a in (q, k, v)]
    assert cattn.attention_varlen(*views, *starts, causal=True, out=out) is out
    assert_same(out, expected.out)
    arguments = (q, k, v, *expected[:2], *starts)
    gradients = cattn.attention_varlen_backward(dout, *arguments, dlse=dlse, causal=True)
    arguments = (*views, out, expected.lse.T.copy().T, *starts)
    again = cattn.attention_varlen_backward(strided(dout), *arguments, dlse=dlse, causal=True)
    assert_same(tuple(again), tuple(gradients))


def test_a_fused_projection_is_read_in_place(dtype):
    """q, k and v as slices of one array (total, 3, heads, size)."""
    starts = np.array([0, 40, 41, 130])
    qkv = normal(130, 3, 2, 8, dtype=dtype)
    one = cattn.attention_varlen(*qkv.swapaxes(0, 1), starts, starts, causal=True)
    copies = (a.copy() for a in qkv.swapaxes(0, 1))
    assert_same(one, cattn.attention_varlen(*copies, starts, starts, causal=True))


@pytest.mark.parametrize("lengths", [(7, 48), (10, 40), (1, 2)])
@pytest.mark.parametrize("window", [(0, 0), (3, 0)])
def test_one_mask_for_sequences_of_other_lengths(dtype, lengths, window):
    """What a window leaves of blocks depends on the queries, not on keys and mask alone."""
    starts_q, starts_k = np.cumsum([0, *lengths]), [0, 400, 800]
    q = normal(starts_q[-1], 2, 16, dtype=dtype)
    k, v = normal(800, 2, 16, dtype=dtype, seed=1, count=2)
    options = {"window": window, "causal": True, "return_lse": True}
    expected = cattn.attention_varlen(q, k, v, starts_q, starts_k, **options)
    mask = np.ones((1, 1, 1), bool)
    assert_same(cattn.attention_varlen(q, k, v, starts_q, starts_k, mask=mask, **options), expected)
    given = np.ones_like(expected.out), q, k, v, *expected[:2], starts_q, starts_k
    del options["return_lse"]
    gradients = cattn.attention_varlen_backward(*given, **options)
    assert_same(cattn.attention_varlen_backward(*given, mask=mask, **options), gradients)
