"""Random problems with their exact answers and error bounds, shared by the accuracy tests.

Problems of half types are exact in float64, and so are their answers but for the last rounding.
"""

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
    """A problem by its sizes and options; `mask` and `bias` are shapes to draw, or None.

    Of what is drawn per head or batch entry: `alibi` is "head" or "entry", `lengths` and `offsets`
    say whether.
    """

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
    window: tuple[int | None, int | None] | None = None
    softcap: float | None = None
    alibi: str | None = None
    sinks: bool = False
    lengths: bool = False
    offsets: bool = False
    dropout: float = 0.0
    parameters: str | None = None  # dtype of bias, sinks and slopes, if not q's
    precision: str = "highest"


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


class Tangent(NamedTuple):
    moves: tuple[np.ndarray, ...]
    exact: tuple[np.ndarray, ...]
    bound: tuple[np.ndarray, ...]


def exact_dtype(dtype):
    """Something more precise than `dtype` to compute the exact answer in."""
    return np.longdouble if dtype == np.float64 else np.float64


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
    own = np.dtype(case.parameters or dtype)
    options: dict[str, Any] = {"layout": case.layout}
    if case.precision != "highest":
        options["precision"] = case.precision
    if case.causal:
        options |= {"causal": True, "causal_offset": case.causal_offset}
    if case.scale is not None:
        options["scale"] = case.scale
    if case.mask is not None:
        options["mask"] = rng.random(case.mask) < 0.6
    if case.bias is not None:
        bias = np.where(rng.random(case.bias) < 0.1, -np.inf, rng.standard_normal(case.bias))
        options["bias"] = bias.astype(own)
    if case.window is not None:
        options["window"] = case.window
    if case.softcap is not None:
        options["softcap"] = case.softcap
    if case.alibi is not None:
        lead = case.batch if case.alibi == "entry" else ()
        options["alibi_slopes"] = rng.standard_normal((*lead, case.hq)).astype(own)
    if case.sinks:
        options["sinks"] = (2 * rng.standard_normal(case.hq)).astype(own)
    if case.lengths:
        options["kv_lengths"] = rng.integers(0, case.lk + 1, case.batch)
    if case.offsets:
        options["causal_offset"] = rng.integers(-case.lq // 2, case.lk + 1, case.batch)
    if case.dropout:
        options |= {"dropout": case.dropout, "seed": case.seed + 2**40}
    dout = heads(case.hq, case.lq, case.dv)
    dlse = draw(*case.batch, case.hq, case.lq).astype(bounds.computed_in(dtype))
    return Problem(q, k, v, options, dout, dlse)


def forward(case: Case, dtype) -> Forward:
    arithmetic = bounds.arithmetic(dtype, case.precision)
    return Forward(exact_forward(case, dtype), forward_bound(case, dtype, arithmetic))


@lru_cache(maxsize=4096)
def exact_forward(case: Case, dtype) -> AttentionResult:
    q, k, v, options, *_ = problem(case, dtype)
    return reference.attention(
        q, k, v, **options, return_lse=True, return_weights=True, _dtype=exact_dtype(dtype)
    )


# Bounds depend on the current instruction set, as far as its arithmetic differs.
@lru_cache(maxsize=4096)
def forward_bound(case: Case, dtype, arithmetic) -> AttentionResult:
    q, k, v, options, *_ = problem(case, dtype)
    return bounds.attention_bound(q, k, v, **options)


def backward(case: Case, dtype) -> Backward:
    """The gradients as functions of out and lse, which are the exact ones, rounded."""
    arithmetic = bounds.arithmetic(dtype, case.precision)
    return Backward(*exact_backward(case, dtype), backward_bound(case, dtype, arithmetic))


@lru_cache(maxsize=4096)
def exact_backward(case: Case, dtype):
    q, k, v, options, dout, dlse = problem(case, dtype)
    exact = exact_forward(case, dtype)
    out, lse = exact.out.astype(dtype), exact.lse.astype(dlse.dtype)
    options = {**options, "dlse": dlse, "grads": wanted(options)}
    exact = reference.attention_backward(
        dout, q, k, v, out, lse, **options, _dtype=exact_dtype(dtype)
    )
    return out, lse, exact


@lru_cache(maxsize=4096)
def backward_bound(case: Case, dtype, arithmetic) -> AttentionGrads:
    q, k, v, options, dout, dlse = problem(case, dtype)
    out, lse, _ = exact_backward(case, dtype)
    return bounds.attention_backward_bound(
        dout, q, k, v, out, lse, **options, dlse=dlse, grads=wanted(options)
    )


@lru_cache(maxsize=1024)
def tangent(case: Case, dtype) -> Tangent:
    q, k, v, options, *_ = problem(case, dtype)
    rng = np.random.default_rng(case.seed)
    moves = tuple(rng.standard_normal(a.shape).astype(dtype) for a in (q, k, v))
    exact = reference.attention_jvp(q, k, v, *moves, **options, _dtype=exact_dtype(dtype))
    return Tangent(moves, exact, bounds.attention_jvp_bound(q, k, v, *moves, **options))


def wanted(options) -> tuple[str, ...]:
    return ("q", "k", "v", *(name for name in ("bias", "sinks") if name in options))


def check_forward(case: Case, dtype, record, **more) -> None:
    q, k, v, options, *_ = problem(case, dtype)
    exact, bound = forward(case, dtype)
    actual = cattn.attention(q, k, v, **options, **more, return_lse=True, return_weights=True)
    for name, *three in zip(AttentionResult._fields, actual, exact, bound, strict=True):
        assert three[0].dtype == (bounds.computed_in(dtype) if name == "lse" else dtype)
        record(name, dtype, bounds.worst(*three, f"{name} of {case} {dtype}"))
    # Weights need fewer digits where no lse is wanted.
    alone = cattn.attention(q, k, v, **options, **more)
    record("out", dtype, bounds.worst(alone, exact.out, bound.out, f"out of {case} {dtype}, alone"))


def check_backward(case: Case, dtype, record, **more) -> None:
    q, k, v, options, dout, dlse = problem(case, dtype)
    out, lse, exact, bound = backward(case, dtype)
    grads = wanted(options)
    actual = cattn.attention_backward(
        dout, q, k, v, out, lse, dlse=dlse, grads=grads, **options, **more
    )
    own = np.dtype(case.parameters or dtype)
    for name, *three in zip(AttentionGrads._fields, actual, exact, bound, strict=True):
        worst = bounds.worst(*three, f"{name} of {case} {dtype}")
        if three[0] is not None:
            assert three[0].dtype == (own if name[1:] in options else dtype)
            record(name, dtype, worst)


def check_tangent(case: Case, dtype, record, **more) -> None:
    q, k, v, options, *_ = problem(case, dtype)
    moves, exact, bound = tangent(case, dtype)
    actual = cattn.attention_jvp(q, k, v, *moves, **options, **more)
    for name, *three in zip(("out-jvp", "dout-jvp"), actual, exact, bound, strict=True):
        assert three[0].dtype == dtype
        record(name, dtype, bounds.worst(*three, f"{name} of {case} {dtype}"))
