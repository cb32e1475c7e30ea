"""Compares two results files of the same machine: before and after a change.

python benchmarks/compare.py before.json after.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import Run, Timing
from table import format_time, group_name, markdown


def main() -> None:
    """Print cases that both files have, and mark changes that are more than the spread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--library", default="cattn", help="whose times (default: cattn)")
    arguments = parser.parse_args()
    before, after = Run.load(arguments.before), Run.load(arguments.after)
    if before.machine["cpu"] != after.machine["cpu"]:
        print(f"Different machines: {before.machine['cpu']} and {after.machine['cpu']}\n")
    print(compare(before, after, arguments.library))


def compare(before: Run, after: Run, library: str) -> str:
    """Return a table; above 1× is faster than before."""
    old = {r.case.key: r.timings[library] for r in before.results if library in r.timings}
    rows = []
    for result in after.results:
        earlier, now = old.get(result.case.key), result.timings.get(library)
        if earlier is None or now is None:
            continue
        rows.append(
            [
                result.case.name,
                group_name(result.case.isa, result.case.threads or 0),
                _time(earlier),
                _time(now),
                f"{earlier.median / now.median:.2f}×",
                verdict(earlier, now),
            ]
        )
    if not rows:
        return f"no case with times of {library} in both files"
    return markdown(["case", "on", "before", "after", "ratio", "change"], rows)


def verdict(before: Timing, after: Timing) -> str:
    """``faster`` or ``slower`` if the middle halves of the samples do not overlap."""
    if after.high < before.low:
        return "faster"
    if after.low > before.high:
        return "slower"
    return ""


def _time(timing: Timing) -> str:
    return f"{format_time(timing.median)} ±{timing.spread:.0%}"


if __name__ == "__main__":
    main()
