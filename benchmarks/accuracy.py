"""How far results are from those of float64, on every instruction set that runs here.

python benchmarks/accuracy.py                            prints the tables
python benchmarks/accuracy.py --write docs/numerics.md   puts them between that page's marks
python benchmarks/accuracy.py --only "L 256"             shapes with that in their title
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cattn import _core, reference

import machine
import peers
from cases import Case
from peers.base import Array, Inputs, Unsupported
from table import markdown

Results = Mapping[str, Array]  # by name

BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"
NAMES = ("out", "dq", "dk", "dv")
SHAPES = [
    Case("forward", heads=2, length=length, head_dim=64, causal=causal)
    for length in (256, 2048)
    for causal in (False, True)
]
KINDS: list[dict[str, Any]] = [
    *({"precision": precision} for precision in ("highest", "high", "medium")),
    *({"dtype": dtype} for dtype in ("float64", "float16", "bfloat16")),
]
PEERS = {"torch": "PyTorch", "numpy": "NumPy"}


@dataclass
class Problem:
    """A case with its inputs, rounded to its dtype, and the exact results for those."""

    case: Case
    inputs: Inputs
    exact: Results
    lse: Array

    @staticmethod
    def of(case: Case) -> Problem:
        """Compute the exact results in float64, those of float64 in long double."""
        inputs = Inputs.random(case)
        wide: Any = np.longdouble if case.dtype == "float64" else np.float64
        options: dict[str, Any] = {"causal": case.causal, "_dtype": wide}
        arrays = inputs.q, inputs.k, inputs.v
        out, lse, _ = reference.attention(*arrays, **options, return_lse=True)
        gradients: Any = reference.attention_backward(inputs.dout, *arrays, out, lse, **options)
        return Problem(case, inputs, dict(zip(NAMES, (out, *gradients[:3]), strict=True)), lse)

    def error(self, results: Results, name: str) -> Array:
        """Element by element."""
        exact = self.exact[name]
        error: Array = np.abs(results[name].astype(exact.dtype) - exact)
        return error


@cache
def tests_bounds() -> Any:
    """Return the module tests/bounds.py, found by its path as it is not installed, or None."""
    path = Path(__file__).resolve().parent.parent / "tests" / "bounds.py"
    spec = importlib.util.spec_from_file_location("bounds", path)
    if not path.exists() or spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shares_of_bounds(results: Results, problem: Problem) -> dict[str, float]:
    """Largest error / bound of each result, by the bounds of the instruction set in use."""
    bounds, case, inputs = tests_bounds(), problem.case, problem.inputs
    if bounds is None:
        return {}
    options = {"causal": case.causal, "precision": case.precision}
    arrays = inputs.q, inputs.k, inputs.v
    forward = bounds.attention_bound(*arrays, **options)
    options |= {"out_error": forward.out, "lse_error": forward.lse}
    gradients = bounds.attention_backward_bound(
        inputs.dout, *arrays, problem.exact["out"], problem.lse, **options
    )
    return {
        name: float(np.max(problem.error(results, name) / bound))
        for name, bound in zip(NAMES, (forward.out, *gradients[:3]), strict=True)
    }


def computed(prepare: peers.Prepare, problem: Problem) -> Results | None:
    """Forward and backward by a library; None if it lacks the case."""
    arrays: list[Array] = []
    try:
        for direction in ("forward", "backward"):
            task = prepare(replace(problem.case, direction=direction), problem.inputs)
            arrays += task.arrays(task.call())
    except Unsupported:
        return None
    return {
        name: a.reshape(problem.exact[name].shape) for name, a in zip(NAMES, arrays, strict=True)
    }


@contextmanager
def torch_precision(precision: str) -> Iterator[None]:
    """Let PyTorch, if it is there, compute float32 products with the same word's permission."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_float32_matmul_precision(precision)
    yield
    if torch is not None:
        torch.set_float32_matmul_precision("highest")


# ---- tables ----

Cells = dict[str, str]  # of each result


def columns(problem: Problem, isas: Sequence[str]) -> dict[str, Cells]:
    """The cells of a case by the heads of their columns."""
    found, missing = peers.load(["cattn", *PEERS])
    cells = {"size": {name: _short(_rms(exact)) for name, exact in problem.exact.items()}}
    shares: dict[str, float] = {}
    for isa in isas:
        _core.set_isa(isa)
        results = computed(found["cattn"], problem) or {}
        cells[isa] = errors(results, problem)
        for name, share in shares_of_bounds(results, problem).items():
            shares[name] = max(share, shares.get(name, 0.0))
    if shares:
        cells["of bound"] = {name: f"{share:.3f}" for name, share in shares.items()}
    for name, head in PEERS.items():
        if name in missing:
            cells[head] = dict.fromkeys(NAMES, "not installed")
            continue
        with torch_precision(problem.case.precision):
            cells[head] = errors(computed(found[name], problem), problem)
    return cells


def errors(results: Results | None, problem: Problem) -> Cells:
    """Largest and root-mean-square error of each result."""
    if results is None:
        return dict.fromkeys(NAMES, "–")
    off = {name: problem.error(results, name) for name in NAMES}
    return {name: f"{_short(error.max())} / {_short(_rms(error))}" for name, error in off.items()}


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _short(x: float) -> str:
    """``1.2e-7`` rather than ``1.2e-07``."""
    digits, _, exponent = f"{x:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def title(shape: Case) -> str:
    """What stands above the table of a shape."""
    return f"L {shape.length}, D {shape.head_dim}, {'causal' if shape.causal else 'dense'}"


def table(shape: Case, isas: Sequence[str]) -> str:
    """All results of a shape, a row each."""
    by_kind: dict[str, dict[str, Cells]] = {}
    for kind in KINDS:
        case = replace(shape, **kind)
        name = case.dtype + (f" {case.precision}" if case.dtype == "float32" else "")
        print(f"{title(shape)}, {name}", file=sys.stderr)
        by_kind[name] = columns(Problem.of(case), isas)
    heads = list(next(iter(by_kind.values())))
    rows = [
        [f"{name} {kind}", *(cells[head][name] for head in heads)]
        for name in NAMES
        for kind, cells in by_kind.items()
    ]
    return f"### {title(shape)}\n\n{markdown(['result', *heads], rows)}"


def where(isas: Sequence[str]) -> str:
    """What the tables were made on."""
    versions = machine.describe(list(isas))["versions"]
    parts = [machine.cpu_model()]
    parts += [f"{head} {versions[name]}" for name, head in PEERS.items() if name in versions]
    text = ", ".join(parts) + "."
    if "amx" not in isas and "amx_emulated" in isas:
        text += " There is no AMX here: what is `emulated` has its kernels on tiles in plain C++."
    return text


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="shapes with TEXT in the title")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with marks")
    arguments = parser.parse_args()
    page: Path | None = arguments.write
    if page is not None and not (page.read_text().count(BEGIN) == page.read_text().count(END) == 1):
        parser.error(f"{page} needs {BEGIN} and {END}, once each")
    isas = _core.available_isas()
    shapes = [shape for shape in SHAPES if arguments.only in title(shape)]
    text = "\n\n".join([where(isas), *(table(shape, isas) for shape in shapes)])
    if page is None:
        print(text)
        return
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
