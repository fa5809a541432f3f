"""`CoTDCOTrainer`: windows, weights, targets, resuming."""

import itertools
import logging
import math
from collections import deque

import numpy as np
import pytest
import torch
from cot import ROWS, last_word, make_cot_trainer, settings, steps_of, weights_after
from datasets import Dataset
from peft import LoraConfig
from tiny_models import make_model, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.grading import GraderError
from dco_trl.sampling import Sample, TransformersSampler
from dco_trl.statistics import posterior_weight
from dco_trl.trainer.rationales import Draws, RationaleDrawer
from dco_trl.trainer.success_counts import SuccessCounts
from dco_trl.trainer.window import Window
from dco_trl.trainer.window_sampler import WindowSampler

COUNTED = [{**row, "num_sampled": 64, "num_correct": 5 * i} for i, row in enumerate(ROWS)]


# ------------------------------------------------------------------------- weights


@pytest.mark.parametrize("batches", [{}, {"padding_free": True, "max_length": None}])
def test_one_attempt_is_sft_bit_for_bit(batches):
    common = settings(gradient_accumulation_steps=2, **batches)
    ours = weights_after(make_cot_trainer(num_attempts=1, gradient_accumulation_steps=2, **batches))
    own = set(CoTDCOConfig.__dataclass_fields__) - set(SFTConfig.__dataclass_fields__)
    sft = SFTTrainer(
        make_model(),
        args=SFTConfig(**{name: value for name, value in common.items() if name not in own}),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=make_tokenizer(),
    )
    sft.train()
    for name, weight in sft.model.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=0, msg=name)


def test_weights_are_those_of_the_counts_in_the_data_set():
    trainer = make_cot_trainer(COUNTED, sampler="none", per_device_train_batch_size=len(ROWS), max_steps=1)
    trainer.train()
    counts = [64] * len(ROWS), [row["num_correct"] for row in COUNTED]
    expected, _ = posterior_weight(*counts, 16, trainer._windows.counts.prior)
    [step] = steps_of(trainer)
    assert step["coverage_weight"] == pytest.approx(expected.mean(), abs=1e-6)
    a, b = trainer._windows.counts.prior
    rates = (a + np.array(counts[1])) / (a + b + 64)
    assert step["success_rate"] == pytest.approx(rates.mean(), abs=1e-6)
    assert step["log_p"] == pytest.approx(np.log(rates).mean(), abs=1e-5)


def test_the_authors_estimator():
    trainer = make_cot_trainer(
        COUNTED, sampler="none", estimator="plugin", per_device_train_batch_size=len(ROWS), max_steps=1
    )
    trainer.train()
    p = np.array([row["num_correct"] for row in COUNTED[1:]]) / 64
    naive = [1.0, *(16 * (1 - p) ** 15 * p / (1 - (1 - p) ** 16))]
    assert steps_of(trainer)[0]["coverage_weight"] == pytest.approx(np.mean(naive), abs=1e-6)


@pytest.mark.parametrize("estimator", ["posterior", "plugin"])
@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0])
def test_no_weight_is_below_the_floor(floor, estimator):
    rows = [{**row, "num_sampled": 64, "num_correct": i} for i, row in enumerate(ROWS)]
    trainer = make_cot_trainer(
        rows, sampler="none", estimator=estimator, weight_floor=floor,
        per_device_train_batch_size=len(ROWS), max_steps=1,
    )  # fmt: skip
    trainer.train()
    weights, _ = trainer._windows.counts.weights(np.arange(len(rows)), 16, estimator)
    assert (weights < 0.3).any() and (weights > 0.3).any()
    assert steps_of(trainer)[0]["coverage_weight"] == pytest.approx(np.maximum(weights, floor).mean(), abs=1e-6)


def test_a_floor_of_one_is_training_on_own_rationales_with_weight_one():
    """The very update of N = 1, whose weights are 1; what is drawn stays that of N."""
    kwargs = dict(targets="sampled", weight_tolerance=0.0, max_steps=2)
    one, floored = make_cot_trainer(num_attempts=1, **kwargs), make_cot_trainer(weight_floor=1.0, **kwargs)
    expected, found = weights_after(one), weights_after(floored)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0, msg=name)


def test_rows_of_the_same_prompt_share_their_counts():
    twice = [ROWS[0], {**ROWS[0], "completion": "other 2"}, ROWS[1]]
    trainer = make_cot_trainer(twice, num_rationales=8, per_device_train_batch_size=3, max_steps=1)
    trainer.train()
    assert trainer._windows.next_index.tolist() == [8, 0, 8]


def test_counts_in_the_data_set_are_the_first_memory_of_a_sampler():
    kwargs = dict(num_rationales=8, max_steps=1, per_device_train_batch_size=len(ROWS))
    known = [{**row, "num_sampled": 1000, "num_correct": 900} for row in ROWS]
    remembering, forgetting = make_cot_trainer(known, **kwargs), make_cot_trainer(known, count_memory=0.0, **kwargs)
    for trainer in (remembering, forgetting):
        trainer.train()
    # Half of 900 in 1,000, and 8 of an untrained model, which gets none right.
    assert steps_of(remembering)[0]["success_rate"] == pytest.approx(450 / 508, abs=0.01)
    assert steps_of(forgetting)[0]["success_rate"] < 0.1


@pytest.mark.slow
def test_success_rates_are_those_of_the_model():
    # Trained for a while, so that the rates are neither 0 nor 1; then the exact ones, by summing over rationales.
    trainer = make_cot_trainer(num_train_epochs=12, num_attempts=1, num_rationales=8)
    trainer.train()
    model = trainer.model
    measuring = make_cot_trainer(
        model=model, num_rationales=512, weight_tolerance=0.0, learning_rate=0.0, max_steps=1,
        per_device_train_batch_size=len(ROWS),
    )  # fmt: skip
    measuring.train()
    rate = measuring._windows.counts.num_correct / 512
    assert 0.02 < rate.mean() < 0.98
    again = make_cot_trainer(
        model=model, num_rationales=512, weight_tolerance=0.0, learning_rate=0.0, max_steps=1,
        per_device_train_batch_size=len(ROWS), seed=1,
    )  # fmt: skip
    again.train()
    other = again._windows.counts.num_correct / 512
    error = np.sqrt((rate * (1 - rate) + other * (1 - other)) / 512 + 1e-6)
    assert (np.abs(rate - other) < 5 * error).all() and (rate != other).any()


# ------------------------------------------------------------------------- windows


def record_draws(monkeypatch) -> list[Draws]:
    """What each window draws from here on."""
    all_draws: list[Draws] = []
    draw = RationaleDrawer.draw

    def recorded(self, *args):
        all_draws.append(draw(self, *args))
        return all_draws[-1]

    monkeypatch.setattr(RationaleDrawer, "draw", recorded)
    return all_draws


@pytest.mark.parametrize(
    ("interval", "warmup", "windows"),
    [("epoch", 0, [12, 12]), (1, 0, [4] * 6), (2, 0, [8, 4, 8, 4]), ("epoch", 2, [4, 12]), ("2", 3, [8, 4])],
)
def test_sampling_fires_once_a_window(monkeypatch, interval, warmup, windows):
    all_draws = record_draws(monkeypatch)
    trainer = make_cot_trainer(
        sampling_interval=interval,
        ce_warmup_steps=warmup,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert [len(draws.problems) for draws in all_draws] == windows
    assert trainer.state.global_step == 6
    steps = steps_of(trainer)
    assert [step["coverage_weight"] == 1 for step in steps[:warmup]] == [True] * warmup
    assert all(step["coverage_weight"] < 1 for step in steps[warmup:])
    sampled = [i for i, step in enumerate(steps) if "rationales" in step]
    assert len(sampled) == len(windows)


def test_an_epoch_is_not_sampled_beyond_the_last_step(monkeypatch):
    all_draws = record_draws(monkeypatch)
    make_cot_trainer(max_steps=2).train()
    assert [len(draws.problems) for draws in all_draws] == [8]


def record_samples(monkeypatch) -> list[tuple[int, Sample]]:
    """What the sampler returns from here on: the problem and the sample."""
    samples: list[tuple[int, Sample]] = []
    sample = TransformersSampler.sample

    def recorded(self, requests, params):
        groups = sample(self, requests, params)
        samples.extend((r.stream, s) for r, group in zip(requests, groups, strict=True) for s in group)
        return groups

    monkeypatch.setattr(TransformersSampler, "sample", recorded)
    return samples


def tells_start(function, starts: list[int], samples: list):
    """`function`, noting how many samples there were before."""

    def told(*args):
        starts.append(len(samples))
        return function(*args)

    return told


def test_draws_never_repeat(monkeypatch):
    trainer = make_cot_trainer(num_train_epochs=3, num_rationales=16, weight_tolerance=0.0)
    requested: list[tuple[int, int]] = []
    sample = TransformersSampler.sample

    def recorded(self, requests, params):
        requested.extend((r.stream, r.first_index + i) for r in requests for i in range(r.num_samples))
        return sample(self, requests, params)

    monkeypatch.setattr(TransformersSampler, "sample", recorded)
    trainer.train()
    assert len(requested) == len(set(requested)) == trainer._windows.next_index.sum() > 0


def test_a_prompt_leaves_when_its_weight_is_known():
    strict = make_cot_trainer(weight_tolerance=0.0, num_rationales=24, max_steps=3)
    lax = make_cot_trainer(weight_tolerance=1.0, num_rationales=24, max_steps=3)
    for trainer in (strict, lax):
        trainer.train()
    assert steps_of(strict)[0]["rationales"] == 24 and steps_of(strict)[0]["prompts_settled"] == 0
    assert steps_of(lax)[0]["rationales"] == 8 and steps_of(lax)[0]["prompts_settled"] == 1


def test_metrics_of_a_window(monkeypatch):
    # Every number from the samples themselves, over windows of three steps, each logged at its first.
    trained = make_cot_trainer(num_train_epochs=8, num_attempts=1, num_rationales=1)
    trained.train()
    samples, known = record_samples(monkeypatch), []

    def sometimes(completions, **_):  # no opinion on some, right on others
        return [None if len(text) % 3 == 0 else float(len(text) % 2) for text in completions]

    trainer = make_cot_trainer(
        model=trained.model, grader=sometimes, num_train_epochs=3, max_rationale_tokens=6, count_memory=0.5,
        rationale_batch=5, num_rationales=13, weight_tolerance=0.2, sampling_interval=2, gradient_accumulation_steps=1,
        per_device_train_batch_size=3,
    )  # fmt: skip
    weigh = WindowSampler._weigh

    def weighed(self, window, metrics):
        known.append((self.counts.num_sampled.copy(), self.counts.num_correct.copy(), self.counts.prior))
        weigh(self, window, metrics)
        known[-1] += (dict(window.estimates),)

    monkeypatch.setattr(WindowSampler, "_weigh", weighed)
    starts = []
    monkeypatch.setattr(WindowSampler, "open", tells_start(WindowSampler.open, starts, samples))
    trainer.train()
    steps = steps_of(trainer)
    n, c, twin = np.zeros(12), np.zeros(12), SuccessCounts(12)
    assert len(starts) == len(known) == 6
    for window, (first, last) in enumerate(itertools.pairwise([*starts, len(samples)])):
        step, drawn = steps[2 * window], samples[first:last]
        problems = sorted({problem for problem, _ in drawn})
        num_drawn = np.array([sum(p == problem for p, _ in drawn) for problem in problems])
        whole = [(p, len(s.text)) for p, s in drawn if s.finish_reason == "stop"]
        assert step["rationales"] == pytest.approx(len(drawn) / len(problems))
        assert step["rationale_tokens"] == sum(len(sample.token_ids) for _, sample in drawn)
        assert step["rationales_truncated"] == pytest.approx(1 - len(whole) / len(drawn), abs=1e-4)
        ungraded = sum(length % 3 == 0 for _, length in whole) / len(drawn)
        assert step["rationales_ungraded"] == pytest.approx(ungraded, abs=1e-4)
        # A function's None is no answer that it could read.
        assert step["rationales_unparsed"] == pytest.approx(ungraded, abs=1e-4)
        assert step["prompts_settled"] == pytest.approx((num_drawn < 13).mean(), abs=1e-4)
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
    for step, second in zip(steps[::2], steps[1::2], strict=True):
        assert "success_rate" not in second
        assert step["log_p"] < 0 < step["coverage_loss"]
    both = [(s["coverage_weight"] + t["coverage_weight"]) / 2 for s, t in zip(steps[::2], steps[1::2], strict=True)]
    for mean, (*_, estimates) in zip(both, known, strict=True):
        assert mean == pytest.approx(np.mean([weight for weight, _ in estimates.values()]), rel=1e-3)
    objective = [-np.log(1 - (1 - np.exp(log_p)) ** 16) for _, log_p in known[0][3].values()]
    logged = (steps[0]["coverage_loss"] + steps[1]["coverage_loss"]) / 2
    assert logged == pytest.approx(np.mean(objective), rel=1e-3)


# ------------------------------------------------------------------------- hard filter


@pytest.mark.parametrize("estimator", ["posterior", "plugin"])
def test_the_hard_filter_keeps_rows_at_most_so_easy_and_fills_the_batch(estimator):
    trainer = make_cot_trainer(COUNTED, sampler="none", estimator=estimator, max_success_rate=0.3, num_train_epochs=1)
    trainer.state.max_steps = 3
    trainer._open_window(iter([{"dco": {"row": torch.arange(4)}}] * 3))
    assert [len(batch) for batch in trainer._window.batches] == [4, 4, 4]
    rows = trainer._window.rows
    hard = [i for i, row in enumerate(COUNTED) if row["num_correct"] / 64 <= 0.3]
    assert set(rows) == set(hard)
    assert max(rows.count(row) for row in hard) - min(rows.count(row) for row in hard) <= 1


# Remembered well enough that a few rationales of an untrained model, all wrong, change nothing: rows 0 to 3 are hard.
FILTERED = {"max_success_rate": 0.27, "count_memory": 1.0}
REMEMBERED = [{**row, "num_sampled": 6400, "num_correct": 500 * i} for i, row in enumerate(ROWS)]


def test_the_hard_filter_trains_on_hard_rows_alone_and_as_many_steps_as_without(monkeypatch):
    served = []
    collate = CoTDCOTrainer._collate
    monkeypatch.setattr(CoTDCOTrainer, "_collate", lambda self, rows: served.extend(rows) or collate(self, rows))
    trainer = make_cot_trainer(REMEMBERED, sampling_interval=1, **FILTERED)
    trainer.train()
    assert trainer.state.global_step == 6 and len(served) == 24
    assert set(served) == {0, 1, 2, 3}
    kept = [step["rows_kept"] for step in steps_of(trainer)]
    # 24 rows come from 6 passes over 12 rows of which 4 are hard.
    assert all(0 < share < 1 for share in kept) and 0.25 < 6 / sum(1 / share for share in kept) < 0.45


def test_nothing_hard_left_is_an_error():
    easy = [{**row, "num_sampled": 1000, "num_correct": 999} for row in ROWS]
    trainer = make_cot_trainer(easy, sampler="none", max_success_rate=0.5)
    with pytest.raises(
        RuntimeError, match="None of the 12 rows tried.*`max_success_rate=0.5`.*Raise it, leave it out"
    ):
        trainer.train()


# ------------------------------------------------------------------------- targets

SYMBOLS = ["<pad>", "<eos>", "a", "b", "c", "="]


def enumerable_trainer(**overrides) -> CoTDCOTrainer:
    """A model over six symbols whose rationales have at most two, so that all 43 can be summed over.

    A rationale is right if it ends in "b".
    """
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    return CoTDCOTrainer(
        make_model(vocab_size=len(SYMBOLS), initializer_range=0.1, hidden_size=32),
        args=CoTDCOConfig(**settings(max_rationale_tokens=3, loss_reduction="sequence", **overrides)),
        train_dataset=Dataset.from_list([{"prompt": "a=", "completion": "cb", "answer": "b"}]),
        grader=lambda completions, answer, **_: [float(text.endswith("b")) for text in completions],
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"),
    )


def log_probability(model, completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([[2, 5, *completion]])
    log_probs = model(ids).logits.log_softmax(-1)[0, 1:-1]
    return log_probs.gather(-1, torch.tensor(completion)[:, None]).sum()


def gradient(model, loss) -> torch.Tensor:
    grads = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return torch.cat([grad.flatten() for grad in grads]).double()


def window_gradient(trainer: CoTDCOTrainer, seed: int) -> torch.Tensor:
    """The gradient of one window with draws of its own."""
    trainer.args.seed, trainer.state.max_steps = seed, 1
    trainer._windows.counts.forget(0.0)
    trainer._window = Window()
    [batch], count = trainer.get_batch_samples(iter([{"dco": {"row": torch.tensor([0])}}]), 1, torch.device("cpu"))
    trainer.model.train()
    return gradient(trainer.model, trainer.compute_loss(trainer.model, batch, num_items_in_batch=count))


@pytest.mark.slow
@pytest.mark.parametrize(("targets", "num_targets"), [("sampled", 1), ("sampled", 5), ("reference", 1)])
def test_the_expected_gradient_over_all_rationales(targets, num_targets):
    num_attempts, num_draws = 3, 150
    trainer = enumerable_trainer(
        targets=targets,
        num_targets=num_targets,
        num_attempts=num_attempts,
        estimator="plugin",  # with this many rationales, F at their share of correct ones is F at p
        num_rationales=1024,
        rationale_batch=1024,
        sampler_kwargs={"batch_size": 1024},
    )
    model = trainer.model
    right = [[*text, 3, 1] for length in (0, 1) for text in itertools.product(range(len(SYMBOLS)), repeat=length)]
    right = [completion for completion in right if 1 not in completion[:-1]]
    right.append([3, 0, 1])  # padding is not part of the text
    p = torch.stack([log_probability(model, completion) for completion in right]).exp().sum()
    assert 0.02 < p < 0.7
    if targets == "sampled":
        expected = gradient(model, -torch.log(1 - (1 - p) ** num_attempts))
    else:
        q = p.detach()
        weight = num_attempts * q * (1 - q) ** (num_attempts - 1) / (1 - (1 - q) ** num_attempts)
        expected = weight * gradient(model, -log_probability(model, [4, 3, 1]))
    draws = torch.stack([window_gradient(trainer, seed) for seed in range(num_draws)])
    # Along a few directions, the expected gradient's own among them.
    directions = torch.cat([expected[None], torch.randn(20, len(expected), dtype=torch.float64)])
    directions /= directions.norm(dim=1, keepdim=True)
    along, wanted = draws @ directions.T, directions @ expected
    error = along.std(0) / math.sqrt(num_draws) + 1e-6
    assert ((along.mean(0) - wanted).abs() < 5 * error + 2e-3 * expected.norm()).all()
    # The test can tell: the other kind of target has another gradient.
    assert along.std(0).max() < expected.norm() * 5
    assert float((along.mean(0)[0] - 1.2 * wanted[0]).abs()) > 5 * float(error[0]) + 2e-3 * float(expected.norm())


def test_sampled_targets_are_the_models_own_correct_rationales():
    trainer = make_cot_trainer(
        num_train_epochs=20, targets="sampled", num_attempts=2, num_rationales=16, learning_rate=1e-2
    )
    trainer.train()
    last = steps_of(trainer)[-3]
    assert last["reference_targets"] < 1
    tokenizer = trainer.processing_class
    assert trainer._window.rationales
    for problem, [tokens] in trainer._window.rationales.items():
        assert problem in range(len(ROWS)) and tokens[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(tokens[:-1])
        assert last_word([text], [ROWS[problem]["answer"]]) == [1.0]
        [(target, share)] = trainer._targets(problem)
        assert share == 1
        assert target["input_ids"][-len(tokens) :] == tokens == target["labels"][-len(tokens) :]
        assert set(target["labels"][: -len(tokens)]) == {-100}
        assert tokenizer.decode(target["input_ids"][: -len(tokens)]) == ROWS[problem]["prompt"]


@pytest.mark.parametrize("batches", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "padding-free"])
@pytest.mark.parametrize("reduction", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules=["q_proj"])], ids=["full", "LoRA"])
def test_several_targets_share_the_weight_of_their_row(batches, reduction, peft_config):
    trainer = make_cot_trainer(
        targets="sampled",
        num_targets=3,
        loss_reduction=reduction,
        trainer_kwargs={"peft_config": peft_config},
        **batches,
    )
    long, short = [5, 6, 7, 8, 1], [9, 1]
    rationales = {0: [long, short, long], 1: [short], 3: [short, long]}  # 2 has none of its own
    weights = {0: 0.9, 1: 0.5, 2: 0.25, 3: 0.125}
    trainer._window = Window(deque([[0, 1], [2, 3]]), {p: (w, -1.0) for p, w in weights.items()}, rationales)
    served, count = trainer.get_batch_samples(iter([]), 2, torch.device("cpu"))
    model = trainer.model.train()
    loss = sum(trainer.compute_loss(model, batch, num_items_in_batch=count) for batch in served)

    def nll(row: int, completion: list[int]) -> torch.Tensor:
        prompt = trainer._rows.prompt_ids(row)
        log_probs = model(torch.tensor([[*prompt, *completion]])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        return -log_probs.gather(-1, torch.tensor(completion)[:, None]).sum()

    reference = trainer._rows.reference(2)["input_ids"][len(trainer._rows.prompt_ids(2)) :]
    shares = {0: [(long, 2 / 3), (short, 1 / 3)], 1: [(short, 1)], 2: [(reference, 1)], 3: [(short, 0.5), (long, 0.5)]}
    terms = [(w, s, nll(r, ids), len(ids)) for r, w in weights.items() for ids, s in shares[r]]
    mean = reduction == "sequence_mean"
    total = sum(w * s * value / (size if mean else 1) for w, s, value, size in terms)
    expected = total / (sum(s * size for _, s, _, size in terms) if reduction == "token" else len(weights))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(gradient(model, loss), gradient(model, expected), rtol=1e-3, atol=1e-5)


def test_as_many_correct_rationales_as_asked_for_are_targets(monkeypatch):
    all_draws = record_draws(monkeypatch)
    trainer = make_cot_trainer(
        grader=lambda completions, **_: [1.0] * len(completions), targets="sampled", num_targets=3, num_rationales=16,
        weight_tolerance=0.0, max_rationale_tokens=60, max_length=None, max_steps=1,
    )  # fmt: skip
    samples = record_samples(monkeypatch)
    trainer.train()
    [draws] = all_draws
    for problem in draws.problems.tolist():
        right = [list(s.token_ids) for p, s in samples if p == problem and s.finish_reason == "stop"]
        assert draws.rationales.get(problem, []) == right[:3]
    assert max(map(len, draws.rationales.values())) == 3


def test_a_rationale_too_long_for_max_length_is_not_a_target():
    trainer = make_cot_trainer(targets="sampled", max_length=12)
    room = 12 - len(ROWS[0]["prompt"])
    trainer._window = Window(rationales={0: [[5] * (room + 1)], 1: [[5] * room]})
    assert trainer._targets(0) == [(trainer._rows.reference(0), 1.0)]
    [(target, _)] = trainer._targets(1)
    assert target["input_ids"][-room:] == [5] * room


# ------------------------------------------------------------------------- resuming


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
    # The window must be what it would have been, so the run only ends early, it does not know that it will.
    stopped = make_cot_trainer(**kwargs, **saving, trainer_kwargs={"callbacks": [StopAt(stop)]})
    stopped.train()
    if "max_success_rate" in options:
        assert all(step["rows_kept"] < 1 for step in steps_of(stopped) if "rows_kept" in step)
    resumed = make_cot_trainer(**kwargs, **saving)
    weights = weights_after(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    for name, weight in straight.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0, msg=name)


# ------------------------------------------------------------------------- evaluation


def test_evaluation_is_that_of_the_reference_rationale():
    trainer = make_cot_trainer(trainer_kwargs={"eval_dataset": Dataset.from_list(ROWS)}, max_steps=1)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0 and not any("coverage@" in name for name in metrics)
    with_k = make_cot_trainer(trainer_kwargs={"eval_dataset": Dataset.from_list(ROWS)}, coverage_at=[1])
    assert 0 < with_k.evaluate()["eval_coverage@1"] < 1


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_rationales": 0}, "`num_rationales` must be an integer of at least 1, got 0"),
        ({"rationale_batch": 2.0}, "`rationale_batch` must be an integer of at least 1, got 2.0"),
        ({"max_rationale_tokens": 0}, "`max_rationale_tokens` must be an integer of at least 1, got 0"),
        ({"ce_warmup_steps": -1}, "`ce_warmup_steps` must be an integer of at least 0, got -1"),
        ({"sampling_interval": 0}, "`sampling_interval` must be 'epoch' or a number.*got 0"),
        ({"sampling_interval": "often"}, "`sampling_interval` must be 'epoch' or a number.*got 'often'"),
        ({"sampling_interval": "1.5"}, "`sampling_interval` must be 'epoch' or a number.*got '1.5'"),
        ({"weight_tolerance": float("nan")}, "`weight_tolerance` is a standard deviation.*got nan"),
        ({"weight_floor": -0.1}, "`weight_floor` is a weight, so from 0 to 1, got -0.1"),
        ({"weight_floor": 1.5}, "`weight_floor` is a weight, so from 0 to 1, got 1.5"),
        ({"weight_floor": float("nan")}, "`weight_floor` is a weight, so from 0 to 1, got nan"),
        ({"count_memory": 1.5}, "`count_memory` must be from 0 to 1, got 1.5"),
        ({"max_success_rate": 0.0}, "`max_success_rate` must be above 0.*got 0.0.*The authors use 0.1"),
        ({"estimator": "mean"}, r"`estimator='mean'` is none of \('posterior', 'plugin'\). Choose one"),
        ({"targets": "own"}, r"`targets='own'` is none of \('reference', 'sampled'\). Choose one"),
        ({"sampler": "vlm"}, "`sampler='vlm'` is none of .*. Choose one of them"),
        ({"targets": "sampled", "sampler": "none"}, "`targets='sampled'`.*`sampler='none'` samples none"),
        ({"num_required": 2}, "`num_required=2` has no weight from counts of sampled rationales yet. Leave it at 1"),
        ({"packing": True}, "`packing` merges rows, and each row's weight is .*Use `padding_free=True`"),
        ({"sampler": "server"}, "`sampler='server'` needs the endpoint's address.*base_url"),
        ({"num_targets": 0}, "`num_targets` must be an integer of at least 1, got 0"),
        (
            {"num_targets": 2},
            "`num_targets=2` counts sampled.*`targets='reference'` trains on.*Set `targets='sampled'`",
        ),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` would change.*Lower `per_device_train_batch_size`"),
        ({"sampler_kwargs": "batch_size=4"}, "`sampler_kwargs` must be a dictionary, or JSON.*got 'batch_size=4'"),
        ({"sampler_kwargs": '{"batch_size": 4'}, "`sampler_kwargs` must be a dictionary, or JSON"),
        ({"sampler_kwargs": "[4]"}, r"`sampler_kwargs` must be a dictionary, or JSON.*got '\[4\]'"),
    ],
)
def test_refused_setting(overrides, message):
    with pytest.raises(ValueError, match=message):
        CoTDCOConfig(**settings(**overrides))


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"prompt": "1+1=", "completion": "2"}], {}, "columns .* and no `answer`, which sampled rationales are"),
        ([*ROWS, {**ROWS[0], "answer": " "}], {}, "1 of 13 rows.*no reference `answer` .first: row 12.*filter"),
        ([*ROWS, {**ROWS[0], "answer": None}], {}, "1 of 13 rows.*no reference `answer`"),
        (
            ROWS,
            {"sampler": "none"},
            "no `num_sampled` and `num_correct`, which `sampler='none'` takes the success rates from. Write them",
        ),
        (
            [{**ROWS[0], "num_sampled": 4, "num_correct": 5}],
            {"sampler": "none"},
            "1 of 1 rows.*impossible counts .first: row 0, `num_sampled=4`, `num_correct=5`",
        ),
        ([{**ROWS[0], "num_sampled": 0, "num_correct": 0}], {"sampler": "none"}, "at least one sample"),
    ],
)
def test_refused_data(rows, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_cot_trainer(rows, **overrides)


def test_sampler_options_may_be_json():
    assert CoTDCOConfig(**settings(sampler_kwargs='{"batch_size": 4}')).sampler_kwargs == {"batch_size": 4}


def test_refused_arguments():
    from datasets import IterableDataset

    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    with pytest.raises(TypeError, match="`train_dataset` must be a `Dataset`, got `IterableDataset`.*need a number"):
        CoTDCOTrainer(make_model(), args=CoTDCOConfig(**settings()), train_dataset=stream)
    with pytest.raises(TypeError, match="`args` must be a `CoTDCOConfig`, got `NoneType`"):
        CoTDCOTrainer(make_model(), train_dataset=Dataset.from_list(ROWS))
    with pytest.raises(ValueError, match="`data_collator` is TRL's own here"):
        make_cot_trainer(trainer_kwargs={"data_collator": lambda rows: rows})
    with pytest.raises(TypeError, match="takes 2 positional arguments"):
        CoTDCOTrainer(make_model(), CoTDCOConfig(**settings()))
    with pytest.raises(GraderError, match="grader 'maths' is not known"):
        make_cot_trainer(grader="maths")


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        (lambda completions, **_: 1 / 0, "raised ZeroDivisionError"),
        (lambda completions, **_: [math.nan] * len(completions), "returned nan as score 0: return a finite number"),
        (lambda completions, **_: [1.0], "must return one score per completion: 8 expected, got 1"),
    ],
    ids=["raises", "NaN", "wrong length"],
)
def test_a_grader_that_fails_stops_training(grader, message):
    with pytest.raises(GraderError, match=message):
        make_cot_trainer(grader=grader, max_steps=1).train()


@pytest.mark.parametrize("estimator", ["posterior", "plugin"])
def test_rationales_that_cannot_be_judged_do_not_count(estimator):
    trainer = make_cot_trainer(grader=lambda completions, **_: [None] * len(completions), estimator=estimator)
    # Cut-off rationales are wrong without being judged; here there are none.
    trainer.args.max_rationale_tokens = 200
    trainer.args.max_steps = 1
    trainer.train()
    [step] = steps_of(trainer)
    assert step["rationales_ungraded"] > 0.5
    if estimator == "plugin":
        assert step["coverage_weight"] > 0.9  # no opinion: cross-entropy


def test_all_rationales_cut_off_is_said(caplog):
    trained = make_cot_trainer(num_train_epochs=10, num_attempts=1, num_rationales=1)
    trained.train()  # so that it does not end a completion at its first token
    with caplog.at_level(logging.WARNING):
        trainer = make_cot_trainer(model=trained.model, max_rationale_tokens=2, max_steps=1)
        trainer.train()
    assert steps_of(trainer)[0]["rationales_truncated"] == 1
    assert "All rationales sampled at step 0 were cut off at `max_rationale_tokens=2`" in caplog.text
    assert "raise `ce_warmup_steps`" in caplog.text


def test_missing_samples_are_an_error(monkeypatch):
    monkeypatch.setattr(TransformersSampler, "sample", lambda self, requests, params: [[] for _ in requests])
    with pytest.raises(RuntimeError, match="returned 0 rationales for 4 prompts and not the 8 for each.*resumed"):
        make_cot_trainer(max_steps=1).train()


def test_an_idle_method_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        make_cot_trainer(grader=lambda completions, **_: [0.0] * len(completions), num_rationales=64).train()
    said = [record for record in caplog.records if "DCO is cross-entropy at step" in record.message]
    assert len(said) == 1 and "mean success rate" in said[0].message


def test_a_floor_of_one_is_not_idleness(caplog):
    with caplog.at_level(logging.WARNING):
        make_cot_trainer(weight_floor=1.0, max_steps=2).train()
    assert not [record for record in caplog.records if "DCO is cross-entropy" in record.message]
