"""Parameters, requests, seeds, tokens and fingerprints: what all samplers share."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast
from trl import apply_chat_template
from word_llama import make_word_tokenizer

from dco_trl.sampling import SampleRequest, SamplingParams, make_sampler, request_seed
from dco_trl.sampling.end_of_sequence import BLANK, CONTENT, END, answer_length, end_token_ids, token_kinds
from dco_trl.sampling.fingerprint import describe_options, folder_fingerprint
from dco_trl.sampling.protocol import Sample, as_asked, settle
from dco_trl.sampling.tokens import Codec, Codecs, Ends, cut_at_stop


class TestSamplingParams:
    @pytest.mark.parametrize(
        "error, values, message",
        [
            (ValueError, {"temperature": -0.1}, r"temperature=-0.1 must be a finite number, at least 0 \(0 is greedy"),
            (ValueError, {"temperature": float("nan")}, "temperature=nan must be a finite number"),
            (ValueError, {"temperature": float("inf")}, "temperature=inf must be a finite number"),
            (ValueError, {"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]; 1 keeps every token"),
            (ValueError, {"top_p": 1.1}, r"top_p=1.1 must be in \(0, 1\]"),
            (ValueError, {"top_k": -1}, "`top_k` must be an integer of at least 0, got -1"),
            (ValueError, {"max_tokens": 0}, "`max_tokens` must be an integer of at least 1, got 0"),
            (ValueError, {"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
            (ValueError, {"max_tokens": 2.5}, "`max_tokens` must be an integer of at least 1, got 2.5"),
            (ValueError, {"seed": "a"}, "`seed` must be an integer of at least 0, got 'a'"),
            (ValueError, {"seed": 2**63}, r"`seed` must be at most 2\^63 - 1, about 9.2e18, got 9223372036854775808"),
            (ValueError, {"stop": ("a", "")}, "holds an empty string, which would end every completion at once"),
            (TypeError, {"temperature": "hot"}, "temperature='hot' must be a number, such as 1.0"),
            (TypeError, {"top_p": None}, "top_p=None must be a number"),
            # One string is not taken for a list of its letters.
            (TypeError, {"stop": "###"}, r"stop='###' must be a tuple of strings; write stop=\('###',\)"),
        ],
    )
    def test_wrong_values_are_refused(self, error, values, message):
        with pytest.raises(error, match=message):
            SamplingParams(**values)

    def test_numpys_numbers_are_numbers_and_can_be_written_down(self):
        params = SamplingParams(temperature=np.float32(0.5), max_tokens=np.int64(7), seed=np.int32(3))
        assert json.loads(json.dumps(asdict(params))) == asdict(SamplingParams(0.5, max_tokens=7, seed=3)) | {
            "stop": []
        }
        assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
        request = SampleRequest("a", np.int64(2), np.int64(1), np.int64(0))
        assert json.dumps([request.num_samples, request.first_index, request.stream]) == "[2, 1, 0]"


class TestSampleRequest:
    @pytest.mark.parametrize(
        "values, message",
        [
            ({"num_samples": 0}, "`num_samples` must be an integer of at least 1, got 0"),
            ({"num_samples": 1, "first_index": -1}, "`first_index` must be an integer of at least 0, got -1"),
            ({"num_samples": 1, "stream": -2}, "`stream` must be an integer of at least 0, got -2"),
            ({"num_samples": 1, "prompt": ""}, "prompt='' is empty: there is nothing to continue"),
            ({"num_samples": 1, "prompt": []}, r"prompt=\[\] is empty"),
            ({"num_samples": 1, "temperature": -1.0}, "temperature=-1.0 must be a finite number, at least 0"),
            ({"num_samples": 1, "temperature": float("nan")}, "temperature=nan must be a finite number"),
        ],
    )
    def test_values_out_of_range_are_refused(self, values, message):
        with pytest.raises(ValueError, match=message):
            SampleRequest(**{"prompt": "a", **values})

    def test_its_adapter_and_temperature_stand_for_the_common_ones(self):
        params = SamplingParams(temperature=0.5, top_k=3)
        assert SampleRequest("a", 1).params(params) is params
        assert SampleRequest("a", 1, temperature=1.5).params(params) == SamplingParams(temperature=1.5, top_k=3)
        requests = [SampleRequest("a", 7), SampleRequest("b", 7, 3, 1, "", 0), SampleRequest("c", 2, adapter="d")]
        settled = settle(requests, params, "x")
        assert [(r.adapter, r.temperature, r.num_samples) for r in settled] == [
            ("x", 0.5, 7),
            ("", 0, 1),
            ("d", 0.5, 2),
        ]
        a, b, *c = [Sample(text, None, 1, "stop") for text in "abcd"]
        assert as_asked([[a] * 7, [b], c], requests) == [[a] * 7, [b] * 7, c]


class TestRequestSeed:
    @given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**5))
    def test_seeds_step_with_the_index(self, seed, stream, index, step):
        assert request_seed(seed, stream, index + step) == request_seed(seed, stream, index) + step
        assert 0 <= request_seed(seed, stream, 0) < 2**31

    @pytest.mark.parametrize("seed, streams, samples", [(0, 500, 4096), (1, 20_000, 64), (2, 3, 2**20)])
    def test_no_two_samples_of_a_run_share_a_seed(self, seed, streams, samples):
        starts = np.array([request_seed(seed, stream, 0) for stream in range(streams)])
        starts.sort()
        gaps = np.diff(np.append(starts, starts[0] + 2**31))
        assert gaps.min() >= samples
        assert gaps.min() >= 0.38 * 2**31 / streams

    def test_runs_with_neighbouring_seeds_are_far_apart(self):
        assert np.diff(sorted(request_seed(seed, 0, 0) for seed in range(100))).min() > 4096


class TestTokens:
    @pytest.fixture
    def codec(self):
        return Codec(make_word_tokenizer(), GenerationConfig(eos_token_id=[4, 1]))

    def test_a_string_is_tokenized_as_it_is(self, codec):
        assert codec.prompt_ids("a b c") == [5, 6, 7]

    def test_messages_are_rendered_as_trl_renders_them(self, codec):
        messages = [{"role": "user", "content": "a b"}]
        rendered = apply_chat_template({"prompt": messages}, codec.tokenizer)["prompt"]
        assert rendered == "<user> a b <end> <user>"
        assert codec.prompt_ids(messages) == codec.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def test_messages_without_a_template_are_refused(self, codec):
        codec.tokenizer.chat_template = None
        with pytest.raises(ValueError, match="has no chat template.*Give plain text prompts"):
            codec.prompt_ids([{"role": "user", "content": "a"}])

    def test_a_prompt_without_tokens_is_refused(self, codec):
        with pytest.raises(ValueError, match=r"prompt=' ' has no tokens under the tokenizer of .* Remove it"):
            codec.prompt_ids(" ")

    def test_a_text_without_tokens_does_not_tell_how_many_are_appended(self, codec):
        around = TemplateProcessing(single="<user> $A <eos>", special_tokens=[("<user>", 3), ("<eos>", 1)])
        codec.tokenizer.backend_tokenizer.post_processor = around
        assert [codec.prompt_ids(text) for text in (" ", "a b c")] == [[3], [3, 5, 6, 7]]

    def test_the_end_of_sequence_is_the_tokenizers_and_the_generation_configs(self):
        tokenizer = make_word_tokenizer()
        assert end_token_ids(tokenizer) == (1,)
        assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=[4, 1])) == (1, 4)
        assert end_token_ids(tokenizer, {"eos_token_id": 7}) == (1, 7)
        assert end_token_ids(tokenizer, {}) == (1,)
        tokenizer.eos_token = None
        assert end_token_ids(tokenizer, {"eos_token_id": 7}) == (7,)
        with pytest.raises(ValueError, match="no eos_token and the generation config names none"):
            end_token_ids(tokenizer)

    def test_an_answer_ends_at_the_first_end_with_nothing_but_blanks_behind_it(self):
        tokenizer = make_word_tokenizer()
        kinds = token_kinds(tokenizer, {"eos_token_id": [4, 99]})
        assert kinds[[0, 1, 4, 5, 99]].tolist() == [BLANK, END, END, CONTENT, END] and len(kinds) == 101
        table = {(5, 1): 2, (5, 4, 0, 1): 2, (5, 1, 6, 1): 4, (5, 0): None, (5, 1, 6): None, (1,): 1, (): None}
        table |= {(500, 99): 2}
        assert {ids: answer_length(kinds, ids) for ids in table} == table
        assert not (token_kinds(PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)) == END).any()

    def test_context_is_counted_to_the_last_token(self, codec):
        codecs = Codecs(codec.tokenizer, {})
        requests = [SampleRequest("a", 1), SampleRequest("a b c d", 1, stream=7)]
        assert codecs.encode(requests, 6, 10, "") == [[5], [5, 6, 7, 8]]
        assert codecs.encode(requests, 1000, None, "") == [[5], [5, 6, 7, 8]]
        told = r"make 11 tokens, .* 10 of the context. Do this. .* \(stream 7\) .*'a b c d'"
        with pytest.raises(ValueError, match=told):
            codecs.encode(requests, 7, 10, "Do this.")
        assert Codecs(None).encode(requests, 7, 10, "") == ["a", "a b c d"]

    def test_text_is_cut_at_the_first_stop_string(self):
        assert cut_at_stop("one two three", ["three", "two"]) == ("one ", True)
        assert cut_at_stop("one two", ["four"]) == ("one two", False)
        assert cut_at_stop("one two", []) == ("one two", False)
        assert cut_at_stop("", ["x"]) == ("", False)

    def test_samples_have_no_special_tokens_and_no_end_even_if_it_is_an_ordinary_word(self, codec):
        completions = [(5, 0, 6, 4), (5, 6, 1), (5, 6), (4,), ()]
        samples = codec.samples([[7]] * 5, completions, codec.ends(()))
        # The tokenizer puts a space between words: the first belongs to the completion.
        assert [s.text for s in samples] == [" a b", " a b", " a b", "", ""]
        assert [s.finish_reason for s in samples] == ["stop", "stop", "length", "stop", "length"]
        assert [s.token_ids for s in samples] == completions
        assert [s.num_tokens for s in samples] == [4, 3, 2, 1, 0]

    def test_a_stop_string_makes_the_reason_stop(self, codec):
        [sample] = codec.samples([[7]], [(5, 6, 7)], codec.ends(("b",)))
        assert (sample.text, sample.finish_reason, sample.num_tokens) == (" a ", "stop", 3)

    def test_a_special_token_stops_as_a_token(self, codec):
        assert codec.ends(("<pad>", "b")) == Ends((1, 4, 0), ("b",))
        [sample] = codec.samples([[7]], [(5, 0)], codec.ends(("<pad>",)))
        assert (sample.text, sample.finish_reason) == (" a", "stop")
        with pytest.raises(ValueError, match=r"stop='<pad> b' holds the special token '<pad>'.*Stop at '<pad>' alone"):
            codec.ends(("<pad> b",))


class TestFingerprint:
    def test_it_follows_the_content_and_not_the_place(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(b"\0" * 1000)
            for written_elsewhere in ("notes.md", "training_args.bin", "trainer_state.json"):
                (tmp_path / name / written_elsewhere).write_text(name)
            config = {"r": 8, "base_model_name_or_path": name}
            (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        one, two = (folder_fingerprint(tmp_path / name) for name in ("one", "two"))
        assert one == two
        (tmp_path / "two" / "model.safetensors").write_bytes(b"\0" * 999 + b"\1")
        assert folder_fingerprint(tmp_path / "two") != one
        (tmp_path / "two" / "model.safetensors").write_bytes(b"\0" * 1000)
        (tmp_path / "two" / "adapter_config.json").write_text('{"r": 16}')
        assert folder_fingerprint(tmp_path / "two") != one
        for damaged in ("{damaged", "[]", "[" * 100_000, "3"):
            (tmp_path / "two" / "adapter_config.json").write_text(damaged)
            assert folder_fingerprint(tmp_path / "two") != one

    def test_large_files_are_probed_from_end_to_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr("dco_trl.sampling.fingerprint._WHOLE", 1000)
        monkeypatch.setattr("dco_trl.sampling.fingerprint._PROBE_SIZE", 10)
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"\0" * 100_000)
        seen = {folder_fingerprint(tmp_path)}
        for content in (b"\1" + b"\0" * 99_999, b"\0" * 99_999 + b"\1", b"\2" * 100_000, b"\0" * 100_001):
            path.write_bytes(content)
            seen.add(folder_fingerprint(tmp_path))
        assert len(seen) == 5

    def test_options_that_may_change_the_distribution_are_described(self):
        assert describe_options("options", {"a": 1, "b": None}, {"a"}) == {}
        options = {"b": {"y": 1, "x": 2}, "a": 1, "quantization": np.float32}
        assert describe_options("options", {"a": 2}) == {"options": {"a": 2}}
        assert describe_options("options", options, {"a"}) == describe_options("options", options | {"a": 5}, {"a"})
        assert describe_options("options", {"c": GenerationConfig(top_k=3)})["options"]["c"]["top_k"] == 3


ADDRESS = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("vlm", {}, "sampler='vlm' is not known. Choose one of: transformers, vllm, server."),
        ("server", {}, "`base_url` is missing: the sampler 'server' needs"),
        (
            "server",
            {"base_url": ADDRESS, "revision": "r"},
            "`revision` 'r' cannot be .* already loaded its model. Start",
        ),
        ("vllm", {"base_url": ADDRESS}, f"`base_url` '{ADDRESS}' has no meaning for the sampler 'vllm'"),
        ("transformers", {"base_url": ADDRESS}, "has no meaning for the sampler 'transformers'"),
        (
            "server",
            {"sampler_kwargs": {"base_url": ADDRESS, "max_retries": 0}},
            f"endpoint at {ADDRESS} could not list",
        ),
        ("server", {"base_url": ADDRESS, "sampler_kwargs": {"concurency": 3}}, "Did you mean 'concurrency'?"),
        (
            "server",
            {"base_url": ADDRESS, "sampler_kwargs": {"timeout": 0}},
            "`sampler_kwargs` has the option `timeout`, which must be a number of seconds above 0, got 0",
        ),
        (
            "server",
            {"base_url": ADDRESS, "sampler_kwargs": {"zzz": 3}},
            "ServerSampler does not know the option 'zzz'. It has: adapter, api_key, base_url, concurr",
        ),
        (
            "transformers",
            {"adapter": "a", "sampler_kwargs": {"progress": 1, "adapter": "b"}},
            "sampler_kwargs repeats adapter, progress, .* Give it once",
        ),
        (
            "transformers",
            {"sampler_kwargs": {"bach_size": 3}},
            "cannot be loaded with dtype, bach_size.*own options are batch_size",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(checkpoint, name, options, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(name, str(checkpoint), **options)


def test_the_transformers_sampler_is_made_from_names(checkpoint, adapters):
    options = {"batch_size": np.int64(8)}
    sampler = make_sampler("transformers", str(checkpoint), adapter=str(adapters[0]), sampler_kwargs=options)
    assert (sampler.identity()["adapter"], sampler.batch_size) == (str(adapters[0]), 8)
