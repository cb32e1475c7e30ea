"""Attention as the textbooks have it, in plain NumPy: the scores as whole matrices."""

from __future__ import annotations

import numpy as np

from cases import Case
from peers.base import Array, Inputs, Task, require_float32, require_memory


def prepare(case: Case, inputs: Inputs) -> Task:
    """Forward from scratch; backward from the weights that its forward would have kept."""
    if case.dtype != "float64":
        require_float32(case)
    require_memory(case, 1 if case.direction == "forward" else 2)
    # Heads of a group get an axis of their own, along which keys and values broadcast.
    kv_heads = inputs.k.shape[1]

    def grouped(x: Array) -> Array:
        return x.reshape(case.batch, kv_heads, -1, *x.shape[-2:])

    q, k, v, dout = map(grouped, (inputs.q, inputs.k, inputs.v, inputs.dout))
    scale = q.dtype.type(case.head_dim**-0.5)
    shape = inputs.q.shape
    bias = inputs.added()
    if bias is not None and bias.shape[0] > 1:
        bias = bias.reshape(kv_heads, -1, *bias.shape[-2:])
    if case.causal:
        scores = np.full((case.query_length, case.length), -np.inf, dtype=q.dtype)
        future = np.triu(scores, k=1 + case.length - case.query_length)
        bias = future if bias is None else bias + future

    if case.direction == "forward":
        return Task(
            lambda: weights(q, k, scale, bias) @ v,
            lambda out: (out.reshape(shape),),
        )
    p = weights(q, k, scale, bias)
    return Task(
        lambda: backward(p, q, k, v, dout, scale),
        lambda grads: tuple(
            g.reshape(x.shape) for g, x in zip(grads, (inputs.q, inputs.k, inputs.v), strict=True)
        ),
    )


def weights(q: Array, k: Array, scale: np.floating, bias: Array | None) -> Array:
    """softmax(scale · q kᵀ + bias), each step in place."""
    s: Array = (q * scale) @ k.swapaxes(-1, -2)
    if bias is not None:
        s += bias
    s -= s.max(axis=-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(axis=-1, keepdims=True)
    return s


def backward(
    p: Array, q: Array, k: Array, v: Array, dout: Array, scale: np.floating
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v from the weights p; those of k and v sum over their group."""
    dv = (p.swapaxes(-1, -2) @ dout).sum(axis=2)
    ds = dout @ v.swapaxes(-1, -2)
    ds -= np.einsum("...ij,...ij->...i", p, ds)[..., None]
    ds *= p
    dq = (ds @ k) * scale
    dk = (ds.swapaxes(-1, -2) @ q).sum(axis=2) * scale
    return dq, dk, dv
