"""Runs on disk: problems → samples → grades → results, each step resumable."""

from ..problem import DataError, Problem
from .evaluate import evaluate
from .files import StoreError
from .grade import GradingSummary, grade_run
from .problems import fingerprint, problems_from_rows, read_problems
from .results import AnswerCount, ProblemResult, RunResult, load_results
from .sample import SamplingSummary, sample_run
from .store import RunStore

__all__ = [
    "AnswerCount",
    "DataError",
    "GradingSummary",
    "Problem",
    "ProblemResult",
    "RunResult",
    "RunStore",
    "SamplingSummary",
    "StoreError",
    "evaluate",
    "fingerprint",
    "grade_run",
    "load_results",
    "problems_from_rows",
    "read_problems",
    "sample_run",
]
