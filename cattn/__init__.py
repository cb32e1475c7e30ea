"""cattn: exact attention for CPUs. NumPy in, NumPy out.

>>> import numpy as np, cattn
>>> q, k, v = np.random.default_rng(0).standard_normal((3, 8, 128, 64), dtype=np.float32)
>>> cattn.attention(q, k, v, causal=True).shape
(8, 128, 64)
"""

from typing import TYPE_CHECKING, Any

from cattn import _installed  # noqa: F401  (before all that needs the core)
from cattn._attention import attention, attention_backward, merge_attention
from cattn._config import (
    __version__,
    get_cmake_dir,
    get_include,
    get_num_threads,
    set_num_threads,
    show_config,
)
from cattn._dropout import dropout_mask
from cattn._jvp import attention_jvp
from cattn._rope import rope, rope_backward
from cattn._types import AttentionGrads, AttentionResult
from cattn._varlen import attention_varlen, attention_varlen_backward

if TYPE_CHECKING:
    import cattn.lm as lm
    import cattn.reference as reference

__all__ = [
    "AttentionGrads",
    "AttentionResult",
    "__version__",
    "attention",
    "attention_backward",
    "attention_jvp",
    "attention_varlen",
    "attention_varlen_backward",
    "dropout_mask",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "lm",
    "merge_attention",
    "reference",
    "rope",
    "rope_backward",
    "set_num_threads",
    "show_config",
]


def __getattr__(name: str) -> Any:
    # Loaded at first use: most programs want the kernels only, and quickly.
    if name in ("lm", "reference"):
        import importlib

        return importlib.import_module(f"cattn.{name}")
    raise AttributeError(f"module 'cattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__  # those that are not loaded yet too
