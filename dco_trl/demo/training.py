"""One run of the demonstration: TRL's own `SFTTrainer`, or `DCOTrainer`, measured every few epochs."""

import logging
import math
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

# Found by trying, the same for every run: see `docs/results/demo.md` for what they give over five seeds. The strong
# weight decay slows memorising, of cross-entropy too; the short decay of the rate takes its noise out of the end.
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=64,
    learning_rate=5e-4,
    lr_scheduler_type="warmup_stable_decay",
    adam_beta2=0.99,
    weight_decay=1.0,
)
NUM_EPOCHS = 34
_DECAY = 0.15  # share of the steps at the end, over which the learning rate falls to zero
# Sampling check: rounds of 16 samples for each held-out problem.
CHECK_ATTEMPTS, CHECK_REPEATS = 16, 4
CURVE_K = [4**i for i in range(8)]


def train_run(
    num_attempts: int,
    seed: int,
    num_epochs: int = NUM_EPOCHS,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train one model and measure it as it learns.

    Args:
        num_attempts: N of the loss; 1 is cross-entropy, trained with TRL's `SFTTrainer`.
        seed: Seed of the problems, the model's first weights and the order of the batches.
        num_epochs: Epochs.
        progress: Called after each epoch.

    Returns:
        A JSON-serialisable record: `epochs`, `coverage` (one list an epoch, aligned with `k`), `greedy` (for four of
        the epochs, `probability` and `correct` of each held-out problem's greedy answer), `check` and `seconds`.
    """
    be_quiet()
    started = time.perf_counter()
    train_dataset, held_out = task.make_problems(seed)
    tokenizer, model = task.make_tokenizer(), task.make_model(seed)
    recorder = Recorder(tokenizer, held_out["prompt"], held_out["completion"], num_epochs, progress)
    with TemporaryDirectory(prefix="dco-trl-demo-") as folder:
        common = training_arguments(folder, len(train_dataset), num_epochs, seed)
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


def training_arguments(folder: str, num_problems: int, num_epochs: int, seed: int) -> dict[str, Any]:
    """What every run gives to `SFTConfig` or `DCOConfig`.

    Args:
        folder: Output folder.
        num_problems: Training problems.
        num_epochs: Epochs; the learning rate falls to zero over the last 15 % of their steps.
        seed: Seed of the order of the batches.

    Returns:
        Keyword arguments.
    """
    steps = num_epochs * math.ceil(num_problems / SETTINGS["per_device_train_batch_size"])
    return dict(
        output_dir=folder,
        num_train_epochs=num_epochs,
        seed=seed,
        lr_scheduler_kwargs={"num_decay_steps": math.ceil(_DECAY * steps), "decay_type": "linear"},
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


class Recorder(TrainerCallback):
    """Measures exact coverage of the held-out problems each epoch, and their greedy answers at four of the epochs."""

    def __init__(self, tokenizer, prompts, answers, num_epochs: int, progress: Callable[[], None]):
        self.tokenizer, self.prompts, self.answers = tokenizer, list(prompts), list(answers)
        self.greedy_epochs = {math.ceil(share * num_epochs) for share in (0.1, 0.4, 0.7, 1.0)}
        self.progress = progress
        self.record: dict[str, list] = {"epochs": [], "coverage": [], "greedy": []}

    def on_epoch_end(self, args, state, control, **kwargs):
        model, epoch = kwargs["model"], round(state.epoch)
        model.eval()
        log_p = measure.reference_log_p(model, self.tokenizer, self.prompts, self.answers)
        self.record["epochs"].append(epoch)
        self.record["coverage"].append([log_coverage(log_p, k).exp().mean().item() for k in CURVE_K])
        if epoch in self.greedy_epochs:
            self.record["greedy"].append({"epoch": epoch, **self._greedy(model)})
        model.train()
        self.progress()

    def _greedy(self, model) -> dict[str, list]:
        log_p, texts = measure.greedy_answers(model, self.tokenizer, self.prompts, task.ANSWER_LENGTH + 1)
        correct = [text == answer for text, answer in zip(texts, self.answers, strict=True)]
        return {"probability": [round(p, 6) for p in log_p.exp().tolist()], "correct": correct}


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


def be_quiet() -> None:
    """Keep the libraries' bars and notes out of the output, and one thread a process; errors still show."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("dco_trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
