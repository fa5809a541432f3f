"""The sampler of a training run: given the current weights before each window, asleep between them."""

import dataclasses
import inspect
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, is_peft_model

from ..checks import check_integer
from ..sampling import Sampler, TransformersSampler, make_sampler
from ..sampling.arguments import check_names
from .cot_config import CoTDCOConfig
from .failures import failing_together

logger = get_logger(__name__)

# Of the device's memory, when training has the rest; TRL's own default for vLLM on the trainer's device.
_GPU_SHARE = 0.3


class PolicySampler:
    """Samples the model in training, through one of the three samplers.

    "transformers" samples the model itself, as it is. For the others the weights are saved to a folder of this run in
    `output_dir` and loaded from there: a LoRA adapter as an adapter, with the base weights staying where they are (so
    it is right for quantised ones too), a whole model by reloading its weights in place.

    Args:
        accelerator: The trainer's.
        model: The model in training, unwrapped.
        tokenizer: Training's, for the samplers to decode completions with.
        args: What samples, and its options.
        max_prompt_tokens: Longest prompt, which with `max_rationale_tokens` makes vLLM's `max_model_len`.

    Raises:
        ValueError: The sampler and the way of training do not go together, an option is unknown, or the longest prompt
            leaves no room for a rationale.
    """

    def __init__(
        self, accelerator: Accelerator, model: Any, tokenizer: Any, args: CoTDCOConfig, max_prompt_tokens: int
    ):
        self._accelerator, self._model, self._tokenizer, self._args = accelerator, model, tokenizer, args
        options: Any = args.sampler_kwargs or {}  # parsed, where it came as JSON
        self._options: dict[str, Any] = dict(options)
        self._max_prompt_tokens = max_prompt_tokens
        self._folder: Path | None = None
        self._sampler: Any = None
        self._is_lora = is_peft_model(model)
        self._reported_awake = False
        self._check_way_of_training()
        _check_options(args.sampler, self._options)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if args.sampler == "vllm" and isinstance(self._options.get("max_model_len"), int):
            context = self._options["max_model_len"]
        if context is not None and max_prompt_tokens + args.max_rationale_tokens > context:
            raise ValueError(
                f"The longest prompt has {max_prompt_tokens} tokens, which with `max_rationale_tokens="
                f"{args.max_rationale_tokens}` are more than the {context} of the context. Lower "
                "`max_rationale_tokens`, or drop the row."
            )
        if args.sampler == "transformers":
            self._in_memory = TransformersSampler(model, tokenizer=tokenizer, progress=False, **self._options)
        elif self._is_lora and "model" not in self._options:
            self._options["model"] = self._base_model()

    @contextmanager
    def synchronised(self) -> Iterator[Sampler]:
        """The sampler, with the weights as they are now, while the context lasts. Enter it on every process."""
        if self._args.sampler == "transformers":
            with self._accelerator.autocast():
                yield self._in_memory
            return
        if self._folder is None:
            [name] = broadcast_object_list([f".dco-sampler-{uuid.uuid4().hex}"])
            self._folder = Path(self._args.output_dir or ".", name)
        with failing_together(self._accelerator, "saving the weights for the sampler"):
            if self._accelerator.is_main_process:
                self._save(self._folder)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with failing_together(self._accelerator, "loading the weights into the sampler"):
            self._load(str(self._folder))
        try:
            yield self._sampler
        finally:
            if self._args.sampler == "vllm" and not self._sampler.sleep() and not self._reported_awake:
                self._reported_awake = True
                logger.info("vLLM cannot sleep on this platform: its engine keeps its memory while the model trains.")

    def close(self) -> None:
        """Stop the engine, if one was started, and remove what was saved for it."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        # Nobody waits for others here: this also runs where one process alone has failed.
        if self._folder is not None and self._accelerator.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _check_way_of_training(self) -> None:
        sampler, accelerator = self._args.sampler, self._accelerator
        if accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise ValueError(
                f"Rationales cannot be sampled while {accelerator.distributed_type} shards the model. Train with data "
                "parallelism (LoRA makes room), or write the counts beforehand with `dco-trl estimate` and use "
                "`sampler='none'`."
            )
        if sampler == "server" and not self._is_lora:
            raise ValueError(
                "`sampler='server'` can be given LoRA adapters, not the weights of a whole model. Train with LoRA "
                "(`peft_config`; in the shell `--use_peft`), or use `sampler='vllm'` or `sampler='transformers'`."
            )
        if sampler == "vllm" and accelerator.num_processes > 1:
            raise ValueError(
                f"`sampler='vllm'` shares one process's device, and there are {accelerator.num_processes} processes. "
                "Start one or more vLLM servers and use `sampler='server'`."
            )

    def _save(self, folder: Path) -> None:
        self._model.save_pretrained(folder)
        # Beside an adapter too: vLLM reads the model's kind where the tokenizer is, and complains twice without.
        self._model.config.save_pretrained(folder)
        if self._sampler is None:
            self._tokenizer.save_pretrained(folder)

    def _load(self, weights: str) -> None:
        if self._sampler is None:
            self._sampler = self._start(weights)
            return
        if self._args.sampler == "vllm":
            self._sampler.wake_up()
        if self._is_lora:
            self._sampler.load_adapter(weights)
        else:
            self._sampler.reload_weights(weights)

    def _start(self, weights: str) -> Any:
        """The sampler, with the first weights loaded."""
        options = {"tokenizer": weights, **self._options}
        if self._args.sampler == "server":
            model, base_url = options.pop("model"), options.pop("base_url")
            return make_sampler(
                "server", model, adapter=weights, base_url=base_url, progress=False, sampler_kwargs=options
            )
        options = {
            "max_model_len": self._max_prompt_tokens + self._args.max_rationale_tokens,
            "gpu_memory_utilization": _GPU_SHARE,
            "enable_sleep_mode": _can_sleep(),
            "seed": self._args.seed,
            **options,
        }
        model, adapter = (options.pop("model"), weights) if self._is_lora else (weights, None)
        return make_sampler("vllm", model, adapter=adapter, progress=False, sampler_kwargs=options)

    def _base_model(self) -> str:
        """Name or folder of the model under the adapter."""
        name = self._model.get_base_model().config.name_or_path
        if not name:
            raise ValueError(
                "The base model has no name or folder that a sampler could load it from: it was made in memory. Save "
                "it and its tokenizer with `save_pretrained`, and pass the folder as `model`."
            )
        return name


def _check_options(sampler: str, options: dict[str, Any]) -> None:
    known = _known_options(sampler)
    if known:
        check_names(f"`sampler_kwargs` of `sampler={sampler!r}`", options, known)
    if sampler == "transformers":
        check_integer("batch_size", options.get("batch_size", 1), note="in `sampler_kwargs`")


def _known_options(sampler: str) -> set[str]:
    """Names of the options of a sampler; none where they cannot be known."""
    if sampler == "transformers":
        return {"batch_size"}
    from .. import sampling

    if sampler == "server":
        return set(inspect.signature(sampling.ServerSampler).parameters) - {"adapter", "progress"}
    try:
        from vllm import LLM, EngineArgs
    except ImportError:
        return set()  # the sampler tells what to install
    names = {*inspect.signature(LLM).parameters, *(field.name for field in dataclasses.fields(EngineArgs))}
    names |= set(inspect.signature(sampling.VLLMSampler).parameters)
    return names - {"model", "revision", "adapter", "adapters", "progress", "kwargs", "engine_kwargs"}


def _can_sleep() -> bool:
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return False  # the sampler tells what to install
    return current_platform.is_sleep_mode_available()
