"""The fine-tuning comparison on chains of thought: its problems, its sampler, its runs and its report."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler
from dco_trl.trainer.success_counts import SuccessCounts
from research.chain_of_thought import report, run, task, training
from research.common import processes
from research.common.fast_sampler import FastSampler

factors = st.integers(10, 99)


@given(factors, factors, st.integers(0, task.NUM_FORMS - 1))
def test_every_step_of_a_rationale_is_right(a, b, form):
    steps = task.rationale(a, b, form).split("=")
    assert [eval(step) for step in steps] == [a * b] * 3
    assert len(task.rationale(a, b, form)) < task.MAX_TOKENS


def test_the_forms_differ():
    assert len({task.rationale(47, 86, form) for form in range(task.NUM_FORMS)}) == task.NUM_FORMS


def test_problems_are_disjoint_and_not_in_the_pretraining():
    splits = task.make_problems(0)
    products = [frozenset(row["prompt"][:-1].split("*")) for rows in splits.values() for row in rows]
    assert len(set(products)) == len(products) == task.NUM_TRAIN + task.NUM_VALIDATION + task.NUM_TEST
    rng = np.random.default_rng(0)
    for _ in range(300):
        prompt, completion = task.pretraining_row(rng)
        value = eval(prompt[:-1])
        assert [eval(step) for step in completion.split("=")] == [value] * (1 + completion.count("="))
        assert "+" in prompt or min(map(int, prompt[:-1].split("*"))) < 10


def test_the_fast_sampler_draws_what_transformers_draws():
    model, tokenizer = task.make_model(3).eval(), task.make_tokenizer()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3.0 if weights.dim() > 1 else 1.0)  # clearer preferences: some completions end
    rows = task.make_problems(0)["test"][:8]
    requests = [SampleRequest(row["prompt"], 8, first_index=5, stream=i) for i, row in enumerate(rows)]
    params = SamplingParams(max_tokens=task.MAX_TOKENS, seed=1)
    ours = FastSampler(model, tokenizer, batch_size=24).sample(requests, params)
    theirs = TransformersSampler(model, tokenizer=tokenizer, progress=False).sample(requests, params)
    assert ours == theirs
    assert {sample.finish_reason for samples in ours for sample in samples} == {"stop", "length"}


def test_right_answers_are_counted_at_the_end_alone(monkeypatch):
    tokenizer = task.make_tokenizer()
    sampler = FastSampler(task.make_model(0), tokenizer)
    rows = [{"prompt": "12*12=", "answer": "144"}, {"prompt": "10*10=", "answer": "100"}]
    end, pad = tokenizer.eos_token_id, 0
    texts = ["1+1=144", "=1440", "144", "=144=1", "=100", "2=100", "00=10", "=144"]
    completions = [[*tokenizer.convert_tokens_to_ids(list(text)), end] for text in texts]
    completions[5] = completions[5][:-1]  # cut off
    drawn = torch.tensor([ids + [pad] * (12 - len(ids)) for ids in completions])
    monkeypatch.setattr(sampler, "_sample", lambda *args: drawn)
    assert sampler.count_correct(rows, 4, 12, seed=0).tolist() == [1, 1]


def record(method, seed, rates):
    rng = np.random.default_rng([seed, len(method)])
    drawn = [{split: rng.binomial(64, rate, 40).tolist() for split in ("validation", "test")} for rate in rates]
    return {
        "method": method,
        "setting": {"num_attempts": 1 if method == "cross-entropy" else 64},
        "seed": seed,
        "num_samples": 64,
        "correct": {str(epoch): counts for epoch, counts in enumerate(drawn, start=1)},
        "log": {"loss": [1.0] * len(rates)},
        "seconds": {"all": 1.0},
        "settings_of_all_runs": {},
        "versions": {},
    }


def test_choices_are_made_on_validation_and_differences_are_paired():
    runs = [record("cross-entropy", seed, [0.02, 0.3, 0.1]) for seed in (0, 1)]
    runs += [record("DCO, 4 own", seed, [0.05, 0.5]) for seed in (0, 1)]
    runs.append(record("DCO, own", 0, [0.9]))  # of one seed alone: not in the table
    runs.append(record("DCO, 4 own", 2, [0.9]))  # of a seed without cross-entropy
    summary = report.summarise(runs, ks=[1, 4])
    assert summary["seeds"] == [0, 1] and "DCO, own" not in summary["rows"]
    seeds = {(row["of"], row["from"]): row["seeds"] for row in summary["differences"]}
    assert seeds["DCO, own", "cross-entropy, best epoch"] == [0] and "schedule, DCO" not in summary["rows"]
    best, last = summary["rows"]["cross-entropy, best epoch"], summary["rows"]["cross-entropy, last epoch"]
    assert best["chosen"] == [["cross-entropy, N = 1, epoch 2"] * 2] * 2
    assert best["mean"][0] == pytest.approx(0.3, abs=0.03) and last["mean"][0] == pytest.approx(0.1, abs=0.03)
    [against] = [
        row
        for row in summary["differences"]
        if (row["of"], row["from"]) == ("DCO, 4 own", "cross-entropy, best epoch")
    ]
    by_seed = np.subtract(summary["rows"]["DCO, 4 own"]["by_seed"], best["by_seed"])
    assert np.allclose(against["by_seed"], by_seed, atol=2e-5) and np.allclose(
        against["mean"], by_seed.mean(0), atol=2e-5
    )
    assert against["low_resampled"][0] < against["mean"][0] < against["high_resampled"][0]
    schedule = summary["rows"]["schedule, cross-entropy"]
    assert schedule["chosen"][0][0][0] == "cross-entropy, N = 1, epoch 2"
    assert schedule["mean"][1] == pytest.approx(best["mean"][1], abs=0.05)


@pytest.mark.slow
def test_n_is_chosen_on_validation_and_each_n_has_a_row():
    runs = [record("cross-entropy", seed, [0.1]) for seed in (0, 1)]
    for num_attempts, rate in ((4, 0.4), (64, 0.2)):
        for seed in (0, 1):
            run = record("DCO, 4 own", seed, [rate])
            runs.append({**run, "setting": {"num_attempts": num_attempts}})
    summary = report.summarise(runs, ks=[1])
    means = {name: row["mean"][0] for name, row in summary["rows"].items()}
    assert means["DCO, 4 own"] == means["DCO, 4 own, N = 4"] == pytest.approx(0.4, abs=0.05)
    assert means["DCO, 4 own, N = 64"] == pytest.approx(0.2, abs=0.05) and "DCO, 4 own, N = 16" not in means
    only_one = report.summarise([run for run in runs if run["setting"]["num_attempts"] != 4], ks=[1])
    assert "DCO, 4 own" in only_one["rows"] and "DCO, 4 own, N = 64" not in only_one["rows"]


def test_shifted_counts_weigh_rates_with_other_log_odds():
    counts = training.ShiftedCounts(3)
    counts.add([0, 1, 2], num_sampled=16, num_correct=[0, 2, 15])
    exact, _ = SuccessCounts.weights(counts, np.arange(3), 8)
    weights, deviations = counts.weights(np.arange(3), 8)
    assert weights == pytest.approx(exact, abs=0.01) and (deviations > 0).all()
    counts.shift = -2.0
    assert (counts.weights(np.arange(3), 8)[0] > weights).all()
    counts.shift = -100.0
    assert counts.weights(np.arange(3), 8)[0] == pytest.approx(1.0)


@pytest.fixture
def few_problems(monkeypatch):
    """Few problems, and runs in this process."""
    for name, count in (("NUM_TRAIN", 40), ("NUM_VALIDATION", 8), ("NUM_TEST", 8)):
        monkeypatch.setattr(task, name, count)
    monkeypatch.setattr(training, "be_quiet", lambda: None)  # it would silence the tests that follow

    def run_here(function, jobs, workers):
        for path, arguments in jobs.items():
            if not path.exists():
                processes.write(function(*arguments), path)
        return []

    monkeypatch.setattr(run, "run_missing", run_here)


@pytest.mark.slow
def test_held_out_rates_shift_the_log_odds_of_those_trained_on(tmp_path, few_problems):
    [setting] = training.METHODS["DCO, 4 own, held-out rates"]
    settings = dict(epochs=[2], num_samples=2, pretraining_steps=2, device="cpu", rivals=False)
    found = training.train("DCO, 4 own, held-out rates", setting, 7, tmp_path, **settings)
    assert len(found["shifts"]) == 2 and all(shift <= 0 for shift in found["shifts"])
    assert len(found["log"]["success_rate"]) == 1


@pytest.mark.slow
def test_command_keeps_finished_runs_and_the_report_reads_them(tmp_path, capsys, few_problems):
    work_dir = tmp_path / "runs"
    command = ["--work_dir", str(work_dir), "--seeds", "7", "--num_attempts", "64", "--epochs", "1", "2"]
    command += ["--num_samples", "2", "--pretraining_steps", "2", "--methods", "cross-entropy", "weight 1, 4 own"]
    assert run.main(command) == 0
    files = sorted(work_dir.glob("*_seed-7.json"))
    before = [path.read_bytes() for path in files]
    first = json.loads(before[0])
    assert len(files) == 2 and first["method"] == "cross-entropy" and list(first["correct"]) == ["1", "2"]
    assert len(first["temperatures"]) == 6 and len(first["averages"]) == 3
    assert run.main(command) == 0
    assert [path.read_bytes() for path in files] == before
    figure = tmp_path / "cot.png"
    report.main(["--work_dir", str(work_dir), "--output", str(tmp_path / "cot.json"), "--figure", str(figure)])
    assert "| schedule, cross-entropy |" in capsys.readouterr().out and imread(figure).shape[2] == 4


def test_the_report_asks_for_runs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(["--work_dir", str(tmp_path)])
    assert "holds no finished run" in capsys.readouterr().err
