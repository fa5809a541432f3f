"""`dco-trl sample`: draw samples into a run folder, chunk by chunk, going on where an earlier call was stopped."""

from dataclasses import dataclass, field

from ._common import DatasetConfig, ModelConfig, parse, status
from ._sampling import SamplingConfig, sample


@dataclass
class RangeConfig:
    """Which samples."""

    first_sample: int = field(
        default=0,
        metadata={
            "help": "Draw the --num-samples from this index on, for runs on machines that share nothing; "
            "`dco-trl merge` makes them one."
        },
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    data, model, sampling, which = parse(
        "sample",
        argv,
        DatasetConfig,
        ModelConfig,
        SamplingConfig,
        RangeConfig,
        description="Draw samples into a run folder. Stopped at any moment, the same command goes on from there.",
    )
    return status("sample", lambda: print(sample(data, model, sampling, first_sample=which.first_sample)))
