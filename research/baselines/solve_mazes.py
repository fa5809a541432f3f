"""Mazes solved by `dco-trl solve`, a walk its verifier, beside what exact coverage expects.

    python -m research.baselines.solve_mazes --work_dir runs/solve-mazes \\
        --output research/baselines/results/mazes-solved.json

Trains a run of the comparison again (DCO, N = 256, seed 0), saves the model, and lets it try
each test maze up to 256 times. Nothing that the verifier sees holds the path. A maze of probability p is solved with
probability 1 - (1-p)^256, so the share that is solved has a known expectation and standard error.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from dco_trl.cli import main as dco_trl
from dco_trl.coverage_numpy import coverage
from dco_trl.demo import task as demo
from dco_trl.demo.training import be_quiet
from dco_trl.sampling import exact_coverage
from research.baselines import mazes
from research.baselines.mazes import Mazes
from research.baselines.training import make_trainer
from research.common.processes import write

BUDGET = 256
KS = (1, 4, 16, 64, BUDGET)


def train(task: Mazes, num_attempts: int, seed: int, folder: Path) -> None:
    """Save the model of a run of DCO, and the test mazes without their paths."""
    problems, tokenizer, model = task.make_problems(seed), task.make_tokenizer(), task.make_model(seed)
    with TemporaryDirectory(prefix="mazes-") as run:
        arguments = task.arguments(run, len(problems.train), task.num_epochs, seed)
        make_trainer("DCO", {"num_attempts": num_attempts}, model, arguments, problems.train, tokenizer).train()
    folder.mkdir(parents=True, exist_ok=True)
    problems.test.select_columns(["prompt"]).to_json(folder / "test.jsonl")
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")


def solve(folder: Path, size: int, batch_size: int) -> NDArray[np.float64]:
    """For each test maze, the attempt that `dco-trl solve` accepted, counted from 1; infinity for none."""
    command = ["solve", "--model", folder / "model", "--dataset", folder / "test.jsonl", "--output", folder / "solved"]
    command += ["--grader", f"{mazes.__file__}:accept", "--num_attempts", BUDGET, "--max_tokens", size**2]
    command += ["--batch_size", batch_size, "--verdict_cache", "none"]
    if dco_trl([str(word) for word in command]):
        raise RuntimeError("dco-trl solve failed; its message stands above")
    answers = {}
    for line in (folder / "solved" / "answers.jsonl").read_text().splitlines():
        answer = json.loads(line)
        answers[int(answer["problem_id"])] = answer["attempt"] if answer["solved"] else np.inf
    return np.array([answers[i] for i in range(len(answers))])


def compare(log_p: NDArray[np.float64], accepted: NDArray[np.float64]) -> list[dict[str, float]]:
    """For each k: the share that is solved, what exact probabilities expect of it, and its standard error."""
    rows = []
    for k in KS:
        p = coverage(np.minimum(log_p, 0.0), k)
        error = float(np.sqrt((p * (1 - p)).sum()) / len(p))
        rows.append({"k": k, "solved": float(np.mean(accepted <= k)), "exact": float(p.mean()), "error": error})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the model and of what solve writes.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--num_attempts", type=int, default=256, help="N that the model is trained for.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the run.")
    parser.add_argument("--epochs", type=int, default=Mazes.num_epochs, help="Epochs of the run.")
    parser.add_argument("--batch_size", type=int, default=1024, help="Attempts sampled at a time.")
    args = parser.parse_args(argv)
    be_quiet()
    task = Mazes(num_epochs=args.epochs)
    if not (args.work_dir / "model").exists():
        train(task, args.num_attempts, args.seed, args.work_dir)
    accepted = solve(args.work_dir, task.size, args.batch_size)
    model = AutoModelForCausalLM.from_pretrained(args.work_dir / "model")
    problems = demo.as_problems(task.make_problems(args.seed).test)
    log_p = exact_coverage(model, task.make_tokenizer(), problems, progress=False).log_p
    rows = compare(log_p, accepted)
    run = {"task": task.description, "num_attempts": args.num_attempts, "seed": args.seed, "num_epochs": args.epochs}
    write({**run, "rows": rows}, args.output)
    print("| k | solved, % | exact coverage | standard error |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['k']} | {100 * row['solved']:.1f} | {100 * row['exact']:.1f} | {100 * row['error']:.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
