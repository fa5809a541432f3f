"""Compute what a report shows from the results of its runs."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import UserError
from ..runs.results import ProblemResult, RunResult
from ..statistics.at_least_m import at_least_m_of_k
from ..statistics.intervals import PassAtKCurve, difference_of_means, mean_curve, pass_at_k_curve
from ..statistics.majority_vote import majority_at_k
from ..statistics.never_solved import never_solved
from .counts import Counts
from .summary import (
    ArmSummary,
    AtLeast,
    Comparison,
    Difference,
    Estimate,
    Group,
    LeftOut,
    NeverSolved,
    NumSamples,
    ProblemSummary,
    RunSummary,
    SampleCounts,
    Summary,
)

DEFAULT_K = (1, 4, 16, 64, 256, 1024, 4096)
CONFIDENCE = 0.95
INTERVAL_METHOD = (
    "Brackets and bands are 95 % intervals for the mean over problems (BCa bootstrap; Student's for paired "
    "differences), each k on its own. Where fewer than five problems' worth separate the mean from 0 or 1, or fewer "
    "than six make a difference, the interval is too short; such values are marked with *."
)


def summarise(results: Sequence[RunResult], k: Sequence[int] = DEFAULT_K) -> Summary:
    """Compute everything a report shows about one or more runs.

    Runs on the same problems (same ids, same reference answers) form a group and are compared pair by pair with the
    group's first run; runs on other problems are summarised apart. pass@k is given only where every problem of the run
    has at least k samples.

    Args:
        results: The runs, each with a name of its own.
        k: Numbers of attempts to report, at least 1. Those above the fewest samples of a problem are left out, and
            listed as left out.

    Returns:
        The numbers; the keys of `report.json` in the documentation of `write_report` are its fields.

    Raises:
        ValueError: There is no run, two runs share a name, a run has no problems or one problem twice, a problem's
            counts contradict each other, or k is not a list of whole numbers from 1 up.

    Relations:
        `write_report` writes this to files, with tables, plots and a page.
    """
    _check(results, k)
    ks = sorted({int(value) for value in k})
    groups = _groups(results)
    runs = [_run(result, ks) for result in results]
    return Summary(
        format=1,
        dco_trl=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        k=ks,
        confidence=CONFIDENCE,
        interval_method=INTERVAL_METHOD,
        warnings=_warnings(results, groups),
        groups=[_group(members, results, runs) for members in groups],
        runs=runs,
    )


def _check(results: Sequence[RunResult], k: Sequence[int]) -> None:
    if not results:
        raise UserError("results: got no run; pass at least one, as `load_results(run_dir)` gives it")
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"results: two runs are named {twice!r}, and a table could not tell them apart; "
            "give one another name with dataclasses.replace(result, name=...)"
        )
    for result in results:
        if not result.problems:
            raise UserError(
                f"results: run {result.name!r} has no problems, so there is nothing to report; sample first"
            )
        ids = [problem.problem_id for problem in result.problems]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise UserError(
                f"results: run {result.name!r} has problem {twice!r} twice, and each counts once; remove one"
            )
        for problem in result.problems:
            _check_counts(problem, result.name)
    if len(k) == 0 or any(int(value) != value or value < 1 for value in k):
        raise UserError(f"k: got {list(k)!r}; pass whole numbers from 1 up, such as 1 16 256")


def _check_counts(problem: ProblemResult, run: str) -> None:
    """Refuse counts that cannot be those of samples: a report never shows a damaged number."""
    where = f"results: problem {problem.problem_id!r} of run {run!r}"
    if problem.num_samples < 1:
        raise UserError(
            f"{where} has no samples, so no pass@k, and leaving it out would bias the mean; finish sampling first"
        )
    for name, part in (("correct", problem.num_correct), ("cut off", problem.num_truncated)):
        if not 0 <= part <= problem.num_samples:
            raise UserError(f"{where} has {part} {name} of {problem.num_samples} samples; grade the run again")
    total = sum(answer.count for answer in problem.answers)
    correct = sum(answer.count for answer in problem.answers if answer.correct)
    if min((answer.count for answer in problem.answers), default=0) < 0 or total != problem.num_samples:
        raise UserError(f"{where} has {problem.num_samples} samples and {total} answers; grade the run again")
    if correct != problem.num_correct:
        raise UserError(
            f"{where} has {problem.num_correct} correct samples and {correct} correct answers; grade the run again"
        )


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
            f"The runs are not on the same problems (ids and reference answers differ), so they are reported "
            f"separately and not compared: {parts}."
        )
    if len({result.grader for result in results}) > 1:
        parts = ", ".join(f"{result.name}: {result.grader}" for result in results)
        warnings.append(
            f"The runs were graded by different graders ({parts}); a difference between them may be the graders'."
        )
    for members in groups:
        first = {problem.problem_id: problem.prompt for problem in results[members[0]].problems}
        for index in members[1:]:
            changed = sum(problem.prompt != first[problem.problem_id] for problem in results[index].problems)
            if changed:
                warnings.append(
                    f"{results[index].name} and {results[members[0]].name} have the same problems but different "
                    f"prompts for {changed:,} of them; the page shows the prompts of {results[members[0]].name}."
                )
    return warnings


def _group(members: list[int], results: Sequence[RunResult], runs: list[RunSummary]) -> Group:
    first = members[0]
    comparisons = [_comparison(results[first], results[index], runs[first], runs[index]) for index in members[1:]]
    return Group(
        runs=members,
        num_problems=runs[first].num_problems,
        k=sorted({entry.k for index in members for entry in runs[index].pass_at_k}),
        majority_k=sorted({entry.k for index in members for entry in runs[index].majority_at_k}),
        comparisons=[comparison for comparison in comparisons if comparison.pass_at_k],
    )


def _comparison(baseline: RunResult, run: RunResult, baseline_summary: RunSummary, summary: RunSummary) -> Comparison:
    ks = sorted({entry.k for entry in baseline_summary.pass_at_k} & {entry.k for entry in summary.pass_at_k})
    if not ks:  # no k was asked for that both have the samples for
        return Comparison(baseline.name, run.name, [])
    first, second = Counts(baseline), Counts(run)
    position = {problem_id: i for i, problem_id in enumerate(second.ids)}
    order = [position[problem_id] for problem_id in first.ids]
    values = first.pass_at_k(ks), second.pass_at_k(ks)[order]
    found = difference_of_means(*values, np.array(ks), CONFIDENCE)
    rows = zip(
        ks, *(column.tolist() for column in (found.difference, found.low, found.high, found.reliable)), strict=True
    )
    return Comparison(baseline.name, run.name, [Difference(*row) for row in rows])


def _run(result: RunResult, ks: list[int]) -> RunSummary:
    problems = result.problems
    counts = Counts(result)
    n, c, ids, fewest = counts.num_samples, counts.num_correct, counts.ids, int(counts.reach.min())
    if not fewest:
        missing = [problem_id for problem_id, reach in zip(ids, counts.reach, strict=True) if not reach]
        raise UserError(
            f"run {result.name}: {len(missing):,} of {len(ids):,} problems ({missing[0]!r}) have no sample of the "
            "schedule's first attempt, so that nothing can be said of any k. A range is missing: draw it, and merge "
            "it into this run."
        )
    reported = [k for k in ks if k <= fewest]
    never = never_solved(n, c, CONFIDENCE)
    statuses = dict.fromkeys(("unparsed", "timeout", "error"), 0)
    for answer in (answer for problem in problems for answer in problem.answers):
        if answer.status in statuses:
            statuses[answer.status] += answer.count
    return RunSummary(
        name=result.name,
        grader=result.grader,
        manifest=result.manifest,
        num_problems=len(problems),
        num_samples=NumSamples(int(n.min()), int(n.max())),
        samples=SampleCounts(
            total=int(n.sum()),
            correct=int(c.sum()),
            truncated=sum(problem.num_truncated for problem in problems),
            **statuses,
        ),
        pass_at_k=_curve(counts, reported),
        left_out=[
            LeftOut(k, int(np.count_nonzero(counts.reach < k)), fewest, ids[int(counts.reach.argmin())])
            for k in ks
            if k > fewest
        ],
        majority_at_k=[] if result.schedule else _majority(problems, reported),
        at_least_m_of_k=[] if result.schedule else _at_least(n, c, reported),
        never_solved=NeverSolved(never.count, never.share, never.low, never.high),
        curve=_curve(counts, sorted({*reported, *curve_points(fewest)})),
        problems=[_problem(problem) for problem in problems],
        arms=_arms(counts, ks),
    )


def curve_points(largest: int, per_doubling: int = 4) -> list[int]:
    """Return whole numbers from 1 to `largest`, equally spaced on a log axis as far as whole numbers are."""
    return sorted({round(2**step) for step in np.arange(0, np.log2(largest), 1 / per_doubling)} | {largest})


def _curve(counts: Counts, ks: list[int]) -> list[Estimate]:
    return _entries(mean_curve(counts.pass_at_k(ks), ks, confidence=CONFIDENCE)) if ks else []


def _arms(counts: Counts, ks: list[int]) -> list[ArmSummary]:
    """Each arm alone, as far as every problem has samples of it."""
    found = []
    for arm, (n, c) in zip(counts.arms, counts.by_arm, strict=True):
        fewest = int(n.min())
        points = sorted({*curve_points(fewest), *(k for k in ks if k <= fewest)}) if fewest else []
        curve = _entries(pass_at_k_curve(n, c, points, confidence=CONFIDENCE)) if points else []
        found.append(ArmSummary(arm.name, NumSamples(fewest, int(n.max())), curve))
    return found


def _majority(problems: Sequence[ProblemResult], ks: list[int]) -> list[Estimate]:
    if not ks:
        return []
    values = []
    for problem in problems:
        piles = _piles(problem)
        counts, shares = [count for _, count, _ in piles], [correct / count for _, count, correct in piles]
        values.append(majority_at_k(counts, shares, ks, problem.num_samples - sum(counts)))
    return _entries(mean_curve(values, ks, confidence=CONFIDENCE))


def _piles(problem: ProblemResult) -> list[tuple[str, int, int]]:
    """What a vote counts: each answer, its samples, and those that were accepted; the most frequent first."""
    piles: dict[str, list[int]] = {}
    for answer in problem.answers:
        if answer.answer:  # a sample without an answer casts no vote
            pile = piles.setdefault(answer.answer, [0, 0])
            pile[0] += answer.count
            pile[1] += answer.count * answer.correct
    found = [(answer, count, correct) for answer, (count, correct) in piles.items()]
    return sorted(found, key=lambda pile: -pile[1])


def _at_least(n: NDArray, c: NDArray, ks: list[int]) -> list[AtLeast]:
    """More than half of k, for each k of which that is not all."""
    pairs = [(k // 2 + 1, k) for k in ks if k // 2 + 1 < k]
    if not pairs:
        return []
    ms, of = np.array(pairs).T
    found = mean_curve(at_least_m_of_k(n[:, None], c[:, None], of, ms), of.tolist(), confidence=CONFIDENCE)
    return [AtLeast(**vars(entry), num_required=m) for entry, (m, _) in zip(_entries(found), pairs, strict=True)]


def _entries(curve: PassAtKCurve) -> list[Estimate]:
    columns = zip(curve.k, curve.estimate, curve.low, curve.high, curve.reliable, strict=True)
    return [
        Estimate(int(k), float(value), float(low), float(high), bool(reliable))
        for k, value, low, high, reliable in columns
    ]


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
