"""Everything a report says, as one dictionary that JSON can hold: what `report.json` is and what the tables read."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..runs.results import AnswerCount, ProblemResult, RunResult
from ..statistics.extrapolation import check_extrapolation, extrapolate_pass_at_k
from ..statistics.intervals import PassAtKCurve, mean_curve, paired_difference, pass_at_k_curve
from ..statistics.majority_vote import majority_at_k
from ..statistics.never_solved import never_solved

Summary = dict[str, Any]

DEFAULT_K = (1, 4, 16, 64, 256, 1024, 4096)
CONFIDENCE = 0.95
# Beyond this many times the samples at hand, an extrapolation says more about its assumption than about the run.
FARTHEST = 16
INTERVAL_METHOD = (
    "Brackets and bands are 95 % intervals for the mean over problems (BCa bootstrap over problems), each k on its "
    "own. Where fewer than five problems' worth separate the mean from 0 or 1, the interval is too short; such values "
    "are marked with *."
)


def summarise(results: Sequence[RunResult], k: Sequence[int] = DEFAULT_K) -> Summary:
    """Compute everything a report says about one or more runs.

    Runs on the same problems (same ids, same reference answers) form a group and are compared pair by pair with the
    group's first run; runs on other problems are summarised apart. pass@k is given only where every problem of the run
    has at least k samples.

    Args:
        results: The runs, each with a name of its own.
        k: Numbers of attempts to report, at least 1. Those above the fewest samples of a problem are left out, and
            listed as left out.

    Returns:
        A dictionary of plain values; see the keys of `report.json` in the documentation of `write_report`.

    Raises:
        ValueError: There is no run, two runs share a name, a run has no problems or one problem twice, or k is not a
            list of whole numbers from 1 up.

    Relations:
        `write_report` writes this to files, with tables, plots and a page.
    """
    _check(results, k)
    ks = sorted({int(value) for value in k})
    groups = _groups(results)
    runs = [_run(result, ks) for result in results]
    return {
        "format": 1,
        "dco_trl": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "k": ks,
        "confidence": CONFIDENCE,
        "interval_method": INTERVAL_METHOD,
        "warnings": _warnings(results, groups),
        "groups": [_group(members, results, runs) for members in groups],
        "runs": runs,
    }


def top_answer(problem: ProblemResult) -> AnswerCount | None:
    """Return the most frequent answer of a problem; a sample without an answer gives none."""
    return next((answer for answer in problem.answers if answer.answer), None)


def _check(results: Sequence[RunResult], k: Sequence[int]) -> None:
    if not results:
        raise ValueError("results: got no run; pass at least one, as `load_results(run_dir)` gives it")
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"results: two runs are named {twice!r}, and a table could not tell them apart; "
            "give one another name with dataclasses.replace(result, name=...)"
        )
    for result in results:
        if not result.problems:
            raise ValueError(
                f"results: run {result.name!r} has no problems, so there is nothing to report; sample first"
            )
        ids = [problem.problem_id for problem in result.problems]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"results: run {result.name!r} has problem {twice!r} twice; each problem counts once")
        empty = next((problem for problem in result.problems if problem.num_samples < 1), None)
        if empty is not None:
            raise ValueError(
                f"results: problem {empty.problem_id!r} of run {result.name!r} has no samples, so no pass@k, and "
                "leaving it out would bias the mean; finish sampling first"
            )
    if len(k) == 0 or any(int(value) != value or value < 1 for value in k):
        raise ValueError(f"k: got {list(k)!r}; pass whole numbers from 1 up, such as 1 16 256")


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


def _group(members: list[int], results: Sequence[RunResult], runs: list[Summary]) -> Summary:
    def reported(key: str) -> list[int]:
        return sorted({entry["k"] for index in members for entry in runs[index][key]})

    return {
        "runs": members,
        "num_problems": runs[members[0]]["num_problems"],
        "k": reported("pass_at_k"),
        "majority_k": reported("majority_at_k"),
        "comparisons": [
            comparison
            for index in members[1:]
            if (comparison := _comparison(results[members[0]], results[index], runs[members[0]], runs[index]))
        ],
    }


def _comparison(baseline: RunResult, run: RunResult, baseline_summary: Summary, summary: Summary) -> Summary | None:
    ks = [entry["k"] for entry in summary["pass_at_k"]]
    ks = [entry["k"] for entry in baseline_summary["pass_at_k"] if entry["k"] in ks]
    if not ks:  # no k was asked for that both have the samples for
        return None
    counts = [{p.problem_id: (p.num_samples, p.num_correct) for p in result.problems} for result in (baseline, run)]
    difference = paired_difference(counts[0], counts[1], ks, confidence=CONFIDENCE)
    rows = zip(ks, difference.difference, difference.low, difference.high, strict=True)
    return {
        "baseline": baseline.name,
        "run": run.name,
        "pass_at_k": [
            {"k": k, "difference": float(value), "low": float(low), "high": float(high)}
            for k, value, low, high in rows
        ],
    }


def _run(result: RunResult, ks: list[int]) -> Summary:
    problems = result.problems
    n = np.array([problem.num_samples for problem in problems])
    c = np.array([problem.num_correct for problem in problems])
    ids = [problem.problem_id for problem in problems]
    fewest = int(n.min())
    reported = [k for k in ks if k <= fewest]
    never = never_solved(n, c, CONFIDENCE)
    statuses = {status: 0 for status in ("unparsed", "timeout", "error")}
    for problem in problems:
        for answer in problem.answers:
            if answer.status in statuses:
                statuses[answer.status] += answer.count
    return {
        "name": result.name,
        "grader": result.grader,
        "manifest": result.manifest,
        "num_problems": len(problems),
        "num_samples": {"min": fewest, "max": int(n.max())},
        "samples": {
            "total": int(n.sum()),
            "correct": int(c.sum()),
            "truncated": sum(problem.num_truncated for problem in problems),
            **statuses,
        },
        "pass_at_k": _curve(n, c, ids, reported),
        "left_out": [
            {
                "k": k,
                "problems_short": int(np.count_nonzero(n < k)),
                "fewest": fewest,
                "problem_id": ids[int(n.argmin())],
            }
            for k in ks
            if k > fewest
        ],
        "majority_at_k": _majority(problems, reported),
        "never_solved": {"count": never.count, "share": never.share, "low": never.low, "high": never.high},
        "extrapolation": _extrapolation(n, c, ks),
        "curve": _curve(n, c, ids, sorted({*reported, *curve_points(fewest)})),
        "problems": [_problem(problem) for problem in problems],
    }


def curve_points(largest: int, per_doubling: int = 4) -> list[int]:
    """Return whole numbers from 1 to `largest`, equally spaced on a log axis as far as whole numbers are."""
    return sorted({round(2**step) for step in np.arange(0, np.log2(largest), 1 / per_doubling)} | {largest})


def _curve(n: NDArray, c: NDArray, ids: list[str], ks: list[int]) -> list[Summary]:
    if not ks:
        return []
    return _entries(pass_at_k_curve(n, c, ks, problem_ids=ids, confidence=CONFIDENCE))


def _majority(problems: Sequence[ProblemResult], ks: list[int]) -> list[Summary]:
    if not ks:
        return []
    values = []
    for problem in problems:
        voting = [answer for answer in problem.answers if answer.answer]
        silent = problem.num_samples - sum(answer.count for answer in voting)
        values.append(majority_at_k([a.count for a in voting], [a.correct for a in voting], ks, silent))
    return _entries(mean_curve(values, ks, confidence=CONFIDENCE))


def _entries(curve: PassAtKCurve) -> list[Summary]:
    columns = zip(curve.k, curve.estimate, curve.low, curve.high, curve.reliable, strict=True)
    return [
        {"k": int(k), "estimate": float(value), "low": float(low), "high": float(high), "reliable": bool(reliable)}
        for k, value, low, high, reliable in columns
    ]


def _extrapolation(n: NDArray, c: NDArray, ks: list[int]) -> Summary:
    """Guess the k that were asked for and have too few samples, up to FARTHEST times as many; where none, 4 n."""
    fewest = int(n.min())
    beyond = [k for k in ks if fewest < k <= FARTHEST * fewest] or [4 * fewest]
    curve = [k for k in curve_points(beyond[-1]) if k > fewest]
    try:
        guess = extrapolate_pass_at_k(n, c, sorted({*beyond, *curve}), confidence=CONFIDENCE)
    except ValueError as refusal:
        return {"note": f"Not extrapolated: {refusal}", "pass_at_k": [], "curve": [], "check": None}
    entries = [
        {"k": int(k), "estimate": float(value), "low": float(low), "high": float(high)}
        for k, value, low, high in zip(guess.k, guess.estimate, guess.low, guess.high, strict=True)
    ]
    note, check = guess.note, None
    try:
        found = check_extrapolation(n, c)
    except ValueError:
        # Half of so few samples holds too little to fit.
        note += " There are too few samples to check it on this run."
    else:
        check = {"fitted_on": found.fitted_on, "k": int(found.k[-1]), "rms_error": float(found.rms_error[-1])}
        note += (
            f" Fitted on {found.fitted_on} samples a problem of this run, it missed its pass@{check['k']} by "
            f"{100 * check['rms_error']:.1f} points (root mean square)."
        )
    return {
        "note": note,
        "pass_at_k": [entry for entry in entries if entry["k"] in beyond],
        "curve": entries,
        "check": check,
    }


def _problem(problem: ProblemResult) -> Summary:
    top = top_answer(problem)
    return {
        "problem_id": problem.problem_id,
        "num_samples": problem.num_samples,
        "num_correct": problem.num_correct,
        "num_truncated": problem.num_truncated,
        "num_distinct": len(problem.answers),
        "top_answer": None if top is None else top.answer,
        "top_count": 0 if top is None else top.count,
        "top_correct": top is not None and top.correct,
    }
