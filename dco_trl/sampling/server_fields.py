"""Fields of a sampling request to an OpenAI-compatible endpoint: everything in full, and nothing it may not know."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from .protocol import SampleRequest, SamplingParams
from .tokens import Codec, is_token_ids

# What `SamplingParams` and the sampler itself decide. `top_k` is not part of OpenAI's interface; see below.
DECIDED = (
    *("model", "prompt", "messages", "n", "best_of", "stream", "temperature", "top_p", "max_tokens"),
    *("max_completion_tokens", "stop", "stop_token_ids", "seed", "return_token_ids"),
    *("tools", "tool_choice", "chat_template_kwargs"),
)


def sampling_fields(
    params: SamplingParams, is_vllm: bool, extra_body: Mapping[str, Any], base_url: str
) -> dict[str, Any]:
    """What every request of a call sends, whatever its prompt, model and temperature.

    Raises:
        ValueError: `top_k` for an endpoint that is not known to understand it.
    """
    fields: dict[str, Any] = {"top_p": params.top_p, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    if is_vllm:
        fields |= {"top_k": params.top_k, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    elif extra_body.get("top_k", 0) != params.top_k:
        raise UserError(
            f"top_k={params.top_k} is not part of OpenAI's interface, and {base_url} is not a vLLM server: "
            f"it may ignore or refuse it. If it knows top_k, set the sampler's option extra_body={{'top_k': "
            f"{params.top_k}}} (sampler_kwargs); otherwise sample with top_k=0 and without top_k in extra_body."
        )
    return {**fields, **extra_body}


def prompt_fields(
    request: SampleRequest, prompt: Any, codec: Codec | None, params: SamplingParams, is_vllm: bool, base_url: str
) -> dict[str, Any]:
    """The prompt, as tokens, text or messages, and what ends a completion.

    Raises:
        ValueError: Arguments of the chat template for an endpoint that is not known to render them.
    """
    is_chat = not isinstance(prompt, str) and not is_token_ids(prompt)
    fields: dict[str, Any] = {"messages" if is_chat else "prompt": prompt, "max_tokens": params.max_tokens}
    stop: Sequence[str] = params.stop
    if codec is not None and is_vllm:
        ends = codec.ends(params.stop)
        stop, fields["stop_token_ids"] = ends.strings, list(ends.ids)
    if stop:
        fields["stop"] = list(stop)
    if is_chat and request.template_kwargs:
        if not is_vllm:
            raise UserError(
                f"The prompt comes with arguments of the chat template ({', '.join(request.template_kwargs)}), which "
                f"{base_url} may not render as training does. Set the sampler's option tokenizer (sampler_kwargs)."
            )
        others = {name: value for name, value in request.template_kwargs.items() if name != "tools"}
        fields |= {"chat_template_kwargs": others} if others else {}
        # Calls stay in the text: a server that parsed them would take them out of it.
        if tools := request.template_kwargs.get("tools"):
            fields |= {"tools": tools, "tool_choice": "none"}
    return fields
