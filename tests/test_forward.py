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


def test_maximum_that_keeps_growing(dtype, record):
    """Every key outdoes the ones before, so a running maximum moves at every block."""
    lk = 600
    q = np.ones((4, 2), dtype)
    k = np.stack([np.linspace(-200, 200, lk), np.zeros(lk)], axis=-1).astype(dtype)
    v = np.random.default_rng(0).standard_normal((lk, 5)).astype(dtype)
    for keys, values in ((k, v), (k[::-1], v[::-1])):
        actual = cattn.attention(q, keys, values, scale=1.0, return_lse=True)
        exact = reference.attention(
            q, keys, values, scale=1.0, return_lse=True, _dtype=np.longdouble
        )
        bound = attention_bound(q, keys, values, scale=1.0)
        for name in ("out", "lse"):
            ratio = worst(getattr(actual, name), getattr(exact, name), getattr(bound, name), name)
            assert ratio <= 1
            record(name, dtype, ratio)


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
