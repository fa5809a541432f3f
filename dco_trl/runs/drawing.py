"""Draw what a run lacks, part by part, for sampling and solving; a part is on disk before it is yielded."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .attempts import Attempts, Gap, Row
from .store import RunStore

# A part holds at most this many sequences, and fewer if they may be long: a part is in memory as a whole, at about 40
# bytes a token.
MAX_SEQUENCES = 16_384
_MAX_TOKENS = 2**25
# Without a chunk size, the first chunk is small and the next ones take up to five minutes, which is what a kill loses.
_FIRST_CHUNK = 2_048
_SECONDS = 300.0


def plan(wanted: Iterable[NDArray], present: Iterable[NDArray]) -> list[Gap]:
    """The indices that are wanted of each problem and not present, as ranges.

    Examples:
        ```python
        >>> import numpy as np
        >>> from dco_trl.runs.drawing import plan
        >>> plan([np.arange(5)] * 2, [np.array([0, 1, 3]), np.array([])])
        [(0, 2, 1), (0, 4, 1), (1, 0, 5)]

        ```
    """
    gaps: list[Gap] = []
    for position, (indices, there) in enumerate(zip(wanted, present, strict=True)):
        missing = np.setdiff1d(indices, there, assume_unique=True)
        if missing.size:
            ranges = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
            gaps += [(position, int(found[0]), len(found)) for found in ranges]
    return gaps


class Drawing:
    """Draws gaps and writes parts, chunk by chunk. A streaming sampler is asked for everything at once.

    Attributes:
        num_drawn: Samples drawn so far; `num_tokens` counts their tokens, `num_truncated` those cut off at the limit.
        seconds: Time spent in the sampler.
    """

    def __init__(self, store: RunStore, attempts: Attempts, chunk_size: int | None) -> None:
        self.store, self.attempts, self.chunk_size = store, attempts, chunk_size
        self.num_drawn = self.num_tokens = self.num_truncated = 0
        self.seconds = 0.0

    def __call__(self, gaps: list[Gap]) -> Iterator[tuple[Path, list[Row]]]:
        """Draw the gaps, and yield each part with its rows once it is on disk."""
        left = gaps[::-1]
        while left:
            chunk, room = [], sum(count for *_, count in left) if self.attempts.streams else self._size()
            while left and room:
                position, first, count = left.pop()
                taken = min(count, room)
                chunk.append((position, first, taken))
                if taken < count:
                    left.append((position, first + taken, count - taken))
                room -= taken
            yield from self._parts(chunk)

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
        # For results that come one by one, `_parts` keeps to the five minutes.
        drawn, seconds = (MAX_SEQUENCES, 0.0) if self.attempts.streams else (self.num_drawn, self.seconds)
        return self.chunk_size or next_chunk_size(self.attempts.params.max_tokens, drawn, seconds)


def next_chunk_size(max_tokens: int, drawn: int, seconds: float) -> int:
    """The number of sequences in the next chunk, after `drawn` sequences took `seconds`."""
    largest = min(MAX_SEQUENCES, max(1, _MAX_TOKENS // max_tokens))
    if not drawn:
        return min(_FIRST_CHUNK, largest)
    return max(1, min(largest, int(drawn / max(seconds, 1e-9) * _SECONDS)))
