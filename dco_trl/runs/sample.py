"""Draw what a run lacks, chunk by chunk: killed at any moment, it goes on where it was."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..problem import Problem
from ..sampling.protocol import SampleRequest, SamplingParams
from .store import RunStore, plan

if TYPE_CHECKING:
    from ..sampling.protocol import Sampler

# A part holds at most this many sequences, and fewer if they may be long: all of them are in memory at a time, where
# a token takes about 40 bytes.
MAX_SEQUENCES = 16_384
_MAX_TOKENS = 2**25
# Without a chunk size, the first chunk is small and the next are as large as five minutes allow: what a kill loses.
_FIRST_CHUNK = 2_048
_SECONDS = 300.0


@dataclass(frozen=True)
class SamplingSummary:
    """What a call of [`sample_run`][dco_trl.runs.sample_run] did.

    Args:
        num_drawn: Samples drawn by this call.
        num_present: Samples the run has now.
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
    chunk_size: int | None = None,
    dataset: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SamplingSummary:
    """Draw what is missing of `num_samples` samples a problem, chunk by chunk.

    A run that was killed goes on where it was: each chunk is on disk before the next begins. Calling it again with a
    larger `num_samples` adds to the run.

    Args:
        run_dir: The run's folder, made if there is none.
        problems: What to sample.
        sampler: Any sampler; it is not closed.
        num_samples: Samples wanted a problem, at least 1.
        params: How to sample; the defaults if not given.
        chunk_size: Sequences a chunk. None: up to 16,384, and about five minutes of work.
        dataset: Where the problems come from, for the record.
        progress: Print a line a chunk on standard error.

    Returns:
        A summary.

    Raises:
        ValueError: `num_samples` or `chunk_size` below 1.
        StoreError: The folder is in use, holds another run, or cannot be written.

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
    check_run_size(num_samples, chunk_size)
    params = params or SamplingParams()
    with RunStore.writing(run_dir, run_manifest(sampler, params, num_samples, dataset), problems) as store:
        present = store.present()
        before = sum(len(indices) for indices in present.values())
        ids = [problem.problem_id for problem in problems]
        gaps = list(plan(present, ids, num_samples))
        missing = sum(count for _, _, count in gaps)
        if progress and before and missing:
            print(f"{store.path}: {before:,} samples are there, {missing:,} are to be drawn", file=sys.stderr)
        drawn = tokens = truncated = 0
        seconds = 0.0
        chunks = _Chunks(gaps)
        while chunks:
            size = chunk_size or _chunk_size(params.max_tokens, drawn, seconds)
            pieces = chunks.take(size)
            requests = [
                SampleRequest(problems[position].prompt, count, first_index=first, stream=position)
                for position, first, count in pieces
            ]
            began = time.perf_counter()
            rows = _rows(sampler, requests, params, [ids[position] for position, _, _ in pieces])
            seconds += time.perf_counter() - began
            store.write_samples(rows)
            drawn += len(rows)
            tokens += sum(row[3] for row in rows)
            truncated += sum(row[4] == "length" for row in rows)
            if progress:
                left = seconds / drawn * (missing - drawn)
                print(
                    f"sampling: {before + drawn:,} of {before + missing:,} samples, {tokens / seconds:,.0f} tokens/s"
                    + (f", about {_duration(left)} left" if left else ""),
                    file=sys.stderr,
                    flush=True,
                )
            rows.clear()  # before the next chunk's are drawn: one chunk in memory, not two
    return SamplingSummary(drawn, before + drawn, tokens, truncated, seconds)


def check_run_size(num_samples: int, chunk_size: int | None) -> None:
    """Refuse numbers that make no run."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 sequence, got {chunk_size}")


def run_manifest(
    sampler: "Sampler", params: SamplingParams, num_samples: int, dataset: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a run is draws of. Versions are recorded; everything else must be the same for the run to go on.

    Args:
        sampler: Says which model, adapter and software; entries whose names end in `version` are versions.
        params: How to sample.
        num_samples: Samples wanted a problem; may be raised later.
        dataset: Where the problems come from; recorded only, because their fingerprint says what they are.

    Returns:
        A mapping that JSON can hold.
    """
    import platform

    import pyarrow

    from .. import __version__

    identity = sampler.identity()
    versions = {key: value for key, value in identity.items() if key.endswith("version")}
    versions |= {"dco_trl": __version__, "python": platform.python_version(), "pyarrow": pyarrow.__version__}
    return {
        **{key: value for key, value in identity.items() if key not in versions},
        "sampling": asdict(params),
        "dataset": dict(dataset or {}),
        "num_samples": num_samples,
        "versions": versions,
    }


class _Chunks:
    """The plan, from which chunks are cut: whole gaps, but for the last of a chunk."""

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


def _chunk_size(max_tokens: int, drawn: int, seconds: float) -> int:
    largest = min(MAX_SEQUENCES, max(1, _MAX_TOKENS // max_tokens))
    if not drawn:
        return min(_FIRST_CHUNK, largest)
    return max(1, min(largest, int(drawn / max(seconds, 1e-9) * _SECONDS)))


def _rows(
    sampler: "Sampler", requests: list[SampleRequest], params: SamplingParams, problem_ids: list[str]
) -> list[tuple[str, int, str, int, str]]:
    drawn = sampler.sample(requests, params)
    if [len(samples) for samples in drawn] != [request.num_samples for request in requests]:
        raise ValueError(
            f"sampler {type(sampler).__name__} was asked for {[request.num_samples for request in requests]} samples "
            f"and returned {[len(samples) for samples in drawn]}; it must return as many as asked for, in order"
        )
    return [
        (problem_id, request.first_index + i, sample.text, sample.num_tokens, sample.finish_reason)
        for problem_id, request, samples in zip(problem_ids, requests, drawn, strict=True)
        for i, sample in enumerate(samples)
    ]


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
