"""Counts over the columns of a data set, in Arrow: no loop over its rows."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray


def is_empty(dataset: Dataset, name: str) -> NDArray[np.bool_]:
    """Whether each text of a column is empty or blank; of messages, whether none has a content or a tool call."""
    return np.concatenate([np.empty(0, bool), *map(_is_empty, _parts(dataset, name))])


def count_assistant_turns(dataset: Dataset, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How many messages of each conversation are the assistant's, and whether its last is, with one before it."""
    counts, ends = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for part in _parts(dataset, name):
        if not _is_list(part):
            counts.append(np.zeros(len(part), np.int64))
            ends.append(np.zeros(len(part), bool))
            continue
        roles = pc.equal(pc.struct_field(pc.list_flatten(part), "role"), "assistant")
        flags, last = _numpy(roles, False), np.cumsum(_lengths(part))
        counts.append(_sums(part, flags))
        has_two = _lengths(part) > 1
        ends.append(has_two & np.append(flags, False)[np.where(has_two, last - 1, -1)])
    return np.concatenate(counts), np.concatenate(ends)


def _parts(dataset: Dataset, name: str) -> Iterator[pa.Array]:
    for batch in dataset.select_columns([name]).with_format("arrow").iter(10_000):
        yield batch[name].combine_chunks()


def _is_list(array: pa.Array) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_large_list(array.type)


def _is_empty(array: pa.Array) -> NDArray[np.bool_]:
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return _numpy(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(array)), 0), True)
    if not _is_list(array):
        return _numpy(pc.is_null(array), True)
    messages = pc.list_flatten(array)
    says = np.zeros(len(messages), bool)
    if pa.types.is_struct(messages.type):
        for field in ("content", "tool_calls"):
            if messages.type.get_field_index(field) >= 0:
                says |= _says_something(pc.struct_field(messages, field))
    return _sums(array, says) == 0


def _says_something(values: pa.Array) -> NDArray[np.bool_]:
    if _is_list(values):
        return _lengths(values) > 0
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _numpy(pc.greater(pc.utf8_length(values), 0), False)
    return _numpy(pc.is_valid(values), False)


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    return _numpy(pc.list_value_length(lists), 0).astype(np.int64)


def _sums(lists: pa.Array, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the flattened flags are set in each list."""
    lengths = _lengths(lists)
    ends = np.cumsum(lengths)
    before = np.concatenate([[0], np.cumsum(flags)])
    return before[ends] - before[ends - lengths]


def _numpy(array: pa.Array, null: bool | int) -> NDArray:
    return pc.fill_null(array, null).to_numpy(zero_copy_only=False)
