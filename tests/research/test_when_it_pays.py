"""The statistics of cross-entropy runs that are compared with DCO's gain: by hand, and as stored."""

import json

import numpy as np
import pytest

from research.schedules import when_it_pays as script


def test_statistics_of_a_run_that_can_be_counted_by_hand():
    found = script.of_cross_entropy(np.array([0.1, 0.2, 0.5]), np.array([0.5, 0.8, 0.2]), [2, 4, 8])
    assert found["given up"] == pytest.approx(np.log(4))  # odds of 1 and of 1/4
    assert found["fall"] == pytest.approx(np.log(16))
    assert found["earliness"] == pytest.approx(np.log(2))


def test_epochs_are_chosen_on_the_first_and_reported_on_the_second():
    ce, dco = (np.array([0.1, 0.2]), np.array([0.9, 0.3])), (np.array([0.4, 0.2]), np.array([0.5, 0.8]))
    assert script.gain(ce, dco) == pytest.approx(0.2)


def test_a_statistic_ranks_by_the_rule_of_the_protocol():
    tasks = {str(i): {"gain": i, "given up": 2 * i, "fall": -i, "earliness": (3, 1, 4, 0, 5, 2)[i]} for i in range(6)}
    found = script.judge(tasks)
    assert found["given up"]["ranks"] and found["given up"]["p"] == pytest.approx(1 / 720, abs=1e-4)
    assert found["fall"]["tau"] == -1 and found["fall"]["p"] == 1 and not found["fall"]["ranks"]
    assert not found["earliness"]["ranks"]


def test_the_stored_runs_give_the_committed_numbers(tmp_path, capsys):
    assert script.main(["--output", str(tmp_path / "out.json")]) == 0
    committed = script.RESEARCH / "schedules/results/when-it-pays.json"
    found, kept = (json.loads(path.read_text()) for path in (tmp_path / "out.json", committed))
    assert found["rows"] == kept["rows"] and found["statistics"] == kept["statistics"]
    assert "| given up | +0.43 | 0.089 |" in capsys.readouterr().out
