"""Draw samples of each problem into a run; a run that is killed at any moment goes on where it was."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..checks import check_integer
from ..problem import Problem
from ..sampling.protocol import SamplingParams
from .attempts import Attempts
from .drawing import Drawing, plan
from .store import RunStore

if TYPE_CHECKING:
    from ..sampling.protocol import Sampler
    from .schedule_file import ArmSchedule


@dataclass(frozen=True)
class SamplingSummary:
    """What a call of [`sample_run`][dco_trl.runs.sample_run] did.

    Args:
        num_drawn: Samples that this call drew.
        num_present: Samples in the run now.
        num_tokens: Tokens of the samples drawn.
        num_truncated: Samples drawn that were cut off at the token limit.
        seconds: Time spent in the sampler.
    """

    num_drawn: int
    num_present: int
    num_tokens: int
    num_truncated: int
    seconds: float

    def __str__(self) -> str:
        if not self.num_drawn:
            return f"nothing to draw: the run has all of its {self.num_present:,} samples"
        text = (
            f"{self.num_drawn:,} samples drawn in {_duration(self.seconds)} "
            f"({self.num_tokens / max(self.seconds, 1e-9):,.0f} tokens/s), {self.num_present:,} in the run"
        )
        if self.num_truncated:
            text += (
                f"; {self.num_truncated / self.num_drawn:.1%} of them cut off at max_tokens, which most graders count "
                "as wrong"
            )
        return text


def sample_run(
    run_dir: str | os.PathLike[str],
    problems: Sequence[Problem],
    sampler: "Sampler",
    num_samples: int,
    params: SamplingParams | None = None,
    *,
    schedule: "ArmSchedule | str | os.PathLike[str] | None" = None,
    chunk_size: int | None = None,
    dataset: Mapping[str, Any] | None = None,
    first_sample: int = 0,
    progress: bool = True,
) -> SamplingSummary:
    """Draw the samples that a run lacks of `num_samples` per problem, part by part.

    Each part is on disk before the next begins, so the same call continues a run that was killed. A larger
    `num_samples` adds to the run.

    Args:
        run_dir: The run's folder, made if there is none.
        problems: What to sample.
        sampler: Any sampler; it is not closed. With a schedule it has the arms' model and no adapter of its own.
        num_samples: Samples wanted per problem, at least 1.
        params: How to sample; by default `SamplingParams()`. With a schedule, `temperature` stays 1 because each arm
            has its own. Draws depend on the seed and on what is sampled: the same call gives the same samples as far
            as the sampler can, and other models, adapters or temperatures with the same seed draw independently.
        schedule: Which arm each sample is drawn from, as a schedule or its file; the store keeps it. After the planned
            attempts, the last arm goes on. None: the sampler's own model, adapter and temperature.
        chunk_size: Sequences per chunk. None: up to 16,384, and about five minutes of work.
        dataset: Where the problems come from, for the record.
        first_sample: Index of the first sample to draw. `merge_runs` merges runs of several ranges, which machines
            without a shared disk have drawn.
        progress: Show a bar on standard error.

    Raises:
        ValueError: `num_samples` or `chunk_size` is not an integer of at least 1, or a temperature is given beside a
            schedule.
        StoreError: The folder is in use, holds another run, or cannot be written; the schedule cannot be read, is for
            another model, or lacks one of its adapters.

    Examples:
        ```python
        >>> from dco_trl.runs import read_problems, sample_run
        >>> from dco_trl.sampling import TransformersSampler
        >>> problems = read_problems("problems.jsonl")  # doctest: +SKIP
        >>> sample_run("runs/ce", problems, TransformersSampler("my-model"), 4096)  # doctest: +SKIP

        ```

    Relations:
        [`evaluate`][dco_trl.runs.evaluate] samples, grades and reads the results.
    """
    num_samples, chunk_size, first_sample = check_run_size(num_samples, chunk_size, first_sample)
    attempts = Attempts(problems, sampler, params or SamplingParams(), schedule)
    with RunStore.writing(run_dir, attempts.manifest(num_samples, dataset), problems) as store:
        present = store.present()
        before = sum(map(len, present.values()))
        wanted = np.arange(first_sample, first_sample + num_samples)
        gaps = plan([wanted] * len(present), present.values())
        missing = sum(count for _, _, count in gaps)
        if progress and before and missing:
            print(f"{store.path}: {before:,} samples are there, {missing:,} are to be drawn", file=sys.stderr)
        if progress and (note := attempts.note(first_sample + num_samples)):
            print(note, file=sys.stderr)
        drawing = Drawing(store, attempts, chunk_size)
        shown = {"desc": store.path.name, "unit": "sample", "disable": not progress or not missing}
        with tqdm(total=before + missing, initial=before, **shown) as bar:
            for _, rows in drawing(gaps):
                bar.set_postfix_str(f"{drawing.num_tokens / max(drawing.seconds, 1e-9):,.0f} tokens/s", refresh=False)
                bar.update(len(rows))
                rows.clear()  # before the next part is drawn: one part in memory, not two
    return SamplingSummary(
        drawing.num_drawn, before + drawing.num_drawn, drawing.num_tokens, drawing.num_truncated, drawing.seconds
    )


def check_run_size(num_samples: int, chunk_size: int | None, first_sample: int = 0) -> tuple[int, int | None, int]:
    """The sizes of a run as integers, after checks."""
    chunk_size = None if chunk_size is None else check_integer("chunk_size", chunk_size)
    return check_integer("num_samples", num_samples), chunk_size, check_integer("first_sample", first_sample, 0)


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
