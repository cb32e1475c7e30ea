"""What every peer is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import Case
from machine import total_memory

Array = NDArray[Any]


class Unsupported(Exception):
    """The library cannot do a case; the message says why in a few words."""


@dataclass(frozen=True)
class Inputs:
    """Arrays of (B, H, L, D) that all peers share."""

    q: Array
    k: Array
    v: Array
    dout: Array

    @staticmethod
    def random(case: Case) -> Inputs:
        """Normal numbers, the same for every run."""
        rng = np.random.default_rng(0)

        def array(heads: int) -> Array:
            shape = (case.batch, heads, case.length, case.head_dim)
            return rng.standard_normal(shape, dtype=np.dtype(case.dtype).type)

        kv_heads = case.kv_heads or case.heads
        return Inputs(array(case.heads), array(kv_heads), array(kv_heads), array(case.heads))

    def expanded(self) -> Inputs:
        """Keys and values repeated for each query head, for a peer without grouped heads."""
        group = self.q.shape[1] // self.k.shape[1]
        if group == 1:
            return self
        k, v = (np.repeat(array, group, axis=1) for array in (self.k, self.v))
        return Inputs(self.q, k, v, self.dout)


@dataclass(frozen=True)
class Task:
    """A case made ready: what is timed, and how to see what it computed."""

    call: Callable[[], Any]
    """Computes once, to the end. Nothing that could be done before is done here."""
    arrays: Callable[[Any], tuple[Array, ...]]
    """Turns a result of `call` into (out,) or (dq, dk, dv), (B, H, L, D) each."""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around many calls."""


def require_float32(case: Case) -> None:
    """Refuse other dtypes."""
    if case.dtype != "float32":
        raise Unsupported(f"{case.dtype} is not measured")


def require_forward(case: Case) -> None:
    """Refuse gradients."""
    if case.direction != "forward":
        raise Unsupported("no backward")


def require_memory(case: Case, matrices: int) -> None:
    """Refuse cases whose matrices of scores would take more than a quarter of the memory."""
    needed = matrices * case.scores * np.dtype(case.dtype).itemsize
    if needed > total_memory() / 4:
        raise Unsupported("matrices of scores over a quarter of the memory")
