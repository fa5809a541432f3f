"""Mazes solved within a budget, against what exact probabilities predict."""

import json

import numpy as np
import pytest
from scipy.special import rel_entr

from research.baselines import mazes, solve_mazes
from research.baselines.mazes import Mazes


def test_the_share_solved_stands_beside_its_expectation():
    p = np.array([0.5, 0.001])
    rows = {row["k"]: row for row in solve_mazes.compare(np.log(p), np.array([3.0, np.inf]))}
    assert [rows[k]["solved"] for k in (1, 4, 256)] == [0.0, 0.5, 0.5]
    assert rows[1]["exact"] == pytest.approx((0.5 + 0.001) / 2)
    assert rows[1]["error"] == pytest.approx(np.sqrt(0.5 * 0.5 + 0.001 * 0.999) / 2)
    assert rows[4]["exact"] == pytest.approx((1 - 0.5**4 + 1 - 0.999**4) / 2)


@pytest.mark.slow
def test_the_command_trains_solves_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(solve_mazes, "be_quiet", lambda: None)  # it would silence the tests that follow
    monkeypatch.setattr(mazes, "NUM_HELD_OUT", 40)
    monkeypatch.setattr(solve_mazes, "Mazes", lambda num_epochs: Mazes(size=3, num_train=20, num_epochs=num_epochs))
    monkeypatch.setattr(solve_mazes.Mazes, "num_epochs", 1, raising=False)
    output = tmp_path / "out.json"
    command = ["--work_dir", str(tmp_path / "run"), "--output", str(output), "--epochs", "4", "--batch_size", "512"]
    assert solve_mazes.main(command) == 0
    kept = (tmp_path / "run" / "test.jsonl").read_text().splitlines()
    assert len(kept) == 20 and all(set(json.loads(line)) == {"prompt"} for line in kept)
    for row in json.loads(output.read_text())["rows"]:
        # By Chernoff's bound for a sum of independent tries, this fails by chance with a probability below 1e-6.
        solved, exact = row["solved"], row["exact"]
        assert len(kept) * (rel_entr(solved, exact) + rel_entr(1 - solved, 1 - exact)) < np.log(1e6)
    assert "| 256 |" in capsys.readouterr().out
