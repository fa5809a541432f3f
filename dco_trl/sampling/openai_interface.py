"""Requests to an OpenAI-compatible endpoint, and its answers, which are checked before they are used."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import UserError
from .endpoint import NOT_COMPATIBLE, Failure, read_json
from .protocol import SampleRequest, SamplingParams
from .tokens import Ends, is_token_ids

# What `SamplingParams` and the sampler itself decide. `top_k` is not part of OpenAI's interface; see below.
DECIDED = (
    *("model", "prompt", "messages", "n", "best_of", "stream", "temperature", "top_p", "max_tokens"),
    *("max_completion_tokens", "stop", "stop_token_ids", "seed", "return_token_ids"),
    *("tools", "tool_choice", "chat_template_kwargs"),
)
# Advice for both the command line and Python.
ONE_EACH = " Set the sampler's option samples_per_request=1 (sampler_kwargs)."
_STOPPED = {"stop", "eos", "eos_token", "stop_sequence"}
_INT32 = 2**31
# Models pad their embedding, so a token may lie this far beyond the tokenizer's last.
_PADDING = 1024


def request_body(
    request: SampleRequest,
    prompt: Any,
    ends: Ends | None,
    params: SamplingParams,
    is_vllm: bool,
    extra_body: Mapping[str, Any],
    base_url: str,
) -> dict[str, Any]:
    """The body of a request, without the model, the number of samples and the seed.

    Without `ends` the endpoint decides what ends a completion. Endpoints other than vLLM's may refuse or ignore fields
    that are not OpenAI's.

    Raises:
        UserError: `top_k`, or arguments of the chat template, for an endpoint that is not known to understand them.
    """
    body: dict[str, Any] = {"temperature": request.temperature, "top_p": params.top_p, "max_tokens": params.max_tokens}
    body |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    stop = params.stop
    if is_vllm:
        body |= {"top_k": params.top_k, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
        if ends is not None:
            stop, body["stop_token_ids"] = ends.strings, list(ends.ids)
    elif extra_body.get("top_k", 0) != params.top_k:
        raise UserError(
            f"top_k={params.top_k} is not part of OpenAI's interface, and {base_url} is not a vLLM server: "
            f"it may ignore or refuse it. If it knows top_k, set the sampler's option extra_body={{'top_k': "
            f"{params.top_k}}} (sampler_kwargs); otherwise sample with top_k=0 and without top_k in extra_body."
        )
    if stop:
        body["stop"] = list(stop)
    body |= extra_body
    if isinstance(prompt, str) or is_token_ids(prompt):
        return {**body, "prompt": prompt}
    others = dict(request.template_kwargs)
    if others and not is_vllm:
        raise UserError(
            f"The prompt comes with arguments of the chat template ({', '.join(others)}), which {base_url} may not "
            "render as training does. Set the sampler's option tokenizer (sampler_kwargs)."
        )
    # Tool calls stay in the text: a server that parsed them would remove them.
    if tools := others.pop("tools", None):
        body |= {"tools": tools, "tool_choice": "none"}
    return {**body, "messages": prompt} | ({"chat_template_kwargs": others} if others else {})


class ServedModel(NamedTuple):
    """One entry of `GET /models`: who owns the model, and its context in tokens if the endpoint reports it."""

    owned_by: str
    context: int | None


class Choice(NamedTuple):
    """One completion: text (None if there are only tokens), tokens, their number, why it ended, and at what string."""

    text: str | None
    token_ids: tuple[int, ...] | None
    num_tokens: int | None
    finish_reason: str | None
    stopped_at: str | None


def read_models(content: bytes) -> dict[str, ServedModel]:
    """The models that the endpoint serves, by name."""
    answer = read_json(content)
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in data):
        raise Failure(NOT_COMPATIBLE)
    return {m["id"]: ServedModel(str(m.get("owned_by") or ""), _count(m.get("max_model_len"))) for m in data}


def read_choices(content: bytes, *, n: int, vocabulary: int | None) -> list[Choice]:
    """The `n` completions of an answer, in the order of their indices.

    `vocabulary` is the number of tokens of the tokenizer; with a tokenizer, a choice with tokens needs no text.

    Raises:
        Failure: A part of the answer is missing, of the wrong type, or out of range.
    """
    answer = read_json(content)
    if not isinstance(answer, dict):
        raise Failure(NOT_COMPATIBLE)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise Failure("it holds no list of choices")
    if len(choices) != n:
        raise Failure(f"it returned {len(choices)} samples instead of the n={n} asked for", ONE_EACH if n > 1 else "")
    usage = answer.get("usage")
    total = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if total is not None and _count(total) is None:
        raise Failure(f"completion_tokens={total!r:.100} is not a number of tokens", "")
    choices.sort(key=lambda choice: _count(choice.get("index")) or 0)
    return [_choice(choice, total if n == 1 else None, vocabulary) for choice in choices]


def _choice(choice: dict[str, Any], num_tokens: int | None, vocabulary: int | None) -> Choice:
    ids = choice.get("token_ids")
    if ids is not None:
        end = _INT32 if vocabulary is None else vocabulary + _PADDING
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < end for token in ids):
            raise Failure(f"token_ids is not a list of token ids below {end:,}", "")
        num_tokens = len(ids)
    text = choice.get("text")
    if "text" not in choice and isinstance(choice.get("message"), dict):
        text = choice["message"].get("content")
    if ids is None or vocabulary is None:
        if not isinstance(text, str):
            raise Failure(
                "a sample has no text",
                " If the endpoint removes reasoning from the answer (a reasoning parser), switch that off.",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Failure("a sample's text is not valid Unicode", "") from error
    reason = choice.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise Failure(f"the finish_reason of a sample must be text, got {reason!r:.100}", "")
    at = choice.get("stop_reason")  # vLLM's: a string of `stop`, or the id of a token
    reason = "stop" if reason in _STOPPED else reason
    return Choice(text, None if ids is None else tuple(ids), num_tokens, reason, at if isinstance(at, str) else None)


def _count(value: Any) -> int | None:
    """The value if it is a number of tokens or a position, else None."""
    return value if type(value) is int and 0 <= value < _INT32 else None
