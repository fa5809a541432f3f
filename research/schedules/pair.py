"""Two families of finished runs on the same problems: their schedules, with intervals over the test problems.

    python -m research.schedules.pair --work_dir research/schedules/results/smollm2-math --every 1 \\
        --first cross-entropy_repeat-2_seed-0 cross-entropy_repeat-3_seed-1 \\
        --second cross-entropy_repeat-3_seed-1 DCO_num_attempts-256_seed-1

For runs of `run.py` that are too few for intervals over seeds. Planned on the validation problems, of at most
eight arms; intervals are a bootstrap over the test problems, paired.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dco_trl.statistics import scheduled_pass_at_k
from research.common.differences import cells, paired
from research.schedules.run import ARM_TEMPERATURES, MAX_ARMS, Arms, coverage, plan

KS = np.array([1, 16, 256, 1024, 4096])


def along_schedule(arms: Arms) -> NDArray:
    """Coverage of each test problem, shape (problems, K)."""
    return scheduled_pass_at_k(plan(arms, int(KS.max()), MAX_ARMS), KS, log_p=np.minimum(arms.test, 0.0))


def of_best_arm(arms: Arms) -> NDArray:
    """The same, of the arm that validation chooses for each k."""
    best = coverage(arms.validation, KS).argmax(axis=0)
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-np.exp(np.minimum(arms.test[best], 0.0)))
    return -np.expm1(KS[:, None] * log_miss).T


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder of the finished runs.")
    parser.add_argument("--first", nargs="+", required=True, help="Runs of the first family, without .json.")
    parser.add_argument("--second", nargs="+", required=True, help="Runs of the second family.")
    parser.add_argument("--every", type=int, default=2, help="Every how many epochs an arm is kept.")
    args = parser.parse_args(argv)
    values = {}
    for name, runs in (("first", args.first), ("second", args.second)):
        arms = Arms.join(
            [Arms.read(args.work_dir / f"{run}.json", args.every, ARM_TEMPERATURES, False, False) for run in runs]
        )
        values[f"{name}, best arm"], values[f"{name}, schedule"] = of_best_arm(arms), along_schedule(arms)
    print(f"{'test coverage, %; k =':36}" + "".join(f"{k:>20}" for k in KS))
    for name, of_problems in values.items():
        print(f"{name:36}" + "".join(f"{100 * mean:20.1f}" for mean in of_problems.mean(axis=0)))
    for one, other in (
        ("first, best arm", "first, schedule"),
        ("first, best arm", "second, schedule"),
        ("first, schedule", "second, schedule"),
    ):
        row = "".join(f"{cell:>20}" for cell in cells(paired(values[one], values[other], KS)))
        print(f"{other} less {one}".ljust(36) + row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
