"""`CoTDCOTrainer`: DCO where the probability of the right answer is estimated from sampled rationales."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset

from .checkpoints import read_state, write_state
from .collator import INFO, ROW, BatchInfo
from .cot_config import STATE_NAME, CoTDCOConfig
from .data_checks import check_has_answers, check_has_counts, has_images
from .dco_trainer import DCOTrainer
from .prepared_rows import PreparedRows
from .segments import Segments
from .window import Window
from .window_sampler import WindowSampler


class CoTDCOTrainer(DCOTrainer):
    r"""DCO on chains of thought: the probability of the right answer is estimated from sampled rationales.

    Many rationales c lead to the same answer y, so its probability is a sum that has no closed form,
    \(p = \sum_c \pi(c, y \mid x)\). It is estimated by sampling: of n rationales of a prompt, k are graded correct.
    With \(a, b\) a prior fitted to the data set's own counts, a row's gradient is multiplied by

    $$w = \mathbb{E}\left[F(N, p) \mid p \sim \mathrm{Beta}(a + k,\, b + n - k)\right]$$

    (`estimator="plugin"`: the authors' \(F(N, k/n)\)), or by `weight_floor`, if that is more. The rest is
    [`DCOTrainer`][dco_trl.trainer.DCOTrainer].

    Training proceeds in windows of `sampling_interval` optimizer steps. At the start of a window the sampler gets the
    current weights and draws rationales for the window's distinct prompts, in rounds of `rationale_batch`. Sampling of
    a prompt stops once its weight is known to `weight_tolerance`, or after `num_rationales`. Counts are remembered, at
    a discount, until the prompt comes up again.

    Each window logs `success_rate`, the mean estimate of p over its prompts, and what became of its rationales (the
    guide on chains of thought has a table). The metrics of `DCOTrainer` are logged too, over the sequences trained on:
    `coverage_weight`, and `coverage_loss` and `log_p` at the estimated p.

    Args:
        model: Model identifier, folder, `PreTrainedModel` or `PeftModel`, as in `SFTTrainer`.
        args: A [`CoTDCOConfig`][dco_trl.trainer.CoTDCOConfig].
        data_collator: Must be None: TRL's own puts rows together after their rationales are sampled.
        train_dataset: Rows with `prompt`, `completion` (rationale and answer) and `answer` (the reference to grade
            by); further columns reach the grader. With `sampler="none"`, `num_sampled` and `num_correct` in place of
            `answer`. With a sampler, such counts are the first window's memory.
        eval_dataset: As in `DCOTrainer`; the reference rationale is evaluated.
        processing_class: As in `SFTTrainer`.
        grader: "math", "exact", an import path "package.module:function", or a function with the signature of TRL's
            reward functions.
        **kwargs: Further arguments of `SFTTrainer`: `peft_config`, `callbacks`, …

    Raises:
        ValueError: As `DCOTrainer`; or the data set lacks what sampling and grading need; or the sampler does not
            support this way of training, or one of `sampler_kwargs`; or a prompt leaves no room for a rationale.
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
    _estimates_p = True
    _own_state_files = (STATE_NAME,)

    args: CoTDCOConfig
    _is_resumed = False
    _trained_since: float | None = None

    def __init__(
        self,
        model: Any,
        *,
        args: CoTDCOConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: Any = None,
        grader: str | Callable = "math",
        **kwargs: Any,
    ):
        if not isinstance(args, CoTDCOConfig):
            raise TypeError(
                f"`args` must be a `CoTDCOConfig`, got `{type(args).__name__}`: it says how rationales are sampled."
            )
        if not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"`train_dataset` must be a `Dataset`, got `{type(train_dataset).__name__}`: success rates are "
                "remembered by row, so rows need numbers. Download a streaming data set, for example with "
                "`Dataset.from_list(list(stream))`."
            )
        if data_collator is not None:
            raise ValueError(
                "`data_collator` must be TRL's own: rows are put together after their rationales are sampled. Leave "
                "it out."
            )
        if has_images(train_dataset):
            raise ValueError(
                "The train dataset has pictures, and no sampler here shows them to a model: rationales cannot be "
                "sampled. Train short answers with `DCOTrainer`."
            )
        if args.sampler == "none" or {"num_sampled", "num_correct"} <= set(train_dataset.column_names):
            check_has_counts(train_dataset)
        if args.sampler != "none":
            check_has_answers(train_dataset)

        super().__init__(
            model,
            args=args,
            train_dataset=train_dataset.add_column(ROW, np.arange(len(train_dataset))),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )

        answers = train_dataset["answer"][:] if "answer" in train_dataset.column_names else None
        prepared: Any = self.train_dataset
        self._rows = PreparedRows(prepared, len(train_dataset), answers, args.max_length)
        model = self.accelerator.unwrap_model(self.model)
        self._windows = WindowSampler(
            train_dataset, self._rows, model, self._tokenizer, grader, self.accelerator, args
        )
        self._window = Window()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # Forget the window, not the counts.
        self._window, self._is_resumed, self._trained_since = Window(), False, None
        self._windows.start_afresh()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._windows.close()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.model.training and "weight" not in inputs.get(INFO, {}):
            raise RuntimeError(
                f"A training batch came without `{INFO}`, the weights of its rows, got {sorted(inputs)}: each row "
                "would be weighted by the probability of its own rationale. `CoTDCOTrainer.get_batch_samples` adds "
                "them; code that replaces or copies batches afterwards must keep them."
            )
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _log_p(self, segments: Segments, log_probs: torch.Tensor, info: BatchInfo) -> torch.Tensor:
        own = super()._log_p(segments, log_probs, info)
        return _of_units(info["log_p"], own, 0.0) if "log_p" in info else own

    def _weights(self, log_p: torch.Tensor, info: BatchInfo) -> torch.Tensor:
        return _of_units(info["weight"], log_p, 1.0) if "weight" in info else super()._weights(log_p, info)

    def _reduction_scale(self, segments: Segments, num_items_in_batch: Any, info: BatchInfo) -> torch.Tensor | None:
        scale = super()._reduction_scale(segments, num_items_in_batch, info)
        if "share" not in info:
            return scale
        shares = _of_units(info["share"], segments.num_tokens.double(), 0.0) * self._sequences_per_row
        return shares if scale is None else scale * shares

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one optimizer step. When a window is used up, the next is opened and sampled for.

        The epoch's iterator only tells which rows come next. They are put together when they are served, with their
        weights and, for `targets="sampled"`, their rationales.
        """
        if self._is_resumed:
            for _ in islice(epoch_iterator, len(self._window.batches)):
                pass  # rows of the window that the checkpoint was made in
            self._is_resumed = False
        if not self._window.batches:
            self._open_window(epoch_iterator)
        batches = self._window.batches
        rows = [batches.popleft() for _ in range(min(num_batches, len(batches)))]
        served = [self._collate(some) for some in rows]
        if self.args.num_targets > 1:
            self._sequences_per_row = self._measure_sequences_per_row(rows, device)
        return super().get_batch_samples(iter(served), num_batches, device)

    def _open_window(self, epoch_iterator: Iterator) -> None:
        args, step = self.args, self.state.global_step
        metrics: dict[str, float] = {}
        if self._trained_since is not None:
            metrics["training_seconds"] = time.perf_counter() - self._trained_since
        is_warmup = step < args.ce_warmup_steps
        num_steps = self.state.max_steps - step
        if is_warmup:
            num_steps = min(num_steps, args.ce_warmup_steps - step)
        elif args.sampling_interval != "epoch":
            num_steps = min(num_steps, int(args.sampling_interval))
        upcoming = islice(epoch_iterator, num_steps * args.gradient_accumulation_steps)
        batches = [batch[INFO]["row"].tolist() for batch in upcoming]
        self._window = Window(deque(batches))
        if batches and not is_warmup:
            self._window, sampled = self._windows.open(batches, step)
            metrics |= sampled
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        self._trained_since = time.perf_counter()

    def _targets(self, row: int) -> list[tuple[dict[str, list[int]], float]]:
        """The sequences to train on for a row, and the share of its weight that each has."""
        return self._rows.sampled(row, self._window.rationales) or [(self._rows.reference(row), 1.0)]

    def _collate(self, rows: list[int]) -> dict[str, Any]:
        """A micro-batch of these rows, with what is known of its sequences."""
        targets = [(row, *target) for row in rows for target in self._targets(row)]
        of_row, examples, shares = zip(*targets, strict=True)
        estimates = self._window.estimates or defaultdict(lambda: (1.0, 0.0))
        known = torch.tensor([estimates[self._rows.problem_of[row]] for row in of_row])
        batch = self.data_collator(list(examples))
        info = batch.setdefault(INFO, {})
        info["weight"] = known[:, 0]
        if self._window.estimates is not None:  # plain cross-entropy logs the rows' own log p
            info["log_p"] = known[:, 1]
        if self.args.num_targets > 1:
            info["share"] = torch.tensor(shares)
        return batch

    def _measure_sequences_per_row(self, batches: list[list[int]], device: torch.device) -> torch.Tensor:
        """The factor on shares that normalises the loss by rows, not by their sequences.

        TRL divides by the tokens of all sequences, or `loss_reduction` by their number. A row of several sequences
        must count as one sequence of their mean length.
        """
        targets = [target for rows in batches for row in rows for target in self._targets(row)]
        sizes = np.ones(len(targets))
        if self.args.loss_reduction == "token":
            sizes = np.array([sum(label != -100 for label in example["labels"]) for example, _ in targets])
        shares = np.array([share for _, share in targets])
        totals = torch.tensor([sizes.sum(), (shares * sizes).sum()], dtype=torch.float64, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        return totals[0] / totals[1]

    def _save_own_state(self, folder: Path) -> None:
        processes = gather_object([{"window": self._window.state_dict(), "place": self._windows.stream.place}])
        if self.args.should_save:
            write_state(folder / STATE_NAME, {**self._windows.state_dict(), "processes": processes})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # DeepSpeed loads weights elsewhere; this comes after them in every case.
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint, STATE_NAME))
        if len(state["processes"]) != self.accelerator.num_processes:
            raise ValueError(
                f"The checkpoint {checkpoint} was made by {len(state['processes'])} processes, and there "
                f"are {self.accelerator.num_processes}: their windows cannot be divided differently. Resume with as "
                "many processes."
            )
        self._windows.load_state_dict(state)
        own = state["processes"][self.accelerator.process_index]
        self._window, self._is_resumed = Window.from_state_dict(own["window"]), True
        self._windows.stream.place = tuple(own["place"])


def _of_units(values: torch.Tensor, like: torch.Tensor, padding: float) -> torch.Tensor:
    """Values of a batch's sequences as values of units: a flattened batch may end in units of padding."""
    if values.numel() > like.numel():
        raise RuntimeError(
            f"A training batch of {like.numel()} sequences came with the weights of {values.numel()}: it was cut "
            "after `CoTDCOTrainer.get_batch_samples` had put it together."
        )
    return torch.nn.functional.pad(values.to(like), (0, like.numel() - values.numel()), value=padding)
