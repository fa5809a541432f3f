"""Figures: coverage against k, confidence, success rates. Plain arrays in, a matplotlib `Figure` out.

Figures are made without pyplot, so they need no display, keep no global state and are safe in any thread. Runs differ
by colour (the Okabe-Ito palette, told apart by colour-blind readers), by line style and by marker, so that a grey
print still reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which is too faint for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT, WRONG = PALETTE[0], PALETTE[1]


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
    """

    label: str
    k: Sequence[float]
    coverage: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    extrapolated_k: Sequence[float] = ()
    extrapolated: Sequence[float] = ()


def plot_coverage_curves(
    curves: Sequence[CoverageCurve], *, title: str | None = None, ylabel: str = "pass@k", figsize=(7.0, 4.5)
) -> Figure:
    r"""Plot coverage, or its estimate pass@k, against k on a log axis, with a band for each curve that has one.

    Args:
        curves: One entry a run, at least one.
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
        raise ValueError("curves: got an empty sequence; pass one CoverageCurve a run")
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
            label=_plain(curve.label),
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
                linewidth=1.2,
            )
            largest = max(largest, max(curve.extrapolated_k))
    axes.set_xscale("log", base=2)
    ticks = 4.0 ** np.arange(0, np.floor(np.log(largest) / np.log(4) + 1e-9) + 1)
    if len(ticks) < 3:
        ticks = 2.0 ** np.arange(0, np.floor(np.log2(largest) + 1e-9) + 1)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}"))
    axes.set_xlim(0.93, max(largest, 2) * 1.07)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("k, attempts a problem")
    axes.set_ylabel(_plain(ylabel))
    if title:
        axes.set_title(_plain(title), loc="left")
    if any(len(curve.extrapolated_k) for curve in curves):
        axes.plot([], [], color="0.4", linestyle=(0, (1, 2)), linewidth=1.2, label="extrapolated, not measured")
    if len(curves) > 1 or len(curves[0].extrapolated_k) or curves[0].label:
        axes.legend(frameon=False, loc="best")
    return figure


def plot_confidence_histogram(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]], *, bins: int = 20, title: str | None = None
) -> Figure:
    r"""Plot how sure the model is of its most frequent answer, and how much of that is right.

    Args:
        runs: For each run's name, two arrays of shape (problems,): the share of the samples that give the most
            frequent answer, in [0, 1], and whether that answer is right. One panel a run.
        bins: Number of equal bins on [0, 1].
        title: Title of the figure, or None.

    Returns:
        The figure, right answers stacked under wrong ones.

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
        heights_right, edges = np.histogram(shares[right], bins=bins, range=(0, 1))
        heights_wrong, _ = np.histogram(shares[~right], bins=bins, range=(0, 1))
        width = edges[1] - edges[0]
        panel.bar(edges[:-1], heights_right, width, align="edge", color=RIGHT, edgecolor="white", linewidth=0.5)
        panel.bar(
            edges[:-1],
            heights_wrong,
            width,
            align="edge",
            bottom=heights_right,
            color=WRONG,
            edgecolor="white",
            linewidth=0.5,
            hatch="///",
        )
        panel.set_title(_plain(name), loc="left", fontsize=10)
        panel.set_xlim(0, 1)
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelbottom=True)
        _plain_spines(panel)
    for panel in axes[len(runs) :]:
        panel.set_axis_off()
    figure.supxlabel("share of the most frequent answer", fontsize=10)
    figure.supylabel("problems", fontsize=10)
    figure.legend(
        handles=[
            Patch(facecolor=RIGHT, label="right"),
            Patch(facecolor=WRONG, edgecolor="white", hatch="///", label="wrong"),
        ],
        loc="outside upper right",
        ncols=2,
        frameon=False,
    )
    if title:
        figure.suptitle(_plain(title), x=0.01, ha="left")
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
        num_samples: Samples a problem; 1 over it is the lowest bin. By default the smallest rate above 0.
        title: Title of the figure, or None.

    Returns:
        The figure, one bar a run in each bin.

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
            label=_plain(name),
        )
    axes.set_xticks([-0.4, *range(1, len(labels))], labels, rotation=45 if len(labels) > 8 else 0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("success rate of a problem, up to")
    axes.set_ylabel("problems")
    axes.legend(frameon=False)
    if title:
        axes.set_title(_plain(title), loc="left")
    return figure


def _figure(figsize: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=figsize, layout="constrained")
    axes = figure.subplots()
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    _plain_spines(axes)
    return figure, axes


def _plain_spines(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """Return text that matplotlib shows as it is: no mathematics in dollars, no hiding of a leading underscore."""
    text = text.replace("$", r"\$")
    return "\u200b" + text if text.startswith("_") else text


def _powers_of_four(k: np.ndarray) -> list[int]:
    """Indices of the points nearest to 1, 4, 16, …, for markers that do not crowd."""
    powers = 4.0 ** np.arange(0, np.log(k.max()) / np.log(4) + 1e-9)
    return sorted({int(np.abs(np.log(k) - np.log(power)).argmin()) for power in powers})


def _checked(curve: CoverageCurve) -> tuple[np.ndarray, np.ndarray]:
    k, coverage = np.asarray(curve.k, dtype=float), np.asarray(curve.coverage, dtype=float)
    lengths = {
        "k": len(k),
        "coverage": len(coverage),
        "low": len(k) if curve.low is None else len(curve.low),
        "high": len(k) if curve.high is None else len(curve.high),
    }
    if len(k) == 0 or len(set(lengths.values())) > 1 or len(curve.extrapolated_k) != len(curve.extrapolated):
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
