"""Facts about each row of a data set, found in Arrow without a loop over rows."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from ..sampling.end_of_sequence import CONTENT, END

Flags = NDArray[np.bool_]


def counted(flags: Flags, name: str) -> str:
    """How many rows of a data set have a flag, and which is the first, for messages."""
    return f"{flags.sum()} of {len(flags)} rows of the {name} dataset (first: row {flags.argmax()})"


def is_empty(dataset: Dataset, name: str) -> Flags:
    """Whether each text of a column is empty or blank; of messages, whether none has a content or a tool call."""
    return np.concatenate([np.empty(0, bool), *map(_is_empty, _parts(dataset, name))])


def has_other_end(dataset: Dataset, name: str, end: str) -> Flags:
    """Whether each text of a column ends with anything but `end`; False for messages."""
    found = [np.empty(0, bool)]
    for part in _parts(dataset, name):
        found.append(~_numpy(pc.ends_with(part, end), True) if _is_text(part) else np.zeros(len(part), bool))
    return np.concatenate(found)


def count_assistant_turns(dataset: Dataset, name: str) -> tuple[NDArray[np.int64], Flags]:
    """How many messages of each conversation are the assistant's, and whether the last is and follows another."""
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


def answers_of(
    tokenized: Dataset, kinds: NDArray[np.int8], max_length: int | None = None, keeps_end: bool = False
) -> dict[str, Flags]:
    """Facts about each row's answer: its labelled tokens.

    Args:
        tokenized: Rows with `labels`, not cut.
        kinds: From `dco_trl.sampling.end_of_sequence.token_kinds`.
        max_length: Tokens that rows will be cut to; None if they will not be cut.
        keeps_end: Whether the cut removes their beginning.

    Returns:
        `cut` (it loses labels), `prompt_cut` (the row loses other tokens alone), `unlabelled` (none is left),
        `several` (it has more than one part), `promptless` (it begins with the row), `empty` (it has no content) and
        `endless` (no end of sequence is behind its last content).
    """
    none = pa.array([], pa.list_(pa.int64()))
    parts = chain([none], _parts(tokenized, "labels"))
    found = [_answers(part, kinds, max_length, keeps_end) for part in parts]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _answers(labels: pa.Array, kinds: NDArray[np.int8], max_length: int | None, keeps_end: bool) -> dict[str, Flags]:
    lengths, tokens = _lengths(labels), _numpy(pc.list_flatten(labels), -100)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first, last = starts, ends
    if max_length is not None and keeps_end:
        first = np.maximum(starts, ends - max_length)
    elif max_length is not None:
        last = np.minimum(ends, starts + max_length)
    is_label, kind = tokens != -100, kinds[np.clip(tokens, 0, len(kinds) - 1)]
    is_first = np.arange(len(tokens)) == np.repeat(starts, lengths)
    begins = is_label & (is_first | ~np.append(False, is_label)[:-1])
    # An end of sequence counts if all content of its row comes before it.
    is_content = is_label & (kind == CONTENT)
    seen = np.append(0, np.cumsum(is_content))
    is_end = is_label & (kind == END) & (seen[1:] == np.repeat(seen[ends], lengths))
    num_labels, num_kept = _sums(labels, is_label), np.append(0, np.cumsum(is_label))
    num_kept = num_kept[last] - num_kept[first]
    return {
        "cut": num_kept < num_labels,
        "prompt_cut": (num_kept == num_labels) & (first > starts),
        "unlabelled": num_kept == 0,
        "several": _sums(labels, begins) > 1,
        "promptless": _sums(labels, is_label & is_first) > 0,
        "empty": (num_labels > 0) & (_sums(labels, is_content) == 0),
        "endless": (num_labels > 0) & (_sums(labels, is_end) == 0),
    }


def _parts(dataset: Dataset, name: str) -> Iterator[pa.Array]:
    for batch in dataset.select_columns([name]).with_format("arrow").iter(1_000):
        yield batch[name].combine_chunks()


def _is_list(array: pa.Array) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_large_list(array.type)


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _is_empty(array: pa.Array) -> Flags:
    if _is_text(array):
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


def _says_something(values: pa.Array) -> Flags:
    if _is_list(values):
        return _lengths(values) > 0
    if _is_text(values):
        return _numpy(pc.greater(pc.utf8_length(values), 0), False)
    return _numpy(pc.is_valid(values), False)


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    return _numpy(pc.list_value_length(lists), 0).astype(np.int64)


def _sums(lists: pa.Array, flags: Flags) -> NDArray[np.int64]:
    """How many of the flattened flags are set in each list."""
    lengths = _lengths(lists)
    ends = np.cumsum(lengths)
    before = np.append(0, np.cumsum(flags))
    return before[ends] - before[ends - lengths]


def _numpy(array: pa.Array, null: bool | int) -> NDArray:
    return pc.fill_null(array, null).to_numpy(zero_copy_only=False)
