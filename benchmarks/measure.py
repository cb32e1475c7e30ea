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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import peers
from budget import MIN_ROUNDS, Budget
from cases import Case
from fma_peak import FmaPeak
from peers import cattn
from peers.base import Array, Inputs, Task, Unsupported
from results import Result, Timing
from table import format_time

#: Seconds that one sample should last, so that the clock and a thread's wake-up do not count.
SAMPLE = 0.02
MAX_ROUNDS = 31
#: Before a sample a task is called untimed for so many seconds, at least once, to wake its threads:
#: cattn wakes none for the first small calls of a row.
WARM_UP = 0.003
#: But not if a call takes so many seconds: then half of a millisecond does not tell.
SHORT_CALL = 0.1
#: A first call that took so many seconds spent them on the work, not on getting ready for it.
LONG_CALL = 5.0


def main() -> None:
    """Measure the cases of a file of JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path, help="file with one case as JSON per line")
    parser.add_argument("results", type=Path, help="file that gets one result as JSON per line")
    parser.add_argument("--peers", default="", help="names, separated by commas")
    parser.add_argument("--seconds", type=float, default=10, help="for the rounds of one case")
    parser.add_argument("--before", type=int, default=0, help="cases measured before these")
    parser.add_argument("--after", type=int, default=0, help="cases to come after these")
    parser.add_argument("--in-turn", action="store_true", help="all cases in turn, cattn alone")
    arguments = parser.parse_args()
    cases = [Case(**json.loads(line)) for line in arguments.cases.read_text().splitlines()]

    def save(result: Result) -> None:
        with arguments.results.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    if arguments.in_turn:
        for result in compare(cases, arguments.seconds):
            save(result)
        return
    libraries, missing = peers.load(["cattn", *filter(None, arguments.peers.split(","))])
    for name, reason in missing.items():
        _say(f"{name}: skipped, {reason}\n")
    try:
        fma_peak = FmaPeak(cases[0].isa)
    except RuntimeError as error:
        _say(f"FMA peak: skipped, {error}\n")
        fma_peak = None

    budget = Budget(arguments.seconds)
    total = arguments.before + len(cases) + arguments.after
    for index, case in enumerate(cases):
        left = budget.expect(cases[index:]) + arguments.after * arguments.seconds
        progress = f"{arguments.before + index + 1}/{total}, {_minutes(left)} left"
        _say(f"[{progress}] {case.name}: ")
        result = measure(case, libraries, arguments.seconds, fma_peak, budget)
        result.skipped.update(missing)
        _say(f"{format_time(result.cattn.median)}\n")
        save(result)


def measure(
    case: Case,
    libraries: Mapping[str, peers.Prepare],
    seconds: float,
    fma_peak: FmaPeak | None,
    budget: Budget,
) -> Result:
    """Time one case in rounds, in each of which every library and the peak have their turn."""
    inputs = Inputs.random(case)
    tasks: dict[str, Task] = {}
    skipped: dict[str, str] = {}
    for name, prepare in libraries.items():
        try:
            budget.require_time(name, case)
            tasks[name] = prepare(case, inputs)
        except Unsupported as reason:
            skipped[name] = str(reason)

    differences, first = _first_calls(tasks)
    once = {
        name: first[name] if first[name] > LONG_CALL else _once(task)
        for name, task in tasks.items()
    }
    turns = {name: Turns(task, once[name]) for name, task in tasks.items()}
    for name, turn in turns.items():
        if budget.is_slow(name, once[name]):
            turn.most = MIN_ROUNDS
    peaks = []

    def measure_peak() -> None:
        if fma_peak is not None:
            _wait_until_idle()
            peaks.append(fma_peak.measure(case.threads or 1))

    _take_turns(list(turns.values()), seconds, measure_peak)
    timings = {name: turn.timing(differences[name]) for name, turn in turns.items()}
    for name, timing in timings.items():
        budget.record(name, case, timing.median)
    return Result(case, timings, skipped, max(peaks, default=None))


def compare(cases: Sequence[Case], seconds: float) -> list[Result]:
    """Time cattn in rounds, in each of which every case has its turn; so many seconds for each."""
    turns = []
    for number, case in enumerate(cases):
        _say(f"[{number + 1}/{len(cases)}] {case.name}\n")
        task = cattn.prepare(case, Inputs.random(case))
        turns.append(Turns(task, _once(task)))
    _take_turns(turns, seconds * len(cases), lambda: _say("."))
    _say("\n")
    return [
        Result(case, {"cattn": turn.timing(0.0)}, {}, None)
        for case, turn in zip(cases, turns, strict=True)
    ]


@dataclass
class Turns:
    """The samples of one task, whose call takes `once` seconds, in at most so many rounds."""

    task: Task
    once: float
    most: int = MAX_ROUNDS
    samples: list[float] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        """Calls of a sample."""
        return max(1, round(SAMPLE / self.once))

    def timing(self, difference: float) -> Timing:
        """What the samples come to."""
        low, median, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return Timing(median, low, high, len(self.samples), self.repeats, difference)


def _take_turns(turns: Sequence[Turns], seconds: float, begin_round: Callable[[], None]) -> None:
    """Take rounds; every other one the other way round, so that none is always behind the same.

    A long call leaves a processor hot, and the next one slower.
    """
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() < end):
        begin_round()
        for turn in turns if rounds % 2 == 0 else reversed(turns):
            if rounds < turn.most:
                _wait_until_idle()
                turn.samples.append(_time(turn.task, turn.repeats, turn.once < SHORT_CALL))
        rounds += 1


def _time(task: Task, repeats: int, awake: bool) -> float:
    """Seconds of one call, over some in a row; `awake`: behind some that wake threads."""
    with task.context():
        start = time.perf_counter()
        while awake:
            task.call()
            awake = time.perf_counter() - start < WARM_UP
        return timeit.Timer(task.call).timeit(repeats) / repeats


def _once(task: Task) -> float:
    """Seconds of one call as a rule: some of the first also wake threads."""
    _wait_until_idle()
    times: list[float] = []
    while len(times) < 25 and sum(times) < 10 * SAMPLE:
        times.append(_time(task, 1, awake=False))
    return statistics.median(times)


def _wait_until_idle() -> None:
    """Let the threads of the last library stop spinning: they would take cores from the next."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            return


def _first_calls(tasks: Mapping[str, Task]) -> tuple[dict[str, float], dict[str, float]]:
    """Call each once; return its largest difference from cattn, which comes first, and its time."""
    expected: tuple[Array, ...] = ()
    differences, first = {}, {}
    for name, task in tasks.items():
        start = time.perf_counter()
        with task.context():
            result = task.call()
        first[name] = time.perf_counter() - start
        arrays = task.arrays(result)
        expected = expected or arrays
        pairs = zip(expected, arrays, strict=True)
        differences[name] = float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))
    return differences, first


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
