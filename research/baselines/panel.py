"""README's picture: pass@256 against epoch in the demo's runs, five seeds.

python -m research.baselines.panel --results research/baselines/results/demo.json --figure docs/results/pass256.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dco_trl.demo.figure import _against_epoch


def plot(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    panel = figure.subplots()
    _against_epoch(panel, results["runs"], 256)
    panel.set_title("pass@256 of held-out problems: cross-entropy loses it, DCO keeps it", loc="left", fontsize=14)
    panel.set_xlabel("epoch (mean of five seeds; bands from the least to the greatest)", fontsize=12)
    panel.legend(frameon=False, fontsize=13, loc="upper left", ncols=3, borderaxespad=0.2)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="`demo.json` of several seeds.")
    parser.add_argument("--figure", type=Path, required=True, help="PNG file.")
    args = parser.parse_args(argv)
    plot(json.loads(args.results.read_text())).savefig(args.figure, dpi=150)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
