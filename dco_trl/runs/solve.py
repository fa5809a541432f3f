"""Answer problems within a budget: sample in rounds, verify after each, leave a problem alone once it is solved."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..checks import check_integer
from ..errors import UserError
from ..problem import Problem
from ..sampling.protocol import SamplingParams
from .attempts import Attempts
from .drawing import Drawing, Gap, gaps_of
from .files import write_atomically
from .grade import PartGrader, check_grader, grader_source, is_correct
from .manifest import run_manifest
from .sample import check_run_size
from .store import RunStore, rows_by_problem, sample_table

if TYPE_CHECKING:
    from ..grading import BulkGrader
    from ..sampling.protocol import Sampler
    from .schedule_file import ArmSchedule

# The file with the answers, in the run's folder.
ANSWERS = "answers.jsonl"
# A round adds half of the attempts before it: what is drawn after the accepted one stays below that.
_GROWTH = 1.5


@dataclass(frozen=True)
class Answer:
    """What came of one problem.

    Args:
        problem_id: The problem.
        solved: Whether an answer was accepted.
        attempts: Attempts spent on it.
        answer: The accepted answer, as the verifier extracted it; None if unsolved.
        completion: The whole completion that holds it.
        attempt: The attempt at which it came, counted from 1.
        arm: The model or adapter, and the temperature, that gave it.
    """

    problem_id: str
    solved: bool
    attempts: int
    answer: str | None = None
    completion: str | None = None
    attempt: int | None = None
    arm: str | None = None


@dataclass(frozen=True)
class SolveSummary:
    """What a call of [`solve`][dco_trl.runs.solve.solve] found.

    Args:
        answers: One for each problem, in order.
        num_attempts: The budget of each problem.
        statuses: Completions by verdict: "graded", "unparsed", "timeout", "error".
        curve: For several budgets k, up to `num_attempts`: k, the share of problems solved within k attempts, and the
            mean number of attempts spent on a problem under that budget.
    """

    answers: tuple[Answer, ...]
    num_attempts: int
    curve: tuple[tuple[int, float, float], ...]
    statuses: Mapping[str, int]

    def __str__(self) -> str:
        solved = sum(answer.solved for answer in self.answers)
        spent = sum(answer.attempts for answer in self.answers)
        fixed = self.num_attempts * len(self.answers)
        lines = [
            f"{solved:,} of {len(self.answers):,} problems solved with {spent:,} attempts; {self.num_attempts:,} for "
            f"every problem would have been {fixed:,} ({spent / fixed:.1%} of them were spent)",
            f"{'budget':>8}  {'solved':>7}  mean attempts",
            *(f"{k:>8,}  {share:>7.1%}  {mean:>13,.1f}" for k, share, mean in self.curve),
        ]
        if unjudged := {status: count for status, count in self.statuses.items() if status != "graded" and count}:
            counts = ", ".join(f"{count:,} {status}" for status, count in unjudged.items())
            lines.append(
                f"the verifier judged {self.statuses.get('graded', 0):,} of {sum(self.statuses.values()):,} "
                f"completions; {counts}"
            )
        return "\n".join(lines)


def solve(
    problems: Sequence[Problem],
    sampler: "Sampler",
    verifier: str | Callable,
    *,
    run_dir: str | os.PathLike[str],
    num_attempts: int,
    schedule: "ArmSchedule | str | os.PathLike[str] | None" = None,
    params: SamplingParams | None = None,
    chunk_size: int | None = None,
    dataset: Mapping[str, Any] | None = None,
    grading: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SolveSummary:
    """Sample until the verifier accepts an answer, up to a budget per problem.

    Attempts are drawn in rounds that end at 1, 2, 3, 4, 6, 9, 13, … Each round samples the problems that are open and
    verifies what was drawn. Every chunk of samples and of verdicts is on disk before the next begins: killed at any
    moment, the same call goes on, and no attempt is lost or drawn twice. A larger `num_attempts` goes on with what is
    unsolved; a smaller one tells what it would have given. `answers.jsonl` in the folder has an `Answer` per line,
    written anew after each round.

    Args:
        problems: What to solve. `answer` may be "" where the verifier needs no reference.
        sampler: Any sampler; it is not closed. With a schedule it has the arms' model and no adapter of its own.
        verifier: Any grader, as for [`grade_run`][dco_trl.runs.grade_run]: "math", "exact", "code", an import path, or
            a function. Only what it scores above 0.5 is accepted.
        run_dir: The folder for samples, verdicts and answers.
        num_attempts: Budget per problem. Beyond what a schedule has planned, its last block goes on.
        schedule: Which arm to sample for each attempt, or the file that says so; None samples the sampler's own.
        params: How to sample. With a schedule `temperature` stays 1: its arms have their own.
        chunk_size: Sequences per chunk.
        dataset: Where the problems come from, for the record.
        grading: Further arguments of `BulkGrader`, such as `{"timeout": 5.0}`.
        progress: Show problems solved, open ones and attempts spent, on standard error.

    Returns:
        The answers, and what they took.

    Raises:
        ValueError: The verifier needs a reference and a problem has none, or a temperature beside a schedule.
        GraderError: The verifier raises. The samples are kept: the same call verifies them again.
        StoreError: The folder is in use, holds another run, or cannot be written; the schedule is of another model,
            or one of its adapters is gone.

    Examples:
        ```python
        >>> from dco_trl.runs import read_problems
        >>> from dco_trl.runs.solve import solve
        >>> from dco_trl.sampling import TransformersSampler
        >>> sampler = TransformersSampler("my-model")  # doctest: +SKIP
        >>> problems = read_problems("problems.jsonl")  # doctest: +SKIP
        >>> print(solve(problems, sampler, "math", run_dir="runs/solved", num_attempts=256))  # doctest: +SKIP

        ```

    Relations:
        [`evaluate`][dco_trl.runs.evaluate] draws equally many samples of every problem: an estimate of pass@k needs
        them, and nothing here gives one.
    """
    from ..grading import BulkGrader
    from ..grading.graders import grader_name

    num_attempts, chunk_size = check_run_size(check_integer("num_attempts", num_attempts), chunk_size)
    params = params or SamplingParams()
    name, source = grader_name(verifier), grader_source(verifier)
    _check_references(problems, name)
    check_grader(verifier, problems)
    attempts = Attempts(problems, sampler, params, schedule)
    manifest = {**run_manifest(attempts.identity, params, num_attempts, dataset), **attempts.manifest()}
    manifest["solve"] = {"verifier": name}
    if progress and (note := attempts.note(num_attempts)):
        print(note, file=sys.stderr)
    with (
        BulkGrader(verifier, **(grading or {})) as bulk,
        RunStore.writing(run_dir, manifest, problems) as store,
        store.grading(name, source),
    ):
        return _Solving(store, bulk, attempts, chunk_size, progress).run(num_attempts)


def round_ends(num_attempts: int) -> list[int]:
    """Numbers of attempts after which rounds end.

    Examples:
        >>> round_ends(20)
        [1, 2, 3, 4, 6, 9, 13, 19, 20]
    """
    ends = [1]
    while ends[-1] < num_attempts:
        ends.append(min(max(ends[-1] + 1, int(ends[-1] * _GROWTH)), num_attempts))
    return ends


class _Solving:
    """One call's work: what is on disk first, then round by round."""

    def __init__(
        self, store: RunStore, bulk: "BulkGrader", attempts: Attempts, chunk_size: int | None, progress: bool
    ) -> None:
        self.store, self.bulk, self.attempts, self.progress = store, bulk, attempts, progress
        self.drawing, self.budget = Drawing(store, attempts, chunk_size), 0
        self.grade = PartGrader(store.problems, bulk)
        self.ids = [problem.problem_id for problem in store.problems]
        present = store.present()
        self.present: dict[str, NDArray[Any]] = {i: present.get(i, np.empty(0, np.int32)) for i in self.ids}
        self.statuses: Counter[str] = Counter()
        self.accepted: dict[str, tuple[int, str, str]] = {}  # sample index, answer, completion
        graded = store.grade_parts(bulk.name)
        for part in store.sample_parts():
            if part.stem not in graded:
                self._verify(part, store.read_samples(part, ["problem_id", "sample_index", "text"]))
                continue
            grades = store.read_grades(graded[part.stem], ["problem_id", "sample_index", "score", "answer", "status"])
            self.statuses.update(grades["status"].to_pylist())
            if any(map(is_correct, grades["score"].to_pylist())):
                self._accept(grades, store.read_samples(part, ["text"]))

    def run(self, num_attempts: int) -> SolveSummary:
        self.budget, ends = num_attempts, round_ends(num_attempts)
        with tqdm(
            desc=self.store.path.name, total=len(self.ids), unit="problem", disable=not self.progress
        ) as self.bar:
            self._show()
            for start, end in zip([0, *ends], ends, strict=False):
                self._round(start, end)
                self._write()
                if self._num_solved() == len(self.ids):
                    break
        budgets = sorted({4**i for i in range(num_attempts.bit_length()) if 4**i < num_attempts} | {num_attempts})
        curve = tuple(map(self._within, budgets))
        return SolveSummary(tuple(self._answers()), num_attempts, curve, dict(self.statuses))

    def _round(self, start: int, end: int) -> None:
        for part, rows in self.drawing(self._missing(np.arange(start, end))):
            samples = sample_table(rows, self.store.sample_schema)
            for problem_id, columns in rows_by_problem(samples.select(["problem_id", "sample_index"])):
                self.present[problem_id] = np.union1d(self.present[problem_id], columns["sample_index"])
            self._verify(part, samples)
            self._show()

    def _missing(self, attempts: NDArray) -> list[Gap]:
        """Gaps of the open problems. Of a solved one, only what comes before its accepted attempt."""
        gaps: list[Gap] = []
        for position, problem_id in enumerate(self.ids):
            wanted = attempts
            if problem_id in self.accepted:
                wanted = attempts[attempts < self.accepted[problem_id][0]]
            gaps += gaps_of(position, wanted, self.present[problem_id])
        return gaps

    def _verify(self, part: Path, samples: pa.Table) -> None:
        grades = self.grade(samples, False)
        self.store.write_grades(self.bulk.name, part, grades)
        self.statuses.update(grades["status"].to_pylist())
        self._accept(grades, samples)

    def _accept(self, grades: pa.Table, samples: pa.Table) -> None:
        """Remember each problem's first accepted attempt."""
        right = np.flatnonzero([is_correct(score) for score in grades["score"].to_pylist()])
        rows = grades.take(right).append_column("text", [samples["text"].take(right).to_pylist()])
        for problem_id, columns in rows_by_problem(rows):
            first = int(np.argmin(columns["sample_index"]))
            found = (int(columns["sample_index"][first]), columns["answer"][first], columns["text"][first])
            self.accepted[problem_id] = min(self.accepted.get(problem_id, found), found)

    def _show(self) -> None:
        spent = sum(int((indices < self.budget).sum()) for indices in self.present.values())
        self.bar.n = self._num_solved()
        self.bar.set_postfix_str(f"{len(self.ids) - self.bar.n:,} open, {spent:,} attempts")

    def _num_solved(self) -> int:
        return sum(index < self.budget for index, _, _ in self.accepted.values())

    def _answers(self) -> list[Answer]:
        """What the budget gave: of attempts beyond it, made under a larger one, nothing counts."""
        answers = []
        for problem_id in self.ids:
            spent = int((self.present[problem_id] < self.budget).sum())
            if problem_id not in self.accepted or self.accepted[problem_id][0] >= self.budget:
                answers.append(Answer(problem_id, False, spent))
                continue
            index, answer, text = self.accepted[problem_id]
            arm = self.attempts.arms[int(self.attempts.arm_of(np.array([index]))[0])]
            answers.append(Answer(problem_id, True, spent, answer, text, index + 1, arm.name))
        return answers

    def _within(self, budget: int) -> tuple[int, float, float]:
        solved = sum(index < budget for index, _, _ in self.accepted.values())
        spent = sum(int((indices < budget).sum()) for indices in self.present.values())
        return budget, solved / len(self.ids), spent / len(self.ids)

    def _write(self) -> None:
        lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in self._answers()]
        write_atomically(self.store.path / ANSWERS, ("\n".join(lines) + "\n").encode())


def _check_references(problems: Sequence[Problem], verifier: str) -> None:
    without = [problem.problem_id for problem in problems if not problem.answer]
    if without and verifier in ("math", "exact", "choice", "json", "regex"):
        raise UserError(
            f"verifier={verifier!r} compares with a reference answer, and {len(without)} of {len(problems)} problems "
            f"have none (first: {without[0]!r}). Name the column with it (answer_column), or give another verifier."
        )
