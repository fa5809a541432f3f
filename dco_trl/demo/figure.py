"""The demonstration's picture: coverage against epoch, coverage against k, and how sure the model is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from ..report.plots import LINE_STYLES, MARKERS, PALETTE, RIGHT, WRONG
from .run import coverage_at, run_name
from .table import TABLE_K


def plot_demo(results: dict[str, Any]) -> Figure:
    """Draw coverage against epoch and against k, and the distribution of the greedy answer's probability.

    Args:
        results: What `run_demo` returned. Over several seeds, lines are means and bands reach from least to greatest;
            the distributions are the first seed's.

    Returns:
        The figure; save it with `figure.savefig("demo.png", dpi=150)`.

    References:
        Table 1 and Figure 4 of the DCO paper, arXiv 2502.07154.
    """
    runs = results["runs"]
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    top, bottom = _split(figure, 2, 1, height_ratios=(1, 1.35), hspace=0.04)
    left, right = _split(bottom, 1, 2, width_ratios=(1, 2), wspace=0.03)
    _against_epoch(top, runs)
    _against_k(left, runs)
    first = results["summary"][0]
    shown = [
        run
        for n in (1, first["dco_num_attempts"])
        for run in runs
        if run["num_attempts"] == n and run["seed"] == first["seed"]
    ]
    _confidence(right, shown)
    return figure


def _split(figure: Figure | SubFigure, rows: int, columns: int, **kwargs: Any) -> tuple[SubFigure, SubFigure]:
    first, second = np.ravel(figure.subfigures(rows, columns, **kwargs))
    return first, second


def _against_epoch(figure: SubFigure, runs: Sequence[dict[str, Any]]) -> None:
    panels = figure.subplots(1, len(TABLE_K))
    for panel, k in zip(panels, TABLE_K, strict=True):
        for style, same in _by_attempts(runs):
            values = np.array([coverage_at(run, k) for run in same])
            _line(panel, same[0]["epochs"], values, style, run_name(same[0]["num_attempts"]))
        panel.set_title(f"pass@{k}", loc="left", fontsize=11)
        # Small and large coverages each on a scale of their own, all from zero.
        panel.set_ylim(0, 1.03 if k > 16 else None)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("epoch")
        _plain(panel)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    figure.suptitle("Two-digit multiplication: exact coverage of 500 held-out problems", x=0.01, ha="left")


def _against_k(figure: SubFigure, runs: Sequence[dict[str, Any]]) -> None:
    panel = figure.subplots()
    k = np.array(runs[0]["k"])
    for style, same in _by_attempts(runs):
        _line(panel, k, np.array([run["coverage"][-1] for run in same]), style, None)
    ce = [run for run in runs if run["num_attempts"] == 1]
    best = np.array([run["coverage"][int(np.argmax(coverage_at(run, 256)))] for run in ce]).mean(0)
    panel.plot(k, best, color=PALETTE[0], linestyle=(0, (1, 2)), linewidth=1.4, label="cross-entropy, best epoch @256")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator([4.0**i for i in range(0, 8, 2)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_ylim(0, 1.03)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set_xlabel("k, attempts a problem")
    panel.legend(frameon=False, loc="upper left", fontsize=9)
    panel.set_title("pass@k at the last epoch", loc="left", fontsize=11)
    _plain(panel)


def _confidence(figure: SubFigure, runs: Sequence[dict[str, Any]]) -> None:
    panels = figure.subplots(len(runs), len(runs[0]["greedy"]), sharex=True, sharey=True, squeeze=False)
    for row, run in zip(panels, runs, strict=True):
        for panel, greedy in zip(row, run["greedy"], strict=True):
            probability, right = np.array(greedy["probability"]), np.array(greedy["correct"], dtype=bool)
            edges = np.linspace(0, 1, 21)
            heights = [np.histogram(probability[which], edges)[0] for which in (right, ~right)]
            panel.bar(edges[:-1], heights[0], 0.05, align="edge", color=RIGHT, edgecolor="white", linewidth=0.4)
            panel.bar(
                edges[:-1],
                heights[1],
                0.05,
                align="edge",
                bottom=heights[0],
                color=WRONG,
                edgecolor="white",
                linewidth=0.4,
                hatch="///",
            )
            panel.set_title(f"{run_name(run['num_attempts'])}, epoch {greedy['epoch']}", loc="left", fontsize=9)
            panel.text(
                0.97,
                0.95,
                f"median {np.median(probability):.2f}\n{right.mean():.0%} right",
                transform=panel.transAxes,
                ha="right",
                va="top",
                fontsize=9,
            )
            panel.set_xlim(0, 1)
            panel.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
            _plain(panel)
    figure.supxlabel("probability of the greedy answer, the model's top choice", fontsize=10)
    figure.supylabel("problems", fontsize=10)
    figure.legend(
        handles=[
            Patch(facecolor=RIGHT, label="that answer is right"),
            Patch(facecolor=WRONG, edgecolor="white", hatch="///", label="wrong"),
        ],
        loc="outside upper right",
        ncols=2,
        frameon=False,
    )


def _by_attempts(runs: Sequence[dict[str, Any]]):
    for style, n in enumerate(sorted({run["num_attempts"] for run in runs})):
        yield style, [run for run in runs if run["num_attempts"] == n]


def _line(panel: Axes, x: Any, values: np.ndarray, style: int, label: str | None) -> None:
    colour = PALETTE[style % len(PALETTE)]
    panel.plot(
        x,
        values.mean(0),
        color=colour,
        linestyle=LINE_STYLES[style % len(LINE_STYLES)],
        marker=MARKERS[style % len(MARKERS)],
        markevery=max(1, len(x) // 8),
        markersize=4,
        linewidth=1.8,
        label=label,
    )
    if len(values) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(True, color="0.92", linewidth=0.8)
    panel.set_axisbelow(True)
