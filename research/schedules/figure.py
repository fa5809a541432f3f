"""Coverage along schedules against k, the lead in each seed, and which arms the attempts go to."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dco_trl.report.styles import attempts_axis, method_style, percent_axis, plain_axes

OURS_COLOUR = "#7A1B50"


def plot_schedules(results: dict[str, Any], ours: str, plain: str) -> Figure:
    """Draw what a schedule over all of our arms gives, beside cross-entropy's schedule and its single epochs.

    Args:
        results: What `run.py` wrote.
        ours: The family in front.
        plain: The family that costs nothing more.

    Returns:
        The figure: coverage against k; paired leads of our schedule; which runs the first k attempts go to.
    """
    figure = Figure(figsize=(13.5, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 4, 4))
    k, families = results["k"], results["families"]
    rival = best_rival(results, ours)
    curves = [
        (families[ours]["schedule"], f"schedule, {ours}", {"color": OURS_COLOUR, "marker": "D"}, "-"),
        (families[rival]["schedule"], f"schedule, {rival}", {"color": "0.45", "marker": "v"}, "-"),
        (families[plain]["schedule"], f"schedule, {plain}", method_style("cross-entropy"), "-"),
        (results["any_arm"], "best single arm of all, for each k", {"color": "0.2", "marker": ""}, "--"),
        (families[plain]["best_arm"], f"best arm of {plain}, for each k", {"color": "#0072B2", "marker": ""}, ":"),
    ]
    seen = set()
    for values, label, style, line in curves:
        if label not in seen:
            left.plot(k, [v["mean"] for v in values], label=label, linestyle=line, linewidth=2, markersize=5, **style)
        seen.add(label)
    left.set_ylim(0, 1.01)
    left.set_title("Solved within k attempts", loc="left", fontsize=12)
    percent_axis(left)
    left.legend(frameon=False, fontsize=9, loc="lower right")
    leads = [
        (results["ours_less_any_arm"], "the best single arm of all", "0.2", "o"),
        (families[rival]["ours_ahead"], f"schedule, {rival}", "0.45", "v"),
        (families[plain]["ours_ahead"], f"schedule, {plain}", "#0072B2", "s"),
    ]
    for i, (values, label, colour, marker) in enumerate(leads):
        mean, low, high = (
            100 * np.array([np.nan if v[e] is None else v[e] for v in values]) for e in ("mean", "low", "high")
        )
        error = None if np.isnan(low).any() else [mean - low, high - mean]
        shifted = np.array(k) * 2.0 ** (0.16 * (i - 1))
        middle.errorbar(shifted, mean, yerr=error, color=colour, marker=marker, capsize=3, linewidth=1.6, label=label)
    middle.axhline(0, color="0.3", linewidth=1)
    middle.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    middle.set_title(f"Lead of the schedule ({ours})\nover …, points", loc="left", fontsize=12)
    middle.margins(y=0.3)
    middle.legend(frameon=False, fontsize=9, loc="lower left")
    _shares(right, results, ours)
    for axes in (left, middle, right):
        attempts_axis(axes, k)
        axes.tick_params(axis="x", labelsize=9)
        axes.set_xlabel("k, attempts per problem")
        plain_axes(axes)
    return figure


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
    axes.set_title("Where the first k attempts go", loc="left", fontsize=12)
    percent_axis(axes)
    axes.legend(fontsize=9, loc="lower left", framealpha=0.9)


def run_name(arm: dict[str, Any]) -> str:
    """The method as the pictures call it."""
    return f"DCO, N = {arm['num_attempts']}" if arm["method"] == "DCO" else arm["method"]
