"""What the runs of `run.py` show: choices made on validation problems, coverage of test problems, intervals.

    python -m research.chain_of_thought.report --work_dir runs/cot --figure docs/results/cot.png \\
        --output research/chain_of_thought/results/first-round.json

For each seed and each k a row of the table takes, of its candidates (settings, epochs, temperatures, averages), the
one with the greatest pass@k on the validation problems, the earliest of equals, and reports its pass@k on the test
problems. A schedule spreads k attempts over its candidates, planned on the validation problems.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dco_trl.statistics import pass_at_k, plan_attempts, scheduled_pass_at_k
from research.chain_of_thought.training import DCO_ATTEMPTS, METHODS
from research.common.processes import write

KS = (1, 4, 16, 64, 256)
LEVEL, NUM_RESAMPLES = 0.95, 5000
RIVAL, RIVAL_SCHEDULE = "cross-entropy, best epoch", "schedule, cross-entropy"
# What the protocol decides on: a row, and what it is compared with.
DECIDED = (
    ("DCO, reference", RIVAL),
    ("DCO, own", RIVAL),
    ("DCO, 4 own", RIVAL),
    ("DCO, 4 own", "weight 1, 4 own"),
    ("DCO, 4 own", "DCO, own"),
    ("schedule, cross-entropy and DCO", RIVAL_SCHEDULE),
    ("schedule, cross-entropy and DCO", "schedule, cross-entropy and weight 1"),
)
# The same of the second round, where "DCO, 4 own" has its N chosen.
DECIDED_SECOND = (
    ("DCO, 4 own", "DCO, 4 own, N = 64"),
    ("DCO, 4 own, floor", "DCO, 4 own, N = 64"),
    ("DCO, 4 own, floor", "weight 1, 4 own"),
    ("DCO, 4 own, floor", "DCO, 4 own"),
    ("DCO, 4 own, held-out rates", "DCO, 4 own, N = 64"),
    ("DCO, 4 own, N = 64", RIVAL),
    ("DCO, 4 own, N = 64", "weight 1, 4 own"),
)
CONTEXT = (
    ("weight 1, own", RIVAL),
    ("weight 1, 4 own", RIVAL),
    ("cross-entropy, temperature", RIVAL),
    ("cross-entropy, averages", RIVAL),
    (RIVAL_SCHEDULE, RIVAL),
    ("DCO, 4 own", "cross-entropy, averages"),
    ("DCO, own", "weight 1, own"),
    ("DCO, own", "DCO, reference"),
    ("DCO, reference, floor", "DCO, reference"),
    ("DCO, 4 own, floor", RIVAL),
    ("DCO, 4 own, N = 4", "DCO, 4 own, N = 64"),
    ("DCO, 4 own, N = 16", "DCO, 4 own, N = 64"),
    ("schedule, weight 1, 4 own", "DCO, 4 own, floor"),
    ("schedule, DCO, 4 own, floor", "schedule, weight 1, 4 own"),
    ("schedule, weight 1", "DCO, 4 own"),
    ("schedule, weight 1", "schedule, DCO"),
    ("schedule, weight 1 and DCO", "schedule, weight 1"),
)


class Arm:
    """One model at one temperature: right answers per problem, of validation and of test."""

    def __init__(self, name: str, correct: dict[str, list[int]], num_samples: int):
        self.name, self.num_samples = name, num_samples
        self.correct = {split: np.array(counts) for split, counts in correct.items()}

    def pass_at(self, split: str, k: int) -> np.ndarray:
        """Unbiased pass@k of each problem."""
        return pass_at_k(np.full(self.correct[split].shape, self.num_samples), self.correct[split], k)


def arms_of(runs: Iterable[dict[str, Any]], kind: str = "correct") -> list[Arm]:
    """The arms of some runs of one seed: their epochs; or those at other temperatures, or averages of weights."""
    arms = []
    for run in runs:
        name = f"{run['method']}, N = {run['setting']['num_attempts']}"
        if kind == "correct":
            arms += [
                Arm(f"{name}, epoch {epoch}", table, run["num_samples"]) for epoch, table in run["correct"].items()
            ]
        for entry in run.get(kind, []) if kind != "correct" else []:
            about = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "correct")
            arms.append(Arm(f"{name}, {about}", entry["correct"], run["num_samples"]))
    return arms


# Rows of the table: whose runs are candidates, where else than in their epochs, and of which N if there are several.
ROWS: dict[str, tuple[str, str | None, int | None]] = {
    "cross-entropy, last epoch": ("cross-entropy", None, None),
    RIVAL: ("cross-entropy", None, None),
    "cross-entropy, temperature": ("cross-entropy", "temperatures", None),
    "cross-entropy, averages": ("cross-entropy", "averages", None),
    **{method: (method, None, None) for method in METHODS if method != "cross-entropy"},
    **{f"DCO, 4 own, N = {n}": ("DCO, 4 own", None, n) for n in DCO_ATTEMPTS},
}
# Whose runs are the arms of a schedule.
_DCO, _WEIGHT_1 = ("DCO, reference", "DCO, own", "DCO, 4 own"), ("weight 1, own", "weight 1, 4 own")
SCHEDULES: dict[str, tuple[str, ...]] = {
    RIVAL_SCHEDULE: ("cross-entropy",),
    "schedule, weight 1": _WEIGHT_1,
    "schedule, weight 1, 4 own": ("weight 1, 4 own",),
    "schedule, DCO, 4 own": ("DCO, 4 own",),
    "schedule, DCO, 4 own, floor": ("DCO, 4 own, floor",),
    "schedule, DCO": _DCO,
    "schedule, weight 1 and DCO": (*_WEIGHT_1, *_DCO),
    "schedule, cross-entropy and weight 1": ("cross-entropy", *_WEIGHT_1),
    "schedule, cross-entropy and DCO": ("cross-entropy", *_DCO),
}


def settings_of(runs: list[dict[str, Any]], methods: Iterable[str]) -> list[tuple[str, int]]:
    """The methods and settings among the runs, each once."""
    keys = ((run["method"], run["setting"]["num_attempts"]) for run in runs if run["method"] in methods)
    return list(dict.fromkeys(keys))


def chosen(arms: list[Arm], k: int) -> Arm:
    """The arm with the greatest pass@k on validation problems, the first of equals."""
    return max(arms, key=lambda arm: arm.pass_at("validation", k).mean())


def scheduled(arms: list[Arm], ks: Iterable[int]) -> tuple[np.ndarray, list[list[Any]]]:
    """pass@k of each test problem along the schedule, shape (problems, K), and its blocks."""

    def counts(split: str) -> dict[str, Any]:
        correct = np.stack([arm.correct[split] for arm in arms])
        sampled = np.repeat([[arm.num_samples] for arm in arms], correct.shape[1], axis=1)
        return {"num_sampled": sampled, "num_correct": correct}

    ks = list(ks)
    plan = plan_attempts(max(ks), **counts("validation"))
    attempts = plan.counts([max(ks)])[0]
    split = [[arms[i].name, int(attempts[i])] for i in np.argsort(-attempts) if attempts[i]]
    return scheduled_pass_at_k(plan, ks, **counts("test")), split


def summarise(runs: list[dict[str, Any]], ks: Iterable[int] = KS) -> dict[str, Any]:
    """The table, the differences and the course over epochs, from the runs of some seeds.

    A row has the seeds for which all its runs are there. The table has the seeds of cross-entropy, and the rows that
    have all of these; a difference has those that both of its rows have.

    Returns:
        `rows`: for each name, `mean`, `low`, `high` over seeds and `by_seed`, shape (seeds, K), and what was `chosen`.
        `differences`: for each comparison, its `seeds`, the same of the paired difference, and `low_resampled` and
        `high_resampled`, a bootstrap interval over seeds and their problems. `epochs`: for each method and N, mean
        test pass@k by epoch.
    """
    ks = [k for k in ks if k <= min(run["num_samples"] for run in runs)]
    tests: dict[str, dict[int, np.ndarray]] = {name: {} for name in (*ROWS, *SCHEDULES)}
    choices: dict[str, dict[int, Any]] = {name: {} for name in tests}
    for seed in sorted({run["seed"] for run in runs}):
        of_seed = [run for run in runs if run["seed"] == seed]
        for name, (method, further, only) in ROWS.items():
            wanted = settings_of(runs, [method])
            if only is not None:
                wanted = [key for key in wanted if key[1] == only] if len(wanted) > 1 else []
            same = [run for run in of_seed if (run["method"], run["setting"]["num_attempts"]) in wanted]
            if not same or set(settings_of(same, [method])) != set(wanted):
                continue
            arms = arms_of(same)[-1:] if name.endswith("last epoch") else arms_of(same)
            elsewhere = arms_of(same, further) if further else []
            if further and not elsewhere:
                continue
            arms += elsewhere
            best = [chosen(arms, k) for k in ks]
            tests[name][seed] = np.stack([arm.pass_at("test", k) for arm, k in zip(best, ks, strict=True)], axis=1)
            choices[name][seed] = [arm.name for arm in best]
        for name, methods in SCHEDULES.items():
            same = [run for run in of_seed if run["method"] in methods]
            if {run["method"] for run in same} == set(methods) and set(settings_of(same, methods)) == set(
                settings_of(runs, methods)
            ):
                tests[name][seed], choices[name][seed] = scheduled(arms_of(same), ks)
    seeds = list(tests[RIVAL])

    def stack(name: str, some: list[int]) -> np.ndarray:
        return np.stack([tests[name][seed] for seed in some])

    differences = []
    for name, rival in (*DECIDED, *DECIDED_SECOND, *CONTEXT):
        both = [seed for seed in tests[name] if seed in tests[rival]]
        if both:
            values = stack(name, both) - stack(rival, both)
            about = {"of": name, "from": rival, "seeds": both}
            differences.append({**about, **_interval(values.mean(1)), **_resampled(values)})
    return {
        "seeds": seeds,
        "k": ks,
        "level": LEVEL,
        "rows": {
            name: {**_interval(stack(name, seeds).mean(1)), "chosen": [choices[name][seed] for seed in seeds]}
            for name in tests
            if seeds and set(seeds) <= set(tests[name])
        },
        "differences": differences,
        "epochs": _by_epoch([run for run in runs if run["seed"] in seeds], ks),
        "seconds_of_runs": round(sum(run["seconds"]["all"] for run in runs)),
        "num_runs": len(runs),
        "settings_of_all_runs": runs[0]["settings_of_all_runs"],
        "versions": runs[0]["versions"],
    }


def _interval(by_seed: np.ndarray) -> dict[str, Any]:
    """Mean over seeds with Student's interval, from shape (seeds, K)."""
    mean = by_seed.mean(0)
    half = np.full_like(mean, np.nan)
    if len(by_seed) > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, len(by_seed) - 1) * stats.sem(by_seed, axis=0)
    rounded: Callable[[np.ndarray], Any] = lambda x: np.where(np.isnan(x), None, x.round(5)).tolist()  # noqa: E731
    return {
        "mean": rounded(mean),
        "low": rounded(mean - half),
        "high": rounded(mean + half),
        "by_seed": rounded(by_seed),
    }


def _resampled(differences: np.ndarray) -> dict[str, list[float]]:
    """Percentile interval of the mean, seeds and within each its problems drawn anew, from (seeds, problems, K)."""
    rng = np.random.default_rng(0)
    num_seeds, num_problems, _ = differences.shape
    means = np.empty((NUM_RESAMPLES, differences.shape[2]))
    for i in range(NUM_RESAMPLES):
        seeds = rng.integers(num_seeds, size=(num_seeds, 1))
        means[i] = differences[seeds, rng.integers(num_problems, size=(num_seeds, num_problems))].mean((0, 1))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {"low_resampled": low.round(5).tolist(), "high_resampled": high.round(5).tolist()}


def _by_epoch(runs: list[dict[str, Any]], ks: list[int]) -> list[dict[str, Any]]:
    courses = []
    for method, num_attempts in dict.fromkeys((run["method"], run["setting"]["num_attempts"]) for run in runs):
        same = [run for run in runs if (run["method"], run["setting"]["num_attempts"]) == (method, num_attempts)]
        table = [
            [[arm.pass_at("test", k).mean() for k in ks] for arm in arms_of([run])] for run in same
        ]  # seed, epoch, k
        logs = {
            name: np.mean([run["log"][name] for run in same], 0).round(4).tolist()
            for name in same[0]["log"]
            if len({len(run["log"][name]) for run in same}) == 1
        }
        courses.append(
            {
                "method": method,
                "num_attempts": num_attempts,
                "seeds": len(same),
                "epochs": [int(epoch) for epoch in same[0]["correct"]],
                "mean": np.mean(table, 0).round(5).tolist(),
                "log": logs,
            }
        )
    return courses


def print_tables(summary: dict[str, Any]) -> None:
    """The tables of the page, in Markdown."""
    ks = summary["k"]
    head = " | ".join(f"pass@{k}" for k in ks)
    print(f"| | {head} |\n|---|" + "---|" * len(ks))
    for name, row in summary["rows"].items():
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in row["mean"]) + " |")
    print(f"\n| | against | seeds | {head} |\n|---|---|---|" + "---|" * len(ks))
    for row in summary["differences"]:
        cells = [
            f"{100 * mean:+.1f}" + (f" [{100 * low:+.1f}, {100 * high:+.1f}]" if low is not None else "")
            for mean, low, high in zip(row["mean"], row["low"], row["high"], strict=True)
        ]
        print(f"| {row['of']} | {row['from']} | {len(row['seeds'])} | " + " | ".join(cells) + " |")
    for course in summary["epochs"]:
        print(f"\n{course['method']}, N = {course['num_attempts']}, {course['seeds']} seeds: pass@{ks} by epoch")
        for epoch, values in zip(course["epochs"], course["mean"], strict=True):
            print(f"  {epoch:3d}: " + " ".join(f"{100 * value:5.1f}" for value in values))
        for name, entries in course["log"].items():
            if entries:
                print(f"  {name}: {entries}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of finished runs, or a list of them.")
    parser.add_argument("--output", type=Path, help="JSON file of the summary.")
    parser.add_argument("--figure", type=Path, help="PNG file; another is written beside it.")
    args = parser.parse_args(argv)
    if args.work_dir.is_file():
        runs = json.loads(args.work_dir.read_text())
    else:
        runs = [json.loads(path.read_text()) for path in sorted(args.work_dir.glob("*_seed-*.json"))]
    if not runs:
        parser.error(f"--work_dir {args.work_dir} holds no finished run: run research.chain_of_thought.run first")
    summary = summarise(runs)
    print_tables(summary)
    if args.output:
        write(summary, args.output)
    if args.figure:
        from research.chain_of_thought.figure import plot
        from research.common.pictures import save

        save(plot(summary), args.figure)


if __name__ == "__main__":
    main()
