"""Half types: the error against float64 is no larger than PyTorch's on the same inputs."""

import numpy as np
import pytest

import cattn
from cattn import reference

torch = pytest.importorskip("torch")

#: Both round once at the end; where that rounding is all there is, they tie.
TIE = 1.02


def root_mean_square(x, exact):
    return float(np.sqrt(np.mean((np.asarray(x, np.float64) - exact) ** 2)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("causal", [False, True], ids=["dense", "causal"])
@pytest.mark.parametrize("length", [64, 500])
def test_error_is_no_larger_than_pytorchs(half, length, causal):
    rng = np.random.default_rng(length)
    q, k, v, dout = rng.standard_normal((4, 2, 3, length, 64)).astype(half)

    def to_torch(x):
        return torch.from_numpy(x.astype(np.float32)).to(getattr(torch, half.name))

    inputs = [to_torch(x).requires_grad_() for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=causal)
    theirs.backward(to_torch(dout))
    gradients = [x.grad.float().numpy() for x in inputs]

    exact = reference.attention(q, k, v, causal=causal, return_lse=True)
    exact_gradients = reference.attention_backward(
        dout, q, k, v, exact.out, exact.lse, causal=causal
    )
    ours = cattn.attention(q, k, v, causal=causal, return_lse=True)
    our_gradients = cattn.attention_backward(dout, q, k, v, ours.out, ours.lse, causal=causal)

    results = {"out": (ours.out, theirs.detach().float().numpy(), exact.out)}
    for i, of in enumerate(("dq", "dk", "dv")):
        results[of] = our_gradients[i], gradients[i], exact_gradients[i]
    for of, (mine, peer, right) in results.items():
        assert root_mean_square(mine, right) <= TIE * root_mean_square(peer, right), of
