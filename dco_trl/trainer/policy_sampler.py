"""The sampler of a training run: it gets the current weights before each window and sleeps between windows."""

import inspect
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, is_peft_model

from ..checks import check_names
from ..sampling import Sampler, TransformersSampler, VLLMSampler, make_sampler
from ..sampling.vllm_sampler import check_engine_kwargs
from .cot_config import CoTDCOConfig
from .failures import raise_on_all_ranks
from .sharded_weights import Replica, gather_weights, is_sharded

logger = get_logger(__name__)

# vLLM's share of the device's memory; training has the rest. TRL has the same default.
_GPU_SHARE = 0.3
# Training decides which model is sampled and whether progress is shown.
_DECIDED = {"model", "revision", "adapter", "adapters", "progress"}


class PolicySampler:
    """Samples the model in training, through one of the three samplers.

    "transformers" samples the model itself. If the model is sharded, it samples a copy that is whole on each process
    while it is sampled. The other samplers load weights that are saved to a folder of this run in `output_dir`. A LoRA
    adapter is loaded as an adapter over untouched base weights, which may be quantised; a whole model's weights are
    reloaded in place. Only the main process loads weights into a server, and the others sample what it loaded.

    `model` is unwrapped. vLLM's `max_model_len` is `max_prompt_tokens` and `max_rationale_tokens` together.

    Raises:
        ValueError: The sampler does not support this way of training, an option is unknown, or the longest prompt
            leaves no room for a rationale.
    """

    def __init__(
        self, accelerator: Accelerator, model: Any, tokenizer: Any, args: CoTDCOConfig, max_prompt_tokens: int
    ):
        self._accelerator, self._model, self._tokenizer, self._args = accelerator, model, tokenizer, args
        kwargs: Any = args.sampler_kwargs or {}  # parsed, where it came as JSON
        self._options: dict[str, Any] = dict(kwargs)
        self._max_tokens = max_prompt_tokens + args.max_rationale_tokens
        self._folder: Path | None = None
        self._sampler: Any = None
        self._is_lora = is_peft_model(model)
        self._check_way_of_training()
        self._check_options()
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if args.sampler == "vllm" and isinstance(self._options.get("max_model_len"), int):
            context = self._options["max_model_len"]
        if context is not None and self._max_tokens > context:
            raise ValueError(
                f"The longest prompt has {max_prompt_tokens} tokens, which with `max_rationale_tokens="
                f"{args.max_rationale_tokens}` are more than the {context} of the context. Lower "
                "`max_rationale_tokens`, or drop the row."
            )
        self._is_sharded = is_sharded(accelerator)
        self._replica = Replica(model, accelerator) if self._is_sharded and args.sampler == "transformers" else None
        if args.sampler == "transformers":
            sampled = model if self._replica is None else self._replica.model
            self._in_memory = TransformersSampler(sampled, tokenizer=tokenizer, progress=False, **self._options)
        elif self._is_lora or args.sampler == "server":
            self._options.setdefault("model", model.config.name_or_path)
            if not self._options["model"]:
                raise ValueError(
                    f"The {'base ' * self._is_lora}model has no name or folder that a sampler could load it from: it "
                    "was made in memory. Save it and its tokenizer with `save_pretrained`, and pass the folder as "
                    "`model`."
                )

    @contextmanager
    def synchronised(self) -> Iterator[Sampler]:
        """The sampler, with the weights as they are now, while the context lasts. Enter it on every process."""
        if self._args.sampler == "transformers":
            whole = nullcontext() if self._replica is None else self._replica.filled()
            with whole, self._accelerator.autocast():
                yield self._in_memory
            return
        if self._folder is None:
            [name] = broadcast_object_list([f".dco-sampler-{uuid.uuid4().hex}"])
            self._folder = Path(self._args.output_dir or ".", name)
        state = self._gather() if self._is_sharded else None
        with raise_on_all_ranks(self._accelerator, "saving the weights for the sampler"):
            if self._accelerator.is_main_process:
                self._save(self._folder, state)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with raise_on_all_ranks(self._accelerator, "loading the weights into the sampler"):
            if self._accelerator.is_main_process:
                self._load(str(self._folder))
        if self._args.sampler == "server" and self._accelerator.num_processes > 1:
            self._follow(str(self._folder))
        try:
            yield self._sampler
        finally:
            if self._args.sampler == "vllm":
                self._sampler.sleep()

    def close(self) -> None:
        """Stop the engine, if one was started, and remove what was saved for it."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        # No process waits for another here: this also runs where only one has failed.
        if self._folder is not None and self._accelerator.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _check_way_of_training(self) -> None:
        sampler, accelerator = self._args.sampler, self._accelerator
        is_fsdp = accelerator.distributed_type == "FSDP"
        if accelerator.distributed_type == "MEGATRON_LM" or (is_fsdp and not accelerator.is_fsdp2):
            raise ValueError(
                f"Rationales cannot be sampled while {'FSDP 1' if is_fsdp else 'Megatron-LM'} shards the model. Use "
                "FSDP 2 (`fsdp_version: 2` in accelerate's configuration) or DeepSpeed ZeRO, or write the counts "
                "beforehand with `dco-trl estimate` and use `sampler='none'`."
            )
        if sampler == "vllm" and accelerator.num_processes > 1:
            raise ValueError(
                f"`sampler='vllm'` shares one process's device, and there are {accelerator.num_processes} processes. "
                "Start one or more vLLM servers and use `sampler='server'`."
            )

    def _check_options(self) -> None:
        sampler, own = self._args.sampler, {"batch_size"}
        # A server may have the model under another name.
        decided = _DECIDED - {"model"} if sampler == "server" else _DECIDED
        if taken := [name for name in self._options if name in decided]:
            raise ValueError(f"`sampler_kwargs` sets {', '.join(taken)}, which training decides. Leave it out.")
        if sampler == "vllm":
            own = set(inspect.signature(VLLMSampler).parameters)
            return check_engine_kwargs({name: value for name, value in self._options.items() if name not in own})
        if sampler == "server":
            from ..sampling import ServerSampler  # it needs an extra's packages

            own = set(inspect.signature(ServerSampler).parameters) - decided
        check_names(f"`sampler_kwargs` of `sampler={sampler!r}`", self._options, own)

    def _gather(self) -> dict[str, torch.Tensor]:
        """On the main process, the weights of a sharded model to save: an adapter's own, or all."""
        is_main = self._accelerator.is_main_process
        return gather_weights(
            self._model,
            self._accelerator,
            keep=lambda tensor: tensor.to("cpu", copy=True) if is_main else None,
            only=lambda tensor: tensor.requires_grad or not self._is_lora,
        )

    def _save(self, folder: Path, state: dict[str, torch.Tensor] | None) -> None:
        self._model.save_pretrained(folder, state_dict=state)
        # An adapter needs it too: vLLM reads the model's type beside the tokenizer, and complains twice without it.
        self._model.config.save_pretrained(folder)
        if self._sampler is None:
            self._tokenizer.save_pretrained(folder)

    def _load(self, weights: str) -> None:
        if self._sampler is None and self._args.sampler == "vllm":
            self._sampler = self._start_engine(weights)
            return
        if self._sampler is None:
            self._sampler = self._start_server(weights)
        elif self._args.sampler == "vllm":
            self._sampler.wake_up()
        if self._is_lora:
            self._sampler.load_adapter(weights)
        else:
            self._sampler.reload_weights(weights)

    def _follow(self, weights: str) -> None:
        """Let the other processes sample what the main one has loaded into the server."""
        is_main = self._accelerator.is_main_process
        [adapter] = broadcast_object_list([self._sampler.adapter_name if is_main else None])
        with raise_on_all_ranks(self._accelerator, "reaching the server"):
            if not is_main and self._sampler is None:
                self._sampler = self._start_server(weights)
            if not is_main and adapter is not None:
                self._sampler.load_adapter(adapter)

    def _start_server(self, tokenizer: str) -> Any:
        options = {"tokenizer": tokenizer, **self._options}
        model, base_url = options.pop("model"), options.pop("base_url")
        return make_sampler("server", model, base_url=base_url, progress=False, sampler_kwargs=options)

    def _start_engine(self, weights: str) -> Any:
        """vLLM in this process, with the first weights loaded."""
        from vllm.platforms import current_platform

        can_sleep = current_platform.is_sleep_mode_available()
        if not can_sleep:
            logger.info("vLLM cannot sleep on this platform: its engine keeps its memory while the model trains.")
        options = {
            "tokenizer": weights,
            "max_model_len": self._max_tokens,
            "gpu_memory_utilization": _GPU_SHARE,
            "enable_sleep_mode": can_sleep,
            "seed": self._args.seed,
            **self._options,
        }
        model, adapter = (options.pop("model"), weights) if self._is_lora else (weights, None)
        return make_sampler("vllm", model, adapter=adapter, progress=False, sampler_kwargs=options)
