"""The frontier: coverage against test-time k, for cross-entropy and DCO at several N, from the merged results."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from dco_trl.report.plots import LINE_STYLES, MARKERS, PALETTE

SHOWN_ATTEMPTS = (16, 256, 4096)


def plot_frontier(results: dict[str, Any]) -> Figure:
    """Draw coverage of the test problems against k, mean over seeds with its interval.

    Args:
        results: What `rivals.py` wrote, with the methods cross-entropy and DCO.

    Returns:
        The figure; save it with `figure.savefig("frontier.png", dpi=200)`.

    Raises:
        ValueError: A curve is not among the results.

    References:
        Figure 5 of the DCO paper, arXiv 2502.07154, has the same axes.
    """
    lines = [
        ("cross-entropy, last epoch", _curve(results, "cross-entropy", {}, "last_epoch")),
        ("cross-entropy, best epoch for each k", _curve(results, "cross-entropy", {}, "best_epoch")),
        *((f"DCO, N = {n}", _curve(results, "DCO", {"num_attempts": n}, "last_epoch")) for n in _attempts(results)),
    ]
    k = results["settings"][0]["k"]
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for index, (label, curve) in enumerate(lines):
        colour = PALETTE[index]
        axes.plot(
            k,
            curve["mean"],
            color=colour,
            linestyle=LINE_STYLES[index % len(LINE_STYLES)],
            marker=MARKERS[index],
            markersize=6,
            linewidth=2,
            label=label,
        )
        if curve["low"][0] is not None:
            axes.fill_between(k, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(k))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=11)
    axes.set_xlabel("k, attempts a problem at test time", fontsize=12)
    axes.set_ylabel("solved within k attempts", fontsize=12)
    seeds = len(results["seeds"])
    axes.set_title(
        f"{results['title']}, held-out problems, "
        + (f"{seeds} seeds: mean and {results['level']:.0%} interval" if seeds > 1 else "one seed"),
        loc="left",
        fontsize=12,
    )
    axes.legend(frameon=False, fontsize=11, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def _attempts(results: dict[str, Any]) -> list[int]:
    of_dco = [curve["setting"] for curve in results["settings"] if curve["method"] == "DCO"]
    return [n for n in SHOWN_ATTEMPTS if {"num_attempts": n} in of_dco]


def _curve(results: dict[str, Any], method: str, setting: dict[str, Any], epoch: str) -> dict[str, list]:
    for curve in results["settings"]:
        if (curve["method"], curve["setting"]) == (method, setting):
            return curve[epoch]
    raise ValueError(f"the results hold no {method} with {setting}: run rivals.py with this method first")
