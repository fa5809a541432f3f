"""The real vLLM, in process: what `test_every_sampler.py` does not test of it."""

import inspect
import json

import pytest
from exact_answers import MESSAGES, PROMPT_IDS, answer_probabilities, chi_squared, draw, ids_of, num_long_and_distinct
from word_llama import CONTEXT, END_IDS, load_reference

from dco_trl.sampling import SampleRequest, SamplingParams, VLLMSampler, make_sampler, request_seed

NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.xdist_group("vllm")]


@pytest.fixture
def base_sampler(vllm_sampler):
    """The shared sampler, without an adapter before and after the test."""
    vllm_sampler.load_adapter(None)
    yield vllm_sampler
    vllm_sampler.load_adapter(None)


class TestWithEngine:
    pytestmark = NEEDS_VLLM

    def test_more_prompt_tokens_than_a_step_takes(self, base_sampler):
        # A prompt split over two steps would take vLLM down on a CPU; see the workaround in VLLMSampler.
        step = base_sampler.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
        prompt = " ".join(["a", "b", "c"] * ((CONTEXT - 4) // 3))
        num_requests = 2 * step // (CONTEXT - 4)
        requests = [SampleRequest(f"{prompt} a", 1, stream=stream) for stream in range(num_requests)]
        drawn = base_sampler.sample(requests, SamplingParams(max_tokens=1))
        assert [len(samples) for samples in drawn] == [1] * num_requests

    def test_the_workaround_for_split_prompts_is_still_needed(self):
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        source = inspect.getsource(GPUModelRunner._bookkeeping_sync)
        assert "gen.set_offset(gen.get_offset() - 4)" in source, "remove enable_chunked_prefill from VLLMSampler"

    def test_restarts_repeat_nothing(self, base_sampler):
        groups = []
        for change in ({}, {"first_index": 256}, {"stream": 1}, {"seed": 1}):
            base_sampler.llm.collective_rpc("seed_draws", args=(0,))  # what a new engine does
            groups.append(draw(base_sampler, 256, max_tokens=40, temperature=1.7, **change))
        assert num_long_and_distinct(groups) > 60

    def test_the_order_of_calls_does_not_change_their_seeds(self, base_sampler, monkeypatch):
        seeds = []
        monkeypatch.setattr(base_sampler.llm, "collective_rpc", lambda method, args: seeds.append((method, *args)))
        for first_index, stream in [(0, 0), (64, 0), (0, 3), (64, 0)]:
            requests = [SampleRequest("a", 2, first_index, stream), SampleRequest("b", 2, 0, stream + 1)]
            base_sampler.sample(requests, SamplingParams(max_tokens=1, seed=5))
        expected = [request_seed(5, stream, index) for index, stream in [(0, 0), (64, 0), (0, 3), (64, 0)]]
        assert seeds == [("seed_draws", seed) for seed in expected]

    def test_each_request_may_have_a_seed_of_its_own(self, base_sampler, monkeypatch):
        monkeypatch.setattr(base_sampler, "seed_each_request", True)
        params = dict(max_tokens=40, temperature=1.7, stream=3)
        whole = ids_of(draw(base_sampler, 384, **params))
        chunks = [draw(base_sampler, 128, first_index=first, **params) for first in (0, 128, 256)]
        assert num_long_and_distinct(chunks) > 30
        # Seeds follow the index, so chunks give what one request gives, except for rounding in other batch shapes.
        assert sum(a == b for a, b in zip(whole, ids_of(sum(chunks, [])), strict=True)) > 300

    def test_a_special_token_stops_as_a_token(self, base_sampler):
        samples = draw(base_sampler, 300, max_tokens=12, stop=("<pad>", "e d"))
        assert all(0 not in s.token_ids[:-1] and "e d" not in s.text for s in samples)
        stopped = [s for s in samples if s.token_ids[-1] == 0]
        assert stopped and {s.finish_reason for s in stopped} == {"stop"}

    def test_an_adapters_own_tokenizer_renders_and_ends(self, base_sampler, checkpoint, adapters, trained_folder):
        request = SampleRequest(MESSAGES, 2000, adapter=str(trained_folder))
        [samples] = base_sampler.sample([request], SamplingParams(max_tokens=2))
        exact = answer_probabilities(load_reference(checkpoint, adapters[0]), [10, 5, 6], (11, *END_IDS), 2)
        assert chi_squared(ids_of(samples), exact) > 1e-3

    def test_more_samples_than_one_request_may_hold(self, base_sampler, monkeypatch):
        monkeypatch.setattr(base_sampler, "seed_each_request", True)
        whole = ids_of(draw(base_sampler, 50, max_tokens=20))
        monkeypatch.setattr("dco_trl.sampling.vllm_sampler.MAX_SEQUENCES_PER_REQUEST", 16)
        parts = ids_of(draw(base_sampler, 50, max_tokens=20))
        assert sum(a == b for a, b in zip(whole, parts, strict=True)) > 40

    def test_the_model_alone_still_needs_a_call_of_its_own(self, base_sampler, adapters):
        """A greedy request without an adapter, alone and in one call of vLLM with requests that have one."""
        from vllm import SamplingParams as VLLMSamplingParams

        greedy = VLLMSamplingParams(temperature=0, max_tokens=12)
        prompts = [{"prompt_token_ids": PROMPT_IDS}] * 3
        loras = [None, *(base_sampler._load(str(adapter)) for adapter in adapters)]
        texts = [
            [output.outputs[0].token_ids for output in base_sampler.llm.generate(prompts[:n], greedy, **kwargs)]
            for n, kwargs in ((1, {"use_tqdm": False}), (3, {"use_tqdm": False, "lora_request": loras}))
        ]
        assert texts[0][0] != texts[1][0], "let VLLMSampler.sample draw everything in one call"

    def test_an_adapter_overwritten_in_place_is_read_anew(self, base_sampler, checkpoint, adapters, tmp_path):
        folder = tmp_path / "moving"
        for adapter in adapters:
            folder.mkdir(exist_ok=True)
            for file in adapter.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
            base_sampler.load_adapter(str(folder))
            exact = answer_probabilities(load_reference(checkpoint, folder), PROMPT_IDS, END_IDS, 2)
            assert chi_squared(ids_of(draw(base_sampler, 1000)), exact) > 1e-3

    def test_reloaded_weights_are_the_ones_sampled(self, base_sampler, checkpoint, other_checkpoint):
        other = answer_probabilities(load_reference(other_checkpoint), PROMPT_IDS, END_IDS, 2)
        base_sampler.reload_weights(str(other_checkpoint))
        try:
            ids = ids_of(draw(base_sampler, 1000))
            assert base_sampler.identity()["model"] == str(other_checkpoint)
            assert chi_squared(ids, other) > 1e-3
        finally:
            base_sampler.reload_weights(str(checkpoint))
        assert chi_squared(ids_of(draw(base_sampler, 1000)), other) < 1e-6

    def test_prompts_cached_under_other_weights_are_refused(self, base_sampler, checkpoint, monkeypatch):
        monkeypatch.setattr(base_sampler.llm, "reset_prefix_cache", lambda: False)
        with pytest.raises(RuntimeError, match="kept its prefix cache over the change of weights.*Start a new engine"):
            base_sampler.reload_weights(str(checkpoint))

    def test_the_identity_names_model_options_and_versions(self, base_sampler, checkpoint):
        import vllm

        identity = base_sampler.identity()
        # The fixture's options of memory and speed do not change the distribution, and dtype has its own entry.
        assert identity["engine_kwargs"] == {"generation_config": "auto"}
        assert identity["dtype"] == "torch.float32"
        assert identity["sampler"] == "vllm"
        assert identity["model"] == str(checkpoint)
        assert identity["vllm_version"] == vllm.__version__
        assert json.loads(json.dumps(identity)) == identity

    def test_a_prompt_without_room_is_refused(self, base_sampler):
        with pytest.raises(ValueError, match=r"prompt of 3 tokens and max_tokens=94 make 97 tokens.*Raise max_model"):
            draw(base_sampler, 1, max_tokens=94)

    def test_an_adapter_of_too_large_a_rank_is_refused(self, base_sampler, tmp_path):
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "rank_pattern": {"q_proj": 12}}')
        told = r"rank 12, more than the max_lora_rank=8.*Set the option max_lora_rank=16"
        with pytest.raises(ValueError, match=told):
            base_sampler.load_adapter(str(tmp_path))

    def test_an_adapter_that_vllm_refuses_leaves_the_engine_as_it_was(self, base_sampler, trained_folder, monkeypatch):
        monkeypatch.setattr(base_sampler, "seed_each_request", True)
        before = draw(base_sampler, 5)
        (trained_folder / "adapter_model.safetensors").write_bytes(b"not tensors")
        with pytest.raises(ValueError, match=r"vLLM could not load adapter=.*merge_and_unload"):
            base_sampler.load_adapter(str(trained_folder))
        assert base_sampler.identity()["adapter"] == ""
        assert draw(base_sampler, 5) == before

    def test_without_room_for_adapters_none_is_loaded(self, base_sampler, adapters, monkeypatch):
        monkeypatch.setattr(base_sampler, "_lora_enabled", False)
        told = "the engine was started without adapters. Start it with the options enable_lora=True"
        with pytest.raises(ValueError, match=told):
            base_sampler.load_adapter(str(adapters[0]))


class TestStarting:
    pytestmark = NEEDS_VLLM

    def test_a_model_that_cannot_be_loaded_is_reported_with_what_to_do(self, vllm_environment, tmp_path):
        with pytest.raises(ValueError, match=r"vLLM could not start with model=.*lower max_model_len"):
            VLLMSampler(str(tmp_path / "nothing"))

    def test_options_are_checked_before_the_engine_starts(self, vllm_environment):
        told = "vllm.LLM does not know the option 'max_modellen'. Did you mean 'max_model_len'?"
        with pytest.raises(ValueError, match=told):
            VLLMSampler("nothing", max_modellen=3)
        with pytest.raises(ValueError, match="worker_extension_cls is what seeds the engine.*seed_each_request=True"):
            VLLMSampler("nothing", worker_extension_cls="some.Worker")

    def test_an_engine_in_this_process_is_not_seeded(self, vllm_environment, tmp_path, monkeypatch):
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # If it were seeded, the worker extension would be refused before the missing model.
        with pytest.raises(ValueError, match="vLLM could not start"):
            VLLMSampler(str(tmp_path / "nothing"), worker_extension_cls="some.Worker")


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "is not a LoRA adapter folder: it has no adapter_config.json. Give the folder that"),
        ({"peft_type": "PROMPT_TUNING"}, "is of type PROMPT_TUNING, and vLLM loads LoRA only"),
        ({"peft_type": "LORA", "r": 1024}, "has rank 1024, and vLLM loads ranks up to 512. Merge it into the model"),
        (
            {"peft_type": "LORA", "r": 4, "modules_to_save": ["embed_tokens", "lm_head"]},
            r"has whole modules of its own \(embed_tokens, lm_head\).*which vLLM cannot load. Merge it",
        ),
    ],
)
def test_an_adapter_is_checked_before_the_engine_starts(config, message, tmp_path):
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        make_sampler("vllm", "model", adapter=str(tmp_path))
