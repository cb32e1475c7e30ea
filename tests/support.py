"""Helpers that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

#: The source tree.
ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, *arguments: str, env: dict[str, str] | None = None, **more: Any):
    """Run `code` in a fresh interpreter that sees the installed package only."""
    return subprocess.run(
        [sys.executable, "-I", "-X", "faulthandler", "-c", code, *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=more.pop("timeout", 120),
        **more,
    )


def assert_ran(process) -> None:
    assert process.returncode == 0, (
        f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}"
    )


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0, count: int | None = None) -> Any:
    """Standard normal numbers; `count` arrays if given."""
    rng = np.random.default_rng(seed)
    if count is None:
        return rng.standard_normal(shape).astype(dtype)
    return tuple(rng.standard_normal(shape).astype(dtype) for _ in range(count))


def assert_same(actual, expected) -> None:
    """Bitwise equality of arrays, of None, or of tuples of them; NaN equals NaN."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    elif expected is None:
        assert actual is None
    else:
        assert actual.dtype == expected.dtype
        if actual.dtype.kind == "V":  # bfloat16, of whose NaN NumPy does not know
            actual, expected = actual.astype(np.float32), expected.astype(np.float32)
        np.testing.assert_array_equal(actual, expected)
