"""Grade millions of samples: duplicates once, strings first, the rest in workers that may be killed."""

import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np

from ..errors import UserError
from .cache import VerdictCache
from .choice import choice_answer, choice_grader
from .deduplicate import chunks, grade_pairs, progress_bar
from .errors import GraderError
from .extract import completion_text, extract_answer
from .extract_code import extract_code
from .graders import exact_grader, grader_name, load_grader, math_grader
from .json_answer import json_answer, json_grader
from .pool import WorkerPool, check_limits
from .regex import regex_grader
from .reward_function import Grader, call_grader
from .thoughts import THOUGHT_TAGS, strip_thoughts
from .verdict import GradingStats, Verdict, shorten

_ROWS_PER_BATCH = 1_024


class BulkGrader:
    """Grades many samples. A context manager: leaving it ends the workers.

    "math" and "exact" depend on the reference and the extracted answer alone. So answers are extracted, each
    distinct pair is judged once, pairs that their strings settle are sent nowhere, known ones come from the disk, and
    the rest of "math" goes to worker processes, each pair under a wall-clock limit (the worker is killed) and an
    address-space limit. Such a worker can neither read the user's files nor write, run or send anything.

    "code" runs each program in a confined process of its own, under the same limits; see `code_grader`.

    "choice", "json" and "regex" run in workers under the same limits, one row at a time.

    An import path "package.module:function" runs in such workers too, under the same limits, but it is trusted: it
    may read, write and use the network. It is called with one row at a time, and sees the whole completion and every
    column. With `in_process=True`, and always for a callable, it runs in this process as TRL would run it: in batches
    of up to 1,024 rows and without limits, so that it may hold a model. Each distinct row is graded once, without a
    cache on disk.

    Args:
        grader: "math", "exact", "choice", "json", "regex", "code", an import path "package.module:function", or a
            callable.
        num_workers: Processes; None: the CPUs that this process may use, divided by the processes that `torchrun`
            or `accelerate` started on this machine (`LOCAL_WORLD_SIZE`).
        timeout: Seconds that one verdict may take. math-verify's own limits are 5 s for each of its steps.
        memory_limit: Bytes of address space of a worker. A worker of "math" starts with about 60 MB; a function of
            the user's gets this much beyond what its worker has after importing it.
        cache_dir: Folder of the verdict cache of "math", shared by any number of runs and processes; None: no cache.
        in_process: Run an import path in this process, without limits: for graders that hold a model.

    Attributes:
        name: The grader's name.
        stats: A `GradingStats`, counting since the start.

    Raises:
        GraderError: The grader cannot be loaded.
        ValueError: A limit is not positive.

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
        in_process: bool = False,
    ):
        limits = check_limits(num_workers, timeout, memory_limit)
        self._function: Grader = load_grader(grader)
        self.name = grader_name(grader)
        self.stats = GradingStats()
        # `functools.partial(math_grader, thought_tags=...)` is the grader, with other tags.
        self._base, bound = getattr(self._function, "func", self._function), getattr(self._function, "keywords", {})
        self._tags = bound.get("thought_tags", THOUGHT_TAGS)
        is_math = self._base is math_grader
        self._by_pair = is_math or self._function is exact_grader
        self._pool: WorkerPool | None = None
        self._run_programs: Callable[..., list[Verdict]] | None = None
        if is_math:
            self._pool = WorkerPool(*limits)
        elif grader == "code":
            from .code import verdicts_of_programs

            self._run_programs = partial(verdicts_of_programs, *limits)
        elif isinstance(grader, str) and not self._by_pair and not in_process:
            self._pool = WorkerPool(*limits, grader=grader)
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
        """Grade one sample per row.

        Args:
            prompts: Strings or lists of messages; None where the grader does without ("math" and "exact" do).
            completions: Strings or lists of messages. Lists, numpy arrays and pyarrow arrays will do, here and below.
            answers: The reference answers.
            columns: Further columns, for a function of the user's.
            progress: Show a bar on standard error.

        Returns:
            A verdict for each row, in order. Rows with the same verdict share one object.

        Raises:
            GraderError: The user's function fails, or returns what a grader may not.
            ValueError: The columns differ in length, or a reference is missing.
        """
        total = len(completions)
        for name, column in {"prompts": prompts, "answers": answers, **(columns or {})}.items():
            if column is not None and len(column) != total:
                raise UserError(f"{name} has {len(column)} rows and completions {total}: each needs one")
        if self._by_pair:
            verdicts, slots = grade_pairs(
                completions, answers, self._pool, self._cache, self.stats, progress, self._tags
            )
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
        slots = np.empty(len(completions), dtype=np.int64)
        slot_of: dict[bytes, int] = {}
        verdicts: list[Verdict] = []
        batch: list[tuple] = []
        parts = [_values(column) for column in (completions, answers, *columns.values())]
        rows = zip(repeat(None) if prompts is None else _values(prompts), *parts, strict=prompts is not None)
        with progress_bar(self.name, len(completions), progress) as bar:
            for i, row in enumerate(rows):
                slots[i] = slot = slot_of.setdefault(_key(row), len(slot_of))
                if slot == len(verdicts) + len(batch):
                    batch.append(row)
                    if len(batch) == _ROWS_PER_BATCH:
                        verdicts += self._grade_batch(batch, prompts is not None, list(columns))
                        batch = []
                bar.update()
            if batch:
                verdicts += self._grade_batch(batch, prompts is not None, list(columns))
        return verdicts, slots

    def _grade_batch(self, batch: list[tuple], with_prompts: bool, names: list[str]) -> list[Verdict]:
        def arguments(rows: Sequence[tuple]) -> tuple[list | None, list, list, dict[str, list]]:
            prompts, completions, answers, *columns = map(list, zip(*rows, strict=True))
            return prompts if with_prompts else None, completions, answers, dict(zip(names, columns, strict=True))

        self.stats.add(computed=len(batch))
        if self._run_programs is not None:
            verdicts = dict(enumerate(self._run_programs(*arguments(batch))))
        elif self._pool is None:
            scores = call_grader(self._function, *arguments(batch), name=self.name)
            verdicts = {i: Verdict(s, "", "unparsed" if s is None else "graded") for i, s in enumerate(scores)}
        else:
            verdicts = dict(self._pool.run([arguments([row]) for row in batch]))
        answers = [shorten(self._answer(row[1], dict(zip(names, row[3:], strict=True)))) for row in batch]
        return [replace(verdicts[i], answer=answer) for i, answer in enumerate(answers)]

    def _answer(self, completion: Any, columns: Mapping[str, Any]) -> str:
        """What a completion answers, as a vote counts it."""
        if hasattr(self._function, "answer_of"):
            return _own_answer(self.name, self._function.answer_of, completion)
        text = strip_thoughts(completion_text(completion), self._tags)
        if self._base is choice_grader:
            return choice_answer(text, columns.get("choices"))
        if self._base is json_grader:
            return json_answer(text)
        if self.name == "code":
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


def _values(column: Sequence) -> Iterator:
    for chunk in chunks(column):
        yield from chunk


def _key(row: tuple) -> bytes:
    """Equal for equal rows, as far as JSON or pickle can tell, and different for different ones."""
    try:
        data = json.dumps(row).encode()
    except (TypeError, ValueError):
        try:
            data = pickle.dumps(row)
        except Exception:
            return os.urandom(16)
    return blake2b(data, digest_size=16).digest()
