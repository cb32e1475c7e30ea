"""Times cases in one process, library by library in turn, and writes a JSON line for each.

run.py starts one such process per instruction set and number of threads, because most libraries
read those settings only once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import timeit
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

import peers
from cases import Case
from fma_peak import FmaPeak
from peers.base import Array, Inputs, Task, Unsupported
from results import Result, Timing
from table import format_time

#: Seconds that one sample should last, so that the clock and a thread's wake-up do not count.
SAMPLE = 0.02
MIN_ROUNDS, MAX_ROUNDS = 3, 31


def main() -> None:
    """Measure the cases of a file of JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path, help="file with one case as JSON per line")
    parser.add_argument("results", type=Path, help="file that gets one result as JSON per line")
    parser.add_argument("--peers", default="", help="names, separated by commas")
    parser.add_argument("--seconds", type=float, default=10, help="for the rounds of one case")
    arguments = parser.parse_args()
    cases = [Case(**json.loads(line)) for line in arguments.cases.read_text().splitlines()]

    libraries, missing = peers.load(["cattn", *filter(None, arguments.peers.split(","))])
    for name, reason in missing.items():
        _say(f"{name}: skipped, {reason}\n")
    try:
        fma_peak = FmaPeak(cases[0].isa)
    except RuntimeError as error:
        _say(f"FMA peak: skipped, {error}\n")
        fma_peak = None

    for number, case in enumerate(cases, start=1):
        _say(f"[{number}/{len(cases)}] {case.name}: ")
        result = measure(case, libraries, arguments.seconds, fma_peak)
        result.skipped.update(missing)
        _say(f"{format_time(result.cattn.median)}\n")
        with arguments.results.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")


def measure(
    case: Case, libraries: Mapping[str, peers.Prepare], seconds: float, fma_peak: FmaPeak | None
) -> Result:
    """Time one case in rounds, in each of which every library and the peak have their turn."""
    inputs = Inputs.random(case)
    tasks: dict[str, Task] = {}
    skipped: dict[str, str] = {}
    for name, prepare in libraries.items():
        try:
            tasks[name] = prepare(case, inputs)
        except Unsupported as reason:
            skipped[name] = str(reason)

    differences = _differences(tasks)
    alone = {name: _time(task, 1) for name, task in tasks.items()}
    repeats = {name: max(1, round(SAMPLE / once)) for name, once in alone.items()}
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    peaks = []
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() < end):
        rounds += 1
        if fma_peak is not None:
            _wait_until_idle()
            peaks.append(fma_peak.measure(case.threads or 1))
        for name, task in tasks.items():
            _wait_until_idle()
            samples[name].append(_time(task, repeats[name]))

    timings = {}
    for name, times in samples.items():
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        timings[name] = Timing(median, low, high, rounds, repeats[name], differences[name])
    return Result(case, timings, skipped, max(peaks, default=None))


def _time(task: Task, repeats: int) -> float:
    """Seconds of one call, over some in a row; a short one is first called once to wake threads."""
    with task.context():
        if repeats > 1:
            task.call()
        return timeit.Timer(task.call).timeit(repeats) / repeats


def _wait_until_idle() -> None:
    """Let the threads of the last library stop spinning: they would take cores from the next."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def _differences(tasks: Mapping[str, Task]) -> dict[str, float]:
    """Call each once and hold its result against cattn's, which comes first."""
    expected: tuple[Array, ...] = ()
    differences = {}
    for name, task in tasks.items():
        with task.context():
            result = task.call()
        arrays = task.arrays(result)
        expected = expected or arrays
        pairs = zip(expected, arrays, strict=True)
        differences[name] = float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))
    return differences


def _say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
