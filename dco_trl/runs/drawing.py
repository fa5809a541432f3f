"""Draw what a run lacks, part by part: each is on disk before it is told of. Sampling and solving share this."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .attempts import Attempts, Row
from .store import RunStore

# (position of the problem, first index, number of samples)
Gap = tuple[int, int, int]

# A part holds at most this many sequences, and fewer if they may be long: all of them are in memory at a time, where
# a token takes about 40 bytes.
MAX_SEQUENCES = 16_384
_MAX_TOKENS = 2**25
# Without a chunk size, the first chunk is small, and the next ones take up to five minutes: what a kill loses.
_FIRST_CHUNK = 2_048
_SECONDS = 300.0


def plan(
    present: Mapping[str, np.ndarray], problem_ids: Sequence[str], num_samples: int, first_sample: int = 0
) -> list[Gap]:
    """List what is still to be drawn, problem by problem.

    Args:
        present: The sample indices there are, by problem.
        problem_ids: All problems, in order.
        num_samples: Samples wanted per problem.
        first_sample: Index of the first of them.

    Returns:
        (position of the problem, first index, number of samples) for each gap.

    Examples:
        ```python
        >>> import numpy as np
        >>> from dco_trl.runs.drawing import plan
        >>> plan({"a": np.array([0, 1, 3])}, ["a", "b"], 5)
        [(0, 2, 1), (0, 4, 1), (1, 0, 5)]

        ```
    """
    nothing, wanted = np.empty(0, np.int32), np.arange(first_sample, first_sample + num_samples)
    return [
        gap
        for position, problem_id in enumerate(problem_ids)
        for gap in gaps_of(position, wanted, present.get(problem_id, nothing))
    ]


def gaps_of(position: int, wanted: NDArray, present: NDArray) -> Iterator[Gap]:
    """The gaps of one problem: what is wanted and not present, as ranges."""
    missing = np.setdiff1d(wanted, present, assume_unique=True)
    if missing.size:
        for gap in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            yield position, int(gap[0]), len(gap)


class Drawing:
    """Draws gaps and writes parts, chunk by chunk; a sampler that gives results as they come is asked for all at once.

    Args:
        store: Where the parts go, held for writing.
        attempts: What draws.
        chunk_size: Sequences of a part; None: as many as take five minutes, and 16,384 at most.

    Attributes:
        num_drawn: Samples drawn so far.
        num_tokens: Their tokens.
        num_truncated: Those cut off at the token limit.
        seconds: Time spent in the sampler.
    """

    def __init__(self, store: RunStore, attempts: Attempts, chunk_size: int | None) -> None:
        self.store, self.attempts, self.chunk_size = store, attempts, chunk_size
        self.num_drawn = self.num_tokens = self.num_truncated = 0
        self.seconds = 0.0

    def __call__(self, gaps: list[Gap]) -> Iterator[tuple[Path, list[Row]]]:
        """Draw the gaps.

        Yields:
            Each part, once it is on disk, and its rows.
        """
        if self.attempts.streams:
            yield from self._parts(gaps)
            return
        chunks = Chunks(gaps)
        while chunks:
            yield from self._parts(chunks.take(self._size()))

    def _parts(self, gaps: list[Gap]) -> Iterator[tuple[Path, list[Row]]]:
        waiting: list[Row] = []
        began = time.perf_counter()
        for rows in self.attempts.draw(gaps):
            waiting += rows
            if len(waiting) >= self._size() or time.perf_counter() - began > _SECONDS:
                yield self._written(waiting, began)
                waiting, began = [], time.perf_counter()
        if waiting:
            yield self._written(waiting, began)

    def _written(self, rows: list[Row], began: float) -> tuple[Path, list[Row]]:
        self.seconds += time.perf_counter() - began
        self.num_drawn += len(rows)
        self.num_tokens += sum(row[3] for row in rows)
        self.num_truncated += sum(row[4] == "length" for row in rows)
        return self.store.write_samples(rows), rows

    def _size(self) -> int:
        # Of results that come one by one, `_parts` sees to the five minutes.
        drawn, seconds = (MAX_SEQUENCES, 0.0) if self.attempts.streams else (self.num_drawn, self.seconds)
        return self.chunk_size or next_chunk_size(self.attempts.params.max_tokens, drawn, seconds)


class Chunks:
    """The plan, cut into chunks of whole gaps; only the last gap of a chunk may be cut."""

    def __init__(self, gaps: list[Gap]):
        self._gaps = gaps[::-1]

    def __bool__(self) -> bool:
        return bool(self._gaps)

    def take(self, size: int) -> list[Gap]:
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
