"""Draw the pictures of docs/results anew, from the committed data:

python -m research.figures --output_dir docs/results
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dco_trl.demo.figure import plot_demo
from research.baselines import panel
from research.baselines.figure import plot_frontier
from research.chain_of_thought import figure as chain_of_thought
from research.common.pictures import save
from research.options import figure as options
from research.schedules.figure import plot_schedules
from research.schedules.run import OURS, PLAIN


def read(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / name).read_text())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the PNG files.")
    folder = parser.parse_args(argv).output_dir
    demo, chains = read("baselines/results/demo.json"), "chain_of_thought/results"
    save({"": plot_demo(demo)}, folder / "demo.png")
    save({"": panel.plot(demo)}, folder / "pass256.png")
    for name, results in (("baselines", "multiplication"), ("smollm2-math", "smollm2-math"), ("mazes", "mazes")):
        save({"": plot_frontier(read(f"baselines/results/{results}.json"))}, folder / f"{name}.png")
    save(plot_schedules(read("schedules/results/multiplication.json"), OURS, PLAIN), folder / "schedule.png")
    save(chain_of_thought.plot(read(f"{chains}/first-round.json")), folder / "cot.png")
    save(chain_of_thought.plot(read(f"{chains}/second-round.json")), folder / "cot-second.png")
    save({"": options.plot(read("options/results/skip-learnt.json"))}, folder / "skip-learnt.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
