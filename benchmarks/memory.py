"""Peak memory beyond the inputs against sequence length, each in a fresh process.

Forward is one call; backward is the forward, what it keeps, and the backward.

python benchmarks/memory.py                            cattn, PyTorch and NumPy, H8 D64
python benchmarks/memory.py --out --plot memory.png    saved to results/ and drawn
python benchmarks/memory.py --load FILE.json           what was measured before

Needs Linux: it reads and resets the high-water mark in /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import machine
import peers
from cases import Case, Direction
from peers.base import Inputs, Unsupported
from results import Memory, Peaks
from table import markdown

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LIBRARIES = ("cattn", "torch", "numpy")


def main() -> None:
    """Measure every library at every length, forward and backward."""
    arguments = _arguments()
    if arguments.one:
        (name,) = arguments.peers.split(",")
        print(json.dumps(measure(name, Case(**json.loads(arguments.one)))))
        return
    if arguments.load:
        memory = Memory.load(arguments.load)
    else:
        lengths = [int(length) for length in arguments.lengths.split(",")]
        memory = measure_all(arguments.peers.split(","), lengths)
    print(f"Peak memory beyond the inputs, MB, on {memory.machine['cpu']}\n\n{table(memory)}")
    if arguments.out:
        memory.save(arguments.out)
        print(f"\nsaved to {arguments.out}", file=sys.stderr)
    if arguments.plot:
        from charts import memory_against_length, save  # only charts need Matplotlib

        save(memory_against_length(memory), arguments.plot)


def measure_all(names: Sequence[str], lengths: Sequence[int]) -> Memory:
    """One fresh process for each library, direction and length."""
    memory = Memory(machine.describe([]))
    directions: tuple[Direction, ...] = ("forward", "backward")
    cases = [Case(d, 8, length, 64, threads=1) for d in directions for length in lengths]
    for number, case in enumerate(cases, start=1):
        print(f"[{number}/{len(cases)}] {case.name}", file=sys.stderr)
        peaks = Peaks(case)
        for name in names:
            measured = _in_fresh_process(name, case)
            if isinstance(measured, int):
                peaks.peak_bytes[name] = measured
            else:
                peaks.skipped[name] = measured
        memory.peaks.append(peaks)
    return memory


def measure(name: str, case: Case) -> int | str:
    """Bytes by which a case raises the high-water mark, or why the library cannot do it."""
    libraries, missing = peers.load([name])
    if missing:
        return missing[name]
    small = replace(case, length=16)
    try:
        # A tiny call first, for what a library allocates once.
        libraries[name](small, Inputs.random(small)).call()
        inputs = Inputs.random(case)
        Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
        before = _high_water_mark()
        task = libraries[name](case, inputs)
    except Unsupported as reason:
        return str(reason)
    with task.context():
        task.call()
    return _high_water_mark() - before


def table(memory: Memory) -> str:
    """One row a case, in megabytes, and below it why figures are missing."""
    names = memory.libraries
    rows = [
        [
            peaks.case.name,
            *(f"{p / 1e6:.1f}" if (p := peaks.peak_bytes.get(name)) else "–" for name in names),
        ]
        for peaks in memory.peaks
    ]
    reasons: dict[str, list[str]] = {}
    for peaks in memory.peaks:
        for name, reason in peaks.skipped.items():
            reasons.setdefault(f"{name}: {reason}", []).append(peaks.case.name)
    lines = [f"- {reason} ({', '.join(cases)})" for reason, cases in reasons.items()]
    return "\n".join([markdown(["case", *names], rows), *(["", *lines] if lines else [])])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "results" / machine.file_name(machine.describe([]))
    beside = default.with_name(f"{default.stem}-memory.json")
    parser.add_argument("--peers", default=",".join(LIBRARIES), help="default: %(default)s")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="%(default)s")
    parser.add_argument(
        "--out", type=Path, nargs="?", const=beside, help=f"JSON file (alone: {beside.name})"
    )
    parser.add_argument("--load", type=Path, metavar="FILE", help="show it instead of measuring")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG file")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the fresh process: case as JSON
    return parser.parse_args()


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def _in_fresh_process(name: str, case: Case) -> int | str:
    one = json.dumps(asdict(case))
    command = [sys.executable, __file__, "--peers", name, "--one", one]
    measured: int | str = json.loads(subprocess.check_output(command, text=True))
    return measured


if __name__ == "__main__":
    main()
