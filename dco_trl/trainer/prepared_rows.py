"""The rows that training sees: which are the same problem, and what is trained on for each."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from .collator import ROW


class PreparedRows:
    """Tokenised rows of a data set, by their number in it. TRL may have shuffled them, and left some out.

    Args:
        prepared: TRL's rows: `input_ids`, `labels` and `dco_row`, the number of the row.
        num_rows: Rows of the data set.
        answers: The reference answer of each row, or None.
        max_length: Most tokens of a sequence, or None.

    Attributes:
        problem_of: For each row the first one with the same prompt tokens and answer, int64, `(num_rows,)`: they share
            their counts. Rows that TRL left out are problems of their own.
        max_prompt_tokens: Tokens of the longest prompt.
    """

    def __init__(self, prepared: Dataset, num_rows: int, answers: Sequence[Any] | None, max_length: int | None):
        self._sequences = prepared.select_columns(["input_ids", "labels"])
        self._max_length = max_length
        self._position_of: dict[int, int] = {}
        self.problem_of, self.max_prompt_tokens = np.arange(num_rows), 0
        keys: dict[int, bytes] = {}
        for position, (row, ids, labels) in enumerate(
            zip(prepared[ROW], prepared["input_ids"], prepared["labels"], strict=True)
        ):
            prompt = ids[: _prompt_length(labels)]
            self._position_of[row] = position
            self.max_prompt_tokens = max(self.max_prompt_tokens, len(prompt))
            # `default=str`: an answer may be a date.
            answer = b"" if answers is None else json.dumps(answers[row], default=str).encode()
            keys[row] = hashlib.blake2b(np.asarray(prompt).tobytes() + answer, digest_size=16).digest()
        first: dict[bytes, int] = {}
        for row in sorted(keys):
            self.problem_of[row] = first.setdefault(keys[row], row)

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows, in TRL's order."""
        return list(self._position_of)

    def prompt_ids(self, row: int) -> list[int]:
        """Tokens of a row's prompt, as training has them."""
        sequence = self._sequences[self._position_of[row]]
        return sequence["input_ids"][: _prompt_length(sequence["labels"])]

    def reference(self, row: int) -> dict[str, list[int]]:
        """The row as it is."""
        return self._sequences[self._position_of[row]]

    def sampled(self, row: int, rationales: Sequence[Sequence[int]]) -> list[tuple[dict[str, list[int]], float]]:
        """The row with rationales in place of its own, those that fit: each distinct one once, with its share of them.

        Args:
            row: Which row.
            rationales: Token ids of each, end of sequence included.

        Returns:
            Sequences and shares, which add up to 1; none if no rationale fits into `max_length`.
        """
        prompt = self.prompt_ids(row)
        room = float("inf") if self._max_length is None else self._max_length - len(prompt)
        times = Counter(tuple(rationale) for rationale in rationales if len(rationale) <= room)
        return [
            ({"input_ids": [*prompt, *ids], "labels": [*[-100] * len(prompt), *ids]}, count / times.total())
            for ids, count in times.items()
        ]


def _prompt_length(labels: Sequence[int]) -> int:
    return next(i for i, label in enumerate(labels) if label != -100)
