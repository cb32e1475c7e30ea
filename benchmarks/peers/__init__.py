"""The libraries that are compared, one module each, named after the library.

A module has one function, ``prepare(case, inputs) -> Task``, which raises `Unsupported` for a case
that the library lacks; importing the module fails if the library is not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from cases import Case
from peers.base import Inputs, Task

#: All but cattn itself, in the order of the tables.
NAMES = ("torch", "openvino", "onnxruntime", "jax", "numpy")

Prepare = Callable[[Case, Inputs], Task]


def load(names: Iterable[str]) -> tuple[dict[str, Prepare], dict[str, str]]:
    """Import the libraries; return those that are there, and a line on each that is not."""
    found: dict[str, Prepare] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.import_module(f"peers.{name}").prepare
        except ImportError as error:
            missing[name] = f"not installed (no module {error.name})"
    return found, missing
