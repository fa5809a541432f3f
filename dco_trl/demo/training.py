"""One run of the demonstration: TRL's own `SFTTrainer`, or `DCOTrainer`, measured every few epochs."""

import logging
import time
import warnings
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..coverage import log_coverage
from ..trainer import DCOConfig, DCOTrainer
from . import measure, task

# Found by trying: see `docs/results/demo.md` for what they give over five seeds.
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=64,
    learning_rate=5e-4,
    lr_scheduler_type="constant",
    adam_beta2=0.99,
    weight_decay=0.0,
)
NUM_EPOCHS = 30
# Sampling check: rounds of 16 samples for each held-out problem.
CHECK_ATTEMPTS, CHECK_REPEATS = 16, 4
CURVE_K = [4**i for i in range(8)]


def train_run(
    num_attempts: int,
    seed: int,
    num_epochs: int = NUM_EPOCHS,
    measure_every: int = 3,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train one model and measure it as it learns.

    Args:
        num_attempts: N of the loss; 1 is cross-entropy, trained with TRL's `SFTTrainer`.
        seed: Seed of the problems, the model's first weights and the order of the batches.
        num_epochs: Epochs.
        measure_every: Epochs between measurements; the last epoch is always measured.
        progress: Called after each epoch.

    Returns:
        A JSON-serialisable record: `epochs`, `coverage` (one list a measured epoch, aligned with `k`),
        `greedy_probability` and `greedy_correct` (one list of problems a measured epoch), `check` and `seconds`.
    """
    _be_quiet()
    started = time.perf_counter()
    train_dataset, held_out = task.make_problems(seed)
    tokenizer, model = task.make_tokenizer(), task.make_model(seed)
    recorder = Recorder(tokenizer, held_out["prompt"], held_out["completion"], measure_every, num_epochs, progress)
    with TemporaryDirectory(prefix="dco-trl-demo-") as folder:
        common = dict(
            output_dir=folder,
            num_train_epochs=num_epochs,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # the model is tiny: memory is no concern, time is
            dataloader_pin_memory=False,
            shuffle_dataset=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            **SETTINGS,
        )
        data: dict[str, Any] = dict(
            model=model, train_dataset=train_dataset, processing_class=tokenizer, callbacks=[recorder]
        )
        trainer = (
            SFTTrainer(args=SFTConfig(**common), **data)
            if num_attempts == 1
            else DCOTrainer(args=DCOConfig(num_attempts=num_attempts, **common), **data)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {
        "num_attempts": num_attempts,
        "seed": seed,
        "trainer": type(trainer).__name__,
        "k": CURVE_K,
        **recorder.record,
        "check": _check_by_sampling(model.eval(), tokenizer, held_out, seed),
        "seconds": time.perf_counter() - started,
    }


class Recorder(TrainerCallback):
    """Measures exact coverage and the greedy answer's probability on the held-out problems, every few epochs."""

    def __init__(self, tokenizer, prompts, answers, measure_every: int, num_epochs: int, progress):
        self.tokenizer, self.prompts, self.answers = tokenizer, list(prompts), list(answers)
        self.measure_every, self.num_epochs, self.progress = measure_every, num_epochs, progress
        self.record: dict[str, list] = {"epochs": [], "coverage": [], "greedy_probability": [], "greedy_correct": []}

    def on_epoch_end(self, args, state, control, **kwargs):
        model = kwargs["model"]
        epoch = round(state.epoch)
        if epoch % self.measure_every == 0 or epoch == self.num_epochs or epoch == 1:
            model.eval()
            log_p = measure.reference_log_p(model, self.tokenizer, self.prompts, self.answers)
            greedy_log_p, top = measure.greedy_answers(model, self.tokenizer, self.prompts, task.ANSWER_LENGTH + 1)
            model.train()
            self.record["epochs"].append(epoch)
            self.record["coverage"].append([log_coverage(log_p, k).exp().mean().item() for k in CURVE_K])
            self.record["greedy_probability"].append([round(p, 6) for p in greedy_log_p.exp().tolist()])
            self.record["greedy_correct"].append([a == b for a, b in zip(top, self.answers, strict=True)])
        self.progress()


def _check_by_sampling(model, tokenizer, held_out, seed: int) -> dict[str, Any]:
    prompts, answers = held_out["prompt"], held_out["completion"]
    log_p = measure.reference_log_p(model, tokenizer, prompts, answers)
    exact = log_coverage(log_p, CHECK_ATTEMPTS).exp().numpy()
    sampled = measure.sampled_coverage(
        model, tokenizer, prompts, answers, CHECK_ATTEMPTS, CHECK_REPEATS, task.ANSWER_LENGTH + 1, seed
    )
    return {
        "k": CHECK_ATTEMPTS,
        "samples": len(prompts) * CHECK_ATTEMPTS * CHECK_REPEATS,
        "exact": float(exact.mean()),
        "sampled": sampled,
        "standard_error": measure.sampling_error(exact, CHECK_REPEATS),
    }


def _be_quiet() -> None:
    """Keep the libraries' bars and notes out of the demonstration's output; errors still show."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("dco_trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
