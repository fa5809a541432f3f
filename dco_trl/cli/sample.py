"""`dco-trl sample`: draw samples into a run folder, chunk by chunk, from where an earlier call stopped."""

from dataclasses import dataclass
from typing import Any

from ._common import DatasetConfig, ModelConfig, command, load_problems, option
from ._sampling import SamplingConfig, sample


@dataclass
class RangeConfig:
    """Which samples."""

    first_sample: int = option(
        "Index of the first of the --num-samples to draw, for machines without a shared disk; `dco-trl merge` merges "
        "their runs.",
        default=0,
    )


@command("sample")
def main(data: DatasetConfig, model: ModelConfig, sampling: SamplingConfig, which: RangeConfig) -> Any:
    """Draw samples into a run folder. After an interruption, the same command goes on."""
    return sample(data, model, sampling, load_problems(data), which.first_sample)
