"""Arrays of other libraries are read in place, and read-only ones too."""

import sys

import numpy as np
import pytest
from support import assert_ran, assert_same, run_python

import cattn


class Exporter:
    """An array that is nothing but its `__dlpack__`."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def arrays(dtype="float32"):
    return np.random.default_rng(0).standard_normal((4, 2, 6, 8)).astype(dtype)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_torch_tensors(torch, name):
    q, k, v, dout = arrays(name)
    tensors = [torch.from_numpy(x) for x in (q, k, v, dout)]
    expected = cattn.attention(q, k, v, causal=True, return_lse=True)
    actual = cattn.attention(*tensors[:3], causal=True, return_lse=True)
    assert_same(actual, expected)
    assert isinstance(actual.out, np.ndarray)
    lse = torch.from_numpy(expected.lse)
    gradients = cattn.attention_backward(
        tensors[3], *tensors[:3], torch.from_numpy(expected.out), lse, causal=True
    )
    assert_same(
        gradients,
        cattn.attention_backward(dout, q, k, v, expected.out, expected.lse, causal=True),
    )


def test_bfloat16_of_torch(torch):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    q, k, v = arrays()[:3].astype(bfloat16)
    tensors = [torch.from_numpy(x.astype(np.float32)).bfloat16() for x in (q, k, v)]
    actual = cattn.attention(*tensors)
    assert actual.dtype == bfloat16
    assert_same(actual, cattn.attention(q, k, v))


def test_masks_lengths_and_strides_of_torch(torch):
    q, k, v, _ = arrays()
    mask = np.random.default_rng(1).random((6, 6)) < 0.7
    expected = cattn.attention(q, k, v, mask=mask, kv_lengths=4)
    # (L, H, D) in memory, seen as (H, L, D): not contiguous.
    tensors = [torch.from_numpy(np.ascontiguousarray(x.swapaxes(0, 1))) for x in (q, k, v)]
    actual = cattn.attention(
        *(t.transpose(0, 1) for t in tensors),
        mask=torch.from_numpy(mask),
        kv_lengths=torch.tensor(4),
    )
    assert_same(actual, expected)


def test_a_tensor_is_not_copied(torch):
    """Keys and values of a terabyte, all of one row of memory, of which three are attended."""
    row = torch.randn(1, 1, 8)
    keys = row.expand(1, 1 << 35, 8)
    mask = torch.ones(1, 1, dtype=torch.bool).expand(2, 1 << 35)
    out = cattn.attention(row.expand(1, 2, 8), keys, keys, kv_lengths=3, mask=mask)
    np.testing.assert_allclose(out, row.expand(1, 2, 8).numpy(), rtol=1e-6)


def test_tensors_with_a_gradient_are_refused(torch):
    q = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(TypeError, match=r"^q: cannot be read: .*grad"):
        cattn.attention(q, q, q)


def test_types_that_are_not_supported(torch):
    q = torch.ones(2, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"^q: DLPack type"):
        cattn.attention(q, q, q)
    with pytest.raises(TypeError, match=r"^q: dtype int32"):
        cattn.attention(*[torch.ones(2, 3, dtype=torch.int32)] * 3)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_jax_arrays(name):
    """JAX arrays are read-only."""
    jnp = pytest.importorskip("jax.numpy")
    q, k, v, _ = arrays()
    tensors = [jnp.asarray(x).astype(name) for x in (q, k, v)]
    own = [np.asarray(t) for t in tensors]
    assert_same(cattn.attention(*tensors), cattn.attention(*own))


def test_read_only_arrays():
    q, k, v, _ = arrays()
    for x in (q, k, v):
        x.flags.writeable = False
    assert_same(cattn.attention(q, k, v), cattn.attention(q.copy(), k.copy(), v.copy()))


def test_the_exporter_is_kept_alive_only_while_it_is_read():
    q = np.ones((2, 3), np.float32)
    before = sys.getrefcount(q)
    cattn.attention(*[Exporter(q)] * 3)
    assert sys.getrefcount(q) == before


def test_ml_dtypes_is_not_imported_unless_used():
    code = (
        "import sys, numpy as np, cattn\n"
        "q = np.ones((2, 3), np.float16)\n"
        "cattn.attention(q, q, q)\n"
        "assert 'ml_dtypes' not in sys.modules\n"
    )
    assert_ran(run_python(code))


def test_objects_that_have_dlpack_alone():
    q, k, v, dout = arrays("float64")
    given = [Exporter(x) for x in (q, k[:1], v[:1])]
    out, lse, _ = cattn.attention(*given, return_lse=True)
    expected = cattn.attention_backward(dout, q, k[:1], v[:1], out, lse)
    assert_same(cattn.attention_backward(dout, *given, out, lse), expected)
    assert_same(cattn.rope(given[0], range(6)), cattn.rope(q, range(6)))
    assert_same(
        cattn.merge_attention(Exporter(out), Exporter(lse), out, lse),
        cattn.merge_attention(out, lse, out, lse),
    )


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_gradients_of_broadcast_tensors(torch, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    q, k = arrays().astype(dtype), arrays()[0].astype(dtype)
    tensor = torch.from_numpy(k.astype(np.float32)).to(getattr(torch, name))
    out, lse, _ = cattn.attention(q, tensor, tensor, return_lse=True)
    gradients = cattn.attention_backward(out, q, tensor, tensor, out, lse)
    assert [g.dtype for g in gradients[:3]] == [dtype] * 3
    assert_same(gradients, cattn.attention_backward(out, q, k, k, out, lse))
    merged = cattn.merge_attention(tensor, torch.zeros(2, 6), tensor, torch.zeros(2, 6))
    assert merged[0].dtype == dtype


@pytest.mark.parametrize("option", ["causal_offset", "kv_lengths", "mask"])
def test_bfloat16_is_no_integer(torch, option):
    q, k, v, _ = arrays()
    options = {"causal": True, option: torch.ones((), dtype=torch.bfloat16)}
    with pytest.raises(TypeError, match=f"^{option}: dtype bfloat16"):
        cattn.attention(q, k, v, **options)
