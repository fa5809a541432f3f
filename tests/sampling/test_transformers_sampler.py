"""TransformersSampler: its draws, against `generate`, and beside a trainer; the rest is in `test_every_sampler.py`."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from exact_answers import PROMPT, PROMPT_IDS, answer_probabilities, chi_squared, draw, ids_of, num_long_and_distinct
from word_llama import CONTEXT, END_IDS, VOCABULARY, load_reference, make_word_model, make_word_tokenizer

from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler
from dco_trl.sampling.logits_processors import InverseCDF


@pytest.fixture(scope="module")
def sampler(checkpoint):
    return TransformersSampler(str(checkpoint), batch_size=2500, progress=False)


def in_memory(model, **options):
    return TransformersSampler(model, tokenizer=make_word_tokenizer(), progress=False, **options)


class TestDraws:
    @pytest.mark.slow
    def test_chunks_and_batches_do_not_change_a_sample(self, sampler, checkpoint):
        params = dict(max_tokens=40, temperature=1.7, stream=3)
        whole = draw(sampler, 768, **params)
        small = TransformersSampler(str(checkpoint), batch_size=200, progress=False)
        chunks = [draw(small, 256, first_index=first, **params) for first in (0, 256, 512)]
        assert sum(chunks, []) == whole
        assert num_long_and_distinct(chunks) > 30

    @pytest.mark.slow
    def test_what_else_is_asked_for_changes_no_draw(self, checkpoint, adapters):
        sampler = TransformersSampler(str(checkpoint), batch_size=300, progress=False)
        own = [("", 1.0), (str(adapters[0]), 1.0), (str(adapters[1]), 1.7), (str(adapters[0]), 0.0), (None, None)]
        requests = [SampleRequest(PROMPT, 300, 0, s, adapter, t) for s, (adapter, t) in enumerate(own)]
        params = SamplingParams(max_tokens=3)
        groups = sampler.sample(requests, params)
        assert len(set(ids_of(groups[3]))) == 1 and len(groups[3]) == 300
        assert sampler.sample(requests[::-1], params) == groups[::-1]
        alone = TransformersSampler(str(checkpoint), adapter=str(adapters[1]), batch_size=300, progress=False)
        assert alone.sample([replace(requests[2], adapter=None)], params) == [groups[2]]
        assert alone.sample(requests[:2], params) == groups[:2]
        alone.load_adapter(None)
        assert alone.sample(requests[4:], params) == groups[4:]
        assert alone.identity() == sampler.identity()

    def test_no_token_of_probability_zero_is_drawn_at_the_ends_of_the_interval(self):
        scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1).clone()
        uniforms = np.array([[0.0], [0.49999], [0.5], [np.nextafter(1.0, 0.0)]])
        picked = InverseCDF(uniforms, 2, torch.device("cpu"))(torch.zeros(4, 2, dtype=torch.long), scores)
        assert picked.argmax(-1).tolist() == [1, 1, 3, 3]

    def test_global_random_state_is_neither_read_nor_moved(self, sampler):
        torch.manual_seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        first = draw(sampler, 50)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        torch.manual_seed(1)
        assert draw(sampler, 50) == first


class TestEnds:
    @pytest.mark.slow
    def test_a_batch_that_ends_by_end_of_sequence_alone_needs_no_stop_string(self, sampler):
        for index in range(20):  # one sample per batch: sooner or later one ends by its end of sequence
            [alone] = draw(sampler, 1, first_index=index, max_tokens=12, stop=("no such word",))
            [free] = draw(sampler, 1, first_index=index, max_tokens=12)
            assert alone == free

    @pytest.mark.parametrize("stop", [("e",), ("d a", "f"), ("e d",)])
    def test_stop_strings_cut_the_same_draws_short(self, sampler, stop):
        free, stopped = draw(sampler, 400, max_tokens=12), draw(sampler, 400, max_tokens=12, stop=stop)
        assert sum(s.finish_reason == "stop" for s in stopped) > sum(s.finish_reason == "stop" for s in free)
        for a, b in zip(free, stopped, strict=True):
            at = min((a.text.find(s) for s in stop if s in a.text), default=None)
            assert b.text == (a.text if at is None else a.text[:at])
            assert b.token_ids == a.token_ids[: b.num_tokens]
            assert b.finish_reason == (a.finish_reason if at is None else "stop")
            if at is not None:  # the last token completes the stop string, and no earlier one did
                tokenizer = sampler.tokenizer
                text = [tokenizer.decode(b.token_ids[:n], skip_special_tokens=True) for n in range(b.num_tokens + 1)]
                assert any(s in text[-1] for s in stop) and not any(s in text[-2] for s in stop)

    def test_a_stop_string_does_not_begin_in_the_prompt(self, sampler):
        # The prompt ends with "c"; "c a" would be a match across the border.
        samples = draw(sampler, 300, max_tokens=8, stop=("c a",))
        starting = [s for s in samples if s.token_ids[0] == 5]
        assert starting and any(s.num_tokens > 1 for s in starting)

    def test_one_token_is_a_completion(self, sampler):
        samples = draw(sampler, 50, max_tokens=1)
        assert {s.num_tokens for s in samples} == {1}
        assert {s.finish_reason for s in samples} == {"stop", "length"}


class TestAgainstGenerate:
    PROMPTS = ["a b c", "g", "a b c d e f g a b c", "b a"]

    def greedy(self, model, prompt_ids, max_tokens):
        """`generate` alone: no batch, no padding, no shared cache, none of the model's generation config."""
        model.generation_config = transformers.GenerationConfig(eos_token_id=list(END_IDS), pad_token_id=0)
        ids = torch.tensor([prompt_ids])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
        return tuple(output[0, len(prompt_ids) :].tolist())

    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "mamba", "gpt_neox"])
    def test_greedy_equals_generate_for_caches_of_every_kind(self, family):
        """Full attention, sliding window, both in turn, a state-space model, and another library of layers."""
        sizes = dict(vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=2)
        if family != "mamba":
            sizes |= dict(intermediate_size=32, num_attention_heads=2, initializer_range=0.3)
        config = {
            "llama": lambda: transformers.LlamaConfig(**sizes),
            "mistral": lambda: transformers.MistralConfig(sliding_window=4, num_key_value_heads=2, **sizes),
            "gemma": lambda: transformers.Gemma2Config(head_dim=16, num_key_value_heads=2, sliding_window=4, **sizes),
            "mamba": lambda: transformers.MambaConfig(state_size=4, **sizes),
            "gpt_neox": lambda: transformers.GPTNeoXConfig(**sizes),
        }[family]()
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = list(END_IDS)
        sampler = in_memory(model, batch_size=6)
        requests = [SampleRequest(prompt, 3) for prompt in self.PROMPTS]
        # Greedy, and drawing from the single most probable token, which shares a prompt's cache between its rows.
        for one_token in (dict(temperature=0.0), dict(top_k=1)):
            groups = sampler.sample(requests, SamplingParams(max_tokens=12, **one_token))
            for prompt, samples in zip(self.PROMPTS, groups, strict=True):
                expected = self.greedy(model, sampler.tokenizer(prompt)["input_ids"], 12)
                assert ids_of(samples) == [expected] * 3

    @pytest.mark.slow
    def test_prompt_tuning_keeps_its_virtual_tokens(self):
        from peft import PromptTuningConfig, get_peft_model

        torch.manual_seed(0)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = get_peft_model(make_word_model(), config).eval()
        samples = draw(in_memory(model, batch_size=6), 3000, max_tokens=1)
        logits = model(torch.tensor([PROMPT_IDS])).logits[0, -1].detach().double()
        exact = {(token,): float(p) for token, p in enumerate(logits.softmax(-1))}
        assert chi_squared(ids_of(samples), exact) > 1e-3

    def test_a_prompt_is_computed_once_a_batch(self, checkpoint):
        sampler = TransformersSampler(str(checkpoint), batch_size=100, progress=False)
        positions = []
        sampler.model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: positions.append(output.shape[0] * output.shape[1])
        )
        draw(sampler, 200, prompt="a b c d e f g a b c", max_tokens=1)
        # Two batches. In each, nine prompt tokens are computed once, and the tenth, whose logits count, for each row.
        assert positions == [9, 100, 9, 100]


class TestModelInMemory:
    @pytest.fixture
    def model(self):
        model = make_word_model()
        model.gradient_checkpointing_enable()
        model.config.use_cache = False
        model.train()
        model.model.layers[1].mlp.eval()  # a frozen part that somebody keeps in evaluation mode
        return model

    def state_of(self, model):
        return (
            [module.training for module in model.modules()],
            id(model.generation_config),
            model.generation_config.to_dict(),
            model.config.use_cache,
            model.is_gradient_checkpointing,
            [parameter.requires_grad for parameter in model.parameters()],
        )

    @pytest.mark.slow
    def test_everything_is_as_before_and_the_distribution_is_that_of_the_weights_now(self, model):
        before = self.state_of(model)
        sampler = in_memory(model, batch_size=2500)
        assert sampler.identity()["sampler"] == "transformers (in memory)"
        for scale in (1, 1.2):  # as training moves them
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(scale)
            ids = ids_of(draw(sampler, 5000))
            assert self.state_of(model) == before
            exact = answer_probabilities(copy.deepcopy(model).eval(), PROMPT_IDS, END_IDS, 2)
            assert chi_squared(ids, exact) > 1e-3

    def test_everything_is_as_before_after_an_error(self, model):
        before = self.state_of(model)
        sampler = in_memory(model)

        def fail(module, args):
            raise RuntimeError("out of memory, say")

        hook = model.lm_head.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory, say"):
            draw(sampler, 5)
        hook.remove()
        assert self.state_of(model) == before

    def test_the_next_training_step_is_the_same_with_and_without_sampling(self):
        def step(sample: bool):
            model = make_word_model()
            model.config.attention_dropout = 0.5
            for layer in model.model.layers:
                layer.self_attn.attention_dropout = 0.5
            model.gradient_checkpointing_enable()
            model.train()
            torch.manual_seed(5)
            if sample:
                draw(in_memory(model), 20)
            ids = torch.tensor([[5, 6, 7, 8, 9, 1]])
            model(input_ids=ids, labels=ids).loss.backward()
            return [parameter.grad for parameter in model.parameters()]

        assert all(torch.equal(a, b) for a, b in zip(step(False), step(True), strict=True))

    def test_a_lora_model_in_training_is_sampled_with_its_adapter(self, checkpoint, adapters):
        from peft import PeftModel

        model = PeftModel.from_pretrained(make_word_model(), adapters[0], is_trainable=True).train()
        sampler = in_memory(model, batch_size=2500)
        exact = answer_probabilities(load_reference(checkpoint, adapters[0]), PROMPT_IDS, END_IDS, 2)
        assert chi_squared(ids_of(draw(sampler, 5000)), exact) > 1e-3
        assert model.training and all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)

    def test_arguments_for_a_named_model_are_refused(self, model):
        sampler = in_memory(make_word_model())
        with pytest.raises(ValueError, match="adapter='runs/a' cannot be loaded into a model in memory, which is"):
            sampler.sample([SampleRequest(PROMPT, 1, adapter="runs/a")], SamplingParams(max_tokens=1))
        with pytest.raises(ValueError, match="adapter, dtype cannot be combined with a model in memory"):
            TransformersSampler(model, tokenizer=make_word_tokenizer(), adapter="folder", dtype="auto")


def test_options_that_change_the_distribution_are_in_the_identity(checkpoint):
    plain = TransformersSampler(str(checkpoint), progress=False).identity()
    assert "model_kwargs" not in plain
    harmless = TransformersSampler(str(checkpoint), batch_size=3, token="SECRET", device_map="cpu", progress=False)
    assert harmless.identity() == plain
    changed = TransformersSampler(str(checkpoint), attn_implementation="eager", dtype="float32", progress=False)
    assert changed.identity() == {**plain, "model_kwargs": {"attn_implementation": "eager"}}


@pytest.mark.parametrize(
    "options, params, message",
    [
        ({}, {"max_tokens": CONTEXT - 2}, rf"make {CONTEXT + 1} tokens, more than the {CONTEXT} of the context"),
        ({"batch_size": 0}, {}, "`batch_size` must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(checkpoint, options, params, message):
    with pytest.raises(ValueError, match=message):
        draw(TransformersSampler(str(checkpoint), progress=False, **options), 1, **params)


def test_an_encoder_decoder_is_refused():
    config = transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=12, d_kv=8)
    with pytest.raises(ValueError, match="is an encoder-decoder; only causal language models"):
        in_memory(transformers.T5ForConditionalGeneration(config))


def test_a_closed_sampler_says_so(checkpoint):
    sampler = TransformersSampler(str(checkpoint), progress=False)
    sampler.close()
    sampler.close()
    with pytest.raises(RuntimeError, match="This sampler is closed"):
        draw(sampler, 1)


def test_progress_goes_to_standard_error(checkpoint, capsys):
    sampler = TransformersSampler(str(checkpoint))
    capsys.readouterr()
    draw(sampler, 7)
    output, progress = capsys.readouterr()
    assert "7/7" in progress and "sampling" in progress
    assert output == ""
