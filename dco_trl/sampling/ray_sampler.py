"""Sampling on a Ray cluster: a copy of any sampler for each worker."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..checks import check_integer
from ..errors import UserError
from .factory import make_sampler
from .protocol import Sample, SampleRequest, SamplingParams
from .ray_pool import RayPool

# Samples of the smallest block: fewer would not fill a worker's batch.
_SMALLEST = 32


class RaySampler:
    """Sample on a Ray cluster, on one machine or many.

    Blocks of consecutive samples go to any free worker and come back as they are ready. Draws depend only on problem
    and index. A worker that dies, or whose machine is lost, is started again, there or on another machine, and its
    blocks are drawn again. Machines may join at any time. All workers on one machine load the model at the same time,
    so its memory must hold all copies.

    Args:
        name: "transformers" or "vllm".
        model: Folder or hub name, the same on every machine.
        num_workers: Copies of the sampler. Those that the cluster has no room for wait until it has.
        gpus_per_worker: GPUs of each. None: if the cluster has any, 1, or as many as vLLM's `tensor_parallel_size`
            and `pipeline_parallel_size` need.
        address: Address of the cluster, as for `ray.init`; None: the one running on this machine, else a new one here.
        block_size: Samples that a worker draws in one call, fewer towards the end. A lost worker's block is repeated.
        adapter: LoRA adapter folder, or None.
        revision: Hub revision of the model.
        **sampler_kwargs: Further arguments of the sampler's constructor.

    Raises:
        ImportError: Ray is not installed.
        UserError: The sampler is "server", or not known.
        ConnectionError: There is no cluster at that address.

    Examples:
        >>> from dco_trl.sampling import RaySampler
        >>> sampler = RaySampler("vllm", "Qwen/Qwen2.5-1.5B", num_workers=8, max_model_len=2048)  # doctest: +SKIP

    References:
        P. Moritz et al., Ray: a distributed framework for emerging AI applications, OSDI 2018.

    Relations:
        `ServerSampler` is for engines behind one address. Ray Data's LLM module keeps one completion per request.
    """

    def __init__(
        self,
        name: str,
        model: str,
        *,
        num_workers: int,
        gpus_per_worker: float | None = None,
        address: str | None = None,
        block_size: int = 1024,
        adapter: str | None = None,
        revision: str | None = None,
        **sampler_kwargs: Any,
    ) -> None:
        if name not in ("transformers", "vllm"):
            raise UserError(
                f"cannot be combined with the sampler {name!r}: workers load the model themselves. Use 'vllm' or "
                "'transformers', or put several servers behind one address.",
                "ray_workers",
            )
        self.block_size = check_integer("block_size", block_size)
        num_workers = check_integer("num_workers", num_workers)
        gpus = 1
        if name == "vllm":
            gpus = sampler_kwargs.get("tensor_parallel_size", 1) * sampler_kwargs.get("pipeline_parallel_size", 1)
            if gpus > 1:  # not through Ray: all GPUs of a worker are on its machine
                sampler_kwargs.setdefault("distributed_executor_backend", "mp")
        make = partial(_Copy, name, model, adapter=adapter, revision=revision, sampler_kwargs=sampler_kwargs)
        self._pool = RayPool(make, num_workers, num_gpus=gpus_per_worker, gpus_if_any=gpus, address=address)
        self._identity: dict[str, Any] | None = None

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        """As `Sampler.sample`."""
        drawn: list[list[Any]] = [[None] * request.num_samples for request in requests]
        for number, part, samples in self._draw(requests, params):
            start = part.first_index - requests[number].first_index
            drawn[number][start : start + len(samples)] = samples
        return drawn

    def stream(
        self, requests: Sequence[SampleRequest], params: SamplingParams
    ) -> Iterator[tuple[SampleRequest, list[Sample]]]:
        """Draw the samples of all requests, and yield parts of requests with their samples as they come.

        Raises:
            UserError: Two workers have different models.
        """
        for _, part, samples in self._draw(requests, params):
            yield part, samples

    def _draw(
        self, requests: Sequence[SampleRequest], params: SamplingParams
    ) -> Iterator[tuple[int, SampleRequest, list[Sample]]]:
        def load(block: list[tuple[int, SampleRequest]]) -> tuple[list[SampleRequest], SamplingParams]:
            return [part for _, part in block], params

        for block, (identity, drawn) in self._pool.each("sample", self._blocks(requests), load):
            self._check_same(identity)
            for (number, part), samples in zip(block, drawn, strict=True):
                yield number, part, samples

    def identity(self) -> dict[str, Any]:
        """As `Sampler.identity`, from the first worker that is ready."""
        if self._identity is None:
            self._identity = self._pool.first("identity")
        return self._identity

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def _blocks(self, requests: Sequence[SampleRequest]) -> list[list[tuple[int, SampleRequest]]]:
        """Blocks of at most `block_size` samples, smaller towards the end, so that all workers end together.

        Each of its parts comes with the number of its request.
        """
        left = sum(request.num_samples for request in requests)
        blocks: list[list[tuple[int, SampleRequest]]] = []
        room = 0
        for number, request in enumerate(requests):
            start = 0
            while start < request.num_samples:
                if not room:
                    room = max(min(self.block_size, left // (2 * len(self._pool.workers))), min(_SMALLEST, left))
                    blocks.append([])
                count = min(room, request.num_samples - start)
                part = replace(request, num_samples=count, first_index=request.first_index + start)
                blocks[-1].append((number, part))
                start, room, left = start + count, room - count, left - count
        return blocks

    def _check_same(self, identity: dict[str, Any]) -> None:
        known = self._identity = self._identity or identity
        differing = [
            f"{key}: {known.get(key)!r} and {identity.get(key)!r}"
            for key in sorted(known.keys() | identity.keys())
            if known.get(key) != identity.get(key) and not key.endswith("version")
        ]
        if differing:
            raise UserError(
                f"two workers of the cluster sample different things ({'; '.join(differing)}). Give all machines the "
                "same files, and draw all samples so far again, into another folder."
            )


class _Copy:
    """A sampler on a machine of the cluster."""

    def __init__(self, name: str, model: str, **options: Any) -> None:
        self.sampler = make_sampler(name, model, progress=False, **options)
        self.known = self.sampler.identity()

    def identity(self) -> dict[str, Any]:
        return self.known

    def sample(self, block: tuple[list[SampleRequest], SamplingParams]) -> tuple[dict[str, Any], list[list[Sample]]]:
        return self.known, self.sampler.sample(*block)
