"""Everything that a report shows, as plain dataclasses; `report.json` is `dataclasses.asdict` of a `Summary`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its interval; `reliable` is False if the interval is too short."""

    k: int
    estimate: float
    low: float
    high: float
    reliable: bool


@dataclass(frozen=True)
class AtLeast(Estimate):
    """The mean probability that at least `num_required` of k samples are correct."""

    num_required: int


@dataclass(frozen=True)
class Difference:
    """A paired difference of two runs at one k, with its interval; `reliable` as for an `Estimate`."""

    k: int
    difference: float
    low: float
    high: float
    reliable: bool


@dataclass(frozen=True)
class Comparison:
    """A run minus the baseline, on the same problems."""

    baseline: str
    run: str
    pass_at_k: list[Difference]


@dataclass(frozen=True)
class LeftOut:
    """A requested k that is left out because some problems have too few samples."""

    k: int
    problems_short: int
    fewest: int
    problem_id: str


@dataclass(frozen=True)
class ProblemSummary:
    """The counts of one problem; the top answer is the most frequent."""

    problem_id: str
    num_samples: int
    num_correct: int
    num_truncated: int
    num_distinct: int
    top_answer: str | None
    top_count: int
    top_correct: bool

    @property
    def success_rate(self) -> float:
        """Share of the samples that are correct."""
        return self.num_correct / self.num_samples

    @property
    def confidence(self) -> float:
        """Share of the samples that give the top answer."""
        return self.top_count / self.num_samples


@dataclass(frozen=True)
class ArmSummary:
    """One arm of a schedule alone: the fewest and most samples of a problem, and its pass@k up to the fewest."""

    name: str
    num_samples: dict[str, int]
    curve: list[Estimate]


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        num_samples: The fewest and the most samples of a problem: `min`, `max`.
        samples: Counts over all problems: `total`, `correct`, `truncated`, `unparsed`, `timeout`, `error`.
        pass_at_k: pass@k at the requested k's.
        never_solved: Problems without a correct sample: `count`, and their `share` with its interval, `low`, `high`.
        curve: pass@k at enough k's to draw it.
        arms: The arms of the run's schedule, if it has one.
    """

    name: str
    grader: str
    manifest: dict[str, Any]
    num_problems: int
    num_samples: dict[str, int]
    samples: dict[str, int]
    pass_at_k: list[Estimate]
    left_out: list[LeftOut]
    majority_at_k: list[Estimate]
    at_least_m_of_k: list[AtLeast]
    never_solved: dict[str, float]
    curve: list[Estimate]
    problems: list[ProblemSummary]
    arms: list[ArmSummary] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Runs on the same problems: their indices, the reported k's, and the comparisons with the first run."""

    runs: list[int]
    num_problems: int
    k: list[int]
    majority_k: list[int]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Summary:
    """A whole report."""

    format: int
    dco_trl: str
    created: str
    k: list[int]
    confidence: float
    interval_method: str
    warnings: list[str]
    groups: list[Group]
    runs: list[RunSummary]

    def runs_of(self, group: Group) -> list[RunSummary]:
        """Return the runs of a group."""
        return [self.runs[index] for index in group.runs]
