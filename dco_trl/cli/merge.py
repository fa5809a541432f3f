"""`dco-trl merge`: one run of several, each a range of samples that a machine drew by itself."""

from dataclasses import dataclass

from ._common import execute, option


@dataclass
class MergeConfig:
    """Where to."""

    output: str = option("The folder of the whole run; one that is there gets what it lacks.")


def main(argv: list[str]) -> int:
    """Run the command."""
    return execute("merge", argv, merge, runs="the runs' folders")


def merge(config: MergeConfig, runs: list[str]) -> str:
    """Make one run of several, samples and verdicts, which were drawn with --first-sample on machines that share
    nothing. Runs of different things, and a sample that is there twice, are refused.
    """
    from ..runs.merge import merge_runs

    return f"{merge_runs(runs, config.output):,} samples in {config.output}"
