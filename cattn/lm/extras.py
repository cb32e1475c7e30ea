"""Packages that only the language model needs, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from cattn.lm.errors import InputError


def require(module: str, purpose: str) -> Any:
    """Import `module`, or say in one line how to get it.

    Parameters
    ----------
    module : str
        Dotted name of a module of the extra ``cattn[lm]``.
    purpose : str
        What needs it: the start of the message.

    Raises
    ------
    InputError
        The module is not installed.

    Examples
    --------
    >>> from cattn.lm.extras import require
    >>> require("json", "saving").__name__
    'json'
    >>> require("no_such_package", "saving")
    Traceback (most recent call last):
        ...
    cattn.lm.errors.InputError: saving needs no_such_package: pip install 'cattn[lm]'
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise InputError(f"{purpose} needs {package}: pip install 'cattn[lm]'") from None
