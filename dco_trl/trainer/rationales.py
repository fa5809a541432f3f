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
_SEQUENCES_PER_CALL = 4096


@dataclass
class Draws:
    """What one window drew: counts of each prompt, and its first correct rationales.

    Args:
        problems: Ids of the prompts, int64, `(problems,)`.
        num_drawn: Rationales drawn for each, `(problems,)`.
        num_graded: Those that were graded, `(problems,)`. A rationale that was cut off counts, as a wrong one.
        num_correct: Those that were right, `(problems,)`.
        rationales: Token ids of a prompt's first `num_targets` correct rationales, end of sequence included, where
            there are any. The first of independent draws to be correct are distributed as any correct ones.
        num_tokens: Tokens drawn.
        num_truncated: Rationales cut off at `max_rationale_tokens`, and therefore wrong whatever they say.
        num_unparsed: Rationales in which the grader found no answer.
        num_settled: Prompts that stopped before `num_rationales`.
    """

    problems: np.ndarray
    num_drawn: np.ndarray
    num_graded: np.ndarray
    num_correct: np.ndarray
    rationales: dict[int, list[list[int]]] = field(default_factory=dict)
    num_tokens: int = 0
    num_truncated: int = 0
    num_unparsed: int = 0
    num_settled: int = 0


class RationaleDrawer:
    """Draws and grades the rationales of some prompts.

    `row_of` gives the data set's row of a problem: `prompt`, `answer`, and further columns for the grader.
    `prompt_ids` gives the token ids of its prompt, as training has them. `tokenizer` is for samples without token ids.
    """

    def __init__(
        self,
        row_of: Callable[[int], Mapping[str, Any]],
        prompt_ids: Callable[[int], list[int]],
        grader: BulkGrader,
        tokenizer: Any,
        args: CoTDCOConfig,
        progress: bool = False,
    ):
        self._row_of, self._prompt_ids, self._grader = row_of, prompt_ids, grader
        self._tokenizer, self._args, self._progress = tokenizer, args, progress

    def draw(self, problems: Sequence[int], counts: SuccessCounts, next_index: np.ndarray, sampler: Sampler) -> Draws:
        """Sample and grade rationales of some distinct prompts.

        Every prompt gets at least one batch of `rationale_batch`, so that its counts are of the current model.
        `counts` of earlier windows are read, at a discount of `count_memory`, and not changed. `next_index` holds the
        index of the next sample of every prompt of the data set: draws never repeat.

        Raises:
            RuntimeError: The sampler returned another number of samples than was asked for.
            GraderError: The grader failed, or returned what a grader may not.
        """
        args, most = self._args, self._args.num_rationales
        ids = np.asarray(problems, dtype=np.int64)
        draws = Draws(ids, *np.zeros((3, len(ids)), dtype=np.int64))
        undecided = np.arange(len(ids))
        label, hidden = "sampling rationales", not self._progress
        with tqdm(total=len(ids) * most, desc=label, leave=False, disable=hidden) as bar:
            while undecided.size:
                batch = min(args.rationale_batch, most - int(draws.num_drawn[undecided[0]]))
                size = max(1, _SEQUENCES_PER_CALL // batch)
                for positions in np.split(undecided, range(size, len(undecided), size)):
                    self._draw_batch(draws, positions, batch, next_index, sampler)
                    bar.update(batch * len(positions))
                graded, correct = draws.num_graded[undecided], draws.num_correct[undecided]
                n, c = counts.updated(ids[undecided], args.count_memory, graded, correct)
                deviation = np.full(len(undecided), np.nan)
                if args.estimator == "posterior":
                    _, deviation = posterior_weight(n, c, args.num_attempts, counts.prior)
                goes_on = needs_sampling(deviation, n, weight_tolerance=args.weight_tolerance, num_rationales=most)
                undecided = undecided[goes_on & (draws.num_drawn[undecided] < most)]
        draws.num_settled = int((draws.num_drawn < most).sum())
        return draws

    def _draw_batch(
        self, draws: Draws, positions: np.ndarray, batch: int, next_index: np.ndarray, sampler: Sampler
    ) -> None:
        """Add `batch` rationales of each of the prompts at these positions of `draws`."""
        problems = draws.problems[positions].tolist()
        first = next_index[problems] + draws.num_drawn[positions]
        requests = [
            SampleRequest(self._prompt_ids(problem), batch, first_index=int(index), stream=problem)
            for problem, index in zip(problems, first, strict=True)
        ]
        params = SamplingParams(temperature=1.0, max_tokens=self._args.max_rationale_tokens, seed=self._args.seed)
        samples = sampler.sample(requests, params)
        received = [len(of_problem) for of_problem in samples]
        if received != [batch] * len(positions):
            raise RuntimeError(
                f"The sampler returned {sum(received)} rationales for {len(requests)} prompts instead of {batch} for "
                "each: their success rates would be wrong. Training can be resumed from the last "
                "checkpoint once the sampler works."
            )
        whole = [(i, sample) for i, some in enumerate(samples) for sample in some if sample.finish_reason == "stop"]
        verdicts = self._grade([self._row_of(problem) for problem in problems], whole)
        draws.num_drawn[positions] += batch
        draws.num_graded[positions] += batch
        for (i, sample), verdict in zip(whole, verdicts, strict=True):
            draws.num_unparsed += verdict.status == "unparsed"
            if verdict.score is None:
                draws.num_graded[positions[i]] -= 1
            elif verdict.score > 0.5:
                draws.num_correct[positions[i]] += 1
                correct = draws.rationales.setdefault(problems[i], [])
                if len(correct) < self._args.num_targets:
                    correct.append(self._token_ids(sample))
        draws.num_truncated += batch * len(positions) - len(whole)
        draws.num_tokens += sum(sample.num_tokens for of_problem in samples for sample in of_problem)

    def _grade(self, rows: list[Mapping[str, Any]], samples: list[tuple[int, Sample]]) -> list:
        """Verdicts on samples. Each sample comes with the position of its row."""
        if not samples:
            return []
        completions = [
            sample.text if isinstance(rows[i]["prompt"], str) else [{"role": "assistant", "content": sample.text}]
            for i, sample in samples
        ]
        columns = {name: [rows[i][name] for i, _ in samples] for name in rows[0]}
        prompts, answers = columns.pop("prompt"), columns.pop("answer")
        return self._grader.grade(prompts, completions, answers, columns, progress=False)

    def _token_ids(self, sample: Sample) -> list[int]:
        if sample.token_ids is not None:
            return list(sample.token_ids)
        ids = self._tokenizer(sample.text, add_special_tokens=False)["input_ids"]
        return [*ids, self._tokenizer.eos_token_id]


def draw_metrics(everywhere: list[Draws]) -> dict[str, float]:
    """What is logged about the draws of a window, those of all processes together."""

    def total(name: str) -> int:
        return sum(int(np.sum(getattr(draws, name))) for draws in everywhere)

    num_prompts, num_drawn = sum(len(draws.problems) for draws in everywhere), total("num_drawn")
    return {
        "prompts_settled": total("num_settled") / num_prompts,
        "rationales": num_drawn / num_prompts,
        "rationale_tokens": total("num_tokens"),
        "rationales_truncated": total("num_truncated") / num_drawn,
        "rationales_unparsed": total("num_unparsed") / num_drawn,
        "rationales_ungraded": (num_drawn - total("num_graded")) / num_drawn,
    }


def add_draws(everywhere: list[Draws], counts: SuccessCounts, next_index: np.ndarray, memory: float) -> None:
    """Add the draws of all processes to `next_index` and to the counts, which first forget by the factor `memory`."""
    columns = ("problems", "num_drawn", "num_graded", "num_correct")
    problems, drawn, graded, correct = (np.concatenate([getattr(d, name) for d in everywhere]) for name in columns)
    # Two processes that met the same prompt drew the same rationales: they count once.
    ids, first = np.unique(problems, return_index=True)
    counts.forget(memory, ids)
    counts.add(ids, graded[first], correct[first])
    next_index[ids] += drawn[first]
