"""Verdicts of `math` beside published ones: 5,276 solutions of GSM8K by four models, published by OpenAI.

    git clone --depth 1 https://github.com/openai/grade-school-math
    python benchmarks/published_verdicts.py grade-school-math/grade_school_math/data/example_model_solutions.jsonl \\
        --output benchmarks/results/published-verdicts.json

The solutions end in a line "A: 18". No other data set marks answers so, and it is written as GSM8K's own mark,
"#### 18". Solutions of at most 300 characters are also graded as they are: `math` then reads the whole text.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from measure import environment

from dco_trl.grading import BulkGrader
from dco_trl.grading.extract import MAX_DIRECT_CHARS

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def compare(completions: list[str], references: list[str], published: list[bool]) -> dict[str, int]:
    """How many verdicts are equal, how many differ, and how many solutions have no answer that can be read."""
    with BulkGrader("math") as grader:
        verdicts = grader.grade(None, completions, references, progress=False)
    pairs = zip(verdicts, published, strict=True)
    found = Counter("equal" if bool(verdict.score) == right else "different" for verdict, right in pairs)
    unparsed = sum(verdict.status == "unparsed" for verdict in verdicts)
    return {"solutions": len(verdicts), "equal": found["equal"], "different": found["different"], "unparsed": unparsed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("solutions", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.solutions.read_text().splitlines()]
    found = [
        (row[model]["solution"], row["ground_truth"].rpartition("A: ")[2], row[model]["is_correct"])
        for row in rows
        for model in MODELS
    ]
    results = {"environment": environment()}
    results["marked"] = compare(
        *map(list, zip(*((t.replace("\nA: ", "\n#### "), *of) for t, *of in found), strict=True))
    )
    short = [entry for entry in found if len(entry[0]) <= MAX_DIRECT_CHARS]
    results["unmarked"] = compare(*map(list, zip(*short, strict=True)))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    for name in ("marked", "unmarked"):
        print(f"{name}: {results[name]}")


if __name__ == "__main__":
    main()
