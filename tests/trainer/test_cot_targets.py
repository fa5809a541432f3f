"""What `CoTDCOTrainer` trains on: the reference, or the model's own correct rationales, and with which gradient."""

import itertools
import math
from collections import deque

import pytest
import torch
from cot import ROWS, last_word, make_cot_trainer, record_samples, trained
from peft import LoraConfig
from tiny_models import make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from training import steps_of, token_log_probs
from transformers import PreTrainedTokenizerFast

from dco_trl import CoTDCOTrainer
from dco_trl.trainer.window import Window

SYMBOLS = ["<pad>", "<eos>", "a", "b", "c", "="]


def enumerable_trainer(**overrides) -> CoTDCOTrainer:
    """A model over six symbols whose rationales have at most two, so that all 43 can be summed over.

    A rationale is right if it ends in "b".
    """
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    return make_cot_trainer(
        [{"prompt": "a=", "completion": "cb", "answer": "b"}],
        grader=lambda completions, answer, **_: [float(text.endswith("b")) for text in completions],
        model=make_model(vocab_size=len(SYMBOLS), initializer_range=0.1, hidden_size=32),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"),
        max_rationale_tokens=3,
        loss_reduction="sequence",
        **overrides,
    )


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
    # With this many rationales, F at their share of correct ones is F at p.
    sampling = dict(estimator="plugin", num_rationales=1024, rationale_batch=1024, sampler_kwargs={"batch_size": 1024})
    trainer = enumerable_trainer(targets=targets, num_targets=num_targets, num_attempts=num_attempts, **sampling)
    model = trainer.model
    right = [[*text, 3, 1] for length in (0, 1) for text in itertools.product(range(len(SYMBOLS)), repeat=length)]
    right = [completion for completion in right if 1 not in completion[:-1]]
    right.append([3, 0, 1])  # padding is not part of the text
    p = torch.stack([token_log_probs(model, [2, 5], completion).sum() for completion in right]).exp().sum()
    assert 0.02 < p < 0.7
    if targets == "sampled":
        expected = gradient(model, -torch.log(1 - (1 - p) ** num_attempts))
    else:
        q = p.detach()
        weight = num_attempts * q * (1 - q) ** (num_attempts - 1) / (1 - (1 - q) ** num_attempts)
        expected = weight * gradient(model, -token_log_probs(model, [2, 5], [4, 3, 1]).sum())
    draws = torch.stack([window_gradient(trainer, seed) for seed in range(num_draws)])
    # Compared along a few directions, among them that of the expected gradient.
    directions = torch.cat([expected[None], torch.randn(20, len(expected), dtype=torch.float64)])
    directions /= directions.norm(dim=1, keepdim=True)
    along, wanted = draws @ directions.T, directions @ expected
    error = along.std(0) / math.sqrt(num_draws) + 1e-6
    assert ((along.mean(0) - wanted).abs() < 5 * error + 2e-3 * expected.norm()).all()
    # The test can tell: a gradient that is a fifth larger would fail.
    assert along.std(0).max() < expected.norm() * 5
    assert float((along.mean(0)[0] - 1.2 * wanted[0]).abs()) > 5 * float(error[0]) + 2e-3 * float(expected.norm())


@pytest.mark.slow
def test_sampled_targets_are_the_models_own_correct_rationales():
    training = dict(num_train_epochs=20, num_attempts=2, learning_rate=1e-2)
    trainer = trained(targets="sampled", num_rationales=16, **training)
    assert steps_of(trainer)[-3]["reference_targets"] < 1
    tokenizer = trainer.processing_class
    assert trainer._window.rationales
    for problem, [tokens] in trainer._window.rationales.items():
        assert problem in range(len(ROWS)) and tokens[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(tokens[:-1])
        assert last_word([text], [ROWS[problem]["answer"]]) == [1.0]
        prompt = tokenizer(ROWS[problem]["prompt"])["input_ids"]
        target = {"input_ids": [*prompt, *tokens], "labels": [-100] * len(prompt) + tokens}
        assert trainer._targets(problem) == [(target, 1)]


@pytest.mark.parametrize("batches", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "padding-free"])
@pytest.mark.parametrize("reduction", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules=["q_proj"])], ids=["full", "LoRA"])
def test_several_targets_share_the_weight_of_their_row(batches, reduction, peft_config):
    options = dict(loss_reduction=reduction, peft_config=peft_config, **batches)
    trainer = make_cot_trainer(targets="sampled", num_targets=3, **options)
    long, short = [5, 6, 7, 8, 1], [9, 1]
    rationales = {0: [long, short, long], 1: [short], 3: [short, long]}  # 2 has none of its own
    weights = {0: 0.9, 1: 0.5, 2: 0.25, 3: 0.125}
    trainer._window = Window(deque([[0, 1], [2, 3]]), {p: (w, -1.0) for p, w in weights.items()}, rationales)
    served, count = trainer.get_batch_samples(iter([]), 2, torch.device("cpu"))
    model = trainer.model.train()
    loss = sum(trainer.compute_loss(model, batch, num_items_in_batch=count) for batch in served)
    reference = trainer._rows.reference(2)["input_ids"][len(trainer._rows.prompt_ids(2)) :]
    shares = {0: [(long, 2 / 3), (short, 1 / 3)], 1: [(short, 1)], 2: [(reference, 1)], 3: [(short, 0.5), (long, 0.5)]}
    terms = [
        (w, s, -token_log_probs(model, trainer._rows.prompt_ids(r), ids).sum(), len(ids))
        for r, w in weights.items()
        for ids, s in shares[r]
    ]
    mean = reduction == "sequence_mean"
    total = sum(w * s * value / (size if mean else 1) for w, s, value, size in terms)
    expected = total / (sum(s * size for _, s, _, size in terms) if reduction == "token" else len(weights))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(gradient(model, loss), gradient(model, expected), rtol=1e-3, atol=1e-5)


def test_as_many_correct_rationales_as_asked_for_are_targets(monkeypatch):
    recorded = record_samples(monkeypatch)
    sampling = dict(num_rationales=16, weight_tolerance=0.0, max_rationale_tokens=60)
    trainer = make_cot_trainer(
        grader=lambda completions, **_: [1.0] * len(completions), targets="sampled", num_targets=3, **sampling
    )
    window, _ = trainer._windows.open([[0, 1, 2, 3]], step=0)
    right: dict[int, list[list[int]]] = {}
    for request, group in recorded:
        whole = [list(sample.token_ids) for sample in group if sample.finish_reason == "stop"]
        right.setdefault(request.stream, []).extend(whole)
    assert window.rationales == {problem: some[:3] for problem, some in right.items() if some}
    assert max(map(len, window.rationales.values())) == 3


def test_a_rationale_too_long_for_max_length_is_not_a_target():
    trainer = make_cot_trainer(targets="sampled", max_length=12)
    room = 12 - len(ROWS[0]["prompt"])
    trainer._window = Window(rationales={0: [[5] * (room + 1)], 1: [[5] * room]})
    assert trainer._targets(0) == [(trainer._rows.reference(0), 1.0)]
    [(target, _)] = trainer._targets(1)
    assert target["input_ids"][-room:] == [5] * room
