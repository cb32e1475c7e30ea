"""What each option costs: its time as a multiple of plain dense attention, in one run.

Every row times the variant and what it is held against in turn, forward and backward, and prints
the median of the ratios beside the most that it may be.

  python benchmarks/variants.py                     all rows, about a minute
  python benchmarks/variants.py --only window       rows whose name contains "window"
  python benchmarks/variants.py --memory            peak resident memory at L 65,536 instead
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattn
import numpy as np

import machine
from table import format_time, markdown

Call = Callable[[], Any]


@dataclass
class Row:
    """A variant, what it is held against, and the share of that time that is fair."""

    name: str
    length: int
    limit: float
    options: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    """Of the dense scores; the ratio is to this share of the dense time."""


def rows(rng: np.random.Generator) -> list[Row]:
    """All variants of H8 D64 that attend one sequence to itself."""
    length, heads = 2048, 8
    bias = rng.standard_normal((heads, length, length), dtype=np.float32)
    window, long = 256, 8192
    scores = sum(min(i + 1, window) for i in range(long))
    blocks, blocked = 8, 4096
    block_of = np.arange(blocked) // (blocked // blocks)
    return [
        Row(f"window {window}", long, 1.5, {"window": (window - 1, 0)}, scores / long**2),
        Row("bias, full shape", length, 1.35, {"bias": bias}),
        Row("mask, full shape, 3/4 open", length, 1.35, {"mask": rng.random(bias.shape) < 0.75}),
        Row("softcap", length, 1.6, {"softcap": 20.0}),
        Row("ALiBi", length, 1.2, {"alibi_slopes": 2.0 ** -np.arange(1, 9, dtype=np.float32)}),
        Row("dropout 0.1", length, 1.5, {"dropout": 0.1, "seed": 1}),
        Row(
            f"mask of {blocks} diagonal blocks",
            blocked,
            0.25,
            {"mask": block_of[:, None] == block_of},
        ),
        Row("sinks", length, 1.05, {"sinks": np.zeros(heads, np.float32)}),
    ]


def main() -> None:
    """Time the rows and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose name contains TEXT")
    parser.add_argument("--seconds", type=float, default=3.0, help="to spend on each (%(default)s)")
    parser.add_argument("--memory", action="store_true", help="peak resident memory at L 65,536")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if arguments.memory:
        print(memory())
        return
    print(machine.text(machine.describe([])), file=sys.stderr)
    rng = np.random.default_rng(0)
    results = []
    for row in [r for r in rows(rng) if arguments.only in r.name]:
        for direction, variant, dense in _calls(row, rng):
            results.append(_compare(row, direction, variant, dense, arguments.seconds))
    if arguments.only in "packed sequences":
        results += _packed(rng, arguments.seconds)
    header = ["variant", "pass", "time", "held against", "ratio", "at most"]
    print(markdown(header, [_cells(r) for r in results]))
    if arguments.out:
        described = machine.describe([])
        arguments.out.write_text(json.dumps({"machine": described, "rows": results}, indent=1))


def _calls(row: Row, rng: np.random.Generator) -> list[tuple[str, Call, Call]]:
    q, k, v, dout = rng.standard_normal((4, 8, row.length, 64), dtype=np.float32)

    def pair(options: dict[str, Any]) -> tuple[Call, Call]:
        out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
        return (
            lambda: cattn.attention(q, k, v, **options),
            lambda: cattn.attention_backward(dout, q, k, v, out, lse, **options),
        )

    names = ("forward", "backward")
    return list(zip(names, pair(row.options), pair({}), strict=True))


def _packed(rng: np.random.Generator, seconds: float) -> list[dict[str, Any]]:
    """Sixteen uneven sequences in one call against as many calls."""
    lengths = np.geomspace(64, 2048, 16).astype(int)
    starts = np.concatenate([[0], np.cumsum(rng.permutation(lengths))])
    q, k, v, dout = rng.standard_normal((4, starts[-1], 8, 64), dtype=np.float32)
    parts = [slice(a, b) for a, b in itertools.pairwise(starts)]
    out, lse, _ = cattn.attention_varlen(q, k, v, starts, starts, return_lse=True)
    options: dict[str, Any] = {"layout": "blhd"}

    def one_by_one() -> None:
        for part in parts:
            cattn.attention(q[part], k[part], v[part], **options)

    def one_by_one_backward() -> None:
        for part in parts:
            cattn.attention_backward(
                dout[part], q[part], k[part], v[part], out[part], lse[:, part], **options
            )

    row = Row("packed sequences, 16 uneven", int(starts[-1]), 1.1)
    forward = lambda: cattn.attention_varlen(q, k, v, starts, starts)  # noqa: E731
    backward = lambda: cattn.attention_varlen_backward(  # noqa: E731
        dout, q, k, v, out, lse, starts, starts
    )
    return [
        _compare(row, "forward", forward, one_by_one, seconds),
        _compare(row, "backward", backward, one_by_one_backward, seconds),
    ]


def _compare(row: Row, direction: str, variant: Call, held: Call, seconds: float) -> dict[str, Any]:
    variant(), held()
    times: list[float] = []
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while len(ratios) < 5 or (time.perf_counter() < end and len(ratios) < 101):
        one, other = _time(variant), _time(held)
        times.append(one)
        ratios.append(one / (other * row.share))
    print(f"{row.name}, {direction}", file=sys.stderr)
    ratio = statistics.median(ratios)
    return {
        "variant": row.name,
        "pass": direction,
        "length": row.length,
        "seconds": statistics.median(times),
        "share": row.share,
        "ratio": ratio,
        "limit": row.limit,
    }


def _time(call: Call) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _cells(r: dict[str, Any]) -> list[str]:
    against = "dense" if r["share"] == 1 else f"{100 * r['share']:.1f} % of dense"
    if r["variant"].startswith("packed"):
        against = "one call each"
    name = f"{r['variant']}, L{r['length']}"
    ratio, limit = f"{r['ratio']:.2f}", f"{r['limit']:.2f}"
    return [name, r["pass"], format_time(r["seconds"]), against, ratio, limit]


def memory() -> str:
    """Peak resident memory of window attention at L 65,536 over what the arrays take."""
    length, heads, size = 65536, 4, 64
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, heads, length, size), dtype=np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options: dict[str, Any] = {"window": (255, 0), "softcap": 20.0, "dropout": 0.1, "seed": 1}
    out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
    forward = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cattn.attention_backward(dout, q, k, v, out, lse, **options)
    backward = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = q.nbytes / 1e6
    scores = 4 * heads * length**2 / 1e9
    return (
        f"H{heads} L{length} D{size}, window 256, softcap, dropout: one of q, k, v, out takes "
        f"{one:.0f} MB, the scores would take {scores:.0f} GB\n"
        f"inputs: {before / 1024:.0f} MB resident\n"
        f"forward: {(forward - before) / 1024:.0f} MB more\n"
        f"backward: {(backward - forward) / 1024:.0f} MB more\n"
    )


if __name__ == "__main__":
    main()
