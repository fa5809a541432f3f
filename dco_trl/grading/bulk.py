"""Grade millions of samples: duplicates once, strings first, the rest in workers that may be killed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cache import VerdictCache
from .extract import completion_text, extract_answer, extract_reference
from .graders import Grader, call_grader, exact_grader, exact_score, grader_name, load_grader, math_grader
from .judge import MAX_ANSWER_CHARS, MAX_SHOWN_CHARS, quick_verdict
from .pool import WorkerPool
from .progress import progress_bar

_CHUNK = 65_536
_ROWS_A_CALL = 1_024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a grader says about one sample.

    Args:
        score: above 0.5 is correct; None: could not be graded.
        answer: the extracted answer ("" if there is none); cut after 1,000 characters.
        status: "graded"; "unparsed", with score 0.0 (the text has no answer, or math-verify cannot read it) or None
            (math-verify cannot read the reference, the answer has more than 10,000 characters, or a function of the
            user's returned None); "timeout" or "error" (the worker died, twice), with score None.
    """

    score: float | None
    answer: str
    status: str


@dataclass
class GradingStats:
    """Counts since the grader was made.

    Args:
        rows: samples graded; the next four add up to it.
        graded: rows with a verdict.
        unparsed: rows without a readable answer or reference.
        timeout: rows whose worker ran out of time, twice.
        error: rows whose worker died, twice.
        distinct: pairs (reference, answer), or distinct rows for a function of the user's.
        from_cache: pairs found on disk.
        computed: pairs that went to a worker, or rows that the user's function saw.
    """

    rows: int = 0
    graded: int = 0
    unparsed: int = 0
    timeout: int = 0
    error: int = 0
    distinct: int = 0
    from_cache: int = 0
    computed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rows} samples, {self.distinct} distinct: {self.graded} graded, {self.unparsed} unparsed, "
            f"{self.timeout} timed out, {self.error} failed"
        )


class BulkGrader:
    """Grades many samples. A context manager: leaving it ends the workers.

    "math" and "exact" depend on the reference and the extracted answer alone. So answers are extracted, each
    distinct pair is judged once, pairs whose strings settle it are not sent anywhere, known ones come from the disk,
    and what is left of "math" goes to worker processes, each pair under a wall-clock limit (the worker is killed) and
    an address-space limit. The verdict is math-verify's on every pair that it answers within the limits.

    A function of the user's (a callable or an import path) may look at the whole completion and at every column, hold
    a model or use the network. It runs in this process, in batches, as TRL would run it: without limits, without a
    cache on disk, each distinct row once.

    Args:
        grader: "math", "exact", an import path "package.module:function", or a callable.
        num_workers: processes; as many as this process may use CPUs, if not given.
        timeout: seconds a pair may take. math-verify's own limits are 5 s for each of its steps.
        memory_limit: bytes of address space of a worker; a worker starts with about 60 MB.
        cache_dir: folder of the verdict cache, shared by any number of runs and processes; None: no cache on disk.

    Attributes:
        name: the grader's name.
        stats: a `GradingStats`, counting since the start.

    Raises:
        GraderError: the grader cannot be loaded.
        ValueError: a limit is not positive.

    Examples:
        >>> with BulkGrader("math") as grader:
        ...     verdicts = grader.grade(["1/4 + 1/4?"] * 3, ["0.5", "so \\boxed{1/2}", "2"], ["\\frac{1}{2}"] * 3)
        >>> [verdict.score for verdict in verdicts]
        [1.0, 1.0, 0.0]

    Relations:
        `math_grader` and `exact_grader` are the same verdicts as TRL reward functions, for use in a trainer.
    """

    def __init__(
        self,
        grader: str | Callable,
        *,
        num_workers: int | None = None,
        timeout: float = 10.0,
        memory_limit: int = 1 << 30,
        cache_dir: str | os.PathLike | None = None,
    ):
        if num_workers is None:
            num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        if not timeout > 0:
            raise ValueError(f"timeout is the time a verdict may take, in seconds: it must be above 0, got {timeout}")
        if memory_limit < 256 << 20:
            raise ValueError(
                f"memory_limit is in bytes, and math-verify needs at least 256 MiB ({256 << 20}) to work, "
                f"got {memory_limit}"
            )
        self._function: Grader = load_grader(grader)
        self.name = grader_name(grader)
        self.stats = GradingStats()
        is_math = self._function is math_grader
        self._pool = WorkerPool(num_workers, timeout, memory_limit) if is_math else None
        self._cache = VerdictCache(cache_dir, timeout, memory_limit) if is_math and cache_dir is not None else None

    def __enter__(self) -> "BulkGrader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and write the cache."""
        if self._pool is not None:
            self._pool.close()
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def grade(
        self,
        prompts: Sequence | None,
        completions: Sequence,
        answers: Sequence,
        columns: Mapping[str, Sequence] | None = None,
        progress: bool = True,
    ) -> list[Verdict]:
        """Grade one sample a row.

        Args:
            prompts: strings or lists of messages; None where the grader does without ("math" and "exact" do).
            completions: strings or lists of messages. Lists, numpy arrays and pyarrow arrays will do, here and below.
            answers: the reference answers.
            columns: further columns, for a function of the user's.
            progress: show a bar (on a terminal) or a line every half minute.

        Returns:
            A verdict for each row, in order. Rows with the same verdict share one object.

        Raises:
            GraderError: the user's function fails, or returns what a grader may not.
            ValueError: the columns differ in length, or a reference is missing.
        """
        total = len(completions)
        named = {"prompts": prompts, "answers": answers, **(columns or {})}
        for name, column in named.items():
            if column is not None and len(column) != total:
                raise ValueError(f"{name} has {len(column)} rows and completions {total}: one a completion is needed")
        if self._function in (math_grader, exact_grader):
            verdicts, slots = self._grade_pairs(completions, answers, progress)
        else:
            verdicts, slots = self._grade_rows(prompts, completions, answers, columns or {}, progress)
        self._count(verdicts, slots)
        return [verdicts[slot] for slot in slots.tolist()]

    def _grade_pairs(
        self, completions: Sequence, answers: Sequence, progress: bool
    ) -> tuple[list[Verdict], np.ndarray]:
        pairs, too_long, slots = _distinct_pairs(completions, answers)
        outcomes: list[tuple[float | None, str, str | None] | None] = [None] * len(pairs)
        if self._pool is None:
            for i, (reference, answer) in enumerate(pairs):
                outcomes[i] = (exact_score(reference, answer), "graded" if answer else "unparsed", None)
        else:
            unsettled = []
            for i, pair in enumerate(pairs):
                quick = (None, "unparsed") if i in too_long else quick_verdict(*pair)
                if quick is None:
                    unsettled.append(i)
                else:
                    outcomes[i] = (*quick, None)
            if self._cache is not None:
                for i, known in self._cache.get(pairs[u] for u in unsettled):
                    outcomes[unsettled[i]] = known
                    self.stats.from_cache += 1
                unsettled = [u for u in unsettled if outcomes[u] is None]
            with progress_bar(f"grading ({self.name})", len(unsettled), progress) as step:
                for i, outcome in self._pool.run([pairs[u] for u in unsettled]):
                    outcomes[unsettled[i]] = outcome
                    self.stats.computed += 1
                    if self._cache is not None:
                        self._cache.put(pairs[unsettled[i]], outcome)
                    step()
            if self._cache is not None:
                self._cache.flush()
        verdicts = []
        for (_, answer), settled in zip(pairs, outcomes, strict=True):
            assert settled is not None
            score, status, shown = settled
            verdicts.append(Verdict(score, _shorten(answer if shown is None else shown), status))
        return verdicts, slots

    def _grade_rows(
        self,
        prompts: Sequence | None,
        completions: Sequence,
        answers: Sequence,
        columns: Mapping[str, Sequence],
        progress,
    ) -> tuple[list[Verdict], np.ndarray]:
        total = len(completions)
        slots = np.empty(total, dtype=np.int64)
        slot_of: dict[bytes, int] = {}
        verdicts: list[Verdict] = []
        batch: list[tuple] = []

        def run_batch() -> None:
            rows = list(zip(*batch, strict=True))
            named = {name: list(values) for name, values in zip(columns, rows[3:], strict=True)}
            scores = call_grader(
                self._function,
                list(rows[0]) if prompts is not None else None,
                list(rows[1]),
                list(rows[2]),
                named,
                name=self.name,
            )
            for row, score in zip(batch, scores, strict=True):
                answer = _shorten(extract_answer(completion_text(row[1])))
                verdicts.append(Verdict(score, answer, "graded" if score is not None else "unparsed"))
            self.stats.computed += len(batch)
            batch.clear()

        with progress_bar(f"grading ({self.name})", total, progress) as step:
            for i, row in enumerate(_rows(prompts, completions, answers, columns)):
                key = hashlib.blake2b(json.dumps(row, default=repr).encode(), digest_size=16).digest()
                slot = slot_of.setdefault(key, len(slot_of))
                slots[i] = slot
                if slot == len(verdicts) + len(batch):
                    batch.append(row)
                    if len(batch) == _ROWS_A_CALL:
                        run_batch()
                step()
            if batch:
                run_batch()
        return verdicts, slots

    def _count(self, verdicts: list[Verdict], slots: np.ndarray) -> None:
        by_status: Counter[str] = Counter()
        for verdict, count in zip(verdicts, np.bincount(slots, minlength=len(verdicts)).tolist(), strict=True):
            by_status[verdict.status] += count
        self.stats.rows += len(slots)
        self.stats.distinct += len(verdicts)
        for status, count in by_status.items():
            setattr(self.stats, status, getattr(self.stats, status) + count)


def _distinct_pairs(completions: Sequence, answers: Sequence) -> tuple[list[tuple[str, str]], set[int], np.ndarray]:
    # Texts are looked at one chunk at a time and forgotten: what stays is one integer a row and the distinct answers.
    slots = np.empty(len(completions), dtype=np.int64)
    slot_of: dict[tuple[str, str], int] = {}
    too_long: set[int] = set()
    references: dict[Any, str] = {}
    row = 0
    for texts, golds in zip(_chunks(completions), _chunks(answers), strict=True):
        seen: dict[tuple, int] = {}
        for text, gold in zip(texts, golds, strict=True):
            if type(text) is not str:
                text = completion_text(text)
            slot = seen.get((gold, text))
            if slot is None:
                reference = references.get(gold)
                if reference is None:
                    if gold is None:
                        raise ValueError(f"answers[{row}] is None: a sample without a reference cannot be graded")
                    reference = references[gold] = extract_reference(gold)
                answer = extract_answer(text)
                long = len(answer) > MAX_ANSWER_CHARS and answer != reference
                pair = (reference, _shorten(answer) if long else answer)
                slot = seen[gold, text] = slot_of.setdefault(pair, len(slot_of))
                if long:
                    too_long.add(slot)
            slots[row] = slot
            row += 1
    return list(slot_of), too_long, slots


def _chunks(column: Sequence) -> Iterator[Sequence]:
    for start in range(0, len(column), _CHUNK):
        if hasattr(column, "to_pylist"):
            yield column.slice(start, _CHUNK).to_pylist()  # type: ignore[attr-defined]
        else:
            part = column[start : start + _CHUNK]
            yield part.tolist() if hasattr(part, "tolist") else part


def _rows(
    prompts: Sequence | None, completions: Sequence, answers: Sequence, columns: Mapping[str, Sequence]
) -> Iterator[tuple]:
    parts: list[Iterable] = [_values(prompts) if prompts is not None else [None] * len(completions)]
    parts += [_values(completions), _values(answers), *(_values(column) for column in columns.values())]
    return zip(*parts, strict=True)


def _values(column: Sequence) -> Iterator:
    for chunk in _chunks(column):
        yield from chunk


def _shorten(answer: str) -> str:
    return answer if len(answer) <= MAX_SHOWN_CHARS else answer[:MAX_SHOWN_CHARS] + "…"
