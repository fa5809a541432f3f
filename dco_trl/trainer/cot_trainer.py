"""`CoTDCOTrainer`: DCO where the probability of the right answer is estimated from sampled rationales."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset

from ..grading import BulkGrader
from ..sampling import Sampler
from .collator import EXAMPLE_ID
from .cot_config import CoTDCOConfig
from .data_checks import check_has_answers, check_has_counts
from .dco_trainer import DCOTrainer
from .policy_sampler import PolicySampler
from .rationales import Draws, draw_rationales
from .segments import Segments
from .success_counts import SuccessCounts

logger = get_logger(__name__)

STATE_NAME = "cot_state.json"
# What a batch carries for each of its rows, besides what TRL puts there.
_WEIGHT, _LOG_P = "row_weight", "row_log_p"
# Columns that say nothing about a rationale.
_NOT_FOR_GRADERS = ("completion", "input_ids", "labels", "num_sampled", "num_correct")
_IDLE_WEIGHT = 0.99


class CoTDCOTrainer(DCOTrainer):
    r"""DCO on chains of thought: the probability of the right answer is estimated from sampled rationales.

    Many rationales c lead to the same answer y, so its probability is a sum that has no closed form,
    \(p = \sum_c \pi(c, y \mid x)\). It is estimated by sampling: of n rationales of a prompt, k are graded correct.
    With \(a, b\) a prior fitted to the data set's own counts, a row's gradient is multiplied by

    $$w = \mathbb{E}\left[F(N, p) \mid p \sim \mathrm{Beta}(a + k,\, b + n - k)\right]$$

    (`estimator="plugin"`: the authors' \(F(N, k/n)\)). The rest is [`DCOTrainer`][dco_trl.trainer.DCOTrainer].

    Training goes in windows of `sampling_interval` optimizer steps. At the start of each the sampler gets the current
    weights, draws rationales for the window's distinct prompts in rounds of `rationale_batch`, and leaves a prompt
    alone once its weight is known to `weight_tolerance`, or after `num_rationales`. Counts are remembered, at a
    discount, until the prompt comes up again.

    Logged once a window: `success_rate` (mean estimate of p over the window's rows), `prompts_settled` (share that
    stopped early), `rationales` (drawn for a prompt), `rationale_tokens`, `rationales_truncated` (share cut off at
    `max_rationale_tokens`, wrong whatever they say), `rationales_unparsed` (share without an answer that the grader
    could read), `rationales_ungraded` (share that the grader could not judge; they do not count), `rows_kept` (share
    that `max_success_rate` let through), `reference_targets` (share trained on the reference for want of a correct
    rationale, with `targets="sampled"`), `sampling_seconds` and, of the window before, `training_seconds`. Then
    `DCOTrainer`'s: `coverage_weight`, and `coverage_loss` and `log_p` at the estimated p.

    Args:
        model: Model identifier, folder, `PreTrainedModel` or `PeftModel`, as in `SFTTrainer`.
        args: A [`CoTDCOConfig`][dco_trl.trainer.CoTDCOConfig].
        train_dataset: Rows with `prompt`, `completion` (rationale and answer) and `answer` (the reference to grade
            by); further columns reach the grader. With `sampler="none"`, `num_sampled` and `num_correct` in place of
            `answer`. Where a sampler and counts are both there, the counts are the first window's memory.
        grader: "math", "exact", an import path "package.module:function", or a function with the signature of TRL's
            reward functions.
        **kwargs: Further arguments of `SFTTrainer`: `eval_dataset`, `processing_class`, `peft_config`, `callbacks`, …

    Raises:
        ValueError: As `DCOTrainer`; or the data set lacks what sampling and grading need; or the sampler does not go
            with the way of training.
        TypeError: `args` is not a `CoTDCOConfig`, or the data set is streaming.

    Examples:
        ```python
        from dco_trl import CoTDCOConfig, CoTDCOTrainer
        from peft import LoraConfig

        trainer = CoTDCOTrainer(
            model="Qwen/Qwen2.5-1.5B",
            args=CoTDCOConfig(output_dir="qwen-gsm8k-dco", num_attempts=64, sampler="vllm"),
            train_dataset=gsm8k,  # prompt, completion (rationale and answer), answer
            grader="math",
            peft_config=LoraConfig(),
        )
        trainer.train()
        ```

    References:
        Chen et al., arXiv 2502.07154, section on chain of thought, and the authors' released code. The posterior mean,
        the stopping rule and `targets="sampled"` are this package's.

    Relations:
        Prefer `DCOTrainer` where the completion is the answer itself: its p is exact and costs nothing.
    """

    _tag_names = ["trl", "dco", "cot-dco"]
    _name = "CoT-DCO"

    args: CoTDCOConfig

    def __init__(
        self,
        model: Any,
        args: CoTDCOConfig | None = None,
        train_dataset: Dataset | None = None,
        grader: str | Callable = "math",
        **kwargs: Any,
    ):
        if not isinstance(args, CoTDCOConfig):
            raise TypeError(
                f"`args` must be a `CoTDCOConfig`, got `{type(args).__name__}`: it says how rationales are sampled."
            )
        if isinstance(train_dataset, IterableDataset) or not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"`train_dataset` must be a `Dataset`, got `{type(train_dataset).__name__}`: success rates are "
                "remembered by row, so rows need a number. Download a streaming one, for example with "
                "`Dataset.from_list(list(stream))`."
            )
        if kwargs.get("data_collator") is not None:
            raise ValueError(
                "`data_collator` is TRL's own here: rows are put together after their rationales are sampled. Leave "
                "it out."
            )
        if EXAMPLE_ID in train_dataset.column_names:
            raise ValueError(f"The train dataset has a column `{EXAMPLE_ID}`, which the trainer adds. Rename it.")
        if args.sampler == "none":
            check_has_counts(train_dataset)
        else:
            check_has_answers(train_dataset)
        self._problem_of = _same_problem(train_dataset)
        self._counts = _given_counts(train_dataset, self._problem_of)
        self._user_rows = train_dataset.remove_columns(
            [name for name in _NOT_FOR_GRADERS if name in train_dataset.column_names]
        )
        train_dataset = train_dataset.add_column(EXAMPLE_ID, np.arange(len(train_dataset)))

        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)

        prepared: Any = self.train_dataset
        self._prepared: Dataset = prepared.select_columns(["input_ids", "labels"])
        self._position_of = {example: i for i, example in enumerate(prepared[EXAMPLE_ID])}
        self._drawn = np.zeros(len(self._problem_of), dtype=np.int64)
        self._grader = None if args.sampler == "none" else BulkGrader(grader)
        self._sampler = None
        if args.sampler != "none":
            self._sampler = PolicySampler(
                self.accelerator,
                self.accelerator.unwrap_model(self.model),
                self._tokenizer,
                args,
                max(_prompt_length(labels) for labels in prepared["labels"]),
            )
        self._said_it_is_idle = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget the window, not the counts: training begins."""
        # The window: the rows of each micro-batch still to be served; weight and log p of a problem; its rationale.
        self._window: deque[list[int]] = deque()
        self._estimates: dict[int, tuple[float, float]] = {}
        self._rationales: dict[int, list[int]] = {}
        self._is_resumed = False
        self._stream = _RowStream(
            list(self._position_of), self.args.seed, self.accelerator.process_index, self.accelerator.num_processes
        )
        self._trained_since: float | None = None
        self._row_estimates: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def train(self, *args, **kwargs):
        self._start_afresh()
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._sampler is not None:
                self._sampler.close()

    # ---------------------------------------------------------------- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop(EXAMPLE_ID, None)
        self._row_estimates = inputs.pop(_WEIGHT, None), inputs.pop(_LOG_P, None)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _log_p(self, segments: Segments, log_probs: torch.Tensor) -> torch.Tensor:
        of_the_row = super()._log_p(segments, log_probs)
        _, estimated = self._row_estimates
        return of_the_row if estimated is None else _of_units(estimated, of_the_row, 0.0)

    def _weights(self, log_p: torch.Tensor) -> torch.Tensor:
        weights, _ = self._row_estimates
        return super()._weights(log_p) if weights is None else _of_units(weights, log_p, 1.0)

    def _warn_when_idle(self, sums: torch.Tensor) -> None:
        pass  # said when a window opens

    # -------------------------------------------------------------- window

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if EXAMPLE_ID not in columns:
            columns.append(EXAMPLE_ID)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The micro-batches of one optimizer step; a new window is opened, and sampled for, when the last is used up.

        The epoch's iterator only tells which rows come next: they are put together when they are served, with their
        weights and, for `targets="sampled"`, their rationales.
        """
        if self._is_resumed:
            for _ in islice(epoch_iterator, len(self._window)):
                pass  # rows of the window that the checkpoint was made in
            self._is_resumed = False
        if not self._window:
            self._open_window(epoch_iterator)
        served = [self._collate(self._window.popleft()) for _ in range(min(num_batches, len(self._window)))]
        return super().get_batch_samples(iter(served), num_batches, device)

    def _open_window(self, epoch_iterator: Iterator) -> None:
        args, step = self.args, self.state.global_step
        if self._trained_since is not None:
            self._note(training_seconds=time.perf_counter() - self._trained_since)
        self._estimates, self._rationales = {}, {}
        is_warmup = step < args.ce_warmup_steps
        num_steps = self.state.max_steps - step
        if is_warmup:
            num_steps = min(num_steps, args.ce_warmup_steps - step)
        elif args.sampling_interval != "epoch":
            num_steps = min(num_steps, int(args.sampling_interval))
        upcoming = islice(epoch_iterator, num_steps * args.gradient_accumulation_steps)
        rows = [batch[EXAMPLE_ID].tolist() for batch in upcoming]
        if rows and not is_warmup:
            started = time.perf_counter()
            choose = self._all_rows if args.max_success_rate is None else self._hard_rows
            # Once a window, on every process: how often a process draws within it is its own affair.
            with self._sampler.synchronised() if self._sampler is not None else nullcontext() as sampler:
                rows, all_draws = choose(rows, sampler)
            self._learn_from(all_draws, time.perf_counter() - started)
            self._estimate(rows)
        self._window = deque(rows)
        self._trained_since = time.perf_counter()

    def _all_rows(self, rows: list[list[int]], sampler: Sampler | None) -> tuple[list[list[int]], list[Draws]]:
        """The rows as they are, sampled for."""
        return rows, self._draw(_distinct(self._problem_of[row] for batch in rows for row in batch), sampler)

    def _hard_rows(self, rows: list[list[int]], sampler: Sampler | None) -> tuple[list[list[int]], list[Draws]]:
        """As many rows in as many micro-batches, all of them with a success rate of at most `max_success_rate`.

        They come from a stream of its own that goes over the data as often as it takes, so that an epoch keeps its
        number of steps.
        """
        wanted, num_tried = sum(map(len, rows)), 0
        hard: list[int] = []
        is_hard: dict[int, bool] = {}
        all_draws: list[Draws] = []
        while len(hard) < wanted:
            candidates = self._stream.take(wanted - len(hard))
            new = _distinct(p for p in map(self._problem_of.__getitem__, candidates) if p not in is_hard)
            drawn = self._draw(new, sampler)
            for problem, rate in zip(new, self._rates(new, drawn), strict=True):
                is_hard[problem] = rate <= self.args.max_success_rate
            all_draws += drawn
            hard += [row for row in candidates if is_hard[self._problem_of[row]]]
            num_tried += len(candidates)
            if not hard and num_tried >= self._stream.num_rows:
                raise RuntimeError(
                    f"None of the {num_tried} rows tried has a success rate of at most `max_success_rate="
                    f"{self.args.max_success_rate}`: there is nothing left to train on. Raise it, leave it out, or "
                    f"stop here (step {self.state.global_step})."
                )
        self._note(rows_kept=wanted / num_tried)
        refilled = iter(hard)
        return [list(islice(refilled, len(batch))) for batch in rows], all_draws

    def _draw(self, problems: list[int], sampler: Sampler | None) -> list[Draws]:
        """Rationales of these prompts, on this process: one `Draws`, or none without a sampler or prompts."""
        if sampler is None or not problems:
            return []
        assert self._grader is not None
        draws = draw_rationales(
            problems,
            self._row,
            self._counts,
            self._drawn,
            sampler,
            self._grader,
            self._tokenizer,
            self.args,
            progress=not self.args.disable_tqdm and self.accelerator.is_local_main_process,
        )
        self._rationales |= draws.rationales
        return [draws]

    def _rates(self, problems: list[int], drawn: list[Draws]) -> np.ndarray:
        """Success rates for the hard filter, from what this process has just drawn and what is remembered."""
        n, c = self._counts.num_sampled[problems], self._counts.num_correct[problems]
        for draws in drawn:
            n, c = self.args.count_memory * n + draws.graded, self.args.count_memory * c + draws.correct
        if self.args.estimator == "plugin":
            return np.divide(c, n, out=np.zeros(len(n)), where=n > 0)
        a, b = self._counts.prior
        return (a + c) / (a + b + n)

    def _learn_from(self, drawn: list[Draws], seconds: float) -> None:
        """Take the draws of all processes into the counts, fit the prior anew, and log what was drawn."""
        if self._sampler is None:
            self._counts.refit()
            return
        everywhere: list[Draws] = gather_object(drawn)
        known: set[int] = set()
        for draws in everywhere:
            # Two processes that met the same prompt drew the same rationales: they count once.
            new = np.array([problem not in known for problem in draws.problems.tolist()], dtype=bool)
            known.update(draws.problems.tolist())
            ids = draws.problems[new]
            if not ids.size:
                continue
            self._counts.forget(self.args.count_memory, ids)
            self._counts.add(ids, draws.graded[new], draws.correct[new])
            self._drawn[ids] += draws.drawn[new]
        self._counts.refit()
        num_prompts = sum(len(draws.problems) for draws in everywhere)
        num_drawn = sum(int(draws.drawn.sum()) for draws in everywhere)
        truncated = sum(draws.truncated for draws in everywhere)
        self._note(
            prompts_settled=sum(draws.settled for draws in everywhere) / num_prompts,
            rationales=num_drawn / num_prompts,
            rationale_tokens=sum(draws.tokens for draws in everywhere),
            rationales_truncated=truncated / num_drawn,
            rationales_unparsed=sum(draws.unparsed for draws in everywhere) / num_drawn,
            rationales_ungraded=sum(int((draws.drawn - draws.graded).sum()) for draws in everywhere) / num_drawn,
            sampling_seconds=seconds,
        )
        if truncated == num_drawn:
            logger.warning(
                f"All {num_drawn} rationales sampled at step {self.state.global_step} were cut off at "
                f"`max_rationale_tokens={self.args.max_rationale_tokens}`, so none counts as right. Raise it; or, if "
                "the model does not end its answers yet, raise `ce_warmup_steps`."
            )

    def _estimate(self, rows: list[list[int]]) -> None:
        """Note weight and log p of the window's prompts."""
        ids = np.array(_distinct(self._problem_of[row] for batch in rows for row in batch))
        # The authors' estimator has no opinion on a prompt of which nothing could be graded: it keeps weight 1.
        known = (self._counts.num_sampled[ids] > 0) | (self.args.estimator == "posterior")
        weights = np.ones(len(ids))
        if known.any():
            weights[known], _ = self._counts.weights(ids[known], self.args.num_attempts, self.args.estimator)
        a, b = self._counts.prior
        rates = (a + self._counts.num_correct[ids]) / (a + b + self._counts.num_sampled[ids])
        for problem, weight, rate in zip(ids.tolist(), weights.tolist(), rates.tolist(), strict=True):
            self._estimates[problem] = (weight, float(np.log(rate)))
        self._note(success_rate=float(rates.mean()))
        if self.args.targets == "sampled":
            served = [row for batch in rows for row in batch]
            self._note(reference_targets=float(np.mean([self._sampled_target(row) is None for row in served])))
        if not self._said_it_is_idle and self.args.num_attempts > 1 and weights.mean() > _IDLE_WEIGHT:
            self._said_it_is_idle = True
            logger.warning(
                f"DCO is cross-entropy at step {self.state.global_step}: the mean weight is {weights.mean():.3f}, "
                f"because the mean success rate of a sampled rationale is {rates.mean():.4f}. On a model that learns "
                "the task this passes. If it does not, look at `rationales_truncated` and `rationales_unparsed`: "
                "rationales may be wrong for their form alone."
            )

    def _note(self, **metrics: float) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    # ---------------------------------------------------------------- rows

    def _row(self, problem: int) -> dict[str, Any]:
        """The user's columns of a prompt, for sampling and grading."""
        return self._user_rows[problem]

    def _collate(self, rows: list[int]) -> dict[str, Any]:
        """A micro-batch of these rows, with their weights."""
        examples = []
        for row in rows:
            examples.append(self._sampled_target(row) or self._prepared[self._position_of[row]])
        batch = self.data_collator(examples)
        problems = [int(self._problem_of[row]) for row in rows]
        if self._estimates:
            weights, log_p = zip(*(self._estimates[problem] for problem in problems), strict=True)
            batch[_WEIGHT], batch[_LOG_P] = torch.tensor(weights), torch.tensor(log_p)
        else:  # warming up with cross-entropy
            batch[_WEIGHT] = torch.ones(len(rows))
        return batch

    def _sampled_target(self, row: int) -> dict[str, list[int]] | None:
        """The row with the model's own correct rationale in place of the reference, if there is one that fits."""
        rationale = self._rationales.get(int(self._problem_of[row]))
        if self.args.targets == "reference" or rationale is None:
            return None
        prepared = self._prepared[self._position_of[row]]
        prompt = prepared["input_ids"][: _prompt_length(prepared["labels"])]
        if self.args.max_length is not None and len(prompt) + len(rationale) > self.args.max_length:
            return None
        return {"input_ids": [*prompt, *rationale], "labels": [*[-100] * len(prompt), *rationale]}

    # ---------------------------------------------------------- checkpoint

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        mine = {
            "window": list(self._window),
            "estimates": list(self._estimates.items()),
            "rationales": list(self._rationales.items()) if self.args.targets == "sampled" else [],
            "stream": [self._stream.pass_number, self._stream.position],
        }
        processes = gather_object([mine])
        if not self.args.should_save:
            return
        state = {
            "counts": {name: np.asarray(value).tolist() for name, value in self._counts.state_dict().items()},
            "drawn": self._drawn.tolist(),
            "processes": processes,
        }
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        (folder / STATE_NAME).write_text(json.dumps(state))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint, STATE_NAME)
        if not path.is_file():
            raise FileNotFoundError(
                f"The checkpoint {resume_from_checkpoint} has no {STATE_NAME}: it was not made by `CoTDCOTrainer`, or "
                "not completely. Start from its weights instead: pass the folder as `model`."
            )
        state = json.loads(path.read_text())
        self._counts.load_state_dict(state["counts"])
        self._drawn = np.array(state["drawn"], dtype=np.int64)
        if len(state["processes"]) != self.accelerator.num_processes:
            raise ValueError(
                f"The checkpoint {resume_from_checkpoint} was made by {len(state['processes'])} processes, and there "
                f"are {self.accelerator.num_processes}: their windows cannot be divided anew. Resume with as many."
            )
        mine = state["processes"][self.accelerator.process_index]
        self._window = deque(mine["window"])
        self._estimates = {problem: tuple(estimate) for problem, estimate in mine["estimates"]}
        self._rationales = dict(mine["rationales"])
        self._stream.pass_number, self._stream.position = mine["stream"]
        self._is_resumed = True


class _RowStream:
    """This process's share of the rows in random order, again and again; knows its place.

    Args:
        rows: All rows.
        seed: Seed of the orders.
        process_index, num_processes: Which share.
    """

    def __init__(self, rows: Sequence[int], seed: int, process_index: int, num_processes: int):
        self._rows, self._seed = np.asarray(rows), seed
        self._share = slice(process_index, None, num_processes)
        self.pass_number, self.position = 0, 0
        self.num_rows = len(self._order())

    def take(self, count: int) -> list[int]:
        """The next rows, at most `count` of them and at least one."""
        order = self._order()
        if self.position >= len(order):
            self.pass_number, self.position = self.pass_number + 1, 0
            order = self._order()
        taken = order[self.position : self.position + count]
        self.position += len(taken)
        return taken.tolist()

    def _order(self) -> np.ndarray:
        order = np.random.default_rng([self._seed, self.pass_number]).permutation(self._rows)
        # Every process needs a row, also of a data set smaller than their number.
        return order[self._share] if len(order) > self._share.start else order


def _distinct(values: Iterable[Any]) -> list[int]:
    return list(dict.fromkeys(int(value) for value in values))


def _prompt_length(labels: Sequence[int]) -> int:
    return next(i for i, label in enumerate(labels) if label != -100)


def _same_problem(dataset: Dataset) -> np.ndarray:
    """For each row, the first row with the same prompt and answer: they share one count."""
    names = [name for name in ("prompt", "answer") if name in dataset.column_names]
    first: dict[str, int] = {}
    rows = zip(*(dataset[name] for name in names), strict=True)
    return np.array([first.setdefault(json.dumps(row), i) for i, row in enumerate(rows)], dtype=np.int64)


def _given_counts(dataset: Dataset, problem_of: np.ndarray) -> SuccessCounts:
    """The counts in the data set's columns, if it has them; rows of the same problem hold the same ones."""
    counts = SuccessCounts(len(problem_of))
    if {"num_sampled", "num_correct"} <= set(dataset.column_names):
        check_has_counts(dataset)
        first = np.unique(problem_of)
        counts.add(first, *(np.asarray(dataset[name])[first] for name in ("num_sampled", "num_correct")))
        counts.refit()
    return counts


def _of_units(of_rows: torch.Tensor, like: torch.Tensor, padding: float) -> torch.Tensor:
    """Values of rows as values of units: a flattened batch may end in units of padding."""
    extra = like.numel() - of_rows.numel()
    return torch.nn.functional.pad(of_rows.to(like), (0, extra), value=padding)
