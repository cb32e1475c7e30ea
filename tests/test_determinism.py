"""Bitwise the same: for any number of threads, again and again, whatever else is in the batch."""

import bounds
import numpy as np
import pytest
from cases import Case, forward, problem, wanted
from support import assert_same, normal

import cattn

pytestmark = pytest.mark.usefixtures("isa")

CASES = [
    Case(300, 500, 32, 16, hq=1, hkv=1),  # one head: threads share its queries and keys
    Case(300, 500, 32, 16, hq=1, hkv=1, causal=True),
    Case(300, 500, 32, 16, mask=(300, 500), spread=8.0),
    Case(200, 1100, 16, 8, hq=2, hkv=1),  # key blocks take turns at dq
    Case(130, 260, 16, 24, hq=6, hkv=2, batch=(2,), causal=True, mask=(130, 260)),
    Case(130, 260, 16, 24, hq=4, hkv=4, batch=(3,), bias=(130, 260)),
    Case(130, 260, 16, 24, hq=4, hkv=2, batch=(2,), bias=(4, 1, 260)),
    Case(64, 64, 64, 64, hq=16, hkv=16, batch=(4,)),
    # runs of several key blocks, the shorter the more threads
    Case(260, 400, 16, 24, hq=4, hkv=2, batch=(4,), causal=True),
    Case(260, 400, 16, 8, hq=8, hkv=8, batch=(2,), window=(100, 20), mask=(260, 400)),
    Case(140, 400, 16, 24, hq=4, hkv=2, batch=(4,), lengths=True, dropout=0.2),
    Case(300, 500, 32, 16, hq=2, hkv=1, window=(100, 20), sinks=True, alibi="head"),
    Case(130, 260, 16, 24, hq=4, hkv=2, batch=(3,), lengths=True, softcap=2.0, dropout=0.2),
]


def everything(case, dtype, **more):
    """Forward, alone too, and backward."""
    q, k, v, options, dout, dlse = problem(case, dtype)
    alone = cattn.attention(q, k, v, **options, **more)
    result = cattn.attention(q, k, v, **options, **more, return_lse=True, return_weights=True)
    gradients = cattn.attention_backward(
        dout, q, k, v, *result[:2], dlse=dlse, grads=wanted(options), **options, **more
    )
    return (alone, *result, *gradients)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_any_number_of_threads(dtype, case):
    one = everything(case, dtype, num_threads=1)
    for threads in (2, 3, 4, 7):
        assert_same(everything(case, dtype, num_threads=threads), one)


def test_long_blocks_of_queries(any_dtype):
    """Of many heads (see test_half.py): any number of threads, and an entry alone."""
    q, k, v, options, *_ = problem(
        Case(257, 70, 16, 16, hq=128, hkv=2, batch=(2,), mask=(257, 70)), any_dtype
    )
    one = cattn.attention(q, k, v, **options, num_threads=1)
    for threads in (2, 5):
        assert_same(cattn.attention(q, k, v, **options, num_threads=threads), one)
    assert_same(cattn.attention(q[1:], k[1:], v[1:], **options), one[1:])


@pytest.mark.parametrize("case", CASES[-2:], ids=["window", "lengths"])
def test_any_number_of_threads_in_half_types_and_forward_mode(any_dtype, case):
    q, k, v, options, *_ = problem(case, any_dtype)
    moves = normal(*q.shape, dtype=any_dtype), 2 * k, 3 * v

    def all_of_it(threads):
        forward_mode = cattn.attention_jvp(q, k, v, *moves, **options, num_threads=threads)
        return (*everything(case, any_dtype, num_threads=threads), *forward_mode)

    one = all_of_it(1)
    for threads in (2, 5):
        assert_same(all_of_it(threads), one)


@pytest.mark.parametrize("odd", [1e-20, 1e3, np.inf, np.nan])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_any_number_of_threads_beside_an_odd_query(any_dtype, precision, odd):
    """One head, whose queries are shared out; an odd row takes its whole block another way."""
    q, k, v = normal(1, 256, 64, dtype=any_dtype, count=3)
    q[:, 100, 3] = odd
    options = {"precision": precision, "return_lse": True}
    one = cattn.attention(q, k, v, **options, num_threads=1)
    for threads in (2, 5):
        assert_same(cattn.attention(q, k, v, **options, num_threads=threads), one)
    # Nor does the rest of the batch matter.
    batch = [np.concatenate([a, normal(7, 256, 64, dtype=any_dtype)])[:, None] for a in (q, k, v)]
    together = cattn.attention(*batch, **options)
    assert_same(together.out[0], one.out)
    assert_same(together.lse[0], one.lse)


@pytest.mark.parametrize("size", [2.0**-120, 2.0**-130])
def test_any_number_of_threads_for_results_that_are_hardly_normal_numbers(size):
    """An odd query changes by which power of 2 the weights of its block are larger."""
    q, k, v = normal(1, 256, 64, count=3)
    q[:, :100] *= 1.8
    q[:, 100] *= 1000
    v *= np.float32(size)
    one = cattn.attention(q, k, v, num_threads=1)
    for threads in (2, 5):
        assert_same(cattn.attention(q, k, v, num_threads=threads), one)
    batch = [np.concatenate([a, normal(7, 256, 64)])[:, None] for a in (q, k, v)]
    for threads in (1, 2):
        assert_same(cattn.attention(*batch, num_threads=threads)[0], one)


def test_any_number_of_threads_for_packed_sequences(any_dtype):
    starts = np.array([0, 3, 3, 200, 330, 1000])
    q, dout = normal(1000, 4, 16, dtype=any_dtype, count=2)
    k, v = normal(1000, 2, 16, dtype=any_dtype, seed=1, count=2)
    sinks, bias = normal(4, dtype=any_dtype), normal(4, 1, 1000, dtype=any_dtype)
    options = {"causal": True, "sinks": sinks, "bias": bias, "dropout": 0.1, "seed": 4}

    def all_of_it(threads):
        more = {**options, "num_threads": threads}
        out, lse, _ = cattn.attention_varlen(q, k, v, starts, starts, **more, return_lse=True)
        grads = ["q", "k", "v", "bias", "sinks"]
        arguments = dout, q, k, v, out, lse, starts, starts
        return (out, lse, *cattn.attention_varlen_backward(*arguments, grads=grads, **more))

    one = all_of_it(1)
    for threads in (2, 5):
        assert_same(all_of_it(threads), one)


@pytest.mark.parametrize("case", CASES[:4], ids=range(4))
def test_again_and_again(dtype, case):
    first = everything(case, dtype, num_threads=2)
    for _ in range(4):
        assert_same(everything(case, dtype, num_threads=2), first)


def test_the_number_of_threads_that_is_set(dtype):
    before = cattn.get_num_threads()
    try:
        cattn.set_num_threads(1)
        one = everything(CASES[0], dtype)
        cattn.set_num_threads(3)
        assert_same(everything(CASES[0], dtype), one)
    finally:
        cattn.set_num_threads(before)


def test_wherever_the_arrays_lie(dtype):
    """Alignment decides which instructions would be fastest, not what comes out."""
    case = CASES[3]
    q, k, v, options, *_ = problem(case, dtype)
    expected = cattn.attention(q, k, v, **options)
    for shift in (1, 3, 8):
        moved = []
        for a in (q, k, v):
            room = np.empty(a.size + 64, dtype)
            moved.append(room[shift : shift + a.size].reshape(a.shape))
            moved[-1][...] = a
        assert_same(cattn.attention(*moved, **options), expected)


@pytest.mark.parametrize(
    "options", [{}, {"lengths": True, "softcap": 2.0, "dropout": 0.3}], ids=str
)
@pytest.mark.parametrize("other", [0.0, 100.0, np.nan, np.inf], ids=str)
def test_other_batch_entries_do_not_matter(dtype, other, options):
    case = Case(130, 260, 16, 24, hq=4, hkv=2, batch=(3,), **options)
    q, k, v, options, dout, dlse = problem(case, dtype)
    result = cattn.attention(q, k, v, **options, return_lse=True, return_weights=True)
    gradients = cattn.attention_backward(dout, q, k, v, *result[:2], dlse=dlse, **options)
    changed = [a.copy() for a in (q, k, v, dout, dlse)]
    for a in changed:
        a[[0, 2]] = other
    q, k, v, dout, dlse = changed
    again = cattn.attention(q, k, v, **options, return_lse=True, return_weights=True)
    assert_same(tuple(a[1] for a in again), tuple(a[1] for a in result))
    anew = cattn.attention_backward(dout, q, k, v, *again[:2], dlse=dlse, **options)
    assert_same(tuple(a[1] for a in anew[:3]), tuple(a[1] for a in gradients[:3]))


def test_other_rows_do_not_matter(dtype):
    """A NaN in one query leaves the other rows of its block as they were, or within the bounds: a
    block with a NaN is not multiplied on pairs of bfloat16, but by multiply-adds."""
    case = Case(130, 260, 16, 24)
    q, k, v, *_ = problem(case, dtype)
    expected = cattn.attention(q, k, v, return_lse=True, return_weights=True)
    bad = q.copy()
    bad[:, 7] = np.nan
    bad[:, 100] = np.inf
    result = cattn.attention(bad, k, v, return_lse=True, return_weights=True)
    kept = ~np.isin(np.arange(130), [7, 100])
    if bounds.multiplies_pairs(dtype):
        for actual, exact, bound in zip(result, *forward(case, dtype), strict=True):
            bounds.worst(actual[:, kept], exact[:, kept], bound[:, kept])
        return
    assert_same(tuple(a[:, kept] for a in result), tuple(a[:, kept] for a in expected))


@pytest.mark.parametrize("options", [
    {}, {"causal": True}, {"window": (100, 20)}, {"sinks": True}, {"dropout": 0.3, "seed": 7},
    {"mask": (130, 260), "causal": True}, {"scale": 0.3},
], ids=str)  # fmt: skip
def test_how_large_values_are_does_not_matter(dtype, options):
    """Values of any size by a power of two give the same digits: scores that are known to be small
    need no maximum, but only among values of moderate size."""
    options = {**options}
    q, k, v, more, *_ = problem(Case(130, 260, 16, 24, sinks=options.pop("sinks", False),
                                     mask=options.pop("mask", None)), dtype)  # fmt: skip
    options |= more
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    for power in (2.0**30, 2.0**-30):
        large = cattn.attention(q, k, v * dtype.type(power), **options, return_lse=True)
        assert_same(tuple(large[:2]), (out * dtype.type(power), lse))


def test_a_large_query_does_not_matter_to_the_others(dtype):
    """Nor does a large key that another row may not see."""
    q, k, v, *_ = problem(Case(130, 130, 16, 24), dtype)
    expected = cattn.attention(q, k, v, causal=True, return_lse=True)
    q[:, 100] *= 1000
    k[:, 129] *= 1000
    result = cattn.attention(q, k, v, causal=True, return_lse=True)
    kept = ~np.isin(np.arange(130), [100, 129])
    assert_same(tuple(a[:, kept] for a in result[:2]), tuple(a[:, kept] for a in expected[:2]))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_nor_does_it_where_weights_are_rounded(any_dtype, precision):
    """Scores beyond 4096 take another way, and so does a NaN."""
    q, k, v = (normal(1, 130, 16, dtype=any_dtype, seed=i) for i in range(3))
    expected = cattn.attention(q, k, v, causal=True, precision=precision)
    q[:, 100] = 2.0**12 * q[:, 100].astype(np.float32)
    result = cattn.attention(q, k, v, causal=True, precision=precision)
    kept = np.arange(130) != 100
    assert_same(result[:, kept], expected[:, kept])
    assert np.isfinite(result[:, 100].astype(np.float64)).all()


def test_packed_sequences_do_not_choose_each_others_kernels(any_dtype):
    """How long the others are does not matter, with heads of a size at which it might."""
    q, k, v = (normal(400, 2, 64, dtype=any_dtype, seed=i) for i in range(3))
    both = cattn.attention_varlen(q, k, v, [0, 20, 400], [0, 20, 400], causal=True)
    alone = cattn.attention_varlen(q[:20], k[:20], v[:20], [0, 20], [0, 20], causal=True)
    assert_same(both[:20], alone)


def test_a_row_alone_is_the_row_in_its_batch(dtype):
    """Batch entries and heads do not depend on how many there are: nor do their gradients."""
    q, k, v, _, dout, _ = problem(Case(130, 1100, 16, 24, hq=4, hkv=2, batch=(3,)), dtype)
    out, lse, _ = cattn.attention(q, k, v, causal=True, return_lse=True)
    dq, dk, dv, *_ = cattn.attention_backward(dout, q, k, v, out, lse, causal=True)
    for b in range(3):
        assert_same(cattn.attention(q[b], k[b], v[b], causal=True), out[b])
        arguments = dout[b], q[b], k[b], v[b], out[b], lse[b]
        gradients = cattn.attention_backward(*arguments, causal=True)
        assert_same(tuple(gradients[:3]), (dq[b], dk[b], dv[b]))
        for h in range(4):
            one = cattn.attention(q[b, h], k[b, h // 2], v[b, h // 2], causal=True)
            assert_same(one, out[b, h])
