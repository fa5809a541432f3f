"""The real vLLM, in process."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from exact_answers import answer_probabilities, chi_squared
from word_llama import CONTEXT, END_IDS, load_reference, make_word_tokenizer

from dco_trl.sampling import SampleRequest, SamplingParams, VLLMSampler, make_sampler, request_seed
from dco_trl.sampling.factory import check_sampler_kwargs

NEEDS_VLLM = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.xdist_group("vllm")]
PROMPT, PROMPT_IDS = "a b c", [5, 6, 7]


@pytest.fixture
def base_sampler(vllm_sampler):
    """The shared sampler without an adapter, before and after."""
    vllm_sampler.load_adapter(None)
    yield vllm_sampler
    vllm_sampler.load_adapter(None)


def draw(sampler, n, *, prompt=PROMPT, first_index=0, stream=0, **params):
    params = SamplingParams(**{"max_tokens": 2, **params})
    [samples] = sampler.sample([SampleRequest(prompt, n, first_index, stream)], params)
    assert len(samples) == n
    return samples


def ids_of(samples):
    return [sample.token_ids for sample in samples]


class TestWithEngine:
    pytestmark = NEEDS_VLLM

    @pytest.mark.parametrize("temperature, other", [(1.0, 1.7), (1.7, 1.0)])
    def test_samples_follow_the_exact_distribution(self, base_sampler, checkpoint, temperature, other):
        model = load_reference(checkpoint)
        ids = ids_of(draw(base_sampler, 3000, temperature=temperature, seed=11))
        exact = {t: answer_probabilities(model, PROMPT_IDS, END_IDS, 2, temperature=t) for t in (temperature, other)}
        assert chi_squared(ids, exact[temperature]) > 1e-3
        # The test can tell: the other temperature's distribution is refused.
        assert chi_squared(ids, exact[other]) < 1e-6

    @pytest.mark.parametrize("top_k, top_p", [(3, 1.0), (0, 0.6), (5, 0.8)])
    def test_restricted_samples_keep_to_the_support_and_follow_it(self, base_sampler, checkpoint, top_k, top_p):
        exact = answer_probabilities(load_reference(checkpoint), PROMPT_IDS, END_IDS, 2, top_k=top_k, top_p=top_p)
        ids = ids_of(draw(base_sampler, 1000, top_k=top_k, top_p=top_p))
        assert set(ids) <= set(exact)
        assert chi_squared(ids, exact) > 1e-3

    def test_more_prompt_tokens_than_a_step_takes(self, base_sampler):
        # A prompt split over two steps would take vLLM down on a CPU; see the workaround in VLLMSampler.
        step = base_sampler.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
        prompt = " ".join(["a", "b", "c"] * ((CONTEXT - 4) // 3))
        num_requests = 2 * step // (CONTEXT - 4)
        requests = [SampleRequest(f"{prompt} a", 1, stream=stream) for stream in range(num_requests)]
        drawn = base_sampler.sample(requests, SamplingParams(max_tokens=1))
        assert [len(samples) for samples in drawn] == [1] * num_requests

    def test_the_workaround_for_split_prompts_is_still_needed(self):
        import inspect

        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        source = inspect.getsource(GPUModelRunner._bookkeeping_sync)
        assert "gen.set_offset(gen.get_offset() - 4)" in source, "remove enable_chunked_prefill from VLLMSampler"

    def test_greedy_takes_the_most_probable_tokens_whatever_the_generation_config_says(self, base_sampler, checkpoint):
        model = load_reference(checkpoint)
        [ids] = set(ids_of(draw(base_sampler, 3, temperature=0, max_tokens=12)))
        context = list(PROMPT_IDS)
        for token in ids:
            [best] = answer_probabilities(model, context, END_IDS, 1, top_k=1)
            assert (token,) == best
            context.append(token)

    def test_calls_and_restarts_repeat_nothing(self, base_sampler):
        groups = []
        for change in ({}, {"first_index": 256}, {"stream": 1}, {"seed": 1}):
            base_sampler.llm.collective_rpc("seed_draws", args=(0,))  # what a new engine does
            groups.append(ids_of(draw(base_sampler, 256, max_tokens=40, temperature=1.7, **change)))
        long = [ids for group in groups for ids in group if len(ids) > 8]  # short ones coincide by chance
        assert len(long) > 60
        assert max(Counter(long).values()) == 1

    def test_calls_coincide_no_more_often_than_independent_draws(self, base_sampler, checkpoint):
        exact = answer_probabilities(load_reference(checkpoint), PROMPT_IDS, END_IDS, 2)
        p = sum(q * q for q in exact.values())
        first, second = (ids_of(draw(base_sampler, 3000, first_index=at)) for at in (0, 3000))
        coincident = sum(a == b for a, b in zip(first, second, strict=True))
        assert abs(coincident - 3000 * p) < 4 * np.sqrt(3000 * p * (1 - p))

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
        chunks = [ids_of(draw(base_sampler, 128, first_index=first, **params)) for first in (0, 128, 256)]
        long = [ids for chunk in chunks for ids in chunk if len(ids) > 8]
        assert len(long) > 30
        assert max(Counter(long).values()) == 1
        # Seeds follow the index, so chunks give (but for rounding in other batch shapes) what one request gives.
        assert sum(a == b for a, b in zip(whole, sum(chunks, []), strict=True)) > 300

    def test_both_ends_of_sequence_end_a_completion(self, base_sampler):
        samples = draw(base_sampler, 300, max_tokens=6)
        ended = [s for s in samples if s.token_ids[-1] in END_IDS]
        assert {s.token_ids[-1] for s in ended} == set(END_IDS)
        assert all(token not in END_IDS for s in samples for token in s.token_ids[:-1])
        assert {s.finish_reason for s in ended} == {"stop"}
        cut = [s for s in samples if s.token_ids[-1] not in END_IDS]
        assert cut and {(s.finish_reason, s.num_tokens) for s in cut} == {("length", 6)}
        assert not any("<eos>" in s.text or "<end>" in s.text for s in ended)

    def test_stop_strings_end_a_completion_and_are_left_out(self, base_sampler):
        samples = draw(base_sampler, 300, max_tokens=12, stop=("e", "d a"))
        assert not any("e" in s.text or "d a" in s.text for s in samples)
        stopped = [s for s in samples if s.token_ids[-1] == 9]
        assert stopped and {s.finish_reason for s in stopped} == {"stop"}
        assert all(9 not in s.token_ids[:-1] for s in samples)

    def test_a_special_token_stops_as_a_token(self, base_sampler):
        samples = draw(base_sampler, 300, max_tokens=12, stop=("<pad>", "e d"))
        assert all(0 not in s.token_ids[:-1] and "e d" not in s.text for s in samples)
        stopped = [s for s in samples if s.token_ids[-1] == 0]
        assert stopped and {s.finish_reason for s in stopped} == {"stop"}

    def test_an_adapters_own_tokenizer_renders_and_ends(self, base_sampler, checkpoint, adapters, tmp_path):
        folder = shutil.copytree(adapters[0], tmp_path / "trained")
        tokenizer = make_word_tokenizer()
        tokenizer.eos_token, tokenizer.chat_template = "g", "f {{ messages[0].content }}"
        tokenizer.save_pretrained(folder)
        request = SampleRequest([{"role": "user", "content": "a b"}], 2000, adapter=str(folder))
        [samples] = base_sampler.sample([request], SamplingParams(max_tokens=2))
        exact = answer_probabilities(load_reference(checkpoint, adapters[0]), [10, 5, 6], (11, *END_IDS), 2)
        assert chi_squared(ids_of(samples), exact) > 1e-3
        for sample in samples[:100]:
            body = sample.token_ids[:-1] if sample.finish_reason == "stop" else sample.token_ids
            whole = tokenizer.decode([10, 5, 6, *body], skip_special_tokens=True)
            assert whole == tokenizer.decode([10, 5, 6]) + sample.text

    def test_messages_are_rendered_with_the_chat_template(self, base_sampler, checkpoint):
        # <user> a b <end> <user>
        exact = answer_probabilities(load_reference(checkpoint), [3, 5, 6, 4, 3], END_IDS, 2)
        ids = ids_of(draw(base_sampler, 1000, prompt=[{"role": "user", "content": "a b"}]))
        assert chi_squared(ids, exact) > 1e-3

    def test_token_ids_are_continued_as_they_are(self, base_sampler, checkpoint):
        exact = answer_probabilities(load_reference(checkpoint), [11], END_IDS, 3)
        assert chi_squared(ids_of(draw(base_sampler, 5000, prompt=[11], max_tokens=3)), exact) > 1e-3

    def test_requests_keep_their_order_and_counts(self, base_sampler):
        requests = [SampleRequest("a", 3), SampleRequest("a b c d e f g", 1), SampleRequest("b", 5)]
        groups = base_sampler.sample(requests, SamplingParams(temperature=0, max_tokens=4))
        assert [len(group) for group in groups] == [3, 1, 5]
        alone = [base_sampler.sample([r], SamplingParams(temperature=0, max_tokens=4))[0] for r in requests]
        assert groups == alone

    def test_more_samples_than_one_request_may_hold(self, base_sampler, monkeypatch):
        monkeypatch.setattr(base_sampler, "seed_each_request", True)
        whole = ids_of(draw(base_sampler, 50, max_tokens=20))
        monkeypatch.setattr("dco_trl.sampling.vllm_sampler.MAX_SEQUENCES_PER_REQUEST", 16)
        parts = ids_of(draw(base_sampler, 50, max_tokens=20))
        assert sum(a == b for a, b in zip(whole, parts, strict=True)) > 40

    def test_adapters_change_the_distribution_to_their_own(self, base_sampler, checkpoint, adapters):
        exact = [answer_probabilities(load_reference(checkpoint, a), PROMPT_IDS, END_IDS, 2) for a in adapters]
        for mine, adapter in enumerate(adapters):
            base_sampler.load_adapter(str(adapter))
            assert base_sampler.identity()["adapter"] == str(adapter)
            ids = ids_of(draw(base_sampler, 2000))
            assert chi_squared(ids, exact[mine]) > 1e-3
            assert chi_squared(ids, exact[1 - mine]) < 1e-6

    def test_each_request_has_its_adapter_and_its_temperature(self, base_sampler, checkpoint, adapters):
        own = [("", 1.0), (str(adapters[0]), 1.0), (str(adapters[1]), 1.7), (None, None), (str(adapters[0]), 1.7)]
        requests = [SampleRequest(PROMPT, 2000, 0, s, adapter, t) for s, (adapter, t) in enumerate(own)]
        groups = base_sampler.sample(requests, SamplingParams(max_tokens=2))
        exact = [
            answer_probabilities(load_reference(checkpoint, a or None), PROMPT_IDS, END_IDS, 2, temperature=t or 1.0)
            for a, t in own
        ]
        kind = [0, 1, 2, 0, 4]
        for i, samples in enumerate(groups):
            assert len(samples) == 2000
            for j in range(5):
                assert (chi_squared(ids_of(samples), exact[j]) > 1e-3) == (kind[i] == kind[j]), (i, j)
        assert base_sampler.identity()["adapter"] == ""

    def test_the_model_alone_still_needs_a_call_of_its_own(self, base_sampler, adapters):
        """A greedy request without an adapter, alone and in one call of vLLM with one that has an adapter."""
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
        base = answer_probabilities(load_reference(checkpoint), PROMPT_IDS, END_IDS, 2)
        base_sampler.reload_weights(str(other_checkpoint))
        try:
            ids = ids_of(draw(base_sampler, 1000))
            assert base_sampler.identity()["model"] == str(other_checkpoint)
            assert chi_squared(ids, other) > 1e-3
            assert chi_squared(ids, base) < 1e-6
        finally:
            base_sampler.reload_weights(str(checkpoint))
        assert chi_squared(ids_of(draw(base_sampler, 1000)), base) > 1e-3

    def test_prompts_cached_under_other_weights_are_refused(self, base_sampler, checkpoint, monkeypatch):
        monkeypatch.setattr(base_sampler.llm, "reset_prefix_cache", lambda: False)
        with pytest.raises(RuntimeError, match="kept its prefix cache over the change of weights.*Start a new engine"):
            base_sampler.reload_weights(str(checkpoint))

    def test_the_identity_names_model_options_and_versions(self, base_sampler, checkpoint):
        import vllm

        identity = base_sampler.identity()
        # Of the fixture's options, memory and speed leave the distribution as it is, and dtype has its own entry.
        assert identity["engine_kwargs"] == {"generation_config": "auto"}
        assert identity["dtype"] == "torch.float32"
        assert identity["sampler"] == "vllm"
        assert identity["model"] == str(checkpoint)
        assert identity["vllm_version"] == vllm.__version__
        assert json.loads(json.dumps(identity)) == identity

    def test_a_prompt_without_room_is_refused(self, base_sampler):
        with pytest.raises(ValueError, match=r"prompt of 3 tokens and max_tokens=94 make 97 tokens.*Raise max_model"):
            draw(base_sampler, 1, max_tokens=94)

    def test_an_adapter_of_too_large_a_rank_is_refused(self, base_sampler, adapters, tmp_path):
        config = (adapters[0] / "adapter_config.json").read_text()
        (tmp_path / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 12'))
        with pytest.raises(
            ValueError, match=r"rank 12, more than the max_lora_rank=8.*Set the option max_lora_rank=16"
        ):
            base_sampler.load_adapter(str(tmp_path))

    def test_an_adapter_that_vllm_refuses_leaves_the_engine_as_it_was(
        self, base_sampler, adapters, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(base_sampler, "seed_each_request", True)
        before = draw(base_sampler, 5)
        for file in adapters[0].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "adapter_model.safetensors").write_bytes(b"not tensors")
        with pytest.raises(ValueError, match=r"vLLM could not load adapter=.*merge_and_unload"):
            base_sampler.load_adapter(str(tmp_path))
        assert base_sampler.identity()["adapter"] == ""
        assert draw(base_sampler, 5) == before

    def test_a_folder_that_is_no_adapter_is_refused(self, base_sampler, tmp_path):
        with pytest.raises(
            ValueError, match="is not a LoRA adapter folder: it has no adapter_config.json. Give the folder"
        ):
            base_sampler.load_adapter(str(tmp_path))
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
        with pytest.raises(ValueError, match="of type PROMPT_TUNING, and vLLM loads LoRA only"):
            base_sampler.load_adapter(str(tmp_path))

    def test_without_room_for_adapters_none_is_loaded(self, base_sampler, adapters, monkeypatch):
        monkeypatch.setattr(base_sampler, "_lora_enabled", False)
        with pytest.raises(
            ValueError, match="the engine was started without adapters. Start it with the options enable_lora=True"
        ):
            base_sampler.load_adapter(str(adapters[0]))


class TestStarting:
    @pytest.mark.vllm
    @pytest.mark.slow
    @pytest.mark.xdist_group("vllm")
    def test_a_model_that_cannot_be_loaded_is_reported_with_what_to_do(self, vllm_environment, tmp_path):
        with pytest.raises(ValueError, match=r"vLLM could not start with model=.*lower max_model_len"):
            VLLMSampler(str(tmp_path / "nothing"))

    @pytest.mark.vllm
    @pytest.mark.slow
    @pytest.mark.xdist_group("vllm")
    def test_options_are_checked_before_the_engine_starts(self, vllm_environment):
        with pytest.raises(
            ValueError, match="vllm.LLM does not know the option 'max_modellen'. Did you mean 'max_model_len'?"
        ):
            VLLMSampler("nothing", max_modellen=3)
        with pytest.raises(ValueError, match="vllm.LLM does not know the option 'batch_size'"):
            check_sampler_kwargs("vllm", {"batch_size": 3, "seed_each_request": True, "dtype": "float32"})
        with pytest.raises(ValueError, match="worker_extension_cls is what seeds the engine.*seed_each_request=True"):
            VLLMSampler("nothing", worker_extension_cls="some.Worker")

    @pytest.mark.vllm
    @pytest.mark.slow
    @pytest.mark.xdist_group("vllm")
    def test_an_engine_in_this_process_is_not_seeded(self, vllm_environment, tmp_path, monkeypatch):
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # Were it to be seeded, its own worker extension would be refused before the missing model is.
        with pytest.raises(ValueError, match="vLLM could not start"):
            VLLMSampler(str(tmp_path / "nothing"), worker_extension_cls="some.Worker")

    def test_without_vllm_the_extra_is_named(self):
        code = (
            "import sys; sys.modules['vllm'] = None\n"
            "from dco_trl.sampling import VLLMSampler\n"
            "try:\n    VLLMSampler('model')\nexcept ImportError as error:\n    print(error)\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "pip install 'dco-trl[vllm]'" in result.stdout
        assert "sampler='transformers'" in result.stdout

    def test_an_adapter_is_checked_before_the_engine_starts(self, tmp_path):
        with pytest.raises(ValueError, match="it has no adapter_config.json. Give the folder that"):
            make_sampler("vllm", "model", adapter=str(tmp_path))
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1024}')
        with pytest.raises(ValueError, match="has rank 1024, and vLLM loads ranks up to 512. Merge it into the model"):
            make_sampler("vllm", "model", adapter=str(tmp_path))
