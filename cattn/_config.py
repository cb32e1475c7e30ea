"""Threads, instruction sets and where things are installed."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from cattn import _core

__version__: str = _core.version()


def set_num_threads(n: int | None) -> None:
    """Set how many threads a call may use; small ones use fewer.

    Parameters
    ----------
    n : int or None
        1 to 4096. None goes back to the default: ``OMP_NUM_THREADS`` if it is set, else the cores
        that this process may use, by its affinity and the quota of its control group.

    Raises
    ------
    ValueError
        If n is less than 1 or more than 4096.
    TypeError
        If n is not an integer.

    Examples
    --------
    >>> import cattn
    >>> before = cattn.get_num_threads()
    >>> cattn.set_num_threads(1)
    >>> cattn.get_num_threads()
    1
    >>> cattn.set_num_threads(before)
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """Return how many threads a call uses unless it says otherwise."""
    return _core.get_num_threads()


def show_config() -> None:
    """Print the version, the instruction set in use and the number of threads.

    Examples
    --------
    >>> import cattn
    >>> cattn.show_config()  # doctest: +ELLIPSIS
    cattn ...
    """
    print(config_text())


def config_text() -> str:
    """What `show_config` prints."""
    isas = ", ".join(_core.available_isas())
    rows = [
        ("cattn", __version__),
        ("instruction set", f"{_core.isa()} (runs here: {isas}; choose with CATTN_ISA)"),
        ("threads", f"{get_num_threads()} of {os.cpu_count()} cores"),
        ("machine", f"{platform.system()} {platform.machine()}"),
        ("headers", get_include()),
        ("CMake package", get_cmake_dir()),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def get_include() -> str:
    """Return the folder of ``cattn.h``."""
    return str(Path(_core.__file__).parent / "include")


def get_cmake_dir() -> str:
    """Return the folder of the CMake package: ``find_package(cattn PATHS <this>)``."""
    return str(Path(_core.__file__).parent / "lib" / "cmake" / "cattn")
