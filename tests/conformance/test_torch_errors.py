"""Errors of float32 in three parts, `precision="highest"` on matrix units, beside PyTorch's."""

import numpy as np
import pytest

import cattn
from cattn import _core

torch = pytest.importorskip("torch")
UNITS = [isa for isa in ("amx", "amx_emulated") if isa in _core.available_isas()]


def ours(q, k, v, dout, causal):
    out, lse, _ = cattn.attention(q, k, v, causal=causal, return_lse=True)
    gradients = cattn.attention_backward(dout, q, k, v, out, lse, causal=causal)
    return {"out": out, "dq": gradients.dq, "dk": gradients.dk, "dv": gradients.dv}


def theirs(q, k, v, dout, causal):
    tensors = [torch.tensor(x[None], requires_grad=True) for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)
    out.backward(torch.tensor(dout[None]))
    results = zip(("out", "dq", "dk", "dv"), (out, *(x.grad for x in tensors)), strict=True)
    return {name: x.detach().numpy()[0] for name, x in results}


@pytest.mark.skipif(not UNITS, reason="no tiles, in hardware or emulated")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("causal", [False, True], ids=["dense", "causal"])
def test_three_parts_are_no_worse(seed, causal):
    """By the root of the mean square of their errors, 0.4 to 0.7 of PyTorch's."""
    rng = np.random.default_rng(seed)
    arrays = rng.standard_normal((4, 2, 512, 64)).astype(np.float32)
    before = _core.isa()
    _core.set_isa(UNITS[0])
    try:
        exact = ours(*arrays.astype(np.float64), causal)
        actual, other = ours(*arrays, causal), theirs(*arrays, causal)
    finally:
        _core.set_isa(before)
    for name, right in exact.items():
        error, limit = (np.sqrt(np.mean((x[name] - right) ** 2)) for x in (actual, other))
        assert error <= limit, name
