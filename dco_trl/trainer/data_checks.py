"""What is wrong with a data set for DCO, said before training starts and with a number."""

from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from trl import SFTConfig

logger = get_logger(__name__)


def check_has_completions(dataset: Dataset | IterableDataset, args: SFTConfig, name: str) -> None:
    """Raise a `ValueError` unless the rows tell the answer from the prompt.

    The probability of prompt and answer together is astronomically small, so its weight is 1 and DCO would be plain
    cross-entropy, silently.
    """
    columns = list(dataset.column_names or next(iter(dataset)))
    prepared = "input_ids" in columns
    if prepared:
        separated = "labels" in columns or "assistant_masks" in columns
        separated = separated or ("completion_mask" in columns and args.completion_only_loss is not False)
    elif {"prompt", "completion"} <= set(columns):
        if args.completion_only_loss is False:
            raise ValueError(
                "`completion_only_loss=False` puts the prompt's tokens into the loss, so p would be the probability "
                "of prompt and completion together. Leave `completion_only_loss` unset."
            )
        separated = True
    else:
        separated = bool(args.assistant_only_loss)
    if not separated:
        raise ValueError(
            f"The {name} dataset has the columns {columns}, which do not tell the answer from the prompt: DCO needs "
            "the probability of the answer alone. Give it `prompt` and `completion` columns (TRL's prompt-completion "
            "format), or a conversational dataset with `assistant_only_loss=True`, or tokenised rows with `labels`."
        )


def check_no_empty_completion(dataset: Dataset | IterableDataset, name: str) -> None:
    """Raise a `ValueError` that counts the rows with an empty completion. A streaming data set is not read."""
    if not isinstance(dataset, Dataset) or "completion" not in dataset.column_names:
        return
    empty = [i for i, completion in enumerate(dataset["completion"]) if _is_empty(completion)]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(dataset)} rows of the {name} dataset have an empty `completion` (first: row "
            f"{empty[0]}). The model would be trained to stop at once. Remove the rows, for example with "
            "`dataset.filter`."
        )


def _is_empty(completion: str | Sequence[dict[str, Any]] | None) -> bool:
    if completion is None or isinstance(completion, str):
        return not (completion and completion.strip())
    return not any(message.get("content") or message.get("tool_calls") for message in completion)


def check_has_answers(dataset: Dataset) -> None:
    """Raise a `ValueError` unless every row has a prompt to sample and an answer to grade by."""
    columns = dataset.column_names
    for name, use in (("prompt", "rationales are sampled for"), ("answer", "sampled rationales are graded by")):
        if name not in columns:
            raise ValueError(
                f"The train dataset has the columns {columns} and no `{name}`, which {use}. Add it, for example with "
                "`dataset.rename_column`; or use `sampler='none'` and a data set that `dco-trl estimate` wrote."
            )
    missing = [i for i, answer in enumerate(dataset["answer"]) if answer is None or not str(answer).strip()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(dataset)} rows of the train dataset have no reference `answer` (first: row "
            f"{missing[0]}): their rationales could not be graded. Remove the rows, for example with `dataset.filter`."
        )


def check_has_counts(dataset: Dataset) -> None:
    """Raise a `ValueError` unless every row has possible counts of sampled and correct rationales."""
    absent = [name for name in ("num_sampled", "num_correct") if name not in dataset.column_names]
    if absent:
        raise ValueError(
            f"The train dataset has no `{'` and `'.join(absent)}`, which `sampler='none'` takes the success rates "
            "from. Write them with `dco-trl estimate --model … --dataset … --num-samples 64 --output …`, or choose a "
            "sampler."
        )
    counts = zip(dataset["num_sampled"], dataset["num_correct"], strict=True)
    wrong = [(i, n, c) for i, (n, c) in enumerate(counts) if n is None or c is None or not 0 <= c <= n or n == 0]
    if wrong:
        row, n, c = wrong[0]
        raise ValueError(
            f"{len(wrong)} of {len(dataset)} rows of the train dataset have impossible counts (first: row {row}, "
            f"`num_sampled={n}`, `num_correct={c}`). There must be at least one sample, and at most as many correct "
            "ones. `dco-trl estimate` writes such columns."
        )


def warn_about_truncation(tokenized: Dataset, max_length: int | None, packing: bool, name: str) -> None:
    """Warn, with numbers, about rows that `max_length` cuts and rows that it leaves without any label."""
    num_cut, num_unlabelled = 0, 0
    for batch in tokenized.select_columns(["labels"]).with_format("arrow").iter(1000):
        labels = batch["labels"].combine_chunks()
        cut = pc.greater(pc.list_value_length(labels), max_length) if max_length is not None else None
        kept = pc.list_slice(labels, 0, max_length) if max_length is not None else labels
        num_cut += pc.sum(cut).as_py() or 0 if cut is not None else 0
        rows = pc.list_parent_indices(kept).filter(pc.not_equal(pc.list_flatten(kept), -100))
        num_unlabelled += len(kept) - len(rows.unique())
    if num_cut:
        logger.warning(
            f"{num_cut} of {len(tokenized)} rows of the {name} dataset are longer than `max_length={max_length}` "
            "tokens and are cut: their p is the probability of a piece of the answer, so their weight is not that of "
            "the whole. Raise `max_length`, or remove the rows."
        )
    if num_unlabelled:
        fate = "count in no mean" if packing or max_length is None else "are dropped"
        logger.warning(
            f"{num_unlabelled} of {len(tokenized)} rows of the {name} dataset have no labelled token"
            f"{f' within `max_length={max_length}`' if max_length is not None else ''} and {fate}."
        )
