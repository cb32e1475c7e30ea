"""What is written of a run: a page with all its tables, and the part of the README about speed."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import machine
from cases import DECODE, MAIN, SMALL
from floors import goals, summary
from results import Run
from table import table, tables

_BEGIN, _END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

#: File in the folder of images: what it shows, and the width that the README gives it, if it does.
IMAGES = {
    "time_against_length.png": ("Time of one call against sequence length, of each library", "49%"),
    "memory_against_length.png": ("Peak memory beyond the inputs against sequence length", "49%"),
    "speedup.png": ("How many times faster than each library", "99%"),
    "share_of_peak.png": ("Share of the multiply-add peak by case and instruction set", None),
}
_LIBRARIES = {
    "torch": "PyTorch",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "jax": "JAX",
    "numpy": "NumPy",
}


def page(run: Run, *, with_goals: bool = True) -> str:
    """Everything about a run."""
    parts = [f"{machine.text(run.machine)}\nmeasured {run.date}", tables(run)]
    if run.import_seconds is not None:
        parts[-1] += f"\n- import cattn adds {run.import_seconds * 1e3:.1f} ms to import numpy"
    if with_goals:
        parts.append(f"### Goals\n\n{goals(run)}")
    return "\n\n".join(parts)


def update_readme(readme: Path, run: Run, source: Path, images: Path) -> Path:
    """Replace what stands between the markers, write the whole page beside `source`, return it."""
    text = readme.read_text()
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise ValueError(f"{readme} needs {_BEGIN} and {_END}, once each")
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    present = {name: what for name, what in IMAGES.items() if (images / name).exists()}

    whole = source.with_suffix(".md")
    pictures = [
        f"![{what}]({_link(images / name, whole)})\n" for name, (what, _) in present.items()
    ]
    sections = [f"# {run.machine['cpu']}\n", f"{page(run)}\n", *pictures]
    whole.write_text("\n".join(sections))

    pictures = [
        f'<img src="{_link(images / name, readme)}" width="{width}" alt="{what}">'
        for name, (what, width) in present.items()
        if width
    ]
    part = _readme_part(run, _link(source, readme), _link(whole, readme), "\n".join(pictures))
    readme.write_text(f"{before}{_BEGIN}\n{part}\n{_END}{after}")
    return whole


def _link(target: Path, source: Path) -> str:
    return Path(os.path.relpath(target, source.parent)).as_posix()


def _readme_part(run: Run, source: str, whole: str, pictures: str) -> str:
    isa, threads = run.groups()[0]
    shown = {case.name for case in (*MAIN, *SMALL, *DECODE)}
    results = [result for result in run.in_group(isa, threads) if result.case.name in shown]
    peaks = run.fma_peaks(isa, threads)
    peak = f", FMA peak {peaks[-1] / 1e9:.0f} GFLOP/s" if peaks else ""
    others = [_with_version(run, peer) for peer in run.peers]
    against = f" beside {_listed(others)}" if others else ""
    caption = (
        f"float32 on {threads} cores of {run.machine['cpu']} ({isa}{peak}){against}, measured on "
        f"{run.date[:10]}. "
        '"±" is the spread of cattn\'s time, "of peak" its share of the multiply-adds that '
        'the machine can do, "vs" how many times longer the others take. '
        f"[All tables]({whole}), from [one run]({source})."
    )
    details = (
        f"<details>\n<summary>{summary(run)}</summary>\n\n{goals(run)}\n\n</details>"
        if any(not result.case.quick for result in run.results)
        else ""
    )
    wrapped = textwrap.fill(caption, 128, break_long_words=False, break_on_hyphens=False)
    parts = [table(run, results), wrapped, pictures, details]
    return "\n\n".join(filter(None, parts))


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _with_version(run: Run, peer: str) -> str:
    version = ".".join(run.machine["versions"].get(peer, "").split(".")[:2])
    return f"{_LIBRARIES[peer]} {version}".strip()
