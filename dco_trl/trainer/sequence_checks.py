"""Checks that answers begin after the prompt that a sampler is given, and end where it stops."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from ..sampling.end_of_sequence import token_kinds
from ..sampling.tokens import Renderer
from .columns import Flags, answers_of, count_assistant_turns, counted
from .dco_config import DCOConfig

logger = get_logger(__name__)

# So many rows show whether a chat template renders a prompt alone as it does before a completion.
_ROWS = 8


class SequenceChecks:
    """Checks a `DCOTrainer`'s data sets once it has its model, which comes later and tells what ends an answer."""

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._waiting: list[tuple[Dataset, Dataset, str, bool]] = []
        self._on: dict[torch.device, torch.Tensor] = {}

    def add(self, rows: Dataset, tokenized: Dataset, name: str, packing: bool) -> None:
        """Take a data set as it was given and as it was tokenised, with no row cut, and whether it will be packed."""
        self._waiting.append((rows, tokenized, name, packing))
        if hasattr(self._trainer, "model"):
            self.check()

    def check(self) -> None:
        """Warn about rows whose p is not that of exactly one answer; refuse rows whose answer is never sampled."""
        trainer = self._trainer
        trainer._refuse(why_prompt_is_learnt_once(trainer.model, trainer.padding_free), "train", "eval")
        while self._waiting:
            rows, tokenized, name, packing = self._waiting.pop(0)
            reason = None
            if "prompt" in rows.column_names and trainer.processing_class is trainer._tokenizer:
                reason = why_prompt_differs(rows, trainer._tokenizer, name)
            keeps_end = trainer.args.truncation_mode == "keep_end" and not packing  # packing keeps the start
            answers = answers_of(tokenized, self._kinds, trainer.args.max_length, keeps_end)
            if not (trainer._estimates_p and name == "train"):
                warn_about_turns(rows, answers["several"], trainer.args, name)
            warn_about_cuts(answers, trainer.args.max_length, packing, name)
            reason = reason or why_no_answer(answers, is_conversational(next(iter(rows), {})), name)
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
    """Why only one document would follow the virtual tokens, and what to do about it; None if all do."""
    config: Any = getattr(model, "active_peft_config", None)
    if not (padding_free and getattr(config, "is_prompt_learning", False)):
        return None
    return (
        f"A {config.peft_type.value} adapter puts its virtual tokens before a batch, and flattened batches "
        "(`padding_free=True`, or `packing=True`) are one row: only its first document would follow them, and p of "
        "the others would be that of the model alone. Set `padding_free=False` and `packing=False`, or train LoRA."
    )


def why_prompt_differs(dataset: Dataset, tokenizer: Any, name: str) -> str | None:
    """Why a sampler would be given another prompt than training, and what to do about it; None if it is the same.

    `dataset` holds rows of `prompt` and `completion`, `tokenizer` the chat template that will be sampled with.
    """
    renderer = Renderer(tokenizer)
    merges = []
    for number, row in enumerate(islice(dataset, _ROWS)):
        alone, whole = rendered(renderer, row)
        differs = whole[: len(alone)] != alone
        if differs and not isinstance(row["prompt"], str):
            return (
                f"The chat template renders the prompt of row {number} of the {name} dataset differently when it is "
                "alone, as a sampler gets it, than before its completion: alone it ends with "
                f"{tokenizer.decode(alone[-8:])!r}. p would be that of an answer to another prompt. Use a template "
                "that renders both alike (`chat_template_path`), or give it arguments with which it does (a column "
                "`chat_template_kwargs`)."
            )
        merges.append(differs)
    if merges and all(merges):  # TRL warns about single rows
        return (
            "The tokenizer merges the end of the prompt and the beginning of the completion into one token in the "
            f"rows of the {name} dataset, such as {row['prompt'][-20:]!r} and {row['completion'][:20]!r}: a sampler, "
            "which is given the prompt alone, would continue other tokens than were trained on. Move that end of the "
            "prompt, such as its last line break or space, to the beginning of the completion."
        )
    return None


@contextmanager
def naming_the_row(dataset: Any, tokenizer: Any, name: str) -> Iterator[None]:
    """Name the row that a chat template refuses while a data set is tokenised."""
    try:
        yield
    except Exception as error:
        if is_conversational(next(iter(dataset), {})):
            for number, row in enumerate(dataset):
                try:
                    rendered(Renderer(tokenizer), row)
                except Exception as own:
                    raise ValueError(
                        f"The chat template cannot render row {number} of the {name} dataset: {own} "
                        f"({type(own).__name__}). Change the row, or use a template that takes such messages "
                        "(`chat_template_path`)."
                    ) from error
        raise


def rendered(renderer: Renderer, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens of a row's prompt alone, and with its completion; for a conversation, none and all."""
    kwargs = Problem("", "", "", row).template_kwargs
    if "prompt" not in row:
        return [], renderer.rendered(row["messages"], kwargs)
    prompt, whole = row["prompt"], row["prompt"] + row["completion"]
    if isinstance(prompt, str):
        alone, both = renderer.texts_ids([prompt, whole])
        return alone, both
    return renderer.prompt_ids(prompt, kwargs), renderer.rendered(whole, kwargs)


def warn_about_turns(rows: Dataset, several: Flags, args: DCOConfig, name: str) -> None:
    """Warn about rows of several answers, which share one p."""
    if args.unit != "sequence" or args.num_attempts == 1 or "seq_lengths" in rows.column_names:  # packed already
        return
    if "completion" in rows.column_names and not args.assistant_only_loss:  # messages one after the other
        turns = count_assistant_turns(rows, "completion")[0] > 1
        several = turns if turns.any() else several
    if several.any():
        logger.warning(
            f"{counted(several, name)} have several answers, usually turns of a conversation. Each such row has one "
            "p, that of all its answers together, which is so small that DCO is cross-entropy there. Set "
            "`unit='turn'`, which gives each its own; or make one row of each turn, with the messages before it as "
            "`prompt` and the turn as `completion`; or keep only the last turn."
        )


def warn_about_cuts(answers: dict[str, Flags], max_length: int | None, packing: bool, name: str) -> None:
    """Warn about rows that `max_length` cuts, and about those without a label."""
    limit = "" if max_length is None else f" at `max_length={max_length}`"
    fate = "count in no mean" if packing or max_length is None else "are dropped"
    told = {
        "cut": "lose labelled tokens: their p is the probability of a piece of the answer, so their weight is not "
        "that of the whole. Raise `max_length`, or remove the rows.",
        "prompt_cut": "lose the start of their prompt (`truncation_mode='keep_end'`): their p is that of the answer "
        "to what is left of it.",
        "unlabelled": f"have no labelled token and {fate}.",
    }
    for what, text in told.items():
        if answers[what].any():
            logger.warning(f"{counted(answers[what], name)}{limit} {text}")


def why_no_answer(answers: dict[str, Flags], is_rendered: bool, name: str) -> str | None:
    """Why p is not that of sampling the answer, and what to do about it; None if it is. Warn if some have no end."""
    promptless, empty, endless = answers["promptless"], answers["empty"], answers["endless"]
    if promptless.any():
        return (
            f"{counted(promptless, name)} have an answer that begins at the first token, which no model predicts, "
            "so p would lack it. Give each row a prompt of at least one token; an empty prompt has none if the "
            "tokenizer adds no beginning of sequence."
        )
    if empty.any() and is_rendered:
        return (
            f"The chat template renders nothing of the completions of {counted(empty, name)}: the model would be "
            "trained to stop at once. If they are tool calls, use a template that renders those "
            "(`chat_template_path`)."
        )
    if endless.size and endless.all() and is_rendered:
        return (
            f"No answer of the {name} dataset ends with an end of sequence: what the chat template writes after an "
            "answer, if anything, is neither the tokenizer's `eos_token` nor among those of the model's generation "
            "config, so a sampler would not stop there. Set `eos_token` to the token that the template ends a turn "
            "with, or use a chat template that writes one (`chat_template_path`)."
        )
    if endless.any():
        logger.warning(
            f"{counted(endless, name)} have an answer without an end of sequence: their p is not that of a whole "
            "answer, because a sampler would not stop there."
        )
    return None


def mode_of(dataset_name: str) -> str:
    return "train" if dataset_name == "train" else "eval"
