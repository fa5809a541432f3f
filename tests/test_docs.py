"""Every public name has a docstring, and a place in the reference."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

REFERENCE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text()
PACKAGES = ["dco_trl", "dco_trl.evaluation", "dco_trl.grading", "dco_trl.sampling"]
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]
# Where the docstrings' examples run in no time and without a model.
EXAMPLES = [
    "dco_trl.coverage",
    "dco_trl.segments",
    "dco_trl.theory",
    "dco_trl.trainer.dco_config",
    "dco_trl.trainer.cot_config",
    "dco_trl.success",
    "dco_trl.evaluation.pass_at_k",
    "dco_trl.evaluation.intervals",
    "dco_trl.evaluation.majority_vote",
    "dco_trl.evaluation.success_rates",
    "dco_trl.evaluation.extrapolation",
    "dco_trl.grading.extract",
    "dco_trl.grading.graders",
]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[f"{package}.{name}" for package, name in NAMES])
def test_public_name_is_documented(package, name):
    value = getattr(importlib.import_module(package), name)
    if callable(value):
        assert value.__doc__ and len(value.__doc__) > 20, f"{package}.{name} has no docstring"
        assert re.search(rf"^::: dco_trl\.[\w.]*\b{name}$", REFERENCE, re.M), f"{package}.{name}: not in the reference"


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_docstrings_run(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed
