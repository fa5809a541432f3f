"""Sampling from an OpenAI-compatible endpoint: vLLM on other machines, llama.cpp, or a hosted model."""

import asyncio
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..checks import check_integer
from ..errors import UserError
from .endpoint import Endpoint, EndpointError, Failure, read_json, wait_for
from .fingerprint import describe, describe_options
from .openai_interface import DECIDED, ONE_EACH, Choice, read_choices, read_models, request_body
from .protocol import Sample, SampleRequest, SamplingParams, as_asked, request_seed, settle
from .tokens import Codec, Codecs, Ends

if TYPE_CHECKING:
    import httpx2


class ServerSampler:
    """Sample from an OpenAI-compatible endpoint, many requests at a time.

    All parameters are sent, since a vLLM server takes missing ones from the model's `generation_config`. A server that
    names itself "vllm" in `GET /models` also gets vLLM's own, and `samples_per_request` samples per request. Any other
    endpoint gets only OpenAI's parameters, since many refuse others, and one sample per request. There a `top_k`
    above 0 is an error, unless `extra_body` holds the same one to confirm that the endpoint knows it.
    (`{"top_k": 0, "repeat_penalty": 1.0, "min_p": 0.0}` switches off the defaults of llama.cpp.)

    Without `tokenizer`, texts and token ids go to `/completions` and messages to `/chat/completions`; the endpoint
    decides how to render prompts and end completions. With it, prompts are rendered here as in training and sent as
    token ids, and vLLM gets training's end tokens: prefer that wherever the endpoint takes token ids, as vLLM does. An
    adapter in a folder here always uses the tokenizer of its folder, if there is one.

    A request is retried after a lost connection, a time-out, the statuses 408, 409, 429 and 5xx, and an unusable
    answer. `Retry-After` is respected up to a minute; a longer one is an error.

    Args:
        model: Name under which the endpoint serves the model.
        base_url: Its address with the version, `http://127.0.0.1:8000/v1`. A user and password in it are sent, but
            never written down.
        tokenizer: Folder or hub name of the model's tokenizer, to render prompts as training does; see above.
        adapter: LoRA adapter: the name of one that is served, or a folder (as the server's file system sees it). A
            folder is loaded into a vLLM server, started with `--enable-lora` and
            `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, and unloaded by `close`. The same holds for adapters that requests
            name; the server's `--max-loras` limits how many it samples at a time.
        api_key: None takes `OPENAI_API_KEY` from the environment, if it is set.
        concurrency: HTTP requests in flight.
        samples_per_request: Samples per request to a vLLM server.
        max_retries: Retries of a failed request, the first after 0.5 s, each wait twice the last, up to 8 s.
        timeout: Seconds until a request without its whole answer counts as failed.
        seed_each_request: Send a seed with each request, made from the run's seed, the problem and the index. False
            saves time with small models (see `VLLMSampler`). Then start every server, every time, with a new `--seed`,
            because it draws from one stream that begins anew at each start.
        extra_body: Further fields of every sampling request, none that `SamplingParams` sets. Part of the identity.
        progress: Show a progress bar on standard error.

    Raises:
        ValueError: An argument outside its range, or an `extra_body` that sets what `SamplingParams` sets.
        EndpointError: The endpoint is down, or does not serve `model`; the message lists what it serves.

    Examples:
        >>> from dco_trl.sampling import SampleRequest, SamplingParams, ServerSampler
        >>> sampler = ServerSampler("Qwen/Qwen2.5-1.5B", base_url="http://127.0.0.1:8000/v1")  # doctest: +SKIP
        >>> [samples] = sampler.sample([SampleRequest("2 + 2 =", num_samples=8)], SamplingParams())  # doctest: +SKIP

    Relations:
        Prefer `VLLMSampler` where the model fits on this machine: it needs no server, and always has token ids.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        tokenizer: str | None = None,
        adapter: str | None = None,
        api_key: str | None = None,
        concurrency: int = 32,
        samples_per_request: int = 32,
        max_retries: int = 6,
        timeout: float = 1800.0,
        seed_each_request: bool = True,
        extra_body: Mapping[str, Any] | None = None,
        progress: bool = True,
    ):
        self.concurrency = check_integer("concurrency", concurrency)
        self.samples_per_request = check_integer("samples_per_request", samples_per_request)
        self.seed_each_request, self.progress = seed_each_request, progress
        self._extra_body = dict(extra_body or {})
        decided = [name for name in self._extra_body if name in DECIDED]
        if decided:
            raise UserError(
                f"extra_body sets {', '.join(decided)}, which the sampler sends itself: the run's record would not "
                "match what was sampled. Set them in SamplingParams, and leave them out of extra_body."
            )
        self.model = model
        self._endpoint = Endpoint(base_url, api_key or os.environ.get("OPENAI_API_KEY"), max_retries, timeout)
        self.base_url = self._endpoint.url
        self._closed = False
        self._adapter = ""
        self._weights: str | None = None
        self._names: dict[str, str] = {}  # of adapters at the server; those loaded from here have new names
        self._limit = "max_tokens"  # its name in a chat request
        served = self._endpoint.get("list its models", "/models", read_models)
        if model not in served:
            raise EndpointError(
                f"The endpoint at {self.base_url} does not serve model={model!r}. It serves: "
                f"{', '.join(sorted(served)) or 'nothing'}. Choose one of these, or start it with that model."
            )
        self.is_vllm, self._context = served[model].owned_by == "vllm", served[model].context
        if not self.is_vllm:
            self.samples_per_request = 1
        elif "top_k" in self._extra_body:
            raise UserError("extra_body sets top_k, which a vLLM server gets anyway. Set it in SamplingParams.")
        self._tokenizer_name = tokenizer
        self._codecs = Codecs(None) if tokenizer is None else Codecs.load(tokenizer)
        if adapter is not None:
            self.load_adapter(adapter)

    def load_adapter(self, adapter: str | None) -> None:
        """Sample with this LoRA adapter from now on; None goes back to the model alone.

        The adapter that this sampler loaded before is unloaded. Each gets a new name, so that the server does not use
        prompts that it cached for another adapter.

        Raises:
            EndpointError: The server does not know the adapter, or does not load adapters.
        """
        if self._adapter:
            self._unload(self._adapter)
            self._adapter = ""
        if adapter:
            self._name_of(adapter)
            self._adapter = adapter

    def _name_of(self, adapter: str | None) -> str:
        """The name to request: the model's, or that of an adapter, which is loaded if the server does not have it."""
        if not adapter:
            return self.model
        if adapter in self._names:
            return self._names[adapter]
        name = adapter
        if adapter not in self._endpoint.get("list its models", "/models", read_models):
            if not self.is_vllm:
                raise EndpointError(
                    f"adapter={adapter!r} is not among the models that {self.base_url} serves, and adapters can be "
                    "loaded into vLLM servers only. Start the endpoint with the adapter and give its name there."
                )
            name = f"dco-{uuid.uuid4().hex[:12]}"
            body = {"lora_name": name, "lora_path": _path_there(adapter)}
            self._endpoint.post(f"load adapter={adapter!r}", "/load_lora_adapter", body)
        self._names[adapter] = name
        return name

    def _unload(self, adapter: str) -> None:
        name = self._names.pop(adapter, adapter)  # none, after an unloading that failed
        if name != adapter:
            self._endpoint.post(f"unload adapter={adapter!r}", "/unload_lora_adapter", {"lora_name": name})

    @property
    def adapter_name(self) -> str | None:
        """The adapter's name at the server, which another sampler's `load_adapter` takes; None without an adapter."""
        return self._names.get(self._adapter)

    def reload_weights(self, folder: str) -> None:
        """Replace the server's own weights by those of another checkpoint folder of the same architecture.

        All clients of the server get them, and it keeps them when this sampler is closed. Adapters stay as they are.

        Raises:
            EndpointError: The server is not vLLM, was not started with `VLLM_SERVER_DEV_MODE=1`, cannot load the
                folder, or keeps prompts of the old weights in its cache.
        """
        if not self.is_vllm:
            raise EndpointError(
                f"{self.base_url} is not a vLLM server, and only those can load the weights of a whole model. Serve "
                "the model with vLLM, or train with LoRA and sample in process."
            )
        rpc = {"method": "reload_weights", "kwargs": {"weights_path": _path_there(folder)}}
        self._endpoint.post(f"load weights from {folder!r}", "../collective_rpc", rpc)
        what, path = "empty its cache of prompts", "../reset_prefix_cache"
        self._endpoint.post(what, path, {}, _check_emptied, self._endpoint.max_retries)
        self._weights = folder

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """As `Sampler.sample`.

        Raises:
            EndpointError: The endpoint still fails after `max_retries` retries, refuses, or gives unusable answers. No
                samples are returned then.
            UserError: `top_k` or arguments of the chat template for an endpoint that may not understand them; or a
                prompt that leaves no room for `max_tokens`, if tokenizer and context are known.
        """
        if self._closed:
            raise RuntimeError("This sampler is closed. Make a new one.")
        settled = settle(requests, params, self._adapter)
        how = "Start the server with a larger --max-model-len or lower max_tokens."
        prompts = self._codecs.encode(settled, params.max_tokens, self._context, how)
        codecs = [self._codecs.of(request.adapter) for request in settled]
        ends = [codec and codec.ends(params.stop) for codec in codecs]
        bodies = [
            request_body(request, prompt, end, params, self.is_vllm, self._extra_body, self.base_url)
            | {"model": self._name_of(request.adapter)}
            for request, prompt, end in zip(settled, prompts, ends, strict=True)
        ]
        drawn: list[list[Any]] = [[None] * request.num_samples for request in settled]
        step = self.samples_per_request
        calls = [(r, first) for r, request in enumerate(settled) for first in range(0, request.num_samples, step)]
        bar = tqdm(total=sum(map(len, drawn)), desc="sampling", unit="sample", disable=not self.progress)
        todo = iter(calls)

        async def work(client: "httpx2.AsyncClient") -> None:
            for r, first in todo:  # shared by all workers: each call is taken once
                request, codec = settled[r], codecs[r]
                body = {**bodies[r], "n": min(step, request.num_samples - first)}
                if self.seed_each_request:
                    body["seed"] = request_seed(params.seed, request.stream, request.first_index + first)
                choices = await self._ask(client, body, codec and len(codec.tokenizer))
                samples = [self._sample(choice, prompts[r], codec, ends[r], params) for choice in choices]
                drawn[r][first : first + len(samples)] = samples
                bar.update(len(samples))

        async def work_together() -> None:
            async with self._endpoint.client(self.concurrency) as client:
                workers = [asyncio.create_task(work(client)) for _ in range(min(self.concurrency, len(calls)))]
                try:
                    await asyncio.gather(*workers)
                finally:  # after an error: do not wait for answers that nobody will read
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

        with bar:
            wait_for(work_together)
        return as_asked(drawn, requests)

    async def _ask(self, client: "httpx2.AsyncClient", body: dict[str, Any], vocabulary: int | None) -> list[Choice]:
        read = partial(read_choices, n=body["n"], vocabulary=vocabulary)
        limits = self._endpoint.max_retries, self._endpoint.timeout
        if "messages" not in body:
            return await self._endpoint.ask(client, "sample", "/completions", read, body, *limits)
        asked = self._limit
        try:
            body[asked] = body.pop("max_tokens")
            return await self._endpoint.ask(client, "sample", "/chat/completions", read, body, *limits)
        except EndpointError as error:
            if asked != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
        self._limit = "max_completion_tokens"  # the name that OpenAI's newer models want
        return await self._ask(client, body, vocabulary)

    def identity(self) -> dict[str, Any]:
        """As `Sampler.identity`. The version that the endpoint runs is known only if it is vLLM."""
        answer = self._endpoint.get("tell its version", "../version", read_json) if self.is_vllm else None
        return {
            "sampler": "server",
            "model": self.model,
            "revision": "",
            "base_url": self.base_url,
            **describe("adapter", self._adapter),
            **({} if self._weights is None else describe("weights", self._weights)),
            **describe("tokenizer", self._tokenizer_name),
            **describe_options("extra_body", self._extra_body),
            "vllm_version": str(answer.get("version", "")) if isinstance(answer, dict) else "",
            "httpx2_version": version("httpx2"),
        }

    def close(self) -> None:
        """Unload the adapters that this sampler loaded."""
        self._closed = True
        with suppress(EndpointError):  # if the endpoint is gone, so are the adapters
            for adapter in list(self._names):
                self._unload(adapter)

    def _sample(
        self, choice: Choice, prompt: Any, codec: Codec | None, ends: Ends | None, params: SamplingParams
    ) -> Sample:
        reason = choice.finish_reason
        if reason not in ("stop", "length", None):
            raise EndpointError(
                f"The endpoint at {self.base_url} ended a sample with finish_reason={reason!r}: it interfered with "
                "the completion, so samples do not follow the model's distribution. Switch that off at the endpoint."
            )
        if choice.token_ids is not None and codec is not None and ends is not None:
            if reason == "stop" and choice.stopped_at is None:
                # An end that only the server knows, from the generation config of its model.
                ends = ends._replace(ids=(*ends.ids, *choice.token_ids[-1:]))
            return codec.samples([prompt], [choice.token_ids], ends)[0]
        if choice.num_tokens is None:
            way_out = ONE_EACH if self.samples_per_request > 1 else ""
            raise EndpointError(
                f"The endpoint at {self.base_url} gives neither the token ids nor the number of tokens of a sample."
                f"{way_out} vLLM gives token ids from version 0.10.2; others must report `usage`."
            )
        if reason is None:
            reason = "length" if choice.num_tokens >= params.max_tokens else "stop"
        return Sample(choice.text or "", choice.token_ids, choice.num_tokens, reason)


def _path_there(folder: str) -> str:
    """A folder as the server sees it, whose working folder may differ; one that is not here is sent as it is."""
    return str(Path(folder).resolve()) if Path(folder).exists() else folder


def _check_emptied(content: bytes) -> None:
    # Before vLLM 0.26 the answer is empty and tells nothing.
    if content and read_json(content) != {"success": True}:
        raise Failure("it still holds prompts of the old weights", " Does another program use it?")
