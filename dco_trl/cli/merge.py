"""`dco-trl merge`: merge runs, each with the range of samples that one machine drew."""

from dataclasses import dataclass

from ._common import command, option


@dataclass
class MergeConfig:
    """Where to write."""

    output: str = option("The folder of the merged run; an existing one gets what it lacks.")


@command("merge", runs="the runs' folders")
def main(config: MergeConfig, runs: list[str]) -> str:
    """Merge the samples and verdicts of runs that machines without a shared disk have drawn with --first-sample. Runs
    that draw from different things, and a sample that is there twice, are refused.
    """
    from ..runs.merge import merge_runs

    return f"{merge_runs(runs, config.output):,} samples in {config.output}"
