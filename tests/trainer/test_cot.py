"""`CoTDCOTrainer`: weights, windows and what they log, resuming, evaluation."""

import itertools
import math

import numpy as np
import pytest
import torch
from cot import COUNTED, ROWS, TRAINED, make_cot_trainer, record_samples, trained, weights_after
from training import assert_same_weights, make_trainer, steps_of
from transformers import TrainerCallback
from trl import SFTTrainer

from dco_trl import CoTDCOTrainer
from dco_trl.statistics import posterior_weight
from dco_trl.trainer.rationales import Draws, RationaleDrawer
from dco_trl.trainer.success_counts import SuccessCounts
from dco_trl.trainer.window_sampler import WindowSampler

# ------------------------------------------------------------------------- weights


@pytest.mark.parametrize("batches", [{}, {"padding_free": True, "max_length": None}])
@pytest.mark.slow
def test_one_attempt_is_sft_bit_for_bit(batches):
    options = dict(gradient_accumulation_steps=2, max_steps=-1, num_train_epochs=2, **batches)
    ours = weights_after(make_cot_trainer(num_attempts=1, **options))
    assert_same_weights(ours, weights_after(make_trainer(SFTTrainer, train_dataset=ROWS, **options)))


@pytest.mark.parametrize("estimator", ["posterior", "plugin"])
@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0])
@pytest.mark.slow
def test_weights_are_those_of_the_counts_in_the_data_set(floor, estimator):
    rows = [{**row, "num_sampled": 64, "num_correct": i} for i, row in enumerate(ROWS)]
    options = dict(sampler="none", estimator=estimator, weight_floor=floor)
    trainer = trained(rows, **options, per_device_train_batch_size=len(ROWS), max_steps=1)
    n, c, (a, b) = np.full(len(rows), 64), np.arange(len(rows)), trainer._windows.counts.prior
    expected, _ = posterior_weight(n, c, 16, (a, b))
    if estimator == "plugin":
        p = c[1:] / 64
        expected = np.append(1.0, 16 * (1 - p) ** 15 * p / (1 - (1 - p) ** 16))
    [step] = steps_of(trainer)
    assert (expected < 0.3).any() and (expected > 0.3).any()
    assert step["coverage_weight"] == pytest.approx(np.maximum(expected, floor).mean(), abs=1e-6)
    rates = (a + c) / (a + b + n)
    assert step["success_rate"] == pytest.approx(rates.mean(), abs=1e-6)
    assert step["log_p"] == pytest.approx(np.log(rates).mean(), abs=1e-5)


@pytest.mark.slow
def test_a_floor_of_one_is_training_on_own_rationales_with_weight_one():
    """It makes the update of N = 1, whose weights are 1, from as many rationales as N draws."""
    kwargs = dict(targets="sampled", weight_tolerance=0.0, max_steps=2)
    one, floored = make_cot_trainer(num_attempts=1, **kwargs), make_cot_trainer(weight_floor=1.0, **kwargs)
    assert_same_weights(weights_after(floored), weights_after(one))


@pytest.mark.slow
def test_rows_of_the_same_prompt_share_their_counts():
    twice = [ROWS[0], {**ROWS[0], "completion": "other 2"}, ROWS[1]]
    trainer = trained(twice, num_rationales=8, per_device_train_batch_size=3, max_steps=1)
    assert trainer._windows.next_index.tolist() == [8, 0, 8]


@pytest.mark.slow
def test_counts_in_the_data_set_are_the_first_memory_of_a_sampler():
    kwargs = dict(num_rationales=8, max_steps=1, per_device_train_batch_size=len(ROWS))
    known = [{**row, "num_sampled": 1000, "num_correct": 900} for row in ROWS]
    # Half of 900 in 1,000, and 8 of an untrained model, which gets none right.
    assert steps_of(trained(known, **kwargs))[0]["success_rate"] == pytest.approx(450 / 508, abs=0.01)
    assert steps_of(trained(known, count_memory=0.0, **kwargs))[0]["success_rate"] < 0.1


# ------------------------------------------------------------------------- windows


@pytest.fixture
def all_draws(monkeypatch) -> list[Draws]:
    """What each window draws."""
    all_draws: list[Draws] = []
    draw = RationaleDrawer.draw

    def recorded(self, *args):
        all_draws.append(draw(self, *args))
        return all_draws[-1]

    monkeypatch.setattr(RationaleDrawer, "draw", recorded)
    return all_draws


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({}, [12, 12]),
        ({"sampling_interval": 1}, [4] * 6),
        ({"sampling_interval": 2}, [8, 4, 8, 4]),
        ({"ce_warmup_steps": 2}, [4, 12]),
        ({"sampling_interval": "2", "ce_warmup_steps": 3}, [8, 4]),
        ({"max_steps": 2}, [8]),  # an epoch is not sampled beyond the last step
    ],
)
@pytest.mark.slow
def test_sampling_fires_once_a_window(all_draws, options, windows):
    trainer = trained(**options, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert [len(draws.problems) for draws in all_draws] == windows
    steps, warmup = steps_of(trainer), options.get("ce_warmup_steps", 0)
    assert len(steps) == options.get("max_steps", 6)
    assert [step["coverage_weight"] == 1 for step in steps] == [i < warmup for i in range(len(steps))]
    assert len([step for step in steps if "rationales" in step]) == len(windows)


@pytest.mark.slow
def test_draws_never_repeat(monkeypatch):
    trainer = make_cot_trainer(num_train_epochs=3, num_rationales=16, weight_tolerance=0.0)
    recorded = record_samples(monkeypatch)
    trainer.train()
    requested = [(r.stream, r.first_index + i) for r, _ in recorded for i in range(r.num_samples)]
    assert len(requested) == len(set(requested)) == trainer._windows.next_index.sum() > 0


@pytest.mark.parametrize(("tolerance", "drawn", "settled"), [(0.0, 24, 0), (1.0, 8, 1)])
@pytest.mark.slow
def test_a_prompt_leaves_when_its_weight_is_known(tolerance, drawn, settled):
    step = steps_of(trained(weight_tolerance=tolerance, num_rationales=24, max_steps=3))[0]
    assert (step["rationales"], step["prompts_settled"]) == (drawn, settled)


@pytest.mark.slow
def test_metrics_of_a_window(monkeypatch):
    # Every number is computed from the samples themselves. Each window logs them at its first step.
    model = trained(num_train_epochs=8, **TRAINED).model
    samples, starts, known = record_samples(monkeypatch), [], []
    weigh, open_window = WindowSampler._weigh, WindowSampler.open

    def weighed(self, window, metrics):
        known.append((self.counts.num_sampled.copy(), self.counts.num_correct.copy(), self.counts.prior))
        weigh(self, window, metrics)
        known[-1] += (dict(window.estimates),)

    def opened(*args):
        starts.append(len(samples))
        return open_window(*args)

    def sometimes(completions, **_):  # no opinion on some, right on others
        return [None if len(text) % 3 == 0 else float(len(text) % 2) for text in completions]

    monkeypatch.setattr(WindowSampler, "_weigh", weighed)
    monkeypatch.setattr(WindowSampler, "open", opened)
    sampling = dict(max_rationale_tokens=6, count_memory=0.5, rationale_batch=5, num_rationales=13)
    training = dict(num_train_epochs=3, sampling_interval=2, per_device_train_batch_size=3)
    steps = steps_of(trained(model=model, grader=sometimes, weight_tolerance=0.2, **sampling, **training))
    n, c, twin = np.zeros(12), np.zeros(12), SuccessCounts(12)
    assert len(starts) == len(known) == 6
    for window, (first, last) in enumerate(itertools.pairwise([*starts, len(samples)])):
        step, drawn = steps[2 * window], [(r.stream, s) for r, group in samples[first:last] for s in group]
        problems = sorted({problem for problem, _ in drawn})
        num_drawn = np.array([sum(p == problem for p, _ in drawn) for problem in problems])
        whole = [(p, len(s.text)) for p, s in drawn if s.finish_reason == "stop"]
        # A function returns None where it could read no answer.
        ungraded = sum(length % 3 == 0 for _, length in whole) / len(drawn)
        expected = {
            "rationales": len(drawn) / len(problems),
            "rationale_tokens": sum(len(sample.token_ids) for _, sample in drawn),
            "rationales_truncated": 1 - len(whole) / len(drawn),
            "rationales_ungraded": ungraded,
            "rationales_unparsed": ungraded,
            "prompts_settled": (num_drawn < 13).mean(),
        }
        assert {name: step[name] for name in expected} == pytest.approx(expected, abs=1e-4)
        assert step["sampling_seconds"] > 0 and ("training_seconds" in step) == (window > 0)
        n[problems], c[problems] = n[problems] / 2, c[problems] / 2
        before = n.copy(), c.copy()
        for problem in problems:
            lengths = [length for p, length in whole if p == problem]
            cut = sum(p == problem for p, _ in drawn) - len(lengths)
            n[problem] += cut + sum(length % 3 > 0 for length in lengths)
            c[problem] += sum(length % 3 > 0 and length % 2 for length in lengths)
        num_sampled, num_correct, (a, b), estimates = known[window]
        np.testing.assert_allclose((num_sampled, num_correct), (n, c))
        twin.forget(0.5, problems)
        twin.add(problems, (n - before[0])[problems], (c - before[1])[problems])
        twin.refit()
        assert (a, b) == pytest.approx(twin.prior)
        rates = (a + c[problems]) / (a + b + n[problems])
        assert step["success_rate"] == pytest.approx(rates.mean(), rel=1e-3)
        weights, _ = posterior_weight(n[problems], c[problems], 16, (a, b))
        assert estimates == {
            p: pytest.approx((w, math.log(r))) for p, w, r in zip(problems, weights, rates, strict=True)
        }
        # Both steps of the window train on its rows with these weights, and log the objective at these p.
        second = steps[2 * window + 1]
        assert "success_rate" not in second and step["log_p"] < 0 < step["coverage_loss"]
        mean = (step["coverage_weight"] + second["coverage_weight"]) / 2
        assert mean == pytest.approx(weights.mean(), rel=1e-3)


# ------------------------------------------------------------------------- the hard filter

# So much is remembered that a few rationales of an untrained model, all wrong, change nothing: rows 0 to 3 are hard.
FILTERED = {"max_success_rate": 0.27, "count_memory": 1.0}
REMEMBERED = [{**row, "num_sampled": 6400, "num_correct": 500 * i} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("estimator", ["posterior", "plugin"])
def test_the_hard_filter_keeps_rows_at_most_so_easy_and_fills_the_batch(estimator):
    trainer = make_cot_trainer(COUNTED, sampler="none", estimator=estimator, max_success_rate=0.3)
    trainer.state.max_steps = 3
    trainer._open_window(iter([{"dco": {"row": torch.arange(4)}}] * 3))
    assert [len(batch) for batch in trainer._window.batches] == [4, 4, 4]
    times = [trainer._window.rows.count(row) for row in range(len(ROWS))]
    hard = [row["num_correct"] / 64 <= 0.3 for row in COUNTED]
    assert [time > 0 for time in times] == hard and max(times) - min(filter(None, times)) <= 1


@pytest.mark.slow
def test_the_hard_filter_trains_on_hard_rows_alone_and_as_many_steps_as_without(monkeypatch):
    served = []
    collate = CoTDCOTrainer._collate
    monkeypatch.setattr(CoTDCOTrainer, "_collate", lambda self, rows: served.extend(rows) or collate(self, rows))
    trainer = trained(REMEMBERED, sampling_interval=1, **FILTERED)
    assert trainer.state.global_step == 6 and len(served) == 24
    assert set(served) == {0, 1, 2, 3}
    kept = [step["rows_kept"] for step in steps_of(trainer)]
    # 24 rows come from 6 passes over 12 rows of which 4 are hard.
    assert all(0 < share < 1 for share in kept) and 0.25 < 6 / sum(1 / share for share in kept) < 0.45


@pytest.mark.slow
def test_nothing_hard_left_is_an_error():
    easy = [{**row, "num_sampled": 1000, "num_correct": 999} for row in ROWS]
    told = "None of the 12 rows tried.*`max_success_rate=0.5`.*Raise it, leave it out"
    with pytest.raises(RuntimeError, match=told):
        trained(easy, sampler="none", max_success_rate=0.5)


# ------------------------------------------------------------------------- resuming, evaluation


class StopAt(TrainerCallback):
    """Save and stop after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"sampling_interval": "epoch"},
        {"sampling_interval": 2, "targets": "sampled", "num_attempts": 2},
        {"sampling_interval": 2, "targets": "sampled", "num_targets": 3, "num_attempts": 2, "learning_rate": 3e-2},
        {"rows": REMEMBERED, "sampling_interval": 2, **FILTERED},
        {"sampling_interval": 4, "ce_warmup_steps": 3, "gradient_accumulation_steps": 2},
    ],
    ids=["epoch", "sampled targets", "several targets", "hard filter", "warm-up"],
)
def test_resumed_is_never_stopped(tmp_path, options):
    kwargs = dict(num_train_epochs=4, per_device_train_batch_size=2, lr_scheduler_type="constant", **options)
    straight = weights_after(make_cot_trainer(**kwargs))
    # In the middle of a window and, unless warming up, of an epoch, so that the next window opens in the same one.
    stop = 5 if "ce_warmup_steps" in options else 3
    saving = dict(output_dir=str(tmp_path), save_strategy="steps", save_steps=stop)
    # The run does not know that it will end early, so its window is what it would have been.
    stopped = trained(**kwargs, **saving, callbacks=[StopAt(stop)])
    if "max_success_rate" in options:
        assert all(step["rows_kept"] < 1 for step in steps_of(stopped) if "rows_kept" in step)
    resumed = make_cot_trainer(**kwargs, **saving)
    weights = weights_after(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert_same_weights(weights, straight)


@pytest.mark.slow
def test_evaluation_is_that_of_the_reference_rationale():
    metrics = trained(eval_dataset=ROWS, max_steps=1).evaluate()
    assert metrics["eval_loss"] > 0 and not any("coverage@" in name for name in metrics)
    assert 0 < make_cot_trainer(eval_dataset=ROWS, coverage_at=[1]).evaluate()["eval_coverage@1"] < 1


# ------------------------------------------------------------------------- what is told of a window


@pytest.mark.parametrize("estimator", ["posterior", "plugin"])
@pytest.mark.slow
def test_rationales_that_cannot_be_judged_do_not_count(estimator):
    # Cut-off rationales are wrong without being judged; here there are none.
    sampling = dict(estimator=estimator, max_rationale_tokens=200, max_steps=1)
    [step] = steps_of(trained(grader=lambda completions, **_: [None] * len(completions), **sampling))
    assert step["rationales_ungraded"] > 0.5
    if estimator == "plugin":
        assert step["coverage_weight"] > 0.9  # no opinion: cross-entropy


@pytest.mark.slow
def test_all_rationales_cut_off_is_said(caplog):
    model = trained(num_train_epochs=10, **TRAINED).model  # so that it does not end a completion at its first token
    trainer = trained(model=model, max_rationale_tokens=2, max_steps=1)
    assert steps_of(trainer)[0]["rationales_truncated"] == 1
    assert "All rationales sampled at step 0 were cut off at `max_rationale_tokens=2`" in caplog.text
    assert "raise `ce_warmup_steps`" in caplog.text


@pytest.mark.parametrize(("floor", "times"), [(0.0, 1), (1.0, 0)])
@pytest.mark.slow
def test_an_idle_method_is_said_unless_it_is_meant(caplog, floor, times):
    trained(grader=lambda completions, **_: [0.0] * len(completions), num_rationales=64, weight_floor=floor)
    said = [record.message for record in caplog.records if "DCO is cross-entropy at step" in record.message]
    assert len(said) == times and all("mean success rate" in text for text in said)
