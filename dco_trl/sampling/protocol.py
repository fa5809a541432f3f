"""What a sampler is: requests in, samples out. The rest of the package uses samplers through this alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..checks import check_integer
from ..errors import UserError
from ..problem import Prompt

# The odd number nearest to 2**31 / golden ratio. Its multiples modulo 2**31 spread evenly: the first n are at least
# 0.38 * 2**31 / n apart (three-distance theorem).
_SEED_STEP = 1_327_217_885


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. These values are all that counts: no model's or server's `generation_config` adds to them.

    The next token is drawn from softmax(logits / temperature), restricted to the `top_k` most probable tokens, then
    to the smallest set of tokens that holds probability `top_p`, and renormalised. No penalty of any kind applies.

    Args:
        temperature: Divides the logits, at least 0; 0 takes the most probable token (greedy).
        top_p: Probability mass kept, in (0, 1]; 1 keeps everything.
        top_k: Number of tokens kept; 0 keeps everything.
        max_tokens: Longest completion, in tokens, the end of sequence included.
        stop: Strings that end a completion; they are not part of its text.
        seed: Equal seeds give equal draws, as far as the backend allows.

    Raises:
        ValueError: A value outside its range.
        TypeError: A value of the wrong type, such as a single string for `stop`.

    Examples:
        >>> SamplingParams(temperature=0.6, top_p=0.95, max_tokens=1024).top_k
        0
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            try:
                object.__setattr__(self, name, float(getattr(self, name)))
            except (TypeError, ValueError):
                raise TypeError(f"{name}={getattr(self, name)!r} must be a number, such as 1.0.") from None
        _check_integers(self, top_k=0, max_tokens=1, seed=0)
        _check_temperature(self.temperature)
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps every token.")
        if isinstance(self.stop, str):
            raise TypeError(f"stop={self.stop!r} must be a tuple of strings; write stop=({self.stop!r},).")
        object.__setattr__(self, "stop", tuple(self.stop))
        if any(not stop for stop in self.stop):
            raise UserError(f"stop={self.stop} holds an empty string, which would end every completion at once.")


@dataclass(frozen=True)
class SampleRequest:
    """Some samples of one problem: those with index `first_index` to `first_index + num_samples - 1`.

    Args:
        prompt: Plain text, chat messages, or token ids, which are continued as they are.
        num_samples: How many samples to draw now.
        first_index: Index of the first of them among the problem's samples. Draws depend on the index, so a run that
            is cut in chunks, resumed or extended never repeats a draw.
        stream: Number of the problem. Draws depend on it too, so problems do not share them.
        adapter: Folder of the LoRA adapter to sample with, or its name at a server; "" for the model alone; None for
            the sampler's own.
        temperature: Temperature of this request; None for that of `SamplingParams`.
        template_kwargs: Arguments of the chat template beside the messages, such as `tools`.

    Raises:
        ValueError: A count, an index or a temperature outside its range, or an empty prompt.

    Examples:
        >>> request = SampleRequest("2 + 2 =", num_samples=64, first_index=64, stream=3)  # the second 64 of problem 3
    """

    prompt: Prompt | list[int]
    num_samples: int
    first_index: int = 0
    stream: int = 0
    adapter: str | None = None
    temperature: float | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_integers(self, num_samples=1, first_index=0, stream=0)
        if not self.prompt:
            raise UserError(f"prompt={self.prompt!r} is empty: there is nothing to continue.")
        if self.temperature is not None:
            _check_temperature(self.temperature)

    def params(self, params: SamplingParams) -> SamplingParams:
        """The parameters of this request: `params`, with the request's own temperature if it has one."""
        return params if self.temperature is None else replace(params, temperature=self.temperature)


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Args:
        text: The completion without special tokens and without the stop string that ended it.
        token_ids: Its tokens, the end of sequence included; None if the endpoint does not give them.
        num_tokens: Their number.
        finish_reason: "stop" (end of sequence or stop string) or "length" (cut off at `max_tokens`).
    """

    text: str
    token_ids: tuple[int, ...] | None
    num_tokens: int
    finish_reason: str


class Sampler(Protocol):
    """Draws completions: `TransformersSampler`, `VLLMSampler`, `ServerSampler`, or copies of one in a `RaySampler`.

    `RaySampler` also has `stream`, which yields parts of requests with their samples as they come.
    """

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """Draw `num_samples` completions for each request, in the order of the requests and of the indices.

        A sampler refuses a request whose adapter, temperature or template arguments it cannot use. All samples are
        held in memory until the last is done: cut large runs into calls of 10 to 50 thousand. No two calls of a run
        may begin with the same problem and index: draws may depend on these alone.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """What samples, for a run's manifest: model, adapter, versions, all that changes the draws. No secrets."""
        ...

    def close(self) -> None:
        """Free what the sampler holds. It cannot be used afterwards; closing twice is harmless."""
        ...


def settle(
    requests: Sequence[SampleRequest], params: SamplingParams, adapter: str | None = None
) -> list[SampleRequest]:
    """Fill in adapter and temperature, and ask for one greedy sample instead of many, which would all be equal."""
    return [
        replace(
            request,
            adapter=adapter if request.adapter is None else request.adapter,
            temperature=request.params(params).temperature,
            num_samples=request.num_samples if request.params(params).temperature > 0 else 1,
        )
        for request in requests
    ]


def as_asked(drawn: Sequence[list[Sample]], requests: Sequence[SampleRequest]) -> list[list[Sample]]:
    """Repeat the one greedy sample that `settle` asked for as often as the request asked for it."""
    return [samples * (r.num_samples // len(samples)) for samples, r in zip(drawn, requests, strict=True)]


def _check_integers(of: Any, **least: int) -> None:
    for name, minimum in least.items():
        object.__setattr__(of, name, check_integer(name, getattr(of, name), minimum))


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature={temperature} must be a finite number, at least 0 (0 is greedy decoding).")


def request_seed(seed: int, stream: int, index: int) -> int:
    """Seed of sample `index` of problem `stream`, for backends that take one integer per sequence.

    (h(seed) + stream * step) mod 2**31 + index, with `step` near 2**31 divided by the golden ratio. Consecutive
    samples have consecutive seeds, as vLLM gives them to the children of a request with n > 1. The ranges of different
    problems do not overlap while problems times samples stays below about 800 million. Seeds have 31 bits because some
    servers parse them as 32-bit integers and PyTorch's CPU generator uses only the low 32 bits.

    Args:
        seed: The run's seed.
        stream: Number of the problem.
        index: Index among its samples.

    Returns:
        An integer in [0, 2**31 + index).

    Examples:
        >>> request_seed(0, stream=3, index=10) - request_seed(0, stream=3, index=0)
        10

    References:
        T. van Ravenstein, The three gap theorem (Steinhaus conjecture), J. Austral. Math. Soc. 45 (1988).
    """
    offset = int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0])
    return (offset + stream * _SEED_STEP) % 2**31 + index
