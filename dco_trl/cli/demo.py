"""`dco-trl demo`: the paper's Table 1 at small scale, on this machine, in minutes."""

from dataclasses import dataclass

from ..checks import check_integer
from ..extras import require
from ._common import command, option


@dataclass
class DemoConfig:
    """The demonstration."""

    output_dir: str = option("Folder for demo.json, demo.png and demo.svg.", default="demo")
    full: bool = option(
        "More N's (4, 16, 64, 256, 1024, 4096) and five seeds. About 20 minutes on two cores.", default=False
    )
    num_attempts: list[int] | None = option(
        "N's of the DCO runs. By default 16 and 256, or those of --full.", default=None
    )
    seeds: int | None = option("Number of seeds. By default 1, or 5 with --full.", default=None)
    seed: int = option("The first seed.", default=0)
    epochs: int | None = option("Epochs per run. By default 34; fewer show less of the effect.", default=None)
    workers: int | None = option("Runs at a time, one thread each. By default the number of cores.", default=None)


@command("demo")
def main(config: DemoConfig) -> None:
    """Train a tiny model, made on the spot, to multiply two-digit numbers: once with cross-entropy (TRL's SFTTrainer),
    and once with DCO for each N. Print pass@k on held-out problems epoch by epoch, and save the numbers and a picture.
    Nothing is downloaded.
    """
    require("dco-trl demo", "eval", "matplotlib", "rich")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from ..cores import available_cores
    from ..demo.findings import sentences
    from ..demo.run import run_demo, save_results
    from ..demo.table import coverage_table, schedule_table, seeds_table

    num_attempts = config.num_attempts or ([4, 16, 64, 256, 1024, 4096] if config.full else [16, 256])
    num_seeds = config.seeds if config.seeds is not None else 5 if config.full else 1
    check_integer("seeds", num_seeds)
    check_integer("workers", 1 if config.workers is None else config.workers)
    num_runs = num_seeds * (1 + len(num_attempts))
    workers = min(num_runs, config.workers or available_cores())

    console = Console(highlight=False)
    console.print(
        "A tiny Llama learns two-digit multiplication, answered at once: 1,500 problems to train on, 500 held out.\n"
        f"{num_runs} runs, {workers} at a time: cross-entropy (TRL's SFTTrainer), and DCO with N = "
        f"{', '.join(map(str, num_attempts))}{f', on {num_seeds} seeds' if num_seeds > 1 else ''}.\n"
    )
    columns = ("training", BarColumn(None), MofNCompleteColumn(), "epochs", TimeElapsedColumn(), "left:")
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("training", total=None)
        results = run_demo(
            num_attempts,
            range(config.seed, config.seed + num_seeds),
            config.epochs,
            config.workers,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    console.print(
        "pass@k, %: the share of held-out problems that at least one of k sampled answers solves, computed exactly "
        "from the model's probabilities. * marks a run's best pass@256.\n"
    )
    console.print(coverage_table(results["runs"]))
    if num_seeds > 1:
        console.print(seeds_table(results["summary"]))
    for sentence in sentences(results):
        console.print(f"\n{sentence}")
    console.print(
        "\nSpreading the k attempts over the models after all epochs of all runs, planned on half of the held-out "
        "problems and measured on the other half:\n"
    )
    console.print(schedule_table(results["summary"]))
    numbers, picture, vector = save_results(results, config.output_dir)
    # Paths stay on one line, so that they can be copied.
    lines = f"\nTook {results['seconds']:.0f} s.\nPicture: {picture} (and {vector.name})\nNumbers: {numbers}"
    console.print(lines, soft_wrap=True)
