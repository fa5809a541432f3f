"""Independent runs, each in a process of one thread. The scripts in `research/` use it too."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

_ticks: Any = None


def run_in_processes(
    function: Callable[..., Any],
    jobs: Sequence[Sequence[Any]],
    workers: int,
    finished: Callable[[int, Future], None],
    *,
    environment: Mapping[str, str] = ONE_THREAD,
    ticked: Callable[[int], None] = lambda count: None,
) -> None:
    """Call `function(*job)` for each job, in fresh processes.

    Args:
        function: Importable by a new process. It may call `tick`.
        jobs: Its arguments.
        workers: Processes at a time.
        finished: Called with a job's number and its future when the job ends or fails. If it raises, all processes
            are ended and the error is passed on.
        environment: Variables that the libraries read as the processes start.
        ticked: Called with the number of ticks so far, twice a second and at the end.
    """
    context = multiprocessing.get_context("spawn")  # not a fork: forked threads of torch can hang
    ticks = context.Value("i", 0)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(ticks,))
    try:
        pending = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
        while pending:
            ready, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            ticked(ticks.value)
            for future in ready:
                finished(pending.pop(future), future)
    except BaseException:  # an error in one run, or Ctrl-C: do not wait for the others
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def tick() -> None:
    """Count one more part of a run as done."""
    with _ticks.get_lock():
        _ticks.value += 1


def _start_worker(ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
