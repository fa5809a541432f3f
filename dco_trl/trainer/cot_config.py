"""Arguments of `CoTDCOTrainer`."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from ..checks import check_integer
from .dco_config import DCOConfig

ESTIMATORS = ("posterior", "plugin")
SAMPLERS = ("transformers", "vllm", "server", "none")
TARGETS = ("reference", "sampled")
# What a checkpoint holds of the counts and the window.
STATE_NAME = "cot_state.json"


@dataclass
class CoTDCOConfig(DCOConfig):
    r"""Arguments of [`CoTDCOTrainer`][dco_trl.trainer.CoTDCOTrainer]: those of `DCOConfig`, and how p is estimated.

    Of TRL's own, look at `max_length`: its default of 1,024 tokens cuts training rows that are longer.

    Args:
        num_rationales: Most rationales sampled for one prompt in one window.
        rationale_batch: Rationales of a prompt sampled at a time, before looking whether more are needed.
        weight_tolerance: Posterior standard deviation of a prompt's weight at which its sampling stops; 0 draws
            `num_rationales` for every prompt. Lower it where weights must be more exact, or N is small.
        weight_floor: Least weight of a prompt. 0 leaves the weights as they are: the gradient is that of coverage, and
            training comes to rest. With `targets="sampled"` .1 found more at every k where it was tried, if the epoch
            is chosen; 1 is rejection-sampling fine-tuning, which draws as many rationales as DCO would.
        estimator: "posterior", the mean of \(F(N, p)\) over what the counts say about p; or "plugin", the authors'
            \(F(N, c/n)\), which is biased and never stops early.
        count_memory: What counts of earlier windows are multiplied by when their prompt comes up again: 0 forgets
            them, 1 takes the model for unchanged. `estimator="plugin"` forgets, as the authors do.
        sampling_interval: Optimizer steps between two samplings: a number, or "epoch". 1 is the authors' recipe.
        ce_warmup_steps: Steps of plain cross-entropy before the first sampling (not `warmup_steps`, which is the
            learning rate's). The authors use 20.
        max_success_rate: The authors' hard filter: rows whose success rate is above it are left out, and the batch is
            filled with further rows. None trains on every row.
        targets: "reference" trains on the given rationale (the paper); "sampled" on the model's own correct ones of
            the window, which makes the gradient that of coverage itself.
        num_targets: Most correct rationales per prompt and window to train on, with `targets="sampled"`: the first m
            that were drawn share the prompt's weight. More of them have the same expected gradient with less variance,
            and make the batch m times as large.
        sampler: "transformers" needs nothing more and samples the model in training; "vllm" runs an engine in this
            process, on the same device; "server" asks an OpenAI-compatible endpoint; "none" takes the counts in the
            data set's columns `num_sampled` and `num_correct`, which `dco-trl estimate` writes.
        sampler_kwargs: Options of the sampler's constructor, as a dictionary or JSON: `batch_size` for
            "transformers"; `gpu_memory_utilization`, `max_model_len`, … for "vllm"; `base_url`, and `model` if it is
            served under another name, for "server".
        coverage_at: As in `DCOConfig`, but none unless given: the reference rationale's own string has next to no
            probability. Use [`PassAtKCallback`][dco_trl.trainer.PassAtKCallback].
        max_rationale_tokens: Longest rationale, end of sequence included. A longer one is cut off and counts as wrong.

    Raises:
        ValueError: An argument is out of its range, or two do not go together.

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

    num_rationales: int = field(default=64, metadata={"help": "Most rationales sampled for one prompt in one window."})
    rationale_batch: int = field(
        default=8,
        metadata={"help": "Rationales of a prompt sampled at a time, before looking whether more are needed."},
    )
    weight_tolerance: float = field(
        default=0.15,
        metadata={
            "help": "Posterior standard deviation of a prompt's weight at which its sampling stops; 0 draws "
            "num_rationales for every prompt."
        },
    )
    weight_floor: float = field(
        default=0.0,
        metadata={
            "help": "Least weight of a prompt. 0.1 with targets='sampled' keeps training from coming to rest; 1 is "
            "rejection-sampling fine-tuning."
        },
    )
    estimator: Literal["posterior", "plugin"] = field(
        default="posterior",
        metadata={"help": "'posterior': the mean weight over what the counts say about p. 'plugin': the authors'."},
    )
    count_memory: float = field(
        default=0.5,
        metadata={
            "help": "What counts of earlier windows are multiplied by when their prompt comes up again: 0 forgets "
            "them, 1 takes the model for unchanged."
        },
    )
    sampling_interval: str = field(
        default="epoch",
        metadata={"help": "Optimizer steps between two samplings: a number, or 'epoch'. 1 is the authors' recipe."},
    )
    ce_warmup_steps: int = field(
        default=20,
        metadata={"help": "Steps of plain cross-entropy before the first sampling (not warmup_steps)."},
    )
    max_success_rate: float | None = field(
        default=None,
        metadata={
            "help": "The authors' hard filter: rows whose success rate is above it are left out, and the batch is "
            "filled with further rows. Unless given, every row is trained on."
        },
    )
    targets: Literal["reference", "sampled"] = field(
        default="reference",
        metadata={
            "help": "'reference' trains on the given rationale (the paper); 'sampled' on the model's own correct one."
        },
    )
    num_targets: int = field(
        default=1,
        metadata={
            "help": "Most of the model's own correct rationales per prompt and window to train on, with "
            "targets='sampled'. They share the prompt's weight."
        },
    )
    sampler: Literal["transformers", "vllm", "server", "none"] = field(
        default="transformers",
        metadata={
            "help": "What samples rationales. 'none': take the counts in the columns num_sampled and num_correct, "
            "which `dco-trl estimate` writes."
        },
    )
    sampler_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Options of the sampler, as a dictionary or JSON: {"batch_size": 128} for transformers, '
            '{"gpu_memory_utilization": 0.3} for vllm, {"base_url": "http://HOST:PORT/v1"} for server.'
        },
    )
    max_rationale_tokens: int = field(
        default=512,
        metadata={"help": "Longest rationale, end of sequence included. A longer one is cut off and counts as wrong."},
    )
    coverage_at: list[int] = field(
        default_factory=list,
        metadata={
            "help": "The k's for which evaluation logs eval_coverage@k. Unless given, none: it is that of the "
            "reference rationale's own string, which is next to nothing. Use PassAtKCallback."
        },
    )

    # From the shell it comes as JSON, as `model_init_kwargs` does.
    _VALID_DICT_FIELDS = [*DCOConfig._VALID_DICT_FIELDS, "sampler_kwargs"]

    def __post_init__(self) -> None:
        for name in ("num_rationales", "rationale_batch", "max_rationale_tokens", "num_targets"):
            setattr(self, name, check_integer(name, getattr(self, name)))
        self.ce_warmup_steps = check_integer("ce_warmup_steps", self.ce_warmup_steps, at_least=0)
        self.sampling_interval = _interval(self.sampling_interval)
        if not self.weight_tolerance >= 0:
            raise ValueError(
                f"`weight_tolerance` is a standard deviation of a weight, so at least 0, got {self.weight_tolerance}."
            )
        if not 0 <= self.weight_floor <= 1:
            raise ValueError(f"`weight_floor` is a weight, so from 0 to 1, got {self.weight_floor}.")
        if self.estimator == "plugin":
            self.count_memory = 0.0
        if not 0 <= self.count_memory <= 1:
            raise ValueError(f"`count_memory` must be from 0 to 1, got {self.count_memory}.")
        if self.max_success_rate is not None and not 0 < self.max_success_rate <= 1:
            raise ValueError(
                f"`max_success_rate` must be above 0 and at most 1, got {self.max_success_rate}. The authors use 0.1; "
                "leave it out to train on every row."
            )
        for name, choices in (("estimator", ESTIMATORS), ("targets", TARGETS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}={getattr(self, name)!r}` is none of {choices}. Choose one of them.")
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
        if self.num_required > 1:
            raise ValueError(
                f"`num_required={self.num_required}` has no weight from counts of sampled rationales yet. Leave it "
                "at 1, or train short answers with `DCOConfig`."
            )
        if self.unit != "sequence":
            raise ValueError(
                f"`unit={self.unit!r}` is for probabilities that are computed, and here p is that of whatever the "
                "grader takes as right, estimated from samples. Leave it at 'sequence'."
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size` would change the size of micro-batches whose rationales are sampled already. "
                "Lower `per_device_train_batch_size` until it fits, and raise `gradient_accumulation_steps` instead."
            )
        self.sampler_kwargs = _options(self.sampler_kwargs)
        if self.packing or self.eval_packing:
            raise ValueError(
                "`packing` merges rows, and each row's weight is that of its own prompt, sampled while training. Use "
                "`padding_free=True`, which wastes no padding either."
            )
        if self.sampler == "server" and "base_url" not in (self.sampler_kwargs or {}):
            raise ValueError(
                "`sampler='server'` needs the endpoint's address: "
                '`sampler_kwargs={"base_url": "http://127.0.0.1:8000/v1"}`.'
            )
        super().__post_init__()


def _options(value: Any) -> dict[str, Any] | None:
    """`sampler_kwargs` as a dictionary."""
    if value is None or isinstance(value, dict):
        return value
    try:
        options = json.loads(value)
    except (TypeError, ValueError):
        options = None
    if not isinstance(options, dict):
        raise ValueError(
            f"`sampler_kwargs` must be a dictionary, or JSON of one such as '{{\"batch_size\": 128}}', got {value!r}."
        )
    return options


def _interval(value: Any) -> Any:
    if value == "epoch":
        return value
    try:
        steps = int(value)
    except (TypeError, ValueError):
        steps = 0
    if steps < 1 or str(steps) != str(value):
        raise ValueError(
            f"`sampling_interval` must be 'epoch' or a number of optimizer steps of at least 1, got {value!r}."
        )
    return steps
