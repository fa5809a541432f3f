"""README's picture: pass@256 against epoch in the demo's runs, five seeds."""

from typing import Any

from matplotlib.figure import Figure

from dco_trl.demo.figure import against_epoch
from research.common.pictures import WIDTH


def plot(results: dict[str, Any]) -> Figure:
    """Draw it from `demo.json`."""
    figure = Figure(figsize=(WIDTH, 4), layout="constrained")
    panel = figure.subplots()
    against_epoch(panel, results["runs"], 256)
    panel.set_title("pass@256 of held-out problems: cross-entropy loses it, DCO keeps it", loc="left", fontsize=14)
    panel.set_xlabel("epoch (mean of five seeds; bands from the least to the greatest)", fontsize=12)
    panel.legend(frameon=False, fontsize=13, loc="upper left", ncols=3, borderaxespad=0.2)
    return figure
