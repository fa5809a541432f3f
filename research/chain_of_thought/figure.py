"""The course over epochs, coverage against k, and what the protocol decides on, seed by seed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dco_trl.report.styles import PALETTE, attempts_axis, percent_axis, plain_axes
from research.chain_of_thought.report import DECIDED, DECIDED_SECOND, RIVAL, RIVAL_SCHEDULE

_STYLES: dict[str, dict[str, Any]] = {
    "cross-entropy, last epoch": dict(color=PALETTE[0], linestyle=":", marker="o"),
    RIVAL: dict(color=PALETTE[0], marker="o"),
    "weight 1, 4 own": dict(color=PALETTE[2], marker="X"),
    "DCO, reference": dict(color=PALETTE[4], marker="s"),
    "DCO, 4 own": dict(color=PALETTE[1], marker="P"),
    "DCO, 4 own, N = 64": dict(color=PALETTE[3], marker="D"),
    "DCO, 4 own, floor": dict(color=PALETTE[5], marker="v"),
    RIVAL_SCHEDULE: dict(color=PALETTE[0], linestyle="--", marker="^"),
    "schedule, weight 1": dict(color=PALETTE[2], linestyle="--", marker="^"),
}


def plot(summary: dict[str, Any]) -> Figure:
    """The course over epochs, coverage against k, and what the protocol decides on, seed by seed."""
    figure = Figure(figsize=(16, 5), layout="constrained")
    course, curves, differences = figure.subplots(1, 3, width_ratios=(3, 3, 3.4))
    _course(course, summary)
    for name, style in _STYLES.items():
        if name in summary["rows"]:
            curves.plot(summary["k"], summary["rows"][name]["mean"], label=name, markersize=6, linewidth=2, **style)
    attempts_axis(curves, summary["k"])
    percent_axis(curves)
    _finish(curves, "Solved within k attempts")
    curves.set_xlabel("k, attempts per problem", fontsize=11)
    curves.legend(frameon=False, fontsize=9.5, loc="lower right")
    _differences(differences, summary)
    return figure


def _course(axes: Axes, summary: dict[str, Any]) -> None:
    largest = max((k for k in summary["k"] if k <= 64), default=1)
    styles = {**_STYLES, "cross-entropy": _STYLES[RIVAL]}
    for course in summary["epochs"]:
        name = f"{course['method']}, N = {course['num_attempts']}"
        if name not in summary["rows"]:  # the one N that the method was run with
            name = course["method"]
        style = styles.get(name)
        if style is None or course["num_attempts"] not in (1, 64):
            continue
        values = np.array(course["mean"])
        for k, dashes in ((largest, "-"), (1, "--")):
            label = name if k == largest else None
            axes.plot(
                course["epochs"],
                values[:, summary["k"].index(k)],
                label=label,
                markersize=5,
                linewidth=2,
                **{**style, "linestyle": dashes},
            )
    percent_axis(axes)
    axes.set_xlabel("epoch", fontsize=11)
    _finish(axes, f"pass@{largest} (solid) and pass@1 (dashed) by epoch")
    axes.legend(frameon=False, fontsize=9.5, loc="center right")


def _differences(axes: Axes, summary: dict[str, Any]) -> None:
    is_second = "DCO, 4 own, N = 64" in summary["rows"]
    decided, ks = (DECIDED_SECOND, (1, 64)) if is_second else (DECIDED, (64, 256))
    rows = [row for row in reversed(summary["differences"]) if (row["of"], row["from"]) in decided]
    at = [i for i, k in enumerate(summary["k"]) if k in ks] or [len(summary["k"]) - 1]
    for y, row in enumerate(rows):
        for shift, i in zip((0.15, -0.15), at, strict=False):
            colour = PALETTE[6] if i == at[-1] else "0.55"
            by_seed = [100 * seed[i] for seed in row["by_seed"]]
            axes.plot(by_seed, [y + shift] * len(by_seed), "o", color=colour, markersize=3.5, alpha=0.6)
            if row["low"][i] is not None:
                axes.plot([100 * row["low"][i], 100 * row["high"][i]], [y + shift] * 2, color=colour, linewidth=1.4)
            axes.plot(100 * row["mean"][i], y + shift, "|", color=colour, markersize=12, markeredgewidth=2.2)
    for i in at:
        label = f"pass@{summary['k'][i]}"
        axes.plot([], [], "o-", color=PALETTE[6] if i == at[-1] else "0.55", markersize=4, label=label)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_yticks(range(len(rows)), [f"{row['of']}\nless {row['from']}" for row in rows])
    _finish(axes, f"Differences in points, {summary['level']:.0%} interval")
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(frameon=False, fontsize=9.5, loc="best")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12)
    axes.tick_params(labelsize=10)
    plain_axes(axes)
