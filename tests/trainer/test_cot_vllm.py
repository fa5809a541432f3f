"""`CoTDCOTrainer` with the real vLLM in process: its weights are those in training, as an adapter and as a whole."""

import functools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cot import make_cot_trainer
from peft import LoraConfig
from training import steps_of, token_log_probs
from word_llama import ROWS, make_word_tokenizer

from dco_trl.sampling import TransformersSampler
from dco_trl.trainer.rationales import RationaleDrawer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.xdist_group("vllm")]

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])


@pytest.fixture
def shared_engine(monkeypatch, vllm_sampler, checkpoint):
    """Give the running engine to the trainer's own sampler, with the weights it asks for; yield what it asks."""
    import vllm

    asked: list[dict] = []
    engine = vllm_sampler.llm

    @functools.wraps(vllm.LLM.__init__)
    def share(self, model, tokenizer=None, revision=None, **options):
        asked.append({"model": model, "tokenizer": tokenizer, **options})
        self.__dict__ = engine.__dict__
        vllm_sampler.reload_weights(model)

    monkeypatch.setattr(vllm.LLM, "__init__", share)
    monkeypatch.setattr(engine.llm_engine.engine_core, "shutdown", lambda: asked.append({}))
    # Adapters of one engine have different numbers.
    numbers = SimpleNamespace(count=lambda start: vllm_sampler._lora_ids)
    monkeypatch.setattr("dco_trl.sampling.vllm_sampler.itertools", numbers)
    vllm_sampler.load_adapter(None)
    yield asked
    vllm_sampler.reload_weights(str(checkpoint))


def greedy_by_vllm(sampler, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens and their log-probabilities. (vLLM on a CPU fails at `prompt_logprobs` with an adapter.)"""
    from vllm import SamplingParams

    outputs = sampler.llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        SamplingParams(temperature=0, max_tokens=5, logprobs=0, ignore_eos=True),
        use_tqdm=False,
        lora_request=sampler._lora_of(sampler._adapter),
    )
    completions = [output.outputs[0] for output in outputs]
    return [
        (list(c.token_ids), [entry[token].logprob for entry, token in zip(c.logprobs, c.token_ids, strict=True)])
        for c in completions
    ]


@torch.no_grad()
def log_probs_by_training(model, prompt: list[int], completion: list[int]) -> list[float]:
    log_probs = token_log_probs(model.eval(), prompt, completion)
    model.train()
    return log_probs.tolist()


@pytest.mark.parametrize("peft_config", [LORA, None], ids=["LoRA", "full"])
def test_vllm_samples_the_model_in_training(monkeypatch, shared_engine, checkpoint, peft_config, caplog):
    windows: list[list[float]] = []
    rates: list[tuple[int, int, int, int]] = []
    draw = RationaleDrawer.draw

    def watched(self, problems, counts, next_index, sampler):
        prompts = [make_word_tokenizer()(row["prompt"])["input_ids"] for row in ROWS[:4]]
        ours: list[float] = []
        for prompt, (completion, theirs) in zip(prompts, greedy_by_vllm(sampler, prompts), strict=True):
            ours += log_probs_by_training(trainer.model, prompt, completion)
            np.testing.assert_allclose(theirs, ours[-len(theirs) :], atol=2e-3)
        windows.append(ours)
        draws = draw(self, problems, counts, next_index, sampler)
        itself = TransformersSampler(trainer.model, tokenizer=make_word_tokenizer(), progress=False)
        others = draw(self, problems, counts, next_index, itself)
        rates.append(tuple(x.sum() for some in (draws, others) for x in (some.num_correct, some.num_graded)))
        assert set(draws.rationales) and draws.num_tokens > 0
        folders.extend(trainer._windows._policy._folder.parent.glob(".dco-sampler-*/tokenizer.json"))
        return draws

    folders = []
    monkeypatch.setattr(RationaleDrawer, "draw", watched)
    trainer = make_cot_trainer(
        ROWS,
        model=str(checkpoint),
        processing_class=None,  # the checkpoint's own
        sampler="vllm",
        sampler_kwargs={"enforce_eager": True, "dtype": "float32"},
        sampling_interval=2,
        max_steps=5,
        num_rationales=64,
        rationale_batch=64,
        per_device_train_batch_size=6,
        targets="sampled",
        num_targets=4,
        learning_rate=6e-2 if peft_config else 3e-3,
        model_init_kwargs={"dtype": "float32"},
        peft_config=peft_config,
    )
    with caplog.at_level(logging.INFO):
        trainer.train()
    assert len(windows) == 3
    # The weights moved between the windows by more than the tolerance.
    assert np.abs(np.subtract(windows[0], windows[-1])).max() > 0.05
    for correct, n, others_correct, others_n in rates:
        p, q = correct / n, others_correct / others_n
        assert 0.01 < p < 0.99
        assert abs(p - q) < 4.5 * np.sqrt(p * (1 - p) / n + q * (1 - q) / others_n)
    assert all(step["rationales_truncated"] < 1 for step in steps_of(trainer) if "rationales_truncated" in step)
    assert sum("vLLM cannot sleep on this platform" in record.message for record in caplog.records) == 1
    asked, stopped = shared_engine  # one engine was started, and stopped
    assert asked["model"] == str(checkpoint) if peft_config else ".dco-sampler-" in asked["model"]
    assert asked["max_model_len"] == 2 + 8 and asked["enforce_eager"] and stopped == {}
    assert trainer._windows._policy._sampler is None
    assert len(folders) == 3 and not any(path.parent.exists() for path in folders)
