"""Few queries against many keys: read in place by kernels of their own, or packed in parts."""

import bounds
import numpy as np
import pytest
from cases import Case, forward, problem
from support import assert_same, normal

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")


def check(case, dtype, record):
    """With and without lse and weights, on one thread and two."""
    q, k, v, options, *_ = problem(case, dtype)
    exact, bound = forward(case, dtype)
    result = cattn.attention(q, k, v, **options, return_lse=True, return_weights=True)
    for name, *of in zip(result._fields, result, exact, bound, strict=True):
        record(name, dtype, bounds.worst(*of, f"{name} of {case} {dtype}"))
    assert_same(cattn.attention(q, k, v, **options), result.out)
    alone = cattn.attention(q, k, v, **options, return_weights=True, num_threads=2)
    assert_same((alone.out, alone.weights), (result.out, result.weights))


# Around the keys that are taken at once, blocks, and parts that are merged.
@pytest.mark.parametrize("lk", [1, 7, 8, 15, 17, 127, 129, 255, 513, 1030, 2100])
@pytest.mark.parametrize(("d", "dv"), [(64, 64), (1, 3), (17, 40), (72, 130), (128, 15)])
def test_any_number_of_keys(any_dtype, record, lk, d, dv):
    check(Case(1, lk, d, dv, hq=2, hkv=2), any_dtype, record)


# Around row tiles, and where keys are too few for so many queries; one head has more parts.
@pytest.mark.parametrize("lk", [511, 513, 1030, 2100])
@pytest.mark.parametrize("lq", [7, 12, 13, 31, 47, 64, 97])
@pytest.mark.parametrize(("d", "dv"), [(64, 64), (17, 40), (128, 15)])
def test_more_queries(any_dtype, record, lk, lq, d, dv):
    check(Case(lq, lk, d, dv, hq=1, hkv=1), any_dtype, record)


OPTIONS = {
    "causal": {"causal": True},
    "causal from the start": {"causal": True, "causal_offset": 0},
    "window": {"window": (70, -1)},
    "window before the end": {"window": (300, 0), "causal": True, "causal_offset": 700},
    "mask": {"mask": (1, 1, 1100)},
    "mask of heads": {"mask": (4, 1, 1100)},
    "mask of pairs": {"mask": ("lq", 1100)},
    "bias": {"bias": (4, 1, 1100)},
    "bias of pairs": {"bias": (4, "lq", 1100), "causal": True},
    "softcap and ALiBi": {"softcap": 3.0, "alibi": "entry"},
    "sinks": {"sinks": True},
    "lengths": {"lengths": True},
    "dropout": {"dropout": 0.3, "lengths": True},
    "peaked": {"spread": 30.0},
    "scale": {"scale": -3.0},
}


@pytest.mark.parametrize("lq", [1, 2, 3, 20, 64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(any_dtype, record, options, lq):
    options = {
        name: tuple(lq if n == "lq" else n for n in x) if isinstance(x, tuple) else x
        for name, x in options.items()
    }
    check(Case(lq, 1100, 24, 24, hq=4, hkv=2, batch=(3,), **options), any_dtype, record)


# Heads of a group share a pass over the keys, sixteen rows at a time.
@pytest.mark.parametrize(
    ("lq", "hq", "hkv"), [(1, 3, 1), (1, 35, 1), (2, 22, 2), (6, 1, 1), (16, 8, 1), (43, 6, 2)]
)
@pytest.mark.parametrize("more", [{}, {"causal": True, "alibi": "head", "sinks": True}], ids=str)
def test_groups(dtype, record, lq, hq, hkv, more):
    for lk in (5, 130, 1300):
        check(Case(lq, lk, 40, 24, hq=hq, hkv=hkv, **more), dtype, record)


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_layouts_and_strides(dtype, record, layout):
    case = Case(1, 600, 20, 12, hq=4, hkv=2, batch=(2,), layout=layout)
    check(case, dtype, record)
    q, k, v, options, *_ = problem(case, dtype)
    wide = [np.repeat(a, 2, axis=-2)[..., ::2, :] for a in (k, v)]
    assert_same(cattn.attention(q, *wide, **options), cattn.attention(q, k, v, **options))


@pytest.mark.parametrize("lq", [2, 10])
@pytest.mark.parametrize("lk", [130, 1500])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_masked_may_be_anything(any_dtype, lk, number, lq):
    q = normal(2, 4, lq, 24, dtype=any_dtype)
    k, v = normal(2, 2, lk, 24, dtype=any_dtype, seed=1, count=2)
    hidden = np.random.default_rng(2).random((2, 4, 1, lk)) < 0.5
    hidden[:, :, :, 7] = True
    options = [
        {"mask": ~hidden},
        {"bias": np.where(hidden, -np.inf, 0).astype(any_dtype)},
        {"kv_lengths": np.array([lk - 3, 100])},
        {"causal": True, "causal_offset": lk - 40},
        {"window": (50, 0), "causal": True, "causal_offset": lk - 40},
    ]
    for option in options:
        poisoned = [a.copy() for a in (k, v)]
        for a in poisoned:
            if "kv_lengths" in option:
                a[0, :, lk - 3 :] = a[1, :, 100:] = number
            elif "causal" in option:
                a[:, :, lk - 30 :] = number
            else:
                a[:, :, 7] = number
        expected = cattn.attention(q, k, v, **option, return_lse=True)
        actual = cattn.attention(q, *poisoned, **option, return_lse=True)
        if lq == 2:
            assert_same(actual, expected)
            continue
        # What is packed has other loops where not all of it is finite.
        for got, wanted in zip(actual[:2], expected[:2], strict=True):
            limit = 16 * bounds.unit_roundoff(any_dtype) * np.maximum(1, abs(wanted.astype("f8")))
            assert (abs(got.astype("f8") - wanted.astype("f8")) <= limit).all()


@pytest.mark.parametrize("lq", [1, 9])
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_attended_propagates(dtype, where, lq):
    q = normal(2, lq, 16, dtype=dtype)
    k, v = normal(2, 900, 16, dtype=dtype, seed=1, count=2)
    (k if where == "key" else v)[0, 600, 3] = np.nan
    out, lse, _ = cattn.attention(q, k, v, return_lse=True)
    assert np.isnan(out[0, :, 3]).all()
    assert np.isnan(out[0]).all() == np.isnan(lse[0]).all() == (where == "key")
    assert np.isfinite(out[1]).all()
    assert np.isfinite(lse[1]).all()


@pytest.mark.parametrize("lq", [1, 9])
def test_rows_without_keys_in_some_parts_or_all(any_dtype, lq):
    q = normal(3, 2, lq, 16, dtype=any_dtype)
    k, v = normal(3, 2, 3000, 16, dtype=any_dtype, seed=1, count=2)
    mask = np.zeros((3, 1, 1, 3000), bool)
    mask[1, ..., 2900] = True
    mask[2, ..., :] = True
    out, lse, _ = cattn.attention(q, k, v, mask=mask, return_lse=True)
    assert_same(out[0], np.zeros_like(out[0]))
    assert_same(lse[0], np.full_like(lse[0], -np.inf))
    error = np.abs(out[1].astype("f8") - v[1, :, 2900:2901].astype("f8"))
    assert error.max() <= 8 * bounds.unit_roundoff(any_dtype)
    assert_same(out[2], cattn.attention(q[2], k[2], v[2]))
    none = cattn.attention(q, k[:, :, :0], v[:, :, :0], return_lse=True, sinks=np.ones(2, "f4"))
    assert_same(none.out, np.zeros_like(out))
    np.testing.assert_allclose(none.lse, 1)


@pytest.mark.parametrize("sink", [None, -1500])
@pytest.mark.parametrize("option", ["mask", "causal", "causal_offset"])
@pytest.mark.parametrize("lq", [1, 16])
def test_scores_far_below_those_of_parts_that_a_row_does_not_see(dtype, lq, option, sink):
    """What a part has nothing of must not outweigh what others have little of."""
    low, d = 2048, 512  # whole blocks of low scores; all parts but the last ones have only these
    lk = low + 8
    q = np.zeros((1, lq, d), dtype)
    q[..., 0] = d**0.5
    k = normal(1, lk, d, dtype=dtype) / 20
    v = normal(1, lk, 3, dtype=dtype, seed=1) + 5
    k[:, :low, 0] = -1500
    seen = np.arange(lk) < low - np.arange(lq)[:, None] % 2
    options = {
        "mask": {"mask": seen},
        "causal": {"causal": True},  # half of the rows see none of the last ones
        "causal_offset": {"causal": True, "causal_offset": low - lq},
    }[option]
    options["sinks"] = None if sink is None else np.array([sink], "f4")
    exact = reference.attention(q, k, v, **options, return_lse=True)
    bound = bounds.attention_bound(q, k, v, **options)
    result = cattn.attention(q, k, v, **options, return_lse=True)
    assert bounds.worst(result.out, exact.out, bound.out) <= 1
    assert bounds.worst(result.lse, exact.lse, bound.lse) <= 1


@pytest.mark.parametrize("lq", [1, 21])
@pytest.mark.parametrize("group", [1, 5])
def test_neither_threads_nor_other_entries_matter(any_dtype, group, lq):
    q = normal(3, 2 * group, lq, 40, dtype=any_dtype)
    k, v = normal(3, 2, 5000, 40, dtype=any_dtype, seed=1, count=2)
    options = {"sinks": np.ones(2 * group, "f4"), "dropout": 0.1, "seed": 5, "return_lse": True}
    one = cattn.attention(q, k, v, **options, num_threads=1)
    for threads in (2, 3, 7):
        assert_same(cattn.attention(q, k, v, **options, num_threads=threads), one)
    k[1:] = v[1:] = np.inf
    again = cattn.attention(q, k, v, **options)
    assert_same((again.out[0], again.lse[0]), (one.out[0], one.lse[0]))


@pytest.mark.parametrize("weights", [False, True])
def test_packed_sequences_with_few_queries_and_many(any_dtype, weights):
    """Each as it would be alone, whatever its neighbours."""
    starts_q, starts_k = [0, 1, 1, 41, 43, 44, 50], [0, 700, 720, 800, 800, 2400, 3000]
    q = normal(starts_q[-1], 4, 24, dtype=any_dtype)
    k, v = normal(starts_k[-1], 2, 24, dtype=any_dtype, seed=1, count=2)
    options = {"causal": True, "sinks": np.ones(4, "f4"), "return_lse": True}
    options["return_weights"] = weights
    together = cattn.attention_varlen(q, k, v, starts_q, starts_k, **options)
    for n in range(len(starts_q) - 1):
        rows, keys = slice(*starts_q[n : n + 2]), slice(*starts_k[n : n + 2])
        packed = q[rows], k[keys], v[keys]
        lengths = [0, rows.stop - rows.start], [0, keys.stop - keys.start]
        alone = cattn.attention_varlen(*packed, *lengths, **options)
        assert_same((together.out[rows], together.lse[:, rows]), (alone.out, alone.lse))
        if weights:
            all_keys = together.weights[:, rows]
            assert_same(all_keys[..., keys], alone.weights)
            assert not all_keys[..., : keys.start].astype("f4").any()
            assert not all_keys[..., keys.stop :].astype("f4").any()


def test_heads_of_a_group_with_other_masks(dtype):
    """Blocks that are empty, full and partial for heads that share a pass; a NaN that one sees."""
    q = normal(4, 1, 24, dtype=dtype)
    k, v = normal(1, 1100, 24, dtype=dtype, seed=1, count=2)
    mask = np.zeros((4, 1, 1100), bool)
    mask[0] = True
    mask[1, :, 130:300] = True
    mask[2, :, ::3] = True
    bound = bounds.attention_bound(q, k, v, mask=mask)
    exact = reference.attention(q, k, v, mask=mask, return_lse=True)
    result = cattn.attention(q, k, v, mask=mask, return_lse=True)
    assert bounds.worst(result.out, exact.out, bound.out) <= 1
    assert bounds.worst(result.lse, exact.lse, bound.lse) <= 1
    k[:, 700], v[:, 700, 5] = np.nan, np.inf
    again = cattn.attention(q, k, v, mask=mask, return_lse=True)
    assert np.isnan(again.out[0]).all()
    assert_same((again.out[1:], again.lse[1:]), (result.out[1:], result.lse[1:]))


@pytest.mark.parametrize("lk", [2, 7, 8, 300, 1200])
@pytest.mark.parametrize("scale", [None, 3.0, -0.5])
def test_a_score_of_minus_infinity_is_a_mask(any_dtype, lk, scale):
    """Where its value is not finite, as of many queries; whatever other heads hide."""
    q = np.abs(normal(2, 1, 24, dtype=any_dtype))
    k, v = normal(1, lk, 24, dtype=any_dtype, seed=1, count=2)
    k[:, lk // 2], v[:, lk // 2] = np.inf if scale == -0.5 else -np.inf, np.nan
    seen = np.ones((2, 1, lk), bool)
    seen[1, :, 0] = False
    without = np.ones(lk, bool)
    without[lk // 2] = False
    options = {"scale": scale, "return_lse": True}
    expected = cattn.attention(q, k, v, mask=without, **options)
    for mask in (None, seen):
        out, lse, _ = cattn.attention(q, k, v, mask=mask, **options)
        assert_same((out[0], lse[0]), (expected.out[0], expected.lse[0]))
    assert_same(cattn.attention(q, k, v, mask=seen & without, **options), (out, lse, None))
    many = cattn.attention(np.repeat(q, 40, axis=1), k, v, **options)  # as of many queries
    error = np.abs(many.out[0, 0].astype("f8") - expected.out[0, 0].astype("f8"))
    assert error.max() <= 1e-6 if any_dtype.itemsize > 2 else 1e-2


def test_a_score_that_overflows_is_a_mask(dtype):
    """Its product does not, but times log2(e) it does."""
    q = np.full((1, 1), np.finfo(dtype).max ** 0.5, dtype)
    k = np.full((3, 1), -0.8 * np.finfo(dtype).max ** 0.5, dtype)
    v = np.array([[1, 2], [np.nan, 4], [5, 6]], dtype)
    out, lse, _ = cattn.attention(q, k, v, scale=1.0, return_lse=True)
    many = cattn.attention(np.repeat(q, 40, axis=0), k, v, scale=1.0, return_lse=True)
    assert_same((out, lse), (many.out[:1], many.lse[:1]))


@pytest.mark.parametrize("lq", [1, 2, 9])
@pytest.mark.parametrize("slopes", [[0, 0.5, 0, 1], [0.5, 0, 0.25, 0]], ids=str)
def test_heads_of_a_group_without_a_slope(any_dtype, lq, slopes):
    """The scale of those is in their exponents, of the others in their scores."""
    q = normal(4, lq, 24, dtype=any_dtype)
    k, v = normal(2, 1100, 24, dtype=any_dtype, seed=1, count=2)
    kinds = any_dtype if any_dtype == np.float64 else np.float32
    options = {"alibi_slopes": np.array(slopes, kinds), "scale": 0.3, "causal": True}
    bound = bounds.attention_bound(q, k, v, **options)
    options |= {"return_lse": True, "return_weights": True}
    exact = reference.attention(*(a.astype(np.float64) for a in (q, k, v)), **options)
    result = cattn.attention(q, k, v, **options)
    for name, *of in zip(result._fields, result, exact, bound, strict=True):
        assert bounds.worst(*of, name) <= 1


@pytest.mark.parametrize("lq", [1, 8, 200])
def test_parts_far_below_others(dtype, lq):
    """What they add is a number, though the power of 2 that takes it there is none."""
    low, high = (27, 69.3) if dtype == np.float32 else (330, 500)
    scores = np.full((2048, 1), -low, dtype)
    scores[300], scores[1536:] = low, high
    v = np.zeros((2048, 1), dtype)
    v[:1536] = 1
    q = np.ones((lq, 1), dtype)
    exact = reference.attention(q, scores, v, scale=1.0)
    assert 0 < exact[0, 0] < 1e-15
    bound = bounds.attention_bound(q, scores, v, scale=1.0)
    assert bounds.worst(cattn.attention(q, scores, v, scale=1.0), exact, bound.out) <= 1
