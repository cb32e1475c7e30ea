"""Random problems with their exact answers and error bounds, shared by the accuracy tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import bounds
import numpy as np

import cattn
from cattn import AttentionGrads, AttentionResult, reference


@dataclass(frozen=True)
class Case:
    """A problem by its sizes and options; `mask` and `bias` are shapes to draw, or None."""

    lq: int = 7
    lk: int = 9
    d: int = 8
    dv: int = 8
    hq: int = 1
    hkv: int = 1
    batch: tuple[int, ...] = ()
    causal: bool = False
    causal_offset: Any = None
    mask: tuple[int, ...] | None = None
    bias: tuple[int, ...] | None = None
    scale: float | None = None
    layout: str = "bhld"
    spread: float = 1.0  # standard deviation of q: large ones make peaked weights
    seed: int = 0


class Problem(NamedTuple):
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    options: dict[str, Any]
    dout: np.ndarray
    dlse: np.ndarray


class Forward(NamedTuple):
    exact: AttentionResult
    bound: AttentionResult


class Backward(NamedTuple):
    out: np.ndarray
    lse: np.ndarray
    exact: AttentionGrads
    bound: AttentionGrads


def exact_dtype(dtype):
    """Something more precise than `dtype` to compute the exact answer in."""
    return np.float64 if dtype == np.float32 else np.longdouble


@lru_cache(maxsize=4096)
def problem(case: Case, dtype) -> Problem:
    rng = np.random.default_rng([case.seed, case.lq, case.lk, case.d, case.dv])

    def draw(*shape, spread=1.0):
        return (rng.standard_normal(shape) * spread).astype(dtype)

    def heads(count, length, size, spread=1.0):
        rows = (length, count) if case.layout == "blhd" else (count, length)
        return draw(*case.batch, *rows, size, spread=spread)

    q = heads(case.hq, case.lq, case.d, case.spread)
    k = heads(case.hkv, case.lk, case.d)
    v = heads(case.hkv, case.lk, case.dv)
    options: dict[str, Any] = {"layout": case.layout}
    if case.causal:
        options |= {"causal": True, "causal_offset": case.causal_offset}
    if case.scale is not None:
        options["scale"] = case.scale
    if case.mask is not None:
        options["mask"] = rng.random(case.mask) < 0.6
    if case.bias is not None:
        bias = np.where(rng.random(case.bias) < 0.1, -np.inf, rng.standard_normal(case.bias))
        options["bias"] = bias.astype(dtype)
    dout = heads(case.hq, case.lq, case.dv)
    return Problem(q, k, v, options, dout, draw(*case.batch, case.hq, case.lq))


@lru_cache(maxsize=4096)
def forward(case: Case, dtype) -> Forward:
    q, k, v, options, *_ = problem(case, dtype)
    exact = reference.attention(
        q, k, v, **options, return_lse=True, return_weights=True, _dtype=exact_dtype(dtype)
    )
    return Forward(exact, bounds.attention_bound(q, k, v, **options))


@lru_cache(maxsize=4096)
def backward(case: Case, dtype) -> Backward:
    """The gradients as functions of out and lse, which are the exact ones rounded to `dtype`."""
    q, k, v, options, dout, dlse = problem(case, dtype)
    out, lse = (a.astype(dtype) for a in forward(case, dtype).exact[:2])
    options = {**options, "dlse": dlse, "grads": wanted(options)}
    exact = reference.attention_backward(
        dout, q, k, v, out, lse, **options, _dtype=exact_dtype(dtype)
    )
    bound = bounds.attention_backward_bound(dout, q, k, v, out, lse, **options)
    return Backward(out, lse, exact, bound)


def wanted(options) -> tuple[str, ...]:
    return ("q", "k", "v", "bias") if "bias" in options else ("q", "k", "v")


def check_forward(case: Case, dtype, record, **more) -> None:
    q, k, v, options, *_ = problem(case, dtype)
    exact, bound = forward(case, dtype)
    actual = cattn.attention(q, k, v, **options, **more, return_lse=True, return_weights=True)
    for name, *three in zip(AttentionResult._fields, actual, exact, bound, strict=True):
        assert three[0].dtype == dtype
        record(name, dtype, bounds.worst(*three, f"{name} of {case} {dtype}"))


def check_backward(case: Case, dtype, record, **more) -> None:
    q, k, v, options, dout, dlse = problem(case, dtype)
    out, lse, exact, bound = backward(case, dtype)
    grads = wanted(options)
    actual = cattn.attention_backward(
        dout, q, k, v, out, lse, dlse=dlse, grads=grads, **options, **more
    )
    for name, *three in zip(AttentionGrads._fields, actual, exact, bound, strict=True):
        assert three[0] is None or three[0].dtype == dtype
        record(name, dtype, bounds.worst(*three, f"{name} of {case} {dtype}"))
