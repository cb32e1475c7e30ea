"""cattn itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import cattn
import numpy as np

from cases import Case
from peers.base import Array, Inputs, Task


def prepare(case: Case, inputs: Inputs) -> Task:
    """`cattn.attention`, or `cattn.attention_backward` from a saved output and log-sum-exp."""
    q, k, v, dout = inputs.q, inputs.k, inputs.v, inputs.dout
    options: dict[str, Any] = {"causal": case.causal, "mask": inputs.mask, "bias": inputs.bias}
    if case.precision != "highest":
        options["precision"] = case.precision
    if case.direction == "forward":
        return Task(
            lambda: cattn.attention(q, k, v, **options),
            lambda out: (in_numpy(out),),
            partial(_threads, case),
        )
    saved = cattn.attention(q, k, v, **options, return_lse=True)
    return Task(
        lambda: cattn.attention_backward(dout, q, k, v, saved.out, saved.lse, **options),
        lambda grads: tuple(in_numpy(x) for x in (grads.dq, grads.dk, grads.dv)),
        partial(_threads, case),
    )


@contextmanager
def _threads(case: Case) -> Iterator[None]:
    before = cattn.get_num_threads()
    cattn.set_num_threads(case.threads)
    try:
        yield
    finally:
        cattn.set_num_threads(before)


def in_numpy(x: Array) -> Array:
    """Half types in a type of NumPy's own."""
    return x if x.dtype.kind == "f" and x.itemsize > 2 else x.astype(np.float32)
