"""What the runs of `cot_finetune.py` show: choices made on validation problems, coverage of test problems, intervals.

    python research/cot_finetune_report.py --work_dir runs/cot-finetune --output docs/results/cot.json \\
        --figure docs/results/cot.png

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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from dco_trl.report.styles import PALETTE, attempts_axis, percent_axis, plain_axes
from dco_trl.statistics import pass_at_k, plan_attempts, scheduled_pass_at_k

KS = (1, 4, 16, 64, 256)
LEVEL, NUM_RESAMPLES = 0.95, 5000
RIVAL, RIVAL_SCHEDULE = "cross-entropy, best epoch", "schedule, cross-entropy"
# What the page decides on: a name, and what it is compared with.
COMPARISONS = (
    ("DCO, reference", RIVAL),
    ("DCO, own", RIVAL),
    ("DCO, 4 own", RIVAL),
    ("weight 1, own", RIVAL),
    ("weight 1, 4 own", RIVAL),
    ("DCO, own", "weight 1, own"),
    ("DCO, 4 own", "weight 1, 4 own"),
    ("DCO, 4 own", "DCO, own"),
    ("DCO, reference, floor", RIVAL),
    ("DCO, 4 own, floor", RIVAL),
    ("cross-entropy, temperature", RIVAL),
    ("cross-entropy, averages", RIVAL),
    (RIVAL_SCHEDULE, RIVAL),
    ("schedule, cross-entropy and weight 1", RIVAL_SCHEDULE),
    ("schedule, cross-entropy and DCO", RIVAL_SCHEDULE),
    ("schedule, cross-entropy and DCO", "schedule, cross-entropy and weight 1"),
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


def rows_of_table(runs: list[dict[str, Any]]) -> dict[str, list[Arm]]:
    """The candidates of each row, from the runs of one seed; rows whose methods were not run are left out."""

    def of(*methods: str) -> list[Arm]:
        return arms_of(run for run in runs if run["method"] in methods)

    plain = [run for run in runs if run["method"] == "cross-entropy"]
    rows = {
        "cross-entropy, last epoch": of("cross-entropy")[-1:],
        RIVAL: of("cross-entropy"),
        "cross-entropy, temperature": of("cross-entropy") + arms_of(plain, "temperatures"),
        "cross-entropy, averages": of("cross-entropy") + arms_of(plain, "averages"),
    }
    for method in ("weight 1, own", "weight 1, 4 own"):
        rows[method] = of(method)
    for method in ("DCO, reference", "DCO, own", "DCO, 4 own"):
        rows[method] = of(method)
        rows[f"{method}, N = 64"] = arms_of(
            run for run in runs if run["method"] == method and run["setting"]["num_attempts"] == 64
        )
    for method in ("DCO, reference, floor", "DCO, 4 own, floor"):
        rows[method] = of(method)
    return {name: arms for name, arms in rows.items() if arms}


def schedules_of_table(runs: list[dict[str, Any]]) -> dict[str, list[Arm]]:
    """The arms of each schedule."""

    def of(start: str) -> list[Arm]:
        return arms_of(run for run in runs if run["method"].startswith(start))

    rows = {
        RIVAL_SCHEDULE: of("cross-entropy"),
        "schedule, weight 1": of("weight 1"),
        "schedule, DCO": of("DCO"),
        "schedule, cross-entropy and weight 1": of("cross-entropy") + of("weight 1"),
        "schedule, cross-entropy and DCO": of("cross-entropy") + of("DCO"),
    }
    return {name: arms for name, arms in rows.items() if arms}


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


def complete(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs whose method and setting was run with all seeds, so that each seed has the same candidates."""
    seeds_of: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        seeds_of.setdefault((run["method"], str(run["setting"])), set()).add(run["seed"])
    seeds = set().union(*seeds_of.values())
    return [run for run in runs if seeds_of[run["method"], str(run["setting"])] == seeds]


def summarise(runs: list[dict[str, Any]], ks: Iterable[int] = KS) -> dict[str, Any]:
    """The table, the differences and the course over epochs, from the runs of some seeds.

    Returns:
        `rows`: for each name, `mean`, `low`, `high` over seeds and `by_seed`, shape (seeds, K), and what was `chosen`.
        `differences`: for each comparison, the same of the paired difference, and `low_resampled` and
        `high_resampled`, a bootstrap interval over seeds and their problems. `epochs`: for each method and N, mean
        test pass@k by epoch.
    """
    ks = [k for k in ks if k <= min(run["num_samples"] for run in runs)]
    seeds = sorted({run["seed"] for run in runs})
    values: dict[str, list[np.ndarray]] = {}
    choices: dict[str, list[Any]] = {}
    for seed in seeds:
        of_seed = [run for run in runs if run["seed"] == seed]
        for name, arms in rows_of_table(of_seed).items():
            best = [chosen(arms, k) for k in ks]
            test = np.stack([arm.pass_at("test", k) for arm, k in zip(best, ks, strict=True)], axis=1)
            values.setdefault(name, []).append(test)
            choices.setdefault(name, []).append([arm.name for arm in best])
        for name, arms in schedules_of_table(of_seed).items():
            test, split = scheduled(arms, ks)
            values.setdefault(name, []).append(test)
            choices.setdefault(name, []).append(split)
    tests = {name: np.stack(of_seeds) for name, of_seeds in values.items()}
    return {
        "seeds": seeds,
        "k": ks,
        "level": LEVEL,
        "rows": {name: {**_interval(test.mean(1)), "chosen": choices[name]} for name, test in tests.items()},
        "differences": [
            {
                "of": name,
                "from": rival,
                **_interval((tests[name] - tests[rival]).mean(1)),
                **_resampled(tests[name] - tests[rival]),
            }
            for name, rival in COMPARISONS
            if name in tests and rival in tests
        ],
        "epochs": _by_epoch(runs, ks),
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


# -------------------------------------------------------------------- figure

_CURVES = {
    "cross-entropy, last epoch": dict(color=PALETTE[0], linestyle=":", marker="o"),
    RIVAL: dict(color=PALETTE[0], marker="o"),
    "weight 1, 4 own": dict(color=PALETTE[2], marker="X"),
    "DCO, reference": dict(color=PALETTE[4], marker="s"),
    "DCO, 4 own": dict(color=PALETTE[1], marker="P"),
    RIVAL_SCHEDULE: dict(color=PALETTE[0], linestyle="--", marker="^"),
    "schedule, cross-entropy and DCO": dict(color=PALETTE[1], linestyle="--", marker="^"),
}


def plot(summary: dict[str, Any]) -> Figure:
    """Coverage against k, and the paired differences seed by seed at the two largest k."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, style in _CURVES.items():
        if name in summary["rows"]:
            left.plot(summary["k"], summary["rows"][name]["mean"], label=name, markersize=6, linewidth=2, **style)
    attempts_axis(left, summary["k"])
    percent_axis(left)
    _finish(left, f"Solved within k attempts, mean of {len(summary['seeds'])} seeds")
    left.set_xlabel("k, attempts per problem", fontsize=12)
    left.legend(frameon=False, fontsize=10, loc="lower right")
    _differences(right, summary)
    return figure


def _differences(axes: Axes, summary: dict[str, Any]) -> None:
    rows = list(reversed(summary["differences"]))
    at = [i for i, k in enumerate(summary["k"]) if k >= 64] or [len(summary["k"]) - 1]
    for y, row in enumerate(rows):
        for shift, i in zip((0.15, -0.15), at, strict=False):
            colour = PALETTE[6] if i == at[-1] else "0.55"
            by_seed = [100 * seed[i] for seed in row["by_seed"]]
            axes.plot(by_seed, [y + shift] * len(by_seed), "o", color=colour, markersize=3.5, alpha=0.6)
            if row["low"][i] is not None:
                axes.plot([100 * row["low"][i], 100 * row["high"][i]], [y + shift] * 2, color=colour, linewidth=1.2)
            axes.plot(100 * row["mean"][i], y + shift, "|", color=colour, markersize=11, markeredgewidth=2)
    for i in at:
        label = f"pass@{summary['k'][i]}"
        axes.plot([], [], "o-", color=PALETTE[6] if i == at[-1] else "0.55", markersize=4, label=label)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row['of']}\nless {row['from']}" for row in rows])
    _finish(axes, f"Differences in points, seed by seed, {summary['level']:.0%} interval")
    axes.tick_params(axis="y", labelsize=7.5)
    axes.legend(frameon=False, fontsize=10, loc="best")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12)
    axes.tick_params(labelsize=11)
    plain_axes(axes)


# -------------------------------------------------------------------- command


def print_tables(summary: dict[str, Any]) -> None:
    """The tables of the page, in Markdown."""
    ks = summary["k"]
    head = " | ".join(f"pass@{k}" for k in ks)
    print(f"| | {head} |\n|---|" + "---|" * len(ks))
    for name, row in summary["rows"].items():
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in row["mean"]) + " |")
    print(f"\n| | against | {head} |\n|---|---|" + "---|" * len(ks))
    for row in summary["differences"]:
        cells = [
            f"{100 * mean:+.1f}" + (f" [{100 * low:+.1f}, {100 * high:+.1f}]" if low is not None else "")
            for mean, low, high in zip(row["mean"], row["low"], row["high"], strict=True)
        ]
        print(f"| {row['of']} | {row['from']} | " + " | ".join(cells) + " |")
    for course in summary["epochs"]:
        print(f"\n{course['method']}, N = {course['num_attempts']}, {course['seeds']} seeds: pass@{ks} by epoch")
        for epoch, values in zip(course["epochs"], course["mean"], strict=True):
            print(f"  {epoch:3d}: " + " ".join(f"{100 * value:5.1f}" for value in values))
        for name, entries in course["log"].items():
            if entries:
                print(f"  {name}: {entries}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of finished runs.")
    parser.add_argument("--output", type=Path, help="JSON file of the summary.")
    parser.add_argument("--figure", type=Path, help="PNG file.")
    args = parser.parse_args(argv)
    runs = [json.loads(path.read_text()) for path in sorted(args.work_dir.glob("*_seed-*.json"))]
    if not runs:
        parser.error(f"--work_dir {args.work_dir} holds no finished run: run cot_finetune.py first")
    summary = summarise(complete(runs))
    print_tables(summary)
    if args.output:
        args.output.write_text(json.dumps(summary, separators=(",", ":")) + "\n")
    if args.figure:
        plot(summary).savefig(args.figure, dpi=160)


if __name__ == "__main__":
    main()
