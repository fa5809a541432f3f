"""The course over epochs, and what the protocol decides on, seed by seed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dco_trl.report.styles import PALETTE, method_style, percent_axis, plain_axes
from research.chain_of_thought.report import DECIDED, DECIDED_SECOND
from research.common.pictures import WIDTH

# All DCO here has N = 64: the plain form has its colour and marker, the variants have their own.
_STYLES: dict[str, dict[str, Any]] = {
    "cross-entropy": method_style("cross-entropy"),
    "weight 1, 4 own": {"color": PALETTE[2], "marker": "X"},
    "DCO, reference": {"color": "#A6611A", "marker": "s"},
    "DCO, 4 own": method_style("DCO, N = 64"),
    "DCO, 4 own, floor": {"color": PALETTE[3], "marker": "v"},
}


def plot(summary: dict[str, Any]) -> dict[str, Figure]:
    """Draw coverage by epoch, and the differences that the protocol decides on, seed by seed.

    Args:
        summary: What `report.py` wrote.

    Returns:
        By suffix of the file: the course, at the largest k up to 64 and at k = 1; the differences.
    """
    course = Figure(figsize=(WIDTH, 4), layout="constrained")
    largest = max((k for k in summary["k"] if k <= 64), default=1)
    for axes, k in zip(course.subplots(1, 2), (largest, 1), strict=True):
        _course(axes, summary, k)
    course.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=11)
    differences = Figure(figsize=(WIDTH, 5), layout="constrained")
    _differences(differences.subplots(), summary)
    differences.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=11)
    return {"": course, "-differences": differences}


def _course(axes: Axes, summary: dict[str, Any], k: int) -> None:
    """Runs for N = 64, and those that have no N, of all seeds."""
    for method, style in _STYLES.items():
        for course in summary["epochs"]:
            is_of_all = method == "cross-entropy" or {method, f"{method}, N = 64"} & set(summary["rows"])
            if is_of_all and course["method"] == method and course["num_attempts"] in (1, 64):
                values = np.array(course["mean"])[:, summary["k"].index(k)]
                axes.plot(course["epochs"], values, label=method, markersize=6, linewidth=2, **style)
    percent_axis(axes)
    axes.set_ylim(0)
    axes.set_xlabel("epoch", fontsize=12)
    _finish(axes, f"pass@{k} of held-out problems")


def _differences(axes: Axes, summary: dict[str, Any]) -> None:
    is_second = "DCO, 4 own, N = 64" in summary["rows"]
    decided, ks = (DECIDED_SECOND, (1, 64)) if is_second else (DECIDED, (64, 256))
    rows = [row for row in reversed(summary["differences"]) if (row["of"], row["from"]) in decided]
    at = [i for i, k in enumerate(summary["k"]) if k in ks] or [len(summary["k"]) - 1]
    for y, row in enumerate(rows):
        for shift, i in zip((0.15, -0.15), at, strict=False):
            colour = "0" if i == at[-1] else "0.55"
            by_seed = [100 * seed[i] for seed in row["by_seed"]]
            axes.plot(by_seed, [y + shift] * len(by_seed), "o", color=colour, markersize=4, alpha=0.6)
            if row["low"][i] is not None:
                axes.plot([100 * row["low"][i], 100 * row["high"][i]], [y + shift] * 2, color=colour, linewidth=1.4)
            axes.plot(100 * row["mean"][i], y + shift, "|", color=colour, markersize=12, markeredgewidth=2.2)
    for i in at:
        label = f"pass@{summary['k'][i]}"
        axes.plot([], [], "o-", color="0" if i == at[-1] else "0.55", markersize=4, label=label)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_yticks(range(len(rows)), [f"{row['of']}\nless {row['from']}" for row in rows])
    _finish(axes, f"Differences in points: each seed, mean and {summary['level']:.0%} interval")
    axes.tick_params(axis="y", labelsize=10)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=13)
    axes.tick_params(labelsize=11)
    plain_axes(axes)
