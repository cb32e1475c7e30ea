"""No byte outside of the caller's arrays is read or written, on every instruction set."""

import subprocess
import sys
from pathlib import Path

import pytest

from cattn import _core

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")

# Kinds of numbers that have kernels of their own; half types differ from float32 in packing alone.
KINDS = ["float32", "float64", "float16", "bfloat16"]
ON_TILES = ["float32", "float32:high", "float32:medium", "float16", "bfloat16"]
ON_PAIRS = {
    "avx512bf16": ["float32:medium", "bfloat16"],
    "amx": ON_TILES,
    "amx_emulated": ON_TILES,
    "amx_fp16": ["float16"],
    "amx_fp16_emulated": ["float16"],
}
SCRIPT = Path(__file__).with_name("guarded.py")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("isa", _core.available_isas())
def test_arrays_beside_unreadable_pages(isa, side):
    pytest.importorskip("ml_dtypes")
    kinds = ON_PAIRS.get(isa, KINDS)
    process = run(isa, side, *kinds)
    last = "\n".join(process.stdout.splitlines()[-2:])
    assert process.returncode == 0, f"{last}\n{process.stderr}"
    assert f"completed {462 * len(kinds)}" in last


def test_the_guard_works():
    """An overrun of four bytes does end the process."""
    process = run(_core.isa(), "overrun")
    assert process.returncode < 0
    assert process.stdout.splitlines()[-1] == "reading past the end"
