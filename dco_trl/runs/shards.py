"""The division of a run among processes: who draws, grades and solves what follows from numbers and names alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import PART_NAME

# Consecutive samples of a problem that one shard draws: they share the computation of the prompt.
BLOCK = 32


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0 on. Shards of one count divide the work: nothing is done twice or by nobody.

    Samples are divided in blocks of 32 consecutive samples of a problem. The blocks are numbered row by row: the first
    of each problem, the second of each, and so on; shard i of n has those whose number leaves the remainder i. So the
    division depends on the problems alone and stays when more samples are asked for, and the shares differ by one
    block at most. Where n divides the number of problems, each row begins one shard further, so that every shard gets
    samples of every problem.

    Args:
        index: Which part, from 0 to `count - 1`.
        count: Number of parts.

    Examples:
        >>> import numpy as np
        >>> Shard.parse("1/4").has_samples(position=0, num_problems=4, indices=np.arange(128)).nonzero()[0][[0, -1]]
        array([32, 63])
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: "str | Shard | None") -> "Shard":
        """Read `i/n`; None is the whole run.

        Raises:
            ValueError: It is of another form, or i is not among 0 to n-1.
        """
        if text is None or isinstance(text, Shard):
            return text or WHOLE
        index, slash, count = text.partition("/") if isinstance(text, str) else ("", "", "")
        is_number = index.isdecimal() and count.isdecimal() and index.isascii() and count.isascii()
        if not (slash and is_number and int(index) < int(count)):
            raise ValueError(
                f"shard={text!r} must be i/n, with i from 0 to n-1: of four processes, the first has 0/4 and the last "
                "3/4."
            )
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def stem(self) -> str:
        """What the names of this shard's parts begin with, before their numbers."""
        return "part-" if self == WHOLE else f"part-{self.index}of{self.count}-"

    def has_samples(self, position: int, num_problems: int, indices: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples of a problem this shard draws.

        Args:
            position: The problem's position in the run, from 0.
            num_problems: Problems of the run.
            indices: Sample indices.

        Returns:
            For each index, whether it is this shard's.
        """
        step = num_problems if num_problems % self.count else 1
        return (position + indices.astype(np.int64) // BLOCK * step) % self.count == self.index

    def has_problem(self, position: int) -> bool:
        """Whether this shard solves the problem: all attempts at one are decided in one place."""
        return position % self.count == self.index

    def has_part(self, samples: Path) -> bool:
        """Whether this shard grades a part of samples: its own, where as many shards sampled as grade."""
        drawn_by, number = part_origin(samples)
        return (number * drawn_by.count + drawn_by.index) % self.count == self.index

    def is_done_by_sibling(self, samples: Path) -> bool:
        """Whether a part has samples of another shard of the same division, and so none of this one's."""
        drawn_by, _ = part_origin(samples)
        return drawn_by.count == self.count and drawn_by.index != self.index


WHOLE = Shard()


def part_origin(path: Path) -> tuple[Shard, int]:
    """Which shard wrote a part of samples, and as which of its own, from the part's name."""
    match = PART_NAME.fullmatch(path.name)
    assert match, f"{path} is not among list_parts()"
    index, count, number = match[1], match[2], int(match[3])
    return (WHOLE if index is None else Shard(int(index), int(count))), number
