"""Exact probabilities of every answer of a tiny model, draws from it, and the test that they agree."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.stats import chisquare

from dco_trl.sampling import SampleRequest, SamplingParams

# Of `word_llama`.
PROMPT, PROMPT_IDS = "a b c", [5, 6, 7]
MESSAGES, MESSAGES_IDS = [{"role": "user", "content": "a b"}], [3, 5, 6, 4, 3]


def draw(sampler, n, *, prompt=PROMPT, first_index=0, stream=0, **params):
    """Samples of one request."""
    params = SamplingParams(**{"max_tokens": 2, **params})
    [samples] = sampler.sample([SampleRequest(prompt, n, first_index, stream)], params)
    assert len(samples) == n
    return samples


def ids_of(samples) -> list[tuple[int, ...]]:
    return [sample.token_ids for sample in samples]


def num_long_and_distinct(groups) -> int:
    """How many samples are too long to coincide by chance; asserts that these all differ."""
    long = [sample.token_ids for samples in groups for sample in samples if sample.num_tokens > 8]
    assert len(set(long)) == len(long)
    return len(long)


def restrict(probabilities: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Next-token probabilities under top_k, then top_p, by their definitions."""
    order = np.argsort(-probabilities, kind="stable")
    kept = order[: top_k or len(order)]
    mass = probabilities[kept] / probabilities[kept].sum()
    count = int(np.searchsorted(np.cumsum(mass), top_p - 1e-9)) + 1
    restricted = np.zeros_like(probabilities)
    restricted[kept[:count]] = probabilities[kept[:count]]
    return restricted / restricted.sum()


@torch.no_grad()
def answer_probabilities(
    model,
    prompt_ids: Sequence[int],
    end_ids: Iterable[int],
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> dict[tuple[int, ...], float]:
    """Probability of every completion: the product of its tokens' probabilities, by teacher forcing, in float64."""
    end_ids = set(end_ids)
    done: dict[tuple[int, ...], float] = {}
    open_prefixes = {(): 1.0}
    for _ in range(max_tokens):
        prefixes = list(open_prefixes)
        logits = model(torch.tensor([[*prompt_ids, *prefix] for prefix in prefixes])).logits[:, -1].double()
        following = (logits / temperature).softmax(-1).numpy()
        grown = {}
        for prefix, row in zip(prefixes, following, strict=True):
            for token, p in enumerate(restrict(row, top_k, top_p)):
                if p > 0:
                    (done if token in end_ids else grown)[(*prefix, token)] = open_prefixes[prefix] * p
        open_prefixes = grown
    return {**done, **open_prefixes}


def chi_squared(token_ids: Sequence[tuple[int, ...]], probabilities: dict[tuple[int, ...], float]) -> float:
    """p-value of the samples under the probabilities; answers expected fewer than 5 times are pooled.

    0 if an answer occurred that has no probability at all.
    """
    counts = Counter(token_ids)
    if not set(counts) <= set(probabilities):
        return 0.0
    n = len(token_ids)
    observed, expected, rare = [], [], [0, 0.0]
    for answer, p in probabilities.items():
        if n * p >= 5:
            observed.append(counts[answer])
            expected.append(n * p)
        else:
            rare[0] += counts[answer]
            rare[1] += n * p
    if rare[1] > 0:
        observed.append(rare[0])
        expected.append(rare[1])
    assert len(observed) > 2, "nothing to test: one answer takes all the probability"
    return float(chisquare(observed, expected).pvalue)
