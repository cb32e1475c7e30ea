"""The FMA peak of the machine: fma_peak.cpp compiled on demand and run beside each case."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("fma_peak.cpp")
_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mfma"],
    "avx512bf16": ["-mavx512f", "-mfma"],
    "amx": ["-mavx512f", "-mfma"],
    "amx_fp16": ["-mavx512f", "-mfma"],
}


class FmaPeak:
    """Measures the float32 peak of one instruction set."""

    def __init__(self, isa: str) -> None:
        """Compile the program; raises RuntimeError, with one line, if that cannot be done."""
        names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
        compiler = next((path for name in names if name and (path := shutil.which(name))), None)
        if compiler is None:
            raise RuntimeError("no C++ compiler found")
        self._folder = tempfile.TemporaryDirectory()
        self._program = str(Path(self._folder.name) / "fma_peak")
        options = ["-std=c++17", "-O3", "-ffp-contract=fast", "-pthread", *_FLAGS.get(isa, [])]
        command = [compiler, *options, str(_SOURCE), "-o", self._program]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise RuntimeError(f"{compiler} failed: {built.stderr.strip().splitlines()[0]}")

    def measure(self, threads: int, seconds: float = 0.05) -> float:
        """Return floating-point operations per second of all threads together."""
        command = [self._program, str(threads), str(seconds)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
