"""Figures: coverage against k, confidence, success rates. Plain arrays in, a matplotlib `Figure` out.

Figures are made without pyplot, so they need no display, keep no global state and are safe in any thread. Runs differ
by colour (a palette that colour-blind readers can tell apart), by line style and by marker, so that a grey print still
reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .styles import (
    LINE_STYLES,
    MARKERS,
    PALETTE,
    RIGHT,
    WRONG,
    attempts_axis,
    facing_histogram,
    percent_axis,
    plain_axes,
    plain_text,
    right_wrong_handles,
)
from .summary import Guess

__all__ = [
    "LINE_STYLES",
    "MARKERS",
    "PALETTE",
    "RIGHT",
    "WRONG",
    "CoverageCurve",
    "count_success_rates",
    "plot_confidence_histogram",
    "plot_coverage_curves",
    "plot_success_histogram",
    "success_bins",
]


@dataclass(frozen=True)
class CoverageCurve:
    """One line of `plot_coverage_curves`.

    Args:
        label: The name in the legend.
        k: Numbers of attempts, positive and increasing, shape (points,).
        coverage: Coverage or pass@k at each k, in [0, 1], shape (points,).
        low: Lower end of the band, shape (points,), or None for no band.
        high: Upper end of the band, shape (points,), or None for no band.
        extrapolated_k: k beyond the samples, for a thin dotted continuation, or empty.
        extrapolated: Coverage at each `extrapolated_k`.
        extrapolated_low: Lower end of its band.
        extrapolated_high: Upper end of its band.
    """

    label: str
    k: Sequence[float]
    coverage: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    extrapolated_k: Sequence[float] = ()
    extrapolated: Sequence[float] = ()
    extrapolated_low: Sequence[float] = ()
    extrapolated_high: Sequence[float] = ()

    @classmethod
    def of(cls, label: str, measured: Sequence[Guess], extrapolated: Sequence[Guess] = ()) -> "CoverageCurve":
        """Make a line of estimates with their intervals."""
        names = ("k", "estimate", "low", "high")
        return cls(
            label, *([getattr(entry, name) for entry in part] for part in (measured, extrapolated) for name in names)
        )


def plot_coverage_curves(
    curves: Sequence[CoverageCurve],
    *,
    title: str | None = None,
    ylabel: str = "pass@k",
    figsize: tuple[float, float] = (7.0, 4.5),
) -> Figure:
    r"""Plot coverage, or its estimate pass@k, against k on a log axis, with a band for each curve that has one.

    Args:
        curves: One entry per run, at least one.
        title: Title of the figure, or None.
        ylabel: Label of the vertical axis: "pass@k" for estimates from samples, "coverage" for exact values.
        figsize: Width and height in inches.

    Returns:
        The figure; save it with `figure.savefig("coverage.png", dpi=150)`.

    Raises:
        ValueError: There is no curve, a k is not positive, or a curve's arrays differ in length.

    Examples:
        >>> curve = CoverageCurve("ce", k=[1, 4, 16], coverage=[.1, .3, .6], low=[.05, .2, .5], high=[.2, .4, .7])
        >>> figure = plot_coverage_curves([curve])

    References:
        The same axes as Figure 5 of the DCO paper, arXiv 2502.07154.

    Relations:
        `dco_trl.report.write_report` draws these curves from evaluated runs, and the same ones to hover
        over in a page.
    """
    if not curves:
        raise ValueError("curves: got an empty sequence; pass one CoverageCurve per run")
    figure, axes = _figure(figsize)
    largest = 1.0
    for index, curve in enumerate(curves):
        k, coverage = _checked(curve)
        largest = max(largest, k.max())
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(
            k,
            coverage,
            color=colour,
            linestyle=LINE_STYLES[index % len(LINE_STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            markevery=_powers_of_four(k),
            markersize=5,
            linewidth=1.8,
            label=plain_text(curve.label),
        )
        if curve.low is not None and curve.high is not None:
            axes.fill_between(k, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        if len(curve.extrapolated_k):
            # Start at the last sampled point, so that the continuation is seen to belong to its curve.
            axes.plot(
                [k[-1], *curve.extrapolated_k],
                [coverage[-1], *curve.extrapolated],
                color=colour,
                linestyle=(0, (1, 2)),
                linewidth=1.0,
            )
            axes.fill_between(
                curve.extrapolated_k,
                curve.extrapolated_low,
                curve.extrapolated_high,
                color=colour,
                alpha=0.07,
                linewidth=0,
            )
            largest = max(largest, max(curve.extrapolated_k))
    ticks = 4.0 ** np.arange(0, np.floor(np.log(largest) / np.log(4) + 1e-9) + 1)
    if len(ticks) < 3:
        ticks = 2.0 ** np.arange(0, np.floor(np.log2(largest) + 1e-9) + 1)
    attempts_axis(axes, ticks)
    axes.set_xlim(0.93, max(largest, 2) * 1.07)
    axes.set_ylim(0, 1)
    percent_axis(axes)
    axes.set_xlabel("k, attempts per problem")
    axes.set_ylabel(plain_text(ylabel))
    if title:
        axes.set_title(plain_text(title), loc="left")
    if any(len(curve.extrapolated_k) for curve in curves):
        axes.plot([], [], color="0.4", linestyle=(0, (1, 2)), linewidth=1.0, label="extrapolated, not measured")
    if len(curves) > 1 or len(curves[0].extrapolated_k) or curves[0].label:
        axes.legend(frameon=False, loc="best")
    return figure


def plot_confidence_histogram(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]], *, bins: int = 20, title: str | None = None
) -> Figure:
    r"""Plot how sure the model is of its most frequent answer, and how much of that is right.

    Args:
        runs: For each run's name, two arrays of shape (problems,): the share of the samples that give the most
            frequent answer, in [0, 1], and whether that answer is right. One panel per run.
        bins: Number of equal bins on [0, 1].
        title: Title of the figure, or None.

    Returns:
        The figure, right answers upwards and wrong ones downwards; heights are square roots of counts.

    Raises:
        ValueError: There is no run, or a share lies outside [0, 1], or a run's arrays differ in length.

    Examples:
        >>> figure = plot_confidence_histogram({"ce": ([.9, .95, .3], [True, False, False])})

    References:
        Figure 4 of the DCO paper, arXiv 2502.07154: cross-entropy training piles this up near 1, wrong answers too.

    Relations:
        `plot_success_histogram` shows the reference answer's share instead.
    """
    if not runs:
        raise ValueError("runs: got an empty mapping; pass {name: (confidence, correct)}")
    columns = min(len(runs), 3)
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(max(3.4 * columns, 5.0), 2.9 * rows + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    for panel, (name, (confidence, correct)) in zip(axes, runs.items(), strict=False):
        shares = _shares(f"confidence of {name!r}", confidence)
        right = np.asarray(correct, dtype=bool)
        if right.shape != shares.shape:
            raise ValueError(f"runs[{name!r}]: got {len(shares)} confidences and {len(right)} verdicts; pass one each")
        facing_histogram(panel, shares, right, bins)
        panel.set_title(plain_text(name), loc="left", fontsize=10)
        panel.tick_params(labelbottom=True)
    for panel in axes[len(runs) :]:
        panel.set_axis_off()
    figure.supxlabel("share of the most frequent answer", fontsize=10)
    figure.supylabel("problems (square-root scale)", fontsize=10)
    figure.legend(handles=right_wrong_handles(), loc="outside upper right", ncols=2, frameon=False)
    if title:
        figure.suptitle(plain_text(title), x=0.01, ha="left")
    return figure


def success_bins(smallest: float) -> tuple[np.ndarray, list[str]]:
    """Return bins for success rates that halve from 1 down to `smallest`, and a label for each.

    Halving bins are the ones that matter for coverage: a problem with success rate 1/k takes about k attempts.
    Problems that are never solved belong to no bin; `count_success_rates` puts them in a bar of their own.

    Args:
        smallest: The smallest rate above 0 that can be seen, 1 over the number of samples.

    Returns:
        Edges from low to high, shape (bins + 1,), bin i being (edges[i], edges[i + 1]]; and the upper ends as text.

    Examples:
        >>> success_bins(1 / 4)[1]
        ['1/4', '1/2', '1']
    """
    steps = int(np.ceil(-np.log2(smallest) - 1e-9))
    edges = 2.0 ** -np.arange(steps + 1, -1, -1)
    return edges, [*(f"1/{2**step}" for step in range(steps, 0, -1)), "1"]


def count_success_rates(rates: ArrayLike, smallest: float) -> tuple[list[str], np.ndarray]:
    """Count problems by success rate: never solved first, then the bins of `success_bins`.

    Args:
        rates: Success rates in [0, 1], shape (problems,).
        smallest: As for `success_bins`.

    Returns:
        Labels, and the number of problems under each, shape (bins + 1,).

    Examples:
        >>> count_success_rates([0, .25, .5, 1], 1 / 4)
        (['never', '1/4', '1/2', '1'], array([1, 1, 1, 1]))
    """
    values = _shares("rates", rates)
    edges, labels = success_bins(smallest)
    # searchsorted(left) puts a rate equal to an edge into the bin below that edge, so bins are closed above.
    position = np.clip(np.searchsorted(edges, values[values > 0], side="left") - 1, 0, len(labels) - 1)
    counts = np.bincount(position, minlength=len(labels))
    return ["never", *labels], np.concatenate([[np.count_nonzero(values == 0)], counts])


def plot_success_histogram(
    runs: Mapping[str, ArrayLike], *, num_samples: int | None = None, title: str | None = None
) -> Figure:
    r"""Plot how many problems have which success rate, on halving bins, never solved ones apart.

    Args:
        runs: For each run's name, the success rate of each problem in [0, 1], shape (problems,).
        num_samples: Samples per problem; 1 over it is the lowest bin. By default the smallest rate above 0.
        title: Title of the figure, or None.

    Returns:
        The figure, one bar per run in each bin.

    Raises:
        ValueError: There is no run, or a rate lies outside [0, 1].

    Examples:
        >>> figure = plot_success_histogram({"ce": [0, .01, .9], "dco": [.02, .03, .3]}, num_samples=256)

    Relations:
        `plot_confidence_histogram` shows the most frequent answer's share, right or wrong.
    """
    if not runs:
        raise ValueError("runs: got an empty mapping; pass {name: success rates}")
    rates = {name: _shares(f"rates of {name!r}", values) for name, values in runs.items()}
    positive = np.concatenate([values[values > 0] for values in rates.values()])
    smallest = 1 / num_samples if num_samples else float(positive.min(initial=1.0))
    figure, axes = _figure((7.0, 4.0))
    width = 0.82 / len(runs)
    labels: list[str] = []
    for index, (name, values) in enumerate(rates.items()):
        labels, counts = count_success_rates(values, smallest)
        # "never" stands half a bar apart: it is no rate on the axis.
        centres = np.arange(len(labels)) - np.where(np.arange(len(labels)) == 0, 0.4, 0.0)
        axes.bar(
            centres + (index - (len(runs) - 1) / 2) * width,
            counts,
            width,
            color=PALETTE[index % len(PALETTE)],
            hatch=("", "///", "...", "\\\\\\", "xx")[index % 5],
            edgecolor="white",
            linewidth=0.5,
            label=plain_text(name),
        )
    axes.set_xticks([-0.4, *range(1, len(labels))], labels, rotation=45 if len(labels) > 8 else 0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("success rate of a problem, up to")
    axes.set_ylabel("problems")
    axes.legend(frameon=False)
    if title:
        axes.set_title(plain_text(title), loc="left")
    return figure


def _figure(figsize: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=figsize, layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    return figure, axes


def _powers_of_four(k: np.ndarray) -> list[int]:
    """Indices of the points nearest to 1, 4, 16, …, for markers that do not crowd."""
    powers = 4.0 ** np.arange(0, np.log(k.max()) / np.log(4) + 1e-9)
    return sorted({int(np.abs(np.log(k) - np.log(power)).argmin()) for power in powers})


def _checked(curve: CoverageCurve) -> tuple[np.ndarray, np.ndarray]:
    k, coverage = np.asarray(curve.k, dtype=float), np.asarray(curve.coverage, dtype=float)
    bands = {"low": curve.low, "high": curve.high}
    lengths = {"k": len(k), "coverage": len(coverage), **{n: len(v) for n, v in bands.items() if v is not None}}
    beyond = [curve.extrapolated_k, curve.extrapolated, curve.extrapolated_low, curve.extrapolated_high]
    if len(k) == 0 or len(set(lengths.values())) > 1 or len(set(map(len, beyond))) > 1:
        raise ValueError(
            f"curve {curve.label!r}: got lengths {lengths}; each k needs one value, and there must be one k"
        )
    if not (k > 0).all():
        raise ValueError(f"curve {curve.label!r}: got k = {k.min():g}; a log axis needs k > 0")
    return k, coverage


def _shares(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name}: got values outside [0, 1] or not a number; pass shares")
    return array
