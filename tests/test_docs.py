"""The examples in the docstrings of all public modules are run and are right."""

import doctest
import importlib

import pytest

MODULES = ["cattn", "cattn._attention", "cattn._config", "cattn._types", "cattn.reference"]
PUBLIC = ["attention", "attention_backward", "merge_attention", "set_num_threads", "show_config"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, raise_on_error=False)
    assert result.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("module", ["cattn", "cattn.reference"])
def test_public_functions_are_documented_by_example(module, name):
    function = getattr(importlib.import_module(module), name, None)
    if module == "cattn.reference" and "attention" not in name:
        assert function is None
        return
    assert ">>>" in function.__doc__


@pytest.mark.parametrize("name", ["AttentionResult", "AttentionGrads", "get_num_threads"])
def test_other_names_are_documented(name):
    assert getattr(importlib.import_module("cattn"), name).__doc__.strip()


def test_every_public_name_exists():
    cattn = importlib.import_module("cattn")
    for name in cattn.__all__:
        assert name == "lm" or getattr(cattn, name) is not None  # the model has tests of its own
    with pytest.raises(AttributeError, match="no_such_name"):
        cattn.no_such_name  # noqa: B018
