"""Grading: the time for 500 problems x 4,096 samples, and the ratio to one math-verify call after another.

    python benchmarks/grading.py --output grading.json
    python benchmarks/grading.py --run runs/ce      # answers and their counts from a run graded with `math`

Without a run, the samples look generated but are made: the answers of a problem follow a Zipf law, the r-th most
frequent of 4,000 with a share proportional to r^-s, s uniform in [1.1, 2.0] for each problem (the most frequent answer
then has a share between 0.17 and 0.61); the reference is at a rank drawn from 1 to 100; an answer that is wrong is the
reference with its digits drawn anew (of the same form, as a model's mistakes mostly are), and one in ten is the
reference of another problem of MATH. References are MATH-500's where the data is there (DCO_TRL_DATA names its
folder), else made in the same proportions. Half of the problems' samples are bare answers, half end in a box.

The ratio is paired and interleaved: blocks of samples, drawn uniformly from all, go to
`verify(parse(reference), parse(completion))` one after another (verdicts that differ are counted where a rule settles
them, and end the benchmark elsewhere); between the blocks, whole problems are graded by a new
`BulkGrader` without a cache on disk.
"""

import argparse
import json
import logging
import os
import random
import re
import resource
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import environment, ratio_summary

from dco_trl.grading import BulkGrader, extract_answer
from dco_trl.grading.math_verdict import differ_in_size, math_verify_parse
from dco_trl.grading.rules import settle

ZIPF_ANSWERS, ZIPF_LOW, ZIPF_HIGH, REFERENCE_RANKS = 4_000, 1.1, 2.0, 100
_DIGITS = re.compile(r"\d+")


def read_references(num_problems: int, rng: random.Random) -> tuple[list[str], list[str], str]:
    """References, answers to take for wrong ones, and where they come from."""
    data = Path(os.environ.get("DCO_TRL_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data") / "math"
    if (data / "test.jsonl").exists():
        test, train = (
            [json.loads(line)["answer"] for line in (data / name).open()] for name in ("test.jsonl", "train.jsonl")
        )
        return [test[i % len(test)] for i in range(num_problems)], [a for a in train if a], "MATH-500"

    def make() -> str:
        a, b, c = (rng.randrange(1, 60) for _ in range(3))
        forms = [f"\\frac{{{a}}}{{{b}}}", f"{a}\\sqrt{{{b}}}", f"{a}x+{b}", f"\\left({a},{b}\\right)", f"{a}-{b}i"]
        return str(a * c) if rng.random() < 0.62 else rng.choice(forms)

    return [make() for _ in range(num_problems)], [make() for _ in range(5_000)], "made, in MATH's proportions"


def make_answers(reference: str, others: list[str], rng: random.Random, count: int) -> list[str]:
    """`count` distinct wrong answers, or fewer where the reference has few digits to draw."""

    def redraw(match: re.Match) -> str:
        # Log-uniform up to a few times the size: small numbers are frequent.
        return str(int((3 * int(match[0][:9]) + 20) ** rng.random()) - 1)

    answers: dict[str, None] = {}
    for _ in range(3 * count):
        answer = rng.choice(others) if rng.random() < 0.1 else _DIGITS.sub(redraw, reference)
        if answer != reference:
            answers[answer] = None
        if len(answers) == count:
            break
    return list(answers)


def made_samples(num_problems: int, num_samples: int, seed: int) -> tuple[list[str], list[list[str]], str]:
    """References, and for each problem its samples' texts."""
    rng, draws = random.Random(seed), np.random.default_rng(seed)
    references, others, source = read_references(num_problems, rng)
    texts = []
    for i, reference in enumerate(references):
        answers = make_answers(reference, others, rng, ZIPF_ANSWERS - 1)
        answers.insert(rng.randrange(min(REFERENCE_RANKS, len(answers)) + 1), reference)
        weights = np.arange(1, len(answers) + 1) ** -rng.uniform(ZIPF_LOW, ZIPF_HIGH)
        chosen = draws.choice(len(answers), size=num_samples, p=weights / weights.sum())
        frame = "{}" if i % 2 else "Working it out step by step, we find that the result is $\\boxed{{{}}}$."
        texts.append([frame.format(answers[j]) for j in chosen])
    return references, texts, source


def run_samples(run: str, num_problems: int, num_samples: int, seed: int) -> tuple[list[str], list[list[str]], str]:
    """As `made_samples`, drawn with replacement from the answers of a run that was graded with `math`."""
    from dco_trl.runs.results import load_results

    draws = np.random.default_rng(seed)
    problems = load_results(run, "math").problems
    references, texts = [], []
    for i in range(num_problems):
        problem = problems[i % len(problems)]
        counts = np.array([answer.count for answer in problem.answers], dtype=float)
        chosen = draws.choice(len(counts), size=num_samples, p=counts / counts.sum())
        references.append(problem.reference)
        texts.append([f"\\boxed{{{problem.answers[j].answer}}}" if problem.answers[j].answer else "" for j in chosen])
    return references, texts, f"run of {len(problems)} problems x {problems[0].num_samples} samples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=4_096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=10, help="pairs of measurements for the ratio")
    parser.add_argument("--block-size", type=int, default=200, help="samples per block of math-verify alone")
    parser.add_argument("--run", help="run folder to take answers and counts from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)

    shape = (arguments.problems, arguments.samples, arguments.seed)
    references, texts, source = run_samples(arguments.run, *shape) if arguments.run else made_samples(*shape)
    distinct = [len(set(problem)) for problem in texts]
    top = [max(np.unique(problem, return_counts=True)[1]) / len(problem) for problem in texts]
    rng = random.Random(arguments.seed)

    from math_verify import parse, verify

    # Blocks of whole problems for ours, alternating with blocks of single calls: the same machine, the same minutes.
    order = rng.sample(range(len(texts)), len(texts))
    ours, theirs, scores = [], [], {}
    total_seconds, stats, corrected = 0.0, [], 0
    columns: list[tuple[pa.Array, pa.Array, list[int]]] = []
    for block in np.array_split(order, arguments.blocks):
        completions = pa.array([text for i in block for text in texts[i]])
        answers = pa.array([references[i] for i in block for _ in texts[i]])
        columns.append((completions, answers, block.tolist()))
    for completions, answers, block in columns:
        start = time.perf_counter()
        with BulkGrader("math", num_workers=arguments.workers) as grader:
            verdicts = grader.grade(None, completions, answers, progress=False)
        seconds = time.perf_counter() - start
        total_seconds += seconds
        ours.append(seconds / len(verdicts))
        stats.append(grader.stats)
        for i, problem in enumerate(block):
            for j, verdict in enumerate(verdicts[i * arguments.samples : (i + 1) * arguments.samples]):
                scores[problem, j] = verdict.score

        picked = [(rng.choice(block), rng.randrange(arguments.samples)) for _ in range(arguments.block_size)]
        start = time.perf_counter()
        alone = []
        for i, j in picked:
            text = texts[i][j] if "\\boxed" in texts[i][j] else f"\\boxed{{{texts[i][j]}}}"
            alone.append(verify(parse(f"\\boxed{{{references[i]}}}"), parse(text)))
        theirs.append((time.perf_counter() - start) / len(picked))
        for (i, j), right in zip(picked, alone, strict=True):
            score = scores[i, j]
            if score is not None and (score > 0.5) != right:
                answer = extract_answer(texts[i][j])
                parsed = math_verify_parse(references[i]), math_verify_parse(answer)
                if settle(references[i], answer) is None and not differ_in_size(*parsed):
                    raise SystemExit(
                        f"verdicts differ: {references[i]!r}, {texts[i][j]!r}: {score} here, {right} alone"
                    )
                corrected += 1
        scores.clear()
        print(
            f"{len(ours)}/{arguments.blocks}: {seconds:.1f} s for {len(verdicts)}; "
            f"{1e3 * theirs[-1]:.2f} ms per sample alone, {1e3 * ours[-1]:.4f} ms here",
            flush=True,
        )

    rows = sum(s.rows for s in stats)
    result = {
        "benchmark": "grading",
        "references": source,
        "samples": "from a run" if arguments.run else f"Zipf, s in [{ZIPF_LOW}, {ZIPF_HIGH}], {ZIPF_ANSWERS} answers",
        "problems": len(texts),
        "samples_a_problem": arguments.samples,
        "workers": arguments.workers,
        "distinct_texts_a_problem": dict(
            zip(("q10", "median", "q90"), np.quantile(distinct, [0.1, 0.5, 0.9]), strict=True)
        ),
        "top_share": dict(zip(("q10", "median", "q90"), np.quantile(top, [0.1, 0.5, 0.9]).round(3), strict=True)),
        "seconds": round(total_seconds, 1),
        "times_faster_than_alone": ratio_summary(theirs, ours),
        "alone_ms_a_sample": float(np.median(theirs) * 1e3),
        "verdicts_corrected_by_rules": corrected,
        "pairs_sent_to_math_verify": sum(s.computed for s in stats),
        "distinct_pairs": sum(s.distinct for s in stats),
        "shares": {
            name: sum(getattr(s, name) for s in stats) / rows for name in ("graded", "unparsed", "timeout", "error")
        },
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "worker_peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "math_verify": version("math-verify"),
        **environment(),
    }
    ratio = result["times_faster_than_alone"]
    print(
        f"\n| what | value |\n| --- | --- |\n"
        f"| samples | {len(texts)} problems x {arguments.samples} ({source}) |\n"
        f"| distinct texts per problem, median | {result['distinct_texts_a_problem']['median']:.0f} |\n"
        f"| grading, {arguments.workers} workers | {total_seconds:.0f} s |\n"
        f"| times faster than one after another | {ratio['median']:.0f} ({ratio['q25']:.0f} to {ratio['q75']:.0f}) |\n"
        f"| peak memory of this process, samples included | {result['peak_memory_mb']} MB |"
    )
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
