"""An endpoint that is slow, down, overloaded, or answers nonsense: temporary failures are retried, others an error."""

import re
import signal
import socket
import threading

import pytest
from exact_answers import MESSAGES, draw
from fuzz.fuzz_endpoint import PROPERTIES
from lengths import EXAMPLES
from scripted_endpoint import MISSING, changed

from dco_trl.sampling import EndpointError, ServerSampler, request_seed

NO_CHOICES = r"holds no list of choices.* \(2 attempts\)"
NOT_JSON = [b'{"choices": [{"text": "a', b"<html>Welcome</html>", b"", b"\xff\xfe{}", b"[" * 100_000, b"null", b"[]"]
A_DAY = r"\(1 attempt\). It asks for a pause of {} s \(Retry-After\): try again after that"
NO_IDS = "token_ids is not a list of token ids below 2,147,483,648"
# What the endpoint does each time, and the message about it.
FAILURES = {
    "503": (
        503,
        r"HTTP 503, 'said 503' \(2 attempts\). Raise the sampler's option max_retries \(sampler_kwargs\), or lower co",
    ),
    "400": (400, r"HTTP 400, 'said 400' \(1 attempt\)"),
    "401": (401, r"HTTP 401, .* \(1 attempt\). Set OPENAI_API_KEY, or the sampler's option api_key"),
    "busy for a day": ((429, [("Retry-After", "86400")]), A_DAY.format("86,400")),
    "busy for ever": ((429, [("Retry-After", "inf")]), A_DAY.format("inf")),
    "busy until": ((429, [("Retry-After", "Fri, 31 Dec 2100 23:59:59 GMT")]), A_DAY.format(r"[\d,]+")),
    "gone": ("drop", r"127.*/v1 could not sample: no answer, .* \(2 attempts\). Is the endpoint running"),
    "drip": ("drip", r"no whole answer within 0.5 seconds \(2 attempts\). Raise the sampler's option timeout"),
    "drip headers": ("drip headers", r"no whole answer within 0.5 seconds \(2 attempts\)"),
    "no end": (b" " * 200_001, r"an answer of more than 200,000 bytes \(1 attempt\). Lower max_tokens"),
    **{f"not JSON {i}": (text, r"not that of an OpenAI-com.* in .* \(2 att") for i, text in enumerate(NOT_JSON)},
    "choices as a dictionary": (lambda a: {**a, "choices": {"0": a["choices"][0]}}, NO_CHOICES),
    "choices of text": (lambda a: {**a, "choices": ["a"]}, NO_CHOICES),
    "no choices": (lambda a: {"id": "1"}, 'holds no list of choices, in \'{"id": "1"}\''),
    "an error": (lambda a: {"error": {"message": "out of memory"}}, "holds no list of choices, in 'out of memory'"),
    "null text": (changed(text=None), "a sample has no text"),
    "missing text": (changed(text=MISSING), "a sample has no text"),
    "text as a number": (changed(text=3), "a sample has no text"),
    "half a character": (changed(text="\ud83d"), "text is not valid Unicode"),
    "tokens as text": (lambda a: {**a, "usage": {"completion_tokens": "7"}}, "completion_tokens='7' is not a n"),
    "2**40 tokens": (lambda a: {**a, "usage": {"completion_tokens": 2**40}}, "completion_tokens=1099511627776 is not"),
    "-1 tokens": (lambda a: {**a, "usage": {"completion_tokens": -1}}, "completion_tokens=-1 is not a number"),
    "a reason that is no text": (changed(finish_reason=["stop"]), r"finish_reason .* must be text, got \['stop"),
    "ids as text": (changed(token_ids="5 6"), NO_IDS),
    "a negative id": (changed(token_ids=[5, -1]), NO_IDS),
    "an id that is too large": (changed(token_ids=[5, 2**31]), NO_IDS),
    "an id that is no integer": (changed(token_ids=[5, 6.5]), NO_IDS),
    "a sample less": ("short", r"returned 0 samples instead of the n=1 asked for[^.]*\(2 attempts\)\.$"),
    "a filter": ("content_filter", "finish_reason='content_filter': it interfered with the comp.*Switch that off"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_that_stays_is_one_error_after_the_last_attempt(endpoint, case, monkeypatch):
    monkeypatch.setattr("dco_trl.sampling.endpoint._MAX_BYTES", 200_000)
    what, message = FAILURES[case]
    endpoint.script = [what] * 3
    sampler = endpoint.sampler(max_retries=1, **({"timeout": 0.5} if "drip" in case else {}))
    with pytest.raises(EndpointError, match=message) as caught:
        draw(sampler, 1)
    told = str(caught.value)
    attempts = re.search(r"\((\d) attempt", told)
    assert len(endpoint.bodies) == (int(attempts[1]) if attempts else 1) and len(told) < 500
    if case.startswith("not JSON"):
        assert repr(what.decode(errors="replace")[:200]) in told


@pytest.mark.parametrize("failure", [408, 429, 500, 503, "drop", b"<html>Welcome</html>", changed(text=None)])
def test_passing_failures_are_repeated_until_they_pass(endpoint, failure):
    endpoint.script = [failure, failure]
    [sample] = draw(endpoint.sampler(), 1)
    assert sample.text == str(request_seed(0, 0, 0))
    assert len(endpoint.bodies) == 3
    assert endpoint.bodies[0] == endpoint.bodies[2]


@pytest.mark.parametrize("wait", ["0", "-3", "nan", "soon", "Fri, 31 Dec 1999 23:59:59 GMT", "7"])
def test_values_of_retry_after(endpoint, wait, monkeypatch):
    endpoint.script = [(429, [("Retry-After", wait)])]
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr("dco_trl.sampling.endpoint.asyncio.sleep", sleep)
    draw(endpoint.sampler(), 1)
    assert len(endpoint.bodies) == 2
    [waited] = [seconds for seconds in waits if seconds]
    # Never at once, which would use up all retries.
    assert waited == 7 if wait == "7" else 0.007 < waited <= 0.01


def test_after_an_error_nobody_waits_for_the_rest(endpoint):
    endpoint.script = ["drip"] * 3 + [400]
    with pytest.raises(EndpointError, match="said 400"):
        draw(endpoint.sampler(concurrency=4), 40)
    assert len(endpoint.bodies) <= 5


def test_ctrl_c_ends_it(endpoint):
    endpoint.script = ["drip"] * 100
    sampler = endpoint.sampler()
    interrupt = (threading.main_thread().ident, signal.SIGINT)
    # Libraries that other tests loaded may have set a handler of their own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, signal.pthread_kill, interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            draw(sampler, 4)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_endpoint_that_is_down_is_reported_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=r"could not list its models: no answer, .*Is the endpoint running, and"):
        ServerSampler("small", base_url=url)


@pytest.mark.parametrize(
    "model, path, message",
    [
        ("large", "/v1", "does not serve model='large'. It serves: other, small."),
        ("small", "", r"could not list its models.*Is base_url right \(most .* need /v1"),
        ("small", "/page", "not that of an OpenAI-compatible endpoint, in '<html>Welcome.*is base_url right"),
    ],
)
def test_what_is_not_served_there(endpoint, model, path, message):
    with pytest.raises(EndpointError, match=message):
        ServerSampler(model, base_url=endpoint.root + path)


@pytest.mark.parametrize("tokens", [[5, 6, -1], [5, 10**6], None, "ab"])
def test_token_ids_are_checked_against_the_tokenizer(vllm_like, checkpoint, tokens):
    vllm_like.script = [changed(token_ids=tokens, text=None)]
    with pytest.raises(EndpointError, match="token_ids is not a list of token ids below 1,036|a sample has no text"):
        draw(vllm_like.sampler(tokenizer=str(checkpoint), max_retries=0), 1)


def test_an_interrupted_sample_is_refused_where_its_tokens_came_too(vllm_like, checkpoint):
    vllm_like.script = ["abort"]
    with pytest.raises(EndpointError, match="finish_reason='abort': it interfered with the completion"):
        draw(vllm_like.sampler(tokenizer=str(checkpoint)), 1)


def test_one_sample_a_request_is_the_way_out_where_there_were_several(endpoint, vllm_like):
    vllm_like.script = ["short", changed(token_ids=None)]
    with pytest.raises(EndpointError, match="returned 3 samples instead of the n=4 .*samples_per_request=1"):
        draw(vllm_like.sampler(max_retries=0), 4)
    with pytest.raises(EndpointError, match="neither the token ids nor the number of .* samples_per_request=1"):
        draw(vllm_like.sampler(), 2)
    for usage in (None, {}, {"completion_tokens": None}):
        endpoint.script = [lambda answer, usage=usage: {**answer, "usage": usage}]
        with pytest.raises(EndpointError, match="neither the token ids nor the number .*report `usage`") as caught:
            draw(endpoint.sampler(), 1)
        assert "samples_per_request" not in str(caught.value)


def test_reasoning_taken_out_of_the_answer_is_reported(endpoint):
    endpoint.script = [changed(message={"content": None, "reasoning_content": "hm"})]
    with pytest.raises(EndpointError, match="a sample has no text, .*reasoning parser"):
        draw(endpoint.sampler(max_retries=0), 1, prompt=MESSAGES)


@pytest.mark.parametrize("said, meant", [("length", "length"), ("eos", "stop"), ("none", "length")])
def test_finish_reasons_are_understood(endpoint, said, meant):
    endpoint.script = [said]
    [sample] = draw(endpoint.sampler(), 1)  # 7 tokens, max_tokens=2
    assert sample.finish_reason == meant


@pytest.mark.parametrize("fuzz", PROPERTIES, ids=lambda fuzz: fuzz.__name__)
@pytest.mark.slow
def test_any_answer_is_a_sample_or_an_endpoint_error(fuzz):
    """Some cases; `make fuzz` runs as many as you want."""
    fuzz(EXAMPLES)
