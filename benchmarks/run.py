"""Run every benchmark, each in a process of its own, and put their numbers together.

    python benchmarks/run.py            # what `make bench` runs
    python benchmarks/run.py loss       # one of them

Each script prints its own table and writes its own JSON; this one puts the JSON files together into
benchmarks/results/benchmarks.json, where docs/results/benchmarks.md takes its numbers from.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "benchmarks.json"
BENCHMARKS = ("training", "loss", "grading", "sampling", "adapters", "success")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "benchmarks", nargs="*", default=BENCHMARKS, choices=BENCHMARKS, help="which; unless given, all"
    )
    names = parser.parse_args().benchmarks
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "result.json"
            done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--output", str(output)])
            if done.returncode:
                sys.exit(f"benchmarks/{name}.py failed; the results before it are kept")
            results[name] = json.loads(output.read_text())
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nNumbers: {RESULTS.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
