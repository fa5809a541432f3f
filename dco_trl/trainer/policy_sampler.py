"""The sampler of a training run: given the current weights before each window, asleep between them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model

from ..sampling import Sampler, TransformersSampler
from .cot_config import CoTDCOConfig

logger = get_logger(__name__)

# Of the device's memory, when training has the rest; TRL's own default for vLLM on the trainer's device.
_GPU_SHARE = 0.3


class PolicySampler:
    """Samples the model in training, through one of the three samplers.

    "transformers" samples the model itself, as it is. For the others the weights are saved to a folder in
    `output_dir` and loaded from there: a LoRA adapter as an adapter, with the base weights staying where they are (so
    it is right for quantised ones too), a whole model by reloading its weights in place.

    Args:
        accelerator: The trainer's.
        model: The model in training, unwrapped.
        tokenizer: Training's, for the samplers to render prompts with.
        args: What samples, and its options.
        max_prompt_tokens: Longest prompt, which with `max_rationale_tokens` makes vLLM's `max_model_len`.

    Raises:
        ValueError: The sampler and the way of training do not go together.
    """

    def __init__(
        self, accelerator: Accelerator, model: Any, tokenizer: Any, args: CoTDCOConfig, max_prompt_tokens: int
    ):
        self._accelerator, self._model, self._tokenizer, self._args = accelerator, model, tokenizer, args
        options: Any = args.sampler_kwargs or {}  # parsed, where it came as JSON
        self._options: dict[str, Any] = dict(options)
        self._max_prompt_tokens = max_prompt_tokens
        self._folder = Path(args.output_dir or ".", "sampler")
        self._sampler: Any = None
        self._is_lora = is_peft_model(model)
        self._said_it_stays_awake = False
        sharded = accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
        if sharded:
            raise ValueError(
                f"Rationales cannot be sampled while {accelerator.distributed_type} shards the model. Train with data "
                "parallelism (LoRA makes room), or write the counts beforehand with `dco-trl estimate` and use "
                "`sampler='none'`."
            )
        if args.sampler == "server" and not self._is_lora:
            raise ValueError(
                "`sampler='server'` can be given LoRA adapters, not the weights of a whole model. Train with LoRA "
                "(`peft_config`), or use `sampler='vllm'` or `sampler='transformers'`."
            )
        if args.sampler == "vllm" and accelerator.num_processes > 1:
            raise ValueError(
                f"`sampler='vllm'` shares one process's device, and there are {accelerator.num_processes} processes. "
                "Start one or more vLLM servers and use `sampler='server'`."
            )

    @contextmanager
    def synchronised(self) -> Iterator[Sampler]:
        """The sampler, with the weights as they are now, while the context lasts."""
        if self._args.sampler == "transformers":
            with self._accelerator.autocast():
                yield TransformersSampler(self._model, tokenizer=self._tokenizer, progress=False, **self._options)
            return
        if self._accelerator.is_main_process:
            self._save()
        self._accelerator.wait_for_everyone()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        weights = str(self._folder / "weights")
        if self._sampler is None:
            self._sampler = self._start(weights)
        else:
            if self._args.sampler == "vllm":
                self._sampler.wake_up()
            if self._is_lora:
                self._sampler.load_adapter(weights)
            else:
                self._sampler.reload_weights(weights)
        try:
            yield self._sampler
        finally:
            if self._args.sampler == "vllm" and not self._sampler.sleep() and not self._said_it_stays_awake:
                self._said_it_stays_awake = True
                logger.info("vLLM cannot sleep on this platform: its engine keeps its memory while the model trains.")

    def close(self) -> None:
        """Stop the engine, if one was started, and remove what was saved for it."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self) -> None:
        self._model.save_pretrained(self._folder / "weights")
        # Beside an adapter too: vLLM reads the model's kind where the tokenizer is, and complains twice without.
        self._model.config.save_pretrained(self._folder / "weights")
        if self._sampler is None:
            self._tokenizer.save_pretrained(self._folder / "weights")

    def _start(self, weights: str) -> Any:
        """The sampler, with the first weights loaded."""
        options = {**self._options}
        if self._args.sampler == "server":
            from ..sampling import ServerSampler

            name = options.pop("model", None) or self._base_model()
            options = {"tokenizer": weights, "progress": False, **options}
            return ServerSampler(name, adapter=weights, **options)
        from ..sampling import VLLMSampler

        options = {
            "tokenizer": weights,
            "max_model_len": self._max_prompt_tokens + self._args.max_rationale_tokens,
            "gpu_memory_utilization": _GPU_SHARE,
            "enable_sleep_mode": _can_sleep(),
            "seed": self._args.seed,
            "progress": False,
            **options,
        }
        if self._is_lora:
            return VLLMSampler(self._base_model(), adapter=weights, **options)
        return VLLMSampler(weights, **options)

    def _base_model(self) -> str:
        """Name or folder of the model under the adapter."""
        name = self._model.get_base_model().config.name_or_path
        if not name:
            raise ValueError(
                "The base model has no name or folder that a sampler could load it from: it was made in memory. Save "
                "it and its tokenizer with `save_pretrained`, and pass the folder as `model`."
            )
        return name


def _can_sleep() -> bool:
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return False  # VLLMSampler says what to install
    return current_platform.is_sleep_mode_available()
