"""merge_attention: the joined result, its dtypes, and its errors."""

import numpy as np
import pytest
from support import assert_same, normal

import cattn
from cattn import reference


def parts(dtype):
    out_a, out_b = normal(2, 5, 3, dtype=dtype, count=2)
    lse_a, lse_b = normal(2, 5, dtype=dtype, count=2)
    return out_a, lse_a, out_b, lse_b


def test_against_the_reference(dtype):
    out, lse = cattn.merge_attention(*parts(dtype))
    assert out.dtype == lse.dtype == dtype
    expected = reference.merge_attention(*parts(dtype))
    rtol = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(out, expected[0], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(lse, expected[1], rtol=rtol, atol=rtol)


def test_the_order_of_the_two_does_not_matter(dtype):
    a, b, c, d = parts(dtype)
    assert_same(cattn.merge_attention(a, b, c, d), cattn.merge_attention(c, d, a, b))


def test_nothing_on_one_side(dtype):
    out, lse, *_ = parts(dtype)
    nothing, empty = np.zeros_like(out), np.full_like(lse, -np.inf)
    assert_same(cattn.merge_attention(out, lse, nothing, empty), (out, lse))
    assert_same(cattn.merge_attention(nothing, empty, out, lse), (out, lse))
    assert_same(cattn.merge_attention(nothing, empty, nothing, empty), (nothing, empty))


@pytest.mark.parametrize("lse", [1e4, -1e4])
def test_far_from_zero(dtype, lse):
    """Exponentials of the lse alone would overflow or vanish."""
    out = normal(5, 3, dtype=dtype)
    rows = np.full(5, lse, dtype)
    merged, total = cattn.merge_attention(out, rows, out, rows)
    eps = np.finfo(dtype).eps
    # exp(lse_a - lse) carries the rounding of lse itself.
    np.testing.assert_allclose(merged, out, rtol=2 * abs(lse) * eps + 4 * eps)
    np.testing.assert_allclose(total, lse + np.log(2), rtol=2 * eps)


def test_errors(dtype):
    out_a, lse_a, out_b, lse_b = parts(dtype)
    with pytest.raises(ValueError, match=r"out_b.*\(2, 4, 3\).*\(2, 5, 3\)"):
        cattn.merge_attention(out_a, lse_a, out_b[:, :4], lse_b)
    with pytest.raises(ValueError, match=r"lse_a.*\(2, 4\).*\(2, 5\)"):
        cattn.merge_attention(out_a, lse_a[:, :4], out_b, lse_b)
    with pytest.raises(ValueError, match=r"lse_b.*\(5,\).*\(2, 5\)"):
        cattn.merge_attention(out_a, lse_a, out_b, lse_b[0])
    with pytest.raises(TypeError, match=r"out_a.*int64"):
        cattn.merge_attention(out_a.astype(np.int64), lse_a, out_b, lse_b)
    with pytest.raises(TypeError, match=r"lse_b.*complex128"):
        cattn.merge_attention(out_a, lse_a, out_b, lse_b.astype(complex))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_other_classes_of_arrays(dtype):
    """Matrices and masked arrays are read as the numbers that they hold."""
    out, lse = normal(2, 4, 2, dtype=dtype), normal(2, 4, dtype=dtype, seed=1)
    expected = cattn.merge_attention(out[0], lse[0], out[1], lse[1])
    matrices = np.matrix(out[0]), lse[0], np.matrix(out[1]), np.ma.array(lse[1], mask=lse[1] > 0)
    merged = cattn.merge_attention(*matrices)
    assert [type(a) for a in merged] == [np.ndarray, np.ndarray]
    assert_same(merged, expected)
