"""JAX: ``jax.nn.dot_product_attention``, compiled, and its vector-Jacobian product."""

from __future__ import annotations

import jax
import numpy as np

from cases import Case
from peers.base import Array, Inputs, Task, require_float32, require_memory


def prepare(case: Case, inputs: Inputs) -> Task:
    """Forward; or the backward alone, from what its forward has kept."""
    require_float32(case)
    require_memory(case, 2 if case.direction == "forward" else 5)
    q, k, v, dout = (
        jax.numpy.asarray(_swapped(x)) for x in (inputs.q, inputs.k, inputs.v, inputs.dout)
    )

    mask, bias = (
        None if x is None else jax.numpy.asarray(x.reshape(1, -1, *x.shape[-2:]))
        for x in (inputs.mask, inputs.bias)
    )

    def attention(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
    ) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=case.causal)

    if case.direction == "forward":
        compiled = jax.jit(attention)
        return Task(
            lambda: compiled(q, k, v, bias, mask).block_until_ready(),
            lambda out: (_swapped(out),),
        )
    _, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, bias, mask), q, k, v)
    pull = jax.jit(lambda pullback, dout: pullback(dout))
    return Task(
        lambda: jax.block_until_ready(pull(pullback, dout)),
        lambda grads: tuple(map(_swapped, grads)),
    )


def _swapped(x: Array | jax.Array) -> Array:
    """Between (B, H, L, D) and (B, L, H, D)."""
    return np.ascontiguousarray(np.swapaxes(np.asarray(x), 1, 2))
