# Everything lives in .venv: made when missing, with the package built in place and what a target needs of requirements/.
#   PYTHON=python3.12   the interpreter .venv is made with
#   CXX=clang++         the compiler
#   ARGS="-k resume"    more arguments for pytest, the demo or the bench; -n 0 has pytest run in one process
#   ONEPASS_CUDA=0      without the CUDA kernels, which are built where there is nvcc; for the demo, where there is a GPU
#   ONEPASS_CUDA_ARCHS  the GPU architectures to build them for: those of this machine's GPUs, else 90
PYTHON ?= python3
BIN := .venv/bin
BUILT := .venv/.built
BUILT_FOR_DEMO := .venv/.built-for-demo
# Python compiles what is imported, when it is; pip would compile all of torch, which takes longer than to install it.
PIP := $(BIN)/pip install --disable-pip-version-check --no-compile
GPU_ROOT := $(CURDIR)/build/gpu
CSRC := $(shell find csrc -type f)
SOURCES := setup.py pyproject.toml $(CSRC)
FORMATTED := $(filter %.h %.hpp %.cpp %.cu %.cuh,$(CSRC) $(wildcard tests/emulated/*))
# One architecture, not the wheel's six: compiling takes that much less time.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | grep -x '[0-9]*')
export ONEPASS_CUDA_ARCHS ?= $(or $(GPUS),90)
# The tests start a hundred processes that import torch. Where Python may not keep what it compiles beside the sources, build/
# does.
ifneq ($(PYTHONDONTWRITEBYTECODE),)
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
endif

help:
	@echo 'make demo     train on real data: a table, and figures in examples/'
	@echo 'make check    run the quick part of the tests: every option once'
	@echo 'make test     run all tests, with every pair of options'
	@echo 'make test-all run them with every combination of options, and with sanitizers'
	@echo 'make test-elsewhere   run a part of them as on another processor, under load: instructions, threads'
	@echo 'make sanitize   run those of the CPU kernels with sanitizers of addresses, undefined behaviour and threads: ARGS=thread'
	@echo 'make mutate   plant a random sample of bugs, and list those that no test notices: ARGS="--seed 2 --count 100 --resume"'
	@echo 'make bench    time a step beside torch and adamp: a table, a CSV and figures in bench/results/'
	@echo 'make bench-readme   the same from a clean commit on a quiet machine, and the tables of the README and docs/ from it'
	@echo 'make bench-precision   time AdamW and AdamP with weights and moments stored otherwise: a table and a CSV'
	@echo 'make bench-tables   the tables of the README and docs/ from the CSV files they name'
	@echo 'make predict  what the CUDA and Triton kernels can be expected to reach on a GPU, by a model: ARGS="--gpu H200"'
	@echo 'make docs     the site of the documentation, in build/site, its links checked; ARGS=serve shows it'
	@echo 'make dist     the source distribution and a wheel without CUDA kernels, in dist, tried in a new environment'
	@echo 'make lint     ruff, mypy, clang-format, and the schemas of the GitHub workflows and CITATION.cff'
	@echo 'make format   put the sources into the format that lint asks for'
	@echo 'make debug    the CPU kernels without optimization and with symbols, and compile_commands.json; undone by the next target'
	@echo 'make clean    remove what was built (rm -r .venv also removes what was installed)'
	@echo 'make test-gpu, bench-gpu   tests and bench on an NVIDIA GPU: nothing is installed, $(PYTHON) is used as it is'
	@echo 'make explore-gpu   time variants of the CUDA kernels there: what limits them'

demo: .venv/.demo $(BUILT_FOR_DEMO)
	$(BIN)/python examples/demo.py $(ARGS)

# pytest, not python -m pytest: that would put triton_kernels/ in front of the package of that name.
# In one process for each core, up to 16: each takes up to 1 GB, and more would wait for the longest test.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 16

check: .venv/.test $(BUILT)
	$(PYTEST) --tier check $(ARGS)

test: .venv/.test $(BUILT)
	$(PYTEST) $(ARGS)

test-all: .venv/.test $(BUILT)
	$(PYTEST) --tier all $(ARGS)
	$(BIN)/python tests/support/sanitize.py

test-elsewhere: .venv/.test $(BUILT)
	$(BIN)/python tests/support/elsewhere.py $(ARGS)

sanitize: .venv/.test $(BUILT)
	$(BIN)/python tests/support/sanitize.py $(ARGS)

mutate: .venv/.mutate $(BUILT)
	$(BIN)/python tests/support/mutate/run.py $(ARGS)

.venv/.mutate: requirements/mutate.txt .venv/.test
	$(PIP) -r $<
	@touch $@

bench: .venv/.demo $(BUILT)
	$(BIN)/python bench/run.py $(ARGS)

docs: .venv/.docs $(BUILT_FOR_DEMO)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build)

# The wheel is made from the sdist, and tried in an environment of its own, where torch brings the only OpenMP runtime.
dist: .venv/.dist
	rm -rf dist build/wheel build/fresh
	mkdir -p build/wheel
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("build/wheel")'
	ONEPASS_CUDA=0 $(BIN)/pip wheel --disable-pip-version-check --no-deps --wheel-dir build/wheel build/wheel/*.tar.gz
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/pip install --disable-pip-version-check --no-compile --constraint requirements/build.txt dist/*.whl
	cd build/fresh && bin/python -m onepass doctor --json > doctor.json
	$(BIN)/python -c 'import json; found = json.load(open("build/fresh/doctor.json")); \
	  assert found["self_test"]["passed"] and len(found["openmp"]) == 1, found; print("dist/ holds what works")'

bench-readme: .venv/.test $(BUILT)
	$(BIN)/python bench/run.py --readme $(ARGS)

bench-precision: .venv/.test $(BUILT)
	$(BIN)/python bench/precision.py $(ARGS)

predict: .venv/.test $(BUILT)
	$(BIN)/python bench/predict.py $(ARGS)

bench-tables: .venv/.test $(BUILT)
	$(BIN)/python bench/tables.py $(ARGS)

# Without .venv: a machine with a GPU brings its own torch. PYTHONSAFEPATH keeps the root off sys.path, see `test`.
test-gpu: built-gpu
	ONEPASS_GPU_TESTS_ON=cuda PYTHONSAFEPATH=1 PYTHONPATH=$(GPU_ROOT) $(PYTHON) -m pytest tests/gpu $(ARGS)
	ONEPASS_GPU_TESTS_ON=triton PYTHONSAFEPATH=1 PYTHONPATH=$(GPU_ROOT) $(PYTHON) -m pytest tests/gpu \
	  -k "test_variants or test_graphs or test_no_waiting or test_scaling"

bench-gpu: built-gpu
	PYTHONPATH=$(GPU_ROOT) $(PYTHON) bench/gpu.py $(ARGS)

# Variants of the kernels, each built apart: what a cost is worth.
explore-gpu: built-gpu
	PYTHONPATH=$(GPU_ROOT) $(PYTHON) bench/explore.py $(ARGS)

# The package as it would be installed, in a folder that can be imported from.
built-gpu:
	@$(PYTHON) -c 'import ninja, pybind11, pytest, setuptools, torch; torch.zeros(1, device="cuda")' 2>/dev/null || \
	  { echo 'This needs an NVIDIA GPU, nvcc, and in `$(PYTHON)`: torch >= 2.11 with CUDA, and what' \
	  '`$(PYTHON) -m pip install pytest ninja pybind11 "setuptools>=77"` installs' >&2; exit 1; }
	rm -rf $(GPU_ROOT)
	ONEPASS_CUDA=1 $(PYTHON) setup.py -q build --build-lib $(GPU_ROOT) --build-temp build/gpu-objects

lint: .venv/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

format: .venv/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# The next target finds no $(BUILT), and builds with optimization again.
debug: .venv/.build
	rm -f $(BUILT) $(BUILT_FOR_DEMO)
	ONEPASS_CUDA=0 CXXFLAGS='-O0 -g -UNDEBUG' $(PIP) --no-build-isolation --no-deps -e .
	$(BIN)/python -m ninja -f build/editable/build.ninja -t compdb cxx > compile_commands.json

clean:
	rm -rf $(BUILT) $(BUILT_FOR_DEMO) compile_commands.json build dist *.egg-info python/*.egg-info python/onepass/*.so
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache

# bin/pip is the last thing that venv writes: without it a .venv is unfinished, and is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo 'onepass needs Python >= 3.10; `$(PYTHON)` is not: install it, or say make PYTHON=...' >&2; exit 1; }
	@for cxx in $${CXX:-c++ g++ clang++}; do command -v $$cxx >/dev/null && exit; done; \
	  echo 'onepass needs a C++20 compiler: install g++ >= 11, or say make CXX=...' >&2; exit 1
	@$(PYTHON) -m venv --clear .venv || \
	  { echo 'Python has no working venv: install it (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }

# What each file of requirements/ names. They include one another.
.venv/.build .venv/.demo .venv/.dist .venv/.docs .venv/.lint: .venv/.%: requirements/%.txt | $(BIN)/pip
	$(PIP) -r $<
	@touch $@

# Two of timm's files are oracles; what it depends on, torchvision first, is not needed for them.
.venv/.test: requirements/test.txt .venv/.demo
	$(PIP) -r $<
	$(PIP) --no-deps timm==1.0.31
	@touch $@

.venv/.demo .venv/.dist .venv/.docs .venv/.lint: .venv/.build

$(BUILT): .venv/.build $(SOURCES)
	$(PIP) -q --no-build-isolation --no-deps -e .
	@touch $@ $(BUILT_FOR_DEMO)

# Without a GPU it waits for no CUDA kernels, which take longer than all else; `make test` then builds them.
$(BUILT_FOR_DEMO): .venv/.build $(SOURCES)
	ONEPASS_CUDA=$${ONEPASS_CUDA-$(if $(GPUS),,0)} $(PIP) -q --no-build-isolation --no-deps -e .
	@touch $@

.NOTPARALLEL:
.PHONY: help demo check test test-all test-elsewhere sanitize mutate docs dist bench bench-readme bench-tables predict test-gpu bench-gpu explore-gpu built-gpu lint format debug clean
