"""Sample rationales for prompts and grade them, in rounds, until each prompt's weight is known well enough."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..grading import BulkGrader
from ..sampling import Sample, Sampler, SampleRequest, SamplingParams
from ..statistics.posterior_weight import posterior_weight
from .cot_config import CoTDCOConfig
from .success_counts import SuccessCounts, needs_sampling

# Sequences asked for in one call of the sampler, which holds all of them until the last is done.
_SEQUENCES_A_CALL = 4096


@dataclass
class Draws:
    """What one window drew: counts for each prompt, and its first correct rationale.

    Args:
        problems: Ids of the prompts, int64, `(problems,)`.
        drawn: Rationales drawn for each, `(problems,)`.
        graded: Those that were graded, `(problems,)`. A rationale that was cut off counts, as a wrong one.
        correct: Those that were right, `(problems,)`.
        rationales: Token ids of a prompt's first correct rationale, end of sequence included, where there is one.
            The first of independent draws to be correct is distributed as any correct one.
        tokens: Tokens drawn.
        truncated: Rationales cut off at `max_rationale_tokens`, and therefore wrong whatever they say.
        unparsed: Rationales in which the grader found no answer.
        settled: Prompts that stopped before `num_rationales`.
    """

    problems: np.ndarray
    drawn: np.ndarray
    graded: np.ndarray
    correct: np.ndarray
    rationales: dict[int, list[int]] = field(default_factory=dict)
    tokens: int = 0
    truncated: int = 0
    unparsed: int = 0
    settled: int = 0


def draw_rationales(
    problems: Sequence[int],
    row_of: Callable[[int], Mapping[str, Any]],
    counts: SuccessCounts,
    drawn_before: np.ndarray,
    sampler: Sampler,
    grader: BulkGrader,
    tokenizer: Any,
    args: CoTDCOConfig,
    progress: bool = False,
) -> Draws:
    """Sample and grade rationales of some prompts. `counts` is read, at a discount of `count_memory`, not changed.

    Every prompt gets one batch of `rationale_batch` at least, so that its counts are of the model as it is.

    Args:
        problems: Ids of distinct prompts.
        row_of: The data set's row of a prompt: `prompt`, `answer`, and further columns for the grader.
        counts: Counts remembered from earlier windows.
        drawn_before: Rationales ever drawn for each prompt, `(all prompts,)`: draws go on from there, and never
            repeat.
        sampler: What samples.
        grader: What grades.
        tokenizer: Training's tokenizer, for rationales whose endpoint does not say their token ids.
        args: How many, and when to stop.
        progress: Show a bar while it lasts.

    Returns:
        What was drawn.

    Raises:
        RuntimeError: The sampler returned another number of samples than was asked for.
        GraderError: The grader failed, or returned what a grader may not.
    """
    ids = np.asarray(problems, dtype=np.int64)
    draws = Draws(ids, drawn=np.zeros_like(ids), graded=np.zeros_like(ids), correct=np.zeros_like(ids))
    params = SamplingParams(temperature=1.0, max_tokens=args.max_rationale_tokens, seed=args.seed)
    undecided = np.arange(len(ids))
    with tqdm(
        total=len(ids) * args.num_rationales, desc="sampling rationales", leave=False, disable=not progress
    ) as bar:
        while undecided.size:
            batch = min(args.rationale_batch, args.num_rationales - int(draws.drawn[undecided[0]]))
            size = max(1, _SEQUENCES_A_CALL // batch)
            for some in np.split(undecided, range(size, len(undecided), size)):
                _draw_some(draws, some, batch, row_of, drawn_before, sampler, grader, tokenizer, params)
                bar.update(batch * len(some))
            # What the counts are worth, and what they say about the weight.
            n = args.count_memory * counts.num_sampled[ids[undecided]] + draws.graded[undecided]
            c = args.count_memory * counts.num_correct[ids[undecided]] + draws.correct[undecided]
            deviation = np.full(len(undecided), np.nan)
            if args.estimator == "posterior":
                _, deviation = posterior_weight(n, c, args.num_attempts, counts.prior)
            goes_on = needs_sampling(
                deviation, n, weight_tolerance=args.weight_tolerance, num_rationales=args.num_rationales
            )
            undecided = undecided[goes_on & (draws.drawn[undecided] < args.num_rationales)]
    draws.settled = int((draws.drawn < args.num_rationales).sum())
    return draws


def _draw_some(draws, some, batch, row_of, drawn_before, sampler, grader, tokenizer, params) -> None:
    """Add `batch` rationales of each of the prompts at the positions `some`."""
    problems = draws.problems[some].tolist()
    rows = [row_of(problem) for problem in problems]
    requests = [
        SampleRequest(row["prompt"], batch, first_index=int(drawn_before[problem] + drawn), stream=problem)
        for row, problem, drawn in zip(rows, problems, draws.drawn[some], strict=True)
    ]
    samples = sampler.sample(requests, params)
    received = [len(of_problem) for of_problem in samples]
    if received != [batch] * len(some):
        raise RuntimeError(
            f"The sampler returned {sum(received)} rationales for {len(requests)} prompts and not the {batch} for "
            "each that were asked for: their success rates would be wrong. Training can be resumed from the last "
            "checkpoint once the sampler works."
        )
    owners = [i for i, of_problem in enumerate(samples) for sample in of_problem if sample.finish_reason == "stop"]
    whole = [sample for of_problem in samples for sample in of_problem if sample.finish_reason == "stop"]
    verdicts = _grade(grader, [rows[i] for i in owners], whole)
    draws.drawn[some] += batch
    draws.graded[some] += batch
    for i, sample, verdict in zip(owners, whole, verdicts, strict=True):
        if verdict.status == "unparsed":
            draws.unparsed += 1
        if verdict.score is None:
            draws.graded[some[i]] -= 1
        elif verdict.score > 0.5:
            draws.correct[some[i]] += 1
            draws.rationales.setdefault(problems[i], _token_ids(sample, tokenizer))
    draws.truncated += batch * len(some) - len(whole)
    draws.tokens += sum(sample.num_tokens for of_problem in samples for sample in of_problem)


def _grade(grader: BulkGrader, rows: list[Mapping[str, Any]], samples: list[Sample]) -> list:
    if not rows:
        return []
    completions = [
        sample.text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": sample.text}]
        for row, sample in zip(rows, samples, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "answer")}
    return grader.grade(
        [row["prompt"] for row in rows], completions, [row["answer"] for row in rows], columns, progress=False
    )


def _token_ids(sample: Sample, tokenizer: Any) -> list[int]:
    if sample.token_ids is not None:
        return list(sample.token_ids)
    return [*tokenizer(sample.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
