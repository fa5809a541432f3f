"""Arguments of `CoTDCOTrainer`."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ..checks import check_integer
from .dco_config import DCOConfig, with_help

# What a checkpoint holds of the counts and the window.
STATE_NAME = "cot_state.json"


@with_help
@dataclass
class CoTDCOConfig(DCOConfig):
    r"""Arguments of [`CoTDCOTrainer`][dco_trl.trainer.CoTDCOTrainer]: those of `DCOConfig`, and how p is estimated.

    Check TRL's `max_length` too: its default of 1,024 tokens cuts longer training rows.

    Args:
        num_rationales: Maximum number of rationales sampled per prompt and window.
        rationale_batch: Rationales sampled per prompt at a time, before checking whether more are needed.
        weight_tolerance: Posterior standard deviation of a prompt's weight at which its sampling stops; 0 draws
            `num_rationales` for every prompt. Lower it if weights must be more precise, or if N is small.
        weight_floor: Minimum weight of a prompt. 0 keeps the weights as they are: the gradient is that of coverage,
            and training comes to rest. With `targets="sampled"` and the best epoch chosen, .1 solved more at every k
            where it was tried. 1 is rejection-sampling fine-tuning, which draws as many rationales as DCO would.
        estimator: "posterior", the mean of F(N, p) over what the counts say about p; or "plugin", the authors'
            F(N, c/n), which is biased and never stops early.
        count_memory: Factor on a prompt's counts of earlier windows when it comes up again: 0 forgets them, 1 assumes
            that the model has not changed. `estimator="plugin"` always forgets them, as the authors do.
        sampling_interval: Optimizer steps between two samplings: a number, or "epoch". 1 is the authors' recipe.
        ce_warmup_steps: Steps of plain cross-entropy before the first sampling (not `warmup_steps`, which is the
            learning rate's). The authors use 20.
        max_success_rate: The authors' hard filter: rows with a higher success rate are left out, and other rows fill
            the batch. None trains on every row.
        targets: "reference" trains on the given rationale (the paper); "sampled" on the model's own correct ones of
            the window, which makes the gradient that of coverage itself.
        num_targets: Maximum number m of correct rationales to train on per prompt and window, with
            `targets="sampled"`: the first m that were drawn share the prompt's weight. A larger m keeps the expected
            gradient, lowers its variance, and makes the batch m times as large.
        sampler: "transformers" needs nothing more and samples the model in training; "vllm" runs an engine in this
            process, on the same device; "server" asks an OpenAI-compatible endpoint; "none" takes the counts in the
            data set's columns `num_sampled` and `num_correct`, which `dco-trl estimate` writes.
        sampler_kwargs: Options of the sampler's constructor, as a dictionary or JSON: `batch_size` for
            "transformers"; `gpu_memory_utilization`, `max_model_len`, … for "vllm"; `base_url`, and `model` if it is
            served under another name, for "server".
        coverage_at: The k's for which evaluation logs `eval_coverage@k`; none by default, because the reference
            rationale's own string has next to no probability. Use
            [`PassAtKCallback`][dco_trl.trainer.PassAtKCallback] instead.
        max_rationale_tokens: Maximum length of a rationale in tokens, end of sequence included. A longer one is cut
            off and counts as wrong.

    Raises:
        ValueError: An argument is out of its range, or two of them conflict.

    Examples:
        ```python
        >>> from dco_trl import CoTDCOConfig
        >>> args = CoTDCOConfig(
        ...     output_dir="model-cot-dco", num_attempts=64, sampler="vllm", sampler_kwargs={"max_model_len": 2048},
        ...     use_cpu=True, bf16=False, report_to="none",
        ... )
        >>> args.sampling_interval
        'epoch'

        ```

    References:
        Chen et al., arXiv 2502.07154, section on chain of thought; the authors' released code for the warm-up, the
        hard filter and `sampling_interval=1`.
    """

    num_rationales: int = 64
    rationale_batch: int = 8
    weight_tolerance: float = 0.15
    weight_floor: float = 0.0
    estimator: Literal["posterior", "plugin"] = "posterior"
    count_memory: float = 0.5
    sampling_interval: str = "epoch"
    ce_warmup_steps: int = 20
    max_success_rate: float | None = None
    targets: Literal["reference", "sampled"] = "reference"
    num_targets: int = 1
    sampler: Literal["transformers", "vllm", "server", "none"] = "transformers"
    sampler_kwargs: dict[str, Any] | str | None = None
    max_rationale_tokens: int = 512
    coverage_at: list[int] = field(default_factory=list)

    # A command line gives it as JSON, like `model_init_kwargs`.
    _VALID_DICT_FIELDS = [*DCOConfig._VALID_DICT_FIELDS, "sampler_kwargs"]

    def __post_init__(self) -> None:
        for name in ("num_rationales", "rationale_batch", "max_rationale_tokens", "num_targets"):
            setattr(self, name, check_integer(name, getattr(self, name)))
        self.ce_warmup_steps = check_integer("ce_warmup_steps", self.ce_warmup_steps, at_least=0)
        interval = str(self.sampling_interval)
        if interval != "epoch" and not (interval.isdecimal() and int(interval)):
            raise ValueError(
                "`sampling_interval` must be 'epoch' or a number of optimizer steps of at least 1, got "
                f"{self.sampling_interval!r}."
            )
        for name in ("weight_tolerance", "weight_floor", "count_memory"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a number from 0 to 1, got {getattr(self, name)}.")
        if self.estimator == "plugin":
            self.count_memory = 0.0
        if self.max_success_rate is not None and not 0 < self.max_success_rate <= 1:
            raise ValueError(
                f"`max_success_rate` must be above 0 and at most 1, got {self.max_success_rate}. The authors use 0.1; "
                "leave it out to train on every row."
            )
        if self.targets == "sampled" and self.sampler == "none":
            raise ValueError(
                "`targets='sampled'` trains on rationales sampled during training, and `sampler='none'` samples none. "
                "Choose a sampler, or `targets='reference'`."
            )
        if self.num_targets > 1 and self.targets != "sampled":
            raise ValueError(
                f"`num_targets={self.num_targets}` counts sampled rationales to train on, and "
                f"`targets={self.targets!r}` trains on the given one. Set `targets='sampled'`."
            )
        if self.num_required != 1 or self.unit != "sequence":
            raise ValueError(
                f"`num_required={self.num_required}` and `unit={self.unit!r}` are for probabilities that are "
                "computed, and here p is estimated from samples. Leave them at 1 and 'sequence', or train short "
                "answers with `DCOConfig`."
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size` would change the size of micro-batches whose rationales are already sampled. "
                "Lower `per_device_train_batch_size` until it fits, and raise `gradient_accumulation_steps` instead."
            )
        if self.packing or self.eval_packing:
            raise ValueError(
                "`packing` merges rows, and each row's weight is that of its own prompt, sampled while training. Use "
                "`padding_free=True`, which wastes no padding either."
            )
        if isinstance(self.sampler_kwargs, str):
            with suppress(ValueError):
                self.sampler_kwargs = json.loads(self.sampler_kwargs)
        if not isinstance(self.sampler_kwargs, dict | None):
            raise ValueError(
                "`sampler_kwargs` must be a dictionary, or JSON of one such as '{\"batch_size\": 128}', got "
                f"{self.sampler_kwargs!r}."
            )
        if self.sampler == "server" and "base_url" not in (self.sampler_kwargs or {}):
            raise ValueError(
                "`sampler='server'` needs the endpoint's address: "
                '`sampler_kwargs={"base_url": "http://127.0.0.1:8000/v1"}`.'
            )
        super().__post_init__()
