"""Coverage along schedules against k, the lead in each seed, and which arms the attempts go to."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dco_trl.report.styles import PALETTE, SCHEDULE, attempts_axis, method_style, percent_axis, plain_axes
from research.common.pictures import WIDTH

# The best of several arms, whichever it is, has no method's colour; four runs of cross-entropy have a lighter blue.
ANY_COLOUR, FOUR_COLOUR = "0.5", PALETTE[5]


def plot_schedules(results: dict[str, Any], ours: str, plain: str) -> dict[str, Figure]:
    """Draw what a schedule over all of our arms gives, beside cross-entropy's schedule and its single epochs.

    Args:
        results: What `run.py` wrote.
        ours: The family in front.
        plain: The family that costs nothing more.

    Returns:
        By suffix of the file: coverage against k; the lead of our schedule, paired, and which runs the first k
        attempts go to.
    """
    coverage = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    _coverage(coverage.subplots(), results, ours, plain)
    coverage.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=11)
    lead = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    left, right = lead.subplots(1, 2)
    _lead(left, results, ours, plain)
    _shares(right, results, ours)
    for axes, columns in ((left, 1), (right, 2)):
        axes.legend(loc="upper left", bbox_to_anchor=(-0.1, -0.17), ncols=columns, frameon=False, fontsize=10)
    return {"": coverage, "-lead": lead}


def _coverage(axes: Axes, results: dict[str, Any], ours: str, plain: str) -> None:
    families, rival, ce = results["families"], best_rival(results, ours), method_style("cross-entropy")
    curves = {
        f"schedule, {ours}": (families[ours]["schedule"], {"color": SCHEDULE, "marker": "D"}),
        f"schedule, {rival}": (families[rival]["schedule"], {"color": FOUR_COLOUR, "marker": "v"}),
        f"schedule, {plain}": (families[plain]["schedule"], ce),
        "best single arm of all, for each k": (results["any_arm"], {"color": ANY_COLOUR, "linestyle": "--"}),
        f"best arm of {plain}, for each k": (families[plain]["best_arm"], {"color": ce["color"], "linestyle": ":"}),
    }
    for label, (values, style) in curves.items():
        axes.plot(results["k"], [v["mean"] for v in values], label=label, linewidth=2, markersize=6, **style)
    axes.set_ylim(0, 1.01)
    percent_axis(axes)
    _finish(axes, results, "Held-out problems solved within k attempts")


def _lead(axes: Axes, results: dict[str, Any], ours: str, plain: str) -> None:
    families, rival = results["families"], best_rival(results, ours)
    leads = {
        "over the best single arm of all": (results["ours_less_any_arm"], {"color": ANY_COLOUR, "marker": "s"}),
        f"over the schedule, {rival}": (families[rival]["ours_ahead"], {"color": FOUR_COLOUR, "marker": "v"}),
        f"over the schedule, {plain}": (families[plain]["ours_ahead"], method_style("cross-entropy")),
    }
    for i, (label, (values, style)) in enumerate(leads.items()):
        mean, low, high = (
            100 * np.array([np.nan if v[e] is None else v[e] for v in values]) for e in ("mean", "low", "high")
        )
        error = None if np.isnan(low).any() else [mean - low, high - mean]
        shifted = np.array(results["k"]) * 2.0 ** (0.16 * (i - 1))
        axes.errorbar(shifted, mean, yerr=error, **style, capsize=3, linewidth=1.6, label=label)
    axes.axhline(0, color="0.3", linewidth=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    _finish(axes, results, f"Lead in points of the schedule\nof {ours}", every=2)


def best_rival(results: dict[str, Any], ours: str) -> str:
    """The family whose schedule is best at k = 256, ours aside."""
    at = list(results["k"]).index(256)
    others = [name for name in results["families"] if name != ours]
    return max(others, key=lambda name: results["families"][name]["schedule"][at]["mean"])


def _shares(axes: Axes, results: dict[str, Any], ours: str) -> None:
    """Which run the first k attempts go to, mean over seeds, by method."""
    fine = np.unique(np.round(2.0 ** np.arange(0, np.log2(results["k"][-1]) + 0.01, 0.25)).astype(int))
    totals: dict[str, np.ndarray] = {}
    for seed in results["seeds"]:
        family = seed["families"][ours]
        ends = np.cumsum([n for _, n in family["blocks"]])
        for (arm, n), end in zip(family["blocks"], ends, strict=True):
            name = run_name(family["arms"][arm])
            taken = np.clip(fine - (end - n), 0, n) / fine / len(results["seeds"])
            totals[name] = totals.get(name, 0) + taken
    names = sorted(totals, key=lambda name: (name != "cross-entropy", len(name), name))
    axes.stackplot(
        fine,
        *[totals[name] for name in names],
        labels=names,
        colors=[method_style(name)["color"] for name in names],
        edgecolor="white",
    )
    axes.set_ylim(0, 1)
    axes.set_xlim(1, fine[-1])
    percent_axis(axes)
    _finish(axes, results, "Runs that the first\nk attempts go to", every=2)


def run_name(arm: dict[str, Any]) -> str:
    """The method as the pictures call it."""
    return f"DCO, N = {arm['num_attempts']}" if arm["method"] == "DCO" else arm["method"]


def _finish(axes: Axes, results: dict[str, Any], title: str, every: int = 1) -> None:
    axes.set_title(title, loc="left", fontsize=13)
    attempts_axis(axes, results["k"][::every])
    axes.tick_params(labelsize=11)
    axes.set_xlabel("k, attempts per problem", fontsize=12)
    plain_axes(axes)
