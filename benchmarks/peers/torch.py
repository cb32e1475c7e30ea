"""PyTorch: ``scaled_dot_product_attention`` and its gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from cases import Case
from peers.base import Array, Inputs, Task


def prepare(case: Case, inputs: Inputs) -> Task:
    """Forward in inference mode; backward alone, through a graph that is kept."""
    torch.set_num_threads(case.threads or 1)
    q, k, v, dout = (_tensor(x) for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    grouped = q.shape[1] != k.shape[1]
    given = inputs.mask if inputs.bias is None else inputs.added()
    mask = None if given is None else torch.from_numpy(given)

    def forward() -> torch.Tensor:
        return scaled_dot_product_attention(
            q, k, v, mask, is_causal=case.causal, enable_gqa=grouped
        )

    if case.direction == "forward":
        return Task(forward, lambda out: (_array(out),), torch.inference_mode)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = forward()
    return Task(
        lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True),
        lambda grads: tuple(_array(g) for g in grads),
    )


def _tensor(x: Array) -> torch.Tensor:
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _array(x: torch.Tensor) -> Array:
    array: Array = (x.float() if x.itemsize == 2 else x).numpy()
    return array
