"""What importing cattn adds to importing NumPy."""

from __future__ import annotations

import statistics
import subprocess
import sys

_PROGRAM = """
import time, numpy
start = time.perf_counter()
import cattn
print(time.perf_counter() - start)
"""


def import_time(rounds: int = 11) -> float:
    """Median seconds over fresh interpreters, after one that fills the file cache."""
    command = [sys.executable, "-I", "-c", _PROGRAM]
    times = [float(subprocess.check_output(command, text=True)) for _ in range(rounds + 1)]
    return statistics.median(times[1:])


if __name__ == "__main__":
    print(f"import cattn adds {import_time() * 1e3:.1f} ms to import numpy")
