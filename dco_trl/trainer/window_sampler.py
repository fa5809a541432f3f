"""Opens windows: samples rationales for their rows, counts the correct ones, and weighs the rows."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset

from ..grading import BulkGrader
from ..sampling import Sampler
from .cot_config import CoTDCOConfig
from .failures import raise_on_all_ranks
from .policy_sampler import PolicySampler
from .prepared_rows import PreparedRows
from .rationales import Draws, RationaleDrawer, add_draws, draw_metrics
from .success_counts import SuccessCounts
from .unit_metrics import IDLE_WEIGHT
from .window import RowStream, Window, distinct, hard_batches

logger = get_logger(__name__)

# Columns that tell a grader nothing about a rationale.
_NOT_FOR_GRADERS = {"completion", "input_ids", "labels", "num_sampled", "num_correct"}


class WindowSampler:
    """Samples for the rows of each window and weighs them by what is known of their problems.

    `dataset` holds the user's rows, `rows` the same as training has them; `model` is unwrapped.

    Attributes:
        counts: What is known of each problem's success rate.
        next_index: Index of the next rationale of each problem: draws go on from there, and never repeat.
        stream: The rows that the hard filter goes over.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: PreparedRows,
        model: Any,
        tokenizer: Any,
        grader: str | Callable,
        accelerator: Accelerator,
        args: CoTDCOConfig,
    ):
        self._rows, self._accelerator, self._args = rows, accelerator, args
        self.counts, self.next_index = SuccessCounts(len(dataset)), np.zeros(len(dataset), dtype=np.int64)
        if {"num_sampled", "num_correct"} <= set(dataset.column_names):
            first = np.unique(rows.problem_of)  # rows of the same problem have the same counts
            self.counts.add(first, *(np.asarray(dataset[name])[first] for name in ("num_sampled", "num_correct")))
            self.counts.refit()
        self._policy: PolicySampler | None = None
        self._grader: BulkGrader | None = None
        if args.sampler != "none":
            self._policy = PolicySampler(accelerator, model, tokenizer, args, rows.max_prompt_tokens)
            self._grader = BulkGrader(grader)
            columns = dataset.remove_columns(list(_NOT_FOR_GRADERS & set(dataset.column_names)))
            progress = not args.disable_tqdm and accelerator.is_local_main_process
            self._drawer = RationaleDrawer(
                columns.__getitem__, rows.prompt_ids, self._grader, tokenizer, args, progress
            )
        self._reported_idle = False
        self.start_afresh()

    def start_afresh(self) -> None:
        """Go back to the first row of the filter's stream, when training begins."""
        place = self._accelerator.process_index, self._accelerator.num_processes
        self.stream = RowStream(self._rows.rows, self._args.seed, *place)

    def open(self, batches: list[list[int]], step: int) -> tuple[Window, dict[str, float]]:
        """Sample for these micro-batches of rows. Return the window and what to log. Call it on every process."""
        started = time.perf_counter()
        window = Window(deque(batches))
        metrics: dict[str, float] = {}
        with self._policy.synchronised() if self._policy is not None else nullcontext() as sampler:
            # Each process draws as often as it needs to in here.
            with raise_on_all_ranks(self._accelerator, "sampling and grading rationales"):
                all_draws = self._fill(window, metrics, sampler, step)
        if self._policy is not None:
            everywhere: list[Draws] = gather_object(all_draws)
            add_draws(everywhere, self.counts, self.next_index, self._args.count_memory)
            metrics |= draw_metrics(everywhere)
            metrics["sampling_seconds"] = time.perf_counter() - started
        self.counts.refit()
        self._weigh(window, metrics)
        self._warn(window, metrics, step)
        return window, metrics

    def close(self) -> None:
        """Stop the engine and the grader's workers; both start again when they are needed."""
        for holder in (self._policy, self._grader):
            if holder is not None:
                holder.close()

    def state_dict(self) -> dict[str, Any]:
        """What all processes know, as JSON can hold it."""
        return {"counts": self.counts.state_dict(), "next_index": self.next_index.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.counts.load_state_dict(state["counts"])
        self.next_index = np.array(state["next_index"], dtype=np.int64)

    def _fill(self, window: Window, metrics: dict[str, float], sampler: Sampler | None, step: int) -> list[Draws]:
        """Draw for the rows of the window; under the hard filter, for rows that replace them."""
        problem_of, args, threshold = self._rows.problem_of, self._args, self._args.max_success_rate
        all_draws: list[Draws] = []

        def draw(problems: list[int]) -> np.ndarray:
            """Their success rates, from remembered counts and, with a sampler, from rationales drawn now."""
            n, c = self.counts.num_sampled[problems], self.counts.num_correct[problems]
            if sampler is not None:
                draws = self._drawer.draw(problems, self.counts, self.next_index, sampler)
                all_draws.append(draws)
                if args.targets == "sampled":
                    window.rationales |= draws.rationales
                n, c = self.counts.updated(problems, args.count_memory, draws.num_graded, draws.num_correct)
            if args.estimator == "plugin":
                return np.divide(c, n, out=np.zeros(len(n)), where=n > 0)
            return self.counts.rate(n, c)

        if threshold is None:
            draw(distinct(window.rows, problem_of))
            return all_draws
        hard, num_tried = hard_batches(window.batches, self.stream, problem_of, lambda some: draw(some) <= threshold)
        if not hard:
            raise RuntimeError(
                f"None of the {num_tried} rows tried has a success rate of at most `max_success_rate={threshold}`: "
                f"there is nothing left to train on. Raise it, leave it out, or stop here (step {step})."
            )
        window.batches = deque(hard)
        metrics["rows_kept"] = len(window.rows) / num_tried
        return all_draws

    def _weigh(self, window: Window, metrics: dict[str, float]) -> None:
        """Note weight and log p of the window's problems."""
        ids = np.array(distinct(window.rows, self._rows.problem_of))
        n, c = self.counts.num_sampled[ids], self.counts.num_correct[ids]
        # The authors' estimator says nothing about a prompt without graded rationales: it keeps weight 1.
        known = (n > 0) | (self._args.estimator == "posterior")
        weights = np.ones(len(ids))
        if known.any():
            weights[known], _ = self.counts.weights(ids[known], self._args.num_attempts, self._args.estimator)
        weights = np.maximum(weights, self._args.weight_floor)
        rates = self.counts.rate(n, c)
        estimates = zip(weights.tolist(), np.log(rates).tolist(), strict=True)
        window.estimates = dict(zip(ids.tolist(), estimates, strict=True))
        metrics["success_rate"] = float(rates.mean())
        if self._args.targets == "sampled":
            own = [self._rows.sampled(row, window.rationales) for row in window.rows]
            metrics["reference_targets"] = own.count([]) / len(own)

    def _warn(self, window: Window, metrics: dict[str, float], step: int) -> None:
        if metrics.get("rationales_truncated") == 1:
            logger.warning(
                f"All rationales sampled at step {step} were cut off at `max_rationale_tokens="
                f"{self._args.max_rationale_tokens}`, so none counts as right. Raise it; or, if the model does not "
                "end its answers yet, raise `ce_warmup_steps`."
            )
        weight = float(np.mean([weight for weight, _ in (window.estimates or {}).values()]))
        is_meant = self._args.num_attempts == 1 or self._args.weight_floor > IDLE_WEIGHT
        if not self._reported_idle and not is_meant and weight > IDLE_WEIGHT:
            self._reported_idle = True
            logger.warning(
                f"DCO is cross-entropy at step {step}: the mean weight is {weight:.3f}, because the mean success rate "
                f"of a sampled rationale is {metrics['success_rate']:.4f}. This passes once the model learns the "
                "task. If it does not, look at `rationales_truncated` and `rationales_unparsed`: rationales may be "
                "wrong in form alone."
            )
