"""Turns a results file into a Markdown table and charts.

python benchmarks/report.py results.json --plots folder
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import machine
from cases import LENGTHS
from results import Run
from table import format_time, tables

#: One colour for each library in all charts, told apart by people who see colours differently.
COLOURS = {
    "cattn": "#0072b2",
    "torch": "#d55e00",
    "openvino": "#009e73",
    "onnxruntime": "#cc79a7",
    "jax": "#e69f00",
    "numpy": "#8c8c8c",
}
ISA_COLOURS = {
    "amx": "#d55e00",
    "avx512": "#0072b2",
    "avx2": "#56b4e9",
    "neon": "#009e73",
    "generic": "#8c8c8c",
}


def main() -> None:
    """Print the tables and draw the charts of one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG files into it")
    arguments = parser.parse_args()
    run = Run.load(arguments.results)
    print(f"{machine.text(run.machine)}\nmeasured {run.date}\n\n{tables(run)}")
    if run.import_seconds is not None:
        print(f"- import cattn adds {run.import_seconds * 1e3:.1f} ms to import numpy")
    if arguments.plots:
        print()
        for path in draw(run, arguments.plots):
            print(path)


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw the charts that the run has figures for."""
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    folder.mkdir(parents=True, exist_ok=True)
    charts = {
        "time_against_length.png": time_against_length(run),
        "share_of_peak.png": share_of_peak(run),
        "speedup.png": speedup(run),
    }
    paths = []
    for name, figure in charts.items():
        if figure is not None:
            paths.append(folder / name)
            figure.savefig(paths[-1], dpi=150)
            plt.close(figure)
    return paths


def time_against_length(run: Run) -> Figure | None:
    """Draw the time of one call over the sequence length, both in powers of two."""
    isa, threads = _best(run)
    swept = {case.name for case in LENGTHS}
    results = [r for r in run.in_group(isa, threads) if r.case.name in swept]
    if len(results) < 2:
        return None
    results.sort(key=lambda result: result.case.length)
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    case = results[0].case
    title = f"Forward, {case.heads} heads of size {case.head_dim}, {isa}"
    figure.suptitle(f"{title}\n{_under(run)}", x=0.01, ha="left", fontsize=11)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for name in ("cattn", *run.peers):
        points = [(r.case.length, r.timings[name].median) for r in results if name in r.timings]
        if points:
            width = 2.5 if name == "cattn" else 1.5
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], lw=width, label=name)
    lengths = [result.case.length for result in results]
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.yaxis.set_major_formatter(lambda seconds, _: _round_time(seconds))
    axes.set_xlabel("sequence length")
    axes.set_ylabel("time of one call")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def share_of_peak(run: Run) -> Figure | None:
    """Draw what part of the multiply-add peak each of the main cases reaches."""
    names = list({r.case.name: None for r in run.results if r.case.quick and r.case.flops > 1e8})
    threads = _best(run)[1]
    isas = [isa for isa, team in run.groups() if team == threads and run.fma_peaks(isa, team)]
    if not names or not isas:
        return None
    figure, panels = _panels(run, "Share of the FMA peak", names, isas)
    for axes, isa in zip(panels, isas, strict=True):
        results = {r.case.name: r for r in run.in_group(isa, threads)}
        shares = [run.share_of_peak(results[name]) if name in results else None for name in names]
        _bars(axes, shares, 0, "{:.0%}", ISA_COLOURS.get(isa, "0.5"))
        axes.set_xlim(0, 1.15)
        axes.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
    return figure


def speedup(run: Run) -> Figure | None:
    """Draw how many times faster than each peer cattn is in the main cases."""
    isa, threads = _best(run)
    results = [r for r in run.in_group(isa, threads) if r.case.quick]
    peers = [peer for peer in run.peers if any(r.speedup(peer) for r in results)]
    if not peers:
        return None
    names = [result.case.name for result in results]
    title = f"Speed-up of cattn ({isa})"
    figure, panels = _panels(run, title, names, [f"over {peer}" for peer in peers])
    for axes, peer in zip(panels, peers, strict=True):
        ratios = [result.speedup(peer) for result in results]
        known = [ratio for ratio in ratios if ratio is not None]
        axes.set_xscale("log", base=2)
        _bars(axes, ratios, 1, "{:.1f}×", COLOURS[peer])
        axes.axvline(1, color="black", lw=1)
        # Room for the figures beside the longest bars, to either side of 1.
        axes.set_xlim(min(1, *known) ** 1.5 / 1.05, max(2, *known) ** 1.5)
        axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}×")
    return figure


def _best(run: Run) -> tuple[str, int]:
    """Return the instruction set and threads of the first results: the machine's best."""
    return run.groups()[0]


def _round_time(seconds: float) -> str:
    value, unit = format_time(seconds).split()
    return f"{float(value):g} {unit}"


def _under(run: Run) -> str:
    threads = _best(run)[1]
    return f"{run.machine['cpu']}, {threads} thread{'' if threads == 1 else 's'}"


def _panels(
    run: Run, title: str, rows: Sequence[str], columns: Sequence[str]
) -> tuple[Figure, list[Axes]]:
    """Charts of horizontal bars side by side, with the same rows, the first at the top."""
    size = (2.6 + 1.9 * len(columns), 1.3 + 0.28 * len(rows))
    figure, grid = plt.subplots(
        1, len(columns), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    figure.suptitle(f"{title}\n{_under(run)}", x=0.01, ha="left", fontsize=11)
    panels: list[Axes] = list(grid[0])
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].invert_yaxis()
    for axes, column in zip(panels, columns, strict=True):
        axes.set_title(column, fontsize=10)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    return figure, panels


def _bars(axes: Axes, values: Sequence[float | None], start: float, text: str, colour: str) -> None:
    """One bar a row from `start` to its value, which stands at the end; a dash for None."""
    for row, value in enumerate(values):
        if value is None:
            axes.text(start, row, " –", va="center", color="0.5")
            continue
        axes.barh(row, value - start, 0.7, left=start, color=colour)
        longer = value >= start
        axes.annotate(
            text.format(value),
            (value, row),
            xytext=(3 if longer else -3, 0),
            textcoords="offset points",
            ha="left" if longer else "right",
            va="center",
            fontsize=8,
        )


if __name__ == "__main__":
    main()
