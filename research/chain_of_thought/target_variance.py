"""How much noise `num_targets` takes out of the gradient of `targets="sampled"`, at equal rationales.

Some problems of `tiny.py`, each in all four forms. A model is trained on them by cross-entropy for some epochs;
then the gradient of one window is computed again and again at the same weights, each time with rationales of its own,
and from the same rationales once for each number of targets. Noise is the trace of the gradients' covariance over the
square of their mean, unbiased.

    python -m research.chain_of_thought.target_variance \\
        --output research/chain_of_thought/results/target-variance.json
"""

import argparse
import json
import os
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset

from dco_trl import CoTDCOConfig, CoTDCOTrainer
from dco_trl.demo.training import be_quiet
from dco_trl.trainer.window import Window
from research.chain_of_thought.task import last_number, make_model, make_tokenizer, rationale
from research.chain_of_thought.tiny import SIZE, make_problems

NUM_TARGETS = (1, 2, 4, 8, 16)


def make_trainer(model: Any, rows: Any, folder: str, **options: Any) -> CoTDCOTrainer:
    args = CoTDCOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        weight_decay=0.0,
        per_device_train_batch_size=16,
        max_rationale_tokens=40,
        **options,
    )
    return CoTDCOTrainer(model, args=args, train_dataset=rows, grader=last_number, processing_class=make_tokenizer())


def gradient(trainer: CoTDCOTrainer, window: Window, rows: list[int], num_targets: int) -> np.ndarray:
    """The gradient of one step on these rows."""
    trainer.args.num_targets = num_targets
    rationales = {problem: correct[:num_targets] for problem, correct in window.rationales.items()}
    trainer._window = Window(deque([rows]), window.estimates, rationales)
    [batch], count = trainer.get_batch_samples(iter([]), 1, torch.device("cpu"))
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).numpy().copy()


def noise(gradients: np.ndarray) -> float:
    """Trace of the covariance of `(repeats, weights)` gradients over the squared norm of their mean, both unbiased."""
    mean = gradients.mean(0)
    trace = ((gradients - mean) ** 2).sum() / (len(gradients) - 1)
    return float(trace / (mean @ mean - trace / len(gradients)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rationales", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--num-attempts", type=int, default=16)
    options = parser.parse_args()
    be_quiet()
    problems, _ = make_problems(0)
    problems = problems.select(range(options.prompts))
    with TemporaryDirectory() as folder:
        counts = {"num_sampled": 1, "num_correct": 0}  # not used: the weight is 1 for cross-entropy
        forms = [
            {**row, **counts, "completion": rationale(*map(int, row["prompt"][:-1].split("*")), form)}
            for row in problems
            for form in range(4)
        ]
        trained = make_trainer(
            make_model(0, **SIZE),
            Dataset.from_list(forms),
            folder,
            num_attempts=1,
            sampler="none",
            num_train_epochs=options.epochs,
        )
        trained.train()
        trainer = make_trainer(
            trained.model,
            problems.remove_columns(["num_sampled", "num_correct"]),
            folder,
            num_attempts=options.num_attempts,
            targets="sampled",
            num_targets=max(NUM_TARGETS),
            ce_warmup_steps=0,
            num_rationales=options.rationales,
            rationale_batch=options.rationales,
            weight_tolerance=0.0,
            count_memory=0.0,
            sampler_kwargs={"batch_size": 512},
            loss_reduction="sequence",
        )
        rows = list(range(options.prompts))
        gradients: dict[int, list[np.ndarray]] = {m: [] for m in NUM_TARGETS}
        rates = []
        for repeat in range(options.repeats):
            trainer.args.num_targets = max(NUM_TARGETS)
            window, metrics = trainer._windows.open([rows], step=repeat)
            rates.append(metrics["success_rate"])
            for m in NUM_TARGETS:
                gradients[m].append(gradient(trainer, window, rows, m))
    noises = {m: noise(np.stack(some)) for m, some in gradients.items()}
    if not noises[1]:
        raise SystemExit("no sampled rationale was correct, so every target was the reference: raise --epochs")
    for m, value in noises.items():
        print(f"num_targets={m}: noise {value:.3f}, {value / noises[1]:.2f} of that of one", flush=True)
    record = {**vars(options), "success_rate": float(np.mean(rates)), "noise": noises}
    options.output.write_text(json.dumps(record, default=str, indent=1) + "\n")


if __name__ == "__main__":
    main()
