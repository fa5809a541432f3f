"""Attempts at problems, each with the arm that a schedule assigns, or all with the sampler's own."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..problem import Problem
from ..sampling.fingerprint import describe
from ..sampling.protocol import Sample, SampleRequest, SamplingParams
from .arm import Arm
from .manifest import run_manifest

if TYPE_CHECKING:
    from ..sampling.protocol import Sampler
    from .schedule_file import ArmSchedule

# (position of the problem, first index, number of samples)
Gap = tuple[int, int, int]
# A sample's problem, index, text, number of tokens and finish reason; with a schedule also its arm.
Row = tuple[Any, ...]


class Attempts:
    """Draws attempts; the arguments are those of `sample_run`.

    Attributes:
        identity: The sampler's identity.
        streams: Whether the sampler gives results as they come.
        arms: What is sampled.
        adapters: The adapter of each arm, with its hash if it is a folder.
        sampler_params: `params` with a seed that also depends on the arms, for the sampler.

    Raises:
        ValueError: A temperature or an adapter is given beside a schedule.
        StoreError: The schedule cannot be read, is for another model, or lacks one of its adapters.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        sampler: "Sampler",
        params: SamplingParams,
        schedule: "ArmSchedule | str | os.PathLike[str] | None" = None,
    ) -> None:
        self.problems, self.sampler, self.params = problems, sampler, params
        self.identity = own = sampler.identity()
        self.streams = hasattr(sampler, "stream")
        self.arms: tuple[Arm, ...] = (Arm(own.get("model", ""), own.get("adapter", ""), params.temperature),)
        # The arm of each block, and the attempts up to its end; the last block has no end.
        self.order, self.planned = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.blocks: list[list[int]] | None = None
        if schedule is not None:
            from .schedule_file import follow

            order, self.arms = follow(schedule, own, params)
            self.blocks = order.to_dict()["blocks"]
            self.order, self.planned = order.arm, np.cumsum(order.attempts)
            self.adapters = [describe("adapter", arm.adapter) for arm in self.arms]
        else:
            self.adapters = [own]
        # A folder counts by its content, if that is known, and not by its path: a moved model draws the same samples.
        models = [own.get("model_fingerprint") or arm.model_fingerprint or arm.model for arm in self.arms]
        adapters = [each.get("adapter_fingerprint") or each.get("adapter", "") for each in self.adapters]
        temperatures = [float(arm.temperature) for arm in self.arms]
        self.sampler_params = replace(params, seed=_seed_of([int(params.seed), models, adapters, temperatures]))

    def manifest(self, num_samples: int, dataset: Mapping[str, Any] | None) -> dict[str, Any]:
        """The run's manifest, with the blocks of a schedule and its arms with hashes of their adapters."""
        manifest = run_manifest(self.identity, self.params, num_samples, dataset)
        if self.blocks is not None:
            arms = [{**asdict(arm), **adapter} for arm, adapter in zip(self.arms, self.adapters, strict=True)]
            manifest["schedule"] = {"arms": arms, "blocks": self.blocks}
        return manifest

    def note(self, num_attempts: int) -> str | None:
        """What to tell the user about this number of attempts per problem, if anything."""
        if self.blocks is None or num_attempts <= self.planned[-1]:
            return None
        return (
            f"the schedule plans {self.planned[-1]:,} attempts: beyond them its last arm, "
            f"{self.arms[self.order[-1]].name}, goes on"
        )

    def arm_of(self, attempts: NDArray) -> NDArray[np.int64]:
        """The arm of each attempt, both counted from 0."""
        return self.order[np.minimum(np.searchsorted(self.planned, attempts, side="right"), self.order.size - 1)]

    def draw(self, gaps: Sequence[Gap]) -> Iterator[list[Row]]:
        """Draw some attempts.

        Yields:
            A row of the store for each attempt: all at once and in order, or as a streaming sampler gives them.
        """
        requests = [request for gap in gaps for request in self._requests(*gap)]
        if self.streams:
            for request, samples in self.sampler.stream(requests, self.sampler_params):  # type: ignore[attr-defined]
                yield self._rows(request, samples)
            return
        drawn = self.sampler.sample(requests, self.sampler_params)
        if [len(samples) for samples in drawn] != [request.num_samples for request in requests]:
            raise UserError(
                f"sampler {type(self.sampler).__name__} was asked for {[r.num_samples for r in requests]} samples "
                f"and returned {[len(samples) for samples in drawn]}; it must return as many as asked for, in order"
            )
        pairs = zip(requests, drawn, strict=True)
        yield [row for request, samples in pairs for row in self._rows(request, samples)]

    def _rows(self, request: SampleRequest, samples: Sequence[Sample]) -> list[Row]:
        problem_id, first = self.problems[request.stream].problem_id, request.first_index
        arm = () if self.blocks is None else (self.arms[self.arm_of(np.array([first]))[0]].name,)
        return [
            (problem_id, first + i, sample.text, sample.num_tokens, sample.finish_reason, *arm)
            for i, sample in enumerate(samples)
        ]

    def _requests(self, position: int, first: int, count: int) -> Iterator[SampleRequest]:
        """One request for each stretch of attempts with the same arm."""
        problem = self.problems[position]
        arms = self.arm_of(np.arange(first, first + count))
        starts = [0, *(np.flatnonzero(np.diff(arms)) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], count], strict=True):
            arm = self.arms[arms[start]]
            request = SampleRequest(
                problem.prompt, end - start, first + start, position, template_kwargs=problem.template_kwargs
            )
            if self.blocks is not None:
                request = replace(request, adapter=arm.adapter, temperature=arm.temperature)
            yield request


def _seed_of(what: Any) -> int:
    """63 bits of a hash, so that arms sampled with one seed draw independently, as planning assumes."""
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:8], "big") >> 1
