"""Grade a run's samples, part by part; parts that were graded before are left alone."""

import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from tqdm.auto import tqdm

from ..checks import check_integer
from ..problem import Problem
from .files import StoreError, sha256
from .store import GRADE_SCHEMA, KEY, RunStore, replace_surrogates

if TYPE_CHECKING:
    from ..grading import BulkGrader


@dataclass(frozen=True)
class GradingSummary:
    """The verdicts on a whole run, as [`grade_run`][dco_trl.runs.grade_run] returns them.

    Args:
        grader: The grader's name.
        num_samples: Samples with a verdict.
        num_correct: Accepted samples.
        statuses: Samples by status: "graded", "unparsed", "timeout", "error".
        num_new: Samples that this call graded; the others were graded before.
    """

    grader: str
    num_samples: int
    num_correct: int
    statuses: Mapping[str, int]
    num_new: int

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {status}" for status, count in self.statuses.items() if count)
        return (
            f"{self.num_samples:,} samples graded by {self.grader} ({self.num_new:,} of them now): "
            f"{self.num_correct:,} correct; {counts}"
        )


def grade_run(
    run_dir: str | os.PathLike[str],
    grader: str | Callable,
    *,
    num_workers: int | None = None,
    timeout: float = 10.0,
    memory_limit: int = 1 << 30,
    cache_dir: str | os.PathLike[str] | None = None,
    in_process: bool = False,
    regrade: bool = False,
    ray_workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = True,
) -> GradingSummary:
    """Grade the samples that this grader has not graded yet, one part at a time.

    Args:
        run_dir: The run's folder.
        grader: "math", "exact", an import path "package.module:function", or a function with the signature of TRL's
            reward functions.
        num_workers: Worker processes; None: one per CPU, divided by the processes of `LOCAL_WORLD_SIZE`.
        timeout: Seconds a verdict may take.
        memory_limit: Bytes of address space per worker.
        cache_dir: Folder that keeps verdicts for all runs; None keeps none.
        in_process: Run an import path in this process, without limits, because it holds a model.
        regrade: Delete this grader's verdicts first, for a function that has changed.
        ray_workers: Grade this many parts at a time on a Ray cluster, each with `num_workers` processes, 1 by default.
            None: on this machine.
        ray_address: The cluster's address; None: the cluster of this machine, or a new one here.
        progress: Show progress on standard error.

    Raises:
        StoreError: There is no run or it has no samples; the folder is in use; the grader's code has changed.
        GraderError: The grader cannot be loaded, or fails.
        UserError: `ray_workers` is no integer of at least 1.

    Examples:
        ```python
        >>> from dco_trl.runs import grade_run
        >>> grade_run("runs/ce", "math")  # doctest: +SKIP
        >>> grade_run("runs/ce", "my_graders:loose")  # another grader, the same samples  # doctest: +SKIP

        ```
    """
    from ..grading import grader_name
    from ..grading.verdict import STATUSES

    name, source, store = grader_name(grader), grader_source(grader), RunStore(run_dir)
    parts, total = store.sample_parts(), sum(map(len, store.present().values()))
    if not parts:
        raise StoreError(f"{store.path} has no samples to grade; `dco-trl sample` draws them")
    check_grader(grader, store.problems)
    if ray_workers is not None:
        ray_workers, num_workers = check_integer("ray_workers", ray_workers), num_workers or 1
    limits = {"num_workers": num_workers, "timeout": timeout, "memory_limit": memory_limit, "cache_dir": cache_dir}
    make = partial(_part_grader, store.problems, grader, {**limits, "in_process": in_process})

    def texts(part: Path) -> pa.Table:
        return store.read_samples(part, [*KEY, "text"])

    with store.grading(name, source, anew=regrade), ExitStack() as stack:
        graded = store.grade_parts(name)
        ungraded = [part for part in parts if part.stem not in graded]
        verdicts: Iterable[tuple[Path, pa.Table]]
        if ray_workers is None or not ungraded:
            grade = make()
            stack.enter_context(grade.bulk)
            verdicts = ((part, grade(texts(part), progress)) for part in ungraded)
        else:
            from ..sampling.ray_pool import RayPool

            pool = RayPool(make, ray_workers, num_cpus=num_workers or 1, address=ray_address)
            stack.callback(pool.close)
            verdicts = pool.each("__call__", ungraded, texts)
        summary = GradingSummary(name, 0, 0, dict.fromkeys(STATUSES, 0), 0)
        for path in graded.values():
            summary = _added(summary, store.read_grades(path, ["score", "status"]))
        shown = {"desc": f"{store.path.name}: {name}", "unit": "sample", "disable": not progress or not ungraded}
        with tqdm(total=total, initial=summary.num_samples, **shown) as bar:
            for part, grades in verdicts:
                store.write_grades(name, part, grades)
                summary = _added(summary, grades, grades.num_rows)
                bar.update(grades.num_rows)
    return summary


def check_grader(grader: str | Callable, problems: Sequence[Problem]) -> None:
    """Check before sampling that a grader fits the problems' columns.

    Raises:
        GraderError: The grader cannot be loaded or called, or lacks a column that it needs.
    """
    from ..grading import load_grader
    from ..grading.graders import grader_name
    from ..grading.reward_function import check_signature

    function, name = load_grader(grader), grader_name(grader)
    if not problems:
        return
    first = problems[0]
    names = list(dict.fromkeys(column for problem in problems for column in problem.columns))
    if name in ("choice", "json", "regex", "code"):
        columns = {column: [first.columns.get(column)] for column in names}
        function(**columns | {"completions": [""], "prompts": [first.prompt], "answer": [first.answer]})
    elif name not in ("math", "exact"):
        check_signature(function, names, name)


def _part_grader(problems: list[Problem], grader: str | Callable, limits: Mapping[str, Any]) -> "PartGrader":
    """A grader of parts, for this process or for a worker of a cluster, where it ends with the process."""
    from ..grading import BulkGrader

    return PartGrader(problems, BulkGrader(grader, **limits))


def _added(summary: GradingSummary, grades: pa.Table, num_new: int = 0) -> GradingSummary:
    statuses = Counter(summary.statuses)
    statuses.update(grades["status"].to_pylist())
    num_correct = summary.num_correct + sum(map(is_correct, grades["score"].to_pylist()))
    num_samples = summary.num_samples + grades.num_rows
    return GradingSummary(summary.grader, num_samples, num_correct, statuses, summary.num_new + num_new)


def is_correct(score: float | None) -> bool:
    """Whether a score accepts a sample; a sample that could not be judged is not accepted."""
    return score is not None and score > 0.5


class PartGrader:
    """Grades one part of samples after another."""

    def __init__(self, problems: list[Problem], bulk: "BulkGrader"):
        self.bulk = bulk
        self.by_id = {problem.problem_id: problem for problem in problems}
        # The built-in graders look at text and reference only.
        self.is_builtin = bulk.name in ("math", "exact")
        self.columns = list(dict.fromkeys(name for problem in problems for name in problem.columns))

    def __call__(self, samples: pa.Table, progress: bool = False) -> pa.Table:
        rows = [self.by_id[problem_id] for problem_id in samples["problem_id"].to_pylist()]
        completions: Any = samples["text"].combine_chunks()
        prompts, columns = None, {}
        if not self.is_builtin:
            prompts = [problem.prompt for problem in rows]
            completions = [
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(prompts, completions.to_pylist(), strict=True)
            ]
            columns = {name: [problem.columns.get(name) for problem in rows] for name in self.columns}
        answers = [problem.answer for problem in rows]
        verdicts = self.bulk.grade(prompts, completions, answers, columns, progress=progress)
        return pa.table(
            [
                *(samples[name] for name in KEY),
                [verdict.score for verdict in verdicts],
                [replace_surrogates(verdict.answer) for verdict in verdicts],
                [verdict.status for verdict in verdicts],
            ],
            schema=GRADE_SCHEMA,
        )


def grader_source(grader: str | Callable) -> str | None:
    """What a grader's verdicts depend on besides the samples: versions, or a hash of its module's code.

    None if its code is not in a file, as in a notebook.
    """
    from ..grading import load_grader, math_grader
    from ..grading.math_verdict import identity
    from ..grading.verdict import builtin_source

    function = load_grader(grader)
    base = getattr(function, "func", function)  # of a `functools.partial`
    if isinstance(grader, partial):
        own, bound = grader_source(base), repr((grader.args, sorted(grader.keywords.items())))
        return f"{own}, bound sha256 {sha256(bound.encode())[:16]}" if own and " at 0x" not in bound else None
    is_builtin = getattr(base, "__module__", "").startswith("dco_trl.grading.")
    builtin = identity() if base is math_grader else builtin_source() if is_builtin else ""
    if builtin and base is function:
        return builtin
    try:
        try:
            file = inspect.getsourcefile(inspect.unwrap(function))
        except TypeError:  # an object such as a `functools.partial`: hash the module that makes it
            file = getattr(sys.modules.get(str(grader).partition(":")[0]), "__file__", None)
        code = f"sha256 {sha256(Path(file or '').read_bytes())[:16]}"
        return f"{code}, {builtin}" if builtin else code
    except (TypeError, OSError):
        return None
