"""`dco-trl demo`: the paper's Table 1 at small scale, on this machine, in minutes."""

from dataclasses import dataclass, field

from ..errors import UserError
from ..extras import require
from ._common import parse, status

_DESCRIPTION = """\
Train a tiny model, made on the spot, to multiply two-digit numbers: once with cross-entropy (TRL's SFTTrainer), and
once with DCO for each N. Print pass@k on held-out problems epoch by epoch, and save the numbers and a picture.
Nothing is downloaded."""


@dataclass
class DemoConfig:
    """The demonstration."""

    output_dir: str = field(default="demo", metadata={"help": "Folder for demo.json, demo.png and demo.svg."})
    full: bool = field(
        default=False,
        metadata={"help": "More N's (4, 16, 64, 256, 1024, 4096) and five seeds. About 20 minutes on two cores."},
    )
    num_attempts: list[int] | None = field(
        default=None, metadata={"help": "N's of the DCO runs. Unless given, 16 and 256, or those of --full."}
    )
    seeds: int | None = field(default=None, metadata={"help": "Number of seeds. Unless given, 1, or 5 with --full."})
    seed: int = field(default=0, metadata={"help": "The first seed."})
    epochs: int | None = field(
        default=None, metadata={"help": "Epochs per run. Unless given, 34; with fewer there is less to see."}
    )
    workers: int | None = field(
        default=None, metadata={"help": "Runs at a time, one thread each. Unless given, the number of cores."}
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    (config,) = parse("demo", argv, DemoConfig, description=_DESCRIPTION)
    return status("demo", lambda: demo(config))


def demo(config: DemoConfig) -> None:
    """Do what the command does."""
    require("dco-trl demo", "eval", "matplotlib", "rich")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from ..cores import available_cores
    from ..demo.findings import sentences
    from ..demo.run import run_demo, save_results
    from ..demo.table import coverage_table, schedule_table, seeds_table

    num_attempts = config.num_attempts or ([4, 16, 64, 256, 1024, 4096] if config.full else [16, 256])
    num_seeds = config.seeds if config.seeds is not None else 5 if config.full else 1
    if num_seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {num_seeds}.")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"--workers must be one process or more, got {config.workers}.")
    num_runs = num_seeds * (1 + len(num_attempts))
    workers = min(num_runs, config.workers or available_cores())

    console = Console(highlight=False)
    console.print(
        "A tiny Llama learns two-digit multiplication, answered at once: 1,500 problems to train on, 500 held out.\n"
        f"{num_runs} runs, {workers} at a time: cross-entropy (TRL's SFTTrainer), and DCO with N = "
        f"{', '.join(map(str, num_attempts))}{f', on {num_seeds} seeds' if num_seeds > 1 else ''}.\n"
    )
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("training", total=None)
        results = run_demo(
            num_attempts,
            range(config.seed, config.seed + num_seeds),
            config.epochs,
            config.workers,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(
        "pass@k, %: how many of the held-out problems are solved by at least one of k sampled answers. Exact, from "
        "the model's probabilities. * marks a run's best pass@256.\n"
    )
    console.print(coverage_table(results["runs"]))
    if num_seeds > 1:
        console.print(seeds_table(results["summary"]))
    for sentence in sentences(results):
        console.print(f"\n{sentence}")
    console.print(
        "\nThe k attempts spent over the models after all epochs of all runs, planned on half of the held-out "
        "problems and measured on the other half:\n"
    )
    console.print(schedule_table(results["summary"]))
    numbers, picture, vector = save_results(results, config.output_dir)
    # Paths stay on one line, to be copied.
    lines = f"\nTook {results['seconds']:.0f} s.\nPicture: {picture} (and {vector.name})\nNumbers: {numbers}"
    console.print(lines, soft_wrap=True)
