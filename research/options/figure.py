"""Coverage against tokens trained on, with and without learnt examples, and the share of them that is learnt."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dco_trl.report.styles import PALETTE, method_style, percent_axis, plain_axes
from research.common.pictures import WIDTH

_METHODS = {
    "all": ("every example", {"linestyle": "-"}),
    "refill": ("learnt ones left out, batch refilled", {"color": PALETTE[2], "linestyle": "-"}),
    "drop": ("learnt ones left out, batch smaller", {"color": PALETTE[3], "linestyle": "--"}),
}


def plot(results: dict[str, Any]) -> Figure:
    """Draw it from `skip-learnt.json`, for each N; thin lines are seeds, thick ones their means."""
    attempts = sorted({run["num_attempts"] for run in results["runs"]})
    figure = Figure(figsize=(WIDTH, 3.2 * len(attempts)), layout="constrained")
    panels = figure.subplots(len(attempts), 2, width_ratios=(3, 2))
    for (coverage, dead), n in zip(panels, attempts, strict=True):
        at = results["k"].index(n)
        for method, (label, changes) in _METHODS.items():
            runs = [run for run in results["runs"] if (run["method"], run["num_attempts"]) == (method, n)]
            style = {"color": method_style(f"DCO, N = {n}")["color"]} | changes
            tokens = np.array([run["tokens"] for run in runs]) / 1000
            solved = np.array([run["coverage"] for run in runs])[:, :, at]
            learnt = np.array([run["dead"] for run in runs])
            epochs = np.arange(1, learnt.shape[1] + 1)
            for axes, x, y in ((coverage, tokens, solved), (dead, np.tile(epochs, (len(runs), 1)), learnt)):
                axes.plot(x.T, y.T, alpha=0.4, linewidth=0.7, **style)
                axes.plot(x.mean(0), y.mean(0), linewidth=2.6, label=label, **style)
        coverage.set_title(f"N = {n:,}: solved within {n:,} attempts", loc="left", fontsize=12)
        coverage.set_xlabel("thousands of tokens trained on", fontsize=11)
        dead.set_title("Examples with a weight below .1", loc="left", fontsize=12)
        dead.set_xlabel("epochs' worth of steps", fontsize=11)
        for axes in (coverage, dead):
            axes.set_ylim(0, 1.01)
            axes.tick_params(labelsize=10)
            percent_axis(axes)
            plain_axes(axes)
        coverage.legend(frameon=False, fontsize=10, loc="lower right")
    return figure
