"""The examples in the docstrings of all public modules are run and are right."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import cattn
from cattn import reference

# The model and the command line have tests of their own; the binding has no examples.
MODULES = ["cattn"] + [
    f"cattn.{module.name}"
    for module in pkgutil.iter_modules(cattn.__path__)
    if not module.ispkg and module.name not in ("__main__", "_core")
]
SAID_IN_A_LINE = {"get_cmake_dir", "get_include", "get_num_threads"}
FUNCTIONS = [
    f"{module.__name__}.{name}"
    for module in (cattn, reference)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) and name not in SAID_IN_A_LINE
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, raise_on_error=False)
    assert result.failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_documented_by_example(name):
    module, function = name.rsplit(".", 1)
    assert ">>>" in getattr(importlib.import_module(module), function).__doc__


@pytest.mark.parametrize("name", ["AttentionGrads", "AttentionResult", *sorted(SAID_IN_A_LINE)])
def test_other_names_are_documented(name):
    assert getattr(cattn, name).__doc__.strip()


def test_every_public_name_exists():
    for name in cattn.__all__:
        assert getattr(cattn, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        cattn.no_such_name  # noqa: B018
    assert dir(cattn) == sorted(cattn.__all__)  # lm and reference before they are loaded too
