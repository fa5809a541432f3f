"""Several right answers to a problem: their summed probability against rows of one reference each.

The task is to factorise: `1001=` has the answers `11*91`, `91*11`, `13*77` and `77*13`, all pairs of two-digit
factors. The model and the settings are those of the demonstration. Each N is trained in three ways:

- `one`: rows of one reference, drawn from each number's;
- `rows`: rows of one reference, every one; batches have as many more rows as there are references, so that the steps
  are as many;
- `union`: all references of a number at once (`completions`), the loss of their summed probability.

Coverage is exact: of any right answer, 1 - (1 - sum of p)^k, after each epoch. For each k the epoch is chosen on
validation numbers and reported on test numbers; the last epoch is reported too.

    python research/references.py --work_dir references-runs --output docs/results/references.json --workers 14

30 runs. One takes 1 (`one`) to 3 minutes on one core.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset
from in_processes import environment, run_all, write
from rival_selection import interval, told
from scipy.special import logsumexp
from transformers import PrinterCallback, TrainerCallback

from dco_trl import DCOConfig, DCOTrainer
from dco_trl.demo import task
from dco_trl.demo.training import SETTINGS, be_quiet, training_arguments
from dco_trl.problem import Problem
from dco_trl.sampling import exact_coverage
from dco_trl.statistics import exact_pass_at_k

KS = [1, 16, 256, 4096]
NUM_ATTEMPTS = [1, 256]
WAYS = ["one", "rows", "union"]
NUM_TRAIN, NUM_VALIDATION = 1700, 300  # of 2,621 numbers; the rest is the test set


def make_problems(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Numbers with all their factorisations, to train on, to choose epochs on, to report."""
    answers: dict[int, list[str]] = {}
    for a in range(10, 100):
        for b in range(10, 100):
            answers.setdefault(a * b, []).append(f"{a}*{b}")
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(sorted(answers)).tolist()
    rows = [{"prompt": f"{n}=", "completions": rng.permutation(answers[n]).tolist()} for n in numbers]
    return rows[:NUM_TRAIN], rows[NUM_TRAIN : NUM_TRAIN + NUM_VALIDATION], rows[NUM_TRAIN + NUM_VALIDATION :]


def rows_of(way: str, train: list[dict[str, Any]]) -> Dataset:
    if way == "union":
        return Dataset.from_list(train)
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": answer}
            for row in train
            for answer in row["completions"][: 1 if way == "one" else None]
        ]
    )


class Recorder(TrainerCallback):
    """Coverage of any right answer after each epoch, with the axes epoch, split and k."""

    def __init__(self, tokenizer: Any, splits: list[list[dict[str, Any]]]):
        self.tokenizer, self.splits, self.coverage = tokenizer, splits, []

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.coverage.append([coverage(model, self.tokenizer, rows) for rows in self.splits])


def coverage(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[float]:
    """Mean coverage of any right answer for each of `KS`."""
    problems = [
        Problem(f"{row['prompt']}{answer}", row["prompt"], answer) for row in rows for answer in row["completions"]
    ]
    log_p = exact_coverage(model, tokenizer, problems, batch_size=4096, progress=False).log_p
    ends = np.cumsum([len(row["completions"]) for row in rows])[:-1]
    of_rows = np.array([min(logsumexp(some), 0.0) for some in np.split(log_p, ends)])
    return exact_pass_at_k(of_rows[:, None], KS).mean(axis=0).round(6).tolist()


def train(way: str, num_attempts: int, seed: int, num_epochs: int) -> dict[str, Any]:
    be_quiet()
    train_rows, *splits = make_problems(seed)
    dataset, tokenizer = rows_of(way, train_rows), task.make_tokenizer()
    recorder = Recorder(tokenizer, splits)
    with TemporaryDirectory(prefix="references-") as folder:
        arguments = training_arguments(folder, len(train_rows), num_epochs, seed)
        arguments["per_device_train_batch_size"] = round(
            SETTINGS["per_device_train_batch_size"] * len(dataset) / len(train_rows)
        )
        trainer = DCOTrainer(
            task.make_model(seed),
            args=DCOConfig(num_attempts=num_attempts, **arguments),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {"steps": trainer.state.global_step, "coverage": recorder.coverage}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each way and N, seeds' coverage on the test numbers: at the epoch best on validation, and the last."""
    table = []
    for num_attempts in NUM_ATTEMPTS:
        for way in WAYS:
            curves = [np.array(r["coverage"]) for r in runs if (r["way"], r["num_attempts"]) == (way, num_attempts)]
            best = [[int(curve[:, 0, i].argmax()) for i in range(len(KS))] for curve in curves]
            table.append(
                {
                    "way": way,
                    "num_attempts": num_attempts,
                    "epoch": [[epoch + 1 for epoch in epochs] for epochs in best],
                    "chosen": [
                        [c[e, 1, i] for i, e in enumerate(epochs)] for c, epochs in zip(curves, best, strict=True)
                    ],
                    "last": [curve[-1, 1].tolist() for curve in curves],
                }
            )
    return table


def compare(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of `union` to the other ways with the same N, paired by seed, epochs as chosen."""
    of = {(entry["way"], entry["num_attempts"]): np.array(entry["chosen"]) for entry in table}
    pairs = [(("union", n), (way, n)) for n in NUM_ATTEMPTS for way in WAYS if way != "union"]
    pairs += [(("union", n), ("union", 1)) for n in NUM_ATTEMPTS if n > 1 and ("union", 1) in of]
    return [
        {
            "of": first,
            "against": second,
            "difference": [interval(column) for column in (of[first] - of[second]).T.tolist()],
        }
        for first, second in pairs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--num_epochs", type=int, default=30)
    args = parser.parse_args()
    jobs = [
        {"way": way, "num_attempts": num_attempts, "seed": seed, "num_epochs": args.num_epochs}
        for way in reversed(WAYS)  # the longest first
        for num_attempts in NUM_ATTEMPTS
        for seed in range(args.seeds)
    ]
    runs = run_all(train, jobs, args.work_dir, args.workers)
    results = {"settings": {**SETTINGS, "num_train_epochs": args.num_epochs}, "k": KS, **environment(args.workers)}
    results |= {"seconds_of_runs": sum(run["seconds"] for run in runs), "summary": summarise(runs), "runs": runs}
    results["comparisons"] = compare(results["summary"])
    write(results, args.output)
    for entry in results["summary"]:
        for name in ("chosen", "last"):
            cells = "  ".join(f"@{k} {100 * v:5.1f}" for k, v in zip(KS, np.mean(entry[name], axis=0), strict=True))
            print(f"{entry['way']:>6} N={entry['num_attempts']:<4} {name:>6}  {cells}")
    for entry in results["comparisons"]:
        cells = "  ".join(f"@{k} {told(v)}" for k, v in zip(KS, entry["difference"], strict=True))
        print("{} N={} less {} N={}".format(*entry["of"], *entry["against"]), cells)


if __name__ == "__main__":
    main()
