"""Fixtures: every instruction set that the machine can run, and the table of errors over bounds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# `python -m pytest` puts the source tree first on the path; the tests are about what is installed.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

# Teams wait asleep: spinning takes the cores from the work where there are more threads than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from cattn import _core  # noqa: E402

# The same examples on every run, however slow the machine.
hypothesis.settings.register_profile("cattn", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("cattn")

# What repeats the kernels of another instruction set is left out: avx512bf16 has kernels of its own
# for bfloat16 and precisions of float32, and beside them those of avx512, as has amx for float64;
# amx_fp16 has those of amx for all but float16.
# Tests without a dtype are about everything else, or run all of them by themselves.
PRECISION_AND_MEMORY = {"test_precision", "test_guard_pages"}


def adds_nothing(item):
    given = item.callspec.params if hasattr(item, "callspec") else {}
    isa = given.get("isa")
    dtypes = {given[name] for name in ("dtype", "any_dtype", "half") if name in given}
    names = {dtype if isinstance(dtype, str) else np.dtype(dtype).name for dtype in dtypes}
    if isa == "avx512bf16":
        return "bfloat16" not in names and item.module.__name__ not in PRECISION_AND_MEMORY
    if isa in ("amx_fp16", "amx_fp16_emulated"):
        return "float16" not in names and item.module.__name__ != "test_guard_pages"
    return isa in ("amx", "amx_emulated") and "float64" in names


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if adds_nothing(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not adds_nothing(item)]


ERRORS = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="module", params=_core.available_isas())
def isa(request):
    """Runs the test on this instruction set."""
    before = _core.isa()
    _core.set_isa(request.param)
    assert _core.isa() == request.param
    yield request.param
    _core.set_isa(before)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


def named(name):
    """A dtype by its name; bfloat16 is ml_dtypes'."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


@pytest.fixture(params=["float32", "float64", "float16", "bfloat16"])
def any_dtype(request):
    return named(request.param)


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    return named(request.param)


@pytest.fixture
def record(request):
    """Keeps the largest error / bound of each (function, dtype, isa) for the summary."""
    errors = request.config.stash.setdefault(ERRORS, {})

    def record(function: str, dtype: np.dtype, ratio: float) -> None:
        key = f"{function} {np.dtype(dtype).name} {_core.isa()}"
        errors[key] = max(errors.get(key, 0.0), ratio)

    return record


def pytest_terminal_summary(terminalreporter, config):
    errors = config.stash.get(ERRORS, {})
    if not errors:
        return
    if cache := getattr(config, "cache", None):
        cache.set("cattn/errors", errors)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, ratio in errors.items():
        function, dtype, isa = key.split()
        rows.setdefault((function, dtype), {})[isa] = ratio
    isas = _core.available_isas()
    terminalreporter.section("largest error / bound")
    terminalreporter.write_line(
        f"{'function':<18}{'dtype':<10}" + "".join(f"{i:>14}" for i in isas)
    )
    for (function, dtype), by_isa in sorted(rows.items()):
        cells = "".join(f"{by_isa[i]:>14.3f}" if i in by_isa else f"{'':>14}" for i in isas)
        terminalreporter.write_line(f"{function:<18}{dtype:<10}{cells}")
