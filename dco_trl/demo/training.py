"""One run of the demonstration: TRL's own `SFTTrainer`, or `DCOTrainer`, measured every few epochs."""

import logging
import math
import time
import warnings
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..problem import Problem
from ..sampling import ExactCoverage, Sample, SampleRequest, SamplingParams, TransformersSampler, exact_coverage
from ..statistics.pass_at_k import exact_pass_at_k, pass_at_k
from ..trainer import DCOConfig, DCOTrainer
from . import task

# Found by trial, the same for every run; `docs/results/demo.md` has the results over five seeds. The strong weight
# decay slows memorising, of cross-entropy too; the short decay of the learning rate takes the noise out of the end.
SETTINGS: dict[str, Any] = dict(
    per_device_train_batch_size=64,
    learning_rate=5e-4,
    lr_scheduler_type="warmup_stable_decay",
    adam_beta2=0.99,
    weight_decay=1.0,
)
NUM_EPOCHS = 34
_DECAY = 0.15  # share of the steps at the end, over which the learning rate falls to zero
# Sequences in one forward pass.
_BATCH = 4096
# The check by sampling: pass@16 from 64 samples of each held-out problem.
CHECK_ATTEMPTS, CHECK_SAMPLES = 16, 64
CURVE_K = [4**i for i in range(8)]


def train_run(
    num_attempts: int, seed: int, num_epochs: int = NUM_EPOCHS, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train one model (N = 1: TRL's `SFTTrainer`), measure it as it learns, and return a record for JSON."""
    be_quiet()
    started = time.perf_counter()
    train_dataset, held_out = task.make_problems(seed)
    tokenizer, model = task.make_tokenizer(), task.make_model(seed)
    problems = task.as_problems(held_out)
    recorder = Recorder(tokenizer, problems, num_epochs, progress)
    with TemporaryDirectory(prefix="dco-trl-demo-") as folder:
        common = training_arguments(folder, len(train_dataset), num_epochs, seed)
        args = SFTConfig(**common) if num_attempts == 1 else DCOConfig(num_attempts=num_attempts, **common)
        trainer_class: Any = SFTTrainer if num_attempts == 1 else DCOTrainer
        trainer = trainer_class(
            model, args=args, train_dataset=train_dataset, processing_class=tokenizer, callbacks=[recorder]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {
        "num_attempts": num_attempts,
        "seed": seed,
        "trainer": type(trainer).__name__,
        "k": CURVE_K,
        **recorder.record,
        "check": check_by_sampling(model, tokenizer, problems, seed),
        "seconds": time.perf_counter() - started,
    }


def training_arguments(folder: str, num_problems: int, num_epochs: int, seed: int) -> dict[str, Any]:
    """Return what every run gives to `SFTConfig` or `DCOConfig`."""
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

    def __init__(self, tokenizer: Any, problems: list[Problem], num_epochs: int, progress: Callable[[], None]):
        self.tokenizer, self.problems, self.progress = tokenizer, problems, progress
        self.greedy_epochs = {math.ceil(share * num_epochs) for share in (0.1, 0.4, 0.7, 1.0)}
        self.record: dict[str, list] = {"epochs": [], "coverage": [], "greedy": [], "log_p": []}

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, epoch = kwargs["model"], round(state.epoch)
        exact = _exact(model, self.tokenizer, self.problems)
        self.record["epochs"].append(epoch)
        self.record["coverage"].append(exact.pass_at_k(CURVE_K).tolist())
        self.record["log_p"].append(exact.log_p)
        if epoch in self.greedy_epochs:
            self.record["greedy"].append({"epoch": epoch, **greedy_answers(model, self.tokenizer, self.problems)})
        self.progress()


def greedy_answers(model: Any, tokenizer: Any, problems: list[Problem]) -> dict[str, list]:
    """Return the probability of each greedy answer, 0 for one that does not end, and whether it is correct."""
    answers = [answer for (answer,) in _sample(model, tokenizer, problems, num_samples=1, temperature=0.0)]
    pairs = list(zip(problems, answers, strict=True))
    probability = np.zeros(len(problems))
    ended = [Problem(p.problem_id, p.prompt, answer) for p, answer in pairs if answer is not None]
    if ended:
        probability[[answer is not None for answer in answers]] = np.exp(_exact(model, tokenizer, ended).log_p)
    return {
        "probability": probability.round(6).tolist(),
        "correct": [answer == problem.answer for problem, answer in pairs],
    }


def check_by_sampling(
    model: Any, tokenizer: Any, problems: list[Problem], seed: int, num_samples: int = CHECK_SAMPLES
) -> dict[str, Any]:
    """Return pass@k estimated from samples, its standard error for these problems, and the exact value."""
    samples = _sample(model, tokenizer, problems, num_samples, temperature=1.0, seed=seed)
    hits = np.array([[text == problem.answer for text in row] for problem, row in zip(problems, samples, strict=True)])
    log_p = _exact(model, tokenizer, problems).log_p
    # The estimate from c correct samples, and how likely each c is: since p is known, so is the error.
    counts = np.arange(num_samples + 1)
    estimates = pass_at_k(num_samples, counts, CHECK_ATTEMPTS)
    chances = binom.pmf(counts, num_samples, np.exp(log_p)[:, None])
    variances = chances @ estimates**2 - (chances @ estimates) ** 2
    return {
        "k": CHECK_ATTEMPTS,
        "samples": hits.size,
        "exact": float(exact_pass_at_k(log_p, CHECK_ATTEMPTS).mean()),
        "sampled": float(estimates[hits.sum(axis=1)].mean()),
        "standard_error": float(np.sqrt(variances.sum()) / len(problems)),
    }


def _exact(model: Any, tokenizer: Any, problems: list[Problem]) -> ExactCoverage:
    return exact_coverage(model, tokenizer, problems, batch_size=_BATCH, progress=False)


def _sample(
    model: Any, tokenizer: Any, problems: list[Problem], num_samples: int, temperature: float, seed: int = 0
) -> list[list[str | None]]:
    """The answers drawn for each problem; None for one that does not end."""
    sampler = TransformersSampler(model, tokenizer=tokenizer, batch_size=_BATCH, progress=False)
    requests = [SampleRequest(problem.prompt, num_samples, stream=i) for i, problem in enumerate(problems)]
    params = SamplingParams(temperature=temperature, max_tokens=task.ANSWER_LENGTH + 1, seed=seed)

    def answer(sample: Sample) -> str | None:
        # Decoded here: the sample's own text leaves special tokens out, and "12<pad>" is not 12.
        return tokenizer.decode((sample.token_ids or ())[:-1]) if sample.finish_reason == "stop" else None

    return [[answer(sample) for sample in samples] for samples in sampler.sample(requests, params)]


def be_quiet() -> None:
    """Keep the libraries' bars and notes out of the output, and one thread per process; errors still show."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("dco_trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
