"""Backward: every gradient is within the error bound, and agrees with finite differences."""

import bounds
import numpy as np
import pytest
from cases import Case, check_backward, exact_dtype, problem
from test_forward import BLOCK_LENGTHS, HEAD_SIZES, VARIANTS, variant

import cattn
from cattn import reference

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_short_length(dtype, record, name):
    for lq in range(34):
        for lk in (*range(10), 16, 17, 31, 33) if dtype == np.float32 else (0, 1, 2, 9, 17, 33):
            check_backward(Case(lq, lk, 5, 3, **variant(name, lq, lk)), dtype, record)


@pytest.mark.parametrize("name", VARIANTS)
def test_lengths_around_blocks(dtype, record, name):
    for i, lq in enumerate(BLOCK_LENGTHS):
        for step in (0, 1, 7) if dtype == np.float32 else (5,):
            lk = BLOCK_LENGTHS[(i + step) % len(BLOCK_LENGTHS)]
            check_backward(Case(lq, lk, 8, 8, **variant(name, lq, lk)), dtype, record)


@pytest.mark.parametrize("d", HEAD_SIZES)
def test_head_sizes(dtype, record, d):
    other = HEAD_SIZES[(HEAD_SIZES.index(d) + 9) % len(HEAD_SIZES)]
    check_backward(Case(13, 37, d, d), dtype, record)
    check_backward(Case(13, 37, d, other, causal=True), dtype, record)
    check_backward(Case(50, 131, d, 16, bias=(50, 131)), dtype, record)
    check_backward(Case(50, 131, 16, d, mask=(131,)), dtype, record)


def test_long_sequences(dtype, record):
    """Many key blocks: the partial sums of dq are added up across chunks."""
    check_backward(Case(5, 2049, 16, 8), dtype, record)
    check_backward(Case(1100, 130, 8, 16, causal=True, causal_offset=0), dtype, record)
    check_backward(Case(200, 1300, 8, 8, causal=True), dtype, record)


@pytest.mark.parametrize("offset", [-300, -5, -1, 0, 1, 3, 100, 300])
def test_causal_offsets(dtype, record, offset):
    for lq, lk in ((6, 9), (40, 40), (130, 97), (97, 260)):
        check_backward(Case(lq, lk, 8, 8, causal=True, causal_offset=offset), dtype, record)


@pytest.mark.parametrize("scale", [0.0, -0.5, 1.0, 3.0, 1e-30])
def test_scales(dtype, record, scale):
    check_backward(Case(20, 70, 16, 16, scale=scale), dtype, record)
    check_backward(Case(20, 70, 16, 16, scale=scale, causal=True, bias=(20, 70)), dtype, record)


@pytest.mark.parametrize("spread", [1e-20, 1e-3, 4.0, 30.0, 1e3])
def test_flat_and_peaked_weights(dtype, record, spread):
    check_backward(Case(33, 150, 16, 8, spread=spread), dtype, record)


BIAS_SHAPES = [
    (), (1,), (70,), (40, 1), (1, 70), (40, 70), (4, 1, 1), (1, 40, 70), (4, 40, 70),
    (2, 1, 1, 70), (2, 4, 40, 1), (1, 4, 1, 70), (2, 1, 40, 70), (2, 4, 40, 70), (1, 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", BIAS_SHAPES, ids=str)
def test_gradient_of_bias_for_every_broadcast(dtype, record, shape):
    """dbias has bias's own shape, summed over what was broadcast."""
    for causal in (False, True):
        case = Case(40, 70, 8, 8, hq=4, hkv=2, batch=(2,), bias=shape, causal=causal)
        check_backward(case, dtype, record)
    if shape in ((70,), (40, 1), (4, 1, 1)):  # several blocks of each
        check_backward(
            Case(200, 270, 8, 8, hq=4, hkv=2, batch=(2,), bias=(*shape[:-2], *(
                {40: 200, 70: 270}.get(n, n) for n in shape[-2:]
            ))), dtype, record,
        )  # fmt: skip


def test_gradient_of_a_float32_bias_under_float64(record):
    """The bias may be float32 beside float64 queries; its gradient is float32 too."""
    q, k, v, options, dout, _ = problem(Case(20, 30, 8, 8, bias=(20, 30)), np.dtype(np.float64))
    bias = options["bias"].astype(np.float32)
    exact_out, exact_lse, _ = reference.attention(q, k, v, bias=bias, return_lse=True)
    arguments = (dout, q, k, v, exact_out, exact_lse)
    actual = cattn.attention_backward(*arguments, bias=bias, grads=["bias"])
    assert actual.dbias.dtype == np.float32
    exact = reference.attention_backward(*arguments, bias=bias, grads=["bias"])
    bound = bounds.attention_backward_bound(*arguments, bias=bias, grads=["bias"])
    record("dbias", "float64", bounds.worst(actual.dbias, exact.dbias, bound.dbias, "dbias"))


@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=["dense", "causal"])
def test_gradients_of_the_exact_function(dtype, record, options):
    """End to end: out and lse are what `attention` returned, and their errors count."""
    q, k, v, _, dout, dlse = problem(Case(70, 140, 24, 16, hq=4, hkv=2, batch=(2,)), dtype)
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    actual = cattn.attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    exact_out, exact_lse, _ = reference.attention(
        q, k, v, **options, return_lse=True, _dtype=exact_dtype(dtype)
    )
    exact = reference.attention_backward(
        dout, q, k, v, exact_out, exact_lse, dlse=dlse, **options, _dtype=exact_dtype(dtype)
    )
    forward = bounds.attention_bound(q, k, v, **options)
    bound = bounds.attention_backward_bound(
        dout, q, k, v, exact_out, exact_lse, dlse=dlse, **options,
        out_error=forward.out, lse_error=forward.lse,
    )  # fmt: skip
    for name in ("dq", "dk", "dv"):
        three = (getattr(x, name) for x in (actual, exact, bound))
        record(f"{name}-total", dtype, bounds.worst(*three, name))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("of", ["q", "k", "v", "bias"])
def test_finite_differences(name, of):
    """d(sum dout·out + sum dlse·lse) by central differences, in float64, element by element."""
    options = {"bias": (9, 11), **variant(name, 9, 11)}
    q, k, v, options, dout, dlse = problem(
        Case(9, 11, 4, 3, hq=4, hkv=2, batch=(2,), **options), np.dtype(np.float64)
    )
    options = {**options, "bias": options["bias"].copy()}
    options["bias"][:, 0] = 0.25  # every row sees the first key: an empty one has lse -inf
    if "mask" in options:
        options["mask"] = options["mask"] | (np.arange(11) == 0)
    arrays = {"q": q, "k": k, "v": v, "bias": options.pop("bias")}

    def loss(arrays):
        out, lse, _ = cattn.attention(**arrays, **options, return_lse=True)
        return (dout * out).sum() + (dlse * lse).sum()

    out, lse, _ = cattn.attention(**arrays, **options, return_lse=True)
    assert np.isfinite(lse).all()
    bias = arrays["bias"]
    gradient = getattr(
        cattn.attention_backward(
            dout, q, k, v, out, lse, dlse=dlse, bias=bias, **options, grads=[of]
        ),
        f"d{of}",
    )
    step = 1e-5  # truncation about step², rounding about 1e-16 / step: both near 1e-10
    checked = np.flatnonzero(np.isfinite(arrays[of]).ravel())
    for at in checked[:: max(1, len(checked) // 60)]:
        shifted = []
        for sign in (1, -1):
            moved = arrays[of].copy()
            moved.flat[at] += sign * step
            shifted.append(loss(arrays | {of: moved}))
        slope = (shifted[0] - shifted[1]) / (2 * step)
        assert gradient.flat[at] == pytest.approx(slope, abs=2e-8), at


@pytest.mark.parametrize("wanted", [["q"], ["k"], ["v"], ["bias"], ["q", "v"], [], ["bias", "k"]])
def test_only_what_is_asked_for(dtype, wanted):
    """What is left out is None; what is computed does not depend on what else is."""
    q, k, v, options, dout, dlse = problem(Case(40, 70, 8, 8, bias=(40, 70)), dtype)
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    arguments = (dout, q, k, v, out, lse)
    everything = cattn.attention_backward(
        *arguments, dlse=dlse, grads=["q", "k", "v", "bias"], **options
    )
    some = cattn.attention_backward(*arguments, dlse=dlse, grads=wanted, **options)
    assert isinstance(some, cattn.AttentionGrads)
    for name in ("q", "k", "v", "bias"):
        one = getattr(some, f"d{name}")
        if name in wanted:
            np.testing.assert_array_equal(one, getattr(everything, f"d{name}"))
        else:
            assert one is None
    assert some.dsinks is None


def test_dlse_alone(dtype):
    """The gradient of lse with respect to the scores is the weights."""
    q, k, v, _, dout, dlse = problem(Case(20, 30, 8, 8), dtype)
    bias = np.zeros((20, 30), dtype)
    out, lse, weights = cattn.attention(q, k, v, bias=bias, return_lse=True, return_weights=True)
    dbias = cattn.attention_backward(
        np.zeros_like(dout), q, k, v, out, lse, dlse=dlse, grads=["bias"], bias=bias
    ).dbias
    # Both recompute the same weight from the same lse and multiply it once.
    expected = weights[0] * dlse[0][:, None]
    np.testing.assert_allclose(dbias, expected, rtol=4 * np.finfo(dtype).eps)
