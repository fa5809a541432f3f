"""Verdicts beside published ones."""

import json
import sys
from pathlib import Path

import pytest

# The script is imported under the name that it runs under.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import published_verdicts


@pytest.mark.slow
def test_the_command_counts_equal_verdicts(tmp_path, monkeypatch, capsys):
    solutions = {
        "6b_finetuning": {"solution": "3 + 4 = 7\nA: 7", "is_correct": True},
        "6b_verification": {"solution": "3 or 4\nA: 8", "is_correct": False},
        "175b_finetuning": {"solution": "x" * 400 + "\nA: 7", "is_correct": True},
        "175b_verification": {"solution": "7\nA: 7", "is_correct": False},
    }
    (tmp_path / "solutions.jsonl").write_text(
        json.dumps({"question": "?", "ground_truth": "3\nA: 7", **solutions}) + "\n"
    )
    output = str(tmp_path / "out.json")
    monkeypatch.setattr("sys.argv", ["published_verdicts.py", str(tmp_path / "solutions.jsonl"), "--output", output])
    published_verdicts.main()
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["marked"] == {"solutions": 4, "equal": 3, "different": 1, "unparsed": 0}
    assert results["unmarked"] == {"solutions": 3, "equal": 2, "different": 1, "unparsed": 0}
    assert "marked: " in capsys.readouterr().out
