"""`dco-trl import`: make a run of samples that another program drew."""

from dataclasses import dataclass, field

from ._common import DatasetConfig, load_problems, parse, status


@dataclass
class ImportConfig:
    """Where to, and what they are samples of."""

    output: str = field(metadata={"help": "The run's folder."})
    model: str | None = field(
        default=None, metadata={"help": "Name of the model, for schedules. Unless given, the folder's name."}
    )
    temperature: float = field(default=1.0, metadata={"help": "At which they were drawn, for schedules."})


def main(argv: list[str]) -> int:
    """Run the command."""
    data, config, paths = parse(
        "import",
        argv,
        DatasetConfig,
        ImportConfig,
        runs="JSON Lines or Parquet with problem_id and text (and correct, if judged), output-rs*.jsonl of "
        "NeMo-Skills, or logs of inspect_ai",
        description="Make a run of samples from elsewhere, which grade, report and schedule take.",
    )
    return status("import", lambda: import_run(paths, data, config))


def import_run(paths: list[str], data: DatasetConfig, config: ImportConfig) -> None:
    """Do what the command does.

    Args:
        paths: The files with samples.
        data: The problems.
        config: Where to, and what they are samples of.
    """
    from ..runs.import_samples import import_samples

    problems = load_problems(data)
    count = import_samples(paths, problems, config.output, model=config.model, temperature=config.temperature)
    print(f"{count:,} samples of {len(problems):,} problems in {config.output}")
