"""Runs that must come out the same."""

import math

import pytest
import torch
from peft import LoraConfig
from tiny_models import FAMILIES, make_model
from training import MANY, ROWS, assert_same_run, assert_same_weights, make_trainer, run
from trl import SFTTrainer

BATCHES = {
    "padded": {},
    "padding-free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "per_device_train_batch_size": 2, "max_length": 24},
}


# -------------------------------------------------------- one attempt is SFTTrainer


UNDER = {
    "accumulation": {"gradient_accumulation_steps": 3},
    "checkpointing": {"gradient_checkpointing": True},
    "both-shuffled": {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "shuffle_dataset": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize(
    ("family", "under", "adapter"),
    [
        *((family, None, False) for family in FAMILIES),
        *(("llama", under, adapter) for under in UNDER for adapter in (False, True)),
    ],
)
def test_one_attempt_is_sft_bit_for_bit(family, under, adapter, batches):
    def trained(*trainer_class, **attempts):
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
        settings = {**BATCHES[batches], **UNDER.get(under, {}), "peft_config": lora}
        return run(*trainer_class, model=make_model(family), **settings, **attempts)

    assert_same_run(trained(num_attempts=1), trained(SFTTrainer))


# ---------------------------------------------------------------- the naive formula


def naive_loss(model, batch, num_attempts: int, reduction: str, num_required: int = 1) -> torch.Tensor:
    """-log(1 - (1-p)^N), or -log P[Binomial(N, p) >= m], from the full logits, with autograd through all of it."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    mask = labels != -100
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    p = (log_probs * mask).sum(1).exp()
    tail = 1 - (1 - p) ** num_attempts
    if num_required > 1:
        counts = range(num_required, num_attempts + 1)
        tail = sum(float(math.comb(num_attempts, j)) * p**j * (1 - p) ** (num_attempts - j) for j in counts)
    loss = -torch.log(tail)
    if reduction == "token":
        return loss.sum() / mask.sum()
    if reduction == "sequence":
        return loss.mean()
    return (loss / mask.sum(1)).mean()


def gradients(loss: torch.Tensor, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict, expected: dict, rtol: float, atol: float) -> None:
    """`atol` relative to the largest."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values()).item()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=rtol, atol=atol * largest, msg=name)


REDUCTIONS = ["token", "sequence", "sequence_mean"]


@pytest.mark.parametrize(
    ("family", "num_attempts", "num_required", "reduction"),
    [
        *((family, n, 1, reduction) for family in FAMILIES for n in (2, MANY) for reduction in REDUCTIONS),
        *(("llama", 400, m, "sequence") for m in (2, 5)),
    ],
)
def test_gradient_is_autograds_of_the_naive_formula(family, num_attempts, num_required, reduction):
    model = make_model(family).double()
    if family == "mixtral":
        model.set_experts_implementation("eager")  # the grouped kernel has no float64
    counts = dict(num_attempts=num_attempts, num_required=num_required)
    trainer = make_trainer(model=model, loss_reduction=reduction, router_aux_loss_coef=None, **counts)
    trainer.current_gradient_accumulation_steps = 1  # what `train` sets
    batch = next(iter(trainer.get_train_dataloader()))
    num_items = trainer._get_num_items_in_batch([dict(batch)], torch.device("cpu"))
    ours = gradients(trainer.compute_loss(model, dict(batch), num_items_in_batch=num_items), model)
    count, _, weight, *_ = trainer._train_sums
    assert num_attempts != MANY or 0.01 < weight / count < 0.95  # they matter
    expected = naive_loss(model, batch, reduction=reduction, **counts)
    if family == "mixtral":  # TRL adds the auxiliary loss, unweighted
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**inputs, output_router_logits=True)
        aux_loss = load_balancing_loss_func(outputs.router_logits, 4, 2, batch["attention_mask"])
        expected = expected + trainer.router_aux_loss_coef * aux_loss
    slack = 1 if num_required == 1 else 10
    assert_same_gradients(ours, gradients(expected, model), rtol=1e-5 * slack, atol=1e-6 * slack)


def test_evaluation_reports_at_least_m_of_k():
    metrics = make_trainer(num_attempts=64, num_required=2, coverage_at=[1, 16], eval_dataset=ROWS).evaluate()
    assert "eval_at_least_2@1" not in metrics  # of one attempt, two cannot be right
    assert 0 < metrics["eval_at_least_2@16"] < metrics["eval_coverage@16"]


# ---------------------------------------------------------- how sequences are batched


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.slow
def test_packed_is_padded(reduction):
    settings = dict(num_attempts=MANY, loss_reduction=reduction, max_steps=2)
    padded = run(**settings, per_device_train_batch_size=12)
    padding_free = run(**settings, per_device_train_batch_size=12, **BATCHES["padding-free"])
    packed = run(**settings, per_device_train_batch_size=12, packing=True, max_length=24)
    for other in (padding_free, packed):
        torch.testing.assert_close(torch.tensor(other[1]), torch.tensor(padded[1]), rtol=1e-4, atol=1e-6)
        assert_same_weights(other[2], padded[2], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("batches", ["padded", "padding-free"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.slow
def test_a_large_batch_is_many_small_ones(reduction, batches):
    settings = {**BATCHES[batches], "num_attempts": MANY, "loss_reduction": reduction}
    large = run(**settings, per_device_train_batch_size=4)
    small = run(**settings, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert_same_run(small, large, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_resumed_is_never_stopped(tmp_path):
    settings = dict(num_attempts=MANY, max_steps=6, save_strategy="steps", save_steps=3)
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = make_trainer(output_dir=str(tmp_path / "resumed"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_weights(resumed.model.state_dict(), whole.model.state_dict())
    keys = ("loss", "grad_norm", "coverage_loss", "coverage_weight", "log_p")
    for ours, theirs in zip(resumed.state.log_history[3:6], whole.state.log_history[3:6], strict=True):
        assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}


@pytest.mark.slow
def test_every_row_counts_once_in_an_epoch():
    trainer = make_trainer(num_attempts=MANY, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=5)
    trainer.train()
    assert len(trainer.train_dataset) == len(ROWS)
    assert trainer.state.global_step == math.ceil(len(ROWS) / 5)
