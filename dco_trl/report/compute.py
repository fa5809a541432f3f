"""Compute what a report shows from the results of its runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import UserError
from ..runs.results import ProblemResult, RunResult
from ..statistics import (
    PassAtKCurve,
    at_least_m_of_k,
    majority_at_k,
    mean_curve,
    never_solved,
    pass_at_k,
    pass_at_k_curve,
    scheduled_pass_at_k,
)
from ..statistics.intervals import difference_of_means
from .summary import (
    ArmSummary,
    AtLeast,
    Comparison,
    Difference,
    Estimate,
    Group,
    LeftOut,
    ProblemSummary,
    RunSummary,
    Summary,
)

DEFAULT_K = (1, 4, 16, 64, 256, 1024, 4096)
CONFIDENCE = 0.95
INTERVAL_METHOD = (
    "Brackets and bands are 95 % intervals for the mean over problems (BCa bootstrap; Student's for paired "
    "differences), separately for each k. Where fewer than five problems' worth separate the mean from 0 or 1, or "
    "fewer than six problems differ, the interval is too short, and the value is marked with *."
)


def summarise(results: Sequence[RunResult], k: Sequence[int] = DEFAULT_K) -> Summary:
    """Compute everything a report shows about one or more runs.

    Runs on the same problems (same ids and reference answers) form a group and are compared pair by pair with the
    group's first run. Runs on other problems are summarised separately. pass@k is given only for k up to the fewest
    samples of a problem.

    Args:
        results: The runs, with different names.
        k: Numbers of attempts to report, at least 1. Those above the fewest samples of a problem are listed as left
            out.

    Returns:
        The numbers. Its fields are the keys of `report.json`, which `write_report` documents.

    Raises:
        ValueError: There is no run, two runs share a name, a run has no problems or one problem twice, a problem's
            counts contradict each other, or k is not a list of whole numbers from 1 up.

    Relations:
        `write_report` writes this to files, with tables, plots and a page.
    """
    _check(results, k)
    ks = sorted({int(value) for value in k})
    groups = _groups(results)
    counts = [Counts(result) for result in results]
    runs = [_run(result, of, ks) for result, of in zip(results, counts, strict=True)]
    return Summary(
        format=1,
        dco_trl=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        k=ks,
        confidence=CONFIDENCE,
        interval_method=INTERVAL_METHOD,
        warnings=_warnings(results, groups),
        groups=[_group(members, counts, runs) for members in groups],
        runs=runs,
    )


def _check(results: Sequence[RunResult], k: Sequence[int]) -> None:
    """Refuse results that contradict themselves: a report never shows a damaged number."""
    if not results:
        raise UserError("results: got no run; pass at least one, as `load_results(run_dir)` gives it")
    if twice := _twice([result.name for result in results]):
        raise UserError(
            f"results: two runs are named {twice!r}, and a table could not tell them apart; "
            "give one another name with dataclasses.replace(result, name=...)"
        )
    for result in results:
        if not result.problems:
            raise UserError(
                f"results: run {result.name!r} has no problems, so there is nothing to report; sample first"
            )
        if twice := _twice([problem.problem_id for problem in result.problems]):
            raise UserError(
                f"results: run {result.name!r} has problem {twice!r} twice, and each counts once; remove one"
            )
        for problem in result.problems:
            where = f"results: problem {problem.problem_id!r} of run {result.name!r}"
            if problem.num_samples < 1:
                raise UserError(
                    f"{where} has no samples, so no pass@k, and leaving it out would bias the mean; finish sampling "
                    "first"
                )
            total = sum(answer.count for answer in problem.answers)
            correct = sum(answer.count for answer in problem.answers if answer.correct)
            if (total, correct) != (problem.num_samples, problem.num_correct):
                raise UserError(
                    f"{where} has {problem.num_samples} samples, {problem.num_correct} of them correct, and {total} "
                    f"answers, {correct} of them correct; grade the run again"
                )
    if len(k) == 0 or any(int(value) != value or value < 1 for value in k):
        raise UserError(f"k: got {list(k)!r}; pass whole numbers from 1 up, such as 1 16 256")


def _twice(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _groups(results: Sequence[RunResult]) -> list[list[int]]:
    """Indices of the runs that share their problems, groups and members in the order given."""
    groups: dict[frozenset, list[int]] = {}
    for index, result in enumerate(results):
        key = frozenset((problem.problem_id, problem.reference) for problem in result.problems)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _warnings(results: Sequence[RunResult], groups: list[list[int]]) -> list[str]:
    warnings = []
    if len(groups) > 1:
        parts = "; ".join(
            f"{', '.join(results[index].name for index in members)} ({len(results[members[0]].problems):,} problems)"
            for members in groups
        )
        warnings.append(
            f"The runs are not on the same problems (ids or reference answers differ), so they are reported "
            f"separately and not compared: {parts}."
        )
    if len({result.grader for result in results}) > 1:
        parts = ", ".join(f"{result.name}: {result.grader}" for result in results)
        warnings.append(
            f"The runs were graded by different graders ({parts}), which may cause a difference between the runs."
        )
    for members in groups:
        first, *others = (results[index] for index in members)
        prompts = {problem.problem_id: problem.prompt for problem in first.problems}
        for other in others:
            if changed := sum(problem.prompt != prompts[problem.problem_id] for problem in other.problems):
                warnings.append(
                    f"{other.name} and {first.name} have the same problems but different prompts for {changed:,} of "
                    f"them; the page shows the prompts of {first.name}."
                )
    return warnings


class Counts:
    """Counts of a graded run as arrays: samples and correct ones, shape (problems,), and by arm along a schedule."""

    def __init__(self, result: RunResult) -> None:
        self.ids = [problem.problem_id for problem in result.problems]
        self.num_samples = np.array([problem.num_samples for problem in result.problems])
        self.num_correct = np.array([problem.num_correct for problem in result.problems])
        self.schedule = None if result.schedule is None else result.schedule.schedule
        self.arms = () if result.schedule is None else result.schedule.arms
        # Samples and correct ones, shape (arms, 2, problems).
        by_arm = np.array([problem.by_arm for problem in result.problems], dtype=np.int64)
        self.by_arm = by_arm.reshape(len(self.ids), len(self.arms), 2).transpose(1, 2, 0)
        # The largest k that each problem has the samples for.
        self.reach = self.num_samples
        if self.schedule is not None:
            # An arm's attempts among the first k never fall with k, so the first arm to run out decides.
            needed = self.schedule.counts(np.arange(self.num_samples.max() + 1))
            of_arms = zip(needed.T, self.by_arm[:, 0], strict=True)
            self.reach = np.min([np.searchsorted(needs, n, side="right") - 1 for needs, n in of_arms], axis=0)
        self.fewest = int(self.reach.min())

    def pass_at_k(self, ks: list[int]) -> NDArray[np.float64]:
        """Unbiased estimates, shape (problems, K), along the schedule if there is one."""
        if self.schedule is None:
            return pass_at_k(self.num_samples[:, None], self.num_correct[:, None], ks)
        return scheduled_pass_at_k(self.schedule, ks, num_sampled=self.by_arm[:, 0], num_correct=self.by_arm[:, 1])


def _group(members: list[int], counts: list[Counts], runs: list[RunSummary]) -> Group:
    first, *others = members
    comparisons = []
    for index in others:
        ks = sorted({entry.k for entry in runs[first].pass_at_k} & {entry.k for entry in runs[index].pass_at_k})
        if ks:  # or no requested k has enough samples in both runs
            position = {problem_id: i for i, problem_id in enumerate(counts[index].ids)}
            order = [position[problem_id] for problem_id in counts[first].ids]
            values = counts[first].pass_at_k(ks), counts[index].pass_at_k(ks)[order]
            found = difference_of_means(*values, np.array(ks), CONFIDENCE)
            rows = _rows(found.k, found.difference, found.low, found.high, found.reliable)
            comparisons.append(Comparison(runs[first].name, runs[index].name, [Difference(*row) for row in rows]))
    return Group(
        runs=members,
        num_problems=runs[first].num_problems,
        k=sorted({entry.k for index in members for entry in runs[index].pass_at_k}),
        majority_k=sorted({entry.k for index in members for entry in runs[index].majority_at_k}),
        comparisons=comparisons,
    )


def _run(result: RunResult, counts: Counts, ks: list[int]) -> RunSummary:
    n, c, ids, fewest = counts.num_samples, counts.num_correct, counts.ids, counts.fewest
    if not fewest:
        missing = [problem_id for problem_id, reach in zip(ids, counts.reach, strict=True) if not reach]
        raise UserError(
            f"run {result.name}: {len(missing):,} of {len(ids):,} problems ({missing[0]!r}) have no sample of the "
            "schedule's first attempt, so no k can be estimated. A range is missing: draw it, and merge it into this "
            "run."
        )
    reported = [k for k in ks if k <= fewest]
    never = never_solved(n, c, CONFIDENCE)
    samples = {"total": int(n.sum()), "correct": int(c.sum())}
    samples["truncated"] = sum(problem.num_truncated for problem in result.problems)
    for status in ("unparsed", "timeout", "error"):
        samples[status] = sum(a.count for problem in result.problems for a in problem.answers if a.status == status)
    return RunSummary(
        name=result.name,
        grader=result.grader,
        manifest=result.manifest,
        num_problems=len(ids),
        num_samples={"min": int(n.min()), "max": int(n.max())},
        samples=samples,
        pass_at_k=_curve(counts, reported),
        left_out=[
            LeftOut(k, int(np.count_nonzero(counts.reach < k)), fewest, ids[int(counts.reach.argmin())])
            for k in ks
            if k > fewest
        ],
        majority_at_k=[] if result.schedule else _majority(result.problems, reported),
        at_least_m_of_k=[] if result.schedule else _at_least(n, c, reported),
        never_solved={"count": never.count, "share": never.share, "low": never.low, "high": never.high},
        curve=_curve(counts, sorted({*reported, *curve_points(fewest)})),
        problems=[_problem(problem) for problem in result.problems],
        arms=_arms(counts, ks),
    )


def curve_points(largest: int) -> list[int]:
    """Return whole numbers from 1 to `largest`, about four for each doubling."""
    return sorted({round(2**step) for step in np.arange(0, np.log2(largest), 1 / 4)} | {largest})


def _curve(counts: Counts, ks: list[int]) -> list[Estimate]:
    return _estimates(mean_curve(counts.pass_at_k(ks), ks, confidence=CONFIDENCE)) if ks else []


def _arms(counts: Counts, ks: list[int]) -> list[ArmSummary]:
    """Each arm alone, up to the samples of it that every problem has."""
    found = []
    for arm, (n, c) in zip(counts.arms, counts.by_arm, strict=True):
        fewest = int(n.min())
        points = sorted({*curve_points(fewest), *(k for k in ks if k <= fewest)}) if fewest else []
        curve = _estimates(pass_at_k_curve(n, c, points, confidence=CONFIDENCE)) if points else []
        found.append(ArmSummary(arm.name, {"min": fewest, "max": int(n.max())}, curve))
    return found


def _majority(problems: Sequence[ProblemResult], ks: list[int]) -> list[Estimate]:
    if not ks:
        return []
    values = []
    for problem in problems:
        piles = _piles(problem)
        counts, shares = [count for _, count, _ in piles], [correct / count for _, count, correct in piles]
        values.append(majority_at_k(counts, shares, ks, problem.num_samples - sum(counts)))
    return _estimates(mean_curve(values, ks, confidence=CONFIDENCE))


def _piles(problem: ProblemResult) -> list[tuple[str, int, int]]:
    """The piles of a vote: each answer, its samples, and the accepted ones; the most frequent first."""
    counts: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for answer in problem.answers:
        if answer.answer:  # a sample without an answer casts no vote
            counts[answer.answer] += answer.count
            correct[answer.answer] += answer.count * answer.correct
    return [(answer, count, correct[answer]) for answer, count in counts.most_common()]


def _at_least(n: NDArray, c: NDArray, ks: list[int]) -> list[AtLeast]:
    """The chance that more than half of k samples are correct, for each k where that is not all of them."""
    pairs = [(k // 2 + 1, k) for k in ks if k // 2 + 1 < k]
    if not pairs:
        return []
    ms, of = np.array(pairs).T
    found = _estimates(mean_curve(at_least_m_of_k(n[:, None], c[:, None], of, ms), of, confidence=CONFIDENCE))
    return [AtLeast(**vars(entry), num_required=m) for entry, (m, _) in zip(found, pairs, strict=True)]


def _estimates(curve: PassAtKCurve) -> list[Estimate]:
    return [Estimate(*row) for row in _rows(curve.k, curve.estimate, curve.low, curve.high, curve.reliable)]


def _rows(*columns: NDArray) -> Iterator[tuple]:
    """The rows of some columns, as plain numbers."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _problem(problem: ProblemResult) -> ProblemSummary:
    top, top_count, top_correct = next(iter(_piles(problem)), (None, 0, 0))
    return ProblemSummary(
        problem_id=problem.problem_id,
        num_samples=problem.num_samples,
        num_correct=problem.num_correct,
        num_truncated=problem.num_truncated,
        num_distinct=len({answer.answer for answer in problem.answers}),
        top_answer=top,
        top_count=top_count,
        top_correct=2 * top_correct > top_count,
    )
