"""DCO against what a sceptical user would do instead, on the demonstration's task or on MATH, over several seeds.

    python -m research.baselines.run --work_dir runs/baselines --figure docs/results/baselines.png \\
        --output research/baselines/results/multiplication.json

Cross-entropy (last epoch, best epoch, temperature tuned), averages of its early and late weights, label smoothing,
focal loss, entropy bonus, GEM, DFT; DCO over N, and a mixture of N's. Settings, epochs and temperatures are chosen on
validation problems and reported on test problems, exactly, without sampling. Runs are processes of one thread each. A
finished run is a record and its log-probabilities in --work_dir and is not run again, so the command can be stopped
and repeated; the output is written again each time a seed is complete.

With `--task math` the model is SmolLM2-135M and the problems are MATH's, direct answers. Everything on one large GPU,
and cross-entropy and two N's on a CPU:

    python -m research.baselines.run --task math --work_dir math-runs --output math.json --seeds 1 \\
        --num_train 11000 --num_test 500 --workers 4
    python -m research.baselines.run --task math --work_dir math-runs --output math.json --seeds 1 \\
        --methods cross-entropy DCO --num_attempts 16 256

With `--task mazes` answers are long and a checker accepts them by walking. Rivals have the settings that were chosen
on other seeds (`research/baselines/mazes.py`), and TailSFT is one of them:

    python -m research.baselines.run --task mazes --work_dir runs/mazes --workers 1 \\
        --output research/baselines/results/mazes.json
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dco_trl import __version__
from research.baselines import mazes
from research.baselines.figure import plot_frontier
from research.baselines.mazes import Mazes
from research.baselines.selection import TABLE_K, compare
from research.baselines.tasks import MathAnswers, Multiplication
from research.baselines.training import DCO_ATTEMPTS, METHODS, train
from research.common.pictures import save
from research.common.processes import run_missing, write

Job = tuple[str, dict[str, Any], int]
Task = Multiplication | MathAnswers | Mazes
Settings = Mapping[str, list[dict[str, Any]]]


def plan(
    methods: Sequence[str],
    num_seeds: int,
    num_attempts: Sequence[int] = DCO_ATTEMPTS,
    settings: Settings = METHODS,
) -> list[Job]:
    """All runs, one seed after the other, so that what an interruption leaves is complete seeds."""
    return [
        (method, setting, seed)
        for seed in range(num_seeds)
        for method in methods
        for setting in settings[method]
        if method != "DCO" or setting["num_attempts"] in num_attempts
    ]


def path_of(work_dir: Path, job: Job) -> Path:
    method, setting, seed = job
    parts = [method.replace(" ", "-"), *(f"{name}-{value}" for name, value in setting.items()), f"seed-{seed}"]
    return work_dir / ("_".join(parts) + ".json")


def load(task: Task, work_dir: Path, jobs: Sequence[Job], num_epochs: int) -> dict[int, dict[str, Any]]:
    """The finished runs among the jobs, by the job's number.

    Raises:
        ValueError: A file holds a run of another length, or of another task.
    """
    finished = {}
    for i, job in enumerate(jobs):
        path = path_of(work_dir, job)
        if not path.exists():
            continue
        finished[i] = json.loads(path.read_text())
        if finished[i]["num_epochs"] != num_epochs:
            raise ValueError(
                f"{path} holds a run of {finished[i]['num_epochs']} epochs, and {num_epochs} are asked for: "
                "give another --work_dir"
            )
        if finished[i]["task"] != task.description:
            raise ValueError(
                f"{path} holds a run of another task ({finished[i]['task']}), and this one is asked for: "
                f"{task.description}. Give another --work_dir"
            )
    return finished


def merge(
    task: Task, work_dir: Path, jobs: Sequence[Job], methods: Sequence[str], num_epochs: int
) -> dict[str, Any] | None:
    """The results of the complete seeds, or None if there is none."""
    finished = load(task, work_dir, jobs, num_epochs)
    incomplete = {job[2] for i, job in enumerate(jobs) if i not in finished}
    runs = [run for run in finished.values() if run["seed"] not in incomplete]
    if not runs:
        return None
    return {
        "title": task.title,
        "task": task.description,
        "settings_of_all_runs": {**task.settings, "num_train_epochs": num_epochs},
        "versions": {
            "dco-trl": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "trl")},
        },
        "num_runs": len(runs),
        "seconds_of_runs": round(sum(run["seconds"] for run in runs), 1),
        **compare(runs, methods),
    }


def run_jobs(
    task: Task,
    jobs: Sequence[Job],
    num_epochs: int,
    workers: int,
    work_dir: Path,
    after_each: Callable[[Path], None] = lambda path: None,
) -> list[str]:
    """Run the jobs that are not finished; returns the errors."""
    arguments = {path_of(work_dir, job): (task, *job, num_epochs) for job in jobs}
    return run_missing(train, arguments, workers, after_each)


def add_task(parser: argparse.ArgumentParser) -> None:
    """The arguments that `task_of` reads."""
    tasks = ["multiplication", "math", "mazes"]
    parser.add_argument("--task", choices=tasks, default="multiplication", help="What to learn.")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="math: hub name or folder.")
    parser.add_argument(
        "--dataset",
        default="nlile/hendrycks-MATH-benchmark",
        help="math: hub name, or folder with train.jsonl and test.jsonl; columns problem and answer.",
    )
    parser.add_argument("--num_train", type=int, default=1000, help="math: problems to train on, short ones first.")
    parser.add_argument("--num_test", type=int, default=200, help="math: problems of validation, and of test.")


def task_of(args: argparse.Namespace) -> Task:
    if args.task == "math":
        return MathAnswers(args.model, args.dataset, args.num_train, args.num_test)
    return Mazes() if args.task == "mazes" else Multiplication()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the finished runs, one file each.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--figure", type=Path, help="PNG file of the frontier; needs cross-entropy and DCO.")
    parser.add_argument("--seeds", type=int, default=5, help="Number of seeds.")
    names = list({**METHODS, **mazes.METHODS})
    parser.add_argument("--methods", nargs="+", choices=names, help="Which to run. Default: all of the task.")
    parser.add_argument(
        "--num_attempts",
        type=int,
        nargs="+",
        choices=DCO_ATTEMPTS,
        default=DCO_ATTEMPTS,
        help="Which N of DCO.",
    )
    parser.add_argument("--epochs", type=int, help="Epochs a run. Default: those of the task.")
    parser.add_argument("--workers", type=int, default=2, help="Runs at a time, a thread each.")
    add_task(parser)
    args = parser.parse_args(argv)
    for name in ("seeds", "epochs", "workers", "num_train", "num_test"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: got {value}; at least 1 is needed")
    task = task_of(args)
    settings = mazes.METHODS if args.task == "mazes" else METHODS
    methods = [method for method in settings if not args.methods or method in args.methods]
    unknown = set(args.methods or ()) - set(settings)
    if unknown:
        parser.error(f"--methods: {args.task} has no {', '.join(sorted(unknown))}; it has {', '.join(settings)}")
    if args.figure and not {"cross-entropy", "DCO"} <= set(methods):
        parser.error("--figure: needs --methods cross-entropy and DCO among others")
    num_epochs = args.epochs or task.num_epochs
    jobs = plan(methods, args.seeds, args.num_attempts, settings)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    try:
        load(task, args.work_dir, jobs, num_epochs)
    except ValueError as error:
        parser.error(str(error))

    def report() -> dict[str, Any] | None:
        results = merge(task, args.work_dir, jobs, methods, num_epochs)
        if results is not None:
            write(results, args.output)
            if args.figure:
                save({"": plot_frontier(results)}, args.figure)
        return results

    def report_if_complete(path: Path) -> None:
        seed = next(job[2] for job in jobs if path_of(args.work_dir, job) == path)
        if all(path_of(args.work_dir, job).exists() for job in jobs if job[2] == seed):
            report()

    errors = run_jobs(task, jobs, num_epochs, args.workers, args.work_dir, report_if_complete)
    results = report()
    if results is not None:
        print_table(results)
    for error in errors:
        print(error)
    return 1 if errors else 0


def print_table(results: dict[str, Any]) -> None:
    print(f"Test coverage, mean of {len(results['seeds'])} seeds\n{'k':36}" + "".join(f"{k:>8}" for k in TABLE_K))
    for name, row in results["selections"].items():
        print(f"{name:36}" + "".join(f"{row[str(k)]['mean']:8.3f}" for k in TABLE_K))


if __name__ == "__main__":
    sys.exit(main())
