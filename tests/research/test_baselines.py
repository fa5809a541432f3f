"""The comparison with other methods: objectives against their papers, measurement, selection, resuming."""

import json
import math
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import stats
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from dco_trl.coverage import coverage_loss
from dco_trl.demo import task
from dco_trl.demo.training import training_arguments
from dco_trl.sampling import exact_coverage
from research.baselines import figure, selection, tasks, training
from research.baselines import losses as token_losses
from research.baselines import run as baselines
from research.common.differences import interval


def tokens():
    """Logits of seven tokens over a vocabulary of five, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(7, 5, dtype=torch.float64, generator=generator)
    return logits, torch.randint(5, (7,), generator=generator)


def naive(name, z, y, **setting):
    """One token's loss, written out from the paper, token by token, for autograd."""
    exps = [torch.exp(v) for v in z]
    pi = [e / sum(exps) for e in exps]
    if name == "label smoothing":
        target = [setting["epsilon"] / len(z) + (1 - setting["epsilon"]) * (v == y) for v in range(len(z))]
        return -sum(target[v] * torch.log(pi[v]) for v in range(len(z)))
    if name == "focal loss":
        return -((1 - pi[y]) ** setting["gamma"]) * torch.log(pi[y])
    if name == "entropy bonus":
        entropy = -sum(q * torch.log(q) for q in pi)
        return -torch.log(pi[y]) - setting["strength"] * entropy
    assert name == "GEM"
    # The game: q is the best reply, held constant, and so is the slope of h.
    powers = [float(q.detach()) ** (1 / setting["beta"]) for q in pi]
    loss = 0.0
    for v in range(len(z)):
        ahead = torch.log(pi[y]) - torch.log(pi[v])
        slope = 1.0 if setting["h"] == "linear" else 1 / (1 + math.exp(0.01 * float(ahead.detach())))
        loss = loss - powers[v] / sum(powers) * slope * ahead
    return loss


OBJECTIVES = [
    ("label smoothing", {"epsilon": 0.1}),
    ("label smoothing", {"epsilon": 1.0}),
    ("focal loss", {"gamma": 1}),
    ("focal loss", {"gamma": 5}),
    ("entropy bonus", {"strength": 0.2}),
    ("GEM", {"beta": 0.3, "h": "linear"}),
    ("GEM", {"beta": 0.7, "h": "linear"}),
    ("GEM", {"beta": 0.7, "h": "logsigmoid"}),
]


@pytest.mark.parametrize(("name", "setting"), OBJECTIVES)
def test_objectives_and_gradients_are_their_papers(name, setting):
    logits, labels = tokens()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = training.TOKEN_LOSSES[name](ours, labels, **setting)
    expected = torch.stack([naive(name, z, int(y), **setting) for z, y in zip(theirs, labels, strict=True)])
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    weights = torch.arange(1.0, len(labels) + 1, dtype=torch.float64)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_gem_names_an_unknown_h():
    with pytest.raises(ValueError, match="h: got 'cubic'.*'linear' and 'logsigmoid'"):
        token_losses.gem(*tokens(), 0.7, "cubic")


@pytest.mark.parametrize(("name", "setting"), OBJECTIVES)
def test_objectives_stay_finite_where_the_model_is_sure(name, setting):
    logits = torch.tensor([[80.0, 0.0, -80.0], [80.0, 0.0, -80.0]], requires_grad=True)  # right, and wrong
    losses = training.TOKEN_LOSSES[name](logits, torch.tensor([0, 2]), **setting)
    losses.sum().backward()
    assert losses.isfinite().all() and logits.grad.isfinite().all()


@pytest.fixture(scope="module")
def problem_set():
    train, held_out = task.make_problems(seed=0)
    return train.select(range(24)), held_out.select(range(20))


def make(method, setting, tmp_path, problems):
    arguments = training_arguments(str(tmp_path), len(problems), 1, seed=0)
    return training.make_trainer(method, setting, task.make_model(seed=0), arguments, problems, task.make_tokenizer())


def loss_and_gradient(trainer):
    """Loss and gradient of one batch through the whole trainer, with tokens counted as `Trainer` counts them."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())
    return batch, loss.item(), gradient_of(trainer.model, loss)


def completion_log_probs(model, batch):
    """Each row's log-probabilities of its completion tokens, from the model's own logits, one token at a time."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    rows = []
    for i, labels in enumerate(batch["labels"].tolist()):
        rows.append([logits[i, t - 1, y] for t, y in enumerate(labels) if y != -100])
    return rows


def gradient_of(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_token_losses_use_the_labels_and_the_mean_of_sft_trainer(tmp_path, problem_set):
    rival = make("label smoothing", {"epsilon": 0.0}, tmp_path, problem_set[0])
    trls = make("cross-entropy", {}, tmp_path, problem_set[0])
    assert type(trls) is SFTTrainer and type(rival) is training.TokenLossTrainer
    batch, loss, gradient = loss_and_gradient(rival)
    their_batch, their_loss, their_gradient = loss_and_gradient(trls)
    assert torch.equal(batch["input_ids"], their_batch["input_ids"])
    # The six prompt tokens of a row are not trained on; answers and their end of sequence are.
    assert (batch["labels"][:, : task.PROMPT_LENGTH] == -100).all()
    assert all(row[row != -100][-1] == task.VOCABULARY.index("<eos>") for row in batch["labels"])
    assert loss == pytest.approx(their_loss, rel=1e-5)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-6)


def test_dft_of_trl_weights_each_tokens_gradient_by_its_probability(tmp_path, problem_set):
    trainer = make("DFT", {}, tmp_path, problem_set[0])
    batch, loss, gradient = loss_and_gradient(trainer)
    flat = [value for row in completion_log_probs(trainer.model, batch) for value in row]
    expected = -sum(value.exp().detach() * value for value in flat) / len(flat)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(gradient, gradient_of(trainer.model, expected), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_mixture_has_the_gradient_of_the_mean_of_the_coverage_losses(tmp_path, problem_set):
    trainer = make("DCO mixture", {}, tmp_path, problem_set[0])
    with torch.no_grad():  # a surer model, until the weights are neither all 1 nor all 0
        for _ in range(200):
            batch = next(iter(trainer.get_train_dataloader()))
            with torch.enable_grad():
                rows = completion_log_probs(trainer.model, batch)
            log_p = torch.stack([sum(row) for row in rows])
            if trainer._weights(log_p).mean() < 0.7:
                break
            with torch.enable_grad():
                gradient_of(trainer.model, -sum(map(sum, rows)) / sum(map(len, rows)))
            for p in trainer.model.parameters():
                p -= 0.01 * p.grad.sign() * p.abs().mean()
    batch, _, gradient = loss_and_gradient(trainer)
    rows = completion_log_probs(trainer.model, batch)
    log_p = torch.stack([sum(row) for row in rows])
    losses = torch.stack([coverage_loss(log_p, n) for n in training.DCO_ATTEMPTS]).mean(0)
    weights = trainer._weights(log_p.detach())
    assert 0.1 < weights.mean() < 0.9
    expected = gradient_of(trainer.model, losses.sum() / sum(map(len, rows)))
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_recorder_measures_validation_and_test(problem_set):
    tokenizer, held_out = task.make_tokenizer(), problem_set[1]
    validation, test = held_out.select(range(12)), held_out.select(range(12, 20))
    recorder = training.Recorder(tokenizer, tasks.Problems(problem_set[0], validation, test), set())
    model = task.make_model(seed=1)
    model.train()
    tables = recorder.measure(model)
    assert model.training  # as it was found
    for table, part in zip(tables, (validation, test), strict=True):
        assert table.shape == (len(training.TEMPERATURES), len(part))
        log_p = exact_coverage(model, tokenizer, task.as_problems(part), progress=False).log_p
        assert table[0].numpy() == pytest.approx(log_p, rel=1e-5)


def test_multiplication_is_the_demonstrations_with_its_held_out_problems_halved():
    problems = tasks.Multiplication().make_problems(seed=3)
    train, held_out = task.make_problems(seed=3)
    assert problems.train["prompt"] == train["prompt"]
    assert [*problems.validation["prompt"], *problems.test["prompt"]] == held_out["prompt"]
    assert len(problems.validation) == len(problems.test) == 250


@pytest.fixture(scope="module")
def math_folder(tmp_path_factory):
    """A tiny model with one token a character, and problems with the columns of MATH."""
    folder = tmp_path_factory.mktemp("math")
    vocabulary = ["<pad>", "<eos>", *string.printable]
    task.make_tokenizer(vocabulary).save_pretrained(folder / "model")
    config = task.make_model(seed=0).config
    config.vocab_size, config.max_position_embeddings = len(vocabulary), 64
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    rows = [{"problem": f" {'1' * (20 - i)}*{i}= ", "answer": str(i)} for i in range(20)]
    rows += [{"problem": "1=", "answer": None}, {"problem": "2=", "answer": " "}]
    (folder / "data").mkdir()
    for split, part in (("train", rows), ("test", rows[10:])):
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def math_of(folder, num_train, num_test, data="data"):
    return tasks.MathAnswers(str(folder / "model"), str(folder / data), num_train, num_test)


def test_math_takes_the_shortest_and_leaves_out_what_has_no_answer(math_folder):
    math_task = math_of(math_folder, num_train=10, num_test=4)
    problems = math_task.make_problems(seed=0)
    assert (len(problems.train), len(problems.validation), len(problems.test)) == (10, 4, 4)
    drawn = {*problems.train["prompt"], *problems.validation["prompt"]}
    assert drawn == {f"{'1' * (20 - i)}*{i}=\nAnswer:" for i in range(6, 20)}  # fewer ones, fewer tokens
    assert problems.test["prompt"] == [f"{'1' * (20 - i)}*{i}=\nAnswer:" for i in (19, 18, 17, 16)]
    assert problems.test["completion"][0] == " 19"
    assert math_task.make_problems(seed=1).train["prompt"] == problems.train["prompt"]
    assert math_task.description.startswith("MATH, direct answers, model: 10 of the shortest problems to train on")


def test_math_says_what_is_missing(math_folder):
    with pytest.raises(ValueError, match=r"has 20 and 10 problems.*--num_train 17 and --num_test 4 need 21 and 4"):
        math_of(math_folder, 17, 4).make_problems(seed=0)
    wrong = math_folder / "wrong"
    wrong.mkdir()
    (wrong / "train.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"the splits \['train'\]; train and test are needed"):
        math_of(math_folder, 1, 1, "wrong").make_problems(seed=0)
    (wrong / "test.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"the columns \['question', 'answer'\]; problem and answer are needed"):
        math_of(math_folder, 1, 1, "wrong").make_problems(seed=0)


@pytest.mark.slow
def test_math_trains_and_measures(math_folder, monkeypatch):
    monkeypatch.setattr(training, "be_quiet", lambda: None)  # it would silence the tests that follow
    record, log_p = training.train(math_of(math_folder, 10, 4), "cross-entropy", {}, seed=0, num_epochs=2)
    coverage = np.array(record["coverage"])
    assert coverage.shape == (2, len(training.TEMPERATURES), 2, len(training.KS))
    assert (np.diff(coverage, axis=-1) >= 0).all() and 0 < coverage[0, 0, 0, -1] <= 1
    assert coverage[1, 0, 0, -1] > coverage[0, 0, 0, -1]  # it learns that answers are numbers
    assert {average["setting"]["early"] for average in record["averages"]} == {1}
    assert record["task"] == math_of(math_folder, 10, 4).description


def test_averaged_weights_lie_between_the_checkpoints():
    early, late = {"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 0.0])}
    assert training.mix(early, late, 0.25)["w"].tolist() == [0.25, 3.0]


def test_early_epochs():
    assert training.early_epochs(34) == [4, 8, 12, 16, 20, 24]
    assert training.early_epochs(1) == []
    assert max(training.early_epochs(5)) < 5


def made_up_run(method, setting, seed, validation, test):
    """validation and test: (epochs, temperatures) at k = 1; at other k's nothing is learnt."""
    coverage = np.zeros((*np.shape(validation), 2, 4))
    coverage[..., 0, 0], coverage[..., 1, 0] = validation, test
    axes = {"k": [1, 16, 256, 4096], "temperatures": [1.0, 2.0], "coverage": coverage.tolist()}
    return {"method": method, "setting": setting, "seed": seed, **axes}


def test_validation_decides_and_test_is_reported():
    runs = [
        made_up_run("GEM", {"beta": 0.3}, 0, [[0.1, 0.2], [0.3, 0.1]], [[0.9, 0.8], [0.4, 0.7]]),
        made_up_run("GEM", {"beta": 0.7}, 0, [[0.2, 0.6], [0.1, 0.6]], [[1.0, 0.05], [1.0, 1.0]]),
        made_up_run("DFT", {}, 0, [[1.0, 1.0]] * 2, [[1.0, 1.0]] * 2),
    ]
    Selection = selection.Selection
    at_one = selection.choose(runs, Selection("GEM", ("GEM",)), k=1)
    chosen = {"setting": {"beta": 0.3}, "epoch": 2, "temperature": 1.0, "validation": 0.3, "test": 0.4}
    assert at_one == {"method": "GEM", **chosen}
    tuned = selection.choose(runs, Selection("GEM", ("GEM",), any_temperature=True), k=1)
    # Among equals, the earliest is chosen.
    assert (tuned["setting"], tuned["epoch"], tuned["temperature"], tuned["test"]) == ({"beta": 0.7}, 1, 2.0, 0.05)
    last = selection.choose(runs[1:2], Selection("GEM", ("GEM",), any_epoch=False), k=1)
    assert (last["epoch"], last["validation"], last["test"]) == (2, 0.1, 1.0)
    with pytest.raises(ValueError, match="selection 'CE': no run of .*run these methods first"):
        selection.choose(runs, Selection("CE", ("cross-entropy",)), k=1)


def test_intervals_are_students_and_differences_paired():
    values = [0.1, 0.4, 0.2]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    got = interval(values)
    assert (got["mean"], got["low"], got["high"]) == pytest.approx((np.mean(values), low, high), abs=1e-5)
    assert interval([0.5]) == {"mean": 0.5, "low": None, "high": None}

    runs = []
    for seed, base in enumerate((0.1, 0.5, 0.3)):  # seeds differ much, methods by a constant
        runs.append(made_up_run("cross-entropy", {}, seed, [[base, 0]], [[base, 0]]))
        runs[-1]["averages"] = [{"setting": {"early": 1, "late_weight": 0.5}, "coverage": runs[-1]["coverage"][0]}]
        runs.append(made_up_run("DCO", {"num_attempts": 16}, seed, [[base, 0]], [[base + 0.2, 0]]))
    results = selection.compare(runs, ["cross-entropy", "DCO"])
    rival = "cross-entropy, best epoch"
    assert results["seeds"] == [0, 1, 2]
    assert results["selections"][rival]["1"]["test"] == [0.1, 0.5, 0.3]
    assert results["differences"]["DCO"][rival]["1"] == {"mean": 0.2, "low": 0.2, "high": 0.2}
    assert results["selections"][rival]["1"]["high"] > 0.7  # not paired: wide
    assert results["selections"]["weight averaging"]["1"]["mean"] == 0.3
    assert [curve["method"] for curve in results["settings"]] == ["cross-entropy", "DCO", "weight averaging"]
    assert results["settings"][1]["last_epoch"]["mean"] == [0.5, 0, 0, 0]
    assert results["settings"][1]["by_epoch"] == [[0.5, 0, 0, 0]]


def test_every_method_is_in_the_table_at_temperature_one_and_tuned():
    rows = selection.selections(list(training.METHODS))
    for name in [*training.METHODS, "weight averaging", "DCO family"]:
        assert sum(row.name.startswith(name) and row.any_temperature for row in rows) >= 1
        assert sum(row.name.startswith(name) and not row.any_temperature for row in rows) >= 1
    assert len({row.name for row in rows}) == len(rows)


def test_plan_is_seed_after_seed_with_a_file_each():
    jobs = baselines.plan(list(baselines.METHODS), 5)
    assert [job[2] for job in jobs] == sorted(job[2] for job in jobs)
    assert len(jobs) == 5 * sum(map(len, baselines.METHODS.values()))
    assert len({baselines.path_of(Path("x"), job) for job in jobs}) == len(jobs)
    assert [job[1] for job in baselines.plan(["DCO"], 1, [16, 256])] == [{"num_attempts": 16}, {"num_attempts": 256}]


def keep_made_up_runs(work_dir, methods, skip=()):
    generator = np.random.default_rng(0)
    for job in baselines.plan(methods, 2):
        values = generator.random((2, len(training.TEMPERATURES), 2, len(training.KS)))
        if job in skip:
            continue
        record = {
            "method": job[0],
            "setting": job[1],
            "seed": job[2],
            "task": tasks.Multiplication.description,
            "num_epochs": 2,
            "k": training.KS,
            "temperatures": training.TEMPERATURES,
            "coverage": np.sort(values, -1).tolist(),
            "seconds": 1.0,
        }
        if job[0] == "cross-entropy":
            record["averages"] = [{"setting": {"early": 1, "late_weight": 0.5}, "coverage": record["coverage"][0]}]
        baselines.path_of(work_dir, job).write_text(json.dumps(record))


@pytest.mark.slow
def test_finished_runs_are_not_run_again_and_incomplete_seeds_are_left_out(tmp_path):
    methods, work_dir = ["cross-entropy", "DCO", "DCO mixture"], tmp_path / "runs"
    work_dir.mkdir()
    missing = ("DCO", {"num_attempts": 64}, 1)
    keep_made_up_runs(work_dir, methods, skip=[missing])
    jobs = baselines.plan(methods, 2)
    assert baselines.merge(tasks.Multiplication(), work_dir, jobs, methods, 2)["seeds"] == [0]
    output, figure = tmp_path / "docs" / "run.json", tmp_path / "docs" / "baselines.png"
    keep_made_up_runs(work_dir, methods)
    before = {path: path.read_bytes() for path in work_dir.iterdir()}
    command = ["--work_dir", str(work_dir), "--output", str(output), "--figure", str(figure)]
    command += ["--seeds", "2", "--epochs", "2", "--methods", *methods]
    assert baselines.main(command) == 0
    assert {path: path.read_bytes() for path in work_dir.iterdir()} == before
    results = json.loads(output.read_text())
    assert results["seeds"] == [0, 1] and results["num_runs"] == 16
    assert "DCO family, temperature tuned" in results["differences"]
    height, width, _ = imread(figure).shape
    assert width == 1320 > height
    with pytest.raises(SystemExit):  # the same folder cannot serve another length
        baselines.main([*command, "--epochs", "3"])
    with pytest.raises(SystemExit):  # nor another task
        baselines.main([*command, "--task", "math"])


def test_command_refuses_what_it_cannot_do(tmp_path, capsys):
    base = ["--work_dir", str(tmp_path / "runs"), "--output", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit):
        baselines.main([*base, "--seeds", "0"])
    assert "--seeds: got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        baselines.main([*base, "--methods", "DFT", "--figure", str(tmp_path / "f.png")])
    assert "--figure: needs --methods cross-entropy and DCO" in capsys.readouterr().err


def test_figure_names_the_missing_curve():
    with pytest.raises(ValueError, match="no cross-entropy with .*run research.baselines.run"):
        figure.plot_frontier({"settings": [{"method": "DFT", "setting": {}, "k": [1]}], "seeds": [0]})
