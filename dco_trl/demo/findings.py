"""What the runs show: does cross-entropy lose pass@256 as it trains, and where does DCO end?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..statistics import cross_fit_schedule

# The k of the comparison, and the N of the run that is compared with cross-entropy.
COMPARED_AT = 256
# The shape of the paper's Table 1, as relative changes in pass@256.
CE_FALLS_BY, DCO_ABOVE_BEST_BY, DCO_ABOVE_END_BY = 0.20, 0.10, 0.40
_WANTED = {
    "ce_falls_while_pass@1_rises": f"cross-entropy's pass@256 falls by {CE_FALLS_BY:.0%} while its pass@1 rises",
    "dco_above_ce_best": f"DCO ends {DCO_ABOVE_BEST_BY:.0%} above cross-entropy's best epoch",
    "dco_above_ce_end": f"DCO ends {DCO_ABOVE_END_BY:.0%} above cross-entropy's last",
}


def coverage_at(run: dict[str, Any], k: int) -> list[float]:
    """Coverage at k for each measured epoch of a run."""
    column = run["k"].index(k)
    return [row[column] for row in run["coverage"]]


def run_name(num_attempts: int) -> str:
    """What a run is called in the table and the picture."""
    return "cross-entropy" if num_attempts == 1 else f"DCO, N = {num_attempts}"


def by_num_attempts(runs: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The runs of each N, one per seed; N ascends."""
    numbers = sorted({run["num_attempts"] for run in runs})
    return {n: [run for run in runs if run["num_attempts"] == n] for n in numbers}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare cross-entropy with the DCO run whose N is nearest to 256, for one seed.

    Changes are relative; `shown` compares them with the thresholds above.
    """
    (ce,) = (run for run in runs if run["num_attempts"] == 1)
    others = (run for run in runs if run["num_attempts"] > 1)
    dco = min(others, key=lambda run: abs(np.log(run["num_attempts"] / COMPARED_AT)))
    at_1, at_256 = coverage_at(ce, 1), coverage_at(ce, COMPARED_AT)
    best, end = int(np.argmax(at_256)), coverage_at(dco, COMPARED_AT)[-1]
    fall, above_best, above_end = 1 - at_256[-1] / at_256[best], end / at_256[best] - 1, end / at_256[-1] - 1
    shown = (fall >= CE_FALLS_BY and at_1[-1] > at_1[best], above_best >= DCO_ABOVE_BEST_BY)
    return {
        "seed": ce["seed"],
        "ce_best_epoch": ce["epochs"][best],
        "ce_pass@256_best": at_256[best],
        "ce_pass@256_end": at_256[-1],
        "ce_pass@1_at_best": at_1[best],
        "ce_pass@1_end": at_1[-1],
        "ce_falls_by": fall,
        "dco_num_attempts": dco["num_attempts"],
        "dco_pass@256_end": end,
        "dco_above_ce_best_by": above_best,
        "dco_above_ce_end_by": above_end,
        "shown": dict(zip(_WANTED, (*shown, above_end >= DCO_ABOVE_END_BY), strict=True)),
    }


def schedule(k: Sequence[int], log_p: np.ndarray) -> dict[str, list[float]]:
    """Coverage of a schedule over the epochs of all runs, and of the best single epoch for each k.

    Both are chosen on one half of the problems and measured on the other. `log_p` has the shape (epochs of all runs,
    problems).
    """
    found = cross_fit_schedule(k, log_p=log_p)
    return {"k": list(k), "coverage": found.curve.estimate.tolist(), "best_epoch": found.best_arm.first.tolist()}


def sentences(results: dict[str, Any]) -> list[str]:
    """State what the runs show, or fail to show, and the check by sampling."""
    seeds = results["summary"]
    shown = sum(all(seed["shown"].values()) for seed in seeds)
    finding = f"{shown} of {len(seeds)} seeds show the shape of the paper's Table 1. The first table shows means."
    n = seeds[0]["dco_num_attempts"]
    run = next(run for run in results["runs"] if (run["seed"], run["num_attempts"]) == (seeds[0]["seed"], n))
    check = run["check"]
    return [
        finding if len(seeds) > 1 else _one_seed(seeds[0]),
        f"Checked by sampling ({run_name(n)}, {check['samples']:,} samples): pass@{check['k']} is "
        f"{check['sampled']:.2%} ± {check['standard_error']:.2%}; exact: {check['exact']:.2%}.",
    ]


def _one_seed(seed: dict[str, Any]) -> str:
    best, end = seed["ce_pass@256_best"], seed["ce_pass@256_end"]
    if end == best:
        ce = f"pass@256 is still rising at the last epoch, {seed['ce_best_epoch']} ({end:.1%})."
    else:
        ce = f"pass@256 is best at epoch {seed['ce_best_epoch']} ({best:.1%}) and ends {seed['ce_falls_by']:.0%} lower"
        ce += f", at {end:.1%}, while" if seed["ce_pass@1_end"] > seed["ce_pass@1_at_best"] else f", at {end:.1%};"
        ce += f" pass@1 goes from {seed['ce_pass@1_at_best']:.1%} to {seed['ce_pass@1_end']:.1%}."
    dco = (
        f"pass@256 ends at {seed['dco_pass@256_end']:.1%}: {_relative(seed['dco_above_ce_best_by'])} "
        f"cross-entropy's best epoch, {_relative(seed['dco_above_ce_end_by'])} its last."
    )
    missing = "; ".join(_WANTED[name] for name, shown in seed["shown"].items() if not shown)
    shape = f"These runs do not show all of the paper's Table 1. Missing: {missing}."
    shape = shape if missing else "This is the shape of the paper's Table 1."
    return f"Cross-entropy: {ce}\n{run_name(seed['dco_num_attempts'])}: {dco}\n{shape}"


def _relative(change: float) -> str:
    return f"{abs(change):.0%} {'above' if change >= 0 else 'below'}"
