"""`dco-trl grade`: grade a run's samples with one grader after another."""

from dataclasses import dataclass
from typing import Any

from ._common import command, option
from ._grading import GradingConfig, grade


@dataclass
class GradeConfig(GradingConfig):
    """Whether to grade again, and where."""

    regrade: bool = option("Delete this grader's verdicts first, for a function that has changed.", default=False)
    ray_workers: int | None = option(
        "Grade this many parts at a time on a Ray cluster, each with --num-workers.", default=None
    )
    ray_address: str | None = option(
        "Address of the Ray cluster. By default this machine's, else a new one here.", default=None
    )


@command("grade", run="the run's folder")
def main(grading: GradeConfig, run: str) -> Any:
    """Grade the samples of a run that this grader has not graded yet."""
    more = {"regrade": grading.regrade, "ray_workers": grading.ray_workers, "ray_address": grading.ray_address}
    return grade(run, grading, **more)
