"""Between text and tokens: prompts as training renders them, completions as training ends them."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .protocol import Prompt, Sample, SampleRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt | list[int]) -> list[int]:
    """Tokens of a prompt, as TRL's SFTTrainer renders it.

    A string goes through `tokenizer(prompt)`, messages through `apply_chat_template(add_generation_prompt=True)`.
    Token ids stay as they are.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Text, messages or token ids.

    Returns:
        Token ids, at least one.

    Raises:
        ValueError: Messages without a chat template, or a prompt without a token.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif is_token_ids(prompt):
        ids = prompt
    else:
        if tokenizer.chat_template is None:
            raise UserError(
                f"The prompt is a list of messages, but the tokenizer of {tokenizer.name_or_path!r} has no chat "
                "template, so it cannot be rendered. Give plain text prompts, or save a chat template with the "
                "tokenizer (`tokenizer.chat_template = ...`)."
            )
        messages: Any = prompt
        rendered: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = rendered["input_ids"]
    if not ids:
        raise UserError(
            f"prompt={prompt!r} has no tokens under the tokenizer of {tokenizer.name_or_path!r}. Remove it."
        )
    return list(ids)


def is_token_ids(prompt: Prompt | list[int]) -> bool:
    """Whether a prompt is token ids already, and not text or messages."""
    return bool(prompt) and isinstance(prompt[0], int)


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    requests: Sequence[SampleRequest],
    max_tokens: int,
    context: int | None,
    how: str,
) -> list[list[int]]:
    """Tokens of all prompts; one that leaves no room for `max_tokens` is refused before anything is drawn."""
    prompts = [encode_prompt(tokenizer, request.prompt) for request in requests]
    for request, ids in zip(requests, prompts, strict=True):
        if context is not None and len(ids) + max_tokens > context:
            raise UserError(
                f"A prompt of {len(ids)} tokens and max_tokens={max_tokens} make {len(ids) + max_tokens} tokens, more "
                f"than the {context} of the context. {how} The prompt (stream {request.stream}) begins "
                f"{tokenizer.decode(ids[:16])!r}."
            )
    return prompts


def end_token_ids(tokenizer: "PreTrainedTokenizerBase", generation_config: Any = None) -> tuple[int, ...]:
    """Tokens that end a completion: the tokenizer's end of sequence, then those of the generation config.

    Training appends the tokenizer's; a chat model's template may end a turn with another, listed in its
    `generation_config.json`.

    Args:
        tokenizer: The model's tokenizer.
        generation_config: A `GenerationConfig`, its dictionary, or None.

    Returns:
        Distinct ids, the tokenizer's first.

    Raises:
        ValueError: Neither names one.
    """
    if generation_config is None:
        configured = None
    elif isinstance(generation_config, dict):
        configured = generation_config.get("eos_token_id")
    else:
        configured = generation_config.eos_token_id
    configured = [configured] if isinstance(configured, int) else list(configured or [])
    ids = tuple(dict.fromkeys(i for i in [tokenizer.eos_token_id, *configured] if i is not None))
    if not ids:
        raise UserError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no eos_token and the generation config names none, so "
            "no completion would ever end. Set `tokenizer.eos_token` and save the tokenizer."
        )
    return ids


def cut_at_stop(text: str, stop: Iterable[str]) -> tuple[str, bool]:
    """Text before the first stop string, and whether there was one."""
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def make_samples(
    tokenizer: "PreTrainedTokenizerBase",
    completions: Sequence[Sequence[int]],
    end_ids: Collection[int],
    stop: Sequence[str],
) -> list[Sample]:
    """Samples from generated tokens.

    Args:
        tokenizer: Decodes all completions in one batch. Text is that of the completion's own tokens, without the
            prompt, as TRL decodes completions for its reward functions.
        completions: Token ids of each completion, up to and including the end of sequence if it came.
        end_ids: Tokens that end a completion.
        stop: Stop strings.

    Returns:
        One sample for each completion.
    """
    ends = set(end_ids)
    ended = [bool(ids) and ids[-1] in ends for ids in completions]
    # The end of sequence need not be a special token: take it off by position, then the special ones by name.
    bodies = [list(ids[:-1]) if end else list(ids) for ids, end in zip(completions, ended, strict=True)]
    texts = tokenizer.batch_decode(bodies, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    samples = []
    for ids, end, text in zip(completions, ended, texts, strict=True):
        text, stopped = cut_at_stop(text, stop)
        samples.append(Sample(text, tuple(ids), len(ids), "stop" if end or stopped else "length"))
    return samples
