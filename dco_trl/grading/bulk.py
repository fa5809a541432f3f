"""Grade millions of samples: duplicates once, strings first, the rest in workers that may be killed."""

import functools
import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import islice, repeat
from typing import Any

import numpy as np

from ..errors import UserError
from .cache import VerdictCache
from .choice import choice_answer, choice_grader
from .code import code_grader, run_programs
from .code_blocks import extract_code
from .deduplicate import distinct_pairs, math_verdicts, progress_bar, values
from .extract import completion_text, extract_answer
from .graders import grader_name, load_grader, math_grader
from .pool import WorkerPool, check_limits
from .reward_function import Grader, call_grader
from .string_graders import exact_grader, exact_score, json_answer, json_grader, regex_grader
from .thoughts import THOUGHT_TAGS, strip_thoughts
from .verdict import GraderError, GradingStats, Verdict, shorten

_ROWS_PER_BATCH = 1_024


class BulkGrader:
    """Grades many samples. A context manager: leaving it ends the workers.

    "math" and "exact" depend only on the reference and the extracted answer, so each distinct pair is judged once. For
    "math", string comparison settles most pairs, and the cache holds earlier verdicts. The other pairs go to confined
    worker processes, with limits on time (the worker is killed) and address space. "code" runs each program in its own
    confined process, under the same limits; see `code_grader`.

    "choice", "json", "regex" and import paths "package.module:function" run in unconfined workers, with these limits,
    one row at a time. Your function is trusted: it may read, write and use the network. It sees the whole completion
    and every column. With `in_process=True`, and always for a callable, it runs in this process without limits, in
    batches of up to 1,024 rows, so it may hold a model. Each distinct row is graded once.

    Args:
        grader: "math", "exact", "choice", "json", "regex", "code", an import path "package.module:function", or a
            callable.
        num_workers: Processes; None: the CPUs that this process may use, divided by the processes that `torchrun`
            or `accelerate` started on this machine (`LOCAL_WORLD_SIZE`).
        timeout: Seconds that one verdict may take. math-verify's own limits are 5 s for each of its steps.
        memory_limit: Bytes of address space of a worker. A worker of "math" starts with about 60 MB. For your function
            the limit comes on top of what importing it took.
        cache_dir: Folder of the verdict cache of "math", shared by any number of runs and processes; None: no cache.
        in_process: Run an import path in this process, without limits: for graders that hold a model.

    Attributes:
        name: The grader's name.
        stats: A `GradingStats` of everything graded so far.

    Raises:
        GraderError: The grader cannot be loaded.
        ValueError: A limit is too small.

    Examples:
        >>> with BulkGrader("math") as grader:
        ...     verdicts = grader.grade(["1/4 + 1/4?"] * 3, ["0.5", "so \\boxed{1/2}", "2"], ["\\frac{1}{2}"] * 3)
        >>> [verdict.score for verdict in verdicts]
        [1.0, 1.0, 0.0]

    Relations:
        `math_grader` and `exact_grader` give the same verdicts as TRL reward functions, for use in a trainer.
    """

    def __init__(
        self,
        grader: str | Callable,
        *,
        num_workers: int | None = None,
        timeout: float = 10.0,
        memory_limit: int = 1 << 30,
        cache_dir: str | os.PathLike | None = None,
        in_process: bool = False,
    ):
        limits = check_limits(num_workers, timeout, memory_limit)
        self._function: Grader = load_grader(grader)
        self._base: Any = self._function
        self._bound: dict[str, Any] = {}
        if isinstance(self._base, functools.partial):  # `partial(math_grader, thought_tags=...)` has other tags only
            self._base, self._bound = self._base.func, self._base.keywords
        self.name = grader_name(grader)
        self.stats = GradingStats()
        self._tags = self._bound.get("thought_tags", THOUGHT_TAGS)
        self._pool: WorkerPool | None = None
        self._cache: VerdictCache | None = None
        if self._base is math_grader:
            self._pool = WorkerPool(*limits)
            self._cache = None if cache_dir is None else VerdictCache(cache_dir, timeout, memory_limit)
        elif self._base is code_grader:
            self._bound = dict(num_workers=limits[0], timeout=timeout, memory_limit=memory_limit) | self._bound
        elif isinstance(grader, str) and self._function is not exact_grader and not in_process:
            self._pool = WorkerPool(*limits, grader=grader)

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
        """Grade one sample per row.

        Args:
            prompts: Strings or lists of messages; None if the grader needs none, like "math" and "exact".
            completions: Strings or lists of messages, in a list, a NumPy array or a pyarrow array, as all columns.
            answers: The reference answers.
            columns: Further columns, which all graders but "math" and "exact" get.
            progress: Show a bar on standard error.

        Returns:
            A verdict for each row, in order. Equal rows share one object.

        Raises:
            GraderError: Your function raises, or returns something other than one score per row.
            ValueError: The columns differ in length, or a reference is missing.
        """
        total = len(completions)
        for name, column in {"prompts": prompts, "answers": answers, **(columns or {})}.items():
            if column is not None and len(column) != total:
                raise UserError(f"{name} has {len(column)} rows for {total} completions: give one per completion")
        if self._base is math_grader or self._function is exact_grader:
            pairs, slots = distinct_pairs(completions, answers, self._tags)
            if self._pool is not None:
                verdicts = math_verdicts(pairs, self._pool, self._cache, self.stats, progress)
            else:
                verdicts = [
                    Verdict(exact_score(*pair), shorten(pair[1]), "graded" if pair[1] else "unparsed")
                    for pair in pairs
                ]
        else:
            verdicts, slots = self._grade_rows(prompts, completions, answers, columns or {}, progress)
        warned = bool(self.stats.undecided)
        self.stats.count(verdicts, np.bincount(slots, minlength=len(verdicts)).tolist())
        if self.stats.undecided and not warned:
            warnings.warn(
                f"grader {self.name!r}: {self.stats.undecided} of {self.stats.rows} scores are exactly 0.5. Only a "
                "score above 0.5 is correct, so these count as wrong",
                stacklevel=2,
            )
        return [verdicts[slot] for slot in slots.tolist()]

    def _grade_rows(
        self,
        prompts: Sequence | None,
        completions: Sequence,
        answers: Sequence,
        columns: Mapping[str, Sequence],
        progress: bool,
    ) -> tuple[list[Verdict], np.ndarray]:
        names = list(columns)
        slots = np.empty(len(completions), dtype=np.int64)
        slot_of: dict[bytes, int] = {}
        rows = zip(
            repeat(None, len(completions)) if prompts is None else values(prompts),
            *map(values, (completions, answers, *columns.values())),
            strict=True,
        )

        def new_rows() -> Iterator[tuple]:
            with progress_bar(self.name, len(completions), progress) as bar:
                for i, row in enumerate(rows):
                    known = len(slot_of)
                    slots[i] = slot_of.setdefault(_key(row), known)
                    if len(slot_of) > known:
                        yield row
                    bar.update()

        verdicts: list[Verdict] = []
        new = new_rows()
        while batch := list(islice(new, _ROWS_PER_BATCH)):
            verdicts += self._grade_batch(batch, names, prompts is not None)
        return verdicts, slots

    def _grade_batch(self, rows: list[tuple], names: list[str], has_prompts: bool) -> list[Verdict]:
        def arguments(rows: Sequence[tuple]) -> tuple[list | None, list, list, dict[str, list]]:
            prompts, completions, answers, *columns = map(list, zip(*rows, strict=True))
            return prompts if has_prompts else None, completions, answers, dict(zip(names, columns, strict=True))

        self.stats.add(computed=len(rows))
        if self._base is code_grader:
            prompts, completions, _, columns = arguments(rows)
            verdicts = run_programs(completions, prompts, columns, **self._bound)
        elif self._pool is not None:
            judged = dict(self._pool.run([arguments([row]) for row in rows]))
            verdicts = [judged[i] for i in range(len(rows))]
        else:
            scores = call_grader(self._function, *arguments(rows), name=self.name)
            verdicts = [Verdict(score, "", "unparsed" if score is None else "graded") for score in scores]
        return [
            replace(verdict, answer=shorten(self._answer(row[1], dict(zip(names, row[3:], strict=True)))))
            for row, verdict in zip(rows, verdicts, strict=True)
        ]

    def _answer(self, completion: Any, columns: Mapping[str, Any]) -> str:
        """The answer that a vote counts."""
        if hasattr(self._function, "answer_of"):
            return _own_answer(self.name, self._function.answer_of, completion)
        text = strip_thoughts(completion_text(completion), self._tags)
        if self._base is choice_grader:
            return choice_answer(text, columns.get("choices"))
        if self._base is json_grader:
            return json_answer(text)
        if self._base is code_grader:
            return extract_code(text).strip()
        answer = extract_answer(text, ())
        return answer if self._base in (exact_grader, regex_grader) else answer or text.strip()


def _own_answer(name: str, answer_of: Callable[[Any], Any], completion: Any) -> str:
    try:
        answer = answer_of(completion)
    except Exception as error:
        raise GraderError(f"grader {name!r}: its `answer_of` raised {type(error).__name__}: {error}") from error
    if not isinstance(answer, str):
        raise GraderError(
            f"grader {name!r}: its `answer_of` must return what a completion answers, as a string, got "
            f"{type(answer).__name__}: {str(answer)[:80]!r}"
        )
    return answer


def _key(row: tuple) -> bytes:
    """The same for rows that are equal as JSON or pickle, and different for all others."""
    try:
        data = json.dumps(row).encode()
    except (TypeError, ValueError):
        try:
            data = pickle.dumps(row)
        except Exception:
            return os.urandom(16)
    return blake2b(data, digest_size=16).digest()
