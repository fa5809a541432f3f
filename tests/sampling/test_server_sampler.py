"""ServerSampler against endpoints that fail on purpose, and against vLLM's own server."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from exact_answers import answer_probabilities, chi_squared
from word_llama import CONTEXT, END_IDS, load_reference

from dco_trl.sampling import EndpointError, SampleRequest, SamplingParams, ServerSampler, request_seed

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
    """A small endpoint on the loopback address that serves "small" and answers each completion with its seed.

    `script` says how the next requests for samples go: "ok", a status code, "drop" (closes the connection), "html",
    "short" (one sample less), or the finish reason to give.
    """

    def __init__(self, owned_by="nobody"):
        endpoint = self
        self.script, self.bodies, self.owned_by, self.lock = [], [], owned_by, threading.Lock()
        self.in_flight = self.most_in_flight = 0
        self.served = ["small", "other"]

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

            def do_GET(self):
                if self.path == "/v1/models":
                    data = [{"id": m, "object": "model", "owned_by": endpoint.owned_by} for m in endpoint.served]
                    self.reply(200, {"object": "list", "data": data})
                elif self.path == "/page/models":
                    self.reply(200, b"<html>Welcome</html>")
                else:
                    self.reply(404, {"error": {"message": "Not Found"}})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if "lora_adapter" in self.path:
                    return self.reply(404, {"error": {"message": "Not Found"}})
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
                if isinstance(what, int):
                    # 0.01 s, so that the tests do not wait for the client's own back-off.
                    return self.reply(what, {"error": {"message": f"said {what}"}}, [("Retry-After-Ms", "10")])
                if what == "html":
                    return self.reply(200, b"<html>Welcome</html>")
                reason = {"ok": "stop", "short": "stop", "none": None}.get(what, what)
                choices = []
                for index in range(body["n"] - (what == "short")):
                    text = f"{body['seed'] + index}"
                    kind = (
                        {"message": {"role": "assistant", "content": text}} if "chat" in self.path else {"text": text}
                    )
                    ids = {"token_ids": [5, 6, 1]} if body.get("return_token_ids") else {}
                    choices.append({"index": index, "finish_reason": reason, **kind, **ids})
                usage = {"completion_tokens": 7, "prompt_tokens": 1, "total_tokens": 8}
                self.reply(200, {"id": "1", "object": "o", "created": 1, "choices": choices[::-1], "usage": usage})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def sampler(self, **options):
        return ServerSampler("small", self.root + "/v1", **{"progress": False, **options})


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
    def test_an_unknown_endpoint_gets_openais_parameters_only_one_sample_a_request(self, endpoint):
        samples = draw(
            endpoint.sampler(), 5, stream=2, first_index=10, temperature=0.7, top_p=0.9, stop=("x",), seed=3
        )
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
        assert sample.text == str(request_seed(0, 0, 0))
        assert endpoint.bodies[0]["path"] == "/v1/chat/completions"
        assert endpoint.bodies[0]["messages"] == MESSAGES

    def test_with_a_tokenizer_prompts_are_rendered_here_and_tokens_decoded_here(self, vllm_like, checkpoint):
        sampler = vllm_like.sampler(tokenizer=str(checkpoint))
        [sample] = draw(sampler, 1, prompt=MESSAGES)
        assert vllm_like.bodies[0]["path"] == "/v1/completions"
        assert vllm_like.bodies[0]["prompt"] == [3, 5, 6, 4, 3]
        assert vllm_like.bodies[0]["stop_token_ids"] == list(END_IDS)
        assert (sample.text, sample.finish_reason) == ("a b", "stop")

    @pytest.mark.parametrize("has_tokenizer", [False, True])
    def test_token_ids_are_sent_as_they_are(self, vllm_like, checkpoint, has_tokenizer):
        options = {"tokenizer": str(checkpoint)} if has_tokenizer else {}
        draw(vllm_like.sampler(**options), 1, prompt=[9, 8])
        [body] = vllm_like.bodies
        assert (body["path"], body["prompt"]) == ("/v1/completions", [9, 8]) and "messages" not in body

    def test_top_k_is_not_dropped_silently(self, endpoint):
        with pytest.raises(ValueError, match=r"top_k=5 is not part of OpenAI's interface.*extra_body=\{'top_k': 5\}"):
            draw(endpoint.sampler(), 1, top_k=5)
        draw(endpoint.sampler(extra_body={"top_k": 5}), 1, top_k=5)
        assert endpoint.bodies[0]["top_k"] == 5

    def test_requests_run_at_the_same_time_and_no_more_than_asked(self, endpoint):
        draw(endpoint.sampler(concurrency=4), 40)
        assert 2 <= endpoint.most_in_flight <= 4

    def test_the_order_is_that_of_the_requests(self, endpoint):
        requests = [SampleRequest("a", 3, stream=s, first_index=s) for s in range(5)]
        groups = endpoint.sampler().sample(requests, SamplingParams())
        assert [[int(s.text) for s in group] for group in groups] == [
            [request_seed(0, s, s + i) for i in range(3)] for s in range(5)
        ]


class TestFailures:
    @pytest.mark.parametrize("failure", [429, 500, 503, "drop"])
    def test_passing_failures_are_repeated_until_they_pass(self, endpoint, failure):
        endpoint.script = [failure, failure]
        [sample] = draw(endpoint.sampler(), 1)
        assert sample.text == str(request_seed(0, 0, 0))
        assert len(endpoint.bodies) == 3
        assert endpoint.bodies[0] == endpoint.bodies[2]

    def test_a_failure_that_stays_is_reported_after_the_last_attempt(self, endpoint):
        endpoint.script = [503] * 100
        with pytest.raises(EndpointError, match=r"could not sample: .*said 503.* It said so 3 time\(s\)"):
            draw(endpoint.sampler(max_retries=2), 1)
        assert len(endpoint.bodies) == 3

    def test_a_refusal_is_not_repeated(self, endpoint):
        endpoint.script = [400]
        with pytest.raises(EndpointError, match="could not sample: .*said 400"):
            draw(endpoint.sampler(), 1)
        assert len(endpoint.bodies) == 1

    def test_an_endpoint_that_goes_away_is_reported(self, endpoint):
        sampler = endpoint.sampler(max_retries=1)
        endpoint.script = ["drop"] * 100
        with pytest.raises(
            EndpointError, match=r"No answer from http://127.*/v1 after 2 attempt\(s\) \(.*Is the endp"
        ):
            draw(sampler, 3)

    def test_an_endpoint_that_is_down_is_reported_at_once(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=r"No answer from .*refused.*Is the endpoint running, and is base_url"):
            ServerSampler("small", url)

    def test_another_model_is_reported_with_those_that_are_served(self, endpoint):
        with pytest.raises(EndpointError, match="does not serve model='large'. It serves: other, small."):
            ServerSampler("large", endpoint.root + "/v1")

    def test_an_address_without_v1_is_reported(self, endpoint):
        with pytest.raises(EndpointError, match=r"could not list its models.*Is base_url right \(most .* need /v1"):
            ServerSampler("small", endpoint.root)

    def test_a_web_page_is_not_taken_for_an_answer(self, endpoint):
        with pytest.raises(EndpointError, match="not an OpenAI-compatible answer"):
            ServerSampler("small", endpoint.root + "/page")
        endpoint.script = ["html"]
        with pytest.raises(EndpointError, match="not an OpenAI-compatible answer"):
            draw(endpoint.sampler(), 1)

    def test_missing_samples_are_reported(self, vllm_like):
        vllm_like.script = ["short"]
        with pytest.raises(EndpointError, match="returned 3 samples and not the n=4 asked for.*samples_per_request=1"):
            draw(vllm_like.sampler(), 4)

    def test_an_interfering_filter_is_reported(self, endpoint):
        endpoint.script = ["content_filter"]
        with pytest.raises(EndpointError, match="finish_reason='content_filter': it interfered"):
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

    def test_without_openai_the_extra_is_named(self):
        code = (
            "import sys; sys.modules['openai'] = None\n"
            "from dco_trl.sampling import ServerSampler\n"
            "try:\n    ServerSampler('model', 'http://127.0.0.1:1/v1')\n"
            "except ImportError as error:\n    print(error)\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "pip install 'dco-trl[server]'" in result.stdout


@pytest.fixture(scope="module")
def sampler(vllm_server):
    with contextlib.closing(ServerSampler("tiny", vllm_server, progress=False)) as sampler:
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
        here = ServerSampler("tiny", vllm_server, tokenizer=str(checkpoint), progress=False)
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

    def test_adapters_are_loaded_over_http_and_unloaded(self, vllm_server, checkpoint, adapters):
        exact = [answer_probabilities(load_reference(checkpoint, a), PROMPT_IDS, END_IDS, 2) for a in adapters]
        sampler = ServerSampler("tiny", vllm_server, str(adapters[0]), progress=False)
        assert len(self.served(vllm_server)) == 2
        ids = ids_of(draw(sampler, 2000))
        assert chi_squared(ids, exact[0]) > 1e-3
        assert chi_squared(ids, exact[1]) < 1e-6
        sampler.load_adapter(str(adapters[1]))
        assert len(self.served(vllm_server)) == 2
        assert chi_squared(ids_of(draw(sampler, 2000)), exact[1]) > 1e-3
        sampler.close()
        assert self.served(vllm_server) == {"tiny"}

    def test_what_the_server_refuses_is_reported(self, sampler, vllm_server, tmp_path):
        with pytest.raises(EndpointError, match="could not sample: .*maximum"):
            draw(sampler, 1, max_tokens=CONTEXT)
        with pytest.raises(EndpointError, match="could not load adapter="):
            ServerSampler("tiny", vllm_server, str(tmp_path / "nothing"), progress=False)

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
