"""The report as one HTML file that needs no network and whose policy forbids any.

Everything that comes from a model, a data set or a manifest is text. The template escapes it, no character in the
embedded JSON can end the script element, and `page.js` puts it into the page through `textContent`. Only scripts with
a known hash run, so even markup that slipped through would not.

For each problem, the page holds enough to search and sort, and as much text as fits.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps

from ..runs.results import ProblemResult, RunResult
from .summary import Group, Summary
from .tables import PAIRED_TITLE, TITLE, flat, never_solved_text, notes, plot_suffix, tables

# The most bytes for the details of all problems; the rest of the page is small.
DETAIL_BYTES = 12_000_000
# Characters of a prompt to recognise and search a problem by; the details hold more.
EXCERPT = 240


@dataclass(frozen=True)
class Caps:
    """How much of each problem the page shows: numbers of answers and raw samples, and characters of each text."""

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


# From generous to terse; the first that stays under DETAIL_BYTES is used.
CAPS = (
    Caps(100, 300, 6, 4000, 8000),
    Caps(50, 200, 6, 2000, 4000),
    Caps(25, 150, 4, 1000, 2000),
    Caps(12, 100, 2, 600, 1000),
    Caps(6, 80, 2, 200, 400),
    Caps(3, 60, 0, 0, 200),
)


def render(summary: Summary, results: Sequence[RunResult], pictures: Mapping[str, str]) -> str:
    """Return the page of a report, to be saved as UTF-8.

    Args:
        summary: The numbers.
        results: What was summarised.
        pictures: SVG elements, by the names of their files.
    """
    code = _asset("page.js")
    code_hash = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    caps, shown = details(summary, results)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_asset("page.html")).render(
        policy=f"default-src 'none'; script-src 'sha256-{code_hash}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=TITLE,
        paired_title=PAIRED_TITLE,
        names=", ".join(run.name for run in summary.runs),
        summary=summary,
        css=_asset("page.css"),
        code=code,
        groups=[
            {
                "runs": summary.runs_of(group),
                "tables": tables(summary, group),
                "bold": clear_cells(group),
                "notes": notes(summary, summary.runs_of(group)),
                "pictures": {
                    stem: pictures[stem + plot_suffix(summary, index)]
                    for stem in ("coverage", "confidence", "success")
                },
            }
            for index, group in enumerate(summary.groups)
        ],
        caps=caps,
        data=script_json({"groups": [_group_data(summary, results, group) for group in summary.groups]}),
        details=shown,
        flat=flat,
        never_solved=never_solved_text,
    )


def _asset(name: str) -> str:
    # An HTML parser turns \r\n into \n before it hashes a script.
    return (files(__package__) / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def clear_cells(group: Group) -> set[tuple[str, int]]:
    """Row name and column of the paired differences whose interval excludes 0."""
    return {
        (f"pass@{row.k}", column)
        for column, entry in enumerate(group.comparisons, start=1)
        for row in entry.pass_at_k
        if row.low > 0 or row.high < 0
    }


def script_json(value: Any) -> str:
    """Return JSON that can neither end a script element nor open a comment inside it."""
    return htmlsafe_json_dumps(value, allow_nan=False, separators=(",", ":"))


def _group_data(summary: Summary, results: Sequence[RunResult], group: Group) -> dict[str, Any]:
    """The table of problems of a group, without details."""
    runs = summary.runs_of(group)
    by_id = [{problem.problem_id: problem for problem in run.problems} for run in runs]
    return {
        "title": ", ".join(run.name for run in runs),
        "runs": [run.name for run in runs],
        "problems": [
            {
                "id": problem.problem_id,
                "prompt": problem.prompt[:EXCERPT],
                "reference": problem.reference[:EXCERPT],
                "runs": [
                    {
                        "n": counts.num_samples,
                        "c": counts.num_correct,
                        "cut": counts.num_truncated,
                        "distinct": counts.num_distinct,
                        "top": -1 if counts.top_answer is None else counts.confidence,
                        "top_correct": counts.top_correct,
                    }
                    for counts in (run[problem.problem_id] for run in by_id)
                ],
            }
            for problem in results[group.runs[0]].problems
        ],
    }


def details(summary: Summary, results: Sequence[RunResult]) -> tuple[Caps, list[tuple[str, str]]]:
    """Return the caps that fit, and the details of every problem under them, by the ids of their elements."""
    problems: dict[str, list[ProblemResult]] = {}
    for group_index, group in enumerate(summary.groups):
        runs = [results[index].problems for index in group.runs]
        by_id = [{problem.problem_id: problem for problem in run} for run in runs]
        for index, problem in enumerate(runs[0]):
            problems[f"detail-{group_index}-{index}"] = [run[problem.problem_id] for run in by_id]
    for caps in CAPS:
        shown: list[tuple[str, str]] = []
        weight = 0
        for name, of_runs in problems.items():
            detail = script_json(_detail(of_runs, caps))
            weight += len(detail)
            if weight > DETAIL_BYTES:
                break
            shown.append((name, detail))
        else:
            break
    return caps, shown


def _detail(problems: list[ProblemResult], caps: Caps) -> dict[str, Any]:
    return {
        "prompt": _cut(problems[0].prompt, caps.prompt_length),
        "reference": _cut(problems[0].reference, caps.prompt_length),
        "runs": [
            {
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
                    for index, text, correct in _examples(problem)[: caps.samples]
                ],
            }
            for problem in problems
        ],
    }


def _examples(problem: ProblemResult) -> list[tuple[int, str, bool]]:
    """Right and wrong samples in turn, so that a cap keeps some of each."""
    kinds = [[example for example in problem.examples if example[2] is correct] for correct in (True, False)]
    return [kind[i] for i in range(len(problem.examples)) for kind in kinds if i < len(kind)]


def _cut(text: str, length: int) -> list[Any]:
    """The beginning of a text, and the number of characters left out."""
    return [text[:length], max(0, len(text) - length)]
