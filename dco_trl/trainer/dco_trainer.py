"""`DCOTrainer`: TRL's `SFTTrainer` with each sequence's gradient weighted for coverage."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from trl import SFTTrainer

from ..coverage import coverage_weight
from .argument_checks import (
    CUTTING_STRATEGIES,
    check_loss_is_trls,
    check_sequences_stay_whole,
    why_sequences_are_sharded,
)
from .checkpoints import checkpoint_to_resume, writing_checkpoint
from .collator import INFO, ROW, BatchInfo, DCOCollator, DCOVisionCollator
from .conversations import drop_unsupported_assistant_mask, split_conversations
from .data_checks import check_images, check_texts, has_images, warn_about_baseline, why_not_an_answer
from .dco_config import DCOConfig
from .eval_log_p import EvalLogP, numbered
from .model_card import CITATION, complete_model_card
from .segments import Segments, one_label_per_unit, sum_by_example
from .sequence_checks import SequenceChecks, mode_of, naming_the_row
from .trl_contract import (
    DataCollatorForLanguageModeling,
    DataCollatorForVisionLanguageModeling,
    check_attributes,
    check_loss_uses_log_probs,
    check_methods,
    get_config_model_id,
)
from .unit_metrics import IDLE_AFTER_STEPS, METRICS, means_of, metrics_of_units, warn_if_idle


class DCOTrainer(SFTTrainer):
    r"""TRL's `SFTTrainer` with Direct Coverage Optimization.

    Each sequence's cross-entropy gradient is multiplied by \(F(N, p)\), where \(p\) is the model's own probability of
    the whole answer, end of sequence included:

    $$\nabla\ell = F(N, p)\,\nabla(-\log p), \qquad F(N, p) = \frac{N p (1-p)^{N-1}}{1 - (1-p)^N}$$

    which is the gradient of \(-\log(1 - (1-p)^N)\). With `num_attempts=1` it is `SFTTrainer`, bit for bit, on
    everything that `SFTTrainer` accepts. Only `compute_loss` is changed: padding, packing, LoRA, gradient
    checkpointing, data-parallel training and TRL's chunked loss, which never builds the logits, work as they do there.

    Beside TRL's metrics it logs these means over the sequences since the last log: `coverage_loss` (the objective, in
    nats; TRL's `loss` is the weighted surrogate), `coverage_weight` (mean \(F\)), `weight_below_0.1` (share of
    sequences that hardly train any more), `log_p` (nats). Evaluation adds `eval_coverage@k` for each k of
    `coverage_at`: the mean of \(1-(1-p)^k\) over the whole evaluation set, exact, without sampling; it counts only the
    reference's own string.

    Args:
        model: Model identifier, folder, `PreTrainedModel` or `PeftModel`, as in `SFTTrainer`. Pass the other
            arguments by name.
        args: A [`DCOConfig`][dco_trl.trainer.DCOConfig].
        data_collator: As in `SFTTrainer`; it must keep `labels`. None chooses TRL's.
        train_dataset: Rows that tell the answer from the prompt: `prompt` and `completion` columns (plain or
            conversational), conversations with `assistant_only_loss=True`, or tokenised rows with `labels`.
            Conversations of one answer are split into `prompt` and `completion` where the answer is not marked.
        eval_dataset: The same, or a dictionary of such data sets.
        processing_class: Tokenizer or processor; None loads the model's.
        **kwargs: Further arguments of `SFTTrainer`: `peft_config`, `callbacks`, …

    Raises:
        ValueError: A setting would replace the loss, or make p the probability of something other than one whole
            answer.
        TypeError: `args` is not a `DCOConfig`.
        RuntimeError: The trainer does not work with this version of TRL.

    Examples:
        ```python
        from datasets import Dataset
        from dco_trl import DCOConfig, DCOTrainer

        trainer = DCOTrainer(
            model="HuggingFaceTB/SmolLM2-135M",
            args=DCOConfig(output_dir="smollm2-dco", num_attempts=256),
            train_dataset=Dataset.from_dict({"prompt": ["2+2="], "completion": ["4"]}),
        )
        trainer.train()
        ```

    References:
        Chen et al., "Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical
        Reasoning", NeurIPS 2025, arXiv 2502.07154, section 4.

    Relations:
        Prefer `SFTTrainer` where the model will be sampled once. On a long chain of thought p is so small that every
        weight is 1 and this trainer is cross-entropy (reported once): use
        [`CoTDCOTrainer`][dco_trl.trainer.CoTDCOTrainer].
    """

    _tag_names = ["trl", "sft", "dco"]
    _name = "DCO"
    _paper = {
        "title": "Rethinking Fine-Tuning when Scaling Test-Time Compute: "
        "Limiting Confidence Improves Mathematical Reasoning",
        "id": "2502.07154",
        "citation": CITATION,
    }

    # Whether p of training rows is estimated from samples, and the files that a subclass writes into checkpoints.
    _estimates_p = False
    _own_state_files: tuple[str, ...] = ()

    args: DCOConfig
    model: torch.nn.Module

    def __init__(
        self,
        model: Any,
        *by_position: Any,
        args: DCOConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        if by_position:
            raise TypeError(
                f"`{type(self).__name__}` takes the arguments after `model` by name, and got {len(by_position)} by "
                "position: write args=…, train_dataset=…, eval_dataset=…, processing_class=…"
            )
        check_methods()
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = DCOConfig(f"{name.split('/')[-1]}-DCO")
        elif not isinstance(args, DCOConfig):
            raise TypeError(
                f"`args` must be a `DCOConfig`, got `{type(args).__name__}`: without `num_attempts` there is no "
                "coverage to optimise. Replace it with `DCOConfig`, which takes the same arguments."
            )
        evaluation = dict(eval_dataset) if isinstance(eval_dataset, Mapping) else {"eval": eval_dataset}
        # Where this is so, nothing needs p, and everything that `SFTTrainer` accepts is left to TRL.
        self._is_sft = args.num_attempts == 1 and args.loss_reduction == "token"
        # Modes, "train" or "eval", without coverage metrics, because p is not that of an answer and nothing needs it.
        self._has_no_p: set[str] = set()
        self._eval_log_p = EvalLogP()
        self._sequences = SequenceChecks(self)
        if not self._is_sft:
            check_loss_is_trls(args, kwargs.get("compute_loss_func"))
            check_sequences_stay_whole(args, kwargs.get("formatting_func"))
            args = drop_unsupported_assistant_mask(train_dataset, args, model, processing_class)
            train_dataset = split_conversations(train_dataset, args, "train")
        if has_images(train_dataset):  # `_prepare_dataset` does this for other rows
            for name, dataset in evaluation.items():
                dataset = numbered(dataset, "" if dataset is eval_dataset else name, self._eval_log_p)
                evaluation[name] = dataset if self._is_sft else split_conversations(dataset, args, name)
        # TRL accepts no mapping but a `dict`.
        eval_dataset = evaluation if isinstance(eval_dataset, Mapping) else evaluation["eval"]

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_attributes(self)
        self._sequences.check()
        if self._skip_prepare_dataset:
            for split, dataset in {"train": train_dataset, **evaluation}.items():
                if dataset is not None:
                    self._refuse(why_not_an_answer(dataset, args, split), mode_of(split))
                    if has_images(dataset) and not self._is_sft:
                        check_images(dataset, args, self.processing_class, split)
        self._refuse(why_sequences_are_sharded(self.accelerator.parallelism_config), "train", "eval")
        if not self._is_sft:
            check_loss_uses_log_probs(self)
        if type(self.data_collator) is DataCollatorForLanguageModeling:
            self.data_collator = DCOCollator(**vars(self.data_collator), splits_packs=not self._is_sft)
        elif type(self.data_collator) is DataCollatorForVisionLanguageModeling:
            self.data_collator = DCOVisionCollator(**vars(self.data_collator))

        self._num_sequences_in_batch: torch.Tensor | int | None = None
        self._train_sums: torch.Tensor | None = None
        self._eval_tables: list[torch.Tensor] = []
        is_watched = args.num_attempts > 1 and not self._estimates_p  # windows of samples report it themselves
        self._idle_sums = torch.zeros(3, dtype=torch.float64) if is_watched else None

    # ---------------------------------------------------------------- data

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Callable[[dict], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        if self._is_sft:
            is_cut = packing and args.packing_strategy in CUTTING_STRATEGIES
            is_one = packing and not self.padding_free  # TRL's packs are then one sequence each
            if is_cut or is_one or formatting_func is not None:
                self._has_no_p.add(mode_of(dataset_name))
        if isinstance(dataset, Dataset) and mode_of(dataset_name) == "eval" and not packing:
            dataset = numbered(dataset, "" if dataset_name == "eval" else dataset_name, self._eval_log_p)
        if not self._is_sft:
            dataset = split_conversations(dataset, args, dataset_name)
            check_texts(dataset, dataset_name)
        elif dataset_name == "train":
            warn_about_baseline(dataset, args)
        self._refuse(why_not_an_answer(dataset, args, dataset_name), mode_of(dataset_name))
        if isinstance(dataset, Dataset) and mode_of(dataset_name) not in self._has_no_p:
            # Tokenise first and cut afterwards, with TRL's own code both times, to see what the cut costs.
            whole = copy.copy(args)
            whole.max_length, whole.shuffle_dataset = None, False
            rows, how = dataset, (formatting_func, dataset_name)
            with naming_the_row(rows, self._tokenizer, dataset_name):
                dataset = super()._prepare_dataset(rows, processing_class, whole, False, *how)
            self._sequences.add(rows, dataset, dataset_name, packing)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _refuse(self, reason: str | None, *modes: str) -> None:
        """Raise a `ValueError` with the reason why p is not that of an answer; with one attempt, leave p out."""
        if reason is not None and not self._is_sft:
            raise ValueError(reason)
        if reason is not None:
            self._has_no_p.update(modes)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [ROW] if ROW not in columns else []

    # ---------------------------------------------------------------- loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        info: BatchInfo = inputs.pop(INFO, {})

        def weighted_model(*args: Any, **kwargs: Any) -> Any:
            outputs = model(*args, **kwargs)
            if not kwargs.get("fused_lm_head", False):
                return outputs  # TRL wants the logits, for metrics
            if self._is_sft and not self._knows_p(inputs):
                return outputs
            segments = self._segments(inputs, outputs.label_mask)
            log_p = self._log_p(segments, outputs.log_probs.detach(), info)
            weights = self._weights(log_p, info)
            self._record(log_p, weights, segments, info)
            scale = self._reduction_scale(segments, num_items_in_batch, info)
            per_token = segments.expand(weights if scale is None else weights * scale)
            per_token = per_token if self._is_sft else per_token * segments.label_mask
            return dataclasses.replace(outputs, log_probs=outputs.log_probs * per_token.to(outputs.log_probs.dtype))

        return super().compute_loss(weighted_model, inputs, return_outputs, num_items_in_batch)

    def _knows_p(self, inputs: dict[str, Any]) -> bool:
        """Whether the log-probabilities of this batch add up to those of answers."""
        mode = "train" if self.model.training else "eval"
        return mode not in self._has_no_p and ("seq_idx" in inputs or "attention_mask" in inputs)

    def _segments(self, inputs: dict[str, Any], label_mask: torch.Tensor) -> Segments:
        """Which tokens are one unit."""
        segments = Segments.of_batch(inputs, label_mask).up_to_end(*self._sequences.kinds_and_tokens(inputs))
        return segments.turns() if self.args.unit == "turn" else segments

    def _log_p(self, segments: Segments, log_probs: torch.Tensor, info: BatchInfo) -> torch.Tensor:
        """Log-probability of a right answer to each unit's prompt: here, of the unit itself."""
        return segments.sum(log_probs)

    def _weights(self, log_p: torch.Tensor, info: BatchInfo) -> torch.Tensor:
        """What each unit's gradient is multiplied by, detached."""
        return coverage_weight(log_p, self.args.num_attempts, num_required=self.args.num_required, validate=False)

    def _reduction_scale(
        self, segments: Segments, num_items_in_batch: torch.Tensor | int | None, info: BatchInfo
    ) -> torch.Tensor | None:
        """The factor that turns TRL's division by the number of tokens into the one asked for; None for 1."""
        if self.args.loss_reduction == "token":
            return None
        if num_items_in_batch is None:  # evaluation: this batch alone
            num_tokens, num_sequences = segments.label_mask.sum(), segments.valid.sum()
        else:
            num_tokens, num_sequences = map(torch.as_tensor, (num_items_in_batch, self._num_sequences_in_batch))
        scale = num_tokens / num_sequences.clamp(min=1).double()
        if self.args.loss_reduction == "sequence_mean":
            return scale / segments.num_tokens.clamp(min=1)
        return scale.expand(segments.num_segments)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        if self.args.loss_reduction != "token":
            # With one label per unit, the count of labels is that of units. The parent knows whether to add it up over
            # processes.
            batches = [self._segments(batch, batch["labels"][:, 1:] != -100) for batch in batch_samples]
            markers = [{"labels": one_label_per_unit(segments)} for segments in batches]
            self._num_sequences_in_batch = super()._get_num_items_in_batch(markers, device)
        return super()._get_num_items_in_batch(batch_samples, device)

    # ------------------------------------------------------------- metrics

    @torch.no_grad()
    def _record(self, log_p: torch.Tensor, weights: torch.Tensor, segments: Segments, info: BatchInfo) -> None:
        mode = "train" if self.model.training else "eval"
        table = metrics_of_units(log_p, weights, segments, self.args, mode)
        if mode == "train":
            sums = self.accelerator.reduce(table.sum(0), "sum")
            self._train_sums = sums if self._train_sums is None else self._train_sums + sums
            return
        # Evaluation on several processes repeats examples to even out the last batch; `gather_for_metrics` drops the
        # repeats, by example. The last column is the example's row.
        by_example = sum_by_example(segments.by_sequence(table), info.get("documents"))
        row = info["row"].to(by_example) if "row" in info else torch.full_like(by_example[:, 0], -1)
        self._eval_tables.append(self.accelerator.gather_for_metrics(torch.cat([by_example, row[:, None]], dim=1)))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        own = dict(self._eval_log_p.fingerprints)
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._eval_log_p.fingerprints = own  # a set passed to this evaluation is forgotten after it

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._eval_tables = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._eval_tables and output.metrics is not None:
            table = torch.cat(self._eval_tables).cpu()
            means = means_of(table[:, :-1].sum(0), self.state.global_step, may_be_nan=self._is_sft)
            for name, value in zip([*METRICS, *self.args.coverage_metrics], means, strict=True):
                output.metrics[f"{metric_key_prefix}_{name}"] = value
            table = table[(table[:, -1] >= 0) & (table[:, 0] > 0)]  # rows with an answer left
            if len(table) and metric_key_prefix.startswith("eval"):
                name = metric_key_prefix.removeprefix("eval").removeprefix("_")
                self._eval_log_p.keep(self.state.global_step, name, table[:, [-1, 1 + METRICS.index("log_p")]])
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        sums = self._train_sums
        if self.model.training and sums is not None:
            means = means_of(sums, self.state.global_step, may_be_nan=self._is_sft)
            for name, value in zip(METRICS, means, strict=True):
                self._metrics["train"][name].append(value)
            self._train_sums = None
            self._warn_when_idle(sums)
        super().log(logs, start_time)

    def _warn_when_idle(self, sums: torch.Tensor) -> None:
        if self._idle_sums is not None:
            self._idle_sums = self._idle_sums + sums[[0, 2, 4]].double().cpu()
            if self.state.global_step >= min(IDLE_AFTER_STEPS, self.state.max_steps):
                count, weight, log_p = self._idle_sums.tolist()
                warn_if_idle(count, weight, log_p, self.state.global_step, self.args)
                self._idle_sums = None

    # --------------------------------------------------------- checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir, self._own_state_files)
        return super().train(checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with writing_checkpoint(folder, self.args.should_save):
            self._save_own_state(folder)
            super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            self._eval_log_p.write(folder, self.state.global_step)

    def _save_own_state(self, folder: Path) -> None:
        """Write what a subclass needs to resume, on every process; nothing here."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Only `trainer_state.json` is written after this, and it must not come before another process's files.
        self.accelerator.wait_for_everyone()

    # ---------------------------------------------------------- model card

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir or ".", "README.md")
            complete_model_card(path, self, self.args.num_attempts, self.args.num_required)
