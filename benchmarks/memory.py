"""Peak memory beyond the inputs against sequence length, each in a fresh process.

Forward is one call; backward is the forward, what it keeps, and the backward.

  python benchmarks/memory.py                        cattn, PyTorch and NumPy, H8 D64
  python benchmarks/memory.py --out memory.json

Needs Linux: it reads and resets the high-water mark in /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import machine
import peers
from cases import Case, Direction
from peers.base import Inputs, Unsupported
from table import markdown

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LIBRARIES = ("cattn", "torch", "numpy")


def main() -> None:
    """Measure every library at every length, forward and backward."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default=",".join(LIBRARIES), help="default: %(default)s")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="%(default)s")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the fresh process: case as JSON
    arguments = parser.parse_args()
    names = arguments.peers.split(",")
    if arguments.one:
        print(json.dumps(measure(names[0], Case(**json.loads(arguments.one)))))
        return
    lengths = [int(length) for length in arguments.lengths.split(",")]
    directions: tuple[Direction, ...] = ("forward", "backward")
    rows = []
    for direction in directions:
        for length in lengths:
            case = Case(direction, 8, length, 64, threads=1)
            print(case.name, file=sys.stderr)
            rows.append((case.name, {name: _in_fresh_process(name, case) for name in names}))
    print("Peak memory beyond the inputs, MB\n")
    print(markdown(["case", *names], [[name, *map(_cell, by.values())] for name, by in rows]))
    if arguments.out:
        described = machine.describe([])
        data = {"machine": described, "peak_bytes": dict(rows)}
        arguments.out.write_text(json.dumps(data, indent=1) + "\n")


def measure(name: str, case: Case) -> int | None:
    """Bytes by which a case raises the high-water mark; None if the library cannot do it."""
    libraries, _ = peers.load([name])
    small = replace(case, length=16)
    try:
        # A tiny call first, for what a library allocates once.
        libraries[name](small, Inputs.random(small)).call()
        inputs = Inputs.random(case)
        Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
        before = _high_water_mark()
        task = libraries[name](case, inputs)
    except (KeyError, Unsupported):
        return None
    with task.context():
        task.call()
    return _high_water_mark() - before


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _in_fresh_process(name: str, case: Case) -> int | None:
    one = json.dumps(asdict(case))
    command = [sys.executable, __file__, "--peers", name, "--one", one]
    measured: int | None = json.loads(subprocess.check_output(command, text=True))
    return measured


def _cell(peak: int | None) -> str:
    return "–" if peak is None else f"{peak / 1e6:.1f}"


if __name__ == "__main__":
    main()
