"""Runs of an experiment, each in a process of one thread, each kept in a file of its own."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dco_trl.cores import available_cores
from dco_trl.demo.processes import run_in_processes

Job = dict[str, Any]


def run_missing(
    run: Callable[..., Any],
    jobs: Mapping[Path, Sequence[Any]],
    workers: int,
    after_each: Callable[[Path], None] = lambda path: None,
) -> list[str]:
    """Run the jobs that have no file yet, and keep what they return.

    Args:
        run: Called with a job's arguments. Returns a record for JSON; or a record and arrays, which are kept in an
            `.npz` beside it.
        jobs: For each record's file, the arguments.
        workers: Runs at a time.
        after_each: Called with the file of each run that ends well.

    Returns:
        The errors, one for each failed run; the others are run all the same.

    Raises:
        SystemExit: A process was killed, or Ctrl-C. Finished runs are kept.
    """
    waiting = [path for path in jobs if not path.exists()]
    done, errors = len(jobs) - len(waiting), []
    print(f"{len(jobs)} runs, {done} of them finished before", flush=True)
    started, ended = time.perf_counter(), 0

    def finished(number: int, future: Future) -> None:
        nonlocal ended
        ended += 1
        path, error = waiting[number], future.exception()
        if isinstance(error, BrokenProcessPool):
            raise error
        if error is None:
            outcome = f"{future.result():.0f} s"
            after_each(path)
        else:
            outcome = f"failed: {type(error).__name__}: {error}"
            errors.append(f"{path.stem}: {outcome}")
        left = (time.perf_counter() - started) / ended * (len(waiting) - ended) / 60
        print(f"[{done + ended}/{len(jobs)}] {path.stem}: {outcome}; about {left:.0f} min left", flush=True)

    try:
        run_in_processes(_run_and_keep, [(run, jobs[path], path) for path in waiting], workers, finished)
    except BrokenProcessPool:
        reason = "A run's process was killed, most likely because memory ran out (a run takes about 1 GB)"
        raise SystemExit(f"{reason}: repeat the command.") from None
    except KeyboardInterrupt:
        raise SystemExit("Interrupted. Finished runs are kept: repeat the command to go on.") from None
    return errors


def run_all(train: Callable[..., dict[str, Any]], jobs: Sequence[Job], work_dir: Path, workers: int) -> list[dict]:
    """Records of all jobs, the job and `train(**job)` each, in their order. Those that have a file are not run again.

    Raises:
        RuntimeError: Runs failed. The others are kept; the command can be repeated.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    errors = run_missing(_TrainJob(train), {path_of(work_dir, job): (job,) for job in jobs}, workers)
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(jobs)} runs failed, the first: {errors[0]}")
    return [json.loads(path_of(work_dir, job).read_text()) for job in jobs]


def path_of(work_dir: Path, job: Job) -> Path:
    return work_dir / ("_".join(f"{name}-{value}" for name, value in job.items()) + ".json")


def environment(workers: int) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "trl", "numpy")},
        },
        "cores": available_cores(),
        "workers": workers,
    }


def write(results: dict[str, Any], output: Path) -> None:
    """JSON into a file, which appears whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    unfinished.replace(output)


class _TrainJob:
    """`train(**job)` beside the job and the time that it took."""

    def __init__(self, train: Callable[..., dict[str, Any]]):
        self.train = train

    def __call__(self, job: Job) -> dict[str, Any]:
        started = time.perf_counter()
        return {**job, **self.train(**job), "seconds": round(time.perf_counter() - started, 1)}


def _run_and_keep(run: Callable[..., Any], arguments: Sequence[Any], path: Path) -> float:
    """One run, the record last; returns the seconds it took."""
    started = time.perf_counter()
    found = run(*arguments)
    record, arrays = found if isinstance(found, tuple) else (found, None)
    if arrays is not None:
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path.with_suffix(".npz"))
    write(record, path)
    return time.perf_counter() - started
