"""Schedules over the epochs of SmolLM2 with LoRA on MATH's short problems: cross-entropy's own, and with DCO's.

    python examples/scripts/prepare_math.py --dataset nlile/hendrycks-MATH-benchmark \\
        --tokenizer models/SmolLM2-135M-Instruct --max_tokens 64 --num_validation 0 --output_dir data/math-short
    python -m research.schedules.smollm2 --model models/SmolLM2-135M-Instruct --dataset data/math-short/train.jsonl \\
        --work_dir runs/schedule-smollm2 --output research/schedules/results/smollm2-lora.json --workers 2

Every epoch is an arm, at temperature 1. Each seed draws its own problems; its held-out ones are halved, and what is
planned or chosen on one half is measured on the other, both ways. 25 minutes a run on one core.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dco_trl.coverage_numpy import coverage
from dco_trl.statistics import plan_attempts, scheduled_pass_at_k
from research.common.differences import cells, paired
from research.common.processes import environment, run_all, write
from research.common.selection import at_best_epoch
from research.schedules.smollm2_training import LORA, SETTINGS, train

KS = np.array([1, 16, 256, 4096])
MAX_ARMS = 8
# N, and which repetition: the same problems, with another order of batches and other first weights of the adapter.
Run = tuple[int, int]
CE, CE_AGAIN, DCO_16, DCO_256 = (1, 0), (1, 1), (16, 0), (256, 0)
FAMILIES: dict[str, list[Run]] = {
    "cross-entropy": [CE],
    "cross-entropy twice": [CE, CE_AGAIN],
    "cross-entropy and N = 256": [CE, DCO_256],
    "cross-entropy, N = 16 and 256": [CE, DCO_16, DCO_256],
}
# What is compared, and with what: a family, and a schedule over its epochs or the best of them for each k.
COMPARED = [
    (("cross-entropy", "schedule"), ("cross-entropy", "best epoch")),
    (("cross-entropy twice", "schedule"), ("cross-entropy twice", "best epoch")),
    (("cross-entropy and N = 256", "schedule"), ("cross-entropy and N = 256", "best epoch")),
    (("cross-entropy and N = 256", "schedule"), ("cross-entropy twice", "best epoch")),
    (("cross-entropy and N = 256", "schedule"), ("cross-entropy twice", "schedule")),
    (("cross-entropy, N = 16 and 256", "schedule"), ("cross-entropy and N = 256", "schedule")),
]


def cross_fitted(log_p: NDArray, measure: Callable[[NDArray, NDArray], NDArray]) -> NDArray:
    """What was planned on one half of the problems, measured on the other, both ways.

    Args:
        log_p: Of each arm and problem, (arms, problems).
        measure: Given the log p of the problems to plan on and of those to measure, coverage of the latter, of shape
            (problems, K).

    Returns:
        Coverage of each problem, (problems, K).
    """
    order = np.random.default_rng(0).permutation(log_p.shape[1])
    values = np.empty((len(order), len(KS)))
    for held_out in np.array_split(order, 2):
        values[held_out] = measure(log_p[:, np.setdiff1d(order, held_out)], log_p[:, held_out])
    return values


def along_schedule(plan_on: NDArray, held_out: NDArray) -> NDArray:
    plan = plan_attempts(int(KS.max()), log_p=plan_on, max_arms=min(MAX_ARMS, len(plan_on)))
    return scheduled_pass_at_k(plan, KS, log_p=held_out)


def of_best_epoch(plan_on: NDArray, held_out: NDArray) -> NDArray:
    return at_best_epoch(coverage(plan_on[..., None], KS), coverage(held_out[..., None], KS))


WAYS = {"schedule": along_schedule, "best epoch": of_best_epoch}


def summarise(log_p: dict[Run, list[NDArray]]) -> dict[str, Any]:
    """Coverage of the held-out problems of all seeds by family and way, and paired differences with BCa intervals.

    Args:
        log_p: For each run that is there, that of each seed's epochs and problems, (epochs, problems).
    """
    values: dict[tuple[str, str], NDArray] = {}
    by_seed: dict[str, dict[str, Any]] = {}
    for family, runs in FAMILIES.items():
        if not set(runs) <= set(log_p):
            continue
        for way, measure in WAYS.items():
            of_seeds = [
                cross_fitted(np.minimum(np.concatenate(of_runs), 0.0), measure)
                for of_runs in zip(*(log_p[run] for run in runs), strict=True)
            ]
            values[family, way] = np.concatenate(of_seeds)
            by_seed.setdefault(family, {})[way] = [of_seed.mean(axis=0).round(5).tolist() for of_seed in of_seeds]
    differences = []
    for one, other in COMPARED:
        if one in values and other in values:
            found = paired(values[other], values[one], KS)
            differences.append({"of": ", ".join(one[::-1]), "from": ", ".join(other[::-1]), **found})
    return {
        "coverage": {f"{way}, {family}": v.mean(axis=0).round(5).tolist() for (family, way), v in values.items()},
        "by_seed": by_seed,
        "last_epoch": {
            f"N = {n}, run {repeat}": np.mean(
                [coverage(of_seed[-1][:, None], KS).mean(0) for of_seed in of_run], axis=0
            )
            .round(5)
            .tolist()
            for (n, repeat), of_run in log_p.items()
        },
        "differences": differences,
    }


def print_tables(summary: dict[str, Any]) -> None:
    """The tables of the page, in Markdown."""
    head = " | ".join(f"k = {k:,}" for k in KS)
    print(f"\n| | {head} |\n|---|" + "---|" * len(KS))
    for name, row in {**summary["last_epoch"], **summary["coverage"]}.items():
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in row) + " |")
    print(f"\n| | less | {head} |\n|---|---|" + "---|" * len(KS))
    for row in summary["differences"]:
        print(f"| {row['of']} | {row['from']} | " + " | ".join(cells(row)) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Model folder or name.")
    parser.add_argument("--dataset", required=True, help="JSON lines of prompt and completion.")
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the finished runs.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results.")
    parser.add_argument("--workers", type=int, default=2, help="Processes at a time, a thread each.")
    parser.add_argument("--epochs", type=int, default=10, help="Epochs a run.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Seeds to report.")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="Of which runs.")
    args = parser.parse_args(argv)
    runs = list(dict.fromkeys(run for family in args.families for run in FAMILIES[family]))
    jobs = [
        {"num_attempts": n, "repeat": repeat, "seed": seed, "num_epochs": args.epochs}
        for n, repeat in runs
        for seed in args.seeds
    ]
    records = run_all(partial(train, args.model, args.dataset), jobs, args.work_dir, args.workers)
    log_p: dict[Run, list[NDArray]] = {}
    for record in records:
        log_p.setdefault((record["num_attempts"], record["repeat"]), []).append(np.array(record["log_p"]))
    summary = summarise(log_p)
    print_tables(summary)
    settings = {**SETTINGS, "lora": LORA}
    results = {"settings": settings, "k": KS.tolist(), **environment(args.workers), **summary, "runs": records}
    write(results, args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
