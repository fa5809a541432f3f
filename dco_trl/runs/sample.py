"""Draw what a run lacks, chunk by chunk: killed at any moment, it goes on where it was."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..checks import check_integer
from ..problem import Problem
from ..sampling.protocol import SamplingParams
from .attempts import Attempts
from .manifest import run_manifest
from .shards import WHOLE, Shard
from .store import RunStore

if TYPE_CHECKING:
    from ..sampling.protocol import Sampler
    from .schedule_file import ArmSchedule

# A part holds at most this many sequences, and fewer if they may be long: all of them are in memory at a time, where
# a token takes about 40 bytes.
MAX_SEQUENCES = 16_384
_MAX_TOKENS = 2**25
# Without a chunk size, the first chunk is small, and the next ones take up to five minutes: what a kill loses.
_FIRST_CHUNK = 2_048
_SECONDS = 300.0


@dataclass(frozen=True)
class SamplingSummary:
    """What a call of [`sample_run`][dco_trl.runs.sample_run] did.

    Args:
        num_drawn: Samples drawn by this call.
        num_present: Samples the run, or the shard, has now.
        num_tokens: Tokens of the samples drawn.
        num_truncated: Samples drawn that were cut off at the token limit.
        seconds: Time spent in the sampler.
        where: Whose samples were drawn: "the run", or "shard 0/4".
    """

    num_drawn: int
    num_present: int
    num_tokens: int
    num_truncated: int
    seconds: float
    where: str = "the run"

    def __str__(self) -> str:
        if not self.num_drawn:
            return f"nothing to draw: {self.where} has all of its {self.num_present:,} samples"
        text = (
            f"{self.num_drawn:,} samples drawn in {_duration(self.seconds)} "
            f"({self.num_tokens / max(self.seconds, 1e-9):,.0f} tokens/s), {self.num_present:,} in {self.where}"
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
    shard: str | None = None,
    progress: bool = True,
) -> SamplingSummary:
    """Draw what is missing of `num_samples` samples per problem, chunk by chunk.

    A run that was killed goes on where it was: each chunk is on disk before the next begins. Calling it again with a
    larger `num_samples` adds to the run.

    Args:
        run_dir: The run's folder, made if there is none.
        problems: What to sample.
        sampler: Any sampler; it is not closed. With a schedule it has the arms' model and no adapter of its own.
        num_samples: Samples wanted per problem, at least 1.
        params: How to sample; the defaults if not given. With a schedule `temperature` stays 1: its arms have their
            own. Draws follow from the seed and from what is sampled: the same call gives the same samples as far as
            the sampler can, and runs of other models, adapters or temperatures with the same seed are independent.
        schedule: Which arm each sample is drawn from, or the file that says so; the store then keeps it. Beyond what
            is planned, the last arm goes on. None: the sampler's own.
        chunk_size: Sequences per chunk. None: up to 16,384, and about five minutes of work.
        dataset: Where the problems come from, for the record.
        shard: `i/n`: draw only part i of n, i from 0. The n processes, on any number of machines that share the
            folder, need nothing else of each other, and together they draw what one process draws.
        progress: Show a bar on standard error.

    Returns:
        A summary; of the shard, where there is one.

    Raises:
        ValueError: `num_samples` or `chunk_size` is no integer or below 1, `shard` no `i/n`, or a temperature beside a
            schedule.
        StoreError: The folder is in use, holds another run, or cannot be written; the schedule cannot be read, is for
            another model, or one of its adapters is gone.

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
    num_samples, chunk_size = check_run_size(num_samples, chunk_size)
    params, part_of_run = params or SamplingParams(), Shard.parse(shard)
    attempts = Attempts(problems, sampler, params, schedule)
    manifest = {**run_manifest(sampler, params, num_samples, dataset), **attempts.manifest()}
    with RunStore.writing(run_dir, manifest, problems, part_of_run) as store:
        present = store.present([part for part in store.sample_parts() if not part_of_run.is_done_by_sibling(part)])
        ids = [problem.problem_id for problem in problems]
        before = sum(
            int(part_of_run.has_samples(position, len(ids), present[problem_id]).sum())
            for position, problem_id in enumerate(ids)
            if problem_id in present
        )
        gaps = list(plan(present, ids, num_samples, part_of_run))
        missing = sum(count for _, _, count in gaps)
        if progress and before and missing:
            print(f"{store.path}: {before:,} samples are there, {missing:,} are to be drawn", file=sys.stderr)
        if progress and (note := attempts.note(num_samples)):
            print(note, file=sys.stderr)
        drawn = tokens = truncated = 0
        seconds = 0.0
        chunks = Chunks(gaps)
        with tqdm(
            desc=store.path.name,
            total=before + missing,
            initial=before,
            unit="sample",
            disable=not progress or not missing,
        ) as bar:
            while chunks:
                pieces = chunks.take(chunk_size or next_chunk_size(params.max_tokens, drawn, seconds))
                began = time.perf_counter()
                rows = attempts.draw(pieces)
                seconds += time.perf_counter() - began
                store.write_samples(rows)
                drawn += len(rows)
                tokens += sum(row[3] for row in rows)
                truncated += sum(row[4] == "length" for row in rows)
                bar.set_postfix_str(f"{tokens / max(seconds, 1e-9):,.0f} tokens/s", refresh=False)
                bar.update(len(rows))
                rows.clear()  # before the next chunk's are drawn: one chunk in memory, not two
    where = "the run" if part_of_run == WHOLE else f"shard {part_of_run}"
    return SamplingSummary(drawn, before + drawn, tokens, truncated, seconds, where)


def check_run_size(num_samples: int, chunk_size: int | None) -> tuple[int, int | None]:
    """The two counts as integers; those that make no run are refused."""
    num_samples = check_integer("num_samples", num_samples)
    return num_samples, None if chunk_size is None else check_integer("chunk_size", chunk_size)


def plan(
    present: Mapping[str, np.ndarray], problem_ids: Sequence[str], num_samples: int, shard: Shard = WHOLE
) -> Iterator[tuple[int, int, int]]:
    """List what is still to be drawn, problem by problem.

    Args:
        present: The sample indices there are, by problem.
        problem_ids: All problems, in order.
        num_samples: Samples wanted per problem.
        shard: Whose samples to list.

    Yields:
        (position of the problem, first index, number of samples) for each gap.

    Examples:
        ```python
        >>> import numpy as np
        >>> from dco_trl.runs.sample import plan
        >>> list(plan({"a": np.array([0, 1, 3])}, ["a", "b"], 5))
        [(0, 2, 1), (0, 4, 1), (1, 0, 5)]

        ```
    """
    nothing, wanted = np.empty(0, np.int32), np.arange(num_samples)
    for position, problem_id in enumerate(problem_ids):
        own = wanted[shard.has_samples(position, len(problem_ids), wanted)]
        missing = np.setdiff1d(own, present.get(problem_id, nothing), assume_unique=True)
        if missing.size:
            for gap in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
                yield position, int(gap[0]), len(gap)


class Chunks:
    """The plan, cut into chunks of whole gaps; only the last gap of a chunk may be cut."""

    def __init__(self, gaps: list[tuple[int, int, int]]):
        self._gaps = gaps[::-1]

    def __bool__(self) -> bool:
        return bool(self._gaps)

    def take(self, size: int) -> list[tuple[int, int, int]]:
        pieces = []
        while self._gaps and size:
            position, first, count = self._gaps.pop()
            taken = min(count, size)
            pieces.append((position, first, taken))
            if taken < count:
                self._gaps.append((position, first + taken, count - taken))
            size -= taken
        return pieces


def next_chunk_size(max_tokens: int, drawn: int, seconds: float) -> int:
    largest = min(MAX_SEQUENCES, max(1, _MAX_TOKENS // max_tokens))
    if not drawn:
        return min(_FIRST_CHUNK, largest)
    return max(1, min(largest, int(drawn / max(seconds, 1e-9) * _SECONDS)))


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
