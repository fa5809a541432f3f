"""What is wrong with a data set for DCO, reported before training starts and with a number."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset, Value

from .columns import count_assistant_turns, is_empty
from .conversations import has_conversations
from .dco_config import DCOConfig

logger = get_logger(__name__)


def why_not_an_answer(dataset: Dataset | IterableDataset, args: DCOConfig, name: str) -> str | None:
    """What keeps p from being the probability of the answer alone, and what to do; None if nothing does.

    The probability of prompt and answer together is astronomically small, so its weight is 1 and DCO would be plain
    cross-entropy, silently.
    """
    columns = list(dataset.column_names or next(iter(dataset)))
    if "input_ids" in columns:
        separated = "labels" in columns or "assistant_masks" in columns
        separated = separated or ("completion_mask" in columns and args.completion_only_loss is not False)
    elif {"prompt", "completion"} <= set(columns):
        if args.completion_only_loss is False:
            return (
                "`completion_only_loss=False` puts the prompt's tokens into the loss, so p would be the probability "
                "of prompt and completion together. Leave `completion_only_loss` unset."
            )
        separated = True
    else:
        separated = bool(args.assistant_only_loss)
    if separated:
        return None
    if "completions" in columns:
        return (
            f"The {name} dataset has the columns {columns}: each row needs one `completion`. Of a list of right "
            "answers in `completions` make one row each, with the same prompt."
        )
    return (
        f"The {name} dataset has the columns {columns}, which do not tell the answer from the prompt: DCO needs the "
        "probability of the answer alone. Give it `prompt` and `completion` columns (TRL's prompt-completion format; "
        "of a conversation, one row per turn of the assistant, with all messages before it as `prompt`), or a "
        "conversational dataset with `assistant_only_loss=True`, or tokenised rows with `labels`."
    )


def check_completions(dataset: Dataset | IterableDataset, args: DCOConfig, name: str, has_own_p: bool) -> None:
    """Refuse completions that are no text or empty; warn where a row's own p is that of several turns."""
    check_text(dataset, name)
    check_no_empty_completion(dataset, name)
    if has_own_p:
        warn_about_completions(dataset, args, name)


def check_text(dataset: Dataset | IterableDataset, name: str) -> None:
    """Raise a `ValueError` that names the column, a row and the way out where a prompt or completion is no text."""
    if not isinstance(dataset, Dataset):
        return
    for column in {"prompt", "completion", "text"} & set(dataset.column_names):
        kind = dataset.features[column]
        if isinstance(kind, Value) and kind.dtype not in ("string", "large_string", "null"):
            raise ValueError(
                f"The column `{column}` of the {name} dataset holds {kind.dtype} and no text (row 0: "
                f"{dataset[0][column]!r}). Put the values into quotes in your file, or cast them, which may spell "
                f"them otherwise: dataset.cast_column({column!r}, Value('string'))."
            )


def check_no_empty_completion(dataset: Dataset | IterableDataset, name: str) -> None:
    """Raise a `ValueError` that counts the rows with an empty completion. A streaming data set is not read."""
    if not isinstance(dataset, Dataset) or "completion" not in dataset.column_names:
        return
    empty = np.flatnonzero(is_empty(dataset, "completion"))
    if empty.size:
        raise ValueError(
            f"{empty.size} of {len(dataset)} rows of the {name} dataset have an empty `completion` (first: row "
            f"{empty[0]}). The model would be trained to stop at once. Remove the rows, for example with "
            "`dataset.filter`."
        )


def check_has_answers(dataset: Dataset) -> None:
    """Raise a `ValueError` unless every row has a prompt to sample and an answer to grade by."""
    columns = dataset.column_names
    for name, use in (("prompt", "rationales are sampled for"), ("answer", "sampled rationales are graded by")):
        if name not in columns:
            raise ValueError(
                f"The train dataset has the columns {columns} and no `{name}`, which {use}. Add it, for example with "
                "`dataset.rename_column`; or use `sampler='none'` and a data set that `dco-trl estimate` wrote."
            )
    missing = np.flatnonzero(is_empty(dataset, "answer"))
    if missing.size:
        raise ValueError(
            f"{missing.size} of {len(dataset)} rows of the train dataset have no reference `answer` (first: row "
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
    table = dataset.select_columns(["num_sampled", "num_correct"]).with_format("arrow")[:]
    n, c = (table[name].to_numpy().astype(float) for name in table.column_names)  # NaN where there is none
    wrong = np.flatnonzero(~((c >= 0) & (c <= n) & (n > 0)))
    if wrong.size:
        row = int(wrong[0])
        n, c = dataset[row]["num_sampled"], dataset[row]["num_correct"]
        raise ValueError(
            f"{wrong.size} of {len(dataset)} rows of the train dataset have impossible counts (first: row {row}, "
            f"`num_sampled={n}`, `num_correct={c}`). There must be at least one sample, and at most as many correct "
            "ones. `dco-trl estimate` writes such columns."
        )


def warn_about_baseline(dataset: Dataset | IterableDataset, args: DCOConfig) -> None:
    """Warn where one attempt trains the prompt too, as `SFTTrainer` does, and more attempts the answer alone."""
    if not has_conversations(dataset) or args.assistant_only_loss:
        return
    logger.warning(
        "With `num_attempts=1` this is `SFTTrainer`, which trains prompt and answer of `messages` rows alike; more "
        "attempts train the answer alone. As a baseline it is another experiment, without `eval_log_p.parquet`. To "
        "compare, give both runs `prompt` and `completion` columns: dataset.map(lambda row: {'prompt': "
        "row['messages'][:-1], 'completion': row['messages'][-1:]}, remove_columns='messages'); or set "
        "`assistant_only_loss=True` in both, where the chat template can mark the assistant's tokens."
    )


def warn_about_completions(dataset: Dataset | IterableDataset, args: DCOConfig, name: str) -> None:
    """Warn, with a number, about completions of several turns, whose p is that of all of them together."""
    if not isinstance(dataset, Dataset) or not {"prompt", "completion"} <= set(dataset.column_names):
        return
    if not args.assistant_only_loss:  # otherwise the labels tell
        turns, _ = count_assistant_turns(dataset, "completion")
        _warn_about_turns(int((turns > 1).sum()), len(dataset), name, args)


def warn_about_labels(tokenized: Dataset, args: DCOConfig, packing: bool, name: str, has_own_p: bool) -> None:
    """Warn, with numbers, about rows that `max_length` cuts, that it leaves without any label, or of several turns.

    Args:
        tokenized: Rows with `labels`, whole.
        args: The trainer's.
        packing: Whether they will be packed.
        name: Of the data set.
        has_own_p: Whether p is that of the row, and not estimated from samples.
    """
    max_length = args.max_length
    keeps_end = args.truncation_mode == "keep_end" and not packing  # packing keeps the start
    counts = np.zeros(4, dtype=np.int64)
    for batch in tokenized.select_columns(["labels"]).with_format("arrow").iter(1000):
        labels = batch["labels"].combine_chunks()
        counts += _count_rows(labels, max_length, keeps_end)
    num_cut, num_prompt_cut, num_unlabelled, num_several = counts.tolist()
    if num_cut:
        logger.warning(
            f"{num_cut} of {len(tokenized)} rows of the {name} dataset are longer than `max_length={max_length}` "
            "tokens and are cut: their p is the probability of a piece of the answer, so their weight is not that of "
            "the whole. Raise `max_length`, or remove the rows."
        )
    if num_prompt_cut:
        logger.warning(
            f"{num_prompt_cut} of {len(tokenized)} rows of the {name} dataset are longer than "
            f"`max_length={max_length}` tokens and lose the start of their prompt (`truncation_mode='keep_end'`): "
            "their p is that of the answer to what is left of it."
        )
    if num_unlabelled:
        fate = "count in no mean" if packing or max_length is None else "are dropped"
        logger.warning(
            f"{num_unlabelled} of {len(tokenized)} rows of the {name} dataset have no labelled token"
            f"{f' within `max_length={max_length}`' if max_length is not None else ''} and {fate}."
        )
    # Not if packed already, many answers to a row; nor if p is not needed.
    if has_own_p and "seq_lengths" not in tokenized.column_names and args.num_attempts > 1:
        _warn_about_turns(num_several, len(tokenized), name, args)


def _count_rows(labels: pa.Array, max_length: int | None, keeps_end: bool) -> np.ndarray:
    """Rows whose answer is cut, whose prompt is, without a label in what is kept, and with several labelled parts."""
    lengths = pc.list_value_length(labels).to_numpy(zero_copy_only=False)
    labelled = pc.list_flatten(labels).to_numpy(zero_copy_only=False) != -100
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first, last = starts, ends
    if max_length is not None:
        first, last = (np.maximum(starts, ends - max_length), ends) if keeps_end else (
            starts, np.minimum(ends, starts + max_length)
        )  # fmt: skip
    before = np.concatenate([[0], np.cumsum(labelled)])
    num_all, num_kept = before[ends] - before[starts], before[last] - before[first]
    # A part begins where a label follows none, or a row begins.
    follows = np.concatenate([[False], labelled[:-1]])
    follows[starts[lengths > 0]] = False
    parts = np.concatenate([[0], np.cumsum(labelled & ~follows)])
    is_cut = num_kept < num_all
    return np.array(
        [
            is_cut.sum(),
            (~is_cut & (first > starts)).sum(),
            (num_kept == 0).sum(),
            (parts[ends] - parts[starts] > 1).sum(),
        ]
    )


def _warn_about_turns(num_several: int, num_rows: int, name: str, args: DCOConfig) -> None:
    if num_several and args.unit == "sequence":
        logger.warning(
            f"{num_several} of {num_rows} rows of the {name} dataset have several answers, usually turns of a "
            "conversation. Each such row has one p, that of all its answers together, which is so small that DCO is "
            "cross-entropy there. Set `unit='turn'`, which gives each its own; or make one row of each turn, with the "
            "messages before it as `prompt` and the turn as `completion`; or keep the last turn alone."
        )
