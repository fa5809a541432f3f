"""Countdown: problems and verdicts of reasoning-gym, and the choice where many expressions are right."""

import json
from functools import partial

import numpy as np
import pytest
from research_jobs import run_here

pytest.importorskip("reasoning_gym")

from research.countdown import run as countdown


def test_problems_are_right_by_their_own_expression_and_apart():
    rows = countdown.make_problems(0, 30)
    assert len({row["prompt"] for row in rows}) == 30
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in countdown.make_problems(1, 30)}
    assert len({len(row["prompt"]) for row in rows}) == 1  # what the sampler needs
    tokenizer = countdown.demo.make_tokenizer(countdown.VOCABULARY)
    for row in rows:
        assert countdown.is_right(row["prompt"], row["completion"])
        assert len(tokenizer(row["completion"]).input_ids) < countdown.MAX_TOKENS


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("2*3+4+5", True),
        ("5+4+3*2", True),  # another way to write it
        ("(5+2)+3+5", False),  # 5 twice
        ("2*3+4", False),  # 5 is left
        ("2*3+4-5", False),  # is 5
        ("2*3+4+5=", False),
        ("2**3+4+5", False),  # no operator of the game, though its numbers fit
        ("2//3*4+5", False),
        ("", False),
        ("(2*3+4+5", False),
        ("5**4**3**2", False),  # and would never end
    ],
)
def test_any_right_expression_is_accepted_and_no_other(expression, right):
    assert countdown.is_right("02030405>15=", expression) is right


def test_validation_chooses_by_samples_and_test_is_reported():
    num = countdown.BUDGET
    right = np.zeros((2, 2, 4), int)  # epoch, temperature, two problems of validation and two of test
    right[0, 1] = [1, 1, num, 0]
    right[1, 0] = [num, 0, num, num]
    run = {
        "method": "DCO",
        "epochs": [5, 10],
        "right": right.tolist(),
        "log_p": np.full((2, 2, 4), -np.log(2)).tolist(),
    }
    tuned = countdown.select([run], "DCO", any_epoch=True, any_temperature=True)
    assert tuned["chosen"] == [{"epoch": 5, "temperature": 1.5}] and tuned["pass"] == [[0.5, 0.5, 0.5]]
    last = countdown.select([run], "DCO", any_epoch=False, any_temperature=False)
    assert last["chosen"] == [{"epoch": 10, "temperature": 1.0}] and last["pass"] == [[1.0, 1.0, 1.0]]
    assert last["reference"][0] == pytest.approx([0.5, 1 - 0.5**16, 1 - 0.5**64])


@pytest.mark.slow
def test_the_command_trains_samples_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(countdown, "be_quiet", lambda: None)  # it would silence the tests that follow
    monkeypatch.setattr(countdown, "train", partial(countdown.train, every=1, num_train=30, num_held_out=4))
    monkeypatch.setattr(countdown, "run_all", run_here)
    output = tmp_path / "out.json"
    command = ["--work_dir", str(tmp_path / "runs"), "--output", str(output), "--seeds", "0", "--epochs", "2"]
    assert countdown.main(command) == 0
    results = json.loads(output.read_text())
    assert set(results["rows"]) == set(countdown.ROWS)
    for run in results["runs"]:
        assert np.shape(run["right"]) == np.shape(run["log_p"]) == (2, len(countdown.TEMPERATURES), 8)
