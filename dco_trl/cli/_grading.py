"""How commands grade: their arguments, and the verdicts that these ask for."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def grade(run: str, grading: GradingConfig, **more: Any) -> Any:
    """Grade the samples of a run that a grader has not graded yet.

    Args:
        run: The run's folder.
        grading: How to grade.
        more: Further arguments of `grade_run`.

    Returns:
        A `GradingSummary`.
    """
    from ..runs import grade_run

    arguments = grading_limits(grading) | more
    if more.get("ray_workers") is not None and grading.verdict_cache is None:
        arguments["cache_dir"] = None  # the cache in a user's home, which machines may share, is not safe to share
    return grade_run(run, grading.grader, **arguments)


def grading_limits(grading: GradingConfig) -> dict[str, Any]:
    """The arguments of `BulkGrader` beside the grader."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dco-trl"
    return {
        "num_workers": grading.num_workers,
        "timeout": grading.timeout,
        "in_process": grading.grader_in_process,
        "cache_dir": None if grading.verdict_cache == "none" else grading.verdict_cache or cache,
    }
