"""The charts of a run, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cases import DECODE, LENGTHS, MAIN, SMALL
from results import Memory, Run
from table import format_ratio, format_time

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


#: A speed-up beyond it is written beside a bar of this length: the others stay readable.
LONGEST_BAR = 8

mpl.use("Agg")
plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw the charts that the run has figures for."""
    charts = {
        "time_against_length.png": time_against_length(run),
        "share_of_peak.png": share_of_peak(run),
        "speedup.png": speedup(run),
    }
    paths = []
    for name, figure in charts.items():
        if figure is not None:
            paths.append(folder / name)
            save(figure, paths[-1])
    return paths


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
    for name in ("cattn", *run.peers):
        points = [(r.case.length, r.timings[name].median) for r in results if name in r.timings]
        _line(axes, name, points)
    _length_axis(axes, [result.case.length for result in results])
    axes.yaxis.set_major_formatter(lambda seconds, _: _round_time(seconds))
    axes.set_ylabel("time of one call")
    axes.legend(frameon=False)
    return figure


def memory_against_length(memory: Memory) -> Figure:
    """Draw peak memory over the sequence length, forward and backward side by side."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 6), sharey=True, layout="constrained")
    case = memory.peaks[0].case
    title = f"Peak memory beyond the inputs, {case.heads} heads of size {case.head_dim}"
    figure.suptitle(f"{title}\n{memory.machine['cpu']}", x=0.01, ha="left", fontsize=11)
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        peaks = [p for p in memory.peaks if p.case.direction == direction]
        for name in memory.libraries:
            points = [(p.case.length, p.peak_bytes[name]) for p in peaks if p.peak_bytes.get(name)]
            _line(axes, name, points)
        axes.set_title(direction, fontsize=10)
        _length_axis(axes, [p.case.length for p in peaks])
        axes.yaxis.set_major_formatter(lambda size, _: _round_size(size))
    panels[0].set_ylabel("peak beyond the inputs")
    panels[0].legend(frameon=False)
    return figure


def share_of_peak(run: Run) -> Figure | None:
    """Draw what part of the multiply-add peak each of the main cases reaches."""
    threads = _best(run)[1]
    isas = [isa for isa, team in run.groups() if team == threads and run.fma_peaks(isa, team)]
    measured = {result.case.name for result in run.results}
    names = [case.name for case in MAIN if case.name in measured]
    if not names or not isas:
        return None
    figure, panels = _panels(run, "Share of the FMA peak", names, isas)
    for axes, isa in zip(panels, isas, strict=True):
        results = {r.case.name: r for r in run.in_group(isa, threads)}
        shares = [run.share_of_peak(results[name]) if name in results else None for name in names]
        _bars(axes, shares, 0, 1, "{:.0%}".format, ISA_COLOURS.get(isa, "0.5"))
        axes.set_xlim(0, 1.15)
        axes.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
    return figure


def speedup(run: Run) -> Figure | None:
    """Draw how many times faster than each peer cattn is in the main cases and the small calls."""
    isa, threads = _best(run)
    shown = {case.name for case in (*MAIN, *SMALL, *DECODE)}
    results = [r for r in run.in_group(isa, threads) if r.case.name in shown]
    peers = [peer for peer in run.peers if any(r.speedup(peer) for r in results)]
    if not peers:
        return None
    names = [result.case.name for result in results]
    title = f"Speed-up of cattn ({isa})"
    figure, panels = _panels(run, title, names, [f"over {peer}" for peer in peers])
    ratios = {peer: [result.speedup(peer) for result in results] for peer in peers}
    known = [ratio for peer in peers for ratio in ratios[peer] if ratio is not None]
    # One scale for all, with room for the figures beside the longest bars, to either side of 1.
    low, high = min(1, *known), min(max(2, *known), LONGEST_BAR)
    for axes, peer in zip(panels, peers, strict=True):
        axes.set_xscale("log", base=2)
        _bars(axes, ratios[peer], 1, LONGEST_BAR, format_ratio, COLOURS[peer])
        axes.axvline(1, color="black", lw=1)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(low / (1.1 if low == 1 else high**0.35), high**1.35)
        ticks = [tick for tick in (1, 2, 4, 8) if tick <= high]
        axes.set_xticks(ticks, [f"{tick}×" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def _best(run: Run) -> tuple[str, int]:
    """Return the instruction set and threads of the first results: the machine's best."""
    return run.groups()[0]


def _line(axes: Axes, name: str, points: Sequence[tuple[float, float]]) -> None:
    """One library's figures, cattn's in front of the others'."""
    if points:
        width, order = (2.5, 3) if name == "cattn" else (1.5, 2)
        colour = COLOURS.get(name, "black")
        axes.plot(*zip(*points, strict=True), "o-", c=colour, lw=width, zorder=order, label=name)


def _length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """Both axes logarithmic, a mark at each length."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("sequence length")
    axes.grid(alpha=0.3)


def _round_size(size: float) -> str:
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    unit, of = next((u for u in units if size >= u[1]), units[-1])
    return f"{size / of:g} {unit}"


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


def _bars(
    axes: Axes,
    values: Sequence[float | None],
    start: float,
    end: float,
    text: Callable[[float], str],
    colour: str,
) -> None:
    """One bar a row from `start` to its value or `end`, where the value stands; a dash for None."""
    for row, value in enumerate(values):
        if value is None:
            axes.text(start, row, " –", va="center", color="0.5")
            continue
        tip = min(value, end)
        axes.barh(row, tip - start, 0.7, left=start, color=colour)
        longer = tip >= start
        axes.annotate(
            text(value),
            (tip, row),
            xytext=(3 if longer else -3, 0),
            textcoords="offset points",
            ha="left" if longer else "right",
            va="center",
            fontsize=8,
        )
