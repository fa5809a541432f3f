"""How commands sample: their arguments, and the sampler and the draws that these ask for."""

import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from ._common import DatasetConfig, ModelConfig, json_object, load_problems, naming, unescape

if TYPE_CHECKING:
    from ..runs.schedule_file import ArmSchedule
    from ..sampling import Sampler, SamplingParams


@dataclass
class SamplerConfig:
    """How to sample, and where to."""

    output: str = field(metadata={"help": "The run's folder."})
    sampler: Literal["transformers", "vllm", "server"] = field(
        default="transformers", metadata={"help": "What samples: Transformers, vLLM in process, or a served endpoint."}
    )
    base_url: str | None = field(
        default=None, metadata={"help": "Address of the endpoint for --sampler server: http://HOST:PORT/v1."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits."})
    top_p: float = field(default=1.0, metadata={"help": "Keep the smallest set of tokens with this probability."})
    top_k: int = field(default=0, metadata={"help": "Keep this many tokens; 0 keeps all."})
    max_tokens: int = field(default=512, metadata={"help": "Longest completion, in tokens."})
    stop: list[str] | None = field(
        default=None, metadata={"help": r"Strings that end a completion. \n is a line break."}
    )
    schedule: str | None = field(
        default=None,
        metadata={
            "help": "A schedule of `dco-trl schedule`, upon the same --model: which adapter and temperature to sample "
            "for attempt 1, 2, 3, …"
        },
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the draws. Runs of several arms may share it: their draws are independent."},
    )
    chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Sequences per part that is written. Unless given, five minutes of work, and 16,384 at most."
        },
    )
    ray_workers: int | None = field(
        default=None,
        metadata={"help": "Sample with so many copies of the sampler on a Ray cluster; not for server."},
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "Address of the Ray cluster. Unless given, this machine's, else a new one here."},
    )
    sampler_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further options of the sampler, as JSON, for example '{\"max_model_len\": 2048}' for vllm."
        },
    )


@dataclass
class SamplingConfig(SamplerConfig):
    """How to sample, how much, and where to."""

    num_samples: int = field(kw_only=True, metadata={"help": "Samples per problem. Raised later, it adds to the run."})


def sample(
    data: DatasetConfig,
    model: ModelConfig,
    sampling: SamplingConfig,
    problems: list | None = None,
    first_sample: int = 0,
) -> Any:
    """Draw samples into a run folder, or go on where an earlier call was stopped.

    Args:
        data: The problems.
        model: The model.
        sampling: How to sample.
        problems: Those of `data`, if they have been read before.
        first_sample: Index of the first sample of each problem.

    Returns:
        A `SamplingSummary`.
    """
    # What can be wrong without the model is found out before minutes are spent on loading it.
    from ..checks import check_integer
    from ..runs import sample_run
    from ..runs.sample import check_run_size

    check_run_size(sampling.num_samples, sampling.chunk_size)
    check_integer("first_sample", first_sample, at_least=0)
    params = sampling_params(sampling)
    schedule = load_schedule(model, sampling, params)
    problems = load_problems(data) if problems is None else problems
    print(f"{len(problems):,} problems × {sampling.num_samples:,} samples", file=sys.stderr)
    sampler = load_sampler(model, sampling, progress=True, schedule=schedule)
    try:
        return sample_run(
            sampling.output,
            problems,
            sampler,
            sampling.num_samples,
            params,
            schedule=schedule,
            chunk_size=sampling.chunk_size,
            dataset=asdict(data),
            first_sample=first_sample,
        )
    finally:
        sampler.close()


def sampling_params(sampling: SamplerConfig) -> "SamplingParams":
    """How to sample, checked."""
    from ..sampling import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=tuple(unescape(text) for text in sampling.stop or ()),
        seed=sampling.seed,
    )


def load_schedule(model: ModelConfig, sampling: SamplerConfig, params: "SamplingParams") -> "ArmSchedule | None":
    """The schedule that a command line names, checked before minutes are spent on loading the model."""
    if sampling.schedule is None:
        return None
    from ..runs.attempts import check_schedule
    from ..runs.schedule_file import read_schedule
    from ..sampling.fingerprint import describe

    schedule = read_schedule(sampling.schedule)
    known = {"sampler": sampling.sampler, "adapter": model.adapter}
    is_served = sampling.sampler == "server"
    known |= {"model": model.model} if is_served else describe("model", model.model)
    check_schedule(schedule, known, params)
    return schedule


def load_sampler(
    model: ModelConfig, sampling: SamplerConfig, progress: bool, schedule: "ArmSchedule | None" = None
) -> "Sampler":
    """The sampler that a command line names; with room for the adapters of a schedule."""
    from ..sampling import make_sampler

    sampler_kwargs = json_object(sampling.sampler_kwargs, "sampler_kwargs")
    if model.dtype is not None:
        if sampling.sampler == "server":
            raise UserError(
                f"dtype={model.dtype!r} cannot be chosen with --sampler server: its model is loaded already. Leave it "
                "out, and start the endpoint with that dtype."
            )
        sampler_kwargs["dtype"] = model.dtype
    if sampling.sampler == "transformers":
        sampler_kwargs.setdefault("batch_size", model.batch_size)
    if sampling.sampler == "vllm" and schedule is not None:
        sampler_kwargs["adapters"] = sorted({arm.adapter for arm in schedule.arms} - {""})
    with naming(model.model, adapter=model.adapter):
        if sampling.ray_workers is not None:
            from ..sampling import RaySampler

            cluster = RaySampler(
                sampling.sampler,
                model.model,
                num_workers=sampling.ray_workers,
                address=sampling.ray_address,
                adapter=model.adapter,
                revision=model.revision,
                **sampler_kwargs,
            )
            try:
                cluster.identity()  # a worker is ready, or tells why not
            except BaseException:
                cluster.close()
                raise
            return cluster
        return make_sampler(
            sampling.sampler,
            model.model,
            adapter=model.adapter,
            revision=model.revision,
            base_url=sampling.base_url,
            progress=progress,
            sampler_kwargs=sampler_kwargs,
        )
