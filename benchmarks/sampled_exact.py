"""Sampled pass@k with its interval against exact coverage, on the demonstration's model, k to 4,096.

    python benchmarks/sampled_exact.py --output benchmarks/results/sampled-exact.json

Trains the demonstration's model with cross-entropy and with DCO, draws samples with `TransformersSampler`, counts the
right ones, and compares `pass_at_k_curve` with the mean of 1 - (1 - p)^k, p being the model's own probability of the
answer. The curve's interval is over problems; here both numbers are of the same problems, and only the error of
sampling separates them. Exits with 1 if a curve leaves four standard errors of sampling.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from transformers import PrinterCallback

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.demo import task
from dco_trl.demo.training import NUM_EPOCHS, be_quiet, training_arguments
from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler, exact_coverage
from dco_trl.statistics import pass_at_k, pass_at_k_curve

KS = tuple(4**i for i in range(7))


def train(num_attempts: int, num_epochs: int):
    train_dataset, held_out = task.make_problems(seed=0)
    tokenizer, model = task.make_tokenizer(), task.make_model(seed=0)
    with TemporaryDirectory() as folder:
        arguments = training_arguments(folder, len(train_dataset), num_epochs, seed=0)
        trainer = DCOTrainer(
            model,
            args=DCOConfig(num_attempts=num_attempts, **arguments),
            train_dataset=train_dataset,
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval(), tokenizer, held_out


def count_correct(model, tokenizer, held_out, num_samples: int) -> np.ndarray:
    """Right answers of each problem among `num_samples`, drawn in chunks so that no text is kept."""
    sampler = TransformersSampler(model, tokenizer=tokenizer, batch_size=4096, progress=False)
    params = SamplingParams(max_tokens=task.ANSWER_LENGTH + 1, seed=0)
    answers, correct = list(held_out["completion"]), np.zeros(len(held_out), dtype=int)
    chunk = 256
    for first in range(0, num_samples, chunk):
        requests = [SampleRequest(prompt, chunk, first, stream=i) for i, prompt in enumerate(held_out["prompt"])]
        for i, samples in enumerate(sampler.sample(requests, params)):
            correct[i] += sum(sample.text == answers[i] and sample.finish_reason == "stop" for sample in samples)
        print(f"\r  {first + chunk:,} of {num_samples:,} samples per problem", end="", flush=True)
    print()
    return correct


def sampling_error(p: np.ndarray, num_samples: int, k: int, draws: int = 400) -> float:
    """Standard deviation of the mean estimate over draws of the counts, the problems and their p being fixed."""
    counts = np.random.default_rng(0).binomial(num_samples, p, size=(draws, len(p)))
    return float(pass_at_k(num_samples, counts, k).mean(1).std())


def compare(num_attempts: int, num_epochs: int, num_problems: int, num_samples: int) -> dict[str, Any]:
    model, tokenizer, held_out = train(num_attempts, num_epochs)
    held_out = held_out.select(range(num_problems))
    coverage = exact_coverage(model, tokenizer, task.as_problems(held_out), progress=False)
    correct = count_correct(model, tokenizer, held_out, num_samples)
    curve = pass_at_k_curve(np.full(num_problems, num_samples), correct, k=KS)
    rows = []
    for i, k in enumerate(KS):
        exact = float(coverage.pass_at_k(k))
        rows.append(
            {
                "k": k,
                "exact": exact,
                "estimate": float(curve.estimate[i]),
                "low": float(curve.low[i]),
                "high": float(curve.high[i]),
                "sampling_error": sampling_error(np.exp(coverage.log_p), num_samples, k),
            }
        )
        print("  k {k:5}  exact {exact:.4f}  sampled {estimate:.4f} [{low:.4f}, {high:.4f}]".format(**rows[-1]))
    return {"num_attempts": num_attempts, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--epochs", type=int, default=NUM_EPOCHS, help="Epochs of training.")
    parser.add_argument("--num_problems", type=int, default=100, help="Held-out problems, of 500.")
    parser.add_argument("--num_samples", type=int, default=8192, help="Samples of each.")
    args = parser.parse_args()
    if args.num_samples < KS[-1]:
        parser.error(f"--num_samples: pass@{KS[-1]} needs as many samples per problem, got {args.num_samples}")
    be_quiet()
    runs = []
    for num_attempts in (1, 256):
        print(f"N = {num_attempts}", flush=True)
        runs.append(compare(num_attempts, args.epochs, args.num_problems, args.num_samples))
    record = {
        "settings": {name: value for name, value in vars(args).items() if name != "output"},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")}
        | {"python": platform.python_version()},
        "runs": runs,
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    worst = max(
        abs(row["estimate"] - row["exact"]) / max(row["sampling_error"], 1e-9) for run in runs for row in run["rows"]
    )
    print(f"Largest distance: {worst:.2f} standard errors of sampling.")
    sys.exit(worst > 4)


if __name__ == "__main__":
    main()
