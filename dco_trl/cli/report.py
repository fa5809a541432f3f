"""`dco-trl report`: pass@k with intervals, plots and one HTML page for one or more graded runs."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ._common import ReportConfig, command, option


@dataclass
class ReportCommandConfig(ReportConfig):
    """What to report, from which verdicts, and where."""

    output: str = option("Folder for the report.", default="report")
    grader: str | None = option("The grader whose verdicts to read, if a run has several.", default=None)


@command("report", runs="folders of graded runs")
def main(config: ReportCommandConfig, runs: list[str]) -> str:
    """Report graded runs: print tables, and write Markdown, JSON, pictures and one HTML page into a folder. The other
    runs are compared with the first.
    """
    from ..report import DEFAULT_K, print_report, write_report
    from ..runs import load_results

    if not runs:
        raise UserError("no RUN given; name at least one folder of a graded run, such as runs/ce")
    results = [load_results(run, config.grader) for run in runs]
    names = [result.name for result in results]
    # Folders with the same name get their paths as names.
    results = [
        dataclasses.replace(result, name=Path(run).as_posix()) if names.count(result.name) > 1 else result
        for run, result in zip(runs, results, strict=True)
    ]
    written = write_report(results, config.output, config.k or DEFAULT_K)
    print_report(written.summary)
    return f"look at {written.html}"
