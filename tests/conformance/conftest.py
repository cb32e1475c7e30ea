"""What the conformance tests are about: they run on each of these modules."""

import importlib

import pytest

MODULES = ["cattn.reference", "cattn"]


@pytest.fixture(params=MODULES)
def module(request):
    return importlib.import_module(request.param)
