"""The accuracy tables say what the errors are, and are written where a page wants them."""

from __future__ import annotations

import pytest
from support import ROOT, assert_ran, run_python

from cattn import _core

# One small shape; without PyTorch, whether it is installed or not.
PREPARE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
sys.modules["torch"] = None
import accuracy
from cases import Case

accuracy.SHAPES = [Case("forward", heads=1, length=7, head_dim=4, causal=True)]
"""
RUN = PREPARE + "accuracy.main()\n"
# Attention whose results are off by a tenth.
OFF = """
computed = accuracy.computed
accuracy.computed = lambda *of: (r := computed(*of)) and {name: 1.1 * a for name, a in r.items()}
"""
KINDS = ["float32 highest", "float32 high", "float32 medium", "float64", "float16", "bfloat16"]


def accuracy(*arguments, code=RUN):
    pytest.importorskip("ml_dtypes")
    return run_python(code, str(ROOT / "benchmarks"), *map(str, arguments))


def rows(text):
    """Cells by row and head."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    head, _, *body = lines
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


def test_every_result_on_every_instruction_set():
    process = accuracy()
    assert_ran(process)
    table = rows(process.stdout)
    assert list(table) == [f"{name} {kind}" for name in ("out", "dq", "dk", "dv") for kind in KINDS]
    for name, cells in table.items():
        limit = {"float32 highest": 1e-6, "float64": 1e-14}.get(name.partition(" ")[2], 0.1)
        for isa in _core.available_isas():
            largest, rms = map(float, cells[isa].split("/"))
            assert 0 <= rms <= largest < limit, name
        assert cells["PyTorch"] == "not installed"
        exact = name.endswith(("float32 highest", "float64"))
        assert (cells["NumPy"] == "–") != exact


def test_errors_are_seen():
    process = accuracy(code=PREPARE + OFF + "accuracy.main()\n")
    assert_ran(process)
    for name, cells in rows(process.stdout).items():
        size = float(cells["size"])
        for isa in _core.available_isas():
            rms = float(cells[isa].split("/")[1])
            assert 0.08 * size < rms < 0.12 * size, name
        if name.endswith(("highest", "float64")):
            assert float(cells["of bound"]) > 1


def test_a_page_is_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- accuracy:begin -->\nold\n<!-- accuracy:end -->\nafter\n")
    process = accuracy("--write", page)
    assert_ran(process)
    text = page.read_text()
    assert text.startswith("before\n<!-- accuracy:begin -->\n")
    assert text.endswith("\n<!-- accuracy:end -->\nafter\n")
    assert "old" not in text
    assert "### L 7, D 4, causal" in text
    assert len(rows(text)) == 4 * len(KINDS)


def test_a_page_without_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- accuracy:end -->\n")
    process = accuracy("--write", page)
    assert process.returncode == 2
    assert "needs <!-- accuracy:begin -->" in process.stderr
    assert page.read_text() == "<!-- accuracy:end -->\n"
