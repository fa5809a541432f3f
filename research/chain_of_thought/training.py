"""One fine-tuning run of `run.py`: a method with one setting and one seed, sampled at some epochs.

All methods start from the seed's pre-trained model, and have its problems, optimizer and order of batches.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.special import logit
from scipy.stats import beta
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.coverage_numpy import coverage_weight
from dco_trl.demo.training import be_quiet
from dco_trl.trainer.success_counts import SuccessCounts
from research.chain_of_thought.task import (
    MAX_TOKENS,
    last_number,
    make_problems,
    make_tokenizer,
    pretrained,
    without_sampling,
)
from research.common.fast_sampler import FastSampler

SPLITS = ("validation", "test")
# For all runs. Found on seeds that are not reported.
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=32,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    adam_beta2=0.99,
    weight_decay=0.0,
)
SAMPLING: dict[str, Any] = dict(
    sampling_interval="epoch", num_rationales=16, rationale_batch=4, max_rationale_tokens=MAX_TOKENS
)
EPOCHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TEMPERATURES = (1.25, 1.5, 2.0)
DCO_ATTEMPTS = (4, 16, 64)
_OWN, _OWN_4 = {"targets": "sampled"}, {"targets": "sampled", "num_targets": 4}
# Method: its settings, a run each. With a floor of 1 every prompt has the weight 1: rejection-sampling fine-tuning,
# which draws as many rationales as DCO with N = 64. "keep_out" problems are not trained on: they tell how often a
# problem is solved that was not.
METHODS: dict[str, list[dict[str, Any]]] = {
    "cross-entropy": [{"num_attempts": 1, "sampler": "none"}],
    "DCO, reference": [{"num_attempts": n} for n in DCO_ATTEMPTS],
    "DCO, own": [{"num_attempts": n, **_OWN} for n in DCO_ATTEMPTS],
    "DCO, 4 own": [{"num_attempts": n, **_OWN_4} for n in DCO_ATTEMPTS],
    "weight 1, own": [{"num_attempts": 64, **_OWN, "weight_floor": 1.0}],
    "weight 1, 4 own": [{"num_attempts": 64, **_OWN_4, "weight_floor": 1.0}],
    "DCO, reference, floor": [{"num_attempts": 64, "weight_floor": 0.1}],
    "DCO, 4 own, floor": [{"num_attempts": 64, **_OWN_4, "weight_floor": 0.1}],
    "DCO, 4 own, held-out rates": [{"num_attempts": 64, **_OWN_4, "keep_out": 30}],
}
# Averages of cross-entropy's weights: an early epoch, and the share of the last epoch's weights.
AVERAGES = [(early, late_weight) for early in (1, 2, 4, 8) for late_weight in (0.25, 0.5, 0.75)]


class ShiftedCounts(SuccessCounts):
    """`SuccessCounts` whose weights are those of rates with other log-odds: p becomes expit(logit(p) + shift)."""

    shift = 0.0
    _QUANTILES = (np.arange(64) + 0.5) / 64

    def weights(self, example_ids, num_attempts, estimator="posterior"):
        n, c = self.num_sampled[example_ids], self.num_correct[example_ids]
        a, b = self.prior
        p = beta.ppf(self._QUANTILES[:, None], a + c, b + n - c).clip(1e-12, 1 - 1e-12)
        weights = coverage_weight(-np.logaddexp(0, -(logit(p) + self.shift)), num_attempts)
        return weights.mean(0), weights.std(0)


class HeldOutTrainer(CoTDCOTrainer):
    """Shifts the log-odds of success rates by what problems that are kept out lack, before each window.

    Each window draws as many rationales of each kept-out problem as of as many of those trained on.
    """

    kept_out: list[dict] = []
    trained_on: list[dict] = []
    sampler: FastSampler
    shifts: list[float]

    def _open_window(self, epoch_iterator) -> None:
        self._windows.counts.shift = min(0.0, self._log_odds(self.kept_out) - self._log_odds(self.trained_on))
        self.shifts.append(self._windows.counts.shift)
        super()._open_window(epoch_iterator)

    def _log_odds(self, rows: list[dict]) -> float:
        correct = self.sampler.count_correct(rows, 16, MAX_TOKENS, self.state.global_step)
        return float(logit((correct.sum() + 0.5) / (16 * len(rows) + 1)))


class Recorder(TrainerCallback):
    """Counts right answers of held-out problems at some epochs, and keeps the weights.

    Args:
        sampler: Samples the model in training.
        problems: By split.
        num_samples: Of each problem.
        epochs: When.
        first_seed: Of the draws. Those of other epochs and runs are others: a schedule takes its arms for independent.
    """

    def __init__(
        self,
        sampler: FastSampler,
        problems: dict[str, list[dict]],
        num_samples: int,
        epochs: list[int],
        first_seed: int,
    ):
        self.sampler, self.problems, self.num_samples, self.epochs = sampler, problems, num_samples, epochs
        self.seed = first_seed
        self.correct: dict[str, dict[str, list[int]]] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        epoch = round(state.epoch)
        if epoch in self.epochs:
            self.weights[epoch] = {name: value.clone() for name, value in model.state_dict().items()}
            self.correct[str(epoch)] = self.measure(1.0)

    def measure(self, temperature: float) -> dict[str, list[int]]:
        """Right answers per problem, of each split."""
        self.seed += 1
        both = [row for split in SPLITS for row in self.problems[split]]
        counts = self.sampler.count_correct(both, self.num_samples, MAX_TOKENS, self.seed, temperature).tolist()
        cut = len(self.problems[SPLITS[0]])
        return {SPLITS[0]: counts[:cut], SPLITS[1]: counts[cut:]}


def train(
    method: str,
    setting: dict[str, Any],
    seed: int,
    work_dir: Path,
    *,
    epochs: list[int],
    num_samples: int,
    pretraining_steps: int,
    device: str,
    rivals: bool = True,
) -> dict[str, Any]:
    """Fine-tune and measure.

    Returns:
        A record for JSON. `correct` has right answers per problem: by epoch, then by split; `temperatures` and
        `averages`, of cross-entropy alone, have lists of such tables with their settings.
    """
    be_quiet()
    torch.set_num_threads(1)
    started = time.perf_counter()
    problems, tokenizer = make_problems(seed), make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(
        pretrained(seed, work_dir, device, pretraining_steps), dtype=torch.float32
    )
    setting = dict(setting)
    keep_out = setting.pop("keep_out", 0)
    is_plain = setting.get("sampler") == "none"
    first_seed = 1000 * (1 + list(METHODS).index(method)) + 100_000 * setting["num_attempts"]
    recorder = Recorder(FastSampler(model, tokenizer, device), problems, num_samples, epochs, first_seed)
    rows = problems["train"][keep_out:]
    steps_per_epoch = -(-len(rows) // SETTINGS["per_device_train_batch_size"])
    with TemporaryDirectory(prefix="cot-finetune-") as folder:
        args = CoTDCOConfig(
            output_dir=folder,
            num_train_epochs=max(epochs),
            seed=seed,
            use_cpu=True,
            dataloader_pin_memory=False,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            logging_steps=steps_per_epoch,
            save_strategy="no",
            disable_tqdm=True,
            ce_warmup_steps=steps_per_epoch,
            **SETTINGS,
            **SAMPLING,
            **setting,
        )
        trainer = (HeldOutTrainer if keep_out else CoTDCOTrainer)(
            model,
            args=args,
            train_dataset=without_sampling(rows) if is_plain else Dataset.from_list(rows),
            grader=last_number,
            processing_class=tokenizer,
            callbacks=[recorder],
        )
        if isinstance(trainer, HeldOutTrainer):
            trainer.kept_out, trainer.trained_on = problems["train"][:keep_out], rows[:keep_out]
            trainer.sampler, trainer.shifts = FastSampler(model, tokenizer), []
            trainer._windows.counts = ShiftedCounts(len(rows))
        if not is_plain:  # the same samples as `TransformersSampler`, sooner
            trainer._windows._policy._in_memory = FastSampler(model, tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = {"training": time.perf_counter() - started}
    record: dict[str, Any] = {"method": method, "setting": setting, "seed": seed}
    if isinstance(trainer, HeldOutTrainer):
        record["shifts"] = [round(shift, 3) for shift in trainer.shifts]
    record |= {"num_samples": num_samples, "correct": recorder.correct}
    names = ("success_rate", "rationales", "reference_targets", "coverage_weight", "loss")
    logged = trainer.state.log_history
    record["log"] = {name: [entry[name] for entry in logged if name in entry] for name in names}
    if is_plain and rivals:
        record["temperatures"], record["averages"] = [], []
        for epoch, weights in recorder.weights.items():
            model.load_state_dict(weights)
            for temperature in TEMPERATURES:
                correct = recorder.measure(temperature)
                record["temperatures"].append({"epoch": epoch, "temperature": temperature, "correct": correct})
        late = recorder.weights[max(epochs)]
        for early, share in AVERAGES:
            if early in recorder.weights and early < max(epochs):
                first = recorder.weights[early]
                model.load_state_dict({name: first[name].lerp(late[name], share) for name in late})
                correct = recorder.measure(1.0)
                record["averages"].append({"early": early, "late_weight": share, "correct": correct})
    seconds["all"] = time.perf_counter() - started
    return {**record, "seconds": {name: round(value, 1) for name, value in seconds.items()}}
