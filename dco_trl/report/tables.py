"""The tables of a report, for a terminal (rich) and for Markdown."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .summary import ArmSummary, Difference, Estimate, Group, RunSummary, Summary

TITLE = "Coverage report"
PAIRED_TITLE = "Paired differences in percentage points, on the same problems"


@dataclass(frozen=True)
class TextTable:
    """A table of text; the first cell of each row names it."""

    title: str
    header: list[str]
    rows: list[list[str]]


def percent(share: float) -> str:
    """Return a share as text, with more digits if it is tiny: "12.3 %", "0.024 %"."""
    return f"{100 * share:.3f} %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def with_interval(entry: Estimate) -> str:
    """Return an estimate and its interval as text: "12.3 % [10.1, 14.7]", with * if the interval is too short."""
    value, low, high = 100 * entry.estimate, 100 * entry.low, 100 * entry.high
    digits = 3 if 0 < value < 0.1 else 1
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]{'' if entry.reliable else '*'}"


def difference(entry: Difference) -> str:
    """Return a difference in points and its interval: "-3.1 [-5.0, -1.2]", with * if the interval is too short."""
    mark = "" if entry.reliable else "*"
    return f"{100 * entry.difference:+.1f} [{100 * entry.low:+.1f}, {100 * entry.high:+.1f}]{mark}"


def tables(summary: Summary, group: Group) -> list[TextTable]:
    """Return the tables of a group: the main one, paired differences, and arms of schedules."""
    runs = summary.runs_of(group)
    title = "pass@k" if len(summary.groups) == 1 else "pass@k: " + ", ".join(run.name for run in runs)
    found = [TextTable(title, ["", *(run.name for run in runs)], _main_rows(group, runs))]
    if group.comparisons:
        header = ["", *(f"{entry.run} - {entry.baseline}" for entry in group.comparisons)]
        ks = sorted({row.k for entry in group.comparisons for row in entry.pass_at_k})
        rows = [[f"pass@{k}", *(_cell(entry.pass_at_k, k, difference) for entry in group.comparisons)] for k in ks]
        found.append(TextTable(PAIRED_TITLE, header, rows))
    for run in runs:
        if run.arms:
            ks = [k for k in group.k if any(entry.k == k for arm in run.arms for entry in arm.curve)]
            header = ["", "samples per problem", *(f"pass@{k}" for k in ks)]
            rows = [
                [arm.name, _samples(arm), *(_cell(arm.curve, k, lambda entry: percent(entry.estimate)) for k in ks)]
                for arm in run.arms
            ]
            found.append(TextTable(f"{run.name}: each arm of the schedule, alone", header, rows))
    return found


def _main_rows(group: Group, runs: list[RunSummary]) -> list[list[str]]:
    rows = [[f"pass@{k}", *(_cell(run.pass_at_k, k, with_interval) for run in runs)] for k in group.k]
    for k in group.majority_k:
        rows.append([f"majority@{k}", *(_cell(run.majority_at_k, k, with_interval) for run in runs)])
    for m, k in sorted({(entry.num_required, entry.k) for run in runs for entry in run.at_least_m_of_k}):
        rows.append([f"at least {m} of {k}", *(_cell(run.at_least_m_of_k, k, with_interval) for run in runs)])
    rows.append(["never solved", *map(never_solved_text, runs)])
    rows.append(["problems", *(f"{run.num_problems:,}" for run in runs)])
    rows.append(["samples per problem", *map(_samples, runs)])
    for key, name in (
        ("truncated", "stopped at the length limit"),
        ("unparsed", "no answer, or none readable"),
        ("timeout", "grader timed out"),
        ("error", "grader failed"),
    ):
        if any(run.samples[key] for run in runs):
            shares = (run.samples[key] / run.samples["total"] for run in runs)
            rows.append([name, *(f"{run.samples[key]:,} ({percent(s)})" for run, s in zip(runs, shares, strict=True))])
    return rows


def print_report(summary: Summary, console: Console | None = None) -> None:
    """Print the tables of a report in the terminal.

    Args:
        summary: What `summarise` returned, or the `summary` of what `write_report` returned.
        console: Where to print; by default a console on standard output.

    Relations:
        `write_report` writes the same tables to `report.md`.
    """
    # Names and warnings come from files, so they are not markup and have no emoji codes.
    console = console or Console(highlight=False, emoji=False)
    for warning in summary.warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")
    for group in summary.groups:
        for part in tables(summary, group):
            table = Table(title=escape(part.title), title_justify="left", title_style="bold")
            for index, name in enumerate(part.header):
                table.add_column(escape(name), justify="right" if index else "left", overflow="fold")
            for row in part.rows:
                table.add_row(*map(escape, row))
            console.print(table)
    for note in notes(summary, summary.runs):
        console.print(escape(note), style="dim")


def markdown(summary: Summary) -> str:
    """Return the report as Markdown, with pictures by relative links."""
    lines = [f"# {TITLE}", ""]
    for warning in summary.warnings:
        lines += [f"> **Warning:** {_markdown_text(warning)}", ""]
    for index, group in enumerate(summary.groups):
        main, *others = tables(summary, group)
        suffix = plot_suffix(summary, index)
        lines += [f"## {_markdown_text(main.title)}", "", *_markdown_table(main)]
        lines += [f"![Coverage against k](coverage{suffix}.svg)", ""]
        for part in others:
            lines += [f"### {_markdown_text(part.title)}", "", *_markdown_table(part)]
        lines += [f"![Share of the most frequent answer](confidence{suffix}.svg)", ""]
        lines += [f"![Success rates of the problems](success{suffix}.svg)", ""]
    lines += [
        "## Notes",
        "",
        *(f"- {_markdown_text(note)}" for note in notes(summary, summary.runs)),
        "",
        "## Runs",
        "",
    ]
    for run in summary.runs:
        lines += [f"### {_markdown_text(run.name)}", "", f"- grader: {_markdown_text(run.grader)}"]
        lines += [f"- {_markdown_text(key)}: {_markdown_text(value)}" for key, value in flat(run.manifest)]
        lines.append("")
    return "\n".join(lines)


def plot_suffix(summary: Summary, group_index: int) -> str:
    """Return the suffix of a group's pictures, which is empty if there is one group."""
    return "" if len(summary.groups) == 1 else f"-{group_index + 1}"


def notes(summary: Summary, runs: list[RunSummary]) -> list[str]:
    """Return notes on how to read the numbers of these runs, and on what was left out and why."""
    lines = [summary.interval_method]
    for run in runs:
        if run.arms:
            lines.append(
                f"{run.name}: pass@k of the first k attempts along its schedule of {len(run.arms)} arms. There is no "
                "majority@k, because the arms' answers differ."
            )
        if run.left_out:
            first = run.left_out[0]
            names = ", ".join(f"pass@{entry.k}" for entry in run.left_out)
            lines.append(
                f"{run.name}: {names} left out, because not every problem has that many samples "
                f"(fewest: {first.fewest:,}, problem {first.problem_id!r})."
            )
    return lines


def flat(manifest: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested mapping as (dotted key, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, value in manifest.items():
        nested = isinstance(value, dict) and value
        pairs += flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", str(value))]
    return pairs


def never_solved_text(run: RunSummary) -> str:
    """Return the number and share of problems that no sample solved."""
    return f"{run.never_solved['count']:,} ({percent(run.never_solved['share'])})"


def _cell(entries: Sequence[Any], k: int, text: Callable[[Any], str]) -> str:
    return next((text(entry) for entry in entries if entry.k == k), "–")


def _samples(run: RunSummary | ArmSummary) -> str:
    low, high = run.num_samples["min"], run.num_samples["max"]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _markdown_text(text: str) -> str:
    return re.sub(r"[\r\n]", " ", re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", text))


def _markdown_table(table: TextTable) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(map(_markdown_text, cells)) + " |"

    return [line(table.header), "|:---|" + "---:|" * (len(table.header) - 1), *map(line, table.rows), ""]
