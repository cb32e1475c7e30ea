"""Every example in a docstring says what happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import cattn.cli
import cattn.lm

MODULES = ["cattn.lm", "cattn.cli"] + [
    f"{package.__name__}.{module.name}"
    for package in (cattn.lm, cattn.cli)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


@pytest.mark.parametrize("name", sorted(set(cattn.lm.__all__) - {"Dataset", "NgramLosses"}))
def test_public_names_are_documented(name):
    assert len(getattr(cattn.lm, name).__doc__) > 20
