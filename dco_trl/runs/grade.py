"""Grade a run's samples, part by part; a part that was graded before is left alone."""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .store import GRADE_SCHEMA, RunStore, StoreError, storable

if TYPE_CHECKING:
    from ..grading import BulkGrader


@dataclass(frozen=True)
class GradingSummary:
    """What a call of [`grade_run`][dco_trl.runs.grade_run] found, over the whole run.

    Args:
        grader: The grader's name.
        num_samples: Samples with a verdict.
        num_correct: Those accepted.
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
    progress: bool = True,
) -> GradingSummary:
    """Grade the samples that this grader has not graded yet, one part at a time.

    Args:
        run_dir: The run's folder.
        grader: "math", "exact", an import path "package.module:function", or a function with the signature of TRL's
            reward functions.
        num_workers: Worker processes; None: one per CPU.
        timeout: Seconds a verdict may take.
        memory_limit: Bytes of address space of a worker.
        cache_dir: Folder for verdicts to remember, shared between runs; None remembers none.
        in_process: Run an import path in this process, without limits, because it holds a model.
        progress: Show progress on standard error.

    Returns:
        Counts over the whole run.

    Raises:
        StoreError: There is no run or it has no samples; the folder is in use; the grader's code has changed.
        GraderError: The grader cannot be loaded, or fails.

    Examples:
        ```python
        >>> from dco_trl.runs import grade_run
        >>> grade_run("runs/ce", "math")  # doctest: +SKIP
        >>> grade_run("runs/ce", "my_graders:loose")  # again, without sampling anew  # doctest: +SKIP

        ```
    """
    from ..grading import BulkGrader, load_grader

    grader_function = load_grader(grader)
    store = RunStore(run_dir)
    parts = store.sample_parts()
    if not parts:
        raise StoreError(f"{store.path} has no samples to grade; `dco-trl sample` draws them")
    with BulkGrader(
        grader,
        num_workers=num_workers,
        timeout=timeout,
        memory_limit=memory_limit,
        cache_dir=cache_dir,
        in_process=in_process,
    ) as bulk:
        return _grade_parts(store, parts, bulk, grader_source(grader_function), progress)


def _grade_parts(
    store: RunStore, parts: list[Path], bulk: "BulkGrader", source: str | None, progress: bool
) -> GradingSummary:
    by_id = {problem.problem_id: problem for problem in store.problems}
    # The built-in graders look at text and reference only.
    builtin = bulk.name in ("math", "exact")
    names = [] if builtin else list(dict.fromkeys(name for p in store.problems for name in p.columns))
    num_new = num_samples = num_correct = 0
    statuses = dict.fromkeys(("graded", "unparsed", "timeout", "error"), 0)
    with store.grading(bulk.name, source):
        todo = sum(not store.grade_part(bulk.name, part).exists() for part in parts)
        for part in parts:
            path = store.grade_part(bulk.name, part)
            if path.exists():
                grades = store.read_part(path, ["score", "status"])
            else:
                samples = store.read_part(part, ["problem_id", "sample_index", "text"])
                rows = [by_id[problem_id] for problem_id in samples.column("problem_id").to_pylist()]
                completions: Any = samples.column("text").combine_chunks()
                if not builtin:
                    completions = [
                        text if isinstance(problem.prompt, str) else [{"role": "assistant", "content": text}]
                        for problem, text in zip(rows, completions.to_pylist(), strict=True)
                    ]
                verdicts = bulk.grade(
                    None if builtin else [problem.prompt for problem in rows],
                    completions,
                    [problem.answer for problem in rows],
                    {name: [problem.columns.get(name) for problem in rows] for name in names},
                    progress=progress and todo == 1,
                )
                grades = pa.table(
                    [
                        samples.column("problem_id"),
                        samples.column("sample_index"),
                        pa.array([verdict.score for verdict in verdicts], pa.float32()),
                        pa.array([storable(verdict.answer) for verdict in verdicts], pa.string()),
                        pa.array([verdict.status for verdict in verdicts], pa.string()),
                    ],
                    schema=GRADE_SCHEMA,
                )
                store.write_grades(path, grades)
                num_new += grades.num_rows
            num_samples += grades.num_rows
            num_correct += sum(score is not None and score > 0.5 for score in grades.column("score").to_pylist())
            for count in grades.column("status").value_counts().to_pylist():
                statuses[count["values"]] = statuses.get(count["values"], 0) + count["counts"]
            if progress and todo > 1 and num_new:
                print(f"grading ({bulk.name}): {num_samples:,} samples done", file=sys.stderr, flush=True)
    return GradingSummary(bulk.name, num_samples, num_correct, statuses, num_new)


def grader_source(grader: Callable) -> str | None:
    """What a grader's verdicts depend on besides the samples: library versions, or a hash of its module's code.

    Args:
        grader: The function.

    Returns:
        Text that changes when the grader does; None where its code is not in a file, as in a notebook.
    """
    from ..grading import exact_grader, math_grader
    from ..grading.judge import identity

    if grader in (exact_grader, math_grader):
        return identity()
    try:
        file = inspect.getsourcefile(inspect.unwrap(grader))
        return f"sha256 {hashlib.sha256(Path(file or '').read_bytes()).hexdigest()[:16]}"
    except (TypeError, OSError):
        return None
