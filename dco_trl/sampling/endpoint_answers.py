"""Answers of an OpenAI-compatible endpoint, believed only as far as they are checked."""

from dataclasses import dataclass
from typing import Any

from .endpoint import UnusableAnswer, read_json

_STOPPED = {"stop", "eos", "eos_token", "stop_sequence"}
_INT32 = 2**31
# A way out for the command line and for Python.
ONE_EACH = " Set the sampler's option samples_per_request=1 (sampler_kwargs)."
# Models pad their embedding, so a token may lie this far beyond the tokenizer's last.
_PADDING = 1024


@dataclass(frozen=True)
class ServedModel:
    """One entry of `GET /models`: who owns the model, and its context in tokens, where the endpoint tells."""

    owned_by: str
    context: int | None


@dataclass(frozen=True)
class Choice:
    """One completion: text (None where only tokens came), tokens, their number, why it ended, and at what string."""

    text: str | None
    token_ids: tuple[int, ...] | None
    num_tokens: int | None
    finish_reason: str | None
    stopped_at: str | None = None


def read_models(content: bytes) -> dict[str, ServedModel]:
    """Names of the models that the endpoint serves."""
    answer = read_json(content)
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in data):
        raise UnusableAnswer("what came is not an OpenAI-compatible answer")
    return {
        model["id"]: ServedModel(str(model.get("owned_by") or ""), _count(model.get("max_model_len")))
        for model in data
    }


def read_choices(content: bytes, *, n: int, vocabulary: int | None) -> list[Choice]:
    """The `n` completions of an answer, in the order of their indices.

    Args:
        content: Of `/completions` or `/chat/completions`.
        n: How many were asked for.
        vocabulary: Tokens that the tokenizer has, which makes the text of a choice with tokens optional; None if there
            is no tokenizer.

    Raises:
        UnusableAnswer: Something of it is missing, of another kind, or out of range.
    """
    answer = read_json(content)
    if not isinstance(answer, dict):
        raise UnusableAnswer("what came is not an OpenAI-compatible answer")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UnusableAnswer("it holds no list of choices")
    if len(choices) != n:
        hint = ONE_EACH if n > 1 else ""
        raise UnusableAnswer(f"it returned {len(choices)} samples and not the n={n} asked for", hint)
    usage = answer.get("usage")
    total = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if total is not None and _count(total) is None:
        raise UnusableAnswer(f"completion_tokens={total!r:.100} is no number of tokens", "")
    choices.sort(key=lambda choice: _count(choice.get("index")) or 0)
    return [_choice(choice, total if n == 1 else None, vocabulary) for choice in choices]


def _choice(choice: dict[str, Any], num_tokens: int | None, vocabulary: int | None) -> Choice:
    ids = choice.get("token_ids")
    if ids is not None:
        end = _INT32 if vocabulary is None else vocabulary + _PADDING
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < end for token in ids):
            raise UnusableAnswer(f"token_ids is no list of token ids below {end:,}", "")
        num_tokens = len(ids)
    text = choice.get("text")
    if "text" not in choice and isinstance(choice.get("message"), dict):
        text = choice["message"].get("content")
    if ids is None or vocabulary is None:
        if not isinstance(text, str):
            raise UnusableAnswer(
                "a sample has no text",
                " If the endpoint takes reasoning out of the answer (a reasoning parser), switch that off.",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UnusableAnswer("a sample's text is not valid Unicode", "") from error
    reason = choice.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise UnusableAnswer(f"the finish_reason of a sample is no text but {reason!r:.100}", "")
    at = choice.get("stop_reason")  # vLLM's: a string of `stop`, or the id of a token
    reason = "stop" if reason in _STOPPED else reason
    return Choice(text, None if ids is None else tuple(ids), num_tokens, reason, at if isinstance(at, str) else None)


def _count(value: Any) -> int | None:
    """A number of tokens or a position, where it is one."""
    return value if type(value) is int and 0 <= value < _INT32 else None
