"""`dco-trl demo`: the paper's Table 1 at small scale, on this machine, in minutes."""

from dataclasses import dataclass, field

from ..extras import require
from ._common import parse, status

_DESCRIPTION = """\
Train a tiny model, made on the spot, to multiply two-digit numbers: once with cross-entropy (TRL's SFTTrainer) and
once with DCO for each N. Prints exact coverage on held-out problems epoch by epoch, and saves the numbers and a
picture. Nothing is downloaded."""


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
        default=None, metadata={"help": "Epochs a run. Fewer are quicker, and too few show nothing."}
    )
    workers: int | None = field(
        default=None, metadata={"help": "Runs at a time, one thread each. Unless given, the number of cores."}
    )


def main(argv: list[str]) -> int:
    """Run the command."""
    (config,) = parse("demo", argv, DemoConfig, description=_DESCRIPTION)
    return status("demo", lambda: demo(config))


def demo(config: DemoConfig) -> None:
    """Do what the command does.

    Args:
        config: What to run.
    """
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

    from ..demo.run import available_cores, run_demo, save_results
    from ..demo.table import coverage_table, seeds_table, sentences

    num_attempts = config.num_attempts or ([4, 16, 64, 256, 1024, 4096] if config.full else [16, 256])
    num_seeds = config.seeds if config.seeds is not None else 5 if config.full else 1
    if num_seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {num_seeds}.")
    if config.workers is not None and config.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {config.workers}.")
    num_runs = num_seeds * (1 + len(num_attempts))
    workers = min(num_runs, config.workers or available_cores())

    console = Console(highlight=False)
    console.print(
        "Two-digit multiplication, answered at once: 1,500 problems to train on, 500 held out.\n"
        f"{num_runs} runs of a tiny Llama, {workers} at a time: cross-entropy (TRL's SFTTrainer), and DCO with N = "
        f"{', '.join(map(str, num_attempts))}.\n"
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
    console.print("pass@k on the held-out problems, %, exact (* is a run's best pass@256)\n")
    console.print(coverage_table(results["runs"]))
    console.print()
    if num_seeds > 1:
        console.print(seeds_table(results["summary"]))
        console.print()
    for sentence in sentences(results):
        console.print(sentence)
    paths = save_results(results, config.output_dir)
    console.print(f"\n{results['seconds']:.0f} s. Picture: {paths[1]} (and {paths[2].name}). Numbers: {paths[0]}")
