"""Answer problems within a budget: sample in rounds, verify after each, and stop at an accepted answer."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .drawing import Drawing, plan
from .files import write_atomically
from .grade import PartGrader, check_grader, grader_source, is_correct
from .sample import check_run_size
from .store import KEY, RunStore, rows_by_problem, sample_table

if TYPE_CHECKING:
    from ..grading import BulkGrader
    from ..sampling.protocol import Sampler
    from .schedule_file import ArmSchedule

# The file with the answers in the run's folder.
ANSWERS = "answers.jsonl"
# A round adds half of the attempts before it, which bounds what is drawn after the accepted one.
_GROWTH = 1.5


@dataclass(frozen=True)
class Answer:
    """The outcome for one problem; the last four are None if it is unsolved.

    Args:
        problem_id: The problem.
        solved: Whether an answer was accepted.
        attempts: Attempts spent on it.
        answer: The accepted answer, as the verifier extracted it.
        completion: The whole completion that holds it.
        attempt: The attempt that gave it, counted from 1.
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
    """The answers that [`solve`][dco_trl.runs.solve.solve] found.

    Args:
        answers: One for each problem, in order.
        num_attempts: The budget of each problem.
        curve: For several budgets k, up to `num_attempts`: k, the share of problems solved within k attempts, and the
            mean number of attempts spent on a problem under that budget.
        statuses: Completions by verdict: "graded", "unparsed", "timeout", "error".
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

    Attempts are drawn in rounds that end at 1, 2, 3, 4, 6, 9, 13, … Each round samples the unsolved problems and
    verifies the new samples. Every chunk of samples and of verdicts is on disk before the next begins: the same call
    continues after a kill, and no attempt is lost or drawn twice. A larger `num_attempts` continues with the unsolved
    problems; a smaller one returns what it would have given. `answers.jsonl` in the folder has an `Answer` per line
    and is rewritten after each round.

    Args:
        problems: What to solve. `answer` may be "" if the verifier needs no reference.
        sampler: As for [`sample_run`][dco_trl.runs.sample_run], like `schedule`, `params` and `dataset`.
        verifier: Any grader, as for [`grade_run`][dco_trl.runs.grade_run]: "math", "exact", "code", an import path, or
            a function. A score above 0.5 accepts an answer.
        run_dir: The folder for samples, verdicts and answers.
        num_attempts: Budget per problem.
        chunk_size: Sequences per chunk.
        grading: Further arguments of `BulkGrader`, such as `{"timeout": 5.0}`.
        progress: Show solved and open problems and the attempts spent, on standard error.

    Raises:
        ValueError: The verifier needs a reference and a problem has none, or a temperature is given beside a schedule.
        GraderError: The verifier raises. The samples are kept, and the same call verifies them again.
        StoreError: The folder is in use, holds another run, or cannot be written; the schedule is for another model,
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
        Use [`evaluate`][dco_trl.runs.evaluate] to estimate pass@k, which needs equally many samples of every problem.
    """
    from ..grading import BulkGrader
    from ..grading.graders import grader_name

    num_attempts, chunk_size, _ = check_run_size(check_integer("num_attempts", num_attempts), chunk_size)
    name, source = grader_name(verifier), grader_source(verifier)
    _check_references(problems, name)
    check_grader(verifier, problems)
    attempts = Attempts(problems, sampler, params or SamplingParams(), schedule)
    manifest = {**attempts.manifest(num_attempts, dataset), "solve": {"verifier": name}}
    if progress and (note := attempts.note(num_attempts)):
        print(note, file=sys.stderr)
    with (
        BulkGrader(verifier, **(grading or {})) as bulk,
        RunStore.writing(run_dir, manifest, problems) as store,
        store.grading(name, source),
    ):
        drawing = Drawing(store, attempts, chunk_size)
        return _Solving(store, bulk, attempts, drawing, num_attempts).run(progress)


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
    """The work of one call: verify what is on disk, then go round by round."""

    def __init__(
        self, store: RunStore, bulk: "BulkGrader", attempts: Attempts, drawing: Drawing, num_attempts: int
    ) -> None:
        self.store, self.bulk, self.attempts, self.drawing, self.budget = store, bulk, attempts, drawing, num_attempts
        self.grade = PartGrader(store.problems, bulk)
        self.present: dict[str, NDArray[Any]] = store.present()
        self.statuses: Counter[str] = Counter()
        self.accepted: dict[str, tuple[int, str, str]] = {}  # sample index, answer, completion
        graded = store.grade_parts(bulk.name)
        for part in store.sample_parts():
            if part.stem not in graded:
                self._verify(part, store.read_samples(part, [*KEY, "text"]))
                continue
            grades = store.read_grades(graded[part.stem])
            self.statuses.update(grades["status"].to_pylist())
            if any(map(is_correct, grades["score"].to_pylist())):
                self._accept(grades, store.read_samples(part, ["text"]))

    def run(self, progress: bool) -> SolveSummary:
        ends = round_ends(self.budget)
        with tqdm(desc=self.store.path.name, total=len(self.present), unit="problem", disable=not progress) as bar:
            for start, end in zip([0, *ends], ends, strict=False):
                self._show(bar)
                # A solved problem only lacks attempts before its accepted one.
                stops = (min(end, self.accepted.get(problem_id, (end,))[0]) for problem_id in self.present)
                wanted = (np.arange(start, stop) for stop in stops)
                for part, rows in self.drawing(plan(wanted, self.present.values())):
                    samples = sample_table(rows, self.store.sample_schema)
                    for problem_id, keys in rows_by_problem(samples.select(KEY)):
                        there = self.present[problem_id]
                        self.present[problem_id] = np.union1d(there, keys["sample_index"].to_numpy())
                    self._verify(part, samples)
                    self._show(bar)
                self._write()
                if self._within(self.budget)[1] == 1:
                    break
        ks = sorted({4**i for i in range(self.budget.bit_length()) if 4**i < self.budget} | {self.budget})
        return SolveSummary(tuple(self._answers()), self.budget, tuple(map(self._within, ks)), dict(self.statuses))

    def _verify(self, part: Path, samples: pa.Table) -> None:
        grades = self.grade(samples, False)
        self.store.write_grades(self.bulk.name, part, grades)
        self.statuses.update(grades["status"].to_pylist())
        self._accept(grades, samples)

    def _accept(self, grades: pa.Table, samples: pa.Table) -> None:
        """Remember each problem's first accepted attempt."""
        right = np.flatnonzero([is_correct(score) for score in grades["score"].to_pylist()])
        rows = grades.select([*KEY, "answer"]).append_column("text", samples["text"]).take(right)
        for problem_id, *found in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            self.accepted[problem_id] = min(self.accepted.get(problem_id, tuple(found)), tuple(found))

    def _show(self, bar: tqdm) -> None:
        _, share, mean = self._within(self.budget)
        num_problems = len(self.present)
        bar.n = round(share * num_problems)
        bar.set_postfix_str(f"{num_problems - bar.n:,} open, {round(mean * num_problems):,} attempts")

    def _within(self, budget: int) -> tuple[int, float, float]:
        """The budget, the share of problems solved within it, and the mean number of attempts spent under it."""
        solved = sum(index < budget for index, _, _ in self.accepted.values())
        spent = sum(int((indices < budget).sum()) for indices in self.present.values())
        return budget, solved / len(self.present), spent / len(self.present)

    def _answers(self) -> Iterator[Answer]:
        """The answers within the budget. Attempts beyond it, from an earlier larger one, do not count."""
        for problem_id, indices in self.present.items():
            spent = int((indices < self.budget).sum())
            index, answer, text = self.accepted.get(problem_id, (self.budget, "", ""))
            if index >= self.budget:
                yield Answer(problem_id, False, spent)
            else:
                arm = self.attempts.arms[self.attempts.arm_of(np.array([index]))[0]]
                yield Answer(problem_id, True, spent, answer, text, index + 1, arm.name)

    def _write(self) -> None:
        lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in self._answers()]
        write_atomically(self.store.path / ANSWERS, ("\n".join(lines) + "\n").encode())


def _check_references(problems: Sequence[Problem], verifier: str) -> None:
    without = [problem.problem_id for problem in problems if not problem.answer]
    if without and verifier in ("math", "exact", "choice", "json", "regex"):
        raise UserError(
            f"must name the references that verifier={verifier!r} compares with: {len(without)} of {len(problems)} "
            f"problems have none (first: {without[0]!r}). Name their column, or give another verifier.",
            "answer_column",
        )
