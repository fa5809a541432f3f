"""Countdown, where many expressions are right: does DCO's gain survive when a verifier accepts any of them?

    python -m research.countdown.run --work_dir runs/countdown --output research/countdown/results/countdown.json

Numbers and a target are given; an expression that uses each number once and equals the target is asked for. Problems
and verifier are reasoning-gym's. Training sees one expression a problem, so the exact coverage of that one is only a
lower bound of the coverage that counts, which is sampled: 64 attempts a problem, every few epochs, at two
temperatures. Epoch and temperature are chosen on validation problems and reported on test problems.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import reasoning_gym
from datasets import Dataset
from numpy.typing import NDArray
from transformers import TrainerCallback

from dco_trl.coverage_numpy import coverage
from dco_trl.demo import task as demo
from dco_trl.demo.training import be_quiet, training_arguments
from dco_trl.sampling import exact_coverage
from dco_trl.statistics import pass_at_k
from research.baselines.mazes import Mazes
from research.baselines.training import make_trainer
from research.common.differences import interval
from research.common.fast_sampler import FastSampler
from research.common.processes import environment, run_all, write

VOCABULARY = ["<pad>", "<eos>", "=", ">", *"0123456789", *"+-*/()"]
MAX_TOKENS = 18  # four numbers, three operators, four parentheses and the end take 16 at most
NUM_TRAIN, NUM_HELD_OUT = 800, 150  # of validation, and of test
NUM_EPOCHS, EVERY = 40, 8
BUDGET = 64
TEMPERATURES = (1.0, 1.5)
METHODS: dict[str, dict[str, Any]] = {"cross-entropy": {}, "DCO": {"num_attempts": BUDGET}}
GAME = {"min_numbers": 4, "max_numbers": 4, "min_value": 1, "max_value": 20, "min_target": 1, "max_target": 99}


def make_problems(seed: int, count: int) -> list[dict[str, str]]:
    """Problems of reasoning-gym, no two with one prompt: the numbers and the target, two digits each."""
    rows: dict[str, dict[str, str]] = {}
    # More than needed: a few are drawn twice. Seeds of entries are seed + index, so seeds lie far apart.
    for entry in reasoning_gym.create_dataset("countdown", seed=10**6 * (seed + 1), size=2 * count, **GAME):
        numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
        prompt = "".join(f"{number:02d}" for number in numbers) + f">{target:02d}="
        rows.setdefault(prompt, {"prompt": prompt, "completion": entry["answer"].replace(" ", "")})
        if len(rows) == count:
            return list(rows.values())
    raise ValueError(f"count: got {count}; of {2 * count} problems of reasoning-gym only {len(rows)} differ")


@cache
def is_right(prompt: str, expression: str) -> bool:
    """Reasoning-gym's verdict, full marks alone.

    Other numbers than those given are refused here, as its verifier would, but without the cost of sympy; and so are
    `**` and `//`, which are none of the game's operators, and of which `9**9**9` would never end.
    """
    digits, target = prompt.rstrip("=").split(">")
    numbers = [int(digits[i : i + 2]) for i in range(0, len(digits), 2)]
    if "**" in expression or "//" in expression or sorted(map(int, re.findall(r"\d+", expression))) != sorted(numbers):
        return False
    return _verifier()(expression, {"metadata": {"numbers": numbers, "target": int(target)}}) >= 1.0


@cache
def _verifier() -> Callable[[str, dict], float]:
    return reasoning_gym.get_score_answer_fn("countdown")


class Recorder(TrainerCallback):
    """Every few epochs: how many samples of each problem are right, and exact log p of its one expression."""

    def __init__(self, tokenizer: Any, rows: list[dict[str, str]], every: int, num_samples: int):
        self.tokenizer, self.rows, self.every, self.num_samples = tokenizer, rows, every, num_samples
        self.epochs: list[int] = []
        self.right: list[list[list[int]]] = []  # epoch, temperature, problem
        self.log_p: list[list[list[float]]] = []  # epoch, temperature, problem

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        epoch = round(state.epoch)
        if epoch % self.every:
            return
        self.epochs.append(epoch)
        self.right.append([self.sample(model, temperature) for temperature in TEMPERATURES])
        problems = demo.as_problems(self.rows)
        exact = exact_coverage(model, self.tokenizer, problems, temperature=TEMPERATURES, progress=False)
        self.log_p.append(exact.log_p.round(4).tolist())

    def sample(self, model: Any, temperature: float) -> list[int]:
        """Right ones among the samples of each problem, which are drawn from the same uniform numbers each time."""
        prompts = [row["prompt"] for row in self.rows]
        sampler = FastSampler(model, self.tokenizer)
        drawn = sampler.draw(prompts, self.num_samples, MAX_TOKENS, seed=0, temperature=temperature).tolist()
        right, end = [0] * len(prompts), self.tokenizer.eos_token_id
        for i, ids in enumerate(drawn):
            if end in ids:
                text = "".join(VOCABULARY[token] for token in ids[: ids.index(end)])
                owner = i // self.num_samples
                right[owner] += is_right(prompts[owner], text)
        return right


def train(
    method: str,
    seed: int,
    num_epochs: int = NUM_EPOCHS,
    every: int = EVERY,
    num_train: int = NUM_TRAIN,
    num_held_out: int = NUM_HELD_OUT,
    num_samples: int = BUDGET,
) -> dict[str, Any]:
    """Train one run; `right` and `log_p` have the axes epoch, temperature and problem, validation before test."""
    be_quiet()
    rows = make_problems(seed, num_train + 2 * num_held_out)
    tokenizer = demo.make_tokenizer(VOCABULARY)
    length = len(rows[0]["prompt"]) + MAX_TOKENS
    model = demo.make_model(
        seed, len(VOCABULARY), hidden_size=128, intermediate_size=256, max_position_embeddings=length
    )
    recorder = Recorder(tokenizer, rows[: 2 * num_held_out], every, num_samples)
    with TemporaryDirectory(prefix="countdown-") as folder:
        arguments = training_arguments(folder, num_train, num_epochs, seed) | Mazes.settings
        data = Dataset.from_list(rows[2 * num_held_out :])
        make_trainer(method, METHODS[method], model, arguments, data, tokenizer, [recorder]).train()
    return {"epochs": recorder.epochs, "right": recorder.right, "log_p": recorder.log_p}


def select(runs: Sequence[dict[str, Any]], method: str, any_epoch: bool, any_temperature: bool) -> dict[str, Any]:
    """For each seed: epoch and temperature with the greatest sampled pass@64 on validation; test means over seeds.

    Returns:
        `pass`, sampled, any right expression: pass@1, 16 and 64; `reference`: exact coverage of the one expression,
        for the same k; each by seed and with its interval. `chosen`: epoch and temperature by seed.
    """
    found: dict[str, Any] = {"chosen": [], "pass": [], "reference": []}
    ks = (1, 16, BUDGET)
    for run in (run for run in runs if run["method"] == method):
        right, log_p = np.array(run["right"]), np.minimum(np.array(run["log_p"]), 0.0)
        half = right.shape[2] // 2
        candidates = [
            (epoch, temperature)
            for epoch in (range(len(right)) if any_epoch else [len(right) - 1])
            for temperature in (range(len(TEMPERATURES)) if any_temperature else [0])
        ]
        at = max(candidates, key=lambda at: (right[at][:half] > 0).mean())  # the earliest of equals
        found["chosen"].append({"epoch": run["epochs"][at[0]], "temperature": TEMPERATURES[at[1]]})
        found["pass"].append([sampled(right[at][half:], k) for k in ks])
        found["reference"].append([float(coverage(log_p[at][half:], k).mean()) for k in ks])
    for name in ("pass", "reference"):
        found[f"{name}_mean"] = [interval(list(at_k)) for at_k in zip(*found[name], strict=True)]
    return {**found, "k": ks}


def sampled(right: NDArray[np.int64], k: int) -> float:
    """Mean pass@k from the right ones among the samples of each problem."""
    return float(pass_at_k(np.full(right.shape, BUDGET), right, k).mean())


ROWS = {
    "cross-entropy, last epoch": ("cross-entropy", False, False),
    "cross-entropy, best epoch": ("cross-entropy", True, False),
    "cross-entropy, best epoch and temperature": ("cross-entropy", True, True),
    "DCO, N = 64, best epoch": ("DCO", True, False),
    "DCO, N = 64, best epoch and temperature": ("DCO", True, True),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the finished runs, one file each.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Which seeds.")
    parser.add_argument("--epochs", type=int, default=NUM_EPOCHS, help="Epochs a run.")
    parser.add_argument("--workers", type=int, default=2, help="Runs at a time, a thread each.")
    args = parser.parse_args(argv)
    jobs = [{"method": m, "seed": seed, "num_epochs": args.epochs} for seed in args.seeds for m in METHODS]
    runs = run_all(train, jobs, args.work_dir, args.workers)
    rows = {name: select(runs, *row) for name, row in ROWS.items()}
    write({"game": GAME, "rows": rows, "runs": runs, **environment(args.workers)}, args.output)
    print(f"| test problems, mean of {len(args.seeds)} seeds, per cent | pass@1 | 16 | 64 | reference at 64 |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [at["mean"] for at in (*row["pass_mean"], row["reference_mean"][-1])]
        print(f"| {name} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
