"""Sampling from an OpenAI-compatible endpoint: vLLM on other machines, llama.cpp, or a hosted model."""

import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .fingerprint import describe
from .protocol import Sample, SampleRequest, SamplingParams, request_seed
from .tokens import encode_prompt, end_token_ids, is_token_ids, make_samples

_STOPPED = {"stop", "eos", "eos_token", "stop_sequence"}


class EndpointError(RuntimeError):
    """The endpoint is down, refuses, serves another model, or answers what cannot be used."""


@dataclass(frozen=True)
class _Call:
    """One HTTP request: samples `first` to `first + n - 1` (counted from 0) of request number `request`."""

    request: int
    first: int
    n: int


class ServerSampler:
    """Sample from an OpenAI-compatible endpoint, many requests at a time.

    Parameters are sent in full, because a vLLM server completes what is missing from the model's
    `generation_config`. Which ones depends on who answers, as `GET /models` tells:

    - A vLLM server (`owned_by: "vllm"`) gets temperature, top_p, top_k, min_p, repetition_penalty, the OpenAI
      penalties, stop, seed, and up to `samples_per_request` samples in one request, whose seeds it steps by one.
    - Any other endpoint gets OpenAI's own parameters only, since many refuse a request with unknown ones, and one
      sample a request, each with its own seed, since `n` and `seed` together mean nothing agreed upon. `top_k` is an
      error there: name it in `extra_body` as the endpoint wants it, along with anything else it needs (for
      llama.cpp: `{"top_k": 0, "repeat_penalty": 1.0, "min_p": 0.0}`, which switches its own defaults off).

    Without `tokenizer`, plain prompts and token ids go to `/completions` and messages to `/chat/completions`, and the
    endpoint tokenizes, applies its chat template and ends completions where it sees fit. With `tokenizer`, prompts are
    rendered here exactly as training renders them and sent as token ids to `/completions`; vLLM is told training's end
    tokens and its token ids are decoded here. Prefer that wherever the endpoint takes token ids, as vLLM does.

    Failed requests (no connection, time out, 408, 409, 429, 5xx) are repeated with exponential back-off by the
    `openai` client, which heeds `Retry-After`.

    Args:
        model: Name under which the endpoint serves the model.
        base_url: Its address with the version, `http://127.0.0.1:8000/v1`.
        adapter: LoRA adapter. A folder (as the server's file system sees it) is loaded into a vLLM server under a
            name of its own and unloaded by `close`; the server must have been started with `--enable-lora` and
            `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`. Otherwise the name of one that is served already.
        tokenizer: Folder or hub name of the tokenizer, to render prompts as training does; see above.
        api_key: None takes `OPENAI_API_KEY` from the environment, or none.
        concurrency: HTTP requests in flight.
        samples_per_request: Samples asked for in one request of a vLLM server.
        max_retries: Repetitions of a failed request, 0.5 s apart at first, then twice as long each time, up to 8 s.
        timeout: Seconds until an unanswered request counts as failed.
        extra_body: Further fields of every sampling request; they win over the sampler's own.
        progress: Show a progress bar on standard error.

    Raises:
        ImportError: The `openai` client is not installed.
        EndpointError: The endpoint is down, or does not serve `model`; the message lists what it serves.

    Examples:
        >>> from dco_trl.sampling import SampleRequest, SamplingParams, ServerSampler
        >>> sampler = ServerSampler("Qwen/Qwen2.5-1.5B", "http://127.0.0.1:8000/v1")  # doctest: +SKIP
        >>> [samples] = sampler.sample([SampleRequest("2 + 2 =", num_samples=8)], SamplingParams())  # doctest: +SKIP

    Relations:
        `VLLMSampler` where the model fits on this machine: no server to start, token ids always there.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        adapter: str | None = None,
        *,
        tokenizer: str | None = None,
        api_key: str | None = None,
        concurrency: int = 32,
        samples_per_request: int = 32,
        max_retries: int = 6,
        timeout: float = 1800.0,
        extra_body: Mapping[str, Any] | None = None,
        progress: bool = True,
    ):
        if concurrency < 1 or samples_per_request < 1:
            raise ValueError(
                f"concurrency={concurrency} and samples_per_request={samples_per_request} must be at least 1."
            )
        openai = _import_openai()
        self.model, self.base_url, self.progress = model, base_url.rstrip("/"), progress
        self.concurrency, self.max_retries = concurrency, max_retries
        self._extra_body = dict(extra_body or {})
        self._client: Any = openai.OpenAI(
            base_url=self.base_url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=max_retries,
            timeout=timeout,
        )
        self._adapter: str | None = None
        self._loaded_name: str | None = None
        self._tokenizer: Any = None
        self._end_ids: tuple[int, ...] = ()
        try:
            served = self._served()
            if model not in served:
                raise EndpointError(
                    f"The endpoint at {self.base_url} does not serve model={model!r}. It serves: "
                    f"{', '.join(sorted(served)) or 'nothing'}. Ask for one of these, or start it with that model."
                )
            self.is_vllm = served[model] == "vllm"
            self.samples_per_request = samples_per_request if self.is_vllm else 1
            self._request_model = model
            if tokenizer is not None:
                self._tokenizer, self._end_ids = _load_tokenizer(tokenizer)
            if adapter is not None:
                self.load_adapter(adapter)
        except BaseException:
            self.close()
            raise

    def load_adapter(self, adapter: str | None) -> None:
        """Sample with this LoRA adapter from now on; None goes back to the model alone.

        An adapter that this sampler loaded before is unloaded. The new one gets a name of its own, so that the
        server's cached prompts of another adapter are not taken for its own.

        Args:
            adapter: Folder, as the server sees it, or the name of an adapter that is served already.

        Raises:
            EndpointError: The server does not know the adapter, or does not load adapters.
        """
        self._unload()
        self._adapter, self._request_model = None, self.model
        if adapter is None:
            return
        if not Path(adapter).exists() and adapter in self._served():
            self._adapter = self._request_model = adapter
            return
        if not self.is_vllm:
            raise EndpointError(
                f"adapter={adapter!r} is not among the models that {self.base_url} serves, and adapters can be loaded "
                "into vLLM servers only. Start the endpoint with the adapter and give its served name."
            )
        path = str(Path(adapter).resolve()) if Path(adapter).exists() else adapter
        name = f"dco-{uuid.uuid4().hex[:12]}"
        self._post("/load_lora_adapter", {"lora_name": name, "lora_path": path}, f"load adapter={adapter!r}")
        self._adapter, self._request_model, self._loaded_name = adapter, name, name

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """Draw the samples of all requests; see `Sampler.sample`.

        Args:
            requests: What to draw.
            params: How to draw it.

        Returns:
            For each request, its samples in the order of their indices.

        Raises:
            EndpointError: The endpoint stays away after `max_retries` repetitions, refuses, or gives an answer that
                cannot be used. The rest of the call is given up; nothing is returned in part.
            ValueError: `top_k` for an endpoint that is not known to understand it.
        """
        if self._client is None:
            raise RuntimeError("This sampler is closed. Make a new one.")
        extra_body = self._extra(params)
        # Greedy completions are all the same: one is generated, and copied below.
        counts = [request.num_samples if params.temperature > 0 else 1 for request in requests]
        calls = [
            _Call(number, first, min(self.samples_per_request, count - first))
            for number, count in enumerate(counts)
            for first in range(0, count, self.samples_per_request)
        ]
        results: list[list[Any]] = [[None] * count for count in counts]
        prompts = [encode_prompt(self._tokenizer, r.prompt) if self._tokenizer else r.prompt for r in requests]
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="sampling")
        try:
            futures = {
                pool.submit(self._call, requests[c.request], prompts[c.request], c, params, extra_body): c
                for c in calls
            }
            with tqdm(total=sum(counts), desc="sampling", unit="sample", disable=not self.progress) as bar:
                for future in as_completed(futures):
                    call, samples = futures[future], future.result()
                    results[call.request][call.first : call.first + call.n] = samples
                    bar.update(call.n)
        finally:
            # After an error: do not wait for requests that nobody will read.
            pool.shutdown(wait=False, cancel_futures=True)
        if params.temperature == 0:
            return [samples * request.num_samples for samples, request in zip(results, requests, strict=True)]
        return results

    def identity(self) -> dict[str, str]:
        """Who samples; see `Sampler.identity`. What the endpoint runs inside is known only if it is vLLM."""
        import openai

        version = ""
        if self.is_vllm:
            root = self.base_url.removesuffix("/v1")
            version = self._get(f"{root}/version", self.max_retries).get("version", "")
        return {
            "sampler": "server",
            "model": self.model,
            "revision": "",
            "base_url": self.base_url,
            **describe("adapter", self._adapter),
            "tokenizer": self._tokenizer.name_or_path if self._tokenizer else "",
            "vllm_version": version,
            "openai_version": openai.__version__,
        }

    def close(self) -> None:
        """Unload the adapter that this sampler loaded, and drop the connections; see `Sampler.close`."""
        if self._client is None:
            return
        try:
            self._unload()
        except EndpointError:
            pass  # the endpoint is gone, and the adapter with it
        self._client.close()
        self._client = None

    def _extra(self, params: SamplingParams) -> dict[str, Any]:
        """Fields outside OpenAI's interface."""
        if self.is_vllm:
            return {
                "top_k": params.top_k,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "stop_token_ids": list(self._end_ids),
                "return_token_ids": True,
                **self._extra_body,
            }
        if params.top_k > 0 and "top_k" not in self._extra_body:
            raise ValueError(
                f"top_k={params.top_k} is not part of OpenAI's interface, and {self.base_url} is not a vLLM server: "
                f"it may ignore or refuse it. If it knows top_k, pass extra_body={{'top_k': {params.top_k}}} to "
                "ServerSampler; otherwise sample with top_k=0."
            )
        return self._extra_body

    def _call(
        self, request: SampleRequest, prompt: Any, call: _Call, params: SamplingParams, extra_body: dict[str, Any]
    ) -> list[Sample]:
        """One HTTP request and its samples."""
        body: dict[str, Any] = dict(
            model=self._request_model,
            n=call.n,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=params.max_tokens,
            stop=list(params.stop) or None,
            seed=request_seed(params.seed, request.stream, request.first_index + call.first),
            presence_penalty=0.0,
            frequency_penalty=0.0,
            extra_body=extra_body,
        )
        if isinstance(prompt, str) or is_token_ids(prompt):
            create, body["prompt"] = self._client.completions.create, prompt
        else:
            create, body["messages"] = self._client.chat.completions.create, prompt
        response = self._answer("sample", lambda: create(**body))
        if not hasattr(response, "choices"):
            raise EndpointError(self._no_answer(response))
        choices = sorted(response.choices or [], key=lambda choice: choice.index or 0)
        if len(choices) != call.n:
            raise EndpointError(
                f"The endpoint at {self.base_url} returned {len(choices)} samples and not the n={call.n} asked for. "
                "Pass samples_per_request=1 to ServerSampler."
            )
        total = response.usage.completion_tokens if response.usage is not None else None
        return [self._sample(choice, total if call.n == 1 else None, params) for choice in choices]

    def _sample(self, choice: Any, num_tokens: int | None, params: SamplingParams) -> Sample:
        """A sample from one choice of a response."""
        ids = getattr(choice, "token_ids", None)
        if ids is not None and self._tokenizer:
            return make_samples(self._tokenizer, [ids], self._end_ids, params.stop)[0]
        if ids is not None:
            num_tokens = len(ids)
        if num_tokens is None:
            raise EndpointError(
                f"The endpoint at {self.base_url} says neither the token ids nor the number of tokens of a sample. "
                "Pass samples_per_request=1 to ServerSampler (vLLM gives token ids from version 0.10.2)."
            )
        reason = choice.finish_reason
        if reason in _STOPPED:
            reason = "stop"
        elif reason is None:
            reason = "length" if num_tokens >= params.max_tokens else "stop"
        elif reason != "length":
            raise EndpointError(
                f"The endpoint at {self.base_url} ended a sample with finish_reason={reason!r}: it interfered with "
                "the completion, so samples do not follow the model's distribution. Switch that off at the endpoint."
            )
        text = choice.text if hasattr(choice, "text") else (choice.message.content or "")
        return Sample(text, None if ids is None else tuple(ids), num_tokens, reason)

    def _served(self) -> dict[str, str]:
        """Names of the models that the endpoint serves, and who owns them."""
        # Asked before anything else: a wrong address shows at once, without the patience of a long run.
        answer = self._get("/models", max_retries=min(self.max_retries, 1))
        try:
            return {model["id"]: model.get("owned_by") or "" for model in answer["data"]}
        except (KeyError, TypeError) as error:
            raise EndpointError(self._no_answer(answer)) from error

    def _unload(self) -> None:
        if self._loaded_name is not None:
            name, self._loaded_name = self._loaded_name, None
            self._post("/unload_lora_adapter", {"lora_name": name}, f"unload adapter={self._adapter!r}")

    def _post(self, path: str, body: dict[str, Any], what: str) -> None:
        import httpx

        # Not repeated: a second attempt at what succeeded unnoticed would be refused.
        client = self._client.with_options(max_retries=0)
        self._answer(what, lambda: client.post(path, cast_to=httpx.Response, body=body), 0)

    def _get(self, path: str, max_retries: int) -> Any:
        import httpx

        client = self._client.with_options(max_retries=max_retries)
        what = "list its models" if path == "/models" else f"answer GET {path}"
        response = self._answer(what, lambda: client.get(path, cast_to=httpx.Response), max_retries)
        try:
            return response.json()
        except ValueError as error:
            raise EndpointError(self._no_answer(response.text)) from error

    def _no_answer(self, answer: Any) -> str:
        return (
            f"{self.base_url} gave what is not an OpenAI-compatible answer: {str(answer)[:200]!r}. Is base_url right "
            "(scheme, port, /v1)?"
        )

    def _answer(self, what: str, ask: Any, max_retries: int | None = None) -> Any:
        """The endpoint's answer, or an `EndpointError` that says what to do."""
        import openai

        attempts = 1 + (self.max_retries if max_retries is None else max_retries)
        try:
            return ask()
        except openai.APIConnectionError as error:  # a time-out is one, too
            raise EndpointError(
                f"No answer from {self.base_url} after {attempts} attempt(s) ({error.__cause__ or error}). Is the "
                "endpoint running, and is base_url right (scheme, port, /v1)?"
            ) from error
        except openai.APIStatusError as error:
            hint = ""
            if error.status_code == 401:
                hint = " Set OPENAI_API_KEY or pass api_key."
            elif error.status_code == 404 and str(error.request.url).endswith("/models"):
                hint = " Is base_url right (most endpoints need /v1 at its end)?"
            elif error.status_code == 404 and "lora_adapter" in str(error.request.url):
                hint = (
                    " Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and check that "
                    "it can read the adapter's folder."
                )
            elif error.status_code in (408, 409, 429) or error.status_code >= 500:  # what the client repeats
                hint = f" It said so {attempts} time(s). Raise max_retries or lower concurrency if it is overloaded."
            raise EndpointError(f"The endpoint at {self.base_url} could not {what}: {error.message}{hint}") from error


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            f"sampler='server' needs the openai client, which cannot be imported ({error}). Install it with "
            "`pip install 'dco-trl[server]'`."
        ) from error
    return openai


def _load_tokenizer(name: str) -> tuple[Any, tuple[int, ...]]:
    """Tokenizer and end-of-sequence ids, those of a generation config beside it included."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    try:
        generation_config = transformers.GenerationConfig.from_pretrained(name)
    except OSError:  # an adapter's folder has a tokenizer and no generation config
        generation_config = None
    return tokenizer, end_token_ids(tokenizer, generation_config)
