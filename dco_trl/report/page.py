"""The report as one HTML file that needs no network, and whose policy forbids it one.

Everything that a model, a data set or a manifest said is text: in the markup it is escaped here, and in the embedded
JSON no character can end the script element; `page.js` puts it into the page through `textContent`. Scripts run by
their hash alone, so markup that slipped through would still not run.
"""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from ..runs.results import ProblemResult, RunResult
from . import tables
from .plots import count_success_rates

# The page weighs what plotly does (under 5 MB) and the details; together they stay under 20 MB.
DETAIL_BYTES = 12_000_000
CONFIDENCE_BINS = 20
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


# From generous to terse; the first under DETAIL_BYTES is taken. The last shows counts and one answer.
CAPS = (
    Caps(100, 300, 6, 4000, 8000),
    Caps(50, 200, 6, 2000, 4000),
    Caps(25, 150, 4, 1000, 2000),
    Caps(12, 100, 2, 600, 1000),
    Caps(6, 80, 2, 200, 400),
    Caps(3, 60, 0, 0, 200),
)


def render(report: dict[str, Any], results: Sequence[RunResult]) -> str:
    """Return the page of a report.

    Args:
        report: What `summarise` returned for these results.
        results: The runs, in the same order.

    Returns:
        One HTML document, to be saved as UTF-8.
    """
    from plotly.offline import get_plotlyjs

    caps, details = _details(report, results)
    page_js, plotly_js, draw = _asset("page.js"), get_plotlyjs(), "drawPlots();"
    for name, script in (("page.js", page_js), ("plotly", plotly_js)):
        if "</script" in script.lower() or "<!--" in script:
            raise RuntimeError(
                f"{name} cannot be put inside a page: it holds '</script' or '<!--'; use another version"
            )
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, (page_js, plotly_js, draw)))}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    names = [run["name"] for run in report["runs"]]
    return Template(_asset("page.html")).substitute(
        csp=policy,
        title=escape(f"{tables.title(report)}: {', '.join(names)}"),
        heading=escape(tables.title(report)),
        subtitle=escape(f"{', '.join(names)}. Written on {report['created']} by dco-trl {report['dco_trl']}."),
        css=_asset("page.css"),
        warnings=_warnings(report["warnings"]),
        groups="\n".join(_group_section(report, group, index) for index, group in enumerate(report["groups"])),
        caps=escape(_caps_text(caps)),
        runs="\n".join(_run_section(run) for run in report["runs"]),
        footer=escape(
            "This file is complete: it fetches nothing and sends nothing. Plots by plotly.js (MIT licence)."
        ),
        data=script_json({"groups": [_group_data(report, results, group) for group in report["groups"]]}),
        page_js=page_js,
        plotly_js=plotly_js,
        details="\n".join(details),
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


def _asset(name: str) -> str:
    # A parser turns \r\n into \n, and a hash is taken of what it sees.
    return (files(__package__) / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="notice" role="note" aria-label="Warnings"><ul>{items}</ul></div>'


def _group_section(report: dict[str, Any], group: dict[str, Any], index: int) -> str:
    runs = [report["runs"][run] for run in group["runs"]]
    parts = [
        f'<section aria-labelledby="group-{index}">',
        f'<h2 id="group-{index}">{escape(tables.group_title(report, group))}</h2>',
        "<p>pass@k: the chance that at least one of k samples of a problem is right, averaged over the problems.</p>",
        f'<figure><div class="plot" id="coverage-{index}" role="img" '
        'aria-label="pass@k against k for each run; the table below has the numbers"></div></figure>',
        f'<div class="tables"><div><h3>With intervals</h3>{_table(*tables.pass_at_k_table(group, runs))}</div>',
    ]
    if group["comparisons"]:
        parts += [
            f"<div><h3>{tables.PAIRED_TITLE}</h3>",
            _table(*tables.comparison_table(group), clear=_clear_cells(group)),
            '<p class="note">What makes a problem hard for both runs cancels, so this is sharper than comparing two '
            "intervals. Bold: the interval leaves out 0.</p></div>",
        ]
    parts += ["</div>", *(f'<p class="note">{escape(note)}</p>' for note in tables.notes(report, runs))]
    parts += ["<h3>How sure, and how often right</h3>", '<div class="plots">']
    for number, run in enumerate(runs):
        right = sum(problem["top_correct"] for problem in run["problems"])
        parts.append(
            f'<figure><div class="plot" id="confidence-{index}-{number}" role="img" '
            f'aria-label="Histogram of the share of the most frequent answer, {escape(run["name"])}"></div>'
            f"<figcaption>{escape(run['name'])}: share of a problem's samples that give its most frequent answer, "
            f"which is right for {right:,} of {run['num_problems']:,} problems.</figcaption></figure>"
        )
    never = "; ".join(f"{run['name']}: {tables.never_solved_text(run)}" for run in runs)
    parts.append(
        f'<figure><div class="plot" id="success-{index}" role="img" aria-label="Histogram of success rates"></div>'
        f"<figcaption>Problems by the share of their samples that are right; the bins halve, because a problem with "
        f"success rate 1/k takes about k samples. Never solved: {escape(never)}.</figcaption></figure>"
    )
    return "\n".join([*parts, "</div>", "</section>"])


def _clear_cells(group: dict[str, Any]) -> set[tuple[str, int]]:
    return {
        (f"pass@{row['k']}", column + 1)
        for column, entry in enumerate(group["comparisons"])
        for row in entry["pass_at_k"]
        if row["low"] > 0 or row["high"] < 0
    }


def _table(header: list[str], rows: list[list[str]], clear: Collection[tuple[str, int]] = ()) -> str:
    def cell(row: list[str], column: int) -> str:
        value, bracket, interval = row[column].partition(" [")
        text = escape(value) + (f' <span class="interval">[{escape(interval)}</span>' if bracket else "")
        return f'<td class="number{" clear" if (row[0], column) in clear else ""}">{text}</td>'

    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' if name else "<td></td>" for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(cell(row, i) for i in range(1, len(row)))}</tr>'
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _run_section(run: dict[str, Any]) -> str:
    pairs = [("grader", run["grader"]), *tables.flat(run["manifest"])]
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td class="answer">{escape(value)}</td></tr>' for key, value in pairs
    )
    return (
        f"<details><summary>{escape(run['name'])}: what was sampled, and how</summary>"
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )


def _group_data(report: dict[str, Any], results: Sequence[RunResult], group: dict[str, Any]) -> dict[str, Any]:
    runs = [report["runs"][index] for index in group["runs"]]
    by_id = [{problem["problem_id"]: problem for problem in run["problems"]} for run in runs]
    smallest = 1 / max(run["num_samples"]["max"] for run in runs)
    labels: list[str] = []
    data = []
    for run in runs:
        labels, counts = count_success_rates([_share(p, "num_correct") for p in run["problems"]], smallest)
        confidence, correct = confidences(run)
        right, wrong = (
            np.histogram(confidence[mask], CONFIDENCE_BINS, range=(0, 1))[0].tolist() for mask in (correct, ~correct)
        )
        data.append(
            {
                "name": run["name"],
                "curve": {key: [entry[key] for entry in run["curve"]] for key in ("k", "estimate", "low", "high")},
                "extrapolated": {
                    key: [entry[key] for entry in run["extrapolation"]["curve"]] for key in ("k", "estimate")
                },
                "confidence": {"right": right, "wrong": wrong},
                "success": counts.tolist(),
            }
        )
    return {
        "title": ", ".join(run["name"] for run in runs),
        "k": group["k"],
        "success_labels": labels,
        "runs": data,
        "problems": [
            {
                "id": problem.problem_id,
                "prompt": _cut(problem.prompt, EXCERPT)[0],
                "reference": _cut(problem.reference, EXCERPT)[0],
                "runs": [_problem_numbers(run[problem.problem_id]) for run in by_id],
            }
            for problem in results[group["runs"][0]].problems
        ],
    }


def confidences(run: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return each problem's share of the most frequent answer, and whether that answer is right."""
    confidence = np.array([_share(problem, "top_count") for problem in run["problems"]])
    return confidence, np.array([problem["top_correct"] for problem in run["problems"]])


def _share(problem: dict[str, Any], key: str) -> float:
    return problem[key] / problem["num_samples"]


def _problem_numbers(problem: dict[str, Any]) -> dict[str, Any]:
    return {
        "n": problem["num_samples"],
        "c": problem["num_correct"],
        "cut": problem["num_truncated"],
        "top": _share(problem, "top_count") if problem["top_answer"] is not None else -1,
        "top_correct": problem["top_correct"],
    }


def _details(report: dict[str, Any], results: Sequence[RunResult]) -> tuple[Caps, list[str]]:
    """The details of every problem as script elements, as much of them as the page may weigh."""
    scripts: list[str] = []
    caps = CAPS[-1]
    for caps in CAPS:
        scripts, weight = [], 0
        for group_index, group in enumerate(report["groups"]):
            runs = [results[index] for index in group["runs"]]
            by_id = [{problem.problem_id: problem for problem in run.problems} for run in runs]
            for index, problem in enumerate(runs[0].problems):
                detail = _detail([run[problem.problem_id] for run in by_id], caps)
                script = (
                    f'<script type="application/json" id="detail-{group_index}-{index}">{script_json(detail)}</script>'
                )
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
                "num_distinct": len(problem.answers),
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


def _caps_text(caps: Caps) -> str:
    return (
        f"To keep this file small, each problem shows at most {caps.answers} distinct answers of at most "
        f"{caps.answer_length} characters and {caps.samples} raw samples of at most {caps.sample_length:,} characters "
        "a run, and says where something is left out. The counts are complete; the run folder holds every sample."
    )
