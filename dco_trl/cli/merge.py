"""`dco-trl merge`: one run of several, each a range of samples that a machine drew by itself."""

from dataclasses import dataclass, field

from ._common import parse, status


@dataclass
class MergeConfig:
    """Where to."""

    output: str = field(metadata={"help": "The folder of the whole run; one that is there gets what it lacks."})


def main(argv: list[str]) -> int:
    """Run the command."""
    config, runs = parse(
        "merge",
        argv,
        MergeConfig,
        runs="the runs' folders",
        description="Make one run of several, samples and verdicts, which were drawn with --first-sample on machines "
        "that share nothing. Runs of different things, and a sample that is there twice, are refused.",
    )
    return status("merge", lambda: merge(runs, config))


def merge(runs: list[str], config: MergeConfig) -> None:
    """Do what the command does.

    Args:
        runs: The runs' folders.
        config: Where to.
    """
    from ..runs.merge import merge_runs

    print(f"{merge_runs(runs, config.output):,} samples in {config.output}")
