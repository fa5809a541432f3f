"""Counts in Arrow against plain loops."""

import numpy as np
import pytest
from datasets import Dataset

from dco_trl.sampling.end_of_sequence import BLANK, CONTENT, END
from dco_trl.trainer.columns import answers_of, count_assistant_turns, has_other_end, is_empty

USER, ANSWER = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
SILENT = {"role": "assistant", "content": ""}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
PICTURE = {"role": "user", "content": [{"type": "image"}]}


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["2", "", " \n\t", None, "\u00a0", "0"], [0, 1, 1, 1, 1, 0]),
        ([[ANSWER], [SILENT], [], None, [SILENT, ANSWER]], [0, 1, 1, 1, 0]),
        ([[{**SILENT, "tool_calls": []}], [CALL], [{**ANSWER, "tool_calls": None}]], [1, 0, 0]),
        ([[PICTURE], [{**PICTURE, "content": []}]], [0, 1]),
        ([3, None, 0], [0, 1, 0]),
    ],
)
def test_emptiness(column, expected):
    dataset = Dataset.from_list([{"x": value} for value in column])
    # Rows in another order than in memory, and more than one batch of them.
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


def test_texts_that_end_otherwise():
    dataset = Dataset.from_list([{"x": text, "m": [ANSWER]} for text in ("2<eos>", "2", "", None, "<eos>")])
    assert has_other_end(dataset, "x", "<eos>").tolist() == [False, True, True, False, False]
    assert not has_other_end(dataset, "m", "<eos>").any()


@pytest.mark.parametrize(("max_length", "keeps_end"), [(None, False), (3, False), (3, True)])
def test_answers(max_length, keeps_end):
    def naive(row):
        kept = row
        if max_length is not None:
            kept = row[max(0, len(row) - max_length) :] if keeps_end else row[:max_length]
        labels, num_kept = [token for token in row if token != -100], sum(token != -100 for token in kept)
        parts = [i for i, token in enumerate(row) if token != -100 and (i == 0 or row[i - 1] == -100)]
        content, ends = ([i for i, token in enumerate(labels) if token in some] for some in ((0, 9), (2,)))
        return {
            "cut": num_kept < len(labels),
            "prompt_cut": num_kept == len(labels) and keeps_end and len(kept) < len(row),
            "unlabelled": num_kept == 0,
            "several": len(parts) > 1,
            "promptless": row[:1] not in ([], [-100]),
            "empty": bool(labels) and not content,
            "endless": bool(labels) and max(ends, default=-1) <= max(content, default=-1),
        }

    kinds, rng = np.array([CONTENT, BLANK, END, CONTENT], dtype=np.int8), np.random.default_rng(0)
    rows = [rng.choice([-100, 0, 1, 2, 9], size=size).tolist() for size in rng.integers(0, 7, 1200)]
    found = answers_of(Dataset.from_dict({"labels": rows}), kinds, max_length, keeps_end)
    expected = [naive(row) for row in rows]
    assert {name: flags.tolist() for name, flags in found.items()} == {
        name: [row[name] for row in expected] for name in expected[0]
    }
    assert not any(flags.size for flags in answers_of(Dataset.from_dict({"labels": []}), kinds).values())
