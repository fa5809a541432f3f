"""`dco-trl eval`: sample, grade and report in one go; each step goes on where it was interrupted."""

from dataclasses import dataclass
from pathlib import Path

from ._common import DatasetConfig, ModelConfig, ReportConfig, command, load_problems, option
from ._grading import GradingConfig, grade
from ._sampling import SamplingConfig, sample


@dataclass
class EvalConfig(ReportConfig):
    """What to report, and where."""

    report: str | None = option("Folder for the report. By default `report` in the run's folder.", default=None)


@command("eval")
def main(
    data: DatasetConfig, model: ModelConfig, sampling: SamplingConfig, grading: GradingConfig, report: EvalConfig
) -> None:
    """Sample, grade and report. After an interruption, the same command goes on."""
    from ..report import DEFAULT_K, print_report, write_report
    from ..runs import load_results
    from ..runs.grade import check_grader

    problems = load_problems(data, grading.grader)
    check_grader(grading.grader, problems)  # rather before sampling than after it
    print(sample(data, model, sampling, problems))
    summary = grade(sampling.output, grading)
    print(summary)
    results = load_results(sampling.output, summary.grader)
    folder = report.report or str(Path(sampling.output) / "report")
    written = write_report([results], folder, report.k or DEFAULT_K)
    print_report(written.summary)
    print(f"look at {written.html}")
