"""Spending attempts over kept checkpoints: schedules of DCO and of its rivals, and what makes arms worth having.

    python -m research.schedules.run --work_dir runs/schedules --figure docs/results/schedule.png \\
        --output research/schedules/results/multiplication.json

An arm is an epoch of a run at a temperature. A family of runs (cross-entropy and DCO for three N; cross-entropy four
times; cross-entropy and a rival's settings; …) gives arms, on which a schedule is planned with log p of the validation
problems, and measured with that of the test problems. Beside it stands the single arm that validation chose for each
k. Runs, their files and `--task` are those of `research/baselines/run.py`; a finished run is not run again.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dco_trl import __version__
from dco_trl.statistics import AttemptOrder, plan_attempts, scheduled_pass_at_k
from research.baselines import run as baselines
from research.baselines.run import Job, Task
from research.baselines.training import LATE_WEIGHTS, TEMPERATURES, early_epochs
from research.common.differences import LEVEL, interval
from research.common.pictures import save
from research.common.processes import write
from research.schedules.figure import plot_schedules

KS = tuple(4**i for i in range(8))
ARM_TEMPERATURES = (1.0, 1.25, 1.5, 2.0)
ATTEMPTS = (16, 256, 4096)
MAX_ARMS = 8
OURS, PLAIN = "cross-entropy and DCO", "cross-entropy"

CE: list[Any] = [("cross-entropy", {})]
CE_AGAIN: list[Any] = [("cross-entropy", {"repeat": i}) for i in (1, 2, 3)]
DCO: list[Any] = [("DCO", {"num_attempts": n}) for n in ATTEMPTS]
DCO_AGAIN: list[Any] = [("DCO", {"num_attempts": 256, "repeat": i}) for i in (1, 2, 3)]
# Each with cross-entropy's own epochs among its arms, and about as many runs.
FAMILIES: dict[str, list[Any]] = {
    OURS: CE + DCO,
    PLAIN: CE,
    "cross-entropy, four times": CE + CE_AGAIN,
    "cross-entropy and averages of its weights": CE,
    "cross-entropy and label smoothing": CE + [("label smoothing", {"epsilon": e}) for e in (0.05, 0.1, 0.2)],
    "cross-entropy and entropy bonus": CE + [("entropy bonus", {"strength": s}) for s in (0.01, 0.05, 0.2)],
    "cross-entropy and GEM": CE + [("GEM", {"beta": b, "h": h}) for h in ("linear", "logsigmoid") for b in (0.3, 0.7)],
}
# What to keep and what to train next: runs, whether all epochs are arms or the last alone, and the temperatures.
INGREDIENTS: dict[str, tuple[list[Any], bool, tuple[float, ...]]] = {
    f"{run}: {kept}": (runs, all_epochs, temperatures)
    for run, runs in (("one run of cross-entropy", CE), ("one run of DCO, N = 256", DCO[1:2]))
    for kept, all_epochs, temperatures in (
        ("last epoch", False, (1.0,)),
        ("last epoch, four temperatures", False, ARM_TEMPERATURES),
        ("every second epoch", True, (1.0,)),
        ("every second epoch, four temperatures", True, ARM_TEMPERATURES),
    )
} | {
    f"{count}: {name}": (runs, True, ARM_TEMPERATURES)
    for count, name, runs in (
        ("two runs", "cross-entropy twice", CE + CE_AGAIN[:1]),
        ("two runs", "cross-entropy, DCO with N = 256", CE + DCO[1:2]),
        ("two runs", "DCO with N = 256 twice", DCO[1:2] + DCO_AGAIN[:1]),
        ("four runs", "cross-entropy four times", CE + CE_AGAIN),
        ("four runs", "cross-entropy, DCO with N = 16, 256, 4096", CE + DCO),
        ("four runs", "both twice, N = 256", CE + CE_AGAIN[:1] + DCO[1:2] + DCO_AGAIN[:1]),
        ("four runs", "DCO with N = 256 four times", DCO[1:2] + DCO_AGAIN),
    )
}
STUDY: list[Any] = []
for run in [*CE, *DCO, *sum(FAMILIES.values(), []), *CE_AGAIN, *DCO_AGAIN]:
    if run not in STUDY:
        STUDY.append(run)


class Arms:
    """The arms of one run, with what they do on validation and test problems.

    Attributes:
        names: What each arm is: method, setting, epoch (or average) and temperature.
        log_p: Of validation and of test problems, each of shape (arms, problems).
    """

    def __init__(self, names: list[dict[str, Any]], validation: NDArray, test: NDArray):
        self.names, self.validation, self.test = names, validation, test

    @classmethod
    def read(cls, path: Path, every: int, temperatures: Sequence[float], last_only: bool, averages: bool) -> "Arms":
        """Every `every`-th epoch counted from the last, at some temperatures, and weight averages if asked for."""
        record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        columns = [TEMPERATURES.index(t) for t in temperatures]
        num_epochs = record["num_epochs"]
        epochs = [num_epochs] if last_only else list(range(num_epochs, 0, -every))[::-1]
        parts, names = [arrays["log_p"][[e - 1 for e in epochs]]], [{"epoch": e} for e in epochs]
        if averages and len(arrays["averages"]):
            parts.append(arrays["averages"])
            names += [{"early": e, "late_weight": w} for e in early_epochs(num_epochs) for w in LATE_WEIGHTS]
        log_p = np.concatenate(parts)[:, columns].reshape(len(names) * len(columns), -1).astype(np.float64)
        run = {"method": record["method"], **record["setting"]}
        each = [{**run, **name, "temperature": t} for name in names for t in temperatures]
        half = record["num_validation"]
        return cls(each, log_p[:, :half], log_p[:, half:])

    @classmethod
    def join(cls, parts: Sequence["Arms"]) -> "Arms":
        return cls(
            sum((part.names for part in parts), []),
            np.concatenate([part.validation for part in parts]),
            np.concatenate([part.test for part in parts]),
        )


def coverage(log_p: NDArray, ks: Sequence[int]) -> NDArray:
    """Mean coverage of each arm alone, shape (arms, K)."""
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-np.exp(np.minimum(log_p, 0.0)))
    return np.stack([-np.expm1(k * log_miss).mean(axis=1) for k in ks], axis=1)


def along(schedule: AttemptOrder, arms: Arms, ks: Sequence[int]) -> NDArray:
    """Mean coverage of the test problems along a schedule, shape (K,)."""
    return scheduled_pass_at_k(schedule, ks, log_p=np.minimum(arms.test, 0.0)).mean(axis=0)


def plan(arms: Arms, num_attempts: int, max_arms: int | None) -> AttemptOrder:
    return plan_attempts(num_attempts, log_p=np.minimum(arms.validation, 0.0), max_arms=max_arms)


def study_seed(task: Task, work_dir: Path, seed: int, ks: Sequence[int], every: int) -> dict[str, Any]:
    """What one seed's runs show.

    Returns:
        `families`: for each, coverage of the test problems along its schedule (`schedule`, of at most eight arms, and
        `any_arms`), of its best arm for each k (`best_arm`, chosen on validation), the names of these (`chosen`), and
        the order (`blocks`: arm and attempts; `arms`: their names). `any_arm`: of the best arm of all families.
        `ingredients`: along the schedules of each row.
    """

    def arms_of(runs: Sequence[Any], **options: Any) -> Arms:
        options = {"every": every, "temperatures": ARM_TEMPERATURES, "last_only": False, "averages": False} | options
        return Arms.join([Arms.read(baselines.path_of(work_dir, (*run, seed)), **options) for run in runs])

    present = [run for run in STUDY if baselines.path_of(work_dir, (*run, seed)).exists()]
    families: dict[str, Any] = {}
    for name, runs in FAMILIES.items():
        if any(run not in present for run in runs):
            continue
        arms = arms_of(runs, averages="averages" in name)
        best = coverage(arms.validation, ks).argmax(axis=0)
        schedule = plan(arms, max(ks), MAX_ARMS)
        used = sorted(set(schedule.arm.tolist()))
        families[name] = {
            "num_arms": len(arms.names),
            "schedule": along(schedule, arms, ks).tolist(),
            "any_arms": along(plan(arms, max(ks), None), arms, ks).tolist(),
            "best_arm": coverage(arms.test, ks)[best, np.arange(len(ks))].tolist(),
            "chosen": [arms.names[arm] for arm in best],
            "arms": [arms.names[arm] for arm in used],
            "blocks": [[used.index(a), int(n)] for a, n in zip(schedule.arm, schedule.attempts, strict=True)],
        }
    everything = Arms.join([arms_of(present), arms_of(CE, averages=True)])
    best = coverage(everything.validation, ks).argmax(axis=0)
    ingredients = {}
    for name, (runs, all_epochs, temperatures) in INGREDIENTS.items():
        if all(run in present for run in runs):
            arms = arms_of(runs, last_only=not all_epochs, temperatures=temperatures)
            ingredients[name] = along(plan(arms, max(ks), MAX_ARMS), arms, ks).tolist()
    return {
        "seed": seed,
        "families": families,
        "any_arm": coverage(everything.test, ks)[best, np.arange(len(ks))].tolist(),
        "any_arm_chosen": [everything.names[arm] for arm in best],
        "ingredients": ingredients,
    }


def summarise(seeds: Sequence[dict[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    """Means over seeds with Student's t intervals, and paired differences of our schedule to all others."""

    def rows(values: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        return [interval(list(at_k)) for at_k in zip(*values, strict=True)]

    ours = np.array([seed["families"][OURS]["schedule"] for seed in seeds])
    families = {}
    for name in seeds[0]["families"]:
        columns = {
            which: np.array([seed["families"][name][which] for seed in seeds])
            for which in ("schedule", "any_arms", "best_arm")
        }
        families[name] = {which: rows(values) for which, values in columns.items()}
        families[name]["gain"] = rows(columns["schedule"] - columns["best_arm"])
        families[name]["ours_ahead"] = rows(ours - columns["schedule"])
    return {
        "families": families,
        "any_arm": rows([seed["any_arm"] for seed in seeds]),
        "ours_less_any_arm": rows(ours - np.array([seed["any_arm"] for seed in seeds])),
        "ingredients": {name: rows([seed["ingredients"][name] for seed in seeds]) for name in seeds[0]["ingredients"]},
    }


def print_tables(results: dict[str, Any]) -> None:
    ks = results["k"]

    def row(name: str, values: Sequence[dict[str, Any]]) -> None:
        print(f"{name:58}" + "".join(f"{100 * value['mean']:8.1f}" for value in values))

    print(
        f"{'test coverage, %, mean of ' + str(len(results['seeds'])) + ' seeds; k =':58}"
        + "".join(f"{k:8}" for k in ks)
    )
    for name, family in results["families"].items():
        for which, title in (
            ("best_arm", "best arm"),
            ("schedule", "schedule"),
            ("any_arms", "of any number of arms"),
        ):
            row(f"{name}: {title}" if which == "best_arm" else f"    {title}", family[which])
        row("    ours less its schedule", family["ours_ahead"])
    row("best arm of all families", results["any_arm"])
    row("    ours less it", results["ours_less_any_arm"])
    for name, values in results["ingredients"].items():
        row(name, values)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the finished runs.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--figure", type=Path, help="PNG file; another is written beside it.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Which seeds.")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), help="Which to train. Default: all runs.")
    parser.add_argument("--epochs", type=int, help="Epochs a run. Default: those of the task.")
    parser.add_argument("--every", type=int, default=2, help="Every how many epochs an arm is kept.")
    parser.add_argument("--workers", type=int, default=2, help="Runs at a time, a thread each; 0: read finished ones.")
    baselines.add_task(parser)
    args = parser.parse_args(argv)
    task = baselines.task_of(args)
    num_epochs = args.epochs or task.num_epochs
    if args.families and OURS not in args.families:
        parser.error(f"--families: {OURS!r} must be among them: the others are compared with it")
    runs = STUDY
    if args.families:
        wanted = sum((FAMILIES[name] for name in args.families), [])
        runs = [run for run in STUDY if run in wanted]
    jobs: list[Job] = [(*run, seed) for seed in args.seeds for run in runs]
    args.work_dir.mkdir(parents=True, exist_ok=True)
    try:
        baselines.load(task, args.work_dir, jobs, num_epochs)
    except ValueError as error:
        parser.error(str(error))
    errors = baselines.run_jobs(task, jobs, num_epochs, args.workers, args.work_dir) if args.workers else []
    for error in errors:
        print(error)
    missing = [job for job in jobs if not baselines.path_of(args.work_dir, job).exists()]
    seeds = [seed for seed in args.seeds if seed not in {job[2] for job in missing}]
    if not seeds:
        print(f"No seed is complete: {len(missing)} of {len(jobs)} runs are missing.")
        return 1
    each = [study_seed(task, args.work_dir, seed, KS, args.every) for seed in seeds]
    results = {
        "title": task.title,
        "task": task.description,
        "num_epochs": num_epochs,
        "every": args.every,
        "temperatures": ARM_TEMPERATURES,
        "max_arms": MAX_ARMS,
        "k": KS,
        "level": LEVEL,
        "seeds": each,
        **summarise(each, KS),
        "read_with": {
            "python": platform.python_version(),
            "dco-trl": __version__,
            **{name: version(name) for name in ("torch", "transformers", "trl")},
        },
    }
    write(results, args.output)
    if args.figure:
        save(plot_schedules(results, OURS, PLAIN), args.figure)
    print_tables(results)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
