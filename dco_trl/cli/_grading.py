"""How commands grade: their arguments, and grading with them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._common import option


@dataclass
class GradingConfig:
    """How to grade."""

    grader: str = option(
        "math, exact, choice, json, regex, code, package.module:function or file.py:function.", default="math"
    )
    num_workers: int | None = option(
        "Worker processes. By default one per CPU, divided by the processes that a launcher started here.",
        default=None,
    )
    timeout: float = option("Seconds a verdict may take.", default=10.0)
    grader_in_process: bool = option(
        "Run package.module:function in this process, in batches, without --timeout and a memory limit, for a grader "
        "that holds a model. By default it runs in worker processes, one sample per call.",
        default=False,
    )
    verdict_cache: str | None = option(
        "Folder that keeps verdicts for all runs; 'none' keeps none. By default dco-trl in the user's cache folder.",
        default=None,
    )


def grade(run: str, grading: GradingConfig, **more: Any) -> Any:
    """Grade the samples of a run that lack verdicts; `more` are further arguments of `grade_run`."""
    from ..runs import grade_run

    arguments = grading_limits(grading) | more
    if more.get("ray_workers") is not None and grading.verdict_cache is None:
        arguments["cache_dir"] = None  # machines may share the user's home, and the cache is not safe to share
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
