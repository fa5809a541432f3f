"""The results of a graded run: for each problem, the counts behind pass@k and a few samples to look at."""

import heapq
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..problem import Problem
from .files import StoreError, sha256
from .grade import is_correct
from .messages import message_text
from .rows import some
from .store import KEY, RunStore, rows_by_problem

if TYPE_CHECKING:
    from .schedule_file import ArmSchedule

# Raw samples kept for each problem: this many right and this many wrong.
EXAMPLES = 3
# Longer answers are shortened for display, but stay distinct.
_ANSWER_LENGTH = 200


@dataclass(frozen=True)
class AnswerCount:
    """One distinct answer to a problem.

    Args:
        answer: As extracted by the grader; shortened if very long.
        count: Samples that gave it.
        correct: Whether the grader accepted it.
        status: "graded", "unparsed", "timeout" or "error".
    """

    answer: str
    count: int
    correct: bool
    status: str


@dataclass(frozen=True)
class ProblemResult:
    """The graded samples of one problem.

    Args:
        problem_id: As in the data set.
        prompt: Plain text; messages are written out one after another.
        reference: The reference answer.
        num_samples: Samples graded.
        num_correct: Samples that the grader accepted. A sample that could not be graded counts as wrong.
        num_truncated: Samples cut off at the token limit.
        answers: Distinct answers, the most frequent first.
        examples: (sample_index, raw text, correct) of a few samples, right and wrong.
        num_ungraded: Complete samples that the grader could not judge.
        num_truncated_correct: Samples accepted although they were cut off.
        by_arm: In a run along a schedule, (samples, accepted ones) of each of its arms.
    """

    problem_id: str
    prompt: str
    reference: str
    num_samples: int
    num_correct: int
    num_truncated: int
    answers: tuple[AnswerCount, ...]
    examples: tuple[tuple[int, str, bool], ...]
    num_ungraded: int = 0
    num_truncated_correct: int = 0
    by_arm: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class RunResult:
    """A graded run.

    Args:
        name: The folder's name.
        manifest: What was sampled, and how.
        grader: The grader's name.
        problems: In the order of the data set.
        schedule: Which arm each sample was drawn from; None for a run of one arm. With a schedule, pass@k is that of
            the first k attempts along it.
    """

    name: str
    manifest: dict[str, Any]
    grader: str
    problems: tuple[ProblemResult, ...]
    schedule: "ArmSchedule | None" = None


def load_results(run_dir: str | os.PathLike[str], grader: str | None = None) -> RunResult:
    """Read a graded run, one part at a time.

    Args:
        run_dir: The run's folder.
        grader: The grader whose verdicts to read; None takes the only one there is.

    Raises:
        StoreError: There is no run; it was not graded, or not completely, or by several graders and none was named; or
            a problem has no samples yet.

    Examples:
        ```python
        >>> import tempfile
        >>> from dco_trl.runs import Problem, RunStore, grade_run, load_results
        >>> folder = tempfile.mkdtemp()
        >>> with RunStore.writing(folder, {"model": "m"}, [Problem("a", "1 + 1 =", "2")]) as store:
        ...     _ = store.write_samples([("a", 0, "2", 2, "stop"), ("a", 1, "3", 2, "stop")])
        >>> _ = grade_run(folder, "exact", progress=False)
        >>> result = load_results(folder).problems[0]
        >>> result.num_samples, result.num_correct
        (2, 1)

        ```

    Relations:
        `dco_trl.report.write_report` turns results into tables, plots and a page.
    """
    store = RunStore(run_dir)
    if "solve" in store.manifest:
        raise StoreError(
            f"{store.path} was made by `dco-trl solve`, which stops at an accepted answer: its counts estimate no "
            "pass@k. Its results are in answers.jsonl; to measure pass@k, run `dco-trl eval` into another folder."
        )
    grader = _chosen_grader(store, grader)
    present = store.present()
    schedule = None
    if "schedule" in store.manifest:
        from .schedule_file import schedule_of_run

        schedule = schedule_of_run(store.path, store.manifest)
    arms = [] if schedule is None else [arm.name for arm in schedule.arms]
    tallies = {problem.problem_id: _Tally(arms) for problem in store.problems}
    graded = store.grade_parts(grader)
    for part in store.sample_parts():
        if part.stem in graded:
            for problem_id, rows in rows_by_problem(_read_part(store, part, graded[part.stem], arms)):
                tallies[problem_id].add(rows)
    ungraded = sum(map(len, present.values())) - sum(tally.counts["num_samples"] for tally in tallies.values())
    if ungraded > 0:
        raise StoreError(
            f"{store.path}: {ungraded} samples are not graded by {grader!r} yet. "
            f"Run `dco-trl grade {store.path} --grader {grader}`: it grades what is missing."
        )
    if empty := [problem_id for problem_id, indices in present.items() if not indices.size]:
        raise StoreError(
            f"{store.path}: {len(empty)} of {len(tallies)} problems have no samples yet ({some(empty, 3)}); leaving "
            "them out would bias the result. Finish the run with the command that began it."
        )
    problems = tuple(tallies[problem.problem_id].result(problem) for problem in store.problems)
    return RunResult(Path(store.path).resolve().name, store.manifest, grader, problems, schedule)


class _Tally:
    """Running counts of one problem; `counts` has the names of `ProblemResult`."""

    def __init__(self, arms: Sequence[str]) -> None:
        self.counts: Counter[str] = Counter()
        self.by_arm: dict[str, tuple[int, int]] = dict.fromkeys(arms, (0, 0))
        self.answers: Counter[tuple[str, bool, str]] = Counter()
        self.examples: dict[bool, list[tuple[int, str, bool]]] = {True: [], False: []}

    def add(self, rows: pa.Table) -> None:
        """Count samples with their verdicts."""
        scores, indices = rows["score"].to_pylist(), rows["sample_index"].to_pylist()
        correct = list(map(is_correct, scores))
        is_cut = [reason == "length" for reason in rows["finish_reason"].to_pylist()]
        self.counts.update(
            num_samples=len(scores),
            num_correct=sum(correct),
            num_truncated=sum(is_cut),
            num_ungraded=sum(score is None and not cut for score, cut in zip(scores, is_cut, strict=True)),
            num_truncated_correct=sum(right and cut for right, cut in zip(correct, is_cut, strict=True)),
        )
        answers = map(_shortened, rows["answer"].to_pylist())
        self.answers.update(zip(answers, correct, rows["status"].to_pylist(), strict=True))
        if self.by_arm:
            for arm, right in zip(rows["arm"].to_pylist(), correct, strict=True):
                num_samples, num_correct = self.by_arm[arm]
                self.by_arm[arm] = num_samples + 1, num_correct + right
        for kind, kept in self.examples.items():
            # Those with the lowest indices, in any part, so that a cluster and one process show the same.
            chosen = heapq.nsmallest(EXAMPLES, ((index, i) for i, index in enumerate(indices) if correct[i] == kind))
            found = [(index, rows["text"][i].as_py(), kind) for index, i in chosen]
            self.examples[kind] = sorted(kept + found)[:EXAMPLES]

    def result(self, problem: Problem) -> ProblemResult:
        prompt, counts = problem.prompt, dict[str, Any](self.counts)
        answers = sorted(self.answers.items(), key=lambda item: (-item[1], item[0]))
        return ProblemResult(
            problem.problem_id,
            prompt if isinstance(prompt, str) else "\n\n".join(f"[{m['role']}]\n{message_text(m)}" for m in prompt),
            problem.answer,
            answers=tuple(AnswerCount(answer, count, right, status) for (answer, right, status), count in answers),
            examples=tuple(sorted(self.examples[True] + self.examples[False])),
            by_arm=tuple(self.by_arm.values()),
            **counts,
        )


def _read_part(store: RunStore, part: Path, graded: Path, arms: Sequence[str]) -> pa.Table:
    """Samples and their verdicts, side by side."""
    samples, grades = store.read_samples(part), store.read_grades(graded)
    if not all(samples[key].equals(grades[key]) for key in KEY):
        raise StoreError(
            f"{graded} does not belong to {part}: their keys differ. Move it out of the folder and grade again."
        )
    if arms and (unknown := set(samples["arm"].to_pylist()) - set(arms)):
        raise StoreError(
            f"{part} has samples of arm {unknown.pop()!r}, which is not in the schedule of manifest.json."
        )
    for name in ("score", "answer", "status"):
        samples = samples.append_column(name, grades[name])
    return samples


def _shortened(answer: str) -> str:
    if len(answer) <= _ANSWER_LENGTH:
        return answer
    return f"{answer[:_ANSWER_LENGTH]}… ({len(answer)} characters, {sha256(answer.encode())[:8]})"


def _chosen_grader(store: RunStore, grader: str | None) -> str:
    graders = store.graders()
    if grader is None and len(graders) > 1:
        raise StoreError(f"must be one of {', '.join(graders)}: {store.path} was graded by each of them", "grader")
    grader = grader or next(iter(graders), None)
    if grader not in graders:
        raise StoreError(
            f"{store.path} was not graded{f' by {grader!r}' if grader else ''} yet"
            f"{f', only by {graders}' if graders else ''}. Run `dco-trl grade {store.path} --grader "
            f"{grader or 'math'}` first."
        )
    return grader
