"""Evaluation: problems → samples → grades → pass@k with intervals, each step resumable.

The public names are imported on first use, so that the estimators load neither PyTorch nor a sampler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once, because the module has the function's name: whoever imports the module first would hide the function.
from .pass_at_k import exact_pass_at_k, pass_at_k

if TYPE_CHECKING:
    from .data import DataError, Problem, fingerprint, problems_from_rows, read_problems
    from .exact import ExactCoverage, exact_coverage
    from .extrapolation import (
        ExtrapolatedPassAtK,
        ExtrapolationCheck,
        check_extrapolation,
        extrapolate_pass_at_k,
    )
    from .intervals import PairedDifference, PassAtKCurve, default_ks, mean_curve, paired_difference, pass_at_k_curve
    from .majority_vote import majority_at_k
    from .results import AnswerCount, ProblemResult, RunResult, load_results
    from .run import GradingSummary, SamplingSummary, evaluate, grade_run, sample_run
    from .store import RunStore, StoreError
    from .success_rates import NeverSolved, SuccessHistogram, never_solved, success_histogram

_HOME = {
    "AnswerCount": "results",
    "DataError": "data",
    "ExactCoverage": "exact",
    "ExtrapolatedPassAtK": "extrapolation",
    "ExtrapolationCheck": "extrapolation",
    "GradingSummary": "run",
    "NeverSolved": "success_rates",
    "PairedDifference": "intervals",
    "PassAtKCurve": "intervals",
    "Problem": "data",
    "ProblemResult": "results",
    "RunResult": "results",
    "RunStore": "store",
    "SamplingSummary": "run",
    "StoreError": "store",
    "SuccessHistogram": "success_rates",
    "check_extrapolation": "extrapolation",
    "default_ks": "intervals",
    "evaluate": "run",
    "exact_coverage": "exact",
    "extrapolate_pass_at_k": "extrapolation",
    "fingerprint": "data",
    "grade_run": "run",
    "load_results": "results",
    "majority_at_k": "majority_vote",
    "mean_curve": "intervals",
    "never_solved": "success_rates",
    "paired_difference": "intervals",
    "pass_at_k_curve": "intervals",
    "problems_from_rows": "data",
    "read_problems": "data",
    "sample_run": "run",
    "success_histogram": "success_rates",
}

__all__ = [
    "AnswerCount",
    "DataError",
    "ExactCoverage",
    "ExtrapolatedPassAtK",
    "ExtrapolationCheck",
    "GradingSummary",
    "NeverSolved",
    "PairedDifference",
    "PassAtKCurve",
    "Problem",
    "ProblemResult",
    "RunResult",
    "RunStore",
    "SamplingSummary",
    "StoreError",
    "SuccessHistogram",
    "check_extrapolation",
    "default_ks",
    "evaluate",
    "exact_coverage",
    "exact_pass_at_k",
    "extrapolate_pass_at_k",
    "fingerprint",
    "grade_run",
    "load_results",
    "majority_at_k",
    "mean_curve",
    "never_solved",
    "paired_difference",
    "pass_at_k",
    "pass_at_k_curve",
    "problems_from_rows",
    "read_problems",
    "sample_run",
    "success_histogram",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dco_trl.evaluation' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
