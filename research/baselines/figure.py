"""The frontier: coverage against test-time k, for cross-entropy and DCO at several N, and the lead in each seed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dco_trl.report.styles import attempts_axis, method_style, percent_axis, plain_axes
from research.common.pictures import WIDTH

SHOWN_ATTEMPTS = (16, 256, 4096)
RIVAL = "cross-entropy, temperature tuned"


def plot_frontier(results: dict[str, Any]) -> Figure:
    """Draw mean coverage of the test problems against k, and beside it, seed by seed, DCO's lead over cross-entropy.

    The lead is paired: in a seed both methods saw the same problems and the same order of batches. Settings and epochs
    of both, and cross-entropy's temperature, are those chosen on the validation problems. One seed: no second panel.

    Args:
        results: What `run.py` wrote, with the methods cross-entropy and DCO.

    Returns:
        The figure; save it with `figure.savefig("baselines.png", dpi=150)`.

    Raises:
        ValueError: A curve is not among the results.

    References:
        Figure 5 of the DCO paper, arXiv 2502.07154, has the first panel's axes.
    """
    seeds = len(results["seeds"])
    figure = Figure(figsize=(WIDTH, 5), layout="constrained")
    coverage, *lead = (
        figure.subplots(1, 2, width_ratios=(5, 4), squeeze=False)[0] if seeds > 1 else [figure.subplots()]
    )
    _coverage(coverage, results)
    if lead:
        _lead(lead[0], results)
    mean = f", mean of {seeds} seeds" if seeds > 1 else ", one seed"
    figure.suptitle(f"{results['title']}, held-out problems{mean}", x=0.01, ha="left", fontsize=13)
    figure.legend(loc="outside lower left", ncols=3 if lead else 2, frameon=False, fontsize=11)
    return figure


def _coverage(axes: Axes, results: dict[str, Any]) -> None:
    k = results["settings"][0]["k"]
    last, best = (_curve(results, "cross-entropy", {}, epoch)["mean"] for epoch in ("last_epoch", "best_epoch"))
    shared = {"markersize": 6, "linewidth": 2}
    axes.plot(k, last, **method_style("cross-entropy"), **shared, label="cross-entropy, last epoch")
    axes.plot(
        k, best, **method_style("cross-entropy"), **shared, linestyle=":", label="cross-entropy, best epoch for each k"
    )
    for n in _attempts(results):
        mean = _curve(results, "DCO", {"num_attempts": n}, "last_epoch")["mean"]
        axes.plot(k, mean, **method_style(f"DCO, N = {n}"), **shared, label=f"DCO, N = {n}, last epoch")
    attempts_axis(axes, k)
    percent_axis(axes)
    axes.set_ylim(0, 1.02)
    _finish(axes, "Solved within k attempts")


def _lead(axes: Axes, results: dict[str, Any]) -> None:
    dco, rival = results["selections"]["DCO"], results["selections"][RIVAL]
    means = results["differences"]["DCO"][RIVAL]
    k = [int(key) for key in means]
    colour = "0.15"  # no N's colour: N is chosen for each k and seed
    by_seed = 100 * np.array([np.subtract(dco[str(at)]["test"], rival[str(at)]["test"]) for at in k])
    for i, values in enumerate(by_seed.T):
        axes.plot(k, values, color=colour, alpha=0.45, linewidth=1.1, label="lead in one seed" if i == 0 else None)
    middle, low, high = (100 * np.array([means[str(at)][end] for at in k]) for end in ("mean", "low", "high"))
    axes.errorbar(
        k,
        middle,
        yerr=[middle - low, high - middle],
        color=colour,
        marker="o",
        markersize=6,
        linewidth=2.4,
        capsize=4,
        label=f"its mean, {results['level']:.0%} interval",
    )
    axes.axhline(0, color="0.3", linewidth=1)
    attempts_axis(axes, k)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0f}" if value else "0"))
    axes.set_xlim(0.7, max(k) * 1.4)
    _finish(axes, "Lead of DCO in points\nover tuned cross-entropy")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel("k, attempts per problem", fontsize=12)
    axes.tick_params(labelsize=11)
    plain_axes(axes)


def _attempts(results: dict[str, Any]) -> list[int]:
    of_dco = [curve["setting"] for curve in results["settings"] if curve["method"] == "DCO"]
    return [n for n in SHOWN_ATTEMPTS if {"num_attempts": n} in of_dco]


def _curve(results: dict[str, Any], method: str, setting: dict[str, Any], epoch: str) -> dict[str, list]:
    for curve in results["settings"]:
        if (curve["method"], curve["setting"]) == (method, setting):
            return curve[epoch]
    raise ValueError(f"the results hold no {method} with {setting}: run research.baselines.run with this method first")
