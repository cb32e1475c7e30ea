"""The package works from where it is installed, with no help from the source tree."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from support import assert_ran, run_python

import cattn

SOURCE = Path(__file__).resolve().parent.parent

CODE = """
import sys
import numpy
before = set(sys.modules)
import cattn
print(cattn.__file__)
print(cattn._core.__file__)
print({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
q = numpy.ones((2, 3, 4), numpy.float32)
out, lse, _ = cattn.attention(q, q, q, causal=True, return_lse=True)
assert (out == 1).all()
gradients = cattn.attention_backward(out, q, q, q, out, lse, causal=True)
assert gradients.dq.shape == (2, 3, 4)
from cattn import reference
assert numpy.allclose(reference.attention(q, q, q), 1)
"""


def is_editable() -> bool:
    text = metadata.distribution("cattn").read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


def test_import_and_run_outside_of_the_source_tree(tmp_path):
    process = run_python(CODE, cwd=tmp_path)
    assert_ran(process)
    package, core, modules = process.stdout.splitlines()
    # Importing cattn brings in NumPy, the standard library and itself.
    assert set(ast.literal_eval(modules)) <= {"cattn", "numpy"}
    if is_editable():
        pytest.skip("installed as editable: the package is the source tree")
    inside = SOURCE / "cattn"
    assert inside not in Path(package).resolve().parents
    assert inside not in Path(core).resolve().parents


def test_sources_in_place_of_the_package_say_so(tmp_path):
    shutil.copytree(SOURCE / "cattn", tmp_path / "cattn", ignore=shutil.ignore_patterns("*.so"))
    process = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import cattn")
    last = process.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'cattn'} holds the sources of cattn")
    assert "pip install ." in last


def test_the_installed_package_is_typed():
    package = Path(cattn._core.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_only_numpy_is_required():
    required = metadata.requires("cattn") or []
    assert [r for r in required if "extra ==" not in r] == ["numpy>=1.26"]


def test_wheel():
    """If one was built: small, with library, header and types, and the version of its name."""
    wheels = sorted((SOURCE / "dist").glob("cattn-*.whl"))
    if not wheels:
        pytest.skip("no wheel in dist")
    for wheel in wheels:
        assert wheel.stat().st_size <= 3e6
        with zipfile.ZipFile(wheel) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            libraries = [archive.read(name) for name in names if "libcattn" in name]
        for part in ("cattn/__init__.py", "cattn/py.typed", "cattn/include/cattn.h"):
            assert part in names
        assert libraries
        assert not [binary for binary in libraries if b"_emulated" in binary]  # for tests alone
        assert any(name.startswith("cattn/_core.") and name.endswith(".so") for name in names)
        assert not [name for name in names if name.startswith(("tests/", "src/", "benchmarks/"))]


PROJECT = """
cmake_minimum_required(VERSION 3.21)
project(embedding C)
find_package(cattn {version} REQUIRED PATHS ${{dir}} NO_DEFAULT_PATH)
add_executable(program {source})
target_link_libraries(program PRIVATE cattn::cattn m)
"""


def test_a_c_program_finds_the_package(tmp_path):
    """As the README says it: find_package, in the folder that get_cmake_dir() names."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    assert cmake, "the test extra brings it"
    source, build = SOURCE / "tests" / "native" / "embed.c", tmp_path / "build"
    text = PROJECT.format(version=cattn.__version__, source=source)
    (tmp_path / "CMakeLists.txt").write_text(text)
    for command in (
        [cmake, "-S", tmp_path, "-B", build, f"-Ddir={cattn.get_cmake_dir()}"],
        [cmake, "--build", build],
        [build / "program"],
    ):
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert process.returncode == 0, process.stdout + process.stderr


def test_the_interpreter_ends_cleanly():
    """Whatever was used, nothing is left that fails when Python shuts down."""
    code = """
import numpy as np, cattn
q = np.ones((2, 300, 16), np.float32)
for out in (None, np.empty_like(q), q.copy()):
    cattn.attention(q, q, q, out=out, num_threads=2, mask=np.ones((300, 300), bool))
q2 = q.copy()
cattn.attention(q2, q2, q2, out=q2)
out, lse, _ = cattn.attention(q, q, q, causal=True, causal_offset=3, return_lse=True)
cattn.attention_backward(out, q, q, q, out, lse, causal=True, causal_offset=3)
try:
    cattn.attention(q, q, None)
except TypeError:
    pass
"""
    process = run_python(code)
    assert_ran(process)
    assert process.stderr == ""
