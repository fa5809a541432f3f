"""`dco-trl sample`: draw samples into a run folder, chunk by chunk, going on where an earlier call was stopped."""

from dataclasses import dataclass
from typing import Any

from . import _sampling
from ._common import DatasetConfig, ModelConfig, execute, option


@dataclass
class RangeConfig:
    """Which samples."""

    first_sample: int = option(
        "Draw the --num-samples from this index on, for runs on machines that share nothing; `dco-trl merge` makes "
        "them one.",
        default=0,
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    return execute("sample", argv, sample)


def sample(data: DatasetConfig, model: ModelConfig, sampling: _sampling.SamplingConfig, which: RangeConfig) -> Any:
    """Draw samples into a run folder. Stopped at any moment, the same command goes on from there."""
    return _sampling.sample(data, model, sampling, first_sample=which.first_sample)
