"""Fuzz the endpoint's side: any status, headers and content, and right answers with one thing wrong.

    python tests/fuzz/fuzz_endpoint.py 10000      # examples of each property

The sampler returns as many samples as asked for, each of which can be stored, or raises `EndpointError`.
"""

import copy
import json
from typing import Any
from unittest.mock import patch

import httpx2
from fuzz.cases import json_values, main, run_cases
from hypothesis import strategies as st

from dco_trl.sampling import EndpointError, SampleRequest, SamplingParams, ServerSampler
from dco_trl.sampling.endpoint import Endpoint

MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "nobody", "max_model_len": 64}]}
HEADER_VALUES = st.sampled_from(
    ["0", "-1", "nan", "inf", "1e400", "gzip", "deflate", "soon", "86400", "utf-16", "a, b"]
)
HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "Content-Encoding", "Retry-After", "Retry-After-Ms", "Location", "Set-Cookie"]),
    HEADER_VALUES | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
)
VALUES = json_values(st.text() | st.sampled_from([2**31, 2**40, "\ud800", ""]), st.text())


def _answer(is_vllm: bool, n: int) -> dict[str, Any]:
    """What a good endpoint would answer."""
    ids = {"token_ids": [5, 6, 1]} if is_vllm else {}
    choices = [{"index": i, "text": "a b", "finish_reason": "stop", **ids} for i in range(n)]
    return {"id": "1", "object": "text_completion", "choices": choices, "usage": {"completion_tokens": 3 * n}}


@st.composite
def nearly_right(draw: Any, right: Any) -> bytes:
    """The JSON of a right answer with one place changed, removed or cut off."""
    answer = copy.deepcopy(right)
    place, way = answer, draw(st.sampled_from(["change", "remove", "cut", "bytes"]))
    while True:
        inside = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(inside))
        if not isinstance(place[key], (dict, list)) or not place[key] or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    if way == "change":
        place[key] = draw(VALUES)
    elif way == "remove":
        del place[key]
    content = json.dumps(answer).encode()
    at = draw(st.integers(0, len(content)))
    if way == "cut":
        return content[:at]
    if way == "bytes":
        return content[:at] + draw(st.binary(max_size=4)) + content[at + 1 :]
    return content


def _sampler(models: httpx2.Response | None, sampled: httpx2.Response | None = None) -> list[Any]:
    """Samples that an endpoint with these answers gives."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return models or httpx2.Response(200, json=MODELS)
        assert sampled is not None
        return sampled

    def client(self: Endpoint, connections: int = 1) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(handle), follow_redirects=True)

    with patch.object(Endpoint, "client", client):
        sampler = ServerSampler("m", base_url="http://endpoint/v1", max_retries=0, progress=False)
        requests = [SampleRequest("a", 2)]
        return sampler.sample(requests, SamplingParams(max_tokens=8)) if sampled is not None else []


def _check(models: httpx2.Response | None, sampled: httpx2.Response | None, n: int = 2) -> None:
    try:
        groups = _sampler(models, sampled)
    except EndpointError as error:
        assert "endpoint at http://endpoint/v1" in str(error) and len(str(error)) < 3000, str(error)
        return
    for samples in groups:
        assert len(samples) == n
        for sample in samples:
            sample.text.encode()
            assert sample.finish_reason in ("stop", "length")
            assert type(sample.num_tokens) is int and 0 <= sample.num_tokens < 2**31
            assert sample.token_ids is None or all(0 <= token < 2**31 for token in sample.token_ids)


def fuzz_anything(examples: int) -> int:
    """Any status, headers and content, for the list of models and for samples."""

    def check(status: int, headers: dict[str, str], content: bytes, is_models: bool) -> None:
        try:
            response = httpx2.Response(status, headers=headers, stream=httpx2.ByteStream(content))
        except (ValueError, UnicodeError):
            return  # a header that no server could send
        _check(response if is_models else None, None if is_models else response)

    return run_cases(
        check, examples, st.integers(200, 599), HEADERS, st.binary() | st.text().map(str.encode), st.booleans()
    )


def fuzz_models(examples: int) -> int:
    """A list of models with one thing wrong."""

    def check(content: bytes) -> None:
        _check(httpx2.Response(200, content=content), None)

    return run_cases(check, examples, nearly_right(MODELS))


def fuzz_samples(examples: int) -> int:
    """Samples with one thing wrong: of one per request, and of two from what claims to be vLLM."""

    def check(is_vllm: bool, data: Any) -> None:
        models = copy.deepcopy(MODELS)
        models["data"][0]["owned_by"] = "vllm" if is_vllm else "nobody"  # type: ignore[index]
        content = data.draw(nearly_right(_answer(is_vllm, 2 if is_vllm else 1)))
        _check(httpx2.Response(200, json=models), httpx2.Response(200, content=content))

    return run_cases(check, examples, st.booleans(), st.data())


PROPERTIES = (fuzz_anything, fuzz_models, fuzz_samples)


if __name__ == "__main__":
    main(*PROPERTIES)
