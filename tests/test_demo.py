"""The demonstration: its task, its measurements, its table and picture, and the command end to end."""

import itertools
import json
import math
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
from transformers import LlamaConfig, LlamaForCausalLM

from dco_trl.cli.demo import main
from dco_trl.coverage import log_coverage
from dco_trl.demo import measure, task
from dco_trl.demo.figure import plot_demo
from dco_trl.demo.run import _run_in_processes, coverage_at, run_demo, save_results, summarise
from dco_trl.demo.table import coverage_table, percent, seeds_table, sentences

K = [4**i for i in range(8)]


# ------------------------------------------------------------------ task


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


def test_problems_depend_on_the_seed_alone():
    first, again, other = (task.make_problems(seed)[1]["prompt"] for seed in (1, 1, 2))
    assert first == again and first != other


def test_tokenizer_has_one_token_a_character():
    tokenizer = task.make_tokenizer()
    assert len(tokenizer) == len(task.VOCABULARY)
    ids = tokenizer("47*86=").input_ids
    assert [task.VOCABULARY[i] for i in ids] == list("47*86=") and len(ids) == task.PROMPT_LENGTH
    assert tokenizer.decode(tokenizer("4042").input_ids) == "4042"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    with pytest.raises(Exception, match="UNK"):
        tokenizer("47+86=")


def test_model_is_made_by_the_seed():
    one, again, other = (task.make_model(seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


# ---------------------------------------------------------- measurements


@pytest.fixture(scope="module")
def tokenizer():
    return task.make_tokenizer()


@pytest.fixture(scope="module")
def model():
    """Random weights, large enough that answers differ in probability, and biased towards ending."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(task.VOCABULARY),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.6,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    return model.eval()


PROMPTS = ["12*34=", "99*10=", "57*75="]


def enumerate_answers(model, tokenizer, prompt, longest):
    """Probability of every token sequence of at most `longest` tokens that ends with the end of sequence."""
    prompt_ids = tokenizer(prompt).input_ids
    others = [i for i in range(len(task.VOCABULARY)) if i != tokenizer.eos_token_id]
    table = {}
    for length in range(longest):
        for body in itertools.product(others, repeat=length):
            ids = torch.tensor([[*prompt_ids, *body, tokenizer.eos_token_id]])
            log_probs = model(ids).logits[0].double().log_softmax(-1)
            start = len(prompt_ids)
            table[body] = math.exp(sum(float(log_probs[t - 1, ids[0, t]]) for t in range(start, ids.size(1))))
    return table


@torch.no_grad()
def test_probabilities_are_those_of_enumeration(model, tokenizer):
    log_p, texts = measure.greedy_answers(model, tokenizer, PROMPTS, max_answer_tokens=3)
    for i, prompt in enumerate(PROMPTS):
        table = enumerate_answers(model, tokenizer, prompt, longest=3)
        assert sum(table.values()) <= 1 + 1e-6
        for body in [(6,), (6, 7), (13, 4)]:  # "2", "23", "90"
            text = "".join(task.VOCABULARY[token] for token in body)
            ours = measure.reference_log_p(model, tokenizer, [prompt], [text]).exp().item()
            assert ours == pytest.approx(table[body], rel=1e-5)
        # Greedy decoding by hand.
        ids = tokenizer(prompt).input_ids
        body = []
        while len(body) < 3:
            token = int(model(torch.tensor([[*ids, *body]])).logits[0, -1].argmax())
            body.append(token)
            if token == tokenizer.eos_token_id:
                break
        if body[-1] == tokenizer.eos_token_id:
            assert log_p[i].exp().item() == pytest.approx(table[tuple(body[:-1])], rel=1e-5)
            assert texts[i] == "".join(task.VOCABULARY[token] for token in body[:-1])
        else:
            assert log_p[i] == -math.inf and texts[i] is None


def test_greedy_answers_end_or_have_probability_zero(model, tokenizer):
    ended = []
    for longest in (1, 2, 8):
        log_p, texts = measure.greedy_answers(model, tokenizer, PROMPTS, longest)
        assert all((text is None) == (value == -math.inf) for text, value in zip(texts, log_p.tolist(), strict=True))
        ended.append(sum(text is not None for text in texts))
    assert ended == sorted(ended)


def test_reference_log_p_does_not_depend_on_the_other_answers(model, tokenizer):
    together = measure.reference_log_p(model, tokenizer, PROMPTS, ["4", "990", "4275"])
    alone = [
        measure.reference_log_p(model, tokenizer, [p], [a]) for p, a in zip(PROMPTS, ["4", "990", "4275"], strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5)


def test_prompts_of_different_lengths_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match=r"`prompts` must all have the same number of tokens, got lengths \[5, 6\]"):
        measure.reference_log_p(model, tokenizer, ["1*23=", "12*34="], ["23", "408"])


def test_reference_log_p_is_the_trainers_own(tokenizer, tmp_path):
    from dco_trl import DCOConfig, DCOTrainer

    _, held_out = task.make_problems(seed=0)
    model = task.make_model(seed=0)
    args = DCOConfig(
        output_dir=str(tmp_path), num_attempts=256, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True
    )
    trainer = DCOTrainer(
        model=model, args=args, train_dataset=held_out, eval_dataset=held_out, processing_class=tokenizer
    )
    metrics = trainer.evaluate()
    log_p = measure.reference_log_p(model.eval(), tokenizer, held_out["prompt"], held_out["completion"])
    for k in args.coverage_at:
        ours = log_coverage(log_p, k).exp().mean().item()
        assert ours == pytest.approx(metrics[f"eval_coverage@{k}"], rel=1e-4)


@torch.no_grad()
def test_sampling_agrees_with_the_exact_coverage_within_its_error(model, tokenizer):
    answers = []
    for prompt in PROMPTS:  # answers likely enough to be seen
        table = enumerate_answers(model, tokenizer, prompt, longest=2)
        body = sorted(table, key=lambda key: -table[key])[1]
        answers.append("".join(task.VOCABULARY[token] for token in body))
    exact = log_coverage(measure.reference_log_p(model, tokenizer, PROMPTS, answers), 4).exp().numpy()
    error = measure.sampling_error(exact, repeats=500)
    sampled = measure.sampled_coverage(model, tokenizer, PROMPTS, answers, 4, 500, max_answer_tokens=3, seed=0)
    assert 0.01 < exact.mean() < 0.99 and error < 0.02
    assert abs(sampled - exact.mean()) < 4 * error


def test_sampling_error_is_that_of_independent_rounds():
    coverage = np.array([0.0, 0.3, 0.9, 1.0])
    draws = np.random.default_rng(0).random((20_000, 4, 5)) < coverage[:, None]
    assert measure.sampling_error(coverage, repeats=5) == pytest.approx(draws.mean((1, 2)).std(), rel=0.03)
    assert measure.sampling_error(np.array([0.0, 1.0]), repeats=1) == 0


# --------------------------------------------------------------- summary


def make_run(num_attempts, at_1, at_256, seed=0):
    """A record with the given pass@1 and pass@256 an epoch, and something between them elsewhere."""
    rng = np.random.default_rng(num_attempts)
    epochs = [1, *range(3, 3 * len(at_1), 3)]
    coverage = [
        np.interp(np.log2(K), [0, 8, 14], [low, high, 1]).tolist() for low, high in zip(at_1, at_256, strict=True)
    ]
    return {
        "num_attempts": num_attempts,
        "seed": seed,
        "trainer": "SFTTrainer" if num_attempts == 1 else "DCOTrainer",
        "k": K,
        "epochs": epochs,
        "coverage": coverage,
        "greedy": [
            {"epoch": e, "probability": rng.random(500).tolist(), "correct": (rng.random(500) < 0.2).tolist()}
            for e in epochs
        ],
        "check": {"k": 16, "samples": 32000, "exact": 0.2741, "sampled": 0.2733, "standard_error": 0.004},
        "seconds": 60.0,
    }


def make_results(seeds=(0,)):
    runs = []
    for seed in seeds:
        runs += [
            make_run(1, [0.01, 0.03, 0.05], [0.4, 0.8, 0.6], seed),
            make_run(16, [0.01, 0.04, 0.06], [0.4, 0.8, 0.7], seed),
            make_run(256, [0.01, 0.02, 0.03], [0.4, 0.7, 0.9], seed),
        ]
    summary = [summarise([run for run in runs if run["seed"] == seed]) for seed in seeds]
    return {"runs": runs, "summary": summary, "seconds": 123.0}


def test_summary_is_arithmetic():
    summary = make_results()["summary"][0]
    assert summary["ce_best_epoch"] == 3
    assert summary["ce_falls_by"] == pytest.approx(0.25)
    assert summary["dco_num_attempts"] == 256
    assert summary["dco_above_ce_best_by"] == pytest.approx(0.125)
    assert summary["dco_above_ce_end_by"] == pytest.approx(0.5)
    assert all(summary["shown"].values())


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


def test_summary_compares_the_run_nearest_to_256():
    runs = [make_run(n, [0.01, 0.02], [0.8, 0.6]) for n in (1, 16, 512, 4096)]
    assert summarise(runs)["dco_num_attempts"] == 512


# ------------------------------------------------------ table and picture


def as_text(*renderables, width=80):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    for renderable in renderables:
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


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0"), (0.1234, "12.3"), (0.9994, "99.9"), (0.9996, "100"), (1, "100")]
)
def test_percent_fits_its_column(share, text):
    assert percent(share) == text


def test_sentences_say_what_the_numbers_say():
    finding, check = sentences(make_results())
    assert finding.splitlines() == [
        "Cross-entropy: pass@256 is best at epoch 3 (80.0%) and ends at 60.0%, 25% lower, while pass@1 rises from "
        "3.0% to 5.0%.",
        "DCO, N = 256: pass@256 ends at 90.0%: 12% above cross-entropy's best epoch, 50% above its end.",
        "This is the shape of the paper's Table 1.",
    ]
    assert check == ("Check by real sampling (DCO, N = 256, 32,000 samples): pass@16 = 27.33% ± 0.40%; exact: 27.41%.")


def test_sentences_admit_a_failure():
    results = make_results()
    results["runs"] = [make_run(1, [0.05, 0.04], [0.8, 0.6]), make_run(256, [0.01, 0.02], [0.5, 0.72])]
    results["summary"] = [summarise(results["runs"])]
    finding = sentences(results)[0]
    assert "while pass@1 rises from" not in finding
    assert "10% below cross-entropy's best epoch" in finding
    assert "Short of what this demonstration aims for" in finding
    assert "DCO ends 10% above cross-entropy's best epoch; DCO ends 40% above cross-entropy's end." in finding


def test_seeds_are_shown_one_by_one():
    results = make_results(seeds=(0, 1))
    text = as_text(seeds_table(results["summary"]))
    assert ["1", "80.0", "(3)", "60.0", "25%", "90.0", "+12%", "+50%", "3.0", "to", "5.0"] in [
        line.split() for line in text.splitlines()
    ]
    assert "for 2 of 2 seeds" in sentences(results)[0]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_picture_shows_every_curve_and_both_distributions(seeds):
    results = make_results(seeds)
    figure = plot_demo(results)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:5] == ["pass@1", "pass@16", "pass@256", "pass@4096", "pass@k at the last epoch"]
    assert titles[5:] == [f"{run}, epoch {e}" for run in ("cross-entropy", "DCO, N = 256") for e in (1, 3, 6)]
    lines = figure.axes[2].get_lines()
    assert [line.get_label() for line in lines] == ["cross-entropy", "DCO, N = 16", "DCO, N = 256"]
    assert np.allclose(lines[0].get_ydata(), [0.4, 0.8, 0.6])
    assert np.allclose(figure.axes[4].get_lines()[2].get_ydata(), results["runs"][2]["coverage"][-1])
    for panel in figure.axes[5:]:  # right and wrong together are all problems
        assert sum(bar.get_height() for bar in panel.patches) == 500


def test_results_are_saved_as_json_and_pictures(tmp_path):
    results = make_results()
    paths = save_results(results, tmp_path / "deep" / "folder")
    assert [path.name for path in paths] == ["demo.json", "demo.png", "demo.svg"]
    assert json.loads(paths[0].read_text()) == results
    assert imread(paths[1]).shape[:2] == (1425, 1950)
    assert xml.etree.ElementTree.parse(paths[2]).getroot().tag.endswith("svg")


# ------------------------------------------------------------- processes


def test_runs_are_independent_processes_of_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = []
    jobs = [(n, seed) for seed in (0, 1) for n in (1, 256)]
    runs = _run_in_processes(demo_workers.quick, jobs, 3, 2, seen.append)
    assert sorted((run["num_attempts"], run["seed"]) for run in runs) == sorted(jobs)
    assert {run["threads"] for run in runs} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"  # put back
    assert seen[-1] == 12 and seen == sorted(seen)


def test_an_error_in_a_run_is_raised():
    with pytest.raises(ArithmeticError, match="no training with N = 1$"):
        _run_in_processes(demo_workers.failing, [(1, 0)], 3, 1, lambda done: None)


def test_a_killed_run_is_told_from_an_error():
    with pytest.raises(RuntimeError, match="a training process was killed, most likely for want of memory"):
        _run_in_processes(demo_workers.killed, [(1, 0)], 3, 1, lambda done: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_attempts": [1]}, "`num_attempts=1` is cross-entropy, which is always run"),
        ({"num_attempts": [0]}, "num_attempts"),
        ({"num_attempts": []}, "`num_attempts` must be distinct numbers and at least one of them, got []"),
        ({"num_attempts": [16, 16]}, "must be distinct numbers and at least one of them, got [16, 16]"),
        ({"seeds": []}, "`seeds` must be distinct numbers"),
        ({"seeds": [-1]}, "`seeds` must not be negative, got [-1]"),
        ({"num_epochs": 0}, "`num_epochs` must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, message):
    with pytest.raises(ValueError) as error:
        run_demo(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds", "0"], "dco-trl demo: --seeds must be at least 1, got 0."),
        (["--workers", "0"], "dco-trl demo: --workers must be at least 1, got 0."),
        (["--num_attempts", "1"], "dco-trl demo: `num_attempts=1` is cross-entropy"),
    ],
)
def test_command_says_what_is_wrong_and_exits_with_2(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_command_refuses_an_unknown_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--epoch-count", "3"])
    assert exit.value.code == 2 and "epoch-count" in capsys.readouterr().err


# ------------------------------------------------------------ end to end


@pytest.mark.slow
def test_command_trains_prints_and_saves(tmp_path):
    """The real trainers, at two epochs: everything but the shape of the result."""
    command = [sys.executable, "-m", "dco_trl", "demo", "--epochs", "2", "--num_attempts", "256", "--output_dir"]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([*command, "out"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no noise from the libraries below
    lines = done.stdout.splitlines()
    head = next(
        i for i, line in enumerate(lines) if "cross-entropy" in line and "DCO, N = 256" in line and "@" not in line
    )
    assert lines[head + 1].split() == ["epoch", *["@1", "@16", "@256", "@4096"] * 2]
    printed = [[float(cell.rstrip("*")) for cell in line.split()] for line in lines[head + 2 : head + 4]]
    assert max(map(len, lines)) <= 80

    results = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [(run["num_attempts"], run["trainer"]) for run in results["runs"]] == [
        (1, "SFTTrainer"),
        (256, "DCOTrainer"),
    ]
    for i, row in enumerate(printed):
        values = [coverage_at(run, k)[i] for run in results["runs"] for k in (1, 16, 256, 4096)]
        assert row == pytest.approx([results["runs"][0]["epochs"][i], *(100 * value for value in values)], abs=0.06)
    for run in results["runs"]:
        check = run["check"]
        assert abs(check["sampled"] - check["exact"]) < 4.5 * check["standard_error"]
        # It learns: two epochs are better than one.
        assert coverage_at(run, 256)[1] > coverage_at(run, 256)[0] > 0.02
    assert {"torch", "trl", "transformers", "dco-trl", "python"} <= set(results["versions"])
    assert results["hardware"]["cores"] >= 1 and results["seconds"] > 0
    assert "pass@16 = " in done.stdout and "±" in done.stdout
    assert imread(tmp_path / "out" / "demo.png").shape[:2] == (1425, 1950)
    assert (tmp_path / "out" / "demo.svg").exists()
