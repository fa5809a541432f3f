"""The tiny chain-of-thought comparison: its problems, its measurement, and the command."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dco_trl.sampling import Sample
from research.chain_of_thought import tiny

factors = st.integers(10, 99)


@given(factors, factors, st.integers(0, 3))
def test_every_step_of_a_rationale_is_right(a, b, form):
    steps = tiny.rationale(a, b, form).split("=")
    assert [eval(step) for step in steps] == [a * b] * 3


@settings(deadline=None)  # a tokenizer is made each time
@given(factors, factors)
def test_the_forms_differ(a, b):
    forms = {tiny.rationale(a, b, form) for form in range(4)}
    assert len(forms) == 4 or a == b
    assert all(len(tiny.make_tokenizer()(text).input_ids) < 40 for text in forms)  # room for the end of sequence


def test_held_out_problems_are_not_trained_on():
    train, held_out = tiny.make_problems(seed=0)
    assert (len(train), len(held_out)) == (1500, 300)
    assert not {row["prompt"] for row in held_out} & set(train["prompt"])
    texts = [row["prompt"] + row["completion"] for row in held_out]
    assert tiny.last_number(texts, [row["answer"] for row in held_out]) == [1.0] * 300
    assert tiny.last_number(["1*2=3", "", "no"], ["2", "2", "2"]) == [0.0] * 3


class Parrot:
    """Writes the right answer as often as asked."""

    def __init__(self, rows, right):
        self.rows, self.right = rows, right

    def sample(self, requests, params):
        assert [request.stream for request in requests] == list(range(len(requests)))
        return [
            [Sample(f"={row['answer'] if i < right else 'x'}", None, 3, "stop") for i in range(request.num_samples)]
            for request, row, right in zip(requests, self.rows, self.right, strict=True)
        ]


def test_counts_are_those_of_each_problem():
    rows, right = tiny.make_problems(seed=0)[1][:4], [0, 1, 5, 8]
    assert tiny.count_correct(Parrot(rows, right), rows, 8).tolist() == right


@pytest.mark.slow
def test_command_keeps_finished_runs(tmp_path, monkeypatch, capsys):
    output = tmp_path / "cot.json"
    command = ["tiny.py", "--output", str(output), "--seeds", "0", "--methods", "cross-entropy", "--epochs", "1"]
    command += ["--every", "1", "--num_samples", "4", "--final_samples", "4"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(tiny, "NUM_TRAIN", 64)
    monkeypatch.setattr(tiny, "NUM_HELD_OUT", 8)
    monkeypatch.setattr(tiny, "be_quiet", lambda: None)  # it would silence the tests that follow
    tiny.main()
    [run] = json.loads(output.read_text())["runs"]
    assert run["epochs"][0]["k"] == [1, 4] and np.shape(run["epochs"][0]["pass"]) == (2,)
    before = output.read_text()
    tiny.main()
    assert output.read_text() == before and "epoch 1" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--num_samples", "2"])
    with pytest.raises(SystemExit):
        tiny.main()
    assert "give another --output" in capsys.readouterr().err
