"""A run as Markdown: one table per instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Sequence

from results import Result, Run


def format_time(seconds: float) -> str:
    """Three significant digits in the unit that fits."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, size = next((u for u in units if seconds >= u[1]), units[-1])
    value = seconds / size
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def format_ratio(ratio: float) -> str:
    """Two decimals, none above a hundred."""
    return f"{ratio:.{0 if ratio >= 100 else 2}f}×"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as plain text too; all columns but the first align right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[0] = cells[0].ljust(widths[0])
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def tables(run: Run) -> str:
    """All tables of a run, with what is missing and how far the results lie apart below them."""
    parts = []
    for isa, threads in run.groups():
        title = f"### {group_name(isa, threads)}: {_peak(run.fma_peaks(isa, threads))}"
        parts.append(f"{title}\n\n{table(run, run.in_group(isa, threads))}")
    parts += map(comparison_table, run.comparisons)
    parts.append("\n".join(_scaling(run) + _differences(run) + _skips(run)))
    return "\n\n".join(parts)


def table(run: Run, results: Sequence[Result]) -> str:
    """One row for each of some results."""
    header = ["case", "cattn", "±", "GFLOP/s", "of peak", *(f"vs {peer}" for peer in run.peers)]
    return markdown(header, [_row(run, result) for result in results])


def comparison_table(results: Sequence[Result]) -> str:
    """Return cattn's times of cases that had their turns in the same rounds."""
    title = f"### cattn beside itself: {results[0].case.isa}, case by case in each round"
    header = ["case", "threads", "cattn", "±", "GFLOP/s"]
    rows = [[result.case.name, str(result.case.threads), *_own(result)] for result in results]
    return f"{title}\n\n{markdown(header, rows)}"


def group_name(isa: str, threads: int) -> str:
    """Name an instruction set and a number of threads."""
    return f"{isa}, {threads} thread{'' if threads == 1 else 's'}"


def _peak(peaks: Sequence[float]) -> str:
    if not peaks:
        return "FMA peak not measured"
    low, high = peaks[0] / 1e9, peaks[-1] / 1e9
    return f"FMA peak {high:.0f} GFLOP/s ({low:.0f} beside the unluckiest case)"


def _row(run: Run, result: Result) -> list[str]:
    share = run.share_of_peak(result)
    return [
        result.case.name,
        *_own(result),
        "–" if share is None else f"{share:.0%}",
        *(format_ratio(ratio) if (ratio := result.speedup(peer)) else "–" for peer in run.peers),
    ]


def _own(result: Result) -> list[str]:
    rate = result.rate / 1e9
    return [
        format_time(result.cattn.median),
        f"{result.cattn.spread:.0%}",
        f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}",
    ]


def _scaling(run: Run) -> list[str]:
    """Lines on how much faster many threads are, for cases that were measured with one too."""
    alone = {(r.case.name, r.case.isa): r.cattn.median for r in run.results if r.case.threads == 1}
    lines = []
    for result in run.results:
        one = alone.get((result.case.name, result.case.isa))
        if one is not None and result.case.threads != 1:
            case, ratio = result.case, one / result.cattn.median
            lines.append(f"- {case.name}, {case.isa}: {case.threads} threads are {ratio:.2f}× one")
    return lines


def _differences(run: Run) -> list[str]:
    lines = []
    for peer in run.peers:
        largest = max(r.timings[peer].difference for r in run.results if peer in r.timings)
        lines.append(f"- {peer}: largest difference from cattn's results {largest:.1e}")
    return lines


def _skips(run: Run) -> list[str]:
    cases: dict[str, list[str]] = {}
    for result in run.results:
        for peer, reason in result.skipped.items():
            cases.setdefault(f"{peer}: {reason}", []).append(result.case.name)
    lines = []
    for reason, names in cases.items():
        where = ", ".join(names) if len(names) < 4 else f"{len(names)} cases"
        lines.append(f"- {reason}" + (f" ({where})" if len(names) < len(run.results) else ""))
    return lines
