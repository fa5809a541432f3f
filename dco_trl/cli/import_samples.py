"""`dco-trl import`: make a run of samples that another program drew."""

from dataclasses import dataclass

from ._common import DatasetConfig, command, load_problems, option

_FILES = (
    "JSON Lines or Parquet with problem_id and text (and correct, if judged), output-rs*.jsonl of NeMo-Skills, or "
    "logs of inspect_ai"
)


@dataclass
class ImportConfig:
    """Where to write the run, and what was sampled."""

    output: str = option("The run's folder.")
    model: str | None = option("Name of the model, for schedules. By default the folder's name.", default=None)
    temperature: float = option("Temperature of the samples, for schedules.", default=1.0)


@command("import", runs=_FILES)
def main(data: DatasetConfig, config: ImportConfig, paths: list[str]) -> str:
    """Make a run of samples from elsewhere, for grade, report and schedule."""
    from ..runs.import_samples import import_samples

    problems = load_problems(data)
    count = import_samples(paths, problems, config.output, model=config.model, temperature=config.temperature)
    return f"{count:,} samples of {len(problems):,} problems in {config.output}"
