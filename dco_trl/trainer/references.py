"""Several right answers to one prompt: from rows to training examples that hold all references of a prompt.

TRL tokenises one reference a row. Afterwards a prompt's references are put together into one example, so that whatever
shuffles, batches and distributes examples keeps them together.
"""

import json
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.table import InMemoryTable
from trl import pack_dataset

from .dco_config import DCOConfig
from .eval_log_p import EVAL_ROW

# The column of several right answers.
COMPLETIONS = "completions"
# Which prompt a row is an answer to, while there is one row per reference.
PROMPT_NUMBER = "dco_prompt_number"
# Of an example with all references of a prompt, for each token: 2 begins a prompt's first reference, 1 any other, else
# 0. As a column of token lists it survives packing.
REFERENCE_STARTS = "reference_starts"


def has_references(dataset: Any, args: DCOConfig) -> bool:
    """Whether a prompt of this data set may have several references."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return False
    columns = dataset.column_names or ()
    return args.references == "grouped" or COMPLETIONS in columns or PROMPT_NUMBER in columns


def one_row_per_reference(dataset: Any, args: DCOConfig, name: str) -> Any:
    """Rows of one `completion` each, which tell by a number what prompt they answer; other data sets as they are.

    Raises:
        ValueError: A prompt has no reference, or one twice, or they could not be kept together.
    """
    if not has_references(dataset, args) or PROMPT_NUMBER in (dataset.column_names or ()):
        return dataset
    columns = dataset.column_names or ()
    given = f"the column `{COMPLETIONS}`" if COMPLETIONS in columns else "`references='grouped'`"
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The {name} dataset is streaming and has several references for a prompt ({given}), which are put "
            "together before training. Load it, for example with `Dataset.from_list(list(stream))`."
        )
    if args.unit == "turn":
        raise ValueError(
            f"The {name} dataset has several references for a prompt ({given}), of which p is the sum, and "
            "`unit='turn'` asks for the p of each turn. Leave `unit` at 'sequence', or give one `completion` a row."
        )
    kwargs: Any = args.dataset_kwargs or {}
    if kwargs.get("skip_prepare_dataset", False):
        raise ValueError(
            f"`skip_prepare_dataset=True` leaves rows as they are, so the references of a prompt ({given} of the "
            f"{name} dataset) could not be put together. Leave it out."
        )
    if COMPLETIONS in columns:
        dataset = _expand(dataset, name)
    if "prompt" not in dataset.column_names:
        return dataset  # numbered by their tokens, when these are there
    keys: Iterable[Hashable] = map(_text, dataset["prompt"])
    if args.references == "separate":
        keys = dataset[PROMPT_NUMBER]
    numbers = _numbers(keys)
    if "completion" in dataset.column_names:
        _check_no_duplicate(zip(numbers, map(_text, dataset["completion"]), strict=True), name)
    if PROMPT_NUMBER in dataset.column_names:
        dataset = dataset.remove_columns(PROMPT_NUMBER)
    return dataset.add_column(PROMPT_NUMBER, numbers)


def join_references(prepared: Dataset, args: DCOConfig, packing: bool, name: str) -> Dataset:
    """One example per prompt, or per pack of prompts, from tokenised rows of one reference each.

    Args:
        prepared: TRL's rows: `input_ids`, `labels` and, unless prompts are to be told apart by their tokens, the
            number of the prompt.
        args: For shuffling and packing, done as TRL does them.
        packing: Whether to pack.
        name: Of the data set, for messages.

    Returns:
        Columns `input_ids`, `labels` and `reference_starts`, and the row of an evaluation set.

    Raises:
        ValueError: Two references of a prompt have the same tokens, or those of one prompt do not fit into a pack.
    """
    table = prepared.with_format("arrow")[:]
    input_ids, labels = table["input_ids"].to_pylist(), table["labels"].to_pylist()
    if PROMPT_NUMBER in table.column_names:
        numbers = table[PROMPT_NUMBER].to_numpy()
    else:
        numbers = _numbers(_prompt(*row) for row in zip(input_ids, labels, strict=True))
    _check_no_duplicate(((number, tuple(ids)) for number, ids in zip(numbers, input_ids, strict=True)), name)

    order = np.argsort(numbers, kind="stable")
    is_first = np.diff(numbers[order], prepend=-1) != 0
    lengths = np.array([len(ids) for ids in input_ids], dtype=np.int64)[order]
    ends = np.cumsum(lengths)
    starts = np.zeros(ends[-1] if len(ends) else 0, dtype=np.int8)
    starts[(ends - lengths)[lengths > 0]] = 1
    starts[(ends - lengths)[is_first & (lengths > 0)]] = 2
    offsets = np.append((ends - lengths)[is_first], ends[-1:])

    def join(column: str) -> pa.Array:
        values = table[column].take(pa.array(order)).combine_chunks().flatten()
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    columns = {"input_ids": join("input_ids"), "labels": join("labels")}
    columns[REFERENCE_STARTS] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(starts))
    if EVAL_ROW in table.column_names and not packing:
        columns[EVAL_ROW] = pa.array(table[EVAL_ROW].to_numpy()[order][is_first])
    joined = Dataset(InMemoryTable(pa.table(columns)))
    if packing:
        if args.max_length is None:
            raise ValueError("`packing=True` needs a `max_length`, the tokens of a pack, and it is None. Set one.")
        _check_fits(np.diff(offsets), np.add.reduceat(np.ones(len(order)), np.flatnonzero(is_first)), args, name)
        joined = joined.shuffle(seed=args.seed) if args.shuffle_dataset else joined
        joined = pack_dataset(joined, args.max_length, args.packing_strategy).remove_columns("seq_lengths")
    return joined.shuffle(seed=args.seed) if args.shuffle_dataset else joined


def sequence_lengths(starts: list[int]) -> list[int]:
    """Lengths of the sequences that begin where `reference_starts` is not 0."""
    return np.diff([*np.flatnonzero(starts), len(starts)]).tolist()


def prompts_of_sequences(examples_starts: list[list[int]]) -> list[int]:
    """Number, from 0, of the prompt of each sequence of a batch."""
    starts = np.concatenate(examples_starts)
    return (np.cumsum(starts[starts > 0] == 2) - 1).tolist()


def _expand(dataset: Dataset, name: str) -> Dataset:
    """One row per entry of `completions`, numbered by its row."""
    if "completion" in dataset.column_names:
        raise ValueError(
            f"The {name} dataset has both `completion` and `{COMPLETIONS}`: it is unclear which are the answers. "
            "Remove one of the two columns."
        )
    lists = dataset[COMPLETIONS]
    none = [i for i, entries in enumerate(lists) if not isinstance(entries, list) or not entries]
    if none:
        raise ValueError(
            f"{len(none)} of {len(dataset)} rows of the {name} dataset have no list of references in `{COMPLETIONS}` "
            f"(first: row {none[0]}, {lists[none[0]]!r}). Remove the rows, or give each a list of at least one answer."
        )
    rows = np.repeat(np.arange(len(dataset)), [len(entries) for entries in lists])
    flat = [entry for entries in lists for entry in entries]
    expanded = dataset.remove_columns(COMPLETIONS).select(rows)
    return expanded.add_column("completion", flat).add_column(PROMPT_NUMBER, rows)


def _numbers(keys: Iterable[Hashable]) -> np.ndarray:
    """Number of each key, by first occurrence."""
    number_of: dict[Hashable, int] = {}
    return np.array([number_of.setdefault(key, len(number_of)) for key in keys], dtype=np.int64)


def _check_no_duplicate(pairs: Iterable[tuple[Any, Hashable]], name: str) -> None:
    pairs = list(pairs)
    seen: set[tuple[Any, Hashable]] = set()
    repeated = [i for i, pair in enumerate(pairs) if pair in seen or seen.add(pair)]  # type: ignore[func-returns-value]
    if repeated:
        raise ValueError(
            f"{len(repeated)} of {len(pairs)} references of the {name} dataset stand twice with their prompt (first: "
            f"reference {repeated[0]}, counted over all rows): their probability would be added twice. Remove the "
            "repetitions; if the texts differ, raise `max_length`, which cuts them to the same tokens."
        )


def _check_fits(num_tokens: np.ndarray, num_references: np.ndarray, args: DCOConfig, name: str) -> None:
    too_long = np.flatnonzero((num_tokens > args.max_length) & (num_references > 1))
    if too_long.size:
        raise ValueError(
            f"{too_long.size} of {len(num_tokens)} prompts of the {name} dataset have references of more than "
            f"`max_length={args.max_length}` tokens together, prompts included (at most {num_tokens.max()}), and a "
            "pack must hold all references of a prompt. Raise `max_length`, or leave packing for `padding_free=True`."
        )


def _prompt(input_ids: list[int], labels: list[int]) -> tuple[int, ...]:
    """Tokens before the first label."""
    length = next((i for i, label in enumerate(labels) if label != -100), len(labels))
    return tuple(input_ids[:length])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
