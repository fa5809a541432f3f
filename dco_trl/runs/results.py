"""The results of a graded run, problem by problem: the counts behind pass@k, and samples to look at."""

import hashlib
import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .files import StoreError
from .grade import is_correct
from .messages import message_text
from .store import RunStore, rows_by_problem

if TYPE_CHECKING:
    from .schedule_file import ArmSchedule

# Raw samples kept for each problem: this many right and this many wrong ones.
EXAMPLES = 3
# Longer answers are shortened for display and still told apart.
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
        num_correct: Those the grader accepted. What could not be graded counts as wrong.
        num_truncated: Those cut off at the token limit.
        answers: Distinct answers, the most frequent first.
        examples: (sample_index, raw text, correct) of a few samples, right and wrong.
        num_ungraded: Samples, not cut off, that the grader could not judge.
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
        schedule: Which arm each sample was drawn from; None for a run of one arm. pass@k is then that of the first k
            attempts along it.
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

    Returns:
        The run's results.

    Raises:
        StoreError: There is no run; it was not graded, or not to the end, or by several graders and none was named; or
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
    tallies: dict[str, _Tally] = {problem.problem_id: _Tally(arms) for problem in store.problems}
    graded = store.grade_parts(grader)
    for part in store.sample_parts():
        if part.stem in graded:
            _count_part(store, part, graded[part.stem], tallies)
    ungraded = sum(map(len, present.values())) - sum(tally.num_samples for tally in tallies.values())
    if ungraded > 0:
        raise StoreError(
            f"{store.path}: {ungraded} samples are not graded by {grader!r} yet. "
            f"Run `dco-trl grade {store.path} --grader {grader}`: it grades what is missing."
        )
    empty = [problem_id for problem_id in tallies if problem_id not in present]
    if empty:
        raise StoreError(
            f"{store.path}: {len(empty)} of {len(tallies)} problems have no samples yet ({', '.join(empty[:3])}"
            f"{', …' if len(empty) > 3 else ''}); leaving them out would bias the result. Finish the run with the "
            "command that began it."
        )
    problems = tuple(
        tallies[problem.problem_id].result(problem.problem_id, problem.prompt, problem.answer)
        for problem in store.problems
    )
    return RunResult(Path(store.path).resolve().name, store.manifest, grader, problems, schedule)


class _Tally:
    """Running counts of one problem."""

    def __init__(self, arms: Sequence[str]) -> None:
        self.by_arm: dict[str, list[int]] = {arm: [0, 0] for arm in arms}
        self.num_samples = self.num_correct = self.num_truncated = 0
        self.num_ungraded = self.num_truncated_correct = 0
        self.answers: Counter[tuple[str, bool, str]] = Counter()
        self.examples: dict[bool, list[tuple[int, str, bool]]] = {True: [], False: []}

    def result(self, problem_id: str, prompt: Any, reference: str) -> ProblemResult:
        answers = sorted(self.answers.items(), key=lambda item: (-item[1], item[0]))
        return ProblemResult(
            problem_id,
            prompt if isinstance(prompt, str) else "\n\n".join(f"[{m['role']}]\n{message_text(m)}" for m in prompt),
            reference,
            self.num_samples,
            self.num_correct,
            self.num_truncated,
            tuple(AnswerCount(answer, count, correct, status) for (answer, correct, status), count in answers),
            tuple(sorted(self.examples[True] + self.examples[False])),
            self.num_ungraded,
            self.num_truncated_correct,
            tuple((n, c) for n, c in self.by_arm.values()),
        )


def _count_part(store: RunStore, part: Path, graded: Path, tallies: dict[str, _Tally]) -> None:
    samples, grades = store.read_samples(part), store.read_grades(graded)
    if not all(samples.column(key).equals(grades.column(key)) for key in ("problem_id", "sample_index")):
        raise StoreError(
            f"{graded} does not belong to {part}: their keys differ. Move it out of the folder and grade again."
        )
    rows = pa.table(
        {
            "problem_id": samples.column("problem_id"),
            "row": pa.array(range(samples.num_rows), pa.int64()),
            "sample_index": samples.column("sample_index"),
        }
    )
    texts, finish = samples.column("text"), samples.column("finish_reason").to_pylist()
    scores, answers = grades.column("score").to_pylist(), grades.column("answer").to_pylist()
    statuses = grades.column("status").to_pylist()
    arms = samples.column("arm").to_pylist() if "arm" in samples.column_names else None
    if arms and (unknown := set(arms) - next(iter(tallies.values())).by_arm.keys()):
        raise StoreError(
            f"{part} has samples of arm {unknown.pop()!r}, which is not in the schedule of manifest.json."
        )
    seen: dict[str, str] = {}  # one string for equal answers: two million of them would not be small
    for problem_id, columns in rows_by_problem(rows):
        tally = tallies[problem_id]
        wanted: dict[bool, list[tuple[int, int]]] = defaultdict(list)
        for row, index in zip(columns["row"].tolist(), columns["sample_index"].tolist(), strict=True):
            correct = is_correct(scores[row])
            answer = _shortened(answers[row] or "")
            tally.num_samples += 1
            tally.num_correct += correct
            if arms:
                counts = tally.by_arm[arms[row]]
                counts[0], counts[1] = counts[0] + 1, counts[1] + correct
            is_truncated = finish[row] == "length"
            tally.num_truncated += is_truncated
            tally.num_ungraded += scores[row] is None and not is_truncated
            tally.num_truncated_correct += correct and is_truncated
            tally.answers[seen.setdefault(answer, answer), correct, statuses[row]] += 1
            wanted[correct].append((index, row))
        for correct, chosen in wanted.items():
            # Those with the lowest indices, whichever part they are in: so a cluster and one process show the same.
            found = [(index, texts[row].as_py(), correct) for index, row in heapq.nsmallest(EXAMPLES, chosen)]
            tally.examples[correct] = sorted(tally.examples[correct] + found)[:EXAMPLES]


def _shortened(answer: str) -> str:
    if len(answer) <= _ANSWER_LENGTH:
        return answer
    return f"{answer[:_ANSWER_LENGTH]}… ({len(answer)} characters, {hashlib.sha256(answer.encode()).hexdigest()[:8]})"


def _chosen_grader(store: RunStore, grader: str | None) -> str:
    graders = store.graders()
    if grader is not None:
        if grader not in graders:
            raise StoreError(
                f"{store.path} was not graded by {grader!r}"
                + (f", only by {', '.join(graders)}" if graders else "")
                + f". Run `dco-trl grade {store.path} --grader {grader}` first."
            )
        return grader
    if not graders:
        raise StoreError(f"{store.path} was not graded yet. Run `dco-trl grade {store.path} --grader math` first.")
    if len(graders) > 1:
        raise StoreError(f"{store.path} was graded by {', '.join(graders)}; name one of them (grader)")
    return graders[0]
