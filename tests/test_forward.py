"""Forward: out, lse and weights are within the error bound of the exact ones, at every tail."""

import numpy as np
import pytest
from bounds import attention_bound, worst
from cases import Case, check_forward

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")

# Around the sides of register tiles and of blocks: one less, the side, one more.
BLOCK_LENGTHS = (
    31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 97, 127, 128, 129, 143, 144, 145, 193, 255, 256, 257,
)  # fmt: skip
HEAD_SIZES = (
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    40,
    64,
    65,
    72,
    80,
    96,
    128,
    192,
    256,
    300,
    512,
)
VARIANTS = {
    "dense": {},
    "causal": {"causal": True},
    "mask": {"mask": True},
    "bias": {"bias": True},
    "all": {"causal": True, "mask": True, "bias": True},
}


def variant(name, lq, lk):
    """The options of a variant, its planes in full shape."""
    return {key: (lq, lk) if key in ("mask", "bias") else on for key, on in VARIANTS[name].items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_short_length(dtype, record, name):
    for lq in range(34):
        for lk in (*range(18), 24, 31, 32, 33) if dtype == np.float32 else (0, 1, 2, 7, 9, 17, 33):
            check_forward(Case(lq, lk, 5, 3, **variant(name, lq, lk)), dtype, record)


@pytest.mark.parametrize("name", VARIANTS)
def test_lengths_around_blocks(dtype, record, name):
    for i, lq in enumerate(BLOCK_LENGTHS):
        # Each length with itself, its neighbours and a far one: every pair of tails in turn.
        for step in (0, 1, 2, 7) if dtype == np.float32 else (0, 5):
            lk = BLOCK_LENGTHS[(i + step) % len(BLOCK_LENGTHS)]
            check_forward(Case(lq, lk, 8, 8, **variant(name, lq, lk)), dtype, record)


def test_long_blocks_of_queries(dtype, record):
    """Many heads: blocks of 256 queries on amx, where others have 128."""
    for lq in (256, 300):
        check_forward(Case(lq, 140, 48, 48, hq=128, hkv=2, causal=True), dtype, record)


@pytest.mark.parametrize("d", HEAD_SIZES)
def test_head_sizes(dtype, record, d):
    other = HEAD_SIZES[(HEAD_SIZES.index(d) + 9) % len(HEAD_SIZES)]
    check_forward(Case(13, 37, d, d), dtype, record)
    check_forward(Case(13, 37, d, other, causal=True), dtype, record)
    check_forward(Case(50, 131, d, 16, bias=(50, 131)), dtype, record)
    check_forward(Case(50, 131, 16, d, mask=(131,)), dtype, record)


@pytest.mark.parametrize("lk", [1000, 2049])
def test_long_sequences(dtype, record, lk):
    check_forward(Case(5, lk, 32, 24), dtype, record)
    check_forward(Case(130, lk, 16, 16, causal=True), dtype, record)


@pytest.mark.parametrize("offset", [-300, -5, -1, 0, 1, 3, 100, 300])
def test_causal_offsets(dtype, record, offset):
    for lq, lk in ((6, 9), (40, 40), (130, 97), (97, 260)):
        check_forward(Case(lq, lk, 8, 8, causal=True, causal_offset=offset), dtype, record)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1.0, 3.0, 1e-30])
def test_scales(dtype, record, scale):
    check_forward(Case(20, 70, 16, 16, scale=scale), dtype, record)
    check_forward(Case(20, 70, 16, 16, scale=scale, causal=True, bias=(20, 70)), dtype, record)


@pytest.mark.parametrize("spread", [1e-20, 1e-3, 4.0, 30.0, 1e3])
def test_flat_and_peaked_weights(dtype, record, spread):
    check_forward(Case(33, 150, 16, 8, spread=spread), dtype, record)
    check_forward(Case(33, 150, 16, 8, spread=spread, causal=True), dtype, record)


@pytest.mark.parametrize("lq", [4, 33, 150])
@pytest.mark.parametrize("growth", [400, 4000])
@pytest.mark.parametrize("how", ["plain", "causal", "window", "mask", "bias", "strided", "alibi"])
def test_maximum_that_keeps_growing(dtype, record, how, growth, lq):
    """Every key outdoes the ones before, so a running maximum moves at every block, or in it."""
    lk = 600
    rng = np.random.default_rng(lq)
    options = {
        "causal": {"causal": True},
        "window": {"window": (130, 20), "causal_offset": lk // 2},
        "mask": {"mask": rng.random((lq, lk)) < 0.1},
        "bias": {"bias": np.where(rng.random((lq, lk)) < 0.9, -np.inf, 3).astype(dtype)},
        "strided": {"mask": rng.random((lk, lq)).T < 0.1},
        "alibi": {"alibi_slopes": np.array([-growth / lk], dtype), "causal_offset": 0},
    }.get(how, {})
    steep = 0 if how == "alibi" else growth / 2
    k = np.stack([np.linspace(-steep, steep, lk), np.zeros(lk)], axis=-1).astype(dtype)
    q = np.stack([np.linspace(0.5, 1, lq), np.zeros(lq)], axis=-1).astype(dtype)
    v = rng.standard_normal((lk, 5)).astype(dtype)
    for keys, values in ((k, v), (k[::-1], v[::-1])):
        actual = cattn.attention(q, keys, values, scale=1.0, return_lse=True, **options)
        exact = reference.attention(
            q, keys, values, scale=1.0, return_lse=True, _dtype=np.longdouble, **options
        )
        bound = attention_bound(q, keys, values, scale=1.0, **options)
        for name in ("out", "lse"):
            ratio = worst(getattr(actual, name), getattr(exact, name), getattr(bound, name), name)
            assert ratio <= 1
            record(name, dtype, ratio)


def check_scores(powers, v, dtype, lq, **options):
    """Attention whose scores are these powers of 2, against its bound; returns its output."""
    q, k = np.ones((lq, 1), dtype), np.asarray(powers, dtype)[:, None]
    options = {"scale": float(np.log(2)), "return_lse": True, **options}
    actual = cattn.attention(q, k, v, **options)
    exact = reference.attention(q, k, v, **options, _dtype=np.longdouble)
    bound = attention_bound(q, k, v, scale=options["scale"])
    for name in ("out", "lse"):
        assert worst(getattr(actual, name), getattr(exact, name), getattr(bound, name), name) <= 1
    return actual.out


@pytest.mark.parametrize("lq", [3, 9])
@pytest.mark.parametrize("lk", [48, 300])
def test_a_maximum_that_jumps_leaves_what_was_summed(dtype, lq, lk):
    """Each key has a value of its own, so that none hides what has become of the others."""
    for first, second in ((79, 127), (79, 130), (60, 130), (90, 200)):
        powers = np.full(lk, -300.0)
        powers[[0, 16, lk - 16]] = 0, first, second
        v = np.zeros((lk, 3), dtype)
        v[[0, 16, lk - 16], range(3)] = 1
        out = check_scores(powers, v, dtype, lq)
        np.testing.assert_allclose(out[:, 1], 2.0 ** (first - second), rtol=1e-5)


@pytest.mark.parametrize("lq", [3, 9])
def test_large_values_behind_a_maximum_far_above_the_first_scores(lq):
    powers = np.zeros(256)
    powers[16], powers[128:] = 79, 8
    v = np.ones((256, 1), np.float32)
    v[128:] = 3e36
    check_scores(powers, v, np.dtype(np.float32), lq)


@pytest.mark.parametrize("lq", [3, 9])
@pytest.mark.parametrize("lk", [40, 300])
def test_the_lowest_score_is_a_score(dtype, lq, lk):
    powers = np.zeros(lk)
    powers[: lk - 24] = np.finfo(dtype).min
    v = np.arange(lk, dtype=dtype)[:, None]
    out = check_scores(powers, v, dtype, lq)
    np.testing.assert_allclose(out, np.arange(lk - 24, lk).mean(), rtol=1e-5)


@pytest.mark.parametrize("exponent", [-30, -10, 10, 30])
def test_values_far_from_one(dtype, record, exponent):
    """Scaling the values by a power of two scales the output, exactly."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((40, 16)).astype(dtype) for _ in range(3))
    factor = dtype.type(2.0) ** exponent
    np.testing.assert_array_equal(
        cattn.attention(q, k, v * factor), cattn.attention(q, k, v) * factor
    )


def test_scores_too_large_for_a_naive_exponential(dtype):
    """Scores of some thousands: softmax picks the largest, nothing overflows."""
    q = np.eye(3, dtype=dtype) * 5000
    v = np.arange(12, dtype=dtype).reshape(3, 4)
    result = cattn.attention(q, np.eye(3, dtype=dtype), v, scale=1.0, return_lse=True)
    np.testing.assert_allclose(result.out, v, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(result.lse, [5000] * 3, rtol=4 * np.finfo(dtype).eps)


def test_result_types(dtype):
    q = np.ones((2, 3, 4), dtype)
    out = cattn.attention(q, q, q)
    assert type(out) is np.ndarray
    assert out.dtype == dtype
    with_lse = cattn.attention(q, q, q, return_lse=True)
    assert isinstance(with_lse, cattn.AttentionResult)
    assert with_lse.weights is None
    assert with_lse.lse.dtype == dtype
    with_weights = cattn.attention(q, q, q, return_weights=True)
    assert with_weights.lse is None
    np.testing.assert_allclose(with_weights.weights, np.full((2, 3, 3), 1 / 3), rtol=1e-6)
