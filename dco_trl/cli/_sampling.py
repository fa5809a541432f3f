"""How commands sample: their arguments, and the sampler and the draws made from them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from ._common import DatasetConfig, ModelConfig, json_object, naming, option, unescape

if TYPE_CHECKING:
    from ..runs.schedule_file import FollowedSchedule
    from ..sampling import Sampler, SamplingParams


@dataclass
class SamplerConfig:
    """How to sample, and where to."""

    output: str = option("The run's folder.")
    sampler: Literal["transformers", "vllm", "server"] = option(
        "Transformers, vLLM in this process, or a served endpoint.", default="transformers"
    )
    base_url: str | None = option("Address of the endpoint for --sampler server: http://HOST:PORT/v1.", default=None)
    temperature: float = option("Divides the logits.", default=1.0)
    top_p: float = option("Keep the smallest set of tokens with this probability.", default=1.0)
    top_k: int = option("Keep this many tokens; 0 keeps all.", default=0)
    max_tokens: int = option("Longest completion, in tokens.", default=512)
    stop: list[str] | None = option(r"Strings that end a completion. \n is a line break.", default=None)
    schedule: str | None = option(
        "A schedule of `dco-trl schedule` for the same --model: which adapter and temperature to sample for attempt "
        "1, 2, 3, …",
        default=None,
    )
    seed: int = option("Seed of the draws. Runs of several arms may share it: their draws are independent.", default=0)
    chunk_size: int | None = option(
        "Sequences per part on disk. By default five minutes of work, and 16,384 at most.", default=None
    )
    ray_workers: int | None = option(
        "Sample with this many copies of the sampler on a Ray cluster; not for server.", default=None
    )
    ray_address: str | None = option(
        "Address of the Ray cluster. By default this machine's, else a new one here.", default=None
    )
    sampler_kwargs: dict[str, Any] | str | None = option(
        "Further options of the sampler, as JSON, for example '{\"max_model_len\": 2048}' for vllm.", default=None
    )


@dataclass
class SamplingConfig(SamplerConfig):
    """How to sample, how much, and where to."""

    num_samples: int = option("Samples per problem. A larger number later adds to the run.", kw_only=True)


def sample(
    data: DatasetConfig, model: ModelConfig, sampling: SamplingConfig, problems: list, first_sample: int = 0
) -> Any:
    """Draw samples of `problems`, which come from `data`, into a run folder, and return the summary."""
    from ..runs import sample_run
    from ..runs.sample import check_run_size

    check_run_size(sampling.num_samples, sampling.chunk_size, first_sample)
    told = f"{len(problems):,} problems × {sampling.num_samples:,} samples"
    with prepared(data, model, sampling, told) as given:
        return sample_run(
            sampling.output, problems, num_samples=sampling.num_samples, first_sample=first_sample, **given
        )


@contextmanager
def prepared(
    data: DatasetConfig, model: ModelConfig, sampling: SamplerConfig, told: str, progress: bool = True
) -> Iterator[dict[str, Any]]:
    """Arguments that `sample_run` and `solve` share. `told` is printed before the model is loaded."""
    from ..sampling import SamplingParams

    params = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=tuple(unescape(text) for text in sampling.stop or ()),
        seed=sampling.seed,
    )
    schedule = _load_schedule(model, sampling, params)
    print(told, file=sys.stderr)
    sampler = _load_sampler(model, sampling, progress, schedule)
    try:
        yield {
            "sampler": sampler,
            "params": params,
            "schedule": schedule,
            "chunk_size": sampling.chunk_size,
            "dataset": asdict(data),
        }
    finally:
        sampler.close()


def _load_schedule(model: ModelConfig, sampling: SamplerConfig, params: "SamplingParams") -> "FollowedSchedule | None":
    """The schedule of a command line, checked before the model is loaded."""
    if sampling.schedule is None:
        return None
    from ..runs.schedule_file import follow
    from ..sampling.fingerprint import describe

    named = {"model": model.model} if sampling.sampler == "server" else describe("model", model.model)
    return follow(sampling.schedule, {**named, "sampler": sampling.sampler, "adapter": model.adapter}, params)


def _load_sampler(
    model: ModelConfig, sampling: SamplerConfig, progress: bool, schedule: "FollowedSchedule | None"
) -> "Sampler":
    """The sampler of a command line, with room for the adapters of a schedule."""
    from ..sampling import make_sampler

    sampler_kwargs = json_object(sampling.sampler_kwargs, "sampler_kwargs")
    if model.dtype is not None:
        if sampling.sampler == "server":
            raise UserError(
                f"{model.dtype!r} cannot be chosen with --sampler server: its model is already loaded. Leave it out, "
                "and start the endpoint with that dtype.",
                "dtype",
            )
        sampler_kwargs["dtype"] = model.dtype
    if sampling.sampler == "transformers":
        sampler_kwargs.setdefault("batch_size", model.batch_size)
    if sampling.sampler == "vllm" and schedule is not None:
        sampler_kwargs["adapters"] = sorted({arm.adapter for arm in schedule.arms} - {""})
    which: dict[str, Any] = {"adapter": model.adapter, "revision": model.revision}
    with naming(model.model, adapter=model.adapter):
        if sampling.ray_workers is None:
            which |= {"base_url": sampling.base_url, "sampler_kwargs": sampler_kwargs}
            return make_sampler(sampling.sampler, model.model, progress=progress, **which)
        from ..sampling import RaySampler

        which |= {"num_workers": sampling.ray_workers, "address": sampling.ray_address}
        cluster = RaySampler(sampling.sampler, model.model, **which, **sampler_kwargs)
        try:
            cluster.identity()  # wait until a worker is ready, or raises its error
        except BaseException:
            cluster.close()
            raise
        return cluster
