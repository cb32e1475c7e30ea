"""Threads, instruction sets, version: what can be set, and what show_config says."""

import importlib.metadata
import os
import re

import numpy as np
import pytest
from support import assert_ran, run_python

import cattn
from cattn import _core

THREADS = "import cattn; print(cattn.get_num_threads())"


@pytest.fixture
def restore_threads():
    yield
    cattn.set_num_threads(None)


@pytest.mark.usefixtures("restore_threads")
def test_number_of_threads():
    for n in (1, 2, 7):
        cattn.set_num_threads(n)
        assert cattn.get_num_threads() == n
    cattn.set_num_threads(np.int32(3))
    assert cattn.get_num_threads() == 3


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("bad", [0, -1, 10**9, 2**70])
def test_number_of_threads_out_of_range(bad):
    before = cattn.get_num_threads()
    with pytest.raises(ValueError, match=rf"num_threads.*{bad}"):
        cattn.set_num_threads(bad)
    assert cattn.get_num_threads() == before


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("bad", [1.5, "2", True, [1], np.array([1, 2])], ids=repr)
def test_number_of_threads_of_another_type(bad):
    with pytest.raises(TypeError, match="num_threads.*" + re.escape(repr(bad))):
        cattn.set_num_threads(bad)


def test_threads_from_the_environment():
    process = run_python(THREADS, env={"OMP_NUM_THREADS": "3"})
    assert_ran(process)
    assert process.stdout.split() == ["3"]
    process = run_python(
        "import cattn; cattn.set_num_threads(2); " + THREADS, env={"OMP_NUM_THREADS": "3"}
    )
    assert process.stdout.split() == ["2"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_threads_from_the_affinity():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.environ.pop('OMP_NUM_THREADS', None); os.sched_setaffinity(0, [{one}]);"
    process = run_python(code + THREADS, env={"OMP_NUM_THREADS": ""})
    assert_ran(process)
    assert process.stdout.split() == ["1"]


def test_show_config(capsys):
    assert cattn.show_config() is None
    text = capsys.readouterr().out
    for part in (cattn.__version__, _core.isa(), str(cattn.get_num_threads()), "threads"):
        assert part in text


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cattn.__version__)
    assert cattn.__version__ == importlib.metadata.version("cattn")


def test_headers_and_cmake_package_are_installed():
    assert os.path.isfile(os.path.join(cattn.get_include(), "cattn.h"))
    assert any(name.endswith(".cmake") for name in os.listdir(cattn.get_cmake_dir()))


# ---- instruction sets ----

REPORT = """
import numpy as np, cattn
q = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
out = cattn.attention(q, q, q)
print(cattn._core.isa(), out.tobytes().hex())
"""


@pytest.mark.parametrize("name", _core.available_isas())
def test_environment_chooses_the_instruction_set(name):
    """CATTN_ISA and set_isa reach the same kernels."""
    process = run_python(REPORT, env={"CATTN_ISA": name})
    assert_ran(process)
    before = _core.isa()
    _core.set_isa(name)
    q = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    expected = cattn.attention(q, q, q).tobytes().hex()
    _core.set_isa(before)
    assert process.stdout.split() == [name, expected]


def test_the_best_instruction_set_is_the_default():
    process = run_python(REPORT, env={"CATTN_ISA": ""})
    assert_ran(process)
    assert process.stdout.split()[0] == _core.available_isas()[-1]


def test_generic_runs_everywhere():
    assert "generic" in _core.available_isas()


def test_unknown_instruction_sets():
    with pytest.raises(ValueError, match="sse9"):
        _core.set_isa("sse9")
    process = run_python(REPORT, env={"CATTN_ISA": "sse9"})
    assert process.returncode == 1, process.stdout
    assert "sse9" in process.stderr
    assert "CATTN_ISA" in process.stderr
    other = "neon" if "avx2" in _core.available_isas() else "avx2"
    if other not in _core.available_isas():
        with pytest.raises(ValueError, match=other):
            _core.set_isa(other)
