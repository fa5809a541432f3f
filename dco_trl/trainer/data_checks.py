"""Reports what is wrong with a data set for DCO, with the number of rows, before training starts."""

from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset, Value

from .columns import counted, has_other_end, is_empty
from .conversations import has_conversations
from .dco_config import DCOConfig

logger = get_logger(__name__)

_IMAGES = {"image", "images"}


def why_not_an_answer(dataset: Dataset | IterableDataset, args: DCOConfig, name: str) -> str | None:
    """Why p is not the probability of the answer alone, and what to do about it; None if it is.

    The probability of prompt and answer together is astronomically small, so its weight is 1 and DCO would
    silently be plain cross-entropy.
    """
    columns = list(dataset.column_names or next(iter(dataset)))
    if "input_ids" in columns:
        marks = ["labels", "assistant_masks", *(["completion_mask"] if args.completion_only_loss is not False else [])]
        is_separated = any(mark in columns for mark in marks)
    elif {"prompt", "completion"} <= set(columns):
        if args.completion_only_loss is False:
            return (
                "`completion_only_loss=False` puts the prompt's tokens into the loss, so p would be the probability "
                "of prompt and completion together. Leave `completion_only_loss` unset."
            )
        is_separated = True
    else:
        is_separated = bool(args.assistant_only_loss)
    if is_separated:
        return None
    if "completions" in columns:
        return (
            f"The {name} dataset has the columns {columns}: each row needs one `completion`. Turn a list of right "
            "answers in `completions` into one row each, with the same prompt."
        )
    return (
        f"The {name} dataset has the columns {columns}, which do not tell the answer from the prompt: DCO needs the "
        "probability of the answer alone. Give it `prompt` and `completion` columns (TRL's prompt-completion format; "
        "for a conversation, one row per assistant turn, with all messages before it as `prompt`), or a "
        "conversational dataset with `assistant_only_loss=True`, or tokenised rows with `labels`."
    )


def check_texts(dataset: Dataset | IterableDataset, name: str) -> None:
    """Raise a `ValueError` that names a row whose prompt or completion is not text, or whose completion is empty."""
    if not isinstance(dataset, Dataset):
        return
    for column in {"prompt", "completion", "text"} & set(dataset.column_names):
        kind = dataset.features[column]
        if isinstance(kind, Value) and kind.dtype not in ("string", "large_string", "null"):
            raise ValueError(
                f"The column `{column}` of the {name} dataset holds {kind.dtype}, not text (row 0: "
                f"{dataset[0][column]!r}). Put the values in quotes in your file, or cast them, which may change "
                f"their spelling: dataset.cast_column({column!r}, Value('string'))."
            )
    if "completion" in dataset.column_names and (empty := is_empty(dataset, "completion")).any():
        raise ValueError(
            f"{counted(empty, name)} have an empty `completion`. The model would be trained to stop at once. Remove "
            "the rows, for example with `dataset.filter`."
        )


def has_images(dataset: Any) -> bool:
    """Whether the rows have pictures. TRL prepares such rows batch by batch, in its collator."""
    return isinstance(dataset, Dataset | IterableDataset) and bool(_IMAGES & set(dataset.column_names or ()))


def check_images(dataset: Dataset | IterableDataset, args: DCOConfig, processor: Any, name: str) -> None:
    """Raise a `ValueError` where p would not be the probability of a whole answer to a picture."""
    if args.max_length is not None:
        raise ValueError(
            f"`max_length={args.max_length}` may cut answers to pictures, and their p would be that of a piece: how "
            "many tokens a picture takes is known only in the batch. Set `max_length=None`."
        )
    check_texts(dataset, name)
    end = processor.tokenizer.eos_token
    if isinstance(dataset, Dataset) and "completion" in dataset.column_names and end:
        if (endless := has_other_end(dataset, "completion", end)).any():
            raise ValueError(
                f"{counted(endless, name)} have a completion that does not end with {end!r}: TRL appends no end "
                "of sequence to rows with pictures, and p would be that of a beginning. Append it: dataset.map(lambda "
                f"row: {{'completion': row['completion'] + {end!r}}}); or use messages, whose template does."
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
    if (missing := is_empty(dataset, "answer")).any():
        raise ValueError(
            f"{counted(missing, 'train')} have no reference `answer`: their rationales could not be graded. Remove "
            "the rows, for example with `dataset.filter`."
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
    wrong = ~((c >= 0) & (c <= n) & (n > 0))
    if wrong.any():
        first = {name: dataset[int(wrong.argmax())][name] for name in table.column_names}
        raise ValueError(
            f"{counted(wrong, 'train')} have impossible counts, such as {first}. There must be at least one sample, "
            "and at most as many correct ones. `dco-trl estimate` writes such columns."
        )


def warn_about_baseline(dataset: Dataset | IterableDataset, args: DCOConfig) -> None:
    """Warn if one attempt trains the prompt too, as `SFTTrainer` does, and more attempts train the answer alone."""
    if not has_conversations(dataset) or args.assistant_only_loss:
        return
    logger.warning(
        "With `num_attempts=1` this is `SFTTrainer`, which trains prompt and answer of `messages` rows alike; more "
        "attempts train the answer alone. As a baseline it is a different experiment, without `eval_log_p.parquet`. "
        "To compare, give both runs `prompt` and `completion` columns: dataset.map(lambda row: {'prompt': "
        "row['messages'][:-1], 'completion': row['messages'][-1:]}, remove_columns='messages'); or set "
        "`assistant_only_loss=True` in both, where the chat template can mark the assistant's tokens."
    )
