"""What holds for every sampler, against exact probabilities: Transformers, vLLM in process, and vLLM's server."""

import contextlib
from functools import cache

import numpy as np
import pytest
from exact_answers import (
    MESSAGES,
    MESSAGES_IDS,
    PROMPT,
    PROMPT_IDS,
    answer_probabilities,
    chi_squared,
    draw,
    ids_of,
    num_long_and_distinct,
)
from word_llama import END_IDS, load_reference

from dco_trl.sampling import SampleRequest, SamplingParams, ServerSampler, TransformersSampler

VLLM = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.xdist_group("vllm")]


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=VLLM), pytest.param("server", marks=VLLM)])
def sampler(request, checkpoint):
    if request.param == "transformers":
        yield TransformersSampler(str(checkpoint), batch_size=2500, progress=False)
    elif request.param == "vllm":
        shared = request.getfixturevalue("vllm_sampler")
        shared.load_adapter(None)
        yield shared
        shared.load_adapter(None)
    else:
        url = request.getfixturevalue("vllm_server")
        with contextlib.closing(ServerSampler("tiny", base_url=url, progress=False)) as served:
            yield served


@pytest.fixture(scope="module")
def exact(checkpoint):
    """Probabilities of answers of up to two tokens."""

    @cache
    def probabilities(prompt_ids=tuple(PROMPT_IDS), adapter=None, **restriction):
        return answer_probabilities(load_reference(checkpoint, adapter), prompt_ids, END_IDS, 2, **restriction)

    return probabilities


@pytest.mark.parametrize("temperature, other", [(1.0, 1.7), (1.7, 1.0)])
@pytest.mark.slow
def test_samples_follow_the_exact_distribution(sampler, exact, temperature, other):
    # Prompts of different lengths in one call: text, messages, and tokens, which are continued as they are.
    prompts = {tuple(PROMPT_IDS): PROMPT, tuple(MESSAGES_IDS): MESSAGES, (11,): [11]}
    requests = [SampleRequest(prompt, 3000, stream=i) for i, prompt in enumerate(prompts.values())]
    groups = sampler.sample(requests, SamplingParams(temperature=temperature, max_tokens=2, seed=12))
    for prompt_ids, samples in zip(prompts, groups, strict=True):
        assert chi_squared(ids_of(samples), exact(prompt_ids, temperature=temperature)) > 1e-3
        # The test can tell the difference: the other temperature's distribution is rejected.
        assert chi_squared(ids_of(samples), exact(prompt_ids, temperature=other)) < 1e-6


@pytest.mark.parametrize("top_k, top_p, temperature", [(3, 1.0, 1.0), (0, 0.6, 1.0), (5, 0.8, 1.4)])
def test_restricted_samples_keep_to_the_support_and_follow_it(sampler, exact, top_k, top_p, temperature):
    restriction = dict(top_k=top_k, top_p=top_p, temperature=temperature)
    ids = ids_of(draw(sampler, 1000, **restriction))
    assert set(ids) <= set(exact(**restriction))
    assert chi_squared(ids, exact(**restriction)) > 1e-3


def test_greedy_takes_the_most_probable_tokens_whatever_the_generation_config_says(sampler, checkpoint):
    [ids] = set(ids_of(draw(sampler, 3, temperature=0, max_tokens=12)))
    context = list(PROMPT_IDS)
    for token in ids:
        [best] = answer_probabilities(load_reference(checkpoint), context, END_IDS, 1, top_k=1)
        assert (token,) == best
        context.append(token)


@pytest.mark.slow
def test_problems_seeds_and_indices_have_draws_of_their_own(sampler):
    changes = ({}, {"first_index": 256}, {"stream": 1}, {"seed": 1})
    assert num_long_and_distinct(draw(sampler, 256, max_tokens=40, temperature=1.7, **c) for c in changes) > 60


@pytest.mark.slow
def test_chunks_coincide_no_more_often_than_independent_draws(sampler, exact):
    p = sum(q * q for q in exact().values())
    first, second = (ids_of(draw(sampler, 3000, first_index=at)) for at in (0, 3000))
    coincident = sum(a == b for a, b in zip(first, second, strict=True))
    assert abs(coincident - 3000 * p) < 4 * np.sqrt(3000 * p * (1 - p))


def test_both_ends_of_sequence_end_a_completion(sampler):
    samples = draw(sampler, 1000, max_tokens=6)
    ended = [s for s in samples if s.token_ids[-1] in END_IDS]
    assert {s.token_ids[-1] for s in ended} == set(END_IDS)
    assert all(token not in END_IDS for s in samples for token in s.token_ids[:-1])
    assert {s.finish_reason for s in ended} == {"stop"} and not any("<e" in s.text for s in ended)
    cut = [s for s in samples if s.token_ids[-1] not in END_IDS]
    assert cut and {(s.finish_reason, s.num_tokens) for s in cut} == {("length", 6)}
    # A padding token that was sampled is part of the completion; one that fills up the batch is not.
    assert any(0 in s.token_ids for s in samples)


def test_stop_strings_end_a_completion_and_are_left_out(sampler):
    samples = draw(sampler, 300, max_tokens=12, stop=("e", "d a"))
    assert not any("e" in s.text or "d a" in s.text for s in samples)
    stopped = [s for s in samples if s.token_ids[-1] == 9]
    assert stopped and {s.finish_reason for s in stopped} == {"stop"}
    assert all(9 not in s.token_ids[:-1] for s in samples)


def test_requests_keep_their_order_and_counts(sampler):
    requests = [SampleRequest("a", 3), SampleRequest("a b c d e f g", 1), SampleRequest("b", 5)]
    greedy = SamplingParams(temperature=0, max_tokens=4)
    groups = sampler.sample(requests, greedy)
    assert [len(group) for group in groups] == [3, 1, 5]
    assert groups == [sampler.sample([request], greedy)[0] for request in requests]
    assert sampler.sample([], greedy) == []


@pytest.mark.slow
def test_each_request_has_its_adapter_and_its_temperature(sampler, exact, adapters):
    one, two = map(str, adapters)
    own = [("", 1.0), (one, 1.0), (two, 1.7), (one, 1.7), (None, None)]
    requests = [SampleRequest(PROMPT, 2000, 0, s, adapter, t) for s, (adapter, t) in enumerate(own)]
    groups = sampler.sample(requests, SamplingParams(max_tokens=2))
    for i, samples in enumerate(groups):
        for j, (adapter, temperature) in enumerate(own[:4]):
            p = chi_squared(ids_of(samples), exact(adapter=adapter or None, temperature=temperature))
            assert (p > 1e-3) == (i % 4 == j), (i, j)
    assert sampler.identity()["adapter"] == ""


@pytest.mark.slow
def test_an_adapter_changes_the_distribution_to_its_own(sampler, exact, adapters):
    for adapter, other in (adapters, adapters[::-1]):
        sampler.load_adapter(str(adapter))
        assert sampler.identity()["adapter"] == str(adapter)
        ids = ids_of(draw(sampler, 2000))
        assert chi_squared(ids, exact(adapter=adapter)) > 1e-3
        assert chi_squared(ids, exact(adapter=other)) < 1e-6
    sampler.load_adapter(None)
    assert chi_squared(ids_of(draw(sampler, 2000)), exact()) > 1e-3
    assert sampler.identity()["adapter"] == ""
