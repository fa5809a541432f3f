"""Counts in Arrow against the loops that say what they mean."""

import numpy as np
import pytest
from datasets import Dataset

from dco_trl.trainer.columns import count_assistant_turns, is_empty

USER, ANSWER = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
BLANK = {"role": "assistant", "content": ""}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
PICTURE = {"role": "user", "content": [{"type": "image"}]}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["2", "", " \n\t", None, "\u00a0", "0"], [0, 1, 1, 1, 1, 0]),
        ([[ANSWER], [BLANK], [], None, [BLANK, ANSWER]], [0, 1, 1, 1, 0]),
        ([[{**BLANK, "tool_calls": []}], [CALL], [{**ANSWER, "tool_calls": None}]], [1, 0, 0]),
        ([[PICTURE], [{**PICTURE, "content": []}]], [0, 1]),
        ([3, None, 0], [0, 1, 0]),
    ],
)
def test_emptiness(column, expected):
    dataset = Dataset.from_list([{"x": value} for value in column])
    # Rows in another order than in memory, and more than Arrow is handed at a time.
    assert is_empty(dataset, "x").tolist() == [bool(value) for value in expected]
    backwards = dataset.select(range(len(dataset) - 1, -1, -1))
    assert is_empty(backwards, "x").tolist() == [bool(value) for value in expected[::-1]]
    assert (is_empty(dataset.select([0] * 10_001), "x") == bool(expected[0])).all()


def test_turns():
    rows = [[USER, ANSWER], [ANSWER], [USER, ANSWER, USER, ANSWER], [], None, [USER, ANSWER, USER], [USER]]
    dataset = Dataset.from_list([{"messages": row} for row in rows])
    counts, ends = count_assistant_turns(dataset, "messages")
    assert counts.tolist() == [1, 1, 2, 0, 0, 1, 0]
    assert ends.tolist() == [True, False, True, False, False, False, False]
    assert np.flatnonzero(ends & (counts == 1)).tolist() == [0]
    assert count_assistant_turns(Dataset.from_dict({"completion": ["2", "3"]}), "completion")[0].tolist() == [0, 0]
