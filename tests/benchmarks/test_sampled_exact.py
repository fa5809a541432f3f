"""Sampled against exact pass@k: the whole command, with a model trained for one epoch and few samples."""

import json
import sys
from pathlib import Path

import pytest

# The script is imported under the name that it runs under.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import sampled_exact

from dco_trl.demo import task


@pytest.mark.slow
def test_command_compares_sampled_with_exact(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampled_exact, "KS", (1, 4, 16))
    make_problems = task.make_problems
    monkeypatch.setattr(task, "make_problems", lambda seed: [part.select(range(128)) for part in make_problems(seed)])
    output = tmp_path / "out.json"
    words = ["--output", str(output), "--epochs", "1", "--num_problems", "20", "--num_samples", "128"]
    monkeypatch.setattr(sys, "argv", ["sampled_exact.py", *words])
    with pytest.raises(SystemExit) as exit:
        sampled_exact.main()
    assert exit.value.code == 0, capsys.readouterr().out
    record = json.loads(output.read_text())
    assert [run["num_attempts"] for run in record["runs"]] == [1, 256]
    for run in record["runs"]:
        assert [row["k"] for row in run["rows"]] == [1, 4, 16]
        assert all(row["low"] <= row["estimate"] <= row["high"] for row in run["rows"])


def test_too_few_samples_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sampled_exact.py", "--output", str(tmp_path / "x.json"), "--num_samples", "64"])
    with pytest.raises(SystemExit):
        sampled_exact.main()
    assert "pass@4096 needs as many samples per problem, got 64" in capsys.readouterr().err
