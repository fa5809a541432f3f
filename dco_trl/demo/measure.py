"""Exact measurements on a tiny model: reference answers, greedy answers, and a check by sampling."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Sequences drawn at a time.
_BATCH = 4096


@torch.no_grad()
def reference_log_p(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> torch.Tensor:
    r"""Log-probability of each reference answer and the end of sequence after it, teacher-forced.

    $$\log p = \sum_t \log \pi(y_t \mid x, y_{<t})$$

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: One prompt a problem, all of the same number of tokens.
        answers: One answer a problem.

    Returns:
        Nats, float64, shape (problems,).
    """
    prompt_ids = _prompt_ids(tokenizer, prompts)
    answer_ids = [[*tokenizer(answer).input_ids, tokenizer.eos_token_id] for answer in answers]
    longest = max(map(len, answer_ids))
    padded = torch.tensor([ids + [-100] * (longest - len(ids)) for ids in answer_ids])
    # Padding comes last, where a causal model's earlier predictions do not see it: no attention mask is needed.
    input_ids = torch.cat([prompt_ids, padded.clamp(min=0)], dim=1)
    logits = model(input_ids=input_ids).logits[:, prompt_ids.size(1) - 1 : -1]
    log_probs = logits.double().log_softmax(-1).gather(-1, padded.clamp(min=0)[..., None])[..., 0]
    return log_probs.where(padded >= 0, 0.0).sum(1)


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_answer_tokens: int,
) -> tuple[torch.Tensor, list[str | None]]:
    r"""Greedy decoding's answer to each prompt, and the probability that sampling gives that same answer.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: One prompt a problem, all of the same number of tokens.
        max_answer_tokens: Where to stop, in tokens, end of sequence included.

    Returns:
        Log-probabilities in nats, end of sequence included, float64, shape (problems,); and the answers' texts. 0 as
        the probability, and None as the text, of an answer that does not end within `max_answer_tokens`.

    References:
        Chen et al., arXiv 2502.07154: the paper takes it for the most likely answer.
    """
    prompt_ids = _prompt_ids(tokenizer, prompts)
    ids, log_p = prompt_ids, torch.zeros(len(prompts), dtype=torch.float64)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(max_answer_tokens):
        log_probs = model(input_ids=ids, logits_to_keep=1).logits[:, -1].double().log_softmax(-1)
        value, token = log_probs.max(1)
        log_p += value.where(~ended, 0.0)
        ended |= token == tokenizer.eos_token_id
        ids = torch.cat([ids, token[:, None]], dim=1)
    return log_p.where(ended, -torch.inf), _whole_answers(ids[:, prompt_ids.size(1) :], tokenizer)


@torch.no_grad()
def sampled_coverage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    num_attempts: int,
    repeats: int,
    max_answer_tokens: int,
    seed: int,
) -> float:
    r"""Coverage counted from real samples: the share of rounds of `num_attempts` samples that hold the answer.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: One prompt a problem, all of the same number of tokens.
        answers: One answer a problem.
        num_attempts: Samples a round.
        repeats: Rounds a problem, each with samples of its own.
        max_answer_tokens: Longest sample, in tokens.
        seed: Seed of the draws.

    Returns:
        The mean over problems and rounds, in [0, 1].

    Relations:
        `sampling_error` is the standard deviation of this number.
    """
    torch.manual_seed(seed)
    prompt_ids = _prompt_ids(tokenizer, prompts)
    per_problem = num_attempts * repeats
    rows = max(1, _BATCH // per_problem)
    solved = 0
    for first in range(0, len(prompts), rows):
        output = model.generate(  # type: ignore[operator]
            prompt_ids[first : first + rows],
            attention_mask=torch.ones_like(prompt_ids[first : first + rows]),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_answer_tokens,
            num_return_sequences=per_problem,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = _whole_answers(output[:, prompt_ids.size(1) :], tokenizer)
        for i, answer in enumerate(answers[first : first + rows]):
            hits = np.array([text == answer for text in texts[i * per_problem : (i + 1) * per_problem]])
            solved += int(hits.reshape(repeats, num_attempts).any(1).sum())
    return solved / (len(prompts) * repeats)


def sampling_error(coverage: np.ndarray, repeats: int) -> float:
    r"""Standard deviation of `sampled_coverage`: \(\sqrt{\sum_i c_i (1 - c_i) / R} / P\).

    Args:
        coverage: Exact coverage of each problem, shape (problems,).
        repeats: Rounds a problem, R.

    Returns:
        The standard deviation over draws, the problems being fixed.
    """
    return float(np.sqrt(np.sum(coverage * (1 - coverage)) / repeats) / len(coverage))


def _whole_answers(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """Texts up to the end of sequence; None for a sample that did not end."""
    texts: list[str | None] = []
    for row in ids.tolist():
        end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else None
        texts.append(None if end is None else "".join(tokenizer.convert_ids_to_tokens(row[:end])))
    return texts


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> torch.Tensor:
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    if len(set(map(len, ids))) != 1:
        raise ValueError(
            f"`prompts` must all have the same number of tokens, got lengths {sorted(set(map(len, ids)))}."
        )
    return torch.tensor(ids)
