"""What the page holds of each problem, as JSON: enough to search and to sort, and as much text as fits."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..runs.results import ProblemResult, RunResult
from .summary import Group, ProblemSummary, Summary

# The details of all problems; the rest of the page is small beside them.
DETAIL_BYTES = 12_000_000
# Enough of a prompt to recognise and to search a problem by; the whole of it is in the details.
EXCERPT = 240


@dataclass(frozen=True)
class Caps:
    """How much of each problem the page shows: distinct answers, their characters, raw samples, their characters."""

    answers: int
    answer_length: int
    samples: int
    sample_length: int
    prompt_length: int

    def __str__(self) -> str:
        return (
            f"To keep this file small, each problem shows at most {self.answers} distinct answers of at most "
            f"{self.answer_length} characters and {self.samples} raw samples of at most {self.sample_length:,} "
            "characters per run. What is left out is counted. The counts are complete; the run folder holds every "
            "sample."
        )


# From generous to terse; the first under DETAIL_BYTES is taken. The last shows counts and one answer.
CAPS = (
    Caps(100, 300, 6, 4000, 8000),
    Caps(50, 200, 6, 2000, 4000),
    Caps(25, 150, 4, 1000, 2000),
    Caps(12, 100, 2, 600, 1000),
    Caps(6, 80, 2, 200, 400),
    Caps(3, 60, 0, 0, 200),
)


def script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: nothing in it can end the element or open a comment.

    Examples:
        >>> script_json("</script><!--")
        '"\\u003c/script\\u003e\\u003c!--"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates are no UTF-8; the two separators and the byte-order mark are trouble in scripts and editors.
    return re.sub("[<>&\u2028\u2029\ufeff\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def group_data(summary: Summary, results: Sequence[RunResult], group: Group) -> dict[str, Any]:
    """Return a group's table of problems without their details."""
    runs = summary.runs_of(group)
    by_id = [{problem.problem_id: problem for problem in run.problems} for run in runs]
    return {
        "title": ", ".join(run.name for run in runs),
        "runs": [run.name for run in runs],
        "problems": [
            {
                "id": problem.problem_id,
                "prompt": _cut(problem.prompt, EXCERPT)[0],
                "reference": _cut(problem.reference, EXCERPT)[0],
                "runs": [_numbers(run[problem.problem_id]) for run in by_id],
            }
            for problem in results[group.runs[0]].problems
        ],
    }


def _numbers(problem: ProblemSummary) -> dict[str, Any]:
    return {
        "n": problem.num_samples,
        "c": problem.num_correct,
        "cut": problem.num_truncated,
        "top": -1 if problem.top_answer is None else problem.confidence,
        "top_correct": problem.top_correct,
    }


def details(summary: Summary, results: Sequence[RunResult]) -> tuple[Caps, list[str]]:
    """Return the details of every problem as script elements, as much of them as the page may weigh."""
    scripts: list[str] = []
    caps = CAPS[-1]
    for caps in CAPS:
        scripts, weight = [], 0
        for group_index, group in enumerate(summary.groups):
            runs = [results[index] for index in group.runs]
            by_id = [{problem.problem_id: problem for problem in run.problems} for run in runs]
            for index, problem in enumerate(runs[0].problems):
                detail = script_json(_detail([run[problem.problem_id] for run in by_id], caps))
                script = f'<script type="application/json" id="detail-{group_index}-{index}">{detail}</script>'
                weight += len(script.encode())
                if weight > DETAIL_BYTES:
                    break
                scripts.append(script)
        if weight <= DETAIL_BYTES:
            break
    return caps, scripts


def _detail(problems: list[ProblemResult], caps: Caps) -> dict[str, Any]:
    return {
        "prompt": _cut(problems[0].prompt, caps.prompt_length),
        "reference": _cut(problems[0].reference, caps.prompt_length),
        "runs": [
            {
                "num_distinct": len({answer.answer for answer in problem.answers}),
                "answers": [
                    [*_cut(answer.answer, caps.answer_length), answer.count, answer.correct, answer.status]
                    for answer in problem.answers[: caps.answers]
                ],
                "left_out": [
                    max(0, len(problem.answers) - caps.answers),
                    sum(answer.count for answer in problem.answers[caps.answers :]),
                ],
                "samples": [
                    [index, _cut(text, caps.sample_length), correct]
                    for index, text, correct in _examples(problem, caps)
                ],
            }
            for problem in problems
        ],
    }


def _examples(problem: ProblemResult, caps: Caps) -> list[tuple[int, str, bool]]:
    """Right and wrong samples in turn, so that a cap leaves some of each."""
    kinds = [[example for example in problem.examples if example[2] is correct] for correct in (True, False)]
    longest = max(map(len, kinds))
    mixed = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
    return mixed[: caps.samples]


def _cut(text: str, length: int) -> list[Any]:
    """The beginning of a text, and how many characters are left out."""
    return [text[:length], max(0, len(text) - length)]
