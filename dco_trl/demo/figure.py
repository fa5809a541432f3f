"""The demonstration's picture: coverage against epoch and against k, and how sure the model is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from ..report.styles import (
    SCHEDULE,
    attempts_axis,
    facing_histogram,
    method_style,
    percent_axis,
    plain_axes,
    right_wrong_handles,
)
from .findings import COMPARED_AT, by_num_attempts, coverage_at, run_name


def plot_demo(results: dict[str, Any]) -> Figure:
    """Draw coverage against epoch and k (mean, least and greatest over seeds), and the first seed's confidence."""
    runs, first = results["runs"], results["summary"][0]
    several = f"; {len(results['summary'])} seeds: mean, least and greatest" if len(results["summary"]) > 1 else ""
    figure: Any = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(f"Two-digit multiplication, 500 held-out problems{several}", x=0.01, ha="left", fontsize=14)
    top, bottom = figure.subfigures(2, 1, hspace=0.04)
    left, right = bottom.subfigures(1, 2, wspace=0.03)
    for panel, k in zip(top.subplots(1, 2), (1, COMPARED_AT), strict=True):
        against_epoch(panel, runs, k)
    _against_k(left.subplots(), results)
    compared = [by_num_attempts(runs)[n] for n in (1, first["dco_num_attempts"])]
    _confidence(right, [run for same in compared for run in same if run["seed"] == first["seed"]])
    handles, labels = top.axes[0].get_legend_handles_labels()
    top.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)), frameon=False, fontsize=12)
    return figure


def against_epoch(panel: Axes, runs: Sequence[dict[str, Any]], k: int) -> None:
    """Draw pass@k against epoch, a line for each N."""
    for n, same in by_num_attempts(runs).items():
        _line(panel, same[0]["epochs"], np.array([coverage_at(run, k) for run in same]), run_name(n))
    # Each panel has a scale of its own, from zero: pass@1 is small.
    panel.set_ylim(0, 1.03 if k > 1 else None)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch", fontsize=12)
    percent_axis(panel)
    _finish(panel, f"pass@{k} during training")


def _against_k(panel: Axes, results: dict[str, Any]) -> None:
    runs, k = by_num_attempts(results["runs"]), results["runs"][0]["k"]
    for n, same in runs.items():
        _line(panel, k, np.array([run["coverage"][-1] for run in same]), run_name(n))
    best = [run["coverage"][int(np.argmax(coverage_at(run, COMPARED_AT)))] for run in runs[1]]
    schedules = [seed["schedule"]["coverage"] for seed in results["summary"] if "schedule" in seed]
    others = [
        (best, method_style(run_name(1))["color"], ":", f"cross-entropy at its best epoch\nfor pass@{COMPARED_AT}"),
        (schedules, SCHEDULE, "--", "one schedule\nover all epochs"),
    ]
    handles = [
        panel.plot(k, np.mean(curves, axis=0), color=colour, linestyle=style, linewidth=1.8, label=label)[0]
        for curves, colour, style, label in others
        if curves
    ]
    attempts_axis(panel, k[::2])
    panel.set_ylim(0, 1.03)
    panel.set_xlabel("k, attempts per problem", fontsize=12)
    panel.legend(handles=handles, frameon=False, loc="upper left", fontsize=11, borderaxespad=0.2)
    percent_axis(panel)
    _finish(panel, "pass@k at the last epoch")


def _confidence(figure: Any, runs: Sequence[dict[str, Any]]) -> None:
    panels = figure.subplots(len(runs), 1, sharex=True, sharey=True)
    for panel, run in zip(panels, runs, strict=True):
        greedy = run["greedy"][-1]
        facing_histogram(panel, greedy["probability"], greedy["correct"])
        right = sum(greedy["correct"])
        told = f"{right:,} right, {len(greedy['correct']) - right:,} wrong"
        panel.text(0.98, 0.04, told, transform=panel.transAxes, ha="right", va="bottom", fontsize=11)
        _finish(panel, f"{run_name(run['num_attempts'])}: seed {run['seed']}, epoch {greedy['epoch']}")
    heights = [bar.get_height() for panel in panels for bar in panel.patches]
    most = max(map(abs, heights))
    panels[-1].set_ylim(-1.1 * most, max(heights) + 0.05 * most)
    panels[-1].xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    panels[-1].set_xlabel("probability of the model's greedy answer", fontsize=12)
    figure.supylabel("problems (square-root scale)", fontsize=12)
    figure.legend(handles=right_wrong_handles(), loc="outside upper right", ncols=2, frameon=False, fontsize=11)


def _line(panel: Axes, x: Sequence[float], values: np.ndarray, name: str) -> None:
    style = method_style(name)
    panel.plot(x, values.mean(0), **style, markevery=max(1, len(x) // 8), markersize=6, linewidth=2, label=name)
    if len(values) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.15, linewidth=0)


def _finish(panel: Axes, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=13)
    panel.tick_params(labelsize=11)
    plain_axes(panel)
