"""Coverage against what was trained on, with every example and without those that are learnt.

python research/dead_figure.py docs/results/dead-examples.json docs/results/dead-examples.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dco_trl.report.styles import PALETTE, percent_axis, plain_axes

METHODS = {
    "all": ("every example", "0.35", "-"),
    "refill": ("learnt ones left out, batch refilled", PALETTE[1], "-"),
    "drop": ("learnt ones left out, batch smaller", PALETTE[0], "--"),
}


def plot_dead(results: dict[str, Any]) -> Figure:
    """Draw, for each N, coverage at k = N against tokens, and the share of dead examples.

    Args:
        results: What `dead_examples.py` wrote.

    Returns:
        The figure. Thin lines are seeds, thick ones their mean.
    """
    attempts = list(results["summary"])
    figure = Figure(figsize=(9.5, 3.2 * len(attempts)), layout="constrained")
    rows = figure.subplots(len(attempts), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), n in zip(rows, attempts, strict=True):
        for method, (label, colour, line) in METHODS.items():
            runs = [run for run in results["runs"] if (str(run["num_attempts"]), run["method"]) == (n, method)]
            column = list(results["k"]).index(int(n))
            tokens = np.array([run["tokens"] for run in runs]) / 1e3
            coverage = np.array([run["coverage"] for run in runs])[..., column]
            dead = np.array([run["dead"] for run in runs])
            epochs = np.arange(1, dead.shape[1] + 1)
            for axes, x, y in ((left, tokens, coverage), (right, np.broadcast_to(epochs, dead.shape), dead)):
                axes.plot(x.T, y.T, color=colour, linestyle=line, linewidth=0.6, alpha=0.4)
                axes.plot(x.mean(0), y.mean(0), color=colour, linestyle=line, linewidth=2.2, label=label)
        left.set_title(f"N = {int(n):,}: held-out problems solved within {int(n):,} attempts", loc="left", fontsize=11)
        right.set_title("Share of examples with a weight below .1", loc="left", fontsize=11)
        left.set_xlabel("thousands of tokens trained on")
        right.set_xlabel("epochs' worth of steps")
        for axes in (left, right):
            axes.set_ylim(0, 1.01)
            axes.set_xlim(0)
            percent_axis(axes)
            plain_axes(axes)
    rows[0, 0].legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON file of dead_examples.py.")
    parser.add_argument("figure", type=Path, help="PNG file to write.")
    args = parser.parse_args()
    plot_dead(json.loads(args.results.read_text())).savefig(args.figure, dpi=160)


if __name__ == "__main__":
    main()
