r"""Exact coverage: pass@k of the reference answer from its teacher-forced probability, without sampling.

If the model gives the reference answer and then ends with probability \(p\), at least one of \(k\) independent samples
does with probability \(1 - (1-p)^k\). Only the reference's exact string in its usual tokens counts, so this is a lower
bound for a grader that accepts more (`1/2` for `0.5`, or an explanation before it).
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from ..checks import check_integer
from ..errors import UserError
from ..problem import DataError, Problem
from ..statistics.pass_at_k import exact_pass_at_k
from .adapters import base_of, evaluating, learns_prompt
from .end_of_sequence import answer_length, token_kinds
from .tokens import Codec

_Row = tuple[list[int], int]  # tokens of prompt and answer, and where the answer begins

logger = logging.getLogger(__name__)

# Logits of a batch: 0.5 GiB in float32, of which a few copies are made.
_MAX_LOGITS = 2**27


@dataclass(frozen=True)
class ExactCoverage:
    """Teacher-forced log-probabilities of the reference answers.

    Args:
        problem_ids: The problems.
        log_p: Log-probability of each whole answer, its end of sequence included, in nats, float64, shape (problems,),
            or (temperatures, problems) if several temperatures were asked for.
        num_tokens: Tokens of each answer, the end of sequence included, int64, shape (problems,).
    """

    problem_ids: tuple[str, ...]
    log_p: NDArray[np.float64]
    num_tokens: NDArray[np.int64]

    def pass_at_k(self, k: ArrayLike) -> NDArray[np.float64]:
        """Mean over problems of the probability that at least one of k samples is the reference answer.

        Args:
            k: Numbers of samples, at least 1 each.

        Returns:
            Coverage in [0, 1], float64, with the shape of `k`, after that of the temperatures if there are several.
        """
        ks = np.asarray(k)
        coverage = exact_pass_at_k(self.log_p[..., None], ks.reshape(-1)).mean(axis=-2)
        return coverage.reshape(self.log_p.shape[:-1] + ks.shape)


def exact_coverage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    completion_template: str = "{answer}",
    temperature: float | Sequence[float] = 1.0,
    batch_size: int = 64,
    progress: bool = True,
) -> ExactCoverage:
    r"""Compute the log-probability of each whole reference answer.

    $$\log p = \sum_t \log \pi(y_t \mid x, y_{<t})$$

    over the tokens of the answer and its end of sequence. Tokens are those of TRL's training: prompt and completion
    are tokenised together, the completion begins where the tokens depart from those of the prompt alone, and plain
    text ends with the tokenizer's end of sequence (or the generation config's if the tokenizer has none). What a chat
    template puts after the end of sequence, such as a line break, is left out, because a sampler stops before it.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        problems: The problems, with their reference answers.
        completion_template: What the model is to write, as a format string over `answer` and the further columns, such
            as `" {answer}"` where the prompt ends without a space.
        temperature: Divides the logits, as in sampling; above 0. Several are computed from the same forward pass.
        batch_size: Answers in one forward pass, at most; fewer where the logits would exceed 0.5 GiB.
        progress: Show a progress bar on standard error.

    Returns:
        Log-probabilities, one per problem (and temperature). Float32 within a token, summed in float64.

    Raises:
        DataError: The template names an unknown column, or `answer` although a column of that name differs from the
            reference; a prompt and its answer do not fit into the model's context; or the answer has no tokens.
        ValueError: There are no problems, `temperature` or `batch_size` is out of range, or neither the tokenizer nor
            the generation config names an end of sequence.

    Examples:
        ```python
        >>> from dco_trl.runs import read_problems
        >>> from dco_trl.sampling import exact_coverage
        >>> exact = exact_coverage(model, tokenizer, read_problems("problems.jsonl"))  # doctest: +SKIP
        >>> exact.pass_at_k([1, 16, 256, 4096])  # doctest: +SKIP

        ```

    References:
        Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute", arXiv 2502.07154, section 4.

    Relations:
        [`evaluate`][dco_trl.runs.evaluate] samples and grades: prefer it where many strings are right, or the model
        reasons before it answers.
    """
    if not problems:
        raise UserError("problems is empty: there is no answer to compute a probability of. Give at least one.")
    temperatures = np.atleast_1d(np.asarray(temperature, dtype=float))
    if temperatures.ndim > 1 or not temperatures.size or not (temperatures > 0).all():
        raise UserError(f"temperature must be above 0, got {temperature}")
    check_integer("batch_size", batch_size)
    base = base_of(model)
    generation_config, config = getattr(base, "generation_config", None), base.config.get_text_config()
    kinds = token_kinds(tokenizer, generation_config)
    rows = _tokenize(Codec(tokenizer, generation_config), kinds, problems, completion_template)
    context = getattr(config, "max_position_embeddings", None)
    longest = max(range(len(rows)), key=lambda i: len(rows[i][0]))
    if context is not None and len(rows[longest][0]) > context:
        raise DataError(
            f"problem {problems[longest].problem_id!r}: prompt and answer have {len(rows[longest][0])} tokens, more "
            f"than the {context} of the model's context. Remove or shorten it."
        )
    log_p = np.empty((len(temperatures), len(rows)))
    bar = tqdm(total=len(rows), desc="exact coverage", unit="answer", disable=not progress)
    with torch.no_grad(), evaluating(model), bar:
        for batch in _batches(rows, batch_size, config.vocab_size):
            log_p[:, batch] = _log_p(model, [rows[i] for i in batch], tokenizer.pad_token_id or 0, temperatures)
            bar.update(len(batch))
    # A sum of float32 log-softmax terms may round to just above zero.
    log_p = np.minimum(log_p, 0.0)
    return ExactCoverage(
        tuple(problem.problem_id for problem in problems),
        log_p if np.ndim(temperature) else log_p[0],
        np.array([len(ids) - start for ids, start in rows]),
    )


def _tokenize(codec: Codec, kinds: NDArray[np.int8], problems: Sequence[Problem], template: str) -> list[_Row]:
    rows: list[_Row] = []
    departing, endless = [], []
    for problem in problems:
        prompt_ids, ids = _encode(codec, problem, _completion(problem, template))
        start = common_prefix_length(prompt_ids, ids)
        if start < len(prompt_ids):
            departing.append(problem.problem_id)
        length = answer_length(kinds, ids[start:])
        if length is None:
            endless.append(problem.problem_id)
        else:
            ids = ids[: start + length]
        if start == 0 or start >= len(ids):
            raise DataError(
                f"problem {problem.problem_id!r}: under this tokenizer there is no token "
                + ("of the prompt before the answer" if start == 0 else "of the answer after the prompt")
                + ". Change its text, or remove it."
            )
        rows.append((ids, start))
    if departing:
        logger.warning(
            f"{len(departing)} of {len(rows)} prompts tokenise differently alone and before their answer (first: "
            f"{departing[0]!r}). As in training, the answer is taken to begin where the two differ, but a sampler "
            "gets the prompt alone. End the prompt on a token boundary, or use another chat template."
        )
    if endless:
        logger.warning(
            f"{len(endless)} of {len(rows)} answers do not end with an end of sequence (first: {endless[0]!r}): the "
            "chat template writes none, so the probability of ending is not counted"
        )
    return rows


def _completion(problem: Problem, template: str) -> str | list[dict[str, Any]]:
    if problem.completion is not None and template == "{answer}":
        return problem.completion
    columns = {**problem.columns, "answer": problem.answer}
    try:
        completion = template.format(**columns)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{template!r} cannot be filled in for problem {problem.problem_id!r}: {error!r}; it may name "
            f"{sorted(columns)}. Double braces that are part of the text.",
            "completion_template",
        ) from error
    other = problem.columns.get("answer", problem.answer)
    if other != problem.answer and template != "{answer}" and "{answer" in template:
        raise DataError(
            f"must name the column that the template {template!r} means: for problem {problem.problem_id!r} the "
            f"reference is {problem.answer!r}, but the column `answer` has {other!r}. Name that column, or leave out "
            "the template to take the reference as it is.",
            "answer_column",
        )
    return completion


def _encode(codec: Codec, problem: Problem, completion: str | list[dict[str, Any]]) -> list[list[int]]:
    """Tokens of the prompt alone, and of prompt and completion."""
    if isinstance(problem.prompt, str):
        end = codec.tokenizer.eos_token or ""
        whole = f"{problem.prompt}{str(completion).removesuffix(end)}{end}"
        prompt_ids, ids = codec.texts_ids([problem.prompt, whole])
        # A tokenizer without an end of sequence of its own cannot write one as text.
        return [prompt_ids, ids if end else [*ids, codec.end_ids[0]]]
    messages = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    kwargs = problem.template_kwargs
    return [codec.prompt_ids(problem.prompt, kwargs), codec.rendered([*problem.prompt, *messages], kwargs)]


def _batches(rows: list[_Row], batch_size: int, vocabulary: int) -> Iterator[list[int]]:
    """Batches of the indices of rows of similar length, as many as their logits allow."""
    batch: list[int] = []
    first = 0
    for i in sorted(range(len(rows)), key=lambda i: (len(rows[i][0]), rows[i][1])):
        ids, start = rows[i]
        first = min(first, start) if batch else start
        if len(batch) == batch_size or (batch and (len(batch) + 1) * (len(ids) - first) * vocabulary > _MAX_LOGITS):
            yield batch
            batch, first = [], start
        batch.append(i)
    yield batch


def _log_p(model: Any, rows: list[_Row], pad_id: int, temperatures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of log-probabilities over each row's answer, (temperatures, rows)."""
    device = model.device
    width = max(len(ids) for ids, _ in rows)
    # Padding is on the right: a causal model's answers do not see it, and positions need no correction.
    padded = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows], device=device)
    starts, ends = torch.tensor([(start, len(ids)) for ids, start in rows], device=device).T[..., None]
    positions = torch.arange(width, device=device)
    first = min(start for _, start in rows) - 1  # the logits at position t are those of token t + 1
    kept: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(base_of(model).forward).parameters and not learns_prompt(model):
        kept["logits_to_keep"] = positions[first:]
    logits = model(input_ids=padded, attention_mask=(positions < ends).long(), use_cache=False, **kept).logits
    logits = logits[:, -(width - first) : -1]  # prompt learning puts its virtual tokens in front
    is_answer = ((positions >= starts) & (positions < ends))[:, first + 1 :]
    scores, targets = logits[is_answer].float(), padded[:, first + 1 :][is_answer]
    row_of = is_answer.nonzero()[:, 0].cpu()
    totals = torch.zeros(len(temperatures), len(rows), dtype=torch.float64)
    for total, temperature in zip(totals, temperatures.tolist(), strict=True):
        token_log_p = (scores / temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        total.index_add_(0, row_of, token_log_p.cpu().double())
    return totals.numpy()
