"""The report as text: tables for a terminal (rich) and for Markdown. Both read the dictionary of `summarise`."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Rows = list[list[str]]


def percent(share: float) -> str:
    """Return a share as text, with more digits where it is tiny: "12.3 %", "0.024 %"."""
    return f"{100 * share:.3f} %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def with_interval(entry: dict[str, Any]) -> str:
    """Return an estimate and its interval as text: "12.3 % [10.1, 14.7]", with * where the interval is too short."""
    value, low, high = (100 * entry[name] for name in ("estimate", "low", "high"))
    digits = 3 if 0 < value < 0.1 else 1
    mark = "" if entry.get("reliable", True) else "*"
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]{mark}"


def difference(entry: dict[str, Any]) -> str:
    """Return a difference in percentage points and its interval as text: "-3.1 [-5.0, -1.2]"."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * entry[name] for name in ("difference", "low", "high")))


def pass_at_k_table(group: dict[str, Any], runs: list[dict[str, Any]]) -> tuple[list[str], Rows]:
    """Return the header and the rows of a group's main table: one column a run."""
    header = ["", *(run["name"] for run in runs)]
    rows: Rows = []
    for k in group["k"]:
        rows.append([f"pass@{k}", *(_cell(run["pass_at_k"], k, with_interval) for run in runs)])
    for k in group["majority_k"]:
        rows.append([f"majority@{k}", *(_cell(run["majority_at_k"], k, with_interval) for run in runs)])
    rows.append(["never solved", *(never_solved_text(run) for run in runs)])
    for k in sorted({entry["k"] for run in runs for entry in run["extrapolation"]["pass_at_k"]}):
        cells = [
            _cell(run["extrapolation"]["pass_at_k"], k, lambda entry: f"~ {percent(entry['estimate'])}")
            for run in runs
        ]
        rows.append([f"pass@{k}, extrapolated", *cells])
    rows.append(["problems", *(f"{run['num_problems']:,}" for run in runs)])
    rows.append(["samples a problem", *(_samples(run) for run in runs)])
    for key, name in (
        ("truncated", "stopped at the length limit"),
        ("unparsed", "no answer, or none readable"),
        ("timeout", "grader timed out"),
        ("error", "grader failed"),
    ):
        if any(run["samples"][key] for run in runs):
            rows.append([name, *(_part(run["samples"][key], run["samples"]["total"]) for run in runs)])
    return header, rows


def comparison_table(group: dict[str, Any]) -> tuple[list[str], Rows]:
    """Return the header and the rows of the paired differences in a group: one column a comparison."""
    comparisons = group["comparisons"]
    header = ["", *(f"{entry['run']} - {entry['baseline']}" for entry in comparisons)]
    rows = []
    for k in sorted({row["k"] for entry in comparisons for row in entry["pass_at_k"]}):
        cells = [_cell(entry["pass_at_k"], k, difference) for entry in comparisons]
        rows.append([f"pass@{k}", *cells])
    return header, rows


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the tables of a report in the terminal.

    Args:
        report: What `write_report` or `summarise` returned.
        console: Where to print; by default a console on standard output.

    Examples:
        >>> print_report({"groups": [], "warnings": ["nothing to see"], "runs": []})
        warning: nothing to see

    Relations:
        `write_report` writes the same tables to `report.md`.
    """
    # Names and warnings come from files: no markup, no emoji codes in them.
    console = console or Console(highlight=False, emoji=False)
    for warning in report["warnings"]:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}")
    for group in report["groups"]:
        runs = [report["runs"][index] for index in group["runs"]]
        tables = [(group_title(report, group), *pass_at_k_table(group, runs))]
        if group["comparisons"]:
            tables.append((PAIRED_TITLE, *comparison_table(group)))
        for title, header, rows in tables:
            table = Table(title=escape(title), title_justify="left", title_style="bold")
            for index, name in enumerate(header):
                table.add_column(escape(name), justify="right" if index else "left", overflow="fold")
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
    for note in notes(report, report["runs"]):
        console.print(escape(note), style="dim")
    if "files" in report:
        console.print(f"look at {report['files']['html']}", markup=False, soft_wrap=True)


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown, with pictures by relative links."""
    lines = [f"# {title(report)}", ""]
    for warning in report["warnings"]:
        lines += [f"> **Warning:** {_markdown_text(warning)}", ""]
    for index, group in enumerate(report["groups"]):
        runs = [report["runs"][run] for run in group["runs"]]
        lines += [f"## {_markdown_text(group_title(report, group))}", ""]
        lines += _markdown_table(*pass_at_k_table(group, runs))
        suffix = plot_suffix(report, index)
        lines += [f"![Coverage against k](coverage{suffix}.svg)", ""]
        if group["comparisons"]:
            lines += [f"### {PAIRED_TITLE}", ""]
            lines += _markdown_table(*comparison_table(group))
        lines += [
            f"![Share of the most frequent answer](confidence{suffix}.svg)",
            "",
            f"![Success rates of the problems](success{suffix}.svg)",
            "",
        ]
    lines += ["## Notes", ""]
    lines += [f"- {_markdown_text(note)}" for note in notes(report, report["runs"])]
    lines += ["", "## Runs", ""]
    for run in report["runs"]:
        lines += [f"### {_markdown_text(run['name'])}", "", f"- grader: {_markdown_text(run['grader'])}"]
        lines += [f"- {_markdown_text(key)}: {_markdown_text(value)}" for key, value in flat(run["manifest"])]
        lines.append("")
    return "\n".join(lines)


PAIRED_TITLE = "Paired differences in percentage points, on the same problems"


def title(report: dict[str, Any]) -> str:
    """Return the report's title."""
    return "Coverage report"


def group_title(report: dict[str, Any], group: dict[str, Any]) -> str:
    """Return the title of a group of runs on the same problems."""
    if len(report["groups"]) == 1:
        return "pass@k"
    return "pass@k: " + ", ".join(report["runs"][index]["name"] for index in group["runs"])


def plot_suffix(report: dict[str, Any], group_index: int) -> str:
    """Return what follows "coverage" in the name of a group's picture: nothing where there is one group."""
    return "" if len(report["groups"]) == 1 else f"-{group_index + 1}"


def notes(report: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    """Return how to read the numbers of these runs, and what was left out and why."""
    lines = [report["interval_method"]] if runs else []
    for run in runs:
        if run["left_out"]:
            first = run["left_out"][0]
            names = ", ".join(f"pass@{entry['k']}" for entry in run["left_out"])
            lines.append(
                f"{run['name']}: {names} left out, because not every problem has that many samples "
                f"(fewest: {first['fewest']:,}, problem {first['problem_id']!r})."
            )
        if run["extrapolation"]["pass_at_k"]:
            lines.append(f"{run['name']}: {run['extrapolation']['note']}")
    return lines


def flat(manifest: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested mapping as (dotted key, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, value in manifest.items():
        if isinstance(value, dict) and value:
            pairs += flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return pairs


def _cell(entries: list[dict[str, Any]], k: int, text) -> str:
    return next((text(entry) for entry in entries if entry["k"] == k), "–")


def never_solved_text(run: dict[str, Any]) -> str:
    """Return how many problems no sample solved."""
    entry = run["never_solved"]
    return f"{entry['count']:,} ({percent(entry['share'])})"


def _samples(run: dict[str, Any]) -> str:
    low, high = run["num_samples"]["min"], run["num_samples"]["max"]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _part(count: int, total: int) -> str:
    return f"{count:,} ({percent(count / total)})" if total else "0"


def _markdown_text(text: str) -> str:
    for character in "\\`*_{}[]<>#|$~":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ").replace("\r", " ")


def _markdown_table(header: list[str], rows: Rows) -> list[str]:
    def line(cells):
        return "| " + " | ".join(map(_markdown_text, cells)) + " |"

    return [line(header), "|" + "|".join([":---", *["---:"] * (len(header) - 1)]) + "|", *map(line, rows), ""]
