"""What can be tested of a GPU without one: nothing waits for the device, nothing stays on the CPU, autocast works.

On the "meta" device tensors have no values: reading one (`.item()`, `.tolist()`, `x[mask]`, `.cpu()`) raises, and so
does a tensor of the CPU among its operands.
"""

import sys
from collections import deque
from pathlib import Path

import cot
import pytest
import torch
from test_equivalence import BATCHES, REDUCTIONS, assert_same_gradients, gradients
from tiny_models import make_model
from training import MANY, ROWS, make_trainer, steps_of
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from dco_trl import DCOTrainer
from dco_trl.trainer.segments import Segments
from dco_trl.trainer.window import Window

# The benchmarks import each other by name, as they do when one of them is run.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from measure import count_synchronisations

META = torch.device("meta")


class StubModel(torch.nn.Module):
    """Log-probabilities for every position with a label, as TRL's fused head returns them."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty((), device=META))

    def forward(self, input_ids, labels, fused_lm_head, **kwargs):
        assert fused_lm_head and labels.device == input_ids.device == META
        mask = labels[:, 1:] != -100
        log_probs = torch.zeros(mask.shape, device=META).masked_fill(~mask, 0.0) * self.scale
        return FusedCausalLMOutput(log_probs=log_probs, label_mask=mask)


@pytest.fixture
def put_on_meta(monkeypatch):
    """Put a trainer on "meta", with TRL's loss but without its metrics, which do wait for the device."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        log_probs = model(**inputs, fused_lm_head=True).log_probs
        return -log_probs.sum() / (1 if num_items_in_batch is None else num_items_in_batch)

    def put(trainer) -> None:  # only after construction, which checks TRL's own loss
        monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
        monkeypatch.setattr(trainer.accelerator.state, "device", META)
        monkeypatch.setitem(trainer.args.__dict__, "_setup_devices", META)
        assert trainer.accelerator.device == trainer.args.device == META
        trainer.current_gradient_accumulation_steps = 1  # what `train` sets

    return put


def on_meta(dataloader, trainer) -> dict:
    """A batch as accelerate places it, the device being "meta"."""
    batch = next(iter(dataloader))
    for name, value in batch.items():
        assert not isinstance(value, torch.Tensor) or value.device == META, name
    return trainer._prepare_inputs(batch)


@pytest.mark.parametrize(
    ("batches", "settings"),
    [
        *((batches, {"loss_reduction": reduction}) for batches in BATCHES for reduction in REDUCTIONS),
        ("padded", {"num_attempts": 1}),
        ("padded", {"num_required": 2}),
        ("padded", {"unit": "turn", "loss_reduction": "sequence"}),
    ],
)
def test_a_training_step_reads_nothing_from_the_device(batches, settings, put_on_meta):
    trainer = make_trainer(**{"num_attempts": MANY, **settings}, **BATCHES[batches])
    put_on_meta(trainer)
    model = StubModel()
    for _ in range(2):  # sums since the last log are added to those before
        batch = on_meta(trainer.get_train_dataloader(), trainer)
        assert ("documents" in batch.get("dco", {})) == (batches != "padded")
        num_items = trainer._get_num_items_in_batch([batch], META)
        assert num_items.device == META
        loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
        loss.backward()
    assert loss.device == model.scale.grad.device == trainer._train_sums.device == META


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batches", BATCHES)
def test_nor_does_a_batch_of_evaluation(batches, reduction, put_on_meta):
    data = {"eval_dataset": ROWS, "eval_packing": batches == "packed"}
    trainer = make_trainer(num_attempts=MANY, loss_reduction=reduction, **data, **BATCHES[batches])
    put_on_meta(trainer)
    trainer.model.eval()
    for _ in range(2):
        batch = on_meta(trainer.get_eval_dataloader(), trainer)
        assert ("row" in batch.get("dco", {})) == (batches != "packed")
        trainer.compute_loss(StubModel(), batch)
    assert [table.device for table in trainer._eval_tables] == [META, META]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batches", ["padded", "padding-free"])
def test_nor_does_a_step_with_given_weights(batches, reduction, put_on_meta):
    trainer = cot.make_cot_trainer(loss_reduction=reduction, num_targets=2, targets="sampled", **BATCHES[batches])
    put_on_meta(trainer)
    # As if it had been sampled for: row 0 has two different rationales.
    estimates = {problem: (0.5, -3.0) for problem in range(4)}
    trainer._window = Window(deque([[0, 1, 2, 3]]), estimates, {0: [[5, 6, 1], [7, 1]]})
    served, num_items = trainer.get_batch_samples(iter([]), 1, META)
    batch = trainer._prepare_inputs(served[0])
    assert {"weight", "log_p", "share"} <= batch["dco"].keys()
    assert all(value.device == META for value in (batch["labels"], *batch["dco"].values()))
    trainer.compute_loss(StubModel(), batch, num_items_in_batch=num_items).backward()
    assert trainer._train_sums.device == META


def test_meta_would_find_out():
    """Every way of reading a value raises, so these tests would fail."""
    x = torch.zeros(3, device=META)
    for read in (lambda: x.sum().item(), x.tolist, lambda: x[x > 0], x.cpu, lambda: bool(x.any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    with pytest.raises(RuntimeError):
        x + torch.zeros(3)
    with pytest.raises(RuntimeError):
        Segments.rows(torch.ones(1, 3, dtype=torch.bool)).sum(x[None])


# --------------------------------------------------------------------------------------------- whole training steps


def waits_per_step(make, **settings) -> float:
    """How often a whole run, data and optimizer included, waits for the device per step between two logs."""
    counts = []
    for steps in (3, 6):
        trainer = make(max_steps=steps, logging_steps=100, num_train_epochs=1, **settings)
        counts.append(count_synchronisations(trainer.train))
    return (counts[1] - counts[0]) / 3


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "reduction"), list(zip(BATCHES, REDUCTIONS, strict=True)))
def test_a_whole_step_waits_for_the_device_no_more_often_than_trls(batches, reduction):
    sft = waits_per_step(lambda **settings: make_trainer(SFTTrainer, **settings), **BATCHES[batches])
    assert 0 < sft
    options = {"num_attempts": MANY, "loss_reduction": reduction, **BATCHES[batches]}
    assert waits_per_step(make_trainer, **options) <= sft


@pytest.mark.slow
def test_nor_does_one_of_the_cot_trainer():
    sft = waits_per_step(lambda **settings: make_trainer(SFTTrainer, train_dataset=cot.COUNTED, **settings))
    assert waits_per_step(lambda **settings: cot.make_cot_trainer(cot.COUNTED, sampler="none", **settings)) <= sft


# ----------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("batches", ["padded", "padding-free"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32s_weights_and_gradient(dtype, batches):
    found = {}
    for enabled in (False, True):
        model = make_model()
        trainer = make_trainer(model=model, num_attempts=MANY, **BATCHES[batches])
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(12)])
        num_items = trainer._get_num_items_in_batch([dict(batch)], torch.device("cpu"))
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
        assert loss.dtype == torch.float32 and trainer._train_sums.dtype == torch.float64
        found[enabled] = loss, trainer._train_sums, gradients(loss, model)
    (loss, sums, expected), (low_loss, low_sums, low) = found[False], found[True]
    torch.testing.assert_close(low_loss, loss, rtol=0.01, atol=0)
    torch.testing.assert_close(low_sums, sums, rtol=0.01, atol=0)
    assert_same_gradients(low, expected, rtol=0, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [DCOTrainer, "cot"])
def test_training_in_bfloat16_stays_near_float32(trainer_class):
    """`bf16=True` with weights in float32, as accelerate sets it up."""

    def logged(bf16: bool) -> list[dict]:
        if trainer_class == "cot":
            trainer = cot.make_cot_trainer(cot.COUNTED, sampler="none", bf16=bf16, max_steps=3)
        else:
            trainer = make_trainer(num_attempts=MANY, bf16=bf16)
        trainer.train()
        return steps_of(trainer)

    for low, expected in zip(logged(True), logged(False), strict=True):
        for name in ("loss", "coverage_loss", "coverage_weight", "log_p"):
            assert low[name] == pytest.approx(expected[name], rel=0.05), name
