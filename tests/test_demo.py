"""The demonstration: its task, its measurements, its table and picture, and the command end to end."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree

import demo_workers
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from dco_trl.cli.demo import main
from dco_trl.demo import task
from dco_trl.demo.figure import plot_demo
from dco_trl.demo.findings import coverage_at, schedule, sentences, summarise
from dco_trl.demo.run import run_demo, save_results, train_all
from dco_trl.demo.table import coverage_table, percent, schedule_table, seeds_table
from dco_trl.demo.training import check_by_sampling, greedy_answers
from dco_trl.report.styles import method_style
from dco_trl.sampling import exact_coverage
from dco_trl.statistics.pass_at_k import exact_pass_at_k, pass_at_k

K = [4**i for i in range(8)]


def test_held_out_problems_are_not_trained_on_in_either_order():
    train, held_out = task.make_problems(seed=0)
    assert (len(train), len(held_out)) == (1500, 500)
    factors = [[tuple(map(int, row.rstrip("=").split("*"))) for row in part["prompt"]] for part in (train, held_out)]
    unordered = [{tuple(sorted(pair)) for pair in part} for part in factors]
    assert not unordered[0] & unordered[1]
    assert len(set(factors[0])) == 1500 and len(unordered[1]) == 500  # no repeats within a part
    for part, pairs in zip((train, held_out), factors, strict=True):
        assert part["completion"] == [str(a * b) for a, b in pairs]
        assert all(10 <= factor <= 99 for pair in pairs for factor in pair)
    # Held-out problems come in both orders, as the training problems do.
    assert 150 < sum(a > b for a, b in factors[1]) < 350


def test_problems_and_the_model_depend_on_the_seed_alone():
    first, again, other = (task.make_problems(seed)[1]["prompt"] for seed in (1, 1, 2))
    assert first == again and first != other
    one, again, other = (task.make_model(seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_tokenizer_has_one_token_a_character():
    assert len(TOKENIZER) == len(task.VOCABULARY)
    ids = TOKENIZER("47*86=").input_ids
    assert [task.VOCABULARY[i] for i in ids] == list("47*86=") and len(ids) == task.PROMPT_LENGTH
    assert TOKENIZER.decode(TOKENIZER("4042").input_ids) == "4042"
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 1)
    with pytest.raises(Exception, match="UNK"):
        TOKENIZER("47+86=")


TOKENIZER = task.make_tokenizer()


@pytest.fixture(scope="module")
def model():
    """Random weights, large enough that answers differ in probability, and that some of the likeliest end."""
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return task.make_model(32, num_key_value_heads=2, initializer_range=0.6, **sizes).eval()


@pytest.fixture(scope="module")
def problems():
    return task.as_problems(task.make_problems(seed=0)[1].select(range(40)))


@torch.no_grad()
def greedy_by_hand(model, prompt, longest):
    """The probability and text of the likeliest tokens one by one; 0 and None if no end of sequence comes."""
    ids, probability, text = TOKENIZER(prompt).input_ids, 1.0, ""
    for _ in range(longest):
        p, token = (value.item() for value in model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).max(0))
        probability *= p
        if token == TOKENIZER.eos_token_id:
            return probability, text
        ids, text = [*ids, token], text + task.VOCABULARY[token]
    return 0.0, None


def test_greedy_answers_are_those_by_hand(model, problems):
    expected = [greedy_by_hand(model, p.prompt, task.ANSWER_LENGTH + 1) for p in problems]
    # Some answers end and some do not, and two are right.
    ended = [i for i, (_, text) in enumerate(expected) if text is not None]
    assert 2 <= len(ended) < len(problems)
    references = {i: expected[i][1] for i in ended[:2]}
    problems = [dataclasses.replace(p, answer=references.get(i, p.answer)) for i, p in enumerate(problems)]
    got = greedy_answers(model, TOKENIZER, problems)
    assert got["probability"] == pytest.approx([probability for probability, _ in expected], abs=2e-6)
    assert [i for i, right in enumerate(got["correct"]) if right] == list(references)


@pytest.mark.slow
def test_sampling_agrees_with_the_exact_coverage_within_its_error(model, problems):
    # Answers likely enough to be seen: the likeliest digit, then the end of sequence.
    digits = [[dataclasses.replace(p, answer=digit) for p in problems] for digit in "0123456789"]
    log_p = [exact_coverage(model, TOKENIZER, answered, progress=False).log_p for answered in digits]
    problems = [digits[best][i] for i, best in enumerate(np.argmax(log_p, axis=0))]
    check = check_by_sampling(model, TOKENIZER, problems, seed=0, num_samples=400)
    exact = exact_coverage(model, TOKENIZER, problems, progress=False)
    coverage = [exact_pass_at_k(log_p, check["k"]) for log_p in exact.log_p]
    assert check["exact"] == pytest.approx(np.mean(coverage)) and 0.15 < check["exact"] < 0.85
    # The standard error is that of the unbiased estimate from all samples, smaller than that of rounds of 16.
    counts = np.random.default_rng(0).binomial(400, np.exp(exact.log_p), size=(4000, len(problems)))
    assert check["standard_error"] == pytest.approx(pass_at_k(400, counts, 16).mean(axis=1).std(), rel=0.05)
    rounds = np.random.default_rng(0).random((4000, 25, len(problems))) < np.array(coverage)
    assert check["standard_error"] < 0.95 * rounds.mean((1, 2)).std()
    assert abs(check["sampled"] - check["exact"]) < 4 * check["standard_error"] < 0.05
    assert check["samples"] == 40 * 16 * 25


def make_run(num_attempts, at_1, at_256, seed=0):
    """A record with the given pass@1 and pass@256 per epoch, interpolated at other k."""
    rng = np.random.default_rng(num_attempts)
    epochs = [1, *range(3, 3 * len(at_1), 3)]
    found = [{"probability": rng.random(500).tolist(), "correct": (rng.random(500) < 0.2).tolist()} for _ in epochs]
    return {
        "num_attempts": num_attempts,
        "seed": seed,
        "trainer": "SFTTrainer" if num_attempts == 1 else "DCOTrainer",
        "k": K,
        "epochs": epochs,
        "coverage": [
            np.interp(np.log2(K), [0, 8, 14], [low, high, 1]).tolist() for low, high in zip(at_1, at_256, strict=True)
        ],
        "greedy": [{"epoch": epoch, **greedy} for epoch, greedy in zip(epochs, found, strict=True)],
        "check": {"k": 16, "samples": 32000, "exact": 0.2741, "sampled": 0.2733, "standard_error": 0.004},
        "seconds": 60.0,
    }


def results_of(*runs):
    """The results of some runs of one seed."""
    return {"runs": list(runs), "summary": [summarise(runs)], "seconds": 123.0}


def make_results(seeds=(0,)):
    results = {"runs": [], "summary": [], "seconds": 123.0}
    schedule = {"k": K, "coverage": np.linspace(0.05, 1, 8).tolist(), "best_epoch": np.linspace(0.04, 0.9, 8).tolist()}
    for seed in seeds:
        runs = [
            make_run(1, [0.01, 0.03, 0.05], [0.4, 0.8, 0.6], seed),
            make_run(16, [0.01, 0.04, 0.06], [0.4, 0.8, 0.7], seed),
            make_run(256, [0.01, 0.02, 0.03], [0.4, 0.7, 0.9], seed),
        ]
        results["runs"] += runs
        results["summary"].append({**summarise(runs), "schedule": schedule})
    return results


@pytest.mark.parametrize(
    ("at_1", "ce", "dco", "missing"),
    [
        ([0.05, 0.04], [0.8, 0.6], 0.9, "ce_falls_while_pass@1_rises"),  # pass@1 does not rise
        ([0.01, 0.02], [0.8, 0.65], 0.95, "ce_falls_while_pass@1_rises"),  # falls by 19 %
        ([0.01, 0.02], [0.8, 0.6], 0.87, "dco_above_ce_best"),
        ([0.01, 0.02], [0.8, 0.64], 0.89, "dco_above_ce_end"),
    ],
)
def test_summary_does_not_claim_what_is_not_there(at_1, ce, dco, missing):
    shown = summarise([make_run(1, at_1, ce), make_run(256, [0.01, 0.02], [0.5, dco])])["shown"]
    assert [name for name, there in shown.items() if not there] == [missing]


def as_text(renderable, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_table_of_three_runs_fits_into_80_columns():
    results = make_results()
    text = as_text(coverage_table(results["runs"]))
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80 and "…" not in text
    assert lines[0].split("  ")[-1].strip() == "DCO, N = 256"
    assert lines[1].split() == ["epoch", *["@1", "@16", "@256", "@4096"] * 3]
    assert [line.split()[0] for line in lines[2:]] == ["1", "3", "6"]
    # Each run's best pass@256 is marked, and each value is where its heading is.
    assert [line.split()[3] for line in lines[2:]] == ["40.0", "80.0*", "60.0"]
    assert [line.split()[11] for line in lines[2:]] == ["40.0", "70.0", "90.0*"]


def test_long_table_shows_about_ten_epochs_and_every_best_one():
    runs = [make_run(1, [0.01] * 50, [0.5] * 12 + [0.6] + [0.5] * 37), make_run(256, [0.01] * 50, [0.5] * 50)]
    for run in runs:
        run["epochs"] = list(range(1, 51))
    rows = [line.split() for line in as_text(coverage_table(runs)).splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [1, 5, 10, 13, 15, 20, 25, 30, 35, 40, 45, 50]
    assert rows[3][3] == "60.0*" and rows[0][7] == "50.0*"


def test_table_of_several_seeds_is_their_mean():
    runs = [make_run(n, [0.01], [value], seed) for seed, value in enumerate((0.2, 0.4)) for n in (1, 256)]
    assert as_text(coverage_table(runs)).splitlines()[2].split()[3] == "30.0*"


def test_percent_fits_its_column():
    assert [percent(share) for share in (0, 0.1234, 0.9994, 0.9996, 1)] == ["0.0", "12.3", "99.9", "100", "100"]


def test_sentences_say_what_the_numbers_say():
    finding, check = sentences(make_results())
    assert finding.splitlines() == [
        "Cross-entropy: pass@256 is best at epoch 3 (80.0%) and ends 25% lower, at 60.0%, while pass@1 goes from "
        "3.0% to 5.0%.",
        "DCO, N = 256: pass@256 ends at 90.0%: 12% above cross-entropy's best epoch, 50% above its last.",
        "This is the shape of the paper's Table 1.",
    ]
    assert check == ("Checked by sampling (DCO, N = 256, 32,000 samples): pass@16 is 27.33% ± 0.40%; exact: 27.41%.")


def test_sentences_admit_a_failure():
    fallen = results_of(make_run(1, [0.05, 0.04], [0.8, 0.6]), make_run(256, [0.01, 0.02], [0.5, 0.72]))
    rising = results_of(make_run(1, [0.01, 0.02], [0.3, 0.4]), make_run(256, [0.01, 0.02], [0.3, 0.5]))
    ce, dco, shape = sentences(fallen)[0].splitlines()
    assert ce.endswith("lower, at 60.0%; pass@1 goes from 5.0% to 4.0%.")
    assert "10% below cross-entropy's best epoch" in dco
    assert shape == (
        "These runs do not show all of the paper's Table 1. Missing: cross-entropy's pass@256 falls by 20% while its "
        "pass@1 rises; DCO ends 10% above cross-entropy's best epoch; DCO ends 40% above cross-entropy's last."
    )
    assert "Cross-entropy: pass@256 is still rising at the last epoch, 3 (40.0%)." in sentences(rising)[0]


def test_seeds_are_shown_one_by_one():
    results = make_results(seeds=(0, 1))
    rows = [line.split() for line in as_text(seeds_table(results["summary"])).splitlines()]
    assert ["1", "80.0", "(3)", "60.0", "25%", "90.0", "+12%", "+50%", "3.0", "to", "5.0"] in rows
    assert "2 of 2 seeds show" in sentences(results)[0]


def test_a_schedule_is_measured_on_other_problems_than_it_is_planned_on():
    # Each of four epochs answers its own quarter of the problems, so it pays to spread attempts.
    log_p = np.full((4, 400), -40.0)
    for epoch in range(4):
        log_p[epoch, epoch::4] = np.log(0.5)
    found = schedule([1, 4, 64], log_p)
    assert found["k"] == [1, 4, 64]
    # The best epoch on one half is worse on the other.
    assert found["best_epoch"] == pytest.approx([0.125, 0.25 * (1 - 0.5**4), 0.25], abs=0.05)
    assert found["coverage"] == pytest.approx([0.125, 0.5, 1 - 0.5**16], abs=0.05)
    # Luck does not carry over to other problems, but if planned and measured on the same ones it looks like skill.
    noise = np.where(np.random.default_rng(0).random((60, 400)) < 0.05, 0.0, -40.0)
    assert np.exp(noise).mean(1).max() > 0.07 > schedule([1], noise)["coverage"][0] > 0.03


def test_the_schedule_is_the_last_table():
    lines = as_text(schedule_table(make_results((0, 1))["summary"]), width=80).splitlines()
    assert [line.split()[-8:] for line in lines[:3]] == [
        [f"@{k}" for k in K],
        ["4.0", "16.3", "28.6", "40.9", "53.1", "65.4", "77.7", "90.0"],
        ["5.0", "18.6", "32.1", "45.7", "59.3", "72.9", "86.4", "100"],
    ]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_picture_shows_every_curve_and_right_beside_wrong(seeds):
    results = make_results(seeds)
    figure = plot_demo(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        *("pass@1 during training", "pass@256 during training", "pass@k at the last epoch"),
        *("cross-entropy: seed 0, epoch 6", "DCO, N = 256: seed 0, epoch 6"),
    ]
    lines = figure.axes[1].get_lines()
    assert [line.get_label() for line in lines] == ["cross-entropy", "DCO, N = 16", "DCO, N = 256"]
    assert np.allclose(lines[0].get_ydata(), [0.4, 0.8, 0.6])
    assert np.allclose(figure.axes[0].get_lines()[2].get_ydata(), [0.01, 0.02, 0.03])
    assert len(figure.axes[1].collections) == (3 if len(seeds) > 1 else 0)
    *last, best, scheduled = figure.axes[2].get_lines()
    assert np.allclose(scheduled.get_ydata(), np.linspace(0.05, 1, 8))
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["cross-entropy at its best epoch\nfor pass@256", "one schedule\nover all epochs"]
    assert np.allclose(last[2].get_ydata(), results["runs"][2]["coverage"][-1])
    assert np.allclose(best.get_ydata(), results["runs"][0]["coverage"][1])
    for panel, run in zip(figure.axes[3:], (results["runs"][0], results["runs"][2]), strict=True):
        heights = np.array([bar.get_height() for bar in panel.patches])
        right = sum(run["greedy"][-1]["correct"])
        assert (heights.clip(0).sum(), -heights.clip(None, 0).sum()) == (right, 500 - right)
        assert panel.texts[0].get_text() == f"{right} right, {500 - right} wrong"


@pytest.mark.slow
def test_picture_and_table_of_other_lists_and_of_one_epoch():
    results = results_of(*(make_run(n, [0.01], [0.4]) for n in (1, 4, 64, 512, 4096, 5)))
    assert results["summary"][0]["dco_num_attempts"] == 512  # the nearest to 256
    figure = plot_demo(results)
    first, *others = [line.get_color() for line in figure.axes[0].get_lines()]
    assert first == method_style("cross-entropy")["color"] and len({first, *others}) == 6
    figure.savefig(io.BytesIO())
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(set(ticks)) == len(ticks) > 2  # small shares are told apart
    text = as_text(coverage_table(results["runs"]), width=160)
    assert "DCO, N = 5 " in text and text.splitlines()[2].split()[:4] == ["1", "1.0", "20.5", "40.0*"]


@pytest.mark.slow
def test_results_are_saved_as_json_and_pictures(tmp_path):
    paths = save_results(results := make_results(), tmp_path / "deep" / "folder")
    assert [path.name for path in paths] == ["demo.json", "demo.png", "demo.svg"]
    assert json.loads(paths[0].read_text()) == results
    assert imread(paths[1]).shape[:2] == (1200, 1500)
    assert xml.etree.ElementTree.parse(paths[2]).getroot().tag.endswith("svg")


def test_runs_are_independent_processes_of_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = []
    jobs = [(n, seed) for seed in (0, 1) for n in (1, 256)]
    runs = train_all(demo_workers.quick, jobs, 3, 2, lambda done, total: seen.append((done, total)))
    assert sorted((run["num_attempts"], run["seed"]) for run in runs) == sorted(jobs)
    assert {run["threads"] for run in runs} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7" and "HF_HUB_OFFLINE" in os.environ  # put back
    assert seen[-1] == (12, 12) and seen == sorted(seen)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (demo_workers.failing, ArithmeticError, "no training with N = 1$"),
        (demo_workers.killed, RuntimeError, "a training process was killed, most likely because memory ran out"),
    ],
)
def test_an_error_in_a_run_is_raised_and_told_from_a_killed_run(run, error, message):
    with pytest.raises(error, match=message):
        train_all(run, [(1, 0)], 3, 1, lambda done, total: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_attempts": [1]}, "`num_attempts=1` is cross-entropy, which is always run"),
        ({"num_attempts": [0]}, "num_attempts"),
        ({"num_attempts": []}, "`num_attempts` must be one or more distinct numbers, got []"),
        ({"num_attempts": [16, 16]}, "`num_attempts` must be one or more distinct numbers, got [16, 16]"),
        ({"seeds": []}, "`seeds` must be one or more distinct numbers"),
        ({"seeds": [-1]}, "`seeds` must be an integer of at least 0, got -1"),
        ({"num_epochs": 0}, "`num_epochs` must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, message):
    with pytest.raises(ValueError) as error:
        run_demo(**arguments)
    assert message in str(error.value)


def test_command_says_what_is_wrong_and_exits_with_2(capsys):
    for argv, message in (
        (["--seeds", "0"], "dco-trl demo: --seeds must be an integer of at least 1, got 0."),
        (["--workers", "0"], "dco-trl demo: --workers must be an integer of at least 1"),
        (["--num_attempts", "1"], "dco-trl demo: `num_attempts=1` is cross-entropy"),
    ):
        assert main(argv) == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_command_trains_prints_and_saves(tmp_path):
    """The real trainers for two epochs: everything but the shape of the result."""
    arguments = ["--epochs", "2", "--num_attempts", "256", "--output_dir", "out"]
    command = [sys.executable, "-m", "dco_trl", "demo", *arguments]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # no noise from the libraries below
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["epoch"])
    assert lines[head].split() == ["epoch", *["@1", "@16", "@256", "@4096"] * 2]
    printed = [[float(cell.rstrip("*")) for cell in line.split()] for line in lines[head + 1 : head + 3]]

    results = json.loads((tmp_path / "out" / "demo.json").read_text())
    runs, scheduled = results["runs"], results["summary"][0]["schedule"]
    assert [(run["num_attempts"], run["trainer"]) for run in runs] == [(1, "SFTTrainer"), (256, "DCOTrainer")]
    for i, row in enumerate(printed):
        values = [100 * coverage_at(run, k)[i] for run in runs for k in (1, 16, 256, 4096)]
        assert row == pytest.approx([runs[0]["epochs"][i], *values], abs=0.06)
    for run in runs:
        check = run["check"]
        assert abs(check["sampled"] - check["exact"]) < 4.5 * check["standard_error"]
        # It learns: two epochs are better than one.
        assert coverage_at(run, 256)[1] > coverage_at(run, 256)[0] > 0.02
        assert "log_p" not in run
    assert {"torch", "trl", "transformers", "dco-trl", "python"} <= set(results["versions"])
    assert results["hardware"]["cores"] >= 1 and results["seconds"] > 0
    [schedule] = [line for line in lines if line.startswith("one schedule over all")]
    assert schedule.split()[-1] == percent(scheduled["coverage"][-1])
    # A schedule over four models is at no k much below the best of them.
    assert all(a > b - 0.02 for a, b in zip(scheduled["coverage"], scheduled["best_epoch"], strict=True))
    assert "pass@16 is " in done.stdout and "±" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 3
