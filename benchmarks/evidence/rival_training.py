"""One run of the comparison: a method with one setting and one seed, on the demonstration's task, measured each epoch.

Every method has the demonstration's model, problems, optimizer, schedule and order of batches; the loss alone differs.
Coverage is exact, 1 - (1 - p)^k with the model's own p of the answer, sampled at each of `TEMPERATURES`; the held-out
problems are halved, by index, into validation and test.
"""

import copy
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from rival_losses import entropy_bonus, focal, gem, label_smoothing
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.coverage import coverage_weight, log_coverage
from dco_trl.demo import task
from dco_trl.demo.training import training_arguments

KS = [4**i for i in range(8)]
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

    def _weights(self, log_p: torch.Tensor) -> torch.Tensor:
        return torch.stack([coverage_weight(log_p, n, validate=False) for n in DCO_ATTEMPTS]).mean(0)


def train(method: str, setting: dict[str, Any], seed: int, num_epochs: int) -> dict[str, Any]:
    """Train and measure one run.

    Returns:
        A JSON-serialisable record. `coverage` has the axes epoch, temperature, split and k. The record of
        cross-entropy has `averages`, one entry a setting of weight averaging, with the last three of these axes.
    """
    be_quiet()
    started = time.perf_counter()
    problems, held_out = task.make_problems(seed)
    tokenizer, model = task.make_tokenizer(), task.make_model(seed)
    early = early_epochs(num_epochs) if method == "cross-entropy" else []
    recorder = Recorder(tokenizer, held_out, keep_weights_of={*early, num_epochs} if early else set())
    with TemporaryDirectory(prefix="rivals-") as folder:
        arguments = training_arguments(folder, len(problems), num_epochs, seed)
        trainer = make_trainer(method, setting, model, arguments, problems, tokenizer, [recorder])
        trainer.train()
    record = {
        "method": method,
        "setting": setting,
        "seed": seed,
        "num_epochs": num_epochs,
        "k": KS,
        "temperatures": TEMPERATURES,
        "splits": SPLITS,
        "coverage": recorder.coverage,
        "seconds": 0.0,
    }
    if early:
        record["averages"] = []
        for epoch, weight in itertools.product(early, LATE_WEIGHTS):
            model.load_state_dict(mix(recorder.weights[epoch], recorder.weights[num_epochs], weight))
            setting = {"early": epoch, "late_weight": weight}
            record["averages"].append({"setting": setting, "coverage": recorder.measure(model)})
    record["seconds"] = round(time.perf_counter() - started, 1)
    return record


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
    """Measures coverage after each epoch, and keeps the weights of the epochs asked for."""

    def __init__(self, tokenizer, held_out: Dataset, keep_weights_of: set[int]):
        self.tokenizer, self.prompts, self.answers = tokenizer, list(held_out["prompt"]), list(held_out["completion"])
        self.keep_weights_of = keep_weights_of
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.coverage: list = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        epoch = round(state.epoch)
        self.coverage.append(self.measure(model))
        if epoch in self.keep_weights_of:
            self.weights[epoch] = copy.deepcopy(model.state_dict())

    def measure(self, model) -> list[list[list[float]]]:
        """Mean coverage, with the axes temperature, split and k."""
        training = model.training
        model.eval()
        table = log_p_at_temperatures(model, self.tokenizer, self.prompts, self.answers, TEMPERATURES)
        model.train(training)
        half = len(self.prompts) // 2
        return [
            [
                [round(log_coverage(part, k).exp().mean().item(), 6) for k in KS]
                for part in (log_p[:half], log_p[half:])
            ]
            for log_p in table
        ]


@torch.no_grad()
def log_p_at_temperatures(
    model, tokenizer, prompts: Sequence[str], answers: Sequence[str], temperatures: Sequence[float]
) -> torch.Tensor:
    """Log-probability of each answer, end of sequence included, when sampled at each temperature.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: One prompt a problem, all of the same number of tokens.
        answers: One answer a problem.
        temperatures: What the logits are divided by.

    Returns:
        Nats, float64, shape (temperatures, problems).

    Relations:
        `dco_trl.demo.measure.reference_log_p` is this at temperature 1.
    """
    prompt_ids = torch.tensor([tokenizer(prompt).input_ids for prompt in prompts])
    answer_ids = [[*tokenizer(answer).input_ids, tokenizer.eos_token_id] for answer in answers]
    longest = max(map(len, answer_ids))
    # Padding comes last, where a causal model's earlier predictions do not see it.
    labels = torch.tensor([ids + [-100] * (longest - len(ids)) for ids in answer_ids])
    targets = labels.clamp(min=0)
    logits = model(input_ids=torch.cat([prompt_ids, targets], 1)).logits[:, prompt_ids.size(1) - 1 : -1].double()
    rows = []
    for temperature in temperatures:
        per_token = (logits / temperature).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        rows.append(per_token.where(labels >= 0, 0.0).sum(1))
    return torch.stack(rows)


def early_epochs(num_epochs: int) -> list[int]:
    """The early epochs of weight averaging; none where there is but one epoch."""
    return sorted({max(1, round(share * num_epochs)) for share in EARLY_SHARES} - {num_epochs})


def mix(early: dict[str, torch.Tensor], late: dict[str, torch.Tensor], late_weight: float) -> dict[str, torch.Tensor]:
    """Weights between two checkpoints, `late_weight` of the way from the early one."""
    return {name: early[name].lerp(late[name], late_weight) for name in early}


def be_quiet() -> None:
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("dco_trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
