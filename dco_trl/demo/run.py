"""The whole demonstration: independent runs, each in a process of one thread."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..checks import check_integer, check_num_attempts
from ..cores import available_cores
from ..errors import UserError
from .findings import schedule, summarise
from .processes import ONE_THREAD, run_in_processes, tick

# Tiny matrices: two runs on a core each beat one run on two.
_WORKER_ENVIRONMENT = {**ONE_THREAD, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def run_demo(
    num_attempts: Sequence[int] = (16, 256),
    seeds: Sequence[int] = (0,),
    num_epochs: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Train cross-entropy and DCO for each N and seed, and measure coverage as they learn.

    Args:
        num_attempts: The N's of the DCO runs. Cross-entropy, N = 1, is always run.
        seeds: One set of runs per seed.
        num_epochs: Epochs per run. By default those of the demonstration.
        workers: Runs at a time. By default the number of cores.
        progress: Called with the number of epochs done, over all runs, and the total.

    Returns:
        A record for JSON: `runs`, `summary` (one entry per seed), `settings`, `versions`, `hardware`, `seconds`.

    Raises:
        ValueError: An argument is out of its range.
        RuntimeError: A run's process was killed.

    Examples:
        ```python
        from dco_trl.demo.run import run_demo

        if __name__ == "__main__":  # the runs are processes
            results = run_demo(num_attempts=[256], num_epochs=2)
            print(results["summary"])
        ```
    """
    from .training import NUM_EPOCHS, SETTINGS, train_run

    num_epochs = check_integer("num_epochs", NUM_EPOCHS if num_epochs is None else num_epochs)
    for name, values in (("num_attempts", num_attempts), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise UserError(f"`{name}` must be one or more distinct numbers, got {list(values)}.")
    for seed in seeds:
        check_integer("seeds", seed, at_least=0)
    if 1 in map(check_num_attempts, num_attempts):
        raise UserError("`num_attempts=1` is cross-entropy, which is always run. Give DCO's N's, 2 and above.")
    jobs = [(n, seed) for seed in seeds for n in (1, *sorted(num_attempts, reverse=True))]
    workers = min(len(jobs), workers or available_cores())

    started = time.perf_counter()
    runs = train_all(train_run, jobs, num_epochs, workers, progress)
    runs.sort(key=lambda run: (run["seed"], run["num_attempts"]))
    summary = []
    for seed in seeds:
        of_seed = [run for run in runs if run["seed"] == seed]
        log_p = np.concatenate([run.pop("log_p") for run in of_seed])  # too many to keep
        summary.append({**summarise(of_seed), "schedule": schedule(of_seed[0]["k"], log_p)})
    return {
        "task": "two-digit multiplication, 1,500 problems to train on and 500 held out",
        "settings": {**SETTINGS, "num_train_epochs": num_epochs, "workers": workers, "threads_per_worker": 1},
        "versions": {
            "dco-trl": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "trl", "numpy")},
        },
        "hardware": {"processor": _processor_name(), "cores": available_cores(), "system": platform.platform()},
        "seconds": time.perf_counter() - started,
        "summary": summary,
        "runs": runs,
    }


def train_all(
    train_run: Callable[..., dict[str, Any]],
    jobs: Sequence[tuple[int, int]],
    num_epochs: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Records of the runs of these N's and seeds."""
    runs: list[dict[str, Any]] = []
    total = len(jobs) * num_epochs
    try:
        run_in_processes(
            train_run,
            [(*job, num_epochs, tick) for job in jobs],
            workers,
            lambda _, future: runs.append(future.result()),
            environment=_WORKER_ENVIRONMENT,
            ticked=lambda count: progress(count, total),
        )
    except BrokenProcessPool:
        raise RuntimeError(
            "a training process was killed, most likely because memory ran out: each needs about 1 GB. Close other "
            "programs, or run one at a time with --workers 1."
        ) from None
    return runs


def save_results(results: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write `demo.json`, `demo.png` and `demo.svg` into a folder, and return their paths."""
    from .figure import plot_demo

    Path(folder).mkdir(parents=True, exist_ok=True)
    numbers, *pictures = paths = [Path(folder, f"demo.{kind}") for kind in ("json", "png", "svg")]
    numbers.write_text(json.dumps(results) + "\n")
    figure = plot_demo(results)
    for path in pictures:
        figure.savefig(path, dpi=150)
    return paths


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
