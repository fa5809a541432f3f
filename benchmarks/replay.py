"""A replay of recorded samples through the store, grading and the report: time and peak memory against their number.

    python benchmarks/replay.py --output replay.json --figure docs/results/replay.png
    python benchmarks/replay.py --samples 100 1000      # per problem; unless given, 100, 1,000 and 10,000

500 problems; each step of each size is a process of its own, so that its peak memory is its own:

- store: `sample_run` with a sampler that only reads out what is recorded;
- grading: `grade_run` with `math` and two workers, without a cache on disk;
- report: `load_results` and `write_report`.

The answers follow benchmarks/grading.py: a Zipf law for each problem, MATH-500's references where the data is there.
Before each answer stands a rationale of about 400 characters, no two of them alike. Seconds are those of all
processors together (user and system, workers included), which other work on the machine disturbs less than the clock;
the clock's are in the JSON file.
"""

import argparse
import functools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from grading import REFERENCE_RANKS, ZIPF_ANSWERS, ZIPF_HIGH, ZIPF_LOW, make_answers, read_references
from measure import environment, peak_resident_bytes, quiet

from dco_trl.runs import Problem, grade_run, load_results, sample_run
from dco_trl.sampling import Sample

STEPS = ("store", "grading", "report")
NUM_PROBLEMS = 500
WORDS = "so we have then the sum of both sides is equal to x and by the first line this gives half of it hence".split()


class Recorded:
    """Samples that are known beforehand: a function of problem and index."""

    def __init__(self) -> None:
        self.references, self.others, self.source = read_references(NUM_PROBLEMS, random.Random(0))
        draws = np.random.default_rng(0)
        self.sentences = [" ".join(draws.choice(WORDS, 45)) for _ in range(2_000)]
        self.answers = functools.lru_cache(maxsize=4)(self._answers)

    def problems(self) -> list[Problem]:
        return [Problem(f"p{i}", f"Question {i}", answer) for i, answer in enumerate(self.references)]

    def sample(self, requests: Any, params: Any) -> list[list[Sample]]:
        return [self._samples(request) for request in requests]

    def _answers(self, stream: int) -> tuple[list[str], np.ndarray]:
        rng = random.Random(stream)
        answers = make_answers(self.references[stream], self.others, rng, ZIPF_ANSWERS - 1)
        answers.insert(rng.randrange(min(REFERENCE_RANKS, len(answers)) + 1), self.references[stream])
        weights = np.arange(1, len(answers) + 1) ** -rng.uniform(ZIPF_LOW, ZIPF_HIGH)
        return answers, weights / weights.sum()

    def _samples(self, request: Any) -> list[Sample]:
        answers, weights = self.answers(request.stream)
        draws = np.random.default_rng([request.stream, request.first_index])
        chosen = draws.choice(len(answers), request.num_samples, p=weights).tolist()
        sentences = draws.integers(len(self.sentences), size=(request.num_samples, 2)).tolist()
        return [
            Sample(
                f"{self.sentences[a]} {request.first_index + i} {self.sentences[b]} so it is \\boxed{{{answers[c]}}}.",
                None,
                100,
                "stop",
            )
            for i, (c, (a, b)) in enumerate(zip(chosen, sentences, strict=True))
        ]

    def identity(self) -> dict[str, Any]:
        return {"model": "recorded", "sampler": "replay"}

    def close(self) -> None:
        pass


def run_step(step: str, run: str, num_samples: int) -> dict[str, Any]:
    """One step in this process, and what it took."""
    began = time.perf_counter()
    if step == "store":
        recorded = Recorded()
        sample_run(run, recorded.problems(), recorded, num_samples, progress=False)
    elif step == "grading":
        grade_run(run, "math", num_workers=2, progress=False)
    else:
        from dco_trl.report import write_report

        write_report([load_results(run)], Path(run) / "report")
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "step": step,
        "samples": NUM_PROBLEMS * num_samples,
        "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in usage),
        "seconds": time.perf_counter() - began,
        "peak_mb": peak_resident_bytes() / 2**20,
    }


def start_step(step: str, run: str, num_samples: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", step, "--run", run, "--samples", str(num_samples)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"the step {step!r} failed")
    return json.loads(done.stdout.splitlines()[-1])


def print_table(rows: list[dict[str, Any]]) -> None:
    print("\n| samples | step | CPU time | per million samples | peak memory |\n|---|---|---|---|---|")
    for row in rows:
        per_million = row["cpu_seconds"] / row["samples"] * 1e6
        print(
            f"| {row['samples']:,} | {row['step']} | {row['cpu_seconds']:.0f} s | {per_million:.0f} s "
            f"| {row['peak_mb']:,.0f} MB |"
        )


def draw_figure(rows: list[dict[str, Any]], path: str) -> None:
    """Time and memory of each step against the number of samples, both axes logarithmic; a dotted line is linear."""
    from matplotlib.figure import Figure

    from dco_trl.report.styles import MARKERS, PALETTE, plain_axes

    figure = Figure(figsize=(8.8, 3.8), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for i, step in enumerate(STEPS):
        own = [row for row in rows if row["step"] == step]
        samples = [row["samples"] for row in own]
        for axes, key in ((time_axes, "cpu_seconds"), (memory_axes, "peak_mb")):
            axes.loglog(samples, [row[key] for row in own], color=PALETTE[i], marker=MARKERS[i], label=step)
    largest = [row for row in rows if row["step"] == "grading"]
    ends = [largest[0]["samples"], largest[-1]["samples"]]
    linear = [largest[-1]["cpu_seconds"] * n / ends[-1] for n in ends]
    time_axes.loglog(ends, linear, color="0.5", linestyle=":", label="in proportion to samples")
    time_axes.set_title("CPU seconds grow less than samples do", loc="left", fontsize=12)
    memory_axes.set_title("Peak memory in MB hardly grows", loc="left", fontsize=12)
    memory_axes.set_ylim(bottom=100, top=max(10_000, 2 * max(row["peak_mb"] for row in rows)))
    for axes in (time_axes, memory_axes):
        axes.set_xlabel("samples", fontsize=11)
        axes.tick_params(labelsize=11)
        plain_axes(axes)
    handles, labels = time_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, frameon=False, fontsize=11)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 1_000, 10_000], help="samples per problem")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--figure", help="picture to write")
    parser.add_argument("--run", help="folder for the runs; unless given, a temporary one")
    parser.add_argument("--step", choices=STEPS, help="one step alone, in this process")
    arguments = parser.parse_args()
    quiet()
    if arguments.step:
        print(json.dumps(run_step(arguments.step, arguments.run, arguments.samples[0])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for num_samples in arguments.samples:
            run = str(Path(arguments.run or temporary) / f"{num_samples}")
            for step in STEPS:
                rows.append(start_step(step, run, num_samples))
                print(f"{rows[-1]}", flush=True)
            stored = sum(file.stat().st_size for file in Path(run).rglob("*.parquet"))
            print(f"{stored / 2**20:,.0f} MB on disk", flush=True)
            result = {"benchmark": "replay", "references": Recorded().source, **environment(), "rows": rows}
            if arguments.output:
                Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")
            if arguments.figure:
                draw_figure(rows, arguments.figure)
    print_table(rows)


if __name__ == "__main__":
    main()
