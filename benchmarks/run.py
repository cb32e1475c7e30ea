"""Times cattn beside other libraries and prints a Markdown table.

python benchmarks/run.py --quick                        about two minutes
python benchmarks/run.py --full                         everything, half an hour or more
python benchmarks/run.py --full --peers torch,numpy     against these only
python benchmarks/run.py --quick --isa avx2             cattn and peers held to AVX2
python benchmarks/run.py --full --only D128             cases whose name contains D128
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from cattn import _core

import environment
import machine
import peers
from cases import CASES, Case, select, select_comparisons
from import_time import import_time
from pages import page
from results import Result, Run
from table import group_name

_FOLDER = Path(__file__).parent


def main() -> int:
    """Measure, print, save."""
    arguments = _arguments()
    isas = _core.available_isas()
    threads = arguments.threads or len(environment.allowed_cores())
    machine_has = {"isas": isas, "threads": threads, "isa": arguments.isa}

    def is_wanted(case: Case) -> bool:
        return (arguments.full or case.quick) and (arguments.only or "") in case.name

    cases = select(filter(is_wanted, CASES), **machine_has)
    if not cases:
        print("no case fits: see --only, --isa and --threads", file=sys.stderr)
        return 2

    run = Run(machine.describe(isas), datetime.now(timezone.utc).isoformat(timespec="seconds"))
    print(machine.text(run.machine), file=sys.stderr)
    run.import_seconds = import_time()
    out = arguments.out
    if out is None and arguments.full:
        out = _FOLDER / "results" / machine.file_name(run.machine)

    seconds = arguments.seconds or (4 if arguments.quick else 15)
    finished, begun = True, 0
    for isa, team in dict.fromkeys((case.isa, case.threads or threads) for case in cases):
        group = [case for case in cases if (case.isa, case.threads) == (isa, team)]
        print(f"\n{group_name(isa, team)}", file=sys.stderr)
        begun += len(group)
        place = ["--before", str(begun - len(group)), "--after", str(len(cases) - begun)]
        options = ["--peers", arguments.peers, "--seconds", str(seconds), *place]
        results, finished = _measure(group, isas, options)
        run.results += results
        if out is not None:
            run.save(out)
        if not finished:
            break

    comparisons = select_comparisons(is_wanted, **machine_has) if arguments.full else []
    for comparison in comparisons if finished else []:
        print(f"\ncattn beside itself, {comparison[0].isa}", file=sys.stderr)
        results, finished = _measure(comparison, isas, ["--in-turn", "--seconds", str(seconds)])
        if not finished:
            break
        run.comparisons.append(results)
        if out is not None:
            run.save(out)

    if run.results:
        print(f"\n{page(run, with_goals=arguments.full)}")
    if out is not None:
        print(f"\nsaved to {out}", file=sys.stderr)
    return 0 if finished else 1


def _measure(
    cases: Sequence[Case], isas: Sequence[str], options: Sequence[str]
) -> tuple[list[Result], bool]:
    """Run measure.py on cases of one instruction set; what it got to is kept."""
    threads, isa = max(case.threads or 1 for case in cases), cases[0].isa
    held_to = isa if isa != isas[-1] else None
    with tempfile.TemporaryDirectory() as folder, environment.pinned(threads):
        todo, done = Path(folder) / "cases", Path(folder) / "results"
        todo.write_text("".join(json.dumps(asdict(case)) + "\n" for case in cases))
        done.touch()
        command = [sys.executable, str(_FOLDER / "measure.py"), str(todo), str(done), *options]
        try:
            code = subprocess.call(command, env=environment.variables(threads, held_to))
        except KeyboardInterrupt:
            code = 130
        lines = done.read_text().splitlines()
    if code != 0:
        print(f"\nmeasuring stopped with exit code {code}", file=sys.stderr)
    return [Result.from_dict(json.loads(line)) for line in lines], code == 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    extent = parser.add_mutually_exclusive_group(required=True)
    extent.add_argument("--quick", action="store_true", help="the main cases")
    extent.add_argument("--full", action="store_true", help="all cases; saved by default")
    parser.add_argument(
        "--peers",
        default=",".join(peers.NAMES),
        help="libraries to compare, of %(default)s (all); those not installed are skipped",
    )
    parser.add_argument("--out", type=Path, help="JSON file (full: results/<processor>.json)")
    parser.add_argument(
        "--isa",
        choices=_core.available_isas(),
        help="hold cattn and the peers to it (default: the best, in full runs also the others)",
    )
    parser.add_argument("--threads", type=int, help="of every library (default: all cores)")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--seconds", type=float, help="to spend on each case (4, full: 15)")
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.peers.split(","))) - set(peers.NAMES)
    if unknown:
        parser.error(f"--peers: {', '.join(sorted(unknown))} unknown, of {', '.join(peers.NAMES)}")
    cores = len(environment.allowed_cores())
    if arguments.threads is not None and not 1 <= arguments.threads <= cores:
        parser.error(f"--threads: {arguments.threads}, expected 1 to {cores}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
