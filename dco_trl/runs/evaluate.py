"""Sample, grade and read in one call."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..problem import Problem
from ..sampling.protocol import SamplingParams
from .grade import grade_run
from .results import RunResult, load_results
from .sample import sample_run

if TYPE_CHECKING:
    from ..sampling.protocol import Sampler
    from .schedule_file import ArmSchedule


def evaluate(
    run_dir: str | os.PathLike[str],
    problems: Sequence[Problem],
    sampler: "Sampler",
    grader: str | Callable,
    num_samples: int,
    params: SamplingParams | None = None,
    *,
    schedule: "ArmSchedule | str | os.PathLike[str] | None" = None,
    chunk_size: int | None = None,
    progress: bool = True,
) -> RunResult:
    """Sample a run, grade it and read its results.

    Args:
        run_dir: The run's folder.
        problems: What to sample.
        sampler: Any sampler; it is not closed.
        grader: As for [`grade_run`][dco_trl.runs.grade_run].
        num_samples: As for [`sample_run`][dco_trl.runs.sample_run], like the next three.
        params: As there.
        schedule: As there.
        chunk_size: As there.
        progress: Show progress on standard error.

    Raises:
        ValueError: As for `sample_run`, `grade_run` and `load_results`.

    Examples:
        ```python
        >>> from dco_trl.runs import evaluate, read_problems
        >>> from dco_trl.statistics import pass_at_k
        >>> from dco_trl.sampling import TransformersSampler
        >>> problems = read_problems("problems.jsonl")  # doctest: +SKIP
        >>> result = evaluate("runs/ce", problems, TransformersSampler("my-model"), "math", 256)  # doctest: +SKIP
        >>> pass_at_k(256, [p.num_correct for p in result.problems], 16).mean()  # doctest: +SKIP

        ```
    """
    sample_run(
        run_dir, problems, sampler, num_samples, params, schedule=schedule, chunk_size=chunk_size, progress=progress
    )
    return load_results(run_dir, grade_run(run_dir, grader, progress=progress).grader)
