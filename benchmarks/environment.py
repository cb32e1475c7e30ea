"""Environment variables that hold every library to the same threads and instruction set.

Most libraries read them once, while they load, so they are set for a fresh process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: What keeps each library within an instruction set. ONNX Runtime has no such setting.
_ISA_VARIABLES: dict[str, dict[str, str]] = {
    "generic": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
        # Names of several NumPy versions; each ignores those that it does not know.
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512_SKX AVX512_ICL AVX512_SPR",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "OPENBLAS_CORETYPE": "SkylakeX",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX512",
    },
}

#: What holds OpenBLAS to a kernel on machines that must also run old versions of it, which choose
#: one that fails there. The versions that are measured choose well, and are slowed by it.
_LEFT_OUT = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def variables(threads: int, held_to: str | None) -> dict[str, str]:
    """Environment of a measuring process; `held_to` None leaves every library its best."""
    chosen = {
        name: str(threads)
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    if held_to is not None:
        chosen["CATTN_ISA"] = held_to
        chosen.update(_ISA_VARIABLES.get(held_to, {}))
    kept = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
    return {**kept, **chosen}


def held_to() -> str | None:
    """Return the instruction set that this process is held to, if it is."""
    return os.environ.get("CATTN_ISA")


def allowed_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep processes started here on as many cores as threads: some libraries count cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed_cores()[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
