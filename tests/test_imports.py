"""Leaves stay leaves: what an import pulls in, seen from a fresh interpreter."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dco_trl


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import dco_trl", {"torch", "trl", "vllm", "transformers", "numpy"}),
        ("import dco_trl.coverage", {"trl", "vllm", "transformers", "datasets"}),
        ("import dco_trl.trainer.segments", {"trl", "vllm", "transformers", "datasets"}),
        ("import dco_trl.theory", {"torch", "scipy", "trl", "transformers", "matplotlib"}),
        ("import dco_trl.statistics", {"torch", "trl", "transformers", "matplotlib", "pyarrow"}),
        ("import dco_trl.sampling", {"torch", "transformers", "vllm", "openai", "trl"}),
        ("import dco_trl.runs", {"torch", "trl", "vllm", "transformers", "matplotlib"}),
        ("import dco_trl.cli", {"torch", "trl", "vllm", "transformers"}),
        ("from dco_trl import DCOTrainer", {"vllm", "matplotlib"}),
    ],
)
@pytest.mark.slow
def test_import_loads_no_more_than_it_needs(statement, forbidden):
    assert not loaded_after(statement) & forbidden


def test_one_version_everywhere():
    root = Path(__file__).parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert version == dco_trl.__version__
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()


def test_public_names_resolve():
    for name in dco_trl.__all__:
        assert getattr(dco_trl, name).__name__ == name
    assert set(dco_trl.__all__) <= set(dir(dco_trl))
    with pytest.raises(AttributeError, match="No dco_trl attribute Nothing"):
        dco_trl.Nothing  # noqa: B018
