"""The tiny chain-of-thought comparison: its problems, its measurement, and the command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

# The script is imported by name, as it is when it is run.
sys.path.insert(0, str(Path(__file__).parents[2] / "research"))

import cot_tiny

from dco_trl.sampling import Sample

factors = st.integers(10, 99)


@given(factors, factors, st.integers(0, 3))
def test_every_step_of_a_rationale_is_right(a, b, form):
    steps = cot_tiny.rationale(a, b, form).split("=")
    assert [eval(step) for step in steps] == [a * b] * 3


@given(factors, factors)
def test_the_forms_differ(a, b):
    forms = {cot_tiny.rationale(a, b, form) for form in range(4)}
    assert len(forms) == 4 or a == b
    assert all(len(cot_tiny.make_tokenizer()(text).input_ids) < 40 for text in forms)  # room for the end of sequence


def test_held_out_problems_are_not_trained_on():
    train, held_out = cot_tiny.make_problems(seed=0)
    assert (len(train), len(held_out)) == (1500, 300)
    assert not {row["prompt"] for row in held_out} & set(train["prompt"])
    texts = [row["prompt"] + row["completion"] for row in held_out]
    assert cot_tiny.last_number(texts, [row["answer"] for row in held_out]) == [1.0] * 300
    assert cot_tiny.last_number(["1*2=3", "", "no"], ["2", "2", "2"]) == [0.0] * 3


class Parrot:
    """Writes the right answer as often as it is told."""

    def __init__(self, rows, right):
        self.rows, self.right = rows, right

    def sample(self, requests, params):
        assert [request.stream for request in requests] == list(range(len(requests)))
        return [
            [Sample(f"={row['answer'] if i < right else 'x'}", None, 3, "stop") for i in range(request.num_samples)]
            for request, row, right in zip(requests, self.rows, self.right, strict=True)
        ]


def test_counts_are_those_of_each_problem():
    rows, right = cot_tiny.make_problems(seed=0)[1][:4], [0, 1, 5, 8]
    assert cot_tiny.count_correct(Parrot(rows, right), rows, 8).tolist() == right


@pytest.mark.slow
def test_command_keeps_finished_runs(tmp_path, monkeypatch, capsys):
    output = tmp_path / "cot.json"
    command = ["cot_tiny.py", "--output", str(output), "--seeds", "0", "--methods", "cross-entropy", "--epochs", "1"]
    command += ["--every", "1", "--num_samples", "4", "--final_samples", "4"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(cot_tiny, "be_quiet", lambda: None)  # it would silence the tests that follow
    cot_tiny.main()
    [run] = json.loads(output.read_text())["runs"]
    assert run["epochs"][0]["k"] == [1, 4] and np.shape(run["epochs"][0]["pass"]) == (2,)
    before = output.read_text()
    cot_tiny.main()
    assert output.read_text() == before and "epoch 1" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--num_samples", "2"])
    with pytest.raises(SystemExit):
        cot_tiny.main()
    assert "give another --output" in capsys.readouterr().err
