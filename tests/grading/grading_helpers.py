"""What the tests of graders share."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from dco_trl.grading import BulkGrader, GradingStats, Verdict
from dco_trl.grading.code_sandbox import unconfinable

needs_confinement = pytest.mark.skipif(
    unconfinable() is not None, reason=f"programs are not confined: {unconfinable()}"
)


def table(name: str) -> list[list[str]]:
    """The rows of a file of tab-separated cells, in which ⏎ stands for a new line."""
    lines = (Path(__file__).parent / name).read_text().split("\n")
    return [line.replace("⏎", "\n").split("\t") for line in lines if line and not line.startswith("# ")]


def grade(
    grader: Any, completions: list, answers: list, columns: Any = None, prompts: Any = None, **options: Any
) -> tuple[list[Verdict], GradingStats]:
    """The verdicts of a `BulkGrader`, of one worker unless told otherwise, and its counts."""
    with BulkGrader(grader, **{"num_workers": 1} | options) as bulk:
        return bulk.grade(prompts, completions, answers, columns, progress=False), bulk.stats


def scores(*arguments: Any, **options: Any) -> list[float | None]:
    """The scores of `grade`."""
    return [verdict.score for verdict in grade(*arguments, **options)[0]]


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("the condition was not met in 30 seconds")


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def cpu_seconds(call: Callable[[str], object], text: str) -> float:
    """Processor time of a call, the shortest of three."""

    def once() -> float:
        start = time.process_time()
        call(text)
        return time.process_time() - start

    return min(once() for _ in range(3))
