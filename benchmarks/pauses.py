"""Time of a small call after a pause, as in a server that is asked now and then.

Threads that have waited for a while are asleep, and to wake them takes longer than a small call.

python benchmarks/pauses.py                      cattn and PyTorch, H1 L128 D64, after 0 to 20 ms
python benchmarks/pauses.py --length 64 --heads 4

Each library has a process of its own, so that no other's threads are about.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import peers
from cases import Case
from environment import allowed_cores
from peers.base import Inputs
from table import format_time, markdown

PAUSES_MS = (0, 1, 5, 20)
LIBRARIES = ("cattn", "torch")


def main() -> None:
    """Measure every library after every pause and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=1, help="heads (default 1)")
    parser.add_argument("--length", type=int, default=128, help="queries and keys (default 128)")
    parser.add_argument("--calls", type=int, default=50, help="calls a pause (default 50)")
    parser.add_argument("--peers", default=",".join(LIBRARIES), help="libraries to time")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a fresh process is to measure
    arguments = parser.parse_args()
    case = Case("forward", arguments.heads, arguments.length, 64, threads=len(allowed_cores()))
    if arguments.one:
        print(json.dumps(measure(arguments.one, case, arguments.calls)))
        return
    rows = []
    for name in arguments.peers.split(","):
        print(name, file=sys.stderr)
        times = _in_fresh_process(name, sys.argv[1:])
        rows.append([name, *(format_time(x) if x else "–" for x in times)])
    header = [case.name, *(f"after {pause} ms" for pause in PAUSES_MS)]
    print(markdown(header, rows))


def measure(name: str, case: Case, calls: int) -> list[float | None]:
    """Median seconds of a call after each pause; None where the library is not installed."""
    libraries, _ = peers.load([name])
    if name not in libraries:
        return [None] * len(PAUSES_MS)
    task = libraries[name](case, Inputs.random(case))
    with task.context():
        return [_median(task.call, pause / 1e3, calls) for pause in PAUSES_MS]


def _median(call: Callable[[], Any], pause: float, calls: int) -> float:
    for _ in range(3):  # what comes once
        call()
    times = []
    for _ in range(calls):
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _in_fresh_process(name: str, arguments: Sequence[str]) -> list[float | None]:
    command = [sys.executable, __file__, *arguments, "--one", name]
    times: list[float | None] = json.loads(subprocess.check_output(command, text=True))
    return times


if __name__ == "__main__":
    main()
