"""`dco-trl grade`: grade a run's samples, again and again, with one grader after another."""

from dataclasses import dataclass, field
from typing import Any

from ._common import parse, status
from .cache import cache_folder


@dataclass
class GradingConfig:
    """How to grade."""

    grader: str = field(
        default="math",
        metadata={"help": "math, exact, choice, json, regex, code, package.module:function or file.py:function."},
    )
    num_workers: int | None = field(default=None, metadata={"help": "Worker processes. Unless given, one per CPU."})
    timeout: float = field(default=10.0, metadata={"help": "Seconds a verdict may take."})
    grader_in_process: bool = field(
        default=False,
        metadata={
            "help": "Run package.module:function in this process, in batches, without --timeout and a memory limit: "
            "for a grader that holds a model. Otherwise it runs in worker processes, one sample per call."
        },
    )
    verdict_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder for verdicts to remember, shared by all runs; 'none' remembers none. Unless given, "
            "dco-trl in the user's cache folder."
        },
    )


@dataclass
class RegradeConfig(GradingConfig):
    """And whether to begin anew."""

    regrade: bool = field(
        default=False, metadata={"help": "Delete this grader's verdicts first, for a function that has changed."}
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    grading, run = parse(
        "grade",
        argv,
        RegradeConfig,
        run="the run's folder",
        description="Grade the samples of a run that this grader has not graded yet.",
    )
    return status("grade", lambda: print(grade(run, grading, grading.regrade)), grading)


def grade(run: str, grading: GradingConfig, regrade: bool = False) -> Any:
    """Do what the command does.

    Args:
        run: The run's folder.
        grading: How to grade.
        regrade: Whether to begin anew.

    Returns:
        A `GradingSummary`.
    """
    from ..runs import grade_run

    return grade_run(run, grading.grader, regrade=regrade, **grading_limits(grading))


def grading_limits(grading: GradingConfig) -> dict[str, Any]:
    """The arguments of `BulkGrader` beside the grader."""
    return {
        "num_workers": grading.num_workers,
        "timeout": grading.timeout,
        "in_process": grading.grader_in_process,
        "cache_dir": None if grading.verdict_cache == "none" else grading.verdict_cache or cache_folder(),
    }
