"""What a grader finds: one verdict per sample, and counts over all samples."""

from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grader's verdict on one sample.

    Args:
        score: Above 0.5 is correct; None: could not be graded.
        answer: The extracted answer ("" if there is none), cut after 1,000 characters.
        status: "graded"; "unparsed", with score 0.0 (the text has no answer, or math-verify cannot read it) or None
            (math-verify cannot read the reference, the answer has more than 10,000 characters, or a user's function
            returned None); "timeout" or "error" (a limit was hit, or the worker died twice), with score None.
    """

    score: float | None
    answer: str
    status: str


@dataclass
class GradingStats:
    """Counts since the grader was made.

    Args:
        rows: Samples graded; the next four add up to it.
        graded: Samples with a verdict.
        unparsed: Samples without a readable answer or reference.
        timeout: Samples whose worker ran out of time.
        error: Samples whose worker ran out of memory, or died twice.
        undecided: Samples with a score of exactly 0.5, which is not correct; part of `graded`.
        distinct: Pairs (reference, answer), or distinct rows for a user's function.
        from_cache: Pairs found on disk.
        computed: Pairs that went to a worker, or rows that the user's function graded.
    """

    rows: int = 0
    graded: int = 0
    unparsed: int = 0
    timeout: int = 0
    error: int = 0
    undecided: int = 0
    distinct: int = 0
    from_cache: int = 0
    computed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rows} samples, {self.distinct} distinct: {self.graded} graded, {self.unparsed} unparsed, "
            f"{self.timeout} timed out, {self.error} failed"
            + (f", {self.undecided} with a score of exactly 0.5" if self.undecided else "")
        )

    def count(self, verdicts: list[Verdict], slots: np.ndarray) -> None:
        """Add samples: `slots`, `(samples,)`, are their indices into the distinct `verdicts`."""
        by_status: Counter[str] = Counter()
        for verdict, count in zip(verdicts, np.bincount(slots, minlength=len(verdicts)).tolist(), strict=True):
            by_status[verdict.status] += count
            if verdict.score == 0.5:
                self.undecided += count
        self.rows += len(slots)
        self.distinct += len(verdicts)
        for status, count in by_status.items():
            setattr(self, status, getattr(self, status) + count)
