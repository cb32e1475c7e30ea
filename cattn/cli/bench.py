"""``cattn bench``: attention forward and backward beside plain NumPy."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cattn import attention, attention_backward, get_num_threads
from cattn._types import Array

_EPILOG = """\
Times are the best of several runs, float32. The difference is the largest one between any two
elements of the results; NumPy's own are as far from the truth.

examples:
  python -m cattn bench
  OMP_NUM_THREADS=1 python -m cattn bench --length 2048
"""


class Case(NamedTuple):
    """One problem: arrays are (heads, length, dim)."""

    heads: int
    length: int
    dim: int
    causal: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EPILOG
    # fmt: off
    parser.add_argument("--length", type=int, action="append", metavar="INT",
                        help="sequence length; may be repeated (default: 128 and 1024)")
    parser.add_argument("--heads", type=int, default=8, metavar="INT", help="default: 8")
    parser.add_argument("--dim", type=int, default=64, metavar="INT", help="default: 64")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from cattn.lm.errors import InputError

    lengths = options.length or [128, 1024]
    if min(*lengths, options.heads, options.dim) < 1:
        raise InputError("length, heads and dim: expected at least 1")
    print_table([Case(options.heads, n, options.dim, c) for n in lengths for c in (False, True)])
    return 0


def print_table(cases: list[Case]) -> None:
    """Time each case and print a row for its forward and one for its backward."""
    threads = get_num_threads()
    print(f"attention in float32 on {threads} thread{'s' * (threads > 1)}, milliseconds")
    print(f"{'':34}{'cattn':>9}{'NumPy':>9}{'speed-up':>10}{'largest difference':>20}")
    for case in cases:
        for name, ours, theirs, difference in _measure(case):
            kind = "causal" if case.causal else "dense"
            label = f"{name:<9}H{case.heads} L{case.length} D{case.dim} {kind}"
            print(f"{label:<34}{1e3 * ours:9.2f}{1e3 * theirs:9.2f}{theirs / ours:9.1f}×"
                  f"{difference:20.1e}")  # fmt: skip


def _measure(case: Case) -> list[tuple[str, float, float, float]]:
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, case.heads, case.length, case.dim), dtype=np.float32)
    causal = case.causal
    out, lse, _ = attention(q, k, v, causal=causal, return_lse=True)
    ours = attention_backward(dout, q, k, v, out, lse, causal=causal)
    theirs = numpy_backward(dout, q, k, v, causal)
    return [
        (
            "forward",
            _best_time(lambda: attention(q, k, v, causal=causal)),
            _best_time(lambda: numpy_forward(q, k, v, causal)),
            _difference([out], [numpy_forward(q, k, v, causal)[0]]),
        ),
        (
            "backward",
            _best_time(lambda: attention_backward(dout, q, k, v, out, lse, causal=causal)),
            _best_time(lambda: numpy_backward(dout, q, k, v, causal)),
            _difference(ours[:3], theirs),
        ),
    ]


def _best_time(
    call: Callable[[], Any], seconds: float = 0.3, least: int = 5, most: int = 50
) -> float:
    """Return the shortest of the runs that fit into some time; one run warms up."""
    call()
    best = float("inf")
    end = time.perf_counter() + seconds
    for i in range(most):
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end and i + 1 >= least:
            break
    return best


def _difference(a: Any, b: Any) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def numpy_forward(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, Array]:
    """Return (out, weights), shapes (H, L, D) and (H, L, L), as one writes it in NumPy."""
    s = q @ np.swapaxes(k, -1, -2)
    s *= np.float32(q.shape[-1] ** -0.5)
    if causal:
        s[..., np.triu(np.ones(s.shape[-2:], bool), 1)] = -np.inf
    s -= s.max(axis=-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(axis=-1, keepdims=True)
    return s @ v, s


def numpy_backward(
    dout: Array, q: Array, k: Array, v: Array, causal: bool
) -> tuple[Array, Array, Array]:
    """Return (dq, dk, dv), the weights computed again as cattn does."""
    out, p = numpy_forward(q, k, v, causal)
    dv = np.swapaxes(p, -1, -2) @ dout
    ds = dout @ np.swapaxes(v, -1, -2)
    ds -= (dout * out).sum(axis=-1, keepdims=True)
    ds *= p
    ds *= np.float32(q.shape[-1] ** -0.5)
    return ds @ k, np.swapaxes(ds, -1, -2) @ q, dv
