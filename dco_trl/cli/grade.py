"""`dco-trl grade`: grade a run's samples, again and again, with one grader after another."""

from dataclasses import dataclass
from typing import Any

from . import _grading
from ._common import execute, option


@dataclass
class GradeConfig(_grading.GradingConfig):
    """And whether to begin anew, and where."""

    regrade: bool = option("Delete this grader's verdicts first, for a function that has changed.", default=False)
    ray_workers: int | None = option(
        "Grade on a Ray cluster, so many parts at a time, each with --num-workers.", default=None
    )
    ray_address: str | None = option(
        "Address of the Ray cluster. Unless given, this machine's, else a new one here.", default=None
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    return execute("grade", argv, grade, run="the run's folder")


def grade(grading: GradeConfig, run: str) -> Any:
    """Grade the samples of a run that this grader has not graded yet."""
    more = {"regrade": grading.regrade, "ray_workers": grading.ray_workers, "ray_address": grading.ray_address}
    return _grading.grade(run, grading, **more)
