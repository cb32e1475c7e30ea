"""What every peer is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import Case
from machine import total_memory

Array = NDArray[Any]


class Unsupported(Exception):
    """The library cannot do a case; the message says why in a few words."""


def dtype_of(case: Case) -> np.dtype[Any]:
    """NumPy does not know bfloat16 by itself."""
    if case.dtype != "bfloat16":
        return np.dtype(case.dtype)
    try:
        import ml_dtypes
    except ImportError:
        raise Unsupported("bfloat16 needs ml_dtypes") from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


@dataclass(frozen=True)
class Inputs:
    """Arrays of (B, H, L, D) that all peers share; those of queries may be shorter."""

    q: Array
    k: Array
    v: Array
    dout: Array
    mask: Array | None = None
    """Of (Lq, L), true where a query attends a key; None is everywhere."""
    bias: Array | None = None
    """Of (H, Lq, L), added to the scores."""

    @staticmethod
    def random(case: Case) -> Inputs:
        """Normal numbers, the same for every run."""
        rng = np.random.default_rng(0)

        def array(heads: int, length: int) -> Array:
            shape = (case.batch, heads, length, case.head_dim)
            if case.dtype == "float64":
                return rng.standard_normal(shape)
            return rng.standard_normal(shape, dtype=np.float32).astype(dtype_of(case))

        of_queries = case.heads, case.query_length
        of_keys = case.kv_heads or case.heads, case.length
        plane = case.query_length, case.length
        return Inputs(
            array(*of_queries),
            array(*of_keys),
            array(*of_keys),
            array(*of_queries),
            rng.random(plane, dtype=np.float32) < 0.75 if case.mask else None,
            rng.standard_normal((case.heads, *plane), dtype=np.float32) if case.bias else None,
        )

    def expanded(self) -> Inputs:
        """Keys and values repeated for each query head, for a peer without grouped heads."""
        group = self.q.shape[1] // self.k.shape[1]
        if group == 1:
            return self
        k, v = (np.repeat(array, group, axis=1) for array in (self.k, self.v))
        return replace(self, k=k, v=v)

    def added(self) -> Array | None:
        """Bias, or mask as one, of (H or 1, Lq, L), for a peer that takes nothing else."""
        if self.mask is None:
            return self.bias
        lowest = np.where(self.mask, 0, -np.inf)[None].astype(np.float32)
        return lowest if self.bias is None else self.bias + lowest


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
    require_highest(case)


def require_highest(case: Case) -> None:
    """Refuse float32 products of lower precision: that of the highest is the one to compare."""
    if case.precision != "highest":
        raise Unsupported("has no such precision")


def require_forward(case: Case) -> None:
    """Refuse gradients."""
    if case.direction != "forward":
        raise Unsupported("no backward")


def require_memory(case: Case, matrices: int) -> None:
    """Refuse cases whose matrices of scores would take more than half of the memory."""
    needed = matrices * case.scores * dtype_of(case).itemsize
    if needed > total_memory() / 2:
        raise Unsupported(f"would need {needed / 1e9:.0f} GB for its scores")
