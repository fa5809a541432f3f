"""The pictures of a report: coverage against k, confidence and success rates, each a matplotlib `Figure`.

Figures are made without pyplot, so they need no display, keep no global state and are safe in any thread. Runs differ
by colour (a palette that colour-blind readers can tell apart), line style and marker, so a grey print is readable too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from . import styles
from .styles import LINE_STYLES, MARKERS, PALETTE, plain_text, title_strip
from .summary import Estimate, RunSummary
from .tables import with_interval

_ONE_ARM: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.7}


def plot_coverage(runs: Sequence[RunSummary]) -> Figure:
    """Plot pass@k with its band against k on a log axis, and the arms of a schedule as thin lines."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, run in enumerate(runs):
        colour = PALETTE[index % len(PALETTE)]
        k, estimate, low, high = _columns(run.curve)
        axes.fill_between(k, low, high, color=colour, alpha=0.15, linewidth=0)
        for arm in run.arms:
            axes.plot(*_columns(arm.curve)[:2], color=colour, **_ONE_ARM)
        axes.plot(
            k,
            estimate,
            color=colour,
            linestyle=LINE_STYLES[index % len(LINE_STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            markevery=_powers_of_four(k),
            markersize=5,
            linewidth=1.8,
            label=plain_text(run.name),
        )
    if any(run.arms for run in runs):
        axes.plot([], [], color="0.4", **_ONE_ARM, label="an arm of the schedule, alone")
    ks = sorted({entry.k for run in runs for entry in run.curve})
    largest = ks[-1]
    edges = [0.93, *np.sqrt(np.multiply(ks[1:], ks[:-1])), largest * 1.07]
    for k, low, high in zip(ks, edges, edges[1:], strict=False):
        values = [f"{run.name}: {with_interval(entry)}" for run in runs for entry in run.curve if entry.k == k]
        title_strip(axes, low, high, f"pass@{k:,}, 95 % interval", *values)
    styles.coverage_axes(axes, largest, "pass@k")
    axes.set_xlim(0.93, max(largest, 2) * 1.07)
    axes.legend(frameon=False, loc="best")
    return figure


def _columns(curve: Sequence[Estimate]) -> np.ndarray:
    """k, estimate, low and high, shape (4, points)."""
    return np.array([(entry.k, entry.estimate, entry.low, entry.high) for entry in curve]).reshape(-1, 4).T


def _powers_of_four(k: np.ndarray) -> list[int]:
    """Indices of the points nearest to 1, 4, 16, …, which get the markers."""
    powers = 4.0 ** np.arange(0, np.log(k.max()) / np.log(4) + 1e-9)
    return sorted({int(np.abs(np.log(k) - np.log(power)).argmin()) for power in powers})


def plot_confidence(runs: Sequence[RunSummary]) -> Figure:
    """Plot, in a panel per run, the share of the most frequent answer, apart for right and wrong answers.

    Figure 4 of the DCO paper, arXiv 2502.07154: cross-entropy training moves both towards 1.
    """
    columns = min(len(runs), 3)
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(max(3.4 * columns, 5.0), 2.9 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, run in zip(panels, runs, strict=False):
        confidence, is_right = zip(*((p.confidence, p.top_correct) for p in run.problems), strict=True)
        right, wrong = styles.facing_histogram(panel, confidence, is_right)
        for i in range(20):
            counts = f"{right[i]:,} right, {wrong[i]:,} wrong"
            title_strip(panel, i / 20, (i + 1) / 20, f"share {5 * i} to {5 * (i + 1)} %", counts)
        panel.set_title(plain_text(run.name), loc="left", fontsize=10)
        panel.tick_params(labelbottom=True)
    for panel in panels[len(runs) :]:
        panel.set_axis_off()
    figure.supxlabel("share of the most frequent answer", fontsize=10)
    figure.supylabel("problems (square-root scale)", fontsize=10)
    figure.legend(handles=styles.right_wrong_handles(), loc="outside upper right", ncols=2, frameon=False)
    return figure


def plot_success(runs: Sequence[RunSummary]) -> Figure:
    """Plot a histogram of the problems' success rates on halving bins, with never solved problems apart."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    width = 0.82 / len(runs)
    most = max(run.num_samples["max"] for run in runs)
    labels: list[str] = []
    of_runs = []
    for index, run in enumerate(runs):
        labels, counts = count_success_rates([problem.success_rate for problem in run.problems], 1 / most)
        of_runs.append(counts)
        # "never" stands half a bar apart, because it is not a rate on the axis.
        centres = np.arange(len(labels)) - np.where(np.arange(len(labels)) == 0, 0.4, 0.0)
        axes.bar(
            centres + (index - (len(runs) - 1) / 2) * width,
            counts,
            width,
            color=PALETTE[index % len(PALETTE)],
            hatch=("", "///", "...", "\\\\\\", "xx")[index % 5],
            edgecolor="white",
            linewidth=0.5,
            label=plain_text(run.name),
        )
    for i, label in enumerate(labels):
        head = f"success rate above {labels[i - 1] if i > 1 else 0}, up to {label}" if i else "never solved"
        values = [f"{run.name}: {counts[i]:,} problems" for run, counts in zip(runs, of_runs, strict=True)]
        title_strip(axes, *((i - 0.5, i + 0.5) if i else (-0.9, 0.1)), head, *values)
    axes.set_xticks([-0.4, *range(1, len(labels))], labels, rotation=45 if len(labels) > 8 else 0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("success rate of a problem, up to")
    axes.set_ylabel("problems")
    axes.margins(y=0.08 + 0.08 * len(runs))  # room for the legend
    axes.legend(frameon=False)
    styles.plain_axes(axes)
    return figure


def count_success_rates(rates: ArrayLike, smallest: float) -> tuple[list[str], np.ndarray]:
    """Count problems by success rate: never solved first, then bins that halve from 1 down to `smallest`.

    Halving bins suit coverage: a problem with success rate 1/k takes about k attempts.

    Examples:
        >>> count_success_rates([0, .25, .5, 1], 1 / 4)
        (['never', '1/4', '1/2', '1'], array([1, 1, 1, 1]))
    """
    values = np.asarray(rates, dtype=float)
    steps = int(np.ceil(-np.log2(smallest) - 1e-9))
    labels = ["never", *(f"1/{2**step}" for step in range(steps, 0, -1)), "1"]
    # A bin includes its upper end: a rate of 1/2 belongs to the bin that ends there.
    position = steps - np.clip(np.floor(-np.log2(values[values > 0])), 0, steps).astype(int)
    counts = np.bincount(position, minlength=steps + 1)
    return labels, np.concatenate([[np.count_nonzero(values == 0)], counts])
