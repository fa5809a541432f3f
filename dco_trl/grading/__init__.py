"""Graders: is a sampled completion right? With the signature of TRL's reward functions.

The public names are imported on first use: a grading worker loads this package and must stay small.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bulk import BulkGrader, GradingStats, Verdict
    from .errors import GraderError
    from .extract import completion_text, extract_answer, extract_reference, normalize_answer
    from .graders import call_grader, exact_grader, grader_name, load_grader, math_grader

_HOME = {
    "BulkGrader": "bulk",
    "GraderError": "errors",
    "GradingStats": "bulk",
    "Verdict": "bulk",
    "call_grader": "graders",
    "completion_text": "extract",
    "exact_grader": "graders",
    "extract_answer": "extract",
    "extract_reference": "extract",
    "grader_name": "graders",
    "load_grader": "graders",
    "math_grader": "graders",
    "normalize_answer": "extract",
}

__all__ = [
    "BulkGrader",
    "GraderError",
    "GradingStats",
    "Verdict",
    "call_grader",
    "completion_text",
    "exact_grader",
    "extract_answer",
    "extract_reference",
    "grader_name",
    "load_grader",
    "math_grader",
    "normalize_answer",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dco_trl.grading' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
