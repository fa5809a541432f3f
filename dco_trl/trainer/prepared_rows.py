"""The rows that training sees: which are the same problem, and what is trained on for each."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from .collator import ROW


class PreparedRows:
    """Tokenised rows of a data set, by their number in it. TRL may have shuffled them, and left some out.

    `prepared` holds TRL's rows: `input_ids`, `labels` and `dco_row`, the number among the `num_rows` of the data set.

    Attributes:
        problem_of: For each row, the first one with the same prompt tokens and answer: they share counts. Rows
            that TRL left out are problems of their own.
        max_prompt_tokens: Tokens of the longest prompt.
    """

    def __init__(self, prepared: Dataset, num_rows: int, answers: Sequence[Any] | None, max_length: int | None):
        self._sequences, self._max_length = prepared.select_columns(["input_ids", "labels"]), max_length
        self._places: dict[int, tuple[int, int]] = {}  # position among TRL's rows, and length of the prompt
        keys: dict[int, bytes] = {}
        for batch in prepared.with_format("numpy").iter(1000):
            for row, ids, labels in zip(batch[ROW].tolist(), batch["input_ids"], batch["labels"], strict=True):
                prompt = ids[: np.argmax(labels != -100)]
                self._places[row] = len(self._places), len(prompt)
                # `default=str`: an answer may be a date.
                answer = b"" if answers is None else json.dumps(answers[row], default=str).encode()
                keys[row] = hashlib.blake2b(prompt.tobytes() + answer, digest_size=16).digest()
        self.max_prompt_tokens = max((length for _, length in self._places.values()), default=0)
        first: dict[bytes, int] = {}
        self.problem_of = list(range(num_rows))
        for row in sorted(keys):
            self.problem_of[row] = first.setdefault(keys[row], row)

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows, in TRL's order."""
        return list(self._places)

    def prompt_ids(self, row: int) -> list[int]:
        """Tokens of a row's prompt, as training has them."""
        position, length = self._places[row]
        return self._sequences[position]["input_ids"][:length]

    def reference(self, row: int) -> dict[str, list[int]]:
        """The row as it is."""
        return self._sequences[self._places[row][0]]

    def sampled(
        self, row: int, rationales: Mapping[int, Sequence[Sequence[int]]]
    ) -> list[tuple[dict[str, list[int]], float]]:
        """The row with each distinct sampled rationale that fits in place of its own, and that rationale's share.

        `rationales` holds those of each problem that has some, as token ids with the end of sequence. The list is
        empty if none fits into `max_length`.
        """
        prompt = self.prompt_ids(row)
        room = float("inf") if self._max_length is None else self._max_length - len(prompt)
        own = rationales.get(self.problem_of[row], ())
        times = Counter(tuple(rationale) for rationale in own if len(rationale) <= room)
        return [
            ({"input_ids": [*prompt, *ids], "labels": [*[-100] * len(prompt), *ids]}, count / times.total())
            for ids, count in times.items()
        ]
