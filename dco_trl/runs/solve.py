"""Answer problems within a budget: sample in rounds, verify after each, leave a problem alone once it is solved."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..checks import check_integer
from ..problem import Problem
from ..sampling.fingerprint import describe
from ..sampling.protocol import SampleRequest, SamplingParams
from ..statistics.schedule import AttemptSchedule
from .arms import Arm
from .files import StoreError, write_atomically
from .grade import PartGrader, grader_source, is_correct
from .manifest import run_manifest
from .sample import Chunks, check_run_size, draw_rows, next_chunk_size
from .schedule_file import ArmSchedule, read_schedule
from .store import RunStore, rows_by_problem

if TYPE_CHECKING:
    from ..grading import BulkGrader
    from ..sampling.protocol import Sampler

ANSWERS_NAME = "answers.jsonl"
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
        curve: For several budgets k, up to `num_attempts`: k, the share of problems solved within k attempts, and the
            mean number of attempts spent on a problem under that budget.
    """

    answers: tuple[Answer, ...]
    num_attempts: int
    curve: tuple[tuple[int, float, float], ...]

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
        return "\n".join(lines)


def solve(
    problems: Sequence[Problem],
    sampler: "Sampler",
    verifier: str | Callable,
    *,
    run_dir: str | os.PathLike[str],
    num_attempts: int,
    schedule: ArmSchedule | str | os.PathLike[str] | None = None,
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
    unsolved. `answers.jsonl` in the folder has an `Answer` per line, written anew after each round.

    Args:
        problems: What to solve. `answer` may be "" where the verifier needs no reference.
        sampler: Any sampler; it is not closed. With a schedule over adapters, one that can load them in turn.
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
        ValueError: The verifier needs a reference and a problem has none, or the sampler cannot follow the schedule.
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
    from ..grading import BulkGrader, load_grader
    from ..grading.graders import grader_name

    num_attempts, chunk_size = check_run_size(check_integer("num_attempts", num_attempts), chunk_size)
    params = params or SamplingParams()
    name, source = grader_name(verifier), grader_source(load_grader(verifier))
    _check_references(problems, name)
    if schedule is not None and not isinstance(schedule, ArmSchedule):
        schedule = read_schedule(schedule)
    arms = _Arms(sampler, schedule, params)
    manifest = run_manifest(sampler, params, num_attempts, dataset)
    manifest["solve"] = {"verifier": name, "schedule": arms.identity()}
    if progress and schedule is not None and num_attempts > schedule.schedule.num_attempts:
        print(
            f"the schedule plans {schedule.schedule.num_attempts:,} attempts: beyond them its last arm goes on",
            file=sys.stderr,
        )
    with (
        BulkGrader(verifier, **(grading or {})) as bulk,
        RunStore.writing(run_dir, manifest, problems) as store,
        store.grading(name, source),
    ):
        work = _Solving(store, bulk, arms, chunk_size, progress)
        return work.run(num_attempts)


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


class _Arms:
    """The sampler, switched from arm to arm."""

    def __init__(self, sampler: "Sampler", schedule: ArmSchedule | None, params: SamplingParams) -> None:
        self.sampler, self.params = sampler, params
        own = sampler.identity()
        self.schedule: AttemptSchedule | None = None
        self.arms = [Arm(own.get("model", ""), own.get("adapter", ""), params.temperature)]
        self._adapter = self.arms[0].adapter
        if schedule is None:
            return
        self.schedule, self.arms = schedule.schedule, list(schedule.arms)
        if params.temperature != 1:
            raise ValueError(
                f"temperature={params.temperature:g} cannot be combined with a schedule, whose arms have their own. "
                "Leave it out."
            )
        for arm in self.arms:
            self._check(arm, own)
        if {arm.adapter for arm in self.arms} != {self._adapter} and not hasattr(sampler, "load_adapter"):
            raise ValueError(
                f"sampler {type(sampler).__name__} cannot load one adapter after another, which the schedule needs: "
                "sample it with TransformersSampler (--sampler transformers)."
            )
        self._switch("")  # so that the manifest describes the model alone, and the arms each adapter

    def _check(self, arm: Arm, own: Mapping[str, Any]) -> None:
        fingerprint = own.get("model_fingerprint", "")
        is_other = arm.model != own.get("model", "")
        if arm.model_fingerprint and fingerprint:
            is_other = arm.model_fingerprint != fingerprint
        if is_other:
            raise StoreError(
                f"arm {arm.name!r} of the schedule is for model {arm.model!r} "
                f"({arm.model_fingerprint or 'no fingerprint'}), and the sampler has {own.get('model')!r} "
                f"({fingerprint or 'no fingerprint'}). Load that model, or plan a schedule for this one."
            )
        if arm.adapter and not (Path(arm.adapter) / "adapter_config.json").is_file():
            raise StoreError(
                f"the adapter of arm {arm.name!r} is gone: {arm.adapter} has no adapter_config.json. Restore it, or "
                "plan a schedule without it."
            )

    def identity(self) -> list[dict[str, Any]] | None:
        """The arms and blocks, with hashes of the adapters."""
        if self.schedule is None:
            return None
        arms = [{**asdict(arm), **describe("adapter", arm.adapter)} for arm in self.arms]
        return [*arms, {"blocks": self.schedule.to_dict()["blocks"]}]

    def of(self, attempts: NDArray) -> NDArray[np.int64]:
        """The arm of each attempt, counted from 0."""
        if self.schedule is None:
            return np.zeros(attempts.size, dtype=np.int64)
        block = np.searchsorted(np.cumsum(self.schedule.attempts), attempts, side="right")
        return self.schedule.arm[np.minimum(block, self.schedule.arm.size - 1)]

    def draw(self, arm: int, requests: list[SampleRequest], ids: list[str]) -> list[tuple[str, int, str, int, str]]:
        """Samples of one arm, as rows of the store."""
        params = self.params
        if self.schedule is not None:
            self._switch(self.arms[arm].adapter)
            params = replace(params, temperature=self.arms[arm].temperature)
        return draw_rows(self.sampler, requests, params, ids)

    def _switch(self, adapter: str) -> None:
        if adapter != self._adapter:
            self.sampler.load_adapter(adapter or None)  # type: ignore[attr-defined]
            self._adapter = adapter


class _Solving:
    """One call's work: what is on disk first, then round by round."""

    def __init__(
        self, store: RunStore, bulk: "BulkGrader", arms: _Arms, chunk_size: int | None, progress: bool
    ) -> None:
        self.store, self.bulk, self.arms, self.chunk_size, self.progress = store, bulk, arms, chunk_size, progress
        self.drawn, self.seconds = 0, 0.0
        self.grade = PartGrader(store.problems, bulk)
        self.ids = [problem.problem_id for problem in store.problems]
        self.present: dict[str, NDArray[Any]] = dict.fromkeys(self.ids, np.empty(0, np.int32)) | store.present()
        self.accepted: dict[str, tuple[int, str, str]] = {}  # sample index, answer, completion
        graded = store.grade_parts(bulk.name)
        for part in store.sample_parts():
            self._verify(part, graded.get(part.stem))

    def run(self, num_attempts: int) -> SolveSummary:
        ends = round_ends(num_attempts)
        with tqdm(
            desc=self.store.path.name, total=len(self.ids), unit="problem", disable=not self.progress
        ) as self.bar:
            self._show()
            for start, end in zip([0, *ends], ends, strict=False):
                self._round(start, end)
                self._write()
                if len(self.accepted) == len(self.ids):
                    break
        budgets = sorted({4**i for i in range(num_attempts.bit_length()) if 4**i < num_attempts} | {num_attempts})
        return SolveSummary(tuple(self._answers()), num_attempts, tuple(map(self._within, budgets)))

    def _round(self, start: int, end: int) -> None:
        arm_of = self.arms.of(np.arange(start, end))
        for arm in dict.fromkeys(arm_of.tolist()):
            attempts = start + np.flatnonzero(arm_of == arm)
            chunks = Chunks(self._missing(attempts))
            while chunks:
                size = self.chunk_size or next_chunk_size(self.arms.params.max_tokens, self.drawn, self.seconds)
                pieces = chunks.take(size)
                requests = [
                    SampleRequest(self.store.problems[i].prompt, count, first_index=first, stream=i)
                    for i, first, count in pieces
                ]
                began = time.perf_counter()
                rows = self.arms.draw(arm, requests, [self.ids[i] for i, _, _ in pieces])
                self.seconds += time.perf_counter() - began
                self.drawn += len(rows)
                part = self.store.write_samples(rows)
                for i, first, count in pieces:
                    self.present[self.ids[i]] = np.union1d(self.present[self.ids[i]], np.arange(first, first + count))
                self._verify(part)
                self._show()

    def _missing(self, attempts: NDArray) -> list[tuple[int, int, int]]:
        """Gaps of the open problems: (position, first index, number). Only what comes before an accepted attempt."""
        gaps = []
        for position, problem_id in enumerate(self.ids):
            wanted = attempts
            if problem_id in self.accepted:
                wanted = attempts[attempts < self.accepted[problem_id][0]]
            wanted = np.setdiff1d(wanted, self.present[problem_id], assume_unique=True)
            if wanted.size:
                for gap in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):
                    gaps.append((position, int(gap[0]), len(gap)))
        return gaps

    def _verify(self, part: Path, graded: Path | None = None) -> None:
        """Grade a part unless it is graded, and remember each problem's first accepted attempt."""
        if graded is None:
            samples = self.store.read_samples(part, ["problem_id", "sample_index", "text"])
            graded = self.store.write_grades(self.bulk.name, part, self.grade(samples, False))
        grades = self.store.read_grades(graded, ["problem_id", "sample_index", "score", "answer"])
        right = np.flatnonzero([is_correct(score) for score in grades["score"].to_pylist()])
        if not right.size:
            return
        texts = self.store.read_samples(part, ["text"])["text"].take(right).to_pylist()
        rows = grades.take(right).append_column("text", [texts])
        for problem_id, columns in rows_by_problem(rows):
            first = int(np.argmin(columns["sample_index"]))
            found = (int(columns["sample_index"][first]), columns["answer"][first], columns["text"][first])
            self.accepted[problem_id] = min(self.accepted.get(problem_id, found), found)

    def _show(self) -> None:
        spent = sum(map(len, self.present.values()))
        self.bar.n = len(self.accepted)
        self.bar.set_postfix_str(f"{len(self.ids) - self.bar.n:,} open, {spent:,} attempts")

    def _answers(self) -> list[Answer]:
        answers = []
        for problem_id in self.ids:
            spent = len(self.present[problem_id])
            if problem_id not in self.accepted:
                answers.append(Answer(problem_id, False, spent))
                continue
            index, answer, text = self.accepted[problem_id]
            arm = self.arms.arms[int(self.arms.of(np.array([index]))[0])]
            answers.append(Answer(problem_id, True, spent, answer, text, index + 1, arm.name))
        return answers

    def _within(self, budget: int) -> tuple[int, float, float]:
        solved = sum(index < budget for index, _, _ in self.accepted.values())
        spent = sum(int((indices < budget).sum()) for indices in self.present.values())
        return budget, solved / len(self.ids), spent / len(self.ids)

    def _write(self) -> None:
        lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in self._answers()]
        write_atomically(self.store.path / ANSWERS_NAME, ("\n".join(lines) + "\n").encode())


def _check_references(problems: Sequence[Problem], verifier: str) -> None:
    without = [problem.problem_id for problem in problems if not problem.answer]
    if without and verifier in ("math", "exact"):
        raise ValueError(
            f"verifier={verifier!r} compares with a reference answer, and {len(without)} of {len(problems)} problems "
            f"have none (first: {without[0]!r}). Name the column with it (answer_column), or give another verifier."
        )
