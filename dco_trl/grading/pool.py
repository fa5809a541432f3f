"""Worker processes that can be killed: a limit on time and memory for every single verdict."""

import json
import os
import pickle
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..cores import available_cores
from ..errors import UserError
from .errors import GraderError
from .verdict import LIMITED, Verdict, shorten

_BATCH_ITEMS = 32
_BATCH_CHARS = 20_000
# sympy keeps what it has seen; a fresh process costs half a second.
_ITEMS_PER_WORKER = 20_000
_START_SECONDS = 120.0

# A pair (reference, answer) for math-verify; the arguments of `call_grader` for a function of the user's.
Item = tuple[Any, ...]


def check_limits(num_workers: int | None, timeout: float, memory_limit: int) -> tuple[int, float, int]:
    """The limits of a pool, checked; `num_workers=None` is one per CPU, shared by the local processes of a job."""
    if num_workers is None:
        local_processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        num_workers = max(1, available_cores() // max(1, int(local_processes) if local_processes.isdecimal() else 1))
    if num_workers < 1:
        raise UserError(f"num_workers must be at least 1, got {num_workers}")
    if not timeout > 0:
        raise UserError(f"timeout is the time a verdict may take, in seconds: it must be above 0, got {timeout}")
    if memory_limit < 256 << 20:
        raise UserError(
            f"memory_limit is in bytes, and math-verify needs at least 256 MiB ({256 << 20}) to work, "
            f"got {memory_limit}"
        )
    return num_workers, timeout, memory_limit


class WorkerPool:
    """Runs `judge`, or a function of the user's, in worker processes; a kill enforces the wall-clock limit.

    A worker that hangs or dies is replaced; only the item it was working on is affected. An item whose worker died
    (rather than hung) is tried once more in a fresh process, because an earlier item may have eaten the memory. Any
    thread may use it: one at a time does, and the others wait.

    Args:
        num_workers: Processes; they start when there is something to do.
        timeout: Seconds that an item may take.
        memory_limit: Bytes of address space that a worker may have.
        grader: Import path of the user's function; None: `judge`.
    """

    def __init__(self, num_workers: int, timeout: float, memory_limit: int, grader: str | None = None):
        self.num_workers = num_workers
        self.timeout = timeout
        self._options = (timeout, memory_limit, grader)
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def run(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """Judge items, in any order.

        Args:
            items: Pairs (reference, answer), fastest where those of one reference are side by side, or rows.

        Returns:
            An iterator of (index into `items`, verdict); the status is "timeout" or "error" where a limit was hit.

        Raises:
            GraderError: A worker cannot start, or the user's function fails.
        """
        with self._lock:
            yield from self._run(items)

    def _run(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        batches = deque(_batches(items))
        died_once: set[int] = set()
        busy: set[_Worker] = set()
        try:
            with selectors.DefaultSelector() as selector:
                for worker in self._workers:
                    selector.register(worker.stdout, selectors.EVENT_READ, worker)
                while batches or busy:
                    self._feed(batches, busy, selector)
                    wait = min(w.deadline for w in self._workers) - time.monotonic()
                    ready = selector.select(min(max(0.0, wait), 60.0))
                    for worker in [key.data for key, _ in ready]:
                        results, alive = worker.receive()
                        yield from results
                        if not alive:
                            self._remove(worker, busy, selector)
                            lost = list(worker.pending.items())
                            if lost and lost[0][0] in died_once:
                                yield _no_verdict(lost.pop(0), "error")
                            elif lost:
                                died_once.add(lost[0][0])
                                batches.appendleft([lost.pop(0)])
                            if lost:
                                batches.append(lost)
                        elif not worker.pending and worker in busy:
                            busy.discard(worker)
                            if worker.served >= _ITEMS_PER_WORKER:
                                self._remove(worker, busy, selector)
                    now = time.monotonic()
                    for worker in [w for w in self._workers if now >= w.deadline and not w.has_output()]:
                        errors = "" if worker.ready else worker.errors()
                        self._remove(worker, busy, selector)
                        if not worker.ready:
                            raise GraderError(
                                f"a grading worker did not start within {_START_SECONDS:g} seconds. Use fewer "
                                f"num_workers, or close other programs.\n{errors}"
                            )
                        lost = list(worker.pending.items())
                        yield _no_verdict(lost.pop(0), "timeout")
                        if lost:
                            batches.append(lost)
        finally:
            # Left early (an exception, a generator not exhausted): no worker may keep answers to old questions.
            for worker in list(busy):
                worker.kill()
                with suppress(ValueError):  # the pool has been closed meanwhile
                    self._workers.remove(worker)

    def close(self) -> None:
        """End the workers. The pool can be used again, with new ones."""
        _kill_all(self._workers)

    def _feed(self, batches: deque, busy: set["_Worker"], selector: selectors.BaseSelector) -> None:
        idle = [w for w in self._workers if w.ready and w not in busy]
        starting = sum(not w.ready for w in self._workers)
        while batches and idle:
            worker = idle.pop()
            busy.add(worker)
            worker.send(batches.popleft(), self.timeout)
        while len(self._workers) < self.num_workers and len(batches) > starting:
            worker = _Worker(*self._options)
            self._workers.append(worker)
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
            starting += 1

    def _remove(self, worker: "_Worker", busy: set["_Worker"], selector: selectors.BaseSelector) -> None:
        selector.unregister(worker.stdout)
        self._workers.remove(worker)
        busy.discard(worker)
        worker.kill()


class _Worker:
    def __init__(self, timeout: float, memory_limit: int, grader: str | None):
        code = f"from dco_trl.grading.worker import main; main({timeout!r}, {memory_limit!r}, {grader!r})"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONHASHSEED": "0",  # sympy orders by hash here and there: the same verdict every time
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if grader is None else None,  # what the user's function prints is shown
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its workers
        )
        self._owner = os.getpid()
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.ready = False
        self.served = 0
        self.pending: dict[int, Item] = {}  # by their numbers, in the order in which they are worked on
        self.deadline = time.monotonic() + _START_SECONDS
        self._timeout = timeout
        self._partial = b""

    def send(self, batch: list[tuple[int, Item]], timeout: float) -> None:
        self.pending.update(batch)
        self.deadline = time.monotonic() + timeout
        try:
            data = pickle.dumps(batch)
        except Exception as error:
            raise GraderError(
                f"a row cannot be sent to a grading worker: {type(error).__name__}: {error}. Leave out the column "
                "that holds such a value, or keep the grader in this process (in_process=True, --grader_in_process)"
            ) from error
        try:
            self.stdin.write(data)
            self.stdin.flush()
        except BrokenPipeError:
            pass  # it died: the end of its output says so next

    def receive(self) -> tuple[list[tuple[int, Verdict]], bool]:
        data = os.read(self.stdout.fileno(), 1 << 16)
        if not data:
            if not self.ready:
                self.process.wait()
                raise GraderError(f"a grading worker could not start:\n{self.errors()}")
            return [], False
        *lines, self._partial = (self._partial + data).split(b"\n")
        results, was_ready = [], self.ready
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # the user's function has written to a descriptor that is not its own
            match message:
                case {"error": str(reason)}:
                    raise GraderError(reason)
                case {"ready": True, "memory_limited": limited} if not self.ready:
                    self.ready = True
                    if not limited:
                        warnings.warn(
                            "memory_limit: this system does not limit a process's address space. Watch it yourself",
                            stacklevel=2,
                        )
                case {"number": int(number), "verdict": [score, str(answer), str(status)]} if number in self.pending:
                    question = number, self.pending.pop(number)
                    limited = status in LIMITED
                    results.append(
                        _no_verdict(question, status) if limited else (number, Verdict(score, answer, status))
                    )
        self.served += len(results)
        if results or self.ready != was_ready:  # what a user's function writes beside buys it no time
            self.deadline = time.monotonic() + self._timeout if self.pending else float("inf")
        return results, True

    def has_output(self) -> bool:
        # The caller may have been away from the loop for long: what has been answered in time counts.
        return bool(select.select([self.stdout], [], [], 0)[0])

    def errors(self) -> str:
        self.process.kill()
        if self.process.stderr is None:
            return "What it printed is above."
        return self.process.stderr.read().decode(errors="replace")[-2000:]

    def kill(self) -> None:
        if os.getpid() == self._owner:  # not in a fork, whose parent needs it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # and what the user's function has started
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


def _no_verdict(question: tuple[int, Item], status: str) -> tuple[int, Verdict]:
    number, item = question
    return number, Verdict(None, shorten(item[1]) if isinstance(item[1], str) else "", status)


def _batches(items: Sequence[Item]) -> Iterator[list[tuple[int, Item]]]:
    batch: list[tuple[int, Item]] = []
    chars = 0
    for index, item in enumerate(items):
        size = sum(len(part) for part in item if isinstance(part, str))
        if batch and (len(batch) == _BATCH_ITEMS or chars + size > _BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append((index, item))
        chars += size
    if batch:
        yield batch


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
