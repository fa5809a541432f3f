"""Runs of an experiment, each in a process of one thread, each kept in a file of its own."""

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the libraries as the processes start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Job = dict[str, Any]


def path_of(work_dir: Path, job: Job) -> Path:
    return work_dir / ("_".join(f"{name}-{value}" for name, value in job.items()) + ".json")


def run_all(train: Callable[..., dict[str, Any]], jobs: Sequence[Job], work_dir: Path, workers: int) -> list[dict]:
    """Records of all jobs, `train(**job)` each, in their order. Those that have a file are not run again.

    Raises:
        RuntimeError: Runs failed. The others are kept; the command can be repeated.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not path_of(work_dir, job).exists()]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before", flush=True)
    started, errors = time.perf_counter(), []
    context = multiprocessing.get_context("spawn")  # forked threads of torch can hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_run_and_keep, train, job, path_of(work_dir, job)): job for job in waiting}
        for number, future in enumerate(as_completed(futures), start=1):
            error = future.exception()
            if error is not None:
                errors.append(f"{futures[future]}: {error!r}")
            minutes = (time.perf_counter() - started) / 60
            outcome = f"{future.result():.0f} s" if error is None else errors[-1]
            print(f"{number}/{len(waiting)} after {minutes:.1f} min: {futures[future]}, {outcome}", flush=True)
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(waiting)} runs failed, the first: {errors[0]}")
    return [json.loads(path_of(work_dir, job).read_text()) for job in jobs]


def environment(workers: int) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "trl", "numpy")},
        },
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "workers": workers,
    }


def write(results: dict[str, Any], output: Path) -> None:
    """JSON into a file, which appears whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    unfinished.replace(output)


def _run_and_keep(train: Callable[..., dict[str, Any]], job: Job, path: Path) -> float:
    """One run."""
    started = time.perf_counter()
    record = {**job, **train(**job), "seconds": round(time.perf_counter() - started, 1)}
    write(record, path)
    return record["seconds"]
