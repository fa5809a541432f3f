"""Solving within a budget: the first accepted answer, nothing drawn twice, killed at any moment."""

import json
import time

import numpy as np
import pytest
from forks import Forked
from known_sampler import ArmSampler, KnownSampler, make_problems, make_schedule, sampler_params
from lengths import KILLS

from dco_trl.grading import GraderError
from dco_trl.runs import Problem, RunStore, load_results, problems_from_rows
from dco_trl.runs.files import StoreError
from dco_trl.runs.schedule_file import write_schedule
from dco_trl.runs.solve import round_ends, solve
from dco_trl.sampling import Sample, SamplingParams

PROBLEMS = make_problems(30)
REJECTS_AFTER = {"calls": None}


def first_right(stream, num_attempts):
    """Index of the first right answer when each draw is made alone."""
    sampler = KnownSampler()
    params = sampler_params(sampler)
    draws = (sampler.draw(stream, i, params) for i in range(num_attempts))
    return next((i for i, sample in enumerate(draws) if sample.text.endswith(" 0.")), None)


def read_answers(run):
    return [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]


def samples_of(run):
    """Indices per problem; a duplicate sample is an error."""
    return {problem_id: indices.tolist() for problem_id, indices in RunStore(run).present().items()}


def solved(folder, num_attempts=20, **arguments):
    arguments = {"sampler": KnownSampler(), "verifier": "exact", "run_dir": folder, "progress": False, **arguments}
    return solve(arguments.pop("problems", PROBLEMS), num_attempts=num_attempts, **arguments)


def breaks_down(completions, **kwargs):
    """A verifier that needs no reference and fails after some calls."""
    if REJECTS_AFTER["calls"] is not None:
        REJECTS_AFTER["calls"] -= 1
        if REJECTS_AFTER["calls"] < 0:
            raise OSError("the proof checker is gone")
    return [float(text.endswith(" 0.")) for text in completions]


def test_the_first_right_answer_of_each_problem(tmp_path):
    summary = solved(tmp_path / "run")
    ends = np.array(round_ends(20))
    drawn = samples_of(tmp_path / "run")
    for s, (problem, answer) in enumerate(zip(PROBLEMS, summary.answers, strict=True)):
        first = first_right(s, 20)
        spent = 20 if first is None else int(ends[ends > first][0])  # to the end of the round
        assert answer.problem_id == problem.problem_id and answer.solved == (first is not None)
        assert answer.attempts == spent and drawn[problem.problem_id] == list(range(spent))
        if answer.solved:
            assert (answer.attempt, answer.answer) == (first + 1, "0")
            assert (answer.completion, answer.arm) == ("The answer is 0.", "known")
        else:
            assert (answer.attempt, answer.answer, answer.completion, answer.arm) == (None,) * 4
    assert 0 < sum(answer.solved for answer in summary.answers) < 30
    assert read_answers(tmp_path / "run") == [vars(answer) for answer in summary.answers]


def test_the_summary_counts_what_was_saved(tmp_path):
    summary = solved(tmp_path / "run")
    firsts = [first_right(s, 20) for s in range(30)]
    assert [k for k, _, _ in summary.curve] == [1, 4, 16, 20]
    for k, share, mean in summary.curve:
        assert share == sum(first is not None and first < k for first in firsts) / 30
        assert mean == sum(min(answer.attempts, k) for answer in summary.answers) / 30
    spent = sum(answer.attempts for answer in summary.answers)
    count = sum(answer.solved for answer in summary.answers)
    told = f"{count} of 30 problems solved with {spent} attempts; 20 for every problem would have been 600"
    assert str(summary).startswith(f"{told} ({spent / 600:.1%} of them were spent)") and spent < 500


@pytest.mark.parametrize("budget", [1, 2, 6, 7, 20])
def test_a_smaller_budget_tells_what_it_would_have_given(tmp_path, budget):
    larger = solved(tmp_path / "run", 20)
    alone = solved(tmp_path / "alone", budget)
    found = solved(tmp_path / "run", budget)
    assert [(a.attempt, a.solved) for a in found.answers] == [(a.attempt, a.solved) for a in alone.answers]
    # The rounds of the larger budget may end later.
    assert all(0 <= a.attempts - b.attempts <= budget / 2 for a, b in zip(found.answers, alone.answers, strict=True))
    assert max(answer.attempts for answer in found.answers) <= budget
    assert solved(tmp_path / "run", 20) == larger


@pytest.mark.slow
def test_chunks_of_any_size_give_the_same_answers(tmp_path):
    firsts = [(a.attempt, a.solved) for a in solved(tmp_path / "whole").answers]
    assert [(a.attempt, a.solved) for a in solved(tmp_path / "small", chunk_size=7).answers] == firsts


class LateSampler(KnownSampler):
    """Right from the fifth attempt on."""

    def draw(self, stream, index, params):
        return Sample(f"The answer is {int(index < 4)}.", (1,), 1, "stop")


def test_of_several_right_answers_the_first_counts(tmp_path):
    # One round holds the attempts 5 and 6, each a chunk of its own.
    [answer] = solved(tmp_path / "run", problems=PROBLEMS[:1], sampler=LateSampler(), chunk_size=1).answers
    assert (answer.attempt, answer.attempts) == (5, 6)


def test_a_finished_call_again_draws_nothing(tmp_path):
    first = solved(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")}
    sampler = KnownSampler()
    sampler.sample = None
    assert solved(tmp_path / "run", sampler=sampler) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*")} == before


def test_a_larger_budget_goes_on_with_the_unsolved(tmp_path):
    early = solved(tmp_path / "run", 10)
    late, fresh = solved(tmp_path / "run", 60), solved(tmp_path / "fresh", 60)
    assert [a.attempt for a in late.answers] == [a.attempt for a in fresh.answers]
    for before, after in zip(early.answers, late.answers, strict=True):
        assert before == after if before.solved else after.attempts > 10


SCRIPT = """
import sys
from known_sampler import KnownSampler, make_problems
from dco_trl.runs.solve import solve
solve(make_problems(30), KnownSampler(seconds=0.02), "exact", run_dir=sys.argv[1], num_attempts=20, chunk_size=10,
      progress=False)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
    run, script = tmp_path / "run", tmp_path / "solving.py"
    script.write_text(SCRIPT)
    for seen in np.linspace(1, 37, KILLS):  # more files each time: samples and verdicts in turn
        forked = Forked(script, run)
        while forked.process.is_alive() and len(list(run.rglob("part-*"))) < seen:
            time.sleep(0.002)
        assert forked.kill(), forked.output
    whole = solved(tmp_path / "whole", chunk_size=10)
    answers = solved(run, chunk_size=10).answers
    assert [(a.solved, a.attempt, a.completion) for a in answers] == [
        (a.solved, a.attempt, a.completion) for a in whole.answers
    ]
    drawn = samples_of(tmp_path / "whole")
    assert all(set(indices) <= set(drawn[problem_id]) for problem_id, indices in samples_of(run).items())


def test_a_verifier_that_raises_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(REJECTS_AFTER, "calls", 3)
    with pytest.raises(GraderError, match="raised OSError: the proof checker is gone"):
        solved(tmp_path / "run", verifier=breaks_down)
    drawn = samples_of(tmp_path / "run")
    assert sum(map(len, drawn.values())) > 60
    monkeypatch.setitem(REJECTS_AFTER, "calls", None)
    answers = solved(tmp_path / "run", verifier=breaks_down).answers
    assert [a.attempt for a in answers] == [a.attempt for a in solved(tmp_path / "whole").answers]


def test_a_verifier_may_lack_a_reference(tmp_path):
    problems = problems_from_rows([{"prompt": f"{i} - {i} ="} for i in range(5)], answer_column=None)
    assert {problem.answer for problem in problems} == {""}
    answers = solved(tmp_path / "run", problems=problems, verifier=breaks_down).answers
    assert [a.attempt for a in answers] == [first_right(s, 20) + 1 for s in range(5)]
    for verifier in ("math", "exact"):
        with pytest.raises(
            ValueError,
            match=f"must name the references that verifier='{verifier}' compares with: 5 of 5",
        ):
            solved(tmp_path / verifier, problems=problems, verifier=verifier)


def test_its_counts_are_no_estimate_of_pass_at_k(tmp_path):
    solved(tmp_path / "run")
    with pytest.raises(StoreError, match="made by `dco-trl solve`, which stops at an accepted answer"):
        load_results(tmp_path / "run")


def test_another_verifier_is_refused(tmp_path):
    solved(tmp_path / "run")
    with pytest.raises(StoreError, match="solve.verifier: the run has 'exact', now 'math'"):
        solved(tmp_path / "run", verifier="math")


def test_attempts_follow_the_schedule(tmp_path):
    schedule = make_schedule(tmp_path)
    assert np.unique(schedule.schedule.arm).size >= 2
    write_schedule(tmp_path / "schedule.yaml", schedule.schedule, schedule.arms)
    answers = solved(tmp_path / "run", 32, sampler=ArmSampler(), schedule=tmp_path / "schedule.yaml").answers
    ks = np.arange(33)
    arm_of = np.diff(schedule.schedule.counts(ks), axis=0).argmax(axis=1)
    sampler = ArmSampler()
    seed = sampler_params(sampler, schedule=schedule).seed
    for s, answer in enumerate(answers):
        attempts = (sampler.draw_arm(schedule.arms[arm], s, i, seed) for i, arm in enumerate(arm_of))
        draws = [sample.text.endswith(" 0.") for sample in attempts]
        first = draws.index(True) if True in draws else None
        assert answer.solved == (first is not None)
        if answer.solved:
            assert (answer.attempt, answer.arm) == (first + 1, schedule.arms[arm_of[first]].name)
    assert len({answer.arm for answer in answers}) >= 3  # two of the arms, and unsolved


def test_what_makes_no_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="there are no problems"):
        solved(tmp_path / "run", problems=[])
    with pytest.raises(ValueError, match="num_attempts` must be an integer of at least 1, got 0"):
        solved(tmp_path / "run", 0)
    with pytest.raises(ValueError, match="temperature=0.5 cannot be combined with a schedule"):
        schedule = make_schedule(tmp_path)
        solved(tmp_path / "run", sampler=ArmSampler(), schedule=schedule, params=SamplingParams(temperature=0.5))
    assert not (tmp_path / "run").exists()


def test_a_problem_with_its_own_id(tmp_path):
    [answer] = solved(tmp_path / "run", problems=[Problem("ö", "0 - 0 =", "0")]).answers
    assert read_answers(tmp_path / "run")[0]["problem_id"] == "ö" and answer.solved
