"""A window of optimizer steps: which rows its micro-batches hold, and what was sampled for them."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np


@dataclass
class Window:
    """What one process still has to train on before the next sampling.

    Args:
        batches: The rows of each micro-batch still to be served.
        estimates: Weight and log p of each problem; None for plain cross-entropy, while warming up.
        rationales: Correct rationales of a problem to train on, token ids, in the order in which they were drawn.
    """

    batches: deque[list[int]] = field(default_factory=deque)
    estimates: dict[int, tuple[float, float]] | None = None
    rationales: dict[int, list[list[int]]] = field(default_factory=dict)

    @property
    def rows(self) -> list[int]:
        """The rows of all micro-batches still to be served."""
        return [row for batch in self.batches for row in batch]

    def state_dict(self) -> dict[str, Any]:
        """The window as JSON can hold it, whose keys are strings."""
        return {
            "batches": list(self.batches),
            "estimates": None if self.estimates is None else list(self.estimates.items()),
            "rationales": list(self.rationales.items()),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Window":
        """The window that had this `state_dict`."""
        estimates = state["estimates"]
        if estimates is not None:
            estimates = {problem: (weight, log_p) for problem, (weight, log_p) in estimates}
        return cls(deque(state["batches"]), estimates, dict(state["rationales"]))


class RowStream:
    """This process's share of all rows in random order, pass after pass, from a `place` that can be saved."""

    def __init__(self, rows: Sequence[int], seed: int, process_index: int, num_processes: int):
        self._rows, self._seed = np.asarray(rows), seed
        self._share = slice(process_index, None, num_processes)
        self.place = (0, 0)  # passes finished, rows taken of this one
        self.num_rows = len(self._order(0))

    def take(self, count: int) -> list[int]:
        """The next rows, at most `count` of them and at least one."""
        passes, position = self.place
        if position >= self.num_rows:
            passes, position = passes + 1, 0
        taken = self._order(passes)[position : position + count]
        self.place = passes, position + len(taken)
        return taken.tolist()

    def _order(self, passes: int) -> np.ndarray:
        order = np.random.default_rng([self._seed, passes]).permutation(self._rows)
        # Every process needs a row, even if there are fewer rows than processes.
        return order[self._share] if len(order) > self._share.start else order


def hard_batches(
    batches: Iterable[list[int]],
    stream: RowStream,
    problem_of: Sequence[int],
    are_hard: Callable[[list[int]], Iterable[bool]],
) -> tuple[list[list[int]], int]:
    """Micro-batches of the same sizes with rows of hard problems alone.

    The rows come from a stream that goes over the data as often as needed, so that an epoch keeps its number of steps.
    `are_hard` is asked once for each problem.

    Returns:
        The micro-batches, none if one pass over the data finds no hard row; and the number of rows tried.
    """
    sizes, num_tried = [len(batch) for batch in batches], 0
    hard: list[int] = []
    is_hard: dict[int, bool] = {}
    while len(hard) < sum(sizes):
        candidates = stream.take(sum(sizes) - len(hard))
        new = [problem for problem in distinct(candidates, problem_of) if problem not in is_hard]
        if new:
            is_hard |= dict(zip(new, are_hard(new), strict=True))
        hard += [row for row in candidates if is_hard[problem_of[row]]]
        num_tried += len(candidates)
        if not hard and num_tried >= stream.num_rows:
            return [], num_tried
    refilled = iter(hard)
    return [list(islice(refilled, size)) for size in sizes], num_tried


def distinct(rows: Iterable[int], problem_of: Sequence[int]) -> list[int]:
    """The problems of some rows, each once, in the order of first appearance."""
    return list(dict.fromkeys(problem_of[row] for row in rows))
