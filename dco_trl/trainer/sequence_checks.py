"""Do answers begin behind the prompt that a sampler is given, and end where it stops?"""

from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from trl import is_conversational

from ..problem import Problem
from ..sampling.end_of_sequence import CONTENT, END, token_kinds
from ..sampling.tokens import Renderer

logger = get_logger(__name__)

# Whether a chat template renders a prompt alone as it does before a completion shows in the first rows.
_ROWS = 8


class SequenceChecks:
    """Checks a trainer's data sets once it has the model, which tells what ends an answer: they are prepared before.

    Args:
        trainer: A `DCOTrainer`.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._waiting: list[tuple[Any, Dataset, str]] = []
        self._on: dict[torch.device, torch.Tensor] = {}

    def add(self, rows: Dataset, tokenized: Dataset, name: str) -> None:
        """Take a data set, as it was given and tokenised, none of its rows cut."""
        self._waiting.append((rows, tokenized, name))
        if hasattr(self._trainer, "model"):
            self.check()

    def check(self) -> None:
        """Refuse what was taken, where p would not be that of an answer that is sampled."""
        trainer = self._trainer
        trainer._refuse(why_prompt_is_learnt_once(trainer.model, trainer.padding_free), "train", "eval")
        while self._waiting:
            rows, tokenized, name = self._waiting.pop(0)
            is_rendered = is_conversational(next(iter(rows), {}))
            reason = None
            if "prompt" in rows.column_names and trainer.processing_class is trainer._tokenizer:
                reason = why_prompt_differs(rows, trainer._tokenizer, name)
            reason = reason or why_no_answer(tokenized, self._kinds, is_rendered, name)
            trainer._refuse(reason, mode_of(name))

    @cached_property
    def _kinds(self) -> np.ndarray:
        model = self._trainer.model
        model = model.get_base_model() if is_peft_model(model) else model
        return token_kinds(self._trainer._tokenizer, getattr(model, "generation_config", None))

    def kinds_and_tokens(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `Segments.up_to_end` needs: `token_kinds` on the batch's device, and the tokens that have labels."""
        token_ids = batch["labels"][:, 1:]
        if token_ids.device not in self._on:
            self._on[token_ids.device] = torch.from_numpy(self._kinds).to(token_ids.device)
        return self._on[token_ids.device], token_ids


def why_prompt_is_learnt_once(model: Any, padding_free: bool) -> str | None:
    """What keeps virtual tokens from all documents but one, and what to do; None if nothing does."""
    config: Any = getattr(model, "active_peft_config", None)
    if not (padding_free and getattr(config, "is_prompt_learning", False)):
        return None
    return (
        f"A {config.peft_type.value} adapter puts its virtual tokens before a batch, and flattened batches "
        "(`padding_free=True`, or `packing=True`) are one row: only its first document would stand behind them, and p "
        "of the others would be that of the model alone. Set `padding_free=False` and `packing=False`, or train LoRA."
    )


def why_prompt_differs(dataset: Any, tokenizer: Any, name: str) -> str | None:
    """What a sampler would be given otherwise than training, and what to do; None if nothing.

    Args:
        dataset: Rows of `prompt` and `completion`.
        tokenizer: With the chat template that will be sampled with.
        name: Of the data set, for messages.
    """
    renderer = Renderer(tokenizer)
    merges = []
    for number, row in enumerate(islice(dataset, _ROWS)):
        prompt, completion = row["prompt"], row["completion"]
        kwargs = Problem("", prompt, "", row).template_kwargs
        if isinstance(prompt, str):
            alone, whole = renderer.texts_ids([prompt, prompt + completion])
        else:
            alone, whole = renderer.prompt_ids(prompt, kwargs), renderer.rendered(prompt + completion, kwargs)
        differs = whole[: len(alone)] != alone
        if differs and not isinstance(prompt, str):
            return (
                f"The chat template renders the prompt of row {number} of the {name} dataset alone, as it is sampled "
                f"from, otherwise than before its completion: alone it ends with {tokenizer.decode(alone[-8:])!r}. p "
                "would be that of an answer to another prompt. Use a template that renders both alike "
                "(`chat_template_path`), or give it arguments with which it does (a column `chat_template_kwargs`)."
            )
        merges.append(differs)
    if merges and all(merges):  # of a few rows TRL warns
        return (
            "The tokenizer makes one token of the end of the prompt and the beginning of the completion in the rows "
            f"of the {name} dataset, such as {prompt[-20:]!r} and {completion[:20]!r}: a sampler, which is given the "
            "prompt alone, continues other tokens than were trained on. Let the completion begin with that end of the "
            "prompt, such as its last line break or space."
        )
    return None


def why_no_answer(tokenized: Dataset, kinds: np.ndarray, is_rendered: bool, name: str) -> str | None:
    """Why p is not what an answer is sampled with, and what to do; None if it is. A warning if some rows have no end.

    Args:
        tokenized: Rows of `input_ids` and `labels`, before any is cut.
        kinds: From `token_kinds`.
        is_rendered: Whether a chat template rendered them.
        name: Of the data set, for messages.
    """
    num_rows = num_promptless = num_endless = num_empty = 0
    first = first_empty = -1
    for batch in tokenized.select_columns(["labels"]).with_format("arrow").iter(1000):
        labels = batch["labels"].combine_chunks()
        lengths = labels.value_lengths().to_numpy(zero_copy_only=False)
        tokens = labels.flatten().to_numpy(zero_copy_only=False)
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        if not starts.size:
            continue
        # The last content token of each row, and its last end of sequence, among all of the batch.
        at, kind = np.arange(len(tokens)), kinds[np.clip(tokens, 0, len(kinds) - 1)]
        content, end, labelled = (
            np.maximum.reduceat(np.where(which & (tokens != -100), at, -1), starts)
            for which in (kind == CONTENT, kind == END, True)
        )
        is_endless = (labelled >= starts) & ~((end > content) & (end >= starts))
        empty = np.flatnonzero((labelled >= starts) & (content < starts))
        if empty.size and not num_empty:
            first_empty = num_rows + int(empty[0])
        num_empty += empty.size
        promptless = np.flatnonzero(tokens[starts] != -100)
        if promptless.size and not num_promptless:
            first = num_rows + int(promptless[0])
        num_promptless += promptless.size
        num_endless += int(is_endless.sum())
        num_rows += len(labels)
    if num_promptless:
        return (
            f"{num_promptless} of {num_rows} rows of the {name} dataset have an answer from their first token on "
            f"(first: row {first}), which no model predicts, so p would lack it. Give each row a prompt of at least "
            "one token; a tokenizer without a beginning of sequence makes none of an empty prompt."
        )
    if num_empty and is_rendered:
        return (
            f"The chat template renders nothing of {num_empty} of {num_rows} completions of the {name} dataset "
            f"(first: row {first_empty}): the model would be trained to stop at once. If they are tool calls, use a "
            "template that renders those (`chat_template_path`)."
        )
    if num_endless and is_rendered and num_endless == num_rows:
        return (
            f"No answer of the {name} dataset ends with an end of sequence: what the chat template writes behind an "
            "answer, if anything, is neither the tokenizer's `eos_token` nor among those of the model's generation "
            "config, so a sampler would run on behind it. Set `eos_token` to the token that the template ends a turn "
            "with, or use a chat template that writes one (`chat_template_path`)."
        )
    if num_endless:
        logger.warning(
            f"{num_endless} of {num_rows} rows of the {name} dataset have an answer without an end of sequence: "
            "their p is not that of a whole answer, because a sampler would run on behind it."
        )
    return None


def mode_of(dataset_name: str) -> str:
    return "train" if dataset_name == "train" else "eval"
