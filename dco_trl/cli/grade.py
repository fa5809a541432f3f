"""`dco-trl grade`: grade a run's samples, again and again, with one grader after another."""

from dataclasses import dataclass, field

from ._common import parse, status
from ._grading import GradingConfig, grade


@dataclass
class GradeConfig(GradingConfig):
    """And whether to begin anew, and where."""

    regrade: bool = field(
        default=False, metadata={"help": "Delete this grader's verdicts first, for a function that has changed."}
    )
    ray_workers: int | None = field(
        default=None, metadata={"help": "Grade on a Ray cluster, so many parts at a time, each with --num-workers."}
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "Address of the Ray cluster. Unless given, this machine's, else a new one here."},
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    grading, run = parse(
        "grade",
        argv,
        GradeConfig,
        run="the run's folder",
        description="Grade the samples of a run that this grader has not graded yet.",
    )
    more = {"regrade": grading.regrade, "ray_workers": grading.ray_workers, "ray_address": grading.ray_address}
    return status("grade", lambda: print(grade(run, grading, **more)))
