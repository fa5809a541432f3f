"""The report as one HTML file that needs no network, and whose policy forbids it one.

Everything that comes from a model, a data set or a manifest is text: in the markup it is escaped here, and in the
embedded JSON no character can end the script element; `page.js` puts it into the page through `textContent`. Scripts
run by their hash alone, so markup that slipped through would still not run.
"""

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from ..runs.results import RunResult
from .page_data import details, group_data, script_json
from .summary import Group, RunSummary, Summary
from .tables import PAIRED_TITLE, TITLE, TextTable, flat, group_title, never_solved_text, notes, plot_suffix, tables


def render(summary: Summary, results: Sequence[RunResult], pictures: Mapping[str, str]) -> str:
    """Return the page of a report, to be saved as UTF-8.

    Args:
        summary: The numbers.
        results: What was summarised.
        pictures: SVG elements, by the names of their files.
    """
    caps, scripts = details(summary, results)
    code = _asset("page.js")
    names = ", ".join(run.name for run in summary.runs)
    return Template(_asset("page.html")).substitute(
        csp=f"default-src 'none'; script-src {_hash(code)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=escape(f"{TITLE}: {names}"),
        heading=escape(TITLE),
        subtitle=escape(f"{names}. Written on {summary.created} by dco-trl {summary.dco_trl}."),
        css=_asset("page.css"),
        warnings=_warnings(summary.warnings),
        groups="\n".join(_group_section(summary, index, pictures) for index in range(len(summary.groups))),
        caps=escape(str(caps)),
        runs="\n".join(_run_section(run) for run in summary.runs),
        data=script_json({"groups": [group_data(summary, results, group) for group in summary.groups]}),
        code=code,
        details="\n".join(scripts),
    )


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


def _group_section(summary: Summary, index: int, pictures: Mapping[str, str]) -> str:
    group, suffix = summary.groups[index], plot_suffix(summary, index)
    runs = summary.runs_of(group)
    main, *others = tables(summary, group)
    parts = [
        f'<section aria-labelledby="group-{index}">',
        f'<h2 id="group-{index}">{escape(group_title(summary, group))}</h2>',
        "<p>pass@k: the chance that at least one of k samples of a problem is right, averaged over the problems.</p>",
        '<figure><div class="plot" role="img" aria-label="pass@k against k for each run; the table below has the '
        f'numbers">{pictures[f"coverage{suffix}"]}</div></figure>',
        f'<div class="tables"><div><h3>With intervals</h3>{_table(main)}</div>',
    ]
    for part in others:
        paired = part.title == PAIRED_TITLE
        parts.append(f"<div><h3>{escape(part.title)}</h3>{_table(part, _clear_cells(group) if paired else ())}")
        if paired:
            parts.append(
                '<p class="note">What makes a problem hard for both runs cancels, so this is sharper than comparing '
                "two intervals. Bold: the interval leaves out 0.</p>"
            )
        parts.append("</div>")
    parts += ["</div>", *(f'<p class="note">{escape(note)}</p>' for note in notes(summary, runs))]
    parts += ["<h3>How sure, and how often right</h3>", '<div class="plots">']
    right = "; ".join(
        f"{run.name}: {sum(problem.top_correct for problem in run.problems):,} of {run.num_problems:,}" for run in runs
    )
    never = "; ".join(f"{run.name}: {never_solved_text(run)}" for run in runs)
    parts.append(
        '<figure><div class="plot" role="img" aria-label="Histogram of the share of the most frequent answer">'
        f"{pictures[f'confidence{suffix}']}</div><figcaption>Problems by the share of their samples that give the "
        f"most frequent answer. It is right (upwards) for {escape(right)} problems. Heights are square roots, so that "
        "few are seen beside many.</figcaption></figure>"
        '<figure><div class="plot" role="img" aria-label="Histogram of success rates">'
        f"{pictures[f'success{suffix}']}</div><figcaption>Problems by the share of their samples that are right; the "
        "bins halve, because a problem with success rate 1/k takes about k samples. Never solved: "
        f"{escape(never)}.</figcaption></figure>"
    )
    return "\n".join([*parts, "</div>", "</section>"])


def _clear_cells(group: Group) -> set[tuple[str, int]]:
    return {
        (f"pass@{row.k}", column + 1)
        for column, entry in enumerate(group.comparisons)
        for row in entry.pass_at_k
        if row.low > 0 or row.high < 0
    }


def _table(table: TextTable, clear: Collection[tuple[str, int]] = ()) -> str:
    def cell(row: list[str], column: int) -> str:
        value, bracket, interval = row[column].partition(" [")
        text = escape(value) + (f' <span class="interval">[{escape(interval)}</span>' if bracket else "")
        return f'<td class="number{" clear" if (row[0], column) in clear else ""}">{text}</td>'

    header = "".join(
        f'<th scope="col" class="number">{escape(name)}</th>' if name else "<td></td>" for name in table.header
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(cell(row, i) for i in range(1, len(row)))}</tr>'
        for row in table.rows
    )
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
        f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _run_section(run: RunSummary) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td class="answer">{escape(value)}</td></tr>'
        for key, value in [("grader", run.grader), *flat(run.manifest)]
    )
    return (
        f"<details><summary>{escape(run.name)}: what was sampled, and how</summary>"
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )
