"""Sampling with Transformers' `generate`: the default, which needs no more packages than training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..checks import check_integer
from ..errors import UserError
from .adapters import LoadedAdapters, evaluating, learns_prompt
from .fingerprint import describe, describe_options
from .logits_processors import InverseCDF, StopStrings
from .protocol import Sample, SampleRequest, SamplingParams, as_asked, settle
from .tokens import Codec, Codecs, Ends

# Loading options about place and access, or recorded under another name: they do not change the distribution.
_HARMLESS = {
    *("dtype", "device_map", "max_memory", "low_cpu_mem_usage", "offload_folder", "offload_state_dict"),
    *("cache_dir", "local_files_only", "force_download", "proxies", "token"),
}


class TransformersSampler:
    """Sample with Transformers, on the device of the model.

    Each token is the inverse of the cumulative distribution at the next of the sample's own uniform numbers, from a
    counter-based generator (Philox) keyed by seed, problem and index. So a sample does not depend on the other rows of
    its batch (except for rounding in the model), no draw repeats between chunks, and PyTorch's global random state,
    which a trainer depends on, is neither read nor changed.

    Each distinct prompt of a batch goes through the model once, and its key-value cache is copied to its rows. A batch
    lasts until its longest sequence ends; where lengths vary much, vLLM is faster.

    Args:
        model: Folder or hub name; or a model in memory, such as the one being trained, unwrapped from DDP or FSDP.
            Each module's mode and the generation config are restored after sampling, also after an error.
        tokenizer: The model's tokenizer; None loads it from `model`'s name. An adapter with a tokenizer in its folder,
            where training saves it, uses that one.
        adapter: Folder of a PEFT adapter to load on top; only with a model given by name.
        revision: Hub revision of model and tokenizer.
        batch_size: Sequences generated at the same time.
        progress: Show a progress bar on standard error.
        **model_kwargs: For `AutoModelForCausalLM.from_pretrained`. `dtype` is "auto" unless given; the model goes to
            the accelerator if there is one, unless `device_map` says otherwise. Options that change the distribution
            are part of the sampler's identity.

    Raises:
        UserError: An argument that only applies to a model given by name, an encoder-decoder, or an unknown option.

    Examples:
        >>> from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler
        >>> sampler = TransformersSampler("Qwen/Qwen2.5-0.5B")  # doctest: +SKIP
        >>> [samples] = sampler.sample([SampleRequest("2 + 2 =", num_samples=8)], SamplingParams())  # doctest: +SKIP

    Relations:
        Prefer `VLLMSampler` for long completions or many samples, and `ServerSampler` for a model served elsewhere.
        Transformers' continuous batching seeds a whole run, not each sequence, so a resumed run would repeat draws.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        adapter: str | None = None,
        revision: str | None = None,
        batch_size: int = 64,
        progress: bool = True,
        **model_kwargs: Any,
    ):
        self.batch_size, self.progress = check_integer("batch_size", batch_size), progress
        self._options = describe_options("model_kwargs", model_kwargs, _HARMLESS)
        self._revision = revision
        self._in_memory = not isinstance(model, str)
        # None: a model in memory as it is. "": the model alone.
        self._adapter: str | None = None if self._in_memory else ""
        if isinstance(model, str):
            self._name, loaded = model, _load(model, revision, model_kwargs)
        else:
            given = {"adapter": adapter, "revision": revision, **model_kwargs}
            given = {name: value for name, value in given.items() if value is not None}
            if given:
                raise UserError(
                    f"{', '.join(given)} cannot be combined with a model in memory, which is sampled as it is. Load "
                    "the adapter into the model first (`PeftModel.from_pretrained`), or pass the model by name."
                )
            self._name, loaded = model.config.name_or_path or "", model
        if loaded.config.is_encoder_decoder:
            raise UserError(f"model={self._name!r} is an encoder-decoder; only causal language models are sampled.")
        self._adapters: Any = LoadedAdapters(loaded)
        tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(
            self._name, revision=revision, **{k: v for k, v in model_kwargs.items() if k == "gguf_file"}
        )
        self._codecs = Codecs(tokenizer, self._adapters.base_model.generation_config)
        if adapter is not None:
            self.load_adapter(adapter)

    @property
    def model(self) -> Any:
        """The model, with the adapters that are loaded; None once the sampler is closed."""
        return None if self._adapters is None else self._adapters.model

    @property
    def codec(self) -> Codec:
        """The codec of the adapter, if it has a tokenizer of its own, else of the model."""
        return self._codecs.of(self._adapter)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that renders prompts and decodes completions."""
        return self.codec.tokenizer

    def load_adapter(self, adapter: str | None) -> None:
        """Sample with the PEFT adapter of this folder from now on, and no other; None goes back to the model alone.

        Raises:
            ValueError: The model is in memory; it stays as it is.
        """
        self._refuse_in_memory(adapter)
        self._adapters.clear()
        if adapter is not None:
            self._adapters.load(adapter)
        self._adapter = adapter or ""

    def _refuse_in_memory(self, adapter: str | None) -> None:
        if self._in_memory:
            raise UserError(
                f"adapter={adapter!r} cannot be loaded into a model in memory, which is sampled as it is. Pass the "
                "model by name."
            )

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """As `Sampler.sample`.

        Raises:
            ValueError: A prompt leaves no room for `max_tokens` in the model's context.
        """
        if self.model is None:
            raise RuntimeError("This sampler is closed. Make a new one.")
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        settled = settle(requests, params, self._adapter)
        prompts: list[Any] = self._codecs.encode(
            settled, params.max_tokens, context, "Lower max_tokens or drop the prompt."
        )
        # A batch has one adapter and one temperature.
        groups: dict[Any, list[int]] = {}
        for r, request in enumerate(settled):
            groups.setdefault((request.adapter, request.params(params)), []).append(r)
        ends = {adapter: self._codecs.of(adapter).ends(params.stop) for adapter, _ in groups}
        for adapter in filter(None, ends):
            self._refuse_in_memory(adapter)
            self._adapters.load(adapter)
        drawn: list[list[Any]] = [[None] * request.num_samples for request in settled]
        bar = tqdm(total=sum(map(len, drawn)), desc="sampling", unit="sample", disable=not self.progress)
        with _ready_to_generate(self.model, self._adapters.base_model), bar:
            for (adapter, how), members in groups.items():
                # Longest first: if memory is too small, this fails at once.
                order = sorted(members, key=lambda r: len(prompts[r]), reverse=True)
                rows = [(r, i) for r in order for i in range(settled[r].num_samples)]
                for start in range(0, len(rows), self.batch_size):
                    batch = rows[start : start + self.batch_size]
                    uniforms = np.stack([_uniforms(settled[r], i, how) for r, i in batch])
                    samples = self._generate(adapter, [prompts[r] for r, _ in batch], uniforms, how, ends[adapter])
                    for (r, i), sample in zip(batch, samples, strict=True):
                        drawn[r][i] = sample
                    bar.update(len(batch))
        return as_asked(drawn, requests)

    def identity(self) -> dict[str, Any]:
        """As `Sampler.identity`."""
        commit = getattr(self._adapters.base_model.config, "_commit_hash", None)
        # A model in memory may no longer have the weights of its folder.
        model = {"model": self._name} if self._in_memory else describe("model", self._name)
        return {
            "sampler": f"transformers ({'in memory' if self._in_memory else 'loaded'})",
            **model,
            "revision": commit or self._revision or "",
            **describe("adapter", self._adapter),
            "dtype": str(self._adapters.base_model.dtype),
            **self._options,
            "transformers_version": transformers.__version__,
            "torch_version": torch.__version__,
        }

    def close(self) -> None:
        """Release the model."""
        self._adapters = None

    @torch.no_grad()
    def _generate(
        self, adapter: str | None, prompts: list[list[int]], uniforms: np.ndarray, params: SamplingParams, ends: Ends
    ) -> list[Sample]:
        """One sample of each prompt of a batch."""
        device, codec = self.model.device, self._codecs.of(adapter)
        row_of: dict[tuple[int, ...], int] = {}
        which = torch.tensor([row_of.setdefault(tuple(ids), len(row_of)) for ids in prompts], device=device)
        width = max(map(len, row_of))
        pad_id = codec.tokenizer.pad_token_id if codec.tokenizer.pad_token_id is not None else codec.end_ids[0]
        padded = [[pad_id] * (width - len(ids)) + list(ids) for ids in row_of]
        input_ids = torch.tensor(padded, device=device)
        lengths = torch.tensor(list(map(len, row_of)), device=device)
        attention_mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()

        processors = LogitsProcessorList()
        if foreign_tokens := list(self._adapters.foreign_tokens(adapter)):
            processors.append(SuppressTokensLogitsProcessor(foreign_tokens, device=str(device)))
        if params.temperature > 0:
            if params.temperature != 1:
                processors.append(TemperatureLogitsWarper(params.temperature))
            if params.top_k > 0:
                processors.append(TopKLogitsWarper(params.top_k))
            if params.top_p < 1:
                processors.append(TopPLogitsWarper(params.top_p))
            processors.append(InverseCDF(uniforms, width, device))
        stops = StopStrings(codec, ends, prompts, width, device)

        with self._adapters.working(adapter):
            generator = self._adapters.base_model
            cache: dict[str, DynamicCache] = {}
            if learns_prompt(self.model):
                generator = self.model  # its virtual tokens go in front, and a cache computed here would lack them
            elif len(row_of) < len(prompts) and width > 1:
                cache = _prompt_cache(generator, input_ids[:, :-1], attention_mask[:, :-1], which)
            output = generator.generate(
                input_ids=input_ids[which],
                attention_mask=attention_mask[which],
                # Greedy on what InverseCDF leaves, which is the token it drew.
                generation_config=GenerationConfig(
                    max_new_tokens=params.max_tokens,
                    do_sample=False,
                    use_cache=True,
                    eos_token_id=list(ends.ids),
                    pad_token_id=pad_id,
                ),
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([stops] if ends.strings else []),
                **cache,
            )
        completions = []
        for ids, stopped_at in zip(output[:, width:].tolist(), stops.lengths.tolist(), strict=True):
            ids = ids[:stopped_at] if stopped_at else ids
            end = next((at + 1 for at, token in enumerate(ids) if token in ends.ids), len(ids))
            completions.append(ids[:end])
        return codec.samples(prompts, completions, ends)


def _load(name: str, revision: str | None, model_kwargs: dict[str, Any]) -> Any:
    model_kwargs = {"dtype": "auto", **model_kwargs}
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name, revision=revision, **model_kwargs)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(
            f"model={name!r} cannot be loaded with {', '.join(model_kwargs)}: {error}. "
            "TransformersSampler's own options are batch_size and progress; the others are those of "
            "AutoModelForCausalLM.from_pretrained."
        ) from error
    if "device_map" not in model_kwargs and torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    return model.eval()


def _uniforms(request: SampleRequest, i: int, params: SamplingParams) -> np.ndarray:
    """The uniform numbers of sample `first_index + i`, one per token, float64 in [0, 1).

    Philox maps (key, counter) to random words. The sample's index is the counter's second word, so each sample has
    2**64 words of its own.
    """
    bits = np.random.Philox(counter=[0, request.first_index + i, 0, 0], key=[params.seed, request.stream])
    return np.random.Generator(bits).random(params.max_tokens)


@contextmanager
def _ready_to_generate(model: Any, base_model: Any) -> Iterator[None]:
    """Evaluation mode and an empty generation config inside; both are restored afterwards.

    `generate` fills gaps in a given config from the model's own, so a repetition penalty there would count.
    """
    saved = base_model.generation_config
    base_model.generation_config = GenerationConfig()
    try:
        with evaluating(model):
            yield
    finally:
        base_model.generation_config = saved


def _prompt_cache(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, which: torch.Tensor
) -> dict[str, DynamicCache]:
    """The argument of `generate` with the key-value cache of all prompt tokens but the last, one row per sequence.

    `input_ids` and `attention_mask` are left-padded prompts, (prompts, width - 1); `which` has the row of each
    sequence's prompt. The result is empty for models without such a cache (state-space models); `generate` then
    computes the prompt for each row.
    """
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    # The body without the language-modelling head: nobody needs the logits of a prompt.
    outputs = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=True
    )
    name = "cache" if "cache" in outputs else "past_key_values"  # Transformers 5.24 renamed it
    cache = outputs.get(name)
    if type(cache) is not DynamicCache or not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        return {}
    cache.batch_select_indices(which)
    return {name: cache}
