"""One run of the comparison: a method with one setting and one seed on a task, measured after each epoch.

Every method has the task's model, problems, optimizer, schedule and order of batches; the loss alone differs. Coverage
is exact, 1 - (1 - p)^k with the model's own p of the answer, sampled at each of `TEMPERATURES`.
"""

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.coverage import coverage_weight, log_coverage
from dco_trl.demo import task as demo_task
from dco_trl.demo.training import CURVE_K as KS
from dco_trl.demo.training import be_quiet
from dco_trl.sampling import exact_coverage
from research.baselines.losses import entropy_bonus, focal, gem, label_smoothing
from research.baselines.mazes import Mazes
from research.baselines.tail import TailTrainer
from research.baselines.tasks import MathAnswers, Multiplication, Problems

TEMPERATURES = [1.0, 1.25, 1.5, 2.0, 2.5, 3.0]
SPLITS = ("validation", "test")
DCO_ATTEMPTS = (4, 16, 64, 256, 1024, 4096)

TOKEN_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "label smoothing": label_smoothing,
    "focal loss": focal,
    "entropy bonus": entropy_bonus,
    "GEM": gem,
}
# Method: its settings, a run each.
METHODS: dict[str, list[dict[str, Any]]] = {
    "cross-entropy": [{}],
    "DCO": [{"num_attempts": n} for n in DCO_ATTEMPTS],
    "DCO mixture": [{}],
    "label smoothing": [{"epsilon": epsilon} for epsilon in (0.05, 0.1, 0.2)],
    "focal loss": [{"gamma": gamma} for gamma in (1, 2, 5)],
    "entropy bonus": [{"strength": strength} for strength in (0.01, 0.05, 0.2)],
    "GEM": [{"beta": beta, "h": h} for h in ("linear", "logsigmoid") for beta in (0.3, 0.7)],
    "DFT": [{}],
}
# Weight averaging needs no run of its own: epochs of the cross-entropy run, as shares of all (4, 8, …, 24 of 34), and
# the share of the last epoch's weights.
EARLY_SHARES = (4 / 34, 8 / 34, 12 / 34, 16 / 34, 20 / 34, 24 / 34)
LATE_WEIGHTS = (0.25, 0.5, 0.75)
# Between the seeds of a run and of its repeats: no run's repeat is another's.
REPEAT_STRIDE = 1000


class TokenLossTrainer(SFTTrainer):
    """`SFTTrainer` with another loss a token: same labels, same mean over the completion tokens of the batch."""

    def __init__(self, *args, token_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **kwargs):
        super().__init__(*args, **kwargs)
        self.token_loss = token_loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"][:, 1:]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)
        mask = labels != -100
        losses = self.token_loss(outputs.logits[:, :-1][mask], labels[mask])
        num_tokens = mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / num_tokens
        return (loss, outputs) if return_outputs else loss


class MixtureTrainer(DCOTrainer):
    """The mean of DCO's loss over several N, for a user who does not know the budget: its weight is the mean of F."""

    def _weights(self, log_p: torch.Tensor, info: Any = None) -> torch.Tensor:
        return torch.stack([coverage_weight(log_p, n, validate=False) for n in DCO_ATTEMPTS]).mean(0)


def train(
    task: Multiplication | MathAnswers | Mazes, method: str, setting: dict[str, Any], seed: int, num_epochs: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train and measure one run.

    Args:
        task: What is learnt.
        method: A key of `METHODS`, or TailSFT.
        setting: The method's arguments. `repeat`, 0 if absent, asks for other first weights (where they are random)
            and another order of batches on the same problems.
        seed: Draws the problems, first weights and batches.
        num_epochs: Epochs.

    Returns:
        A JSON-serialisable record. `coverage` has the axes epoch, temperature, split and k. The record of
        cross-entropy has `averages`, one entry a setting of weight averaging, with the last three of these axes.
        And the log-probability of each answer, float32: `log_p` of shape (epochs, temperatures, validation and test
        problems), and `averages` with the averages as first axis (of length 0 where there are none).
    """
    be_quiet()
    started = time.perf_counter()
    arguments_of_loss = {name: value for name, value in setting.items() if name != "repeat"}
    start = seed + REPEAT_STRIDE * setting.get("repeat", 0)
    problems, tokenizer, model = task.make_problems(seed), task.make_tokenizer(), task.make_model(start)
    early = early_epochs(num_epochs) if method == "cross-entropy" else []
    recorder = Recorder(tokenizer, problems, keep_weights_of={*early, num_epochs} if early else set())
    with TemporaryDirectory(prefix="baselines-") as folder:
        arguments = task.arguments(folder, len(problems.train), num_epochs, start)
        trainer = make_trainer(method, arguments_of_loss, model, arguments, problems.train, tokenizer, [recorder])
        trainer.train()
    record = {
        "method": method,
        "setting": setting,
        "seed": seed,
        "task": task.description,
        "num_epochs": num_epochs,
        "k": KS,
        "temperatures": TEMPERATURES,
        "splits": SPLITS,
        "num_validation": len(problems.validation),
        "coverage": [mean_coverage(log_p) for log_p in recorder.log_p],
    }
    averages = []
    if early:
        record["averages"] = []
        for epoch, weight in itertools.product(early, LATE_WEIGHTS):
            model.load_state_dict(mix(recorder.weights[epoch], recorder.weights[num_epochs], weight))
            averages.append(recorder.measure(model))
            setting = {"early": epoch, "late_weight": weight}
            record["averages"].append({"setting": setting, "coverage": mean_coverage(averages[-1])})
    record["seconds"] = round(time.perf_counter() - started, 1)
    return record, {"log_p": joined(recorder.log_p), "averages": joined(averages)}


def mean_coverage(log_p: Sequence[torch.Tensor]) -> list[list[list[float]]]:
    """Mean coverage with the axes temperature, split and k, from log p of shape (temperatures, problems) a split."""
    return [
        [[round(log_coverage(of_split, k).exp().mean().item(), 6) for k in KS] for of_split in of_splits]
        for of_splits in zip(*log_p, strict=True)
    ]


def joined(measured: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Measurements as one float32 array: (measurements, temperatures, validation and then test problems)."""
    rows = [torch.cat(list(of_splits), dim=1).float().numpy() for of_splits in measured]
    return np.stack(rows) if rows else np.empty((0, 0, 0), dtype=np.float32)


def make_trainer(
    method: str,
    setting: dict[str, Any],
    model: torch.nn.Module,
    arguments: dict[str, Any],
    train_dataset: Dataset,
    tokenizer: Any,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """The trainer of a method: of TRL, of `dco_trl`, or of this file."""
    data = dict(model=model, train_dataset=train_dataset, processing_class=tokenizer, callbacks=list(callbacks))
    if method == "cross-entropy":
        trainer = SFTTrainer(args=SFTConfig(**arguments), **data)
    elif method == "DFT":
        trainer = SFTTrainer(args=SFTConfig(loss_type="dft", **arguments), **data)
    elif method == "DCO":
        trainer = DCOTrainer(args=DCOConfig(**setting, **arguments), **data)
    elif method == "TailSFT":
        trainer = TailTrainer(args=SFTConfig(**arguments), **setting, **data)
    elif method == "DCO mixture":
        trainer = MixtureTrainer(args=DCOConfig(num_attempts=max(DCO_ATTEMPTS), **arguments), **data)
    else:
        loss = TOKEN_LOSSES[method]
        trainer = TokenLossTrainer(
            args=SFTConfig(**arguments), token_loss=lambda logits, labels: loss(logits, labels, **setting), **data
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


class Recorder(TrainerCallback):
    """Measures every answer after each epoch, and keeps the weights of the epochs asked for."""

    def __init__(self, tokenizer, problems: Problems, keep_weights_of: set[int]):
        self.tokenizer, self.splits = tokenizer, (problems.validation, problems.test)
        self.keep_weights_of = keep_weights_of
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.log_p: list[list[torch.Tensor]] = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        epoch = round(state.epoch)
        self.log_p.append(self.measure(model))
        if epoch in self.keep_weights_of:
            self.weights[epoch] = copy.deepcopy(model.state_dict())

    def measure(self, model) -> list[torch.Tensor]:
        """Log-probability of each answer, one tensor a split, of shape (temperatures, problems)."""
        training = model.training
        model.eval()
        tables = [
            torch.from_numpy(
                exact_coverage(
                    model, self.tokenizer, demo_task.as_problems(split), temperature=TEMPERATURES, progress=False
                ).log_p
            )
            for split in self.splits
        ]
        model.train(training)
        return tables


def early_epochs(num_epochs: int) -> list[int]:
    """The early epochs of weight averaging; none where there is but one epoch."""
    return sorted({max(1, round(share * num_epochs)) for share in EARLY_SHARES} - {num_epochs})


def mix(early: dict[str, torch.Tensor], late: dict[str, torch.Tensor], late_weight: float) -> dict[str, torch.Tensor]:
    """Weights between two checkpoints, `late_weight` of the way from the early one."""
    return {name: early[name].lerp(late[name], late_weight) for name in early}
