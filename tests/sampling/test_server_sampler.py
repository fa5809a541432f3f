"""ServerSampler against endpoints that fail on purpose, and against vLLM's own server."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from exact_answers import answer_probabilities, chi_squared
from word_llama import CONTEXT, END_IDS, load_reference, make_word_tokenizer

from dco_trl.sampling import EndpointError, SampleRequest, SamplingParams, ServerSampler, request_seed
from dco_trl.sampling.fingerprint import folder_fingerprint
from dco_trl.sampling.server_fields import prompt_fields
from dco_trl.sampling.tokens import Codec

PROMPT, PROMPT_IDS = "a b c", [5, 6, 7]
MESSAGES = [{"role": "user", "content": "a b"}]


def draw(sampler, n, *, prompt=PROMPT, first_index=0, stream=0, **params):
    params = SamplingParams(**{"max_tokens": 2, **params})
    [samples] = sampler.sample([SampleRequest(prompt, n, first_index, stream)], params)
    assert len(samples) == n
    return samples


def ids_of(samples):
    return [sample.token_ids for sample in samples]


class Endpoint:
    """A small endpoint on the loopback address that serves "small" and answers each completion with its seed, if any.

    `script` says how the next requests for samples go: "ok", a status code, a status code and headers, "drop" (closes
    the connection), "drip" and "drip headers" (a byte every 0.05 s, for hours), bytes to answer with, a function that
    changes the answer, "short" (one sample less), or the finish reason to give.
    """

    def __init__(self, owned_by="nobody"):
        endpoint = self
        self.script, self.bodies, self.gets, self.owned_by, self.lock = [], [], [], owned_by, threading.Lock()
        self.in_flight = self.most_in_flight = 0
        self.served = ["small", "other"]
        self.development = {}  # answers to vLLM's development endpoints, by path

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def reply(self, status, content, headers=()):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(content, bytes) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def drip(self, data):
                with contextlib.suppress(OSError):
                    for byte in data:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)

            def do_GET(self):
                endpoint.gets.append((self.path, self.headers.get("Authorization")))
                if self.path == "/v1/models":
                    entry = {"object": "model", "owned_by": endpoint.owned_by, "max_model_len": CONTEXT}
                    data = [{"id": name, **entry} for name in endpoint.served]
                    self.reply(200, {"object": "list", "data": data})
                elif self.path == "/version":
                    self.reply(200, {"version": "0.0"})
                elif self.path == "/page/models":
                    self.reply(200, b"<html>Welcome</html>")
                else:
                    self.reply(404, {"error": {"message": "Not Found"}})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if "/v1/completions" != self.path != "/v1/chat/completions":
                    status, content = endpoint.development.get(self.path, (404, {"error": {"message": "Not Found"}}))
                    endpoint.bodies.append({**body, "path": self.path})
                    return self.reply(status, content)
                with endpoint.lock:
                    endpoint.bodies.append({**body, "path": self.path})
                    what = endpoint.script.pop(0) if endpoint.script else "ok"
                    endpoint.in_flight += 1
                    endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
                threading.Event().wait(0.02)
                with endpoint.lock:
                    endpoint.in_flight -= 1
                if what == "drop":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return self.connection.close()
                if what == "drip":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000000")
                    self.end_headers()
                    return self.drip(b" " * 1_000_000)
                if what == "drip headers":
                    return self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1_000_000)
                if isinstance(what, int):
                    # 0.01 s, so that the tests do not wait for the sampler's own back-off.
                    what = (what, [("Retry-After-Ms", "10")])
                if isinstance(what, tuple):
                    status, headers, *content = what
                    return self.reply(status, *(content or [{"error": {"message": f"said {status}"}}]), headers)
                if isinstance(what, bytes):
                    return self.reply(200, what)
                reason = "stop" if callable(what) else {"ok": "stop", "short": "stop", "none": None}.get(what, what)
                choices = []
                for index in range(body["n"] - (what == "short")):
                    text = f"{body['seed'] + index}" if "seed" in body else "no seed"
                    kind = (
                        {"message": {"role": "assistant", "content": text}} if "chat" in self.path else {"text": text}
                    )
                    ids = {"token_ids": [5, 6, 1]} if body.get("return_token_ids") else {}
                    choices.append({"index": index, "finish_reason": reason, **kind, **ids})
                usage = {"completion_tokens": 7, "prompt_tokens": 1, "total_tokens": 8}
                answer = {"id": "1", "object": "o", "created": 1, "choices": choices[::-1], "usage": usage}
                if callable(what):
                    answer = what(answer)
                self.reply(200, answer)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def sampler(self, **options):
        return ServerSampler("small", **{"base_url": self.root + "/v1", "progress": False, **options})


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def vllm_like():
    endpoint = Endpoint(owned_by="vllm")
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


class TestRequests:
    def test_an_unknown_endpoint_gets_openais_parameters_only_one_sample_per_request(self, endpoint):
        sampler = endpoint.sampler()
        samples = draw(sampler, 5, stream=2, first_index=10, temperature=0.7, top_p=0.9, stop=("x",), seed=3)
        assert [s.text for s in samples] == [str(request_seed(3, 2, 10 + i)) for i in range(5)]
        assert all((s.token_ids, s.num_tokens, s.finish_reason) == (None, 7, "stop") for s in samples)
        for body in endpoint.bodies:
            body.pop("seed")
            assert body == {
                "path": "/v1/completions",
                "model": "small",
                "prompt": PROMPT,
                "n": 1,
                "temperature": 0.7,
                "top_p": 0.9,
                "max_tokens": 2,
                "stop": ["x"],
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
            }

    def test_a_vllm_server_gets_everything_and_several_samples_a_request(self, vllm_like):
        samples = draw(vllm_like.sampler(samples_per_request=4), 10, stream=2, top_k=5)
        # Choices come back in reverse order here; their index counts.
        assert [s.text for s in samples] == [str(request_seed(0, 2, i)) for i in range(10)]
        assert {(s.token_ids, s.num_tokens) for s in samples} == {((5, 6, 1), 3)}
        assert sorted((b["seed"] - request_seed(0, 2, 0), b["n"]) for b in vllm_like.bodies) == [
            (0, 4),
            (4, 4),
            (8, 2),
        ]
        sent = {"top_k": 5, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True, "temperature": 1.0}
        assert all(sent.items() <= body.items() for body in vllm_like.bodies)

    def test_greedy_samples_are_asked_for_once(self, vllm_like):
        assert len(draw(vllm_like.sampler(), 100, temperature=0)) == 100
        assert [(body["n"], body["temperature"]) for body in vllm_like.bodies] == [(1, 0)]

    def test_messages_go_to_the_chat_interface(self, endpoint):
        [sample] = draw(endpoint.sampler(), 1, prompt=MESSAGES)
        assert (sample.text, sample.num_tokens) == (str(request_seed(0, 0, 0)), 7)
        assert endpoint.bodies[0]["path"] == "/v1/chat/completions"
        assert endpoint.bodies[0]["messages"] == MESSAGES

    def test_with_a_tokenizer_prompts_are_rendered_here_and_tokens_decoded_here(self, vllm_like, checkpoint):
        sampler = vllm_like.sampler(tokenizer=str(checkpoint))
        [sample] = draw(sampler, 1, prompt=MESSAGES)
        assert vllm_like.bodies[0]["path"] == "/v1/completions"
        assert vllm_like.bodies[0]["prompt"] == [3, 5, 6, 4, 3]
        assert vllm_like.bodies[0]["stop_token_ids"] == list(END_IDS)
        assert (sample.text, sample.finish_reason) == (" a b", "stop")

    def test_an_adapters_own_tokenizer_renders_its_prompts(self, vllm_like, adapters, tmp_path):
        tokenizer = make_word_tokenizer()
        tokenizer.eos_token, tokenizer.chat_template = "g", "f {{ messages[0].content }}"
        folder = shutil.copytree(adapters[0], tmp_path / "trained")
        tokenizer.save_pretrained(folder)
        vllm_like.development["/v1/load_lora_adapter"] = (200, {})
        requests = [SampleRequest(MESSAGES, 1, adapter=adapter) for adapter in (str(folder), str(adapters[0]), "")]
        vllm_like.sampler(concurrency=1).sample(requests, SamplingParams(max_tokens=4, stop=("<pad>", "c")))
        own, *others = [body for body in vllm_like.bodies if "model" in body]
        assert (own["prompt"], own["stop_token_ids"], own["stop"]) == ([10, 5, 6], [11, 0], ["c"])
        assert all(body["messages"] == MESSAGES and body["stop"] == ["<pad>", "c"] for body in others)

    def test_what_the_chat_template_is_given(self, vllm_like, endpoint, checkpoint):
        tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
        request = SampleRequest(MESSAGES, 1, template_kwargs={"tools": tools, "enable_thinking": False})
        vllm_like.sampler().sample([request], SamplingParams(max_tokens=2))
        sent = {"tools": tools, "tool_choice": "none", "chat_template_kwargs": {"enable_thinking": False}}
        assert sent.items() <= vllm_like.bodies[0].items()
        with pytest.raises(
            ValueError, match=r"prompt comes with arguments .* \(tools, enable_thinking\).*Set .* option tokenizer"
        ):
            endpoint.sampler().sample([request], SamplingParams(max_tokens=2))
        endpoint.sampler(tokenizer=str(checkpoint)).sample([request], SamplingParams(max_tokens=2))
        assert endpoint.bodies[0]["prompt"] == [11, 3, 5, 6, 4, 3]

    def test_an_endpoint_that_wants_max_completion_tokens_gets_them(self, endpoint):
        refusal = b'{"error": {"message": "Unsupported parameter: \'max_tokens\'. Use \'max_completion_tokens\'."}}'
        endpoint.script = [(400, [], refusal)]
        sampler = endpoint.sampler(concurrency=1)
        assert len(draw(sampler, 3, prompt=MESSAGES)) == 3
        assert ["max_tokens" in body for body in endpoint.bodies] == [True, False, False, False]
        assert [body.get("max_completion_tokens") for body in endpoint.bodies] == [None, 2, 2, 2]

    @pytest.mark.parametrize("has_tokenizer", [False, True])
    def test_token_ids_are_sent_as_they_are(self, vllm_like, checkpoint, has_tokenizer):
        options = {"tokenizer": str(checkpoint)} if has_tokenizer else {}
        draw(vllm_like.sampler(**options), 1, prompt=[9, 8])
        [body] = vllm_like.bodies
        assert (body["path"], body["prompt"]) == ("/v1/completions", [9, 8]) and "messages" not in body

    def test_top_k_is_not_dropped_silently(self, endpoint):
        with pytest.raises(
            ValueError,
            match=r"top_k=5 is not part of OpenAI's interface.*extra_body=\{'top_k': 5\} \(sampler_kwargs\)",
        ):
            draw(endpoint.sampler(), 1, top_k=5)
        sampler = endpoint.sampler(extra_body={"top_k": 5})
        draw(sampler, 1, top_k=5)
        assert endpoint.bodies[0]["top_k"] == 5
        with pytest.raises(ValueError, match="top_k=0 is not part .* without top_k in extra_body"):
            draw(sampler, 1)
        draw(endpoint.sampler(extra_body={"top_k": 0, "min_p": 0.0}), 1)
        assert (endpoint.bodies[1]["top_k"], endpoint.bodies[1]["min_p"]) == (0, 0.0)

    def test_seeds_can_be_left_out(self, endpoint, vllm_like):
        for served in (endpoint, vllm_like):
            samples = draw(served.sampler(seed_each_request=False), 3)
            assert {sample.text for sample in samples} == {"no seed"}
            assert not any("seed" in body for body in served.bodies)

    def test_the_prompt_and_the_samples_fit_into_the_context_that_vllm_tells(self, vllm_like, checkpoint):
        sampler = vllm_like.sampler(tokenizer=str(checkpoint))
        with pytest.raises(ValueError, match=rf"make {CONTEXT + 1} tokens, .* --max-model-len .* begins 'a b c'"):
            draw(sampler, 1, max_tokens=CONTEXT - 2)
        assert vllm_like.bodies == []

    def test_it_works_inside_an_event_loop(self, endpoint):
        async def in_a_notebook():
            return draw(endpoint.sampler(), 2)

        assert len(asyncio.run(in_a_notebook())) == 2

    def test_requests_run_at_the_same_time_and_no_more_than_asked(self, endpoint):
        draw(endpoint.sampler(concurrency=4), 40)
        assert 2 <= endpoint.most_in_flight <= 4

    def test_each_request_asks_for_its_adapter_by_name_at_its_temperature(self, endpoint):
        requests = [
            SampleRequest("a", 1, stream=0, adapter="other", temperature=1.5),
            SampleRequest("a", 1, stream=1, adapter=""),
            SampleRequest("a", 1, stream=2, temperature=0.0),
        ]
        endpoint.sampler(concurrency=1, adapter="other").sample(requests, SamplingParams(temperature=0.7))
        sent = [(body["model"], body["temperature"]) for body in endpoint.bodies]
        assert sent == [("other", 1.5), ("small", 0.7), ("other", 0.0)]

    def test_a_folder_that_is_served_under_its_name_is_not_loaded(self, endpoint, adapters):
        endpoint.served.append(str(adapters[0]))
        requests = [SampleRequest("a", 1, adapter=str(adapters[0]))]
        endpoint.sampler().sample(requests, SamplingParams())
        assert endpoint.bodies[0]["model"] == str(adapters[0])
        with pytest.raises(EndpointError, match="is not among the models that .* adapters can be loaded into vLLM"):
            endpoint.sampler().sample([SampleRequest("a", 1, adapter=str(adapters[1]))], SamplingParams())

    def test_the_order_is_that_of_the_requests(self, endpoint):
        requests = [SampleRequest("a", 3, stream=s, first_index=s) for s in range(5)]
        groups = endpoint.sampler().sample(requests, SamplingParams())
        assert [[int(s.text) for s in group] for group in groups] == [
            [request_seed(0, s, s + i) for i in range(3)] for s in range(5)
        ]


class TestWeights:
    """What becomes of the weights of a real server stands in `test_cot_server.py` of the trainer."""

    def test_a_vllm_server_is_told_where_they_are_and_to_forget_its_prompts(self, vllm_like, checkpoint):
        for emptied in ({"success": True}, b""):  # vLLM from 0.26 on, and before
            vllm_like.development = {
                "/collective_rpc": (200, {"results": [None]}),
                "/reset_prefix_cache": (200, emptied),
            }
            sampler = vllm_like.sampler()
            before = sampler.identity()
            sampler.reload_weights(str(checkpoint))
            reload, reset = vllm_like.bodies[-2:]
            assert reload == {
                "path": "/collective_rpc",
                "method": "reload_weights",
                "kwargs": {"weights_path": str(checkpoint)},
            }
            assert reset == {"path": "/reset_prefix_cache"}
            weights = {"weights": str(checkpoint), "weights_fingerprint": folder_fingerprint(checkpoint)}
            assert sampler.identity() == {**before, **weights}
            assert sampler.adapter_name is None

    @pytest.mark.parametrize(
        "rpc, reset, message",
        [
            (None, None, "could not load weights from 'x': HTTP 404, .* Start the vLLM server with VLLM_SERVER_DEV_M"),
            (
                (500, {"error": {"message": "no such folder"}}),
                None,
                "'no such folder' .1 attempt.* Does it see that f",
            ),
            (
                (200, {"results": [None]}),
                {"success": False},
                "could not empty its cache of prompts: it still holds prompts of the weights before, in .* .2 attempts"
                ".. Does another program use it",
            ),
        ],
    )
    def test_a_server_that_does_not_take_them(self, vllm_like, rpc, reset, message):
        vllm_like.development = {"/reset_prefix_cache": (200, reset)} | (
            {} if rpc is None else {"/collective_rpc": rpc}
        )
        sampler = vllm_like.sampler(max_retries=1)
        with pytest.raises(EndpointError, match=message):
            sampler.reload_weights("x")
        assert "weights" not in sampler.identity()

    def test_only_vllm_takes_them(self, endpoint):
        with pytest.raises(
            EndpointError, match="is not a vLLM server, and only those can be given the weights of a w"
        ):
            endpoint.sampler().reload_weights("x")


def garbage(**changes):
    """An answer whose first choice is changed."""

    def change(answer):
        for name, value in changes.items():
            if value is MISSING:
                del answer["choices"][0][name]
            else:
                answer["choices"][0][name] = value
        return answer

    return change


MISSING = object()
NOT_JSON = [b'{"choices": [{"text": "a', b"<html>Welcome</html>", b"", b"\xff\xfe{}", b"[" * 100_000, b"null", b"[]"]
MALFORMED = {
    "choices as a dictionary": (lambda a: {**a, "choices": {"0": a["choices"][0]}}, "holds no list of choices"),
    "choices of text": (lambda a: {**a, "choices": ["a"]}, "holds no list of choices"),
    "no choices": (lambda a: {"id": "1"}, 'holds no list of choices, in \'{"id": "1"}\''),
    "an error": (lambda a: {"error": {"message": "out of memory"}}, "holds no list of choices, in 'out of memory'"),
    "null text": (garbage(text=None), "a sample has no text"),
    "missing text": (garbage(text=MISSING), "a sample has no text"),
    "text as a number": (garbage(text=3), "a sample has no text"),
    "half a character": (garbage(text="\ud83d"), "text is not valid Unicode"),
    "tokens as text": (lambda a: {**a, "usage": {"completion_tokens": "7"}}, "completion_tokens='7' is no number"),
    "2**40 tokens": (lambda a: {**a, "usage": {"completion_tokens": 2**40}}, "completion_tokens=1099511627776 is no"),
    "-1 tokens": (lambda a: {**a, "usage": {"completion_tokens": -1}}, "completion_tokens=-1 is no number"),
    "a reason that is no text": (
        garbage(finish_reason=["stop"]),
        r"the finish_reason of a sample is no text but \['stop'\]",
    ),
    "ids as text": (garbage(token_ids="5 6"), "token_ids is no list of token ids"),
    "a negative id": (garbage(token_ids=[5, -1]), "token_ids is no list of token ids"),
    "an id that is too large": (garbage(token_ids=[5, 2**31]), "token_ids is no list of token ids below"),
    "an id that is no integer": (garbage(token_ids=[5, 6.5]), "token_ids is no list of token ids"),
}


class TestFailures:
    @pytest.mark.parametrize("failure", [408, 429, 500, 503, "drop", b"<html>Welcome</html>", garbage(text=None)])
    def test_passing_failures_are_repeated_until_they_pass(self, endpoint, failure):
        endpoint.script = [failure, failure]
        [sample] = draw(endpoint.sampler(), 1)
        assert sample.text == str(request_seed(0, 0, 0))
        assert len(endpoint.bodies) == 3
        assert endpoint.bodies[0] == endpoint.bodies[2]

    def test_a_failure_that_stays_is_reported_after_the_last_attempt(self, endpoint):
        endpoint.script = [503] * 100
        with pytest.raises(
            EndpointError,
            match=r"The endpoint at .* could not sample: HTTP 503, 'said 503' \(3 attempts\). "
            r"Raise the sampler's option max_retries \(sampler_kwargs\), or lower concurrency",
        ):
            draw(endpoint.sampler(max_retries=2), 1)
        assert len(endpoint.bodies) == 3

    def test_a_refusal_is_not_repeated(self, endpoint):
        endpoint.script = [400]
        with pytest.raises(EndpointError, match=r"could not sample: HTTP 400, 'said 400' \(1 attempt\)"):
            draw(endpoint.sampler(), 1)
        assert len(endpoint.bodies) == 1

    def test_a_missing_key_is_named(self, endpoint):
        endpoint.script = [401]
        with pytest.raises(EndpointError, match="HTTP 401, .* Set OPENAI_API_KEY, or the sampler's option api_key"):
            draw(endpoint.sampler(), 1)

    @pytest.mark.parametrize("wait", ["86400", "inf", "Fri, 31 Dec 2100 23:59:59 GMT"])
    def test_a_long_retry_after_is_reported_at_once(self, endpoint, wait):
        endpoint.script = [(429, [("Retry-After", wait)])] * 100
        with pytest.raises(EndpointError, match=r"\(1 attempt\). It asks for a pause of [\d,inf]+ s \(Retry-After\)"):
            draw(endpoint.sampler(max_retries=2), 1)
        assert len(endpoint.bodies) == 1

    @pytest.mark.parametrize("wait", ["0", "-3", "nan", "soon", "Fri, 31 Dec 1999 23:59:59 GMT"])
    def test_other_values_of_retry_after_do_no_harm(self, endpoint, wait, monkeypatch):
        endpoint.script = [(429, [("Retry-After", wait)])]
        waits = []

        async def sleep(seconds):
            waits.append(seconds)

        monkeypatch.setattr("dco_trl.sampling.endpoint.asyncio.sleep", sleep)
        draw(endpoint.sampler(), 1)
        assert len(endpoint.bodies) == 2
        assert [0.3 < wait <= 0.5 for wait in waits if wait] == [True]  # not at once: that would burn all retries

    @pytest.mark.parametrize("drip", ["drip", "drip headers"])
    def test_an_endpoint_that_drips_is_timed_out(self, endpoint, drip):
        endpoint.script = [drip] * 100
        with pytest.raises(
            EndpointError,
            match=r"no whole answer within 0.5 seconds \(2 attempts\). Raise the sampler's option timeout",
        ):
            draw(endpoint.sampler(timeout=0.5, max_retries=1), 1)

    def test_after_an_error_nobody_waits_for_the_rest(self, endpoint):
        endpoint.script = ["drip"] * 3 + [400]
        sampler = endpoint.sampler(concurrency=4)
        with pytest.raises(EndpointError, match="said 400"):
            draw(sampler, 40)
        assert len(endpoint.bodies) <= 5

    def test_ctrl_c_ends_it(self, endpoint):
        endpoint.script = ["drip"] * 100
        sampler = endpoint.sampler()
        interrupt = (threading.main_thread().ident, signal.SIGINT)
        # Libraries loaded by other tests may have put a handler of their own.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.5, signal.pthread_kill, interrupt).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                draw(sampler, 4)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_an_endpoint_that_goes_away_is_reported(self, endpoint):
        sampler = endpoint.sampler(max_retries=1)
        endpoint.script = ["drop"] * 100
        with pytest.raises(
            EndpointError, match=r"127.*/v1 could not sample: no answer, .* \(2 attempts\). Is the endpoint running"
        ):
            draw(sampler, 3)

    def test_an_endpoint_that_is_down_is_reported_at_once(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(
            EndpointError, match=r"could not list its models: no answer, .*Is the endpoint running, and"
        ):
            ServerSampler("small", base_url=url)

    def test_another_model_is_reported_with_those_that_are_served(self, endpoint):
        with pytest.raises(EndpointError, match="does not serve model='large'. It serves: other, small."):
            ServerSampler("large", base_url=endpoint.root + "/v1")

    def test_an_address_without_v1_is_reported(self, endpoint):
        with pytest.raises(EndpointError, match=r"could not list its models.*Is base_url right \(most .* need /v1"):
            endpoint.sampler(base_url=endpoint.root)

    @pytest.mark.parametrize(
        "base_url, message",
        [
            ("127.0.0.1:8000/v1", "must be an http:// or https:// address"),
            ("ftp://host/v1", "base_url='ftp://host/v1' must be an http"),
            ("http://host/v1?key=SECRET", "base_url='http://host/v1' must be .* without a query"),
            ("http://host:port/v1", "base_url is not an address .*Write it as http://127.0.0.1:8000/v1"),
        ],
    )
    def test_what_is_no_address_is_refused(self, base_url, message):
        with pytest.raises(ValueError, match=message) as caught:
            ServerSampler("small", base_url=base_url)
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"concurrency": 0}, ValueError, "`concurrency` must be an integer of at least 1, got 0"),
            ({"samples_per_request": "many"}, ValueError, "`samples_per_request` must be .* got 'many'"),
            ({"max_retries": -1}, ValueError, "max_retries=-1 must be at least 0"),
            ({"timeout": 0}, ValueError, "timeout=0 above 0 seconds"),
            ({"api_key": "SECRET\n"}, ValueError, "api_key holds a character that no HTTP header can carry"),
        ],
    )
    def test_values_out_of_range_are_refused(self, options, error, message):
        with pytest.raises(error, match=message) as caught:
            ServerSampler("small", base_url="http://127.0.0.1:9/v1", **options)
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "stop", "seed", "n", "model", "prompt"])
    def test_extra_fields_do_not_set_what_is_recorded_otherwise(self, endpoint, vllm_like, name):
        with pytest.raises(
            ValueError, match=f"extra_body sets {name}, which the sampler sends itself.*SamplingParams"
        ):
            endpoint.sampler(extra_body={name: 1})
        with pytest.raises(ValueError, match="extra_body sets top_k, which a vLLM server is sent anyway"):
            vllm_like.sampler(extra_body={"top_k": 1})

    def test_a_web_page_is_not_taken_for_a_list_of_models(self, endpoint):
        with pytest.raises(
            EndpointError, match="not an OpenAI-compatible answer, in '<html>Welcome.*is base_url right"
        ):
            endpoint.sampler(base_url=endpoint.root + "/page")

    @pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
    def test_what_is_not_json_is_one_error_that_shows_its_beginning(self, endpoint, content):
        endpoint.script = [content] * 2
        with pytest.raises(EndpointError, match=r"not an OpenAI-compatible answer, in .* \(2 attempts\)") as caught:
            draw(endpoint.sampler(max_retries=1), 1)
        assert len(str(caught.value)) < 500
        assert repr(content.decode(errors="replace")[:200]) in str(caught.value)
        assert len(endpoint.bodies) == 2

    @pytest.mark.parametrize("case", MALFORMED)
    def test_malformed_answers_are_one_error(self, endpoint, case, monkeypatch):
        monkeypatch.setattr("dco_trl.sampling.endpoint._FIRST_WAIT", 0.01)
        change, message = MALFORMED[case]
        endpoint.script = [change] * 2
        with pytest.raises(EndpointError, match=rf"could not sample: .*{message}.* \(2 attempts\)"):
            draw(endpoint.sampler(max_retries=1), 1)
        assert len(endpoint.bodies) == 2

    @pytest.mark.parametrize("tokens", [[5, 6, -1], [5, 10**6], None, "ab"])
    def test_token_ids_are_checked_against_the_tokenizer(self, vllm_like, checkpoint, tokens):
        vllm_like.script = [garbage(token_ids=tokens, text=None)]
        with pytest.raises(EndpointError, match="token_ids is no list of token ids below 1,036|a sample has no text"):
            draw(vllm_like.sampler(tokenizer=str(checkpoint), max_retries=0), 1)

    def test_missing_samples_are_reported(self, endpoint, vllm_like):
        vllm_like.script = ["short"]
        with pytest.raises(EndpointError, match="returned 3 samples and not the n=4 asked for.*samples_per_request=1"):
            draw(vllm_like.sampler(max_retries=0), 4)
        endpoint.script = ["short"]
        with pytest.raises(EndpointError, match="returned 0 samples and not the n=1 asked for") as caught:
            draw(endpoint.sampler(max_retries=0), 1)
        assert "samples_per_request" not in str(caught.value)

    def test_the_number_of_tokens_must_be_known(self, endpoint, vllm_like):
        for usage in (None, {}, {"completion_tokens": None}):
            endpoint.script = [lambda answer, usage=usage: {**answer, "usage": usage}]
            with pytest.raises(EndpointError, match="neither the token ids nor the number .*report `usage`") as caught:
                draw(endpoint.sampler(), 1)
            assert "samples_per_request" not in str(caught.value)
        vllm_like.script = [garbage(token_ids=None)]
        with pytest.raises(EndpointError, match="neither the token ids nor the number of .* samples_per_request=1"):
            draw(vllm_like.sampler(), 2)

    def test_an_answer_without_an_end_is_not_read_to_the_end(self, endpoint, monkeypatch):
        monkeypatch.setattr("dco_trl.sampling.endpoint._MAX_BYTES", 1000)
        endpoint.script = [b" " * 2000]
        with pytest.raises(EndpointError, match=r"an answer of more than 1,000 bytes \(1 attempt\). Lower max_tokens"):
            draw(endpoint.sampler(), 1)

    def test_reasoning_taken_out_of_the_answer_is_reported(self, endpoint):
        endpoint.script = [garbage(message={"content": None, "reasoning_content": "hm"})]
        with pytest.raises(EndpointError, match="a sample has no text, .*reasoning parser"):
            draw(endpoint.sampler(max_retries=0), 1, prompt=MESSAGES)

    def test_an_interfering_filter_is_reported(self, endpoint):
        endpoint.script = ["content_filter"]
        with pytest.raises(
            EndpointError, match="finish_reason='content_filter': it interfered with the completion.*Switch that off"
        ):
            draw(endpoint.sampler(), 1)

    @pytest.mark.parametrize("said, meant", [("length", "length"), ("eos", "stop"), ("none", "length")])
    def test_finish_reasons_are_understood(self, endpoint, said, meant):
        endpoint.script = [said]
        [sample] = draw(endpoint.sampler(), 1)  # 7 tokens, max_tokens=2
        assert sample.finish_reason == meant

    def test_an_adapter_is_only_for_servers_that_load_it(self, endpoint, vllm_like, adapters):
        with pytest.raises(EndpointError, match="adapters can be loaded into vLLM servers only"):
            endpoint.sampler(adapter=str(adapters[0]))
        with pytest.raises(EndpointError, match="Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA"):
            vllm_like.sampler(adapter=str(adapters[0]))

    def test_an_adapter_that_is_served_already_is_used_by_name(self, endpoint):
        sampler = endpoint.sampler(adapter="other")
        draw(sampler, 1)
        assert endpoint.bodies[0]["model"] == "other"
        assert sampler.identity()["adapter"] == "other"

    def test_a_closed_sampler_says_so(self, endpoint):
        sampler = endpoint.sampler()
        sampler.close()
        sampler.close()
        with pytest.raises(RuntimeError, match="This sampler is closed"):
            draw(sampler, 1)


def test_without_httpx_the_extra_is_named():
    code = (
        "import sys; sys.modules['httpx2'] = None\n"
        "from dco_trl.sampling import make_sampler\n"
        "try:\n    make_sampler('server', 'model', base_url='http://127.0.0.1:1/v1')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("sampler='server' needs more (")
    assert result.stdout.endswith("Install it with `pip install 'dco-trl[server]'`.\n")


class TestIdentity:
    def test_what_changes_the_distribution_is_in_it(self, vllm_like, checkpoint):
        plain = vllm_like.sampler().identity()
        assert "extra_body" not in plain
        assert vllm_like.sampler(concurrency=1, samples_per_request=2, seed_each_request=False).identity() == plain
        changed = vllm_like.sampler(extra_body={"min_p": 0.1, "logit_bias": {"5": -100}}).identity()
        assert changed["extra_body"] == {"min_p": 0.1, "logit_bias": {"5": -100}}
        rendered = vllm_like.sampler(tokenizer=str(checkpoint)).identity()
        assert rendered["tokenizer"] == str(checkpoint) and len(rendered["tokenizer_fingerprint"]) == 16
        assert plain["vllm_version"] == "0.0"

    def test_secrets_are_sent_and_never_shown(self, endpoint):
        address = endpoint.root.replace("http://", "http://user:SECRET@")
        sampler = endpoint.sampler(base_url=address + "/v1", api_key="SECRET-KEY")
        assert endpoint.gets == [("/v1/models", "Basic dXNlcjpTRUNSRVQ=")]
        assert sampler.base_url == sampler.identity()["base_url"] == endpoint.root + "/v1"
        errors = []
        endpoint.script = [400, "drop", b"no"]
        sampler = endpoint.sampler(base_url=address + "/v1", api_key="SECRET-KEY", max_retries=0)
        for _ in range(3):
            with pytest.raises(EndpointError) as caught:
                draw(sampler, 1)
            errors.append(str(caught.value))
        with pytest.raises(EndpointError) as caught:
            endpoint.sampler(base_url=address)
        assert "SECRET" not in str([*errors, caught.value, sampler.identity()])

    def test_a_key_is_sent(self, endpoint, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        endpoint.sampler()
        endpoint.sampler(api_key="one")
        monkeypatch.setenv("OPENAI_API_KEY", "two")
        endpoint.sampler()
        assert [key for _, key in endpoint.gets] == [None, "Bearer one", "Bearer two"]


@pytest.fixture(scope="module")
def sampler(vllm_server):
    with contextlib.closing(ServerSampler("tiny", base_url=vllm_server, progress=False)) as sampler:
        yield sampler


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
class TestWithVLLM:
    def served(self, url):
        return {model["id"] for model in json.load(urllib.request.urlopen(url + "/models"))["data"]}

    @pytest.mark.parametrize("temperature, other", [(1.0, 1.7), (1.7, 1.0)])
    def test_samples_follow_the_exact_distribution(self, sampler, checkpoint, temperature, other):
        model = load_reference(checkpoint)
        ids = ids_of(draw(sampler, 3000, temperature=temperature, seed=12))
        exact = {t: answer_probabilities(model, PROMPT_IDS, END_IDS, 2, temperature=t) for t in (temperature, other)}
        assert chi_squared(ids, exact[temperature]) > 1e-3
        # The test can tell: the other temperature's distribution is refused.
        assert chi_squared(ids, exact[other]) < 1e-6

    @pytest.mark.parametrize("top_k, top_p", [(3, 1.0), (0, 0.6)])
    def test_restricted_samples_keep_to_the_support_and_follow_it(self, sampler, checkpoint, top_k, top_p):
        exact = answer_probabilities(load_reference(checkpoint), PROMPT_IDS, END_IDS, 2, top_k=top_k, top_p=top_p)
        ids = ids_of(draw(sampler, 1000, top_k=top_k, top_p=top_p))
        assert set(ids) <= set(exact)
        assert chi_squared(ids, exact) > 1e-3

    def test_messages_are_rendered_alike_here_and_there(self, sampler, vllm_server, checkpoint):
        exact = answer_probabilities(load_reference(checkpoint), [3, 5, 6, 4, 3], END_IDS, 2)
        assert chi_squared(ids_of(draw(sampler, 1000, prompt=MESSAGES)), exact) > 1e-3
        here = ServerSampler("tiny", base_url=vllm_server, tokenizer=str(checkpoint), progress=False)
        assert chi_squared(ids_of(draw(here, 1000, prompt=MESSAGES)), exact) > 1e-3
        greedy = dict(prompt=MESSAGES, temperature=0, max_tokens=8)
        assert ids_of(draw(here, 1, **greedy)) == ids_of(draw(sampler, 1, **greedy))

    def test_chunks_continue_each_other_and_repeat_nothing(self, sampler):
        params = dict(max_tokens=40, temperature=1.7, stream=3)
        ids = [i for first in (0, 100, 200) for i in ids_of(draw(sampler, 100, first_index=first, **params))]
        long = [i for i in ids if len(i) > 8]
        assert len(long) > 30
        assert max(Counter(long).values()) == 1

    def test_ends_and_stop_strings(self, sampler):
        samples = draw(sampler, 300, max_tokens=6)
        ended = [s for s in samples if s.token_ids[-1] in END_IDS]
        assert {s.token_ids[-1] for s in ended} == set(END_IDS)
        assert {s.finish_reason for s in ended} == {"stop"}
        cut = [s for s in samples if s.token_ids[-1] not in END_IDS]
        assert cut and {(s.finish_reason, s.num_tokens) for s in cut} == {("length", 6)}
        stopped = draw(sampler, 300, max_tokens=12, stop=("e",))
        assert not any("e" in s.text for s in stopped)
        assert any(s.token_ids[-1] == 9 and s.finish_reason == "stop" for s in stopped)

    def test_messages_with_tools_and_template_arguments_are_rendered_alike_here_and_there(self, vllm_server):
        tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
        request = SampleRequest(MESSAGES, 1, template_kwargs={"tools": tools, "hint": "f"})
        fields = prompt_fields(request, MESSAGES, None, SamplingParams(max_tokens=2), True, vllm_server)
        body = json.dumps({"model": "tiny", "return_token_ids": True, **fields}).encode()
        http = urllib.request.Request(f"{vllm_server}/chat/completions", body, {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(http))
        expected = Codec(make_word_tokenizer()).prompt_ids(MESSAGES, request.template_kwargs)
        assert expected[:2] == [11, 10] and answer["prompt_token_ids"] == expected

    def test_adapters_are_loaded_over_http_and_unloaded(self, vllm_server, checkpoint, adapters):
        exact = [answer_probabilities(load_reference(checkpoint, a), PROMPT_IDS, END_IDS, 2) for a in adapters]
        sampler = ServerSampler("tiny", base_url=vllm_server, adapter=str(adapters[0]), progress=False)
        assert len(self.served(vllm_server)) == 2
        ids = ids_of(draw(sampler, 2000))
        assert chi_squared(ids, exact[0]) > 1e-3
        assert chi_squared(ids, exact[1]) < 1e-6
        sampler.load_adapter(str(adapters[1]))
        assert len(self.served(vllm_server)) == 2
        assert chi_squared(ids_of(draw(sampler, 2000)), exact[1]) > 1e-3
        sampler.close()
        assert self.served(vllm_server) == {"tiny"}

    def test_requests_for_several_adapters_and_the_model_alone(self, vllm_server, checkpoint, adapters):
        sampler = ServerSampler("tiny", base_url=vllm_server, progress=False)
        own = [("", 1.0), (str(adapters[0]), 1.0), (str(adapters[1]), 1.7)]
        requests = [SampleRequest(PROMPT, 1500, 0, s, adapter, t) for s, (adapter, t) in enumerate(own)]
        groups = sampler.sample(requests, SamplingParams(max_tokens=2))
        exact = [
            answer_probabilities(load_reference(checkpoint, a or None), PROMPT_IDS, END_IDS, 2, temperature=t)
            for a, t in own
        ]
        for i, samples in enumerate(groups):
            assert all((chi_squared(ids_of(samples), exact[j]) > 1e-3) == (i == j) for j in range(3)), i
        assert len(self.served(vllm_server)) == 3
        sampler.close()
        assert self.served(vllm_server) == {"tiny"}

    def test_what_the_server_refuses_is_reported(self, sampler, vllm_server, tmp_path):
        with pytest.raises(EndpointError, match="could not sample: .*maximum"):
            draw(sampler, 1, max_tokens=CONTEXT)
        with pytest.raises(EndpointError, match="could not load adapter="):
            ServerSampler("tiny", base_url=vllm_server, adapter=str(tmp_path / "nothing"), progress=False)

    def test_the_identity_names_endpoint_and_versions(self, sampler, vllm_server):
        import vllm

        identity = sampler.identity()
        assert identity["base_url"] == vllm_server
        assert identity["vllm_version"] == vllm.__version__

    def test_the_cot_trainer_gives_it_the_adapter_in_training(self, vllm_server, checkpoint, monkeypatch, tmp_path):
        from datasets import Dataset
        from peft import LoraConfig

        from dco_trl import CoTDCOConfig, CoTDCOTrainer
        from dco_trl.trainer.rationales import RationaleDrawer

        p_values: list[float] = []
        draw_rationales = RationaleDrawer.draw

        def watched(self, problems, counts, next_index, sampler):
            model = trainer.model.eval()
            ids = ids_of(draw(sampler, 1500, seed=len(p_values)))
            p_values.append(chi_squared(ids, answer_probabilities(model, PROMPT_IDS, END_IDS, 2)))
            models.append(answer_probabilities(model, PROMPT_IDS, END_IDS, 2))
            assert chi_squared(ids, models[0]) < 1e-6 or len(models) == 1
            model.train()
            return draw_rationales(self, problems, counts, next_index, sampler)

        models: list[dict] = []
        monkeypatch.setattr(RationaleDrawer, "draw", watched)
        args = CoTDCOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            disable_tqdm=True, gradient_checkpointing=False, max_steps=4, sampling_interval=1, ce_warmup_steps=0,
            learning_rate=0.05, num_rationales=8, max_rationale_tokens=6, model_init_kwargs={"dtype": "float32"},
            sampler="server", sampler_kwargs={"base_url": vllm_server, "model": "tiny"},
        )  # fmt: skip
        rows = [{"prompt": PROMPT, "completion": " d", "answer": "d"}] * 8
        trainer = CoTDCOTrainer(
            str(checkpoint),
            args=args,
            train_dataset=Dataset.from_list(rows),
            grader="exact",
            peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]),
        )
        trainer.train()
        assert len(p_values) == 4 and min(p_values) > 1e-3
        assert self.served(vllm_server) == {"tiny"}
        assert not list(tmp_path.glob(".dco-sampler-*"))


def test_an_endpoint_that_is_down_stops_cot_training(checkpoint, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig

    from dco_trl import CoTDCOConfig, CoTDCOTrainer

    trainer = CoTDCOTrainer(
        str(checkpoint),
        args=CoTDCOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            max_steps=1,
            ce_warmup_steps=0,
            gradient_checkpointing=False,
            sampler="server",
            max_rationale_tokens=6,
            sampler_kwargs={"base_url": "http://127.0.0.1:9/v1", "max_retries": 0},
        ),  # fmt: skip
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "completion": " d", "answer": "d"}]),
        grader="exact",
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]),
    )
    with pytest.raises(EndpointError, match="127.0.0.1:9"):
        trainer.train()
