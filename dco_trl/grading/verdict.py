"""What a grader finds: one verdict per sample, and counts over all samples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock

from .. import __version__
from ..errors import UserError

# Raise it if a change in this folder can change a verdict of a built-in grader: run folders and the verdict cache keep
# verdicts of different numbers apart.
GRADERS_VERSION = 7
LIMITED = ("timeout", "error")
STATUSES = ("graded", "unparsed", *LIMITED)
MAX_SHOWN_CHARS = 1_000


class GraderError(UserError):
    """A grader cannot be loaded, fails, or returns something other than scores."""


def builtin_source() -> str:
    """What the verdicts of the built-in graders depend on, apart from other libraries."""
    return f"dco_trl {__version__}, graders {GRADERS_VERSION}"


def shorten(answer: str) -> str:
    """An answer as a verdict shows it: at most 1,000 characters, and different for different answers."""
    if len(answer) <= MAX_SHOWN_CHARS:
        return answer
    digest = blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{answer[: MAX_SHOWN_CHARS - 18]}… {digest}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grader's verdict on one sample.

    Args:
        score: Above 0.5 is correct; None: could not be graded.
        answer: What the grader takes for the answer ("" if there is none), shortened to 1,000 characters; a vote
            counts it. If `math` read prose, the part that it compared.
        status: "graded"; "unparsed", with score 0.0 (the text has no answer, or math-verify cannot read it) or None
            (math-verify cannot read the reference, the answer has more than 10,000 characters, or your function
            returned None); "timeout" or "error" (a limit was hit, or the worker died twice), with score None. Under
            `code`, a program that ran out of time has score 0.0.
    """

    score: float | None
    answer: str = ""
    status: str = "graded"


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
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"{self.rows} samples, {self.distinct} distinct: {self.graded} graded, {self.unparsed} unparsed, "
            f"{self.timeout} timed out, {self.error} failed"
            + (f", {self.undecided} with a score of exactly 0.5" if self.undecided else "")
        )

    def count(self, verdicts: Sequence[Verdict], counts: Sequence[int]) -> None:
        """Add the distinct `verdicts`, each as often as `counts` says."""
        added: Counter[str] = Counter(rows=sum(counts), distinct=len(verdicts))
        for verdict, count in zip(verdicts, counts, strict=True):
            added[verdict.status] += count
            added["undecided"] += count * (verdict.score == 0.5)
        self.add(**added)

    def add(self, **counts: int) -> None:
        """Add to the counts of these names; from any thread."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)
