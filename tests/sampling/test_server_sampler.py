"""ServerSampler: what it sends, what it makes of the answers, and what only a real server shows."""

import asyncio
import json
import urllib.request

import pytest
from exact_answers import MESSAGES, MESSAGES_IDS, PROMPT, draw, ids_of
from word_llama import CONTEXT, END_IDS, make_word_tokenizer

from dco_trl.sampling import EndpointError, SampleRequest, SamplingParams, ServerSampler, request_seed
from dco_trl.sampling.fingerprint import folder_fingerprint
from dco_trl.sampling.openai_interface import request_body
from dco_trl.sampling.protocol import settle
from dco_trl.sampling.tokens import Codec

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def sample(endpoint, *requests, options=None, **params):
    """What is sent to the endpoint for these requests, one after another."""
    endpoint.sampler(concurrency=1, **(options or {})).sample(requests, SamplingParams(**{"max_tokens": 2, **params}))
    return [body for body in endpoint.bodies if "model" in body]


class TestRequests:
    def test_an_unknown_endpoint_gets_openais_parameters_only_one_sample_per_request(self, endpoint):
        request = SampleRequest(PROMPT, 5, first_index=10, stream=2)
        params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=2, stop=("x",), seed=3)
        [samples] = endpoint.sampler().sample([request], params)
        assert [s.text for s in samples] == [str(request_seed(3, 2, 10 + i)) for i in range(5)]
        assert all((s.token_ids, s.num_tokens, s.finish_reason) == (None, 7, "stop") for s in samples)
        sent = {"path": "/v1/completions", "model": "small", "prompt": PROMPT, "n": 1, "stop": ["x"], "max_tokens": 2}
        sent |= {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        assert [body | {"seed": None} for body in endpoint.bodies] == [sent | {"seed": None}] * 5

    def test_a_vllm_server_gets_everything_and_several_samples_a_request(self, vllm_like):
        samples = draw(vllm_like.sampler(samples_per_request=4), 10, stream=2, top_k=5)
        assert [s.text for s in samples] == [str(request_seed(0, 2, i)) for i in range(10)]
        assert {(s.token_ids, s.num_tokens) for s in samples} == {((5, 6, 1), 3)}
        starts = sorted((b["seed"] - request_seed(0, 2, 0), b["n"]) for b in vllm_like.bodies)
        assert starts == [(0, 4), (4, 4), (8, 2)]
        sent = {"top_k": 5, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True, "temperature": 1.0}
        assert all(sent.items() <= body.items() for body in vllm_like.bodies)

    def test_greedy_samples_are_asked_for_once(self, vllm_like):
        assert len(draw(vllm_like.sampler(), 100, temperature=0)) == 100
        assert [(body["n"], body["temperature"]) for body in vllm_like.bodies] == [(1, 0)]

    def test_messages_go_to_the_chat_interface(self, endpoint):
        [sample] = draw(endpoint.sampler(), 1, prompt=MESSAGES)
        assert (sample.text, sample.num_tokens) == (str(request_seed(0, 0, 0)), 7)
        assert (endpoint.bodies[0]["path"], endpoint.bodies[0]["messages"]) == ("/v1/chat/completions", MESSAGES)

    def test_with_a_tokenizer_prompts_are_rendered_here_and_tokens_decoded_here(self, vllm_like, checkpoint):
        [sample] = draw(vllm_like.sampler(tokenizer=str(checkpoint)), 1, prompt=MESSAGES)
        [body] = vllm_like.bodies
        assert (body["path"], body["prompt"]) == ("/v1/completions", MESSAGES_IDS)
        assert body["stop_token_ids"] == list(END_IDS)
        assert (sample.text, sample.finish_reason) == (" a b", "stop")

    def test_an_adapters_own_tokenizer_renders_its_prompts(self, vllm_like, adapters, trained_folder):
        vllm_like.answers["/v1/load_lora_adapter"] = (200, {})
        folders = (str(trained_folder), str(adapters[0]), "")
        requests = [SampleRequest(MESSAGES, 1, adapter=folder) for folder in folders]
        own, *others = sample(vllm_like, *requests, stop=("<pad>", "c"))
        assert (own["prompt"], own["stop_token_ids"], own["stop"]) == ([10, 5, 6], [11, 0], ["c"])
        assert all(body["messages"] == MESSAGES and body["stop"] == ["<pad>", "c"] for body in others)

    def test_what_the_chat_template_is_given(self, vllm_like, endpoint, checkpoint):
        request = SampleRequest(MESSAGES, 1, template_kwargs={"tools": TOOLS, "enable_thinking": False})
        sent = {"tools": TOOLS, "tool_choice": "none", "chat_template_kwargs": {"enable_thinking": False}}
        assert sent.items() <= sample(vllm_like, request)[0].items()
        with pytest.raises(
            ValueError, match=r"prompt comes with arguments .* \(tools, enable_thinking\).*Set .* option tokenizer"
        ):
            sample(endpoint, request)
        [body] = sample(endpoint, request, options={"tokenizer": str(checkpoint)})
        assert body["prompt"] == [11, *MESSAGES_IDS]

    def test_an_endpoint_that_wants_max_completion_tokens_gets_them(self, endpoint):
        refusal = b'{"error": {"message": "Unsupported parameter: \'max_tokens\'. Use \'max_completion_tokens\'."}}'
        endpoint.script = [(400, [], refusal)]
        bodies = sample(endpoint, SampleRequest(MESSAGES, 3))
        assert ["max_tokens" in body for body in bodies] == [True, False, False, False]
        assert [body.get("max_completion_tokens") for body in bodies] == [None, 2, 2, 2]

    @pytest.mark.parametrize("has_tokenizer", [False, True])
    def test_token_ids_are_sent_as_they_are(self, vllm_like, checkpoint, has_tokenizer):
        options = {"tokenizer": str(checkpoint)} if has_tokenizer else {}
        [body] = sample(vllm_like, SampleRequest([9, 8], 1), options=options)
        assert (body["path"], body["prompt"]) == ("/v1/completions", [9, 8]) and "messages" not in body

    def test_top_k_is_not_dropped_silently(self, endpoint):
        told = r"top_k=5 is not part of OpenAI's interface.*extra_body=\{'top_k': 5\} \(sampler_kwargs\)"
        with pytest.raises(ValueError, match=told):
            draw(endpoint.sampler(), 1, top_k=5)
        sampler = endpoint.sampler(extra_body={"top_k": 5})
        draw(sampler, 1, top_k=5)
        assert endpoint.bodies[0]["top_k"] == 5
        with pytest.raises(ValueError, match="top_k=0 is not part .* without top_k in extra_body"):
            draw(sampler, 1)
        draw(endpoint.sampler(extra_body={"top_k": 0, "min_p": 0.0}), 1)
        assert (endpoint.bodies[1]["top_k"], endpoint.bodies[1]["min_p"]) == (0, 0.0)

    @pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "stop", "seed", "n", "model", "prompt"])
    def test_extra_fields_do_not_set_what_is_recorded_otherwise(self, endpoint, vllm_like, name):
        with pytest.raises(ValueError, match=f"extra_body sets {name}, which the sampler sends itself.*SamplingParam"):
            endpoint.sampler(extra_body={name: 1})
        with pytest.raises(ValueError, match="extra_body sets top_k, which a vLLM server gets anyway"):
            vllm_like.sampler(extra_body={"top_k": 1})

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

    def test_requests_run_at_the_same_time_and_no_more_than_asked_in_their_order(self, endpoint):
        requests = [SampleRequest("a", 8, stream=s, first_index=s) for s in range(5)]
        groups = endpoint.sampler(concurrency=4).sample(requests, SamplingParams())
        assert 2 <= endpoint.most_in_flight <= 4
        expected = [[request_seed(0, s, s + i) for i in range(8)] for s in range(5)]
        assert [[int(sample.text) for sample in group] for group in groups] == expected

    def test_each_request_asks_for_its_adapter_by_name_at_its_temperature(self, endpoint):
        requests = [
            SampleRequest("a", 1, stream=0, adapter="other", temperature=1.5),
            SampleRequest("a", 1, stream=1, adapter=""),
            SampleRequest("a", 1, stream=2, temperature=0.0),
        ]
        bodies = sample(endpoint, *requests, options={"adapter": "other"}, temperature=0.7)
        sent = [(body["model"], body["temperature"]) for body in bodies]
        assert sent == [("other", 1.5), ("small", 0.7), ("other", 0.0)]

    def test_a_folder_that_is_served_under_its_name_is_not_loaded(self, endpoint, adapters):
        served, unknown = map(str, adapters)
        endpoint.served.append(served)
        assert sample(endpoint, SampleRequest("a", 1, adapter=served))[0]["model"] == served
        with pytest.raises(EndpointError, match="is not among the models that .* adapters can be loaded into vLLM"):
            sample(endpoint, SampleRequest("a", 1, adapter=unknown))

    def test_an_adapter_is_only_for_servers_that_load_it(self, endpoint, vllm_like, adapters):
        with pytest.raises(EndpointError, match="adapters can be loaded into vLLM servers only"):
            endpoint.sampler(adapter=str(adapters[0]))
        with pytest.raises(EndpointError, match="Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA"):
            vllm_like.sampler(adapter=str(adapters[0]))

    def test_another_adapter_is_loaded_after_one_that_the_server_kept(self, vllm_like, adapters):
        vllm_like.answers = {"/v1/load_lora_adapter": (200, {}), "/v1/unload_lora_adapter": (500, {"error": "busy"})}
        sampler = vllm_like.sampler(adapter=str(adapters[0]))
        with pytest.raises(EndpointError, match="could not unload adapter=.*'busy'"):
            sampler.load_adapter(str(adapters[1]))
        assert sampler.adapter_name is None
        sampler.load_adapter(str(adapters[1]))
        loaded = [body["lora_path"] for body in vllm_like.bodies if body["path"] == "/v1/load_lora_adapter"]
        assert loaded == [str(adapter) for adapter in adapters] and sampler.adapter_name.startswith("dco-")

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"base_url": "127.0.0.1:8000/v1"}, "must be an http:// or https:// address"),
            ({"base_url": "ftp://host/v1"}, "`base_url` must be an http.*, got 'ftp://host/v1'"),
            (
                {"base_url": "http://host/v1?key=SECRET"},
                "`base_url` must be .* without a query.*, got 'http://host/v1'",
            ),
            ({"base_url": "http://host:port/v1"}, "`base_url` is not an address .*such as http://127.0.0.1:8000/v1"),
            ({"concurrency": 0}, "`concurrency` must be an integer of at least 1, got 0"),
            ({"samples_per_request": "many"}, "`samples_per_request` must be .* got 'many'"),
            ({"max_retries": -1}, "`max_retries` must be an integer of at least 0, got -1"),
            ({"max_retries": "3"}, "`max_retries` must be an integer of at least 0, got '3'"),
            ({"timeout": 0}, "`timeout` must be a number of seconds above 0, got 0"),
            ({"timeout": "30"}, "`timeout` must be a number of seconds above 0, got '30'"),
            ({"api_key": "SECRET\n"}, "api_key holds a character that no HTTP header can carry"),
        ],
    )
    def test_values_out_of_range_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message) as caught:
            ServerSampler("small", **{"base_url": "http://127.0.0.1:9/v1", **options})
        assert "SECRET" not in str(caught.value)

    def test_a_closed_sampler_says_so(self, endpoint):
        sampler = endpoint.sampler()
        sampler.close()
        sampler.close()
        with pytest.raises(RuntimeError, match="This sampler is closed"):
            draw(sampler, 1)


class TestWeights:
    """`tests/trainer/test_cot_server.py` tests what happens to the weights of a real server."""

    @pytest.mark.parametrize("emptied", [{"success": True}, b""])  # vLLM from 0.26 on, and before
    def test_a_vllm_server_is_told_where_they_are_and_to_forget_its_prompts(self, vllm_like, checkpoint, emptied):
        vllm_like.answers = {"/collective_rpc": (200, {"results": [None]}), "/reset_prefix_cache": (200, emptied)}
        sampler = vllm_like.sampler()
        before = sampler.identity()
        sampler.reload_weights(str(checkpoint))
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(checkpoint)}}
        assert vllm_like.bodies == [{"path": "/collective_rpc", **reload}, {"path": "/reset_prefix_cache"}]
        weights = {"weights": str(checkpoint), "weights_fingerprint": folder_fingerprint(checkpoint)}
        assert sampler.identity() == {**before, **weights}
        assert sampler.adapter_name is None

    @pytest.mark.parametrize(
        "answers, message",
        [
            ({}, "could not load weights from 'x': HTTP 404, .* Start the vLLM server with VLLM_SERVER_DEV_MODE=1"),
            (
                {"/collective_rpc": (500, {"error": {"message": "no such folder"}})},
                "'no such folder' .1 attempt.* Can it see that folder",
            ),
            (
                {"/collective_rpc": (200, {}), "/reset_prefix_cache": (200, {"success": False})},
                "could not empty its cache of prompts: it still holds prompts of the old weights, in .* .2 attempts"
                ".. Does another program use it",
            ),
        ],
    )
    def test_a_server_that_does_not_take_them(self, vllm_like, answers, message):
        vllm_like.answers = answers
        sampler = vllm_like.sampler(max_retries=1)
        with pytest.raises(EndpointError, match=message):
            sampler.reload_weights("x")
        assert "weights" not in sampler.identity()

    def test_only_vllm_takes_them(self, endpoint):
        with pytest.raises(EndpointError, match="is not a vLLM server, and only those can load the weights"):
            endpoint.sampler().reload_weights("x")


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
        assert vllm_like.sampler(adapter="other").identity()["adapter"] == "other"

    def test_secrets_are_sent_and_never_shown(self, endpoint):
        address = endpoint.root.replace("http://", "http://user:SECRET@")
        options = {"base_url": address + "/v1", "api_key": "SECRET-KEY", "max_retries": 0}
        sampler = endpoint.sampler(**options)
        assert endpoint.gets == [("/v1/models", "Basic dXNlcjpTRUNSRVQ=")]
        assert sampler.base_url == sampler.identity()["base_url"] == endpoint.root + "/v1"
        endpoint.script = [400, "drop", b"no"]
        told = [sampler.identity()]
        for _ in endpoint.script[:]:
            with pytest.raises(EndpointError) as caught:
                draw(sampler, 1)
            told.append(caught.value)
        with pytest.raises(EndpointError) as caught:
            endpoint.sampler(base_url=address)
        assert "SECRET" not in str([*map(str, told), str(caught.value)])

    def test_a_key_is_sent(self, endpoint, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        endpoint.sampler()
        endpoint.sampler(api_key="one")
        monkeypatch.setenv("OPENAI_API_KEY", "two")
        endpoint.sampler()
        assert [key for _, key in endpoint.gets] == [None, "Bearer one", "Bearer two"]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
class TestWithVLLM:
    """What `test_every_sampler.py` does not test of vLLM's own server."""

    def test_messages_are_rendered_alike_here_and_there(self, vllm_server, checkpoint):
        greedy = dict(prompt=MESSAGES, temperature=0, max_tokens=8)
        there = ServerSampler("tiny", base_url=vllm_server, progress=False)
        here = ServerSampler("tiny", base_url=vllm_server, tokenizer=str(checkpoint), progress=False)
        assert ids_of(draw(here, 1, **greedy)) == ids_of(draw(there, 1, **greedy))
        request = SampleRequest(MESSAGES, 1, template_kwargs={"tools": TOOLS, "hint": "f"})
        params = SamplingParams(max_tokens=2)
        body = request_body(settle([request], params)[0], MESSAGES, None, params, True, {}, vllm_server)
        data = json.dumps({"model": "tiny", **body}).encode()
        http = urllib.request.Request(f"{vllm_server}/chat/completions", data, {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(http))
        expected = Codec(make_word_tokenizer()).prompt_ids(MESSAGES, request.template_kwargs)
        assert expected[:2] == [11, 10] and answer["prompt_token_ids"] == expected

    def test_adapters_are_loaded_over_http_and_unloaded(self, vllm_server, adapters):
        def served():
            return {model["id"] for model in json.load(urllib.request.urlopen(vllm_server + "/models"))["data"]}

        sampler = ServerSampler("tiny", base_url=vllm_server, adapter=str(adapters[0]), progress=False)
        assert len(served()) == 2
        sampler.load_adapter(str(adapters[1]))
        assert len(served()) == 2
        sampler.sample([SampleRequest(PROMPT, 1, adapter=str(adapters[0]))], SamplingParams(max_tokens=2))
        assert len(served()) == 3
        sampler.close()
        assert served() == {"tiny"}

    def test_what_the_server_refuses_is_reported(self, vllm_server, tmp_path):
        with pytest.raises(EndpointError, match="could not sample: .*maximum"):
            draw(ServerSampler("tiny", base_url=vllm_server, progress=False), 1, max_tokens=CONTEXT)
        with pytest.raises(EndpointError, match="could not load adapter="):
            ServerSampler("tiny", base_url=vllm_server, adapter=str(tmp_path / "nothing"), progress=False)

    def test_the_identity_names_endpoint_and_versions(self, vllm_server):
        import vllm

        identity = ServerSampler("tiny", base_url=vllm_server, progress=False).identity()
        assert (identity["base_url"], identity["vllm_version"]) == (vllm_server, vllm.__version__)
