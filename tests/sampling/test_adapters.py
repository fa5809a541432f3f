"""What an adapter's folder holds beside LoRA: training's tokenizer, and embeddings of a larger vocabulary."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from exact_answers import MESSAGES, MESSAGES_IDS, PROMPT, PROMPT_IDS, answer_probabilities, chi_squared, ids_of
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from word_llama import END_IDS, VOCABULARY, load_reference, make_word_model, make_word_tokenizer

from dco_trl.runs import Problem
from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler, exact_coverage

GROWN = len(VOCABULARY) + 2


@pytest.fixture(scope="module", params=[["embed_tokens", "lm_head"], None], ids=["modules_to_save", "resized"])
def grown(request, checkpoint, tmp_path_factory):
    """The folder of an adapter with two more tokens, one of them the new end of sequence, and its model."""
    torch.manual_seed(0)
    tokenizer = make_word_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<stop>", "additional_special_tokens": ["<think>"]})
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    base.resize_token_embeddings(GROWN)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=request.param))
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("grown")
    model.save_pretrained(folder, save_embedding_layers=True)
    tokenizer.save_pretrained(folder)
    return folder, model.eval()


@pytest.mark.slow
def test_a_vocabulary_that_grew_is_sampled_and_measured(grown, checkpoint, adapters):
    folder, model = grown
    params, stop = SamplingParams(max_tokens=3), len(VOCABULARY)
    sampler = TransformersSampler(str(checkpoint), adapter=str(folder), batch_size=2000, progress=False)
    assert sampler.codec.end_ids == (stop, *END_IDS) and sampler.tokenizer.eos_token == "<stop>"
    [samples] = sampler.sample([SampleRequest(PROMPT, 4000)], params)
    assert chi_squared(ids_of(samples), answer_probabilities(model, PROMPT_IDS, (stop, *END_IDS), 3)) > 1e-3
    assert any(stop in ids for ids in ids_of(samples)) and not any("<stop>" in sample.text for sample in samples)
    problem = Problem("0", PROMPT, " a")
    exact = exact_coverage(sampler.model, sampler.tokenizer, [problem], progress=False)
    with torch.no_grad():
        log_p = model(torch.tensor([[*PROMPT_IDS, 5]])).logits[0, -2:].double().log_softmax(-1)
    np.testing.assert_allclose(exact.log_p, log_p[0, 5] + log_p[1, stop], rtol=1e-5)

    # Beside it, the model alone and an adapter without these tokens draw none of them, as if each were alone.
    alone = TransformersSampler(str(checkpoint), batch_size=2000, progress=False)
    requests = [SampleRequest(PROMPT, 500, adapter=adapter) for adapter in ("", str(adapters[0]), str(folder))]
    expected = [alone.sample([request], params)[0] for request in requests[:2]]
    groups = sampler.sample(requests, params)
    assert groups == [*expected, samples[:500]]
    # Which adapter was loaded first makes no difference.
    late = TransformersSampler(str(checkpoint), adapter=str(adapters[0]), batch_size=2000, progress=False)
    assert late.sample([replace(requests[1], adapter=None)], params) == [expected[1]]
    assert late.sample(requests, params) == groups
    # Unloading it leaves the model as it was.
    sampler.load_adapter(None)
    assert sampler.model.config.vocab_size == len(VOCABULARY)
    assert sampler.sample([SampleRequest(PROMPT, 500)], params) == [expected[0]]


@pytest.mark.slow
def test_each_adapter_is_sampled_with_the_tokenizer_in_its_folder(checkpoint, adapters, trained_folder):
    """The samples of an adapter trained with `eos_token="g"` end at it, and those of the others do not."""
    sampler = TransformersSampler(str(checkpoint), batch_size=2000, progress=False)
    requests = [SampleRequest(MESSAGES, 2000, adapter=str(adapter)) for adapter in (trained_folder, adapters[0])]
    own, others = sampler.sample(requests, SamplingParams(max_tokens=3))
    reference = load_reference(checkpoint, adapters[0])
    assert chi_squared(ids_of(own), answer_probabilities(reference, [10, 5, 6], (11, *END_IDS[1:], 1), 3)) > 1e-3
    assert chi_squared(ids_of(others), answer_probabilities(reference, MESSAGES_IDS, END_IDS, 3)) > 1e-3
    assert all("g" not in sample.text for sample in own) and any("g" in sample.text for sample in others)


def test_a_model_in_memory_keeps_its_adapter(checkpoint, adapters):
    model = PeftModel.from_pretrained(make_word_model(), adapters[0], is_trainable=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    sampler = TransformersSampler(model, tokenizer=make_word_tokenizer(), progress=False)
    for adapter in (str(adapters[1]), None):
        with pytest.raises(ValueError, match=f"adapter={adapter!r} cannot be loaded into a model in memory"):
            sampler.load_adapter(adapter)
    after = model.state_dict()
    assert sampler.model is model and all(torch.equal(after[name], weight) for name, weight in before.items())
