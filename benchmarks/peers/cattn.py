"""cattn itself."""

from __future__ import annotations

import cattn

from cases import Case
from peers.base import Inputs, Task


def prepare(case: Case, inputs: Inputs) -> Task:
    """`cattn.attention`, or `cattn.attention_backward` from a saved output and log-sum-exp."""
    q, k, v, dout = inputs.q, inputs.k, inputs.v, inputs.dout
    if case.direction == "forward":
        return Task(lambda: cattn.attention(q, k, v, causal=case.causal), lambda out: (out,))
    saved = cattn.attention(q, k, v, causal=case.causal, return_lse=True)
    return Task(
        lambda: cattn.attention_backward(dout, q, k, v, saved.out, saved.lse, causal=case.causal),
        lambda grads: (grads.dq, grads.dk, grads.dv),
    )
