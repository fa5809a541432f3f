"""Worker processes that can be killed: a limit on time and memory for every single verdict."""

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from queue import SimpleQueue
from typing import Any

from ..cores import available_cores
from ..errors import UserError
from .verdict import LIMITED, GraderError, Verdict, shorten

# Neighbouring items often share a reference, which each worker reads anew: so many go to one worker at a time.
_CHUNK = 32
# SymPy's caches grow; a fresh process costs half a second.
_ITEMS_PER_WORKER = 20_000
_START_SECONDS = 120.0

# A pair (reference, answer) for math-verify; the arguments of `call_grader` for a user's function.
Item = tuple[Any, ...]


def default_workers() -> int:
    """One worker per CPU, shared by the processes that a launcher started on this machine."""
    local_processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, available_cores() // max(1, int(local_processes) if local_processes.isdecimal() else 1))


def check_limits(num_workers: int | None, timeout: float, memory_limit: int) -> tuple[int, float, int]:
    """The limits of a pool, checked, with a number of workers."""
    num_workers = default_workers() if num_workers is None else num_workers
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
    """Runs `judge`, or the user's function at the import path `grader`, in worker processes, with a thread for each.

    A worker that hangs is killed, and one that dies is replaced; only the item it was working on is affected. An item
    whose worker died (rather than hung) is tried once more in a fresh process, because an earlier item may have eaten
    the memory. Any thread may use the pool; they take turns.
    """

    def __init__(self, num_workers: int, timeout: float, memory_limit: int, grader: str | None = None):
        self.num_workers = num_workers
        self._options = (timeout, memory_limit, grader)
        self._workers: dict[int, _Worker] = {}  # by the number of their threads
        self._is_abandoned = False
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _close_all, self._workers)

    def run(self, items: Sequence[Item]) -> Generator[tuple[int, Verdict], None, None]:
        """Yield (index into `items`, verdict), in any order. Close the iterator if you leave it early.

        Pairs are judged fastest if those of one reference are neighbours. The status is "timeout" or "error" if a
        limit was hit. Raises a `GraderError` if a worker cannot start, or if the user's function fails.
        """
        size = min(_CHUNK, len(items) // (4 * self.num_workers) + 1)
        chunks = [range(len(items))[start : start + size] for start in range(0, len(items), size)]
        shared = iter(chunks)  # threads may share a list's iterator
        results: SimpleQueue = SimpleQueue()
        with self._lock, ThreadPoolExecutor(self.num_workers) as executor:
            self._is_abandoned = False
            try:
                for i in range(min(self.num_workers, len(chunks))):
                    executor.submit(self._serve, i, items, shared, results)
                for _ in items:
                    result = results.get()
                    if isinstance(result, Exception):
                        raise result
                    yield result
            except BaseException:  # no worker may keep answers to old questions
                self._is_abandoned = True
                for worker in list(self._workers.values()):
                    worker.kill()
                raise

    def close(self) -> None:
        """End the workers. The pool can be used again, with new ones."""
        _close_all(self._workers)

    def _serve(self, i: int, items: Sequence[Item], chunks: Iterator[range], results: SimpleQueue) -> None:
        try:
            for number in chain.from_iterable(chunks):
                verdict = self._worker(i).judge(items[number]) or self._worker(i).judge(items[number])
                results.put((number, verdict or _no_verdict(items[number], "error")))
        except Exception as error:
            results.put(error)

    def _worker(self, i: int) -> "_Worker":
        if self._is_abandoned:
            raise InterruptedError
        worker = self._workers.get(i)
        if worker is None or worker.has_ended:
            worker = self._workers[i] = _Worker(*self._options)
            if self._is_abandoned:  # meanwhile: `run` may not have seen it
                worker.close()
                raise InterruptedError
        worker.wait_until_ready()
        return worker


class Pipes:
    """A process's standard input, and its output line by line."""

    def __init__(self, process: subprocess.Popen):
        assert process.stdin and process.stdout
        self._input, self._output, self._errors = process.stdin, process.stdout, process.stderr
        self._rest = b""
        self._poll = select.poll()  # `select` itself knows no descriptor above 1023
        self._poll.register(self._output, select.POLLIN)

    def write(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # it died: the end of its output says so next
            self._input.write(data)
            self._input.flush()

    def line(self, deadline: float) -> bytes:
        """The next line. Raises an `EOFError` if the process has ended, and a `TimeoutError` at the deadline."""
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            # What was written in time counts, even if this thread was kept from reading it.
            if left < -1.0 or not self._poll.poll(1000 * min(max(0.0, left), 1e6)):
                raise TimeoutError
            received = os.read(self._output.fileno(), 1 << 16)
            if not received:
                raise EOFError
            self._rest += received
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        for pipe in filter(None, (self._input, self._output, self._errors)):
            with suppress(BrokenPipeError):
                pipe.close()


class _Worker:
    def __init__(self, timeout: float, memory_limit: int, grader: str | None):
        code = f"from dco_trl.grading.worker import main; main({timeout!r}, {memory_limit!r}, {grader!r})"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONHASHSEED": "0",  # SymPy orders by hash in places: the same verdict every time
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if grader is None else None,  # what the user's function prints is shown
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its workers
        )
        self._pipes = Pipes(self.process)
        self._timeout = timeout
        self._owner = os.getpid()
        self._served = 0
        self._is_ready = self.has_ended = False

    def wait_until_ready(self) -> None:
        """Return once it has imported what it needs. It may be killed meanwhile."""
        if self._is_ready:
            return
        try:
            message = self._message(time.monotonic() + _START_SECONDS, "ready")
        except (EOFError, TimeoutError, GraderError) as end:
            self.kill()
            stderr = self.process.stderr
            printed = stderr.read().decode(errors="replace")[-2000:] if stderr else "What it printed is above."
            self.close()
            if isinstance(end, GraderError):
                raise
            late = f"did not start within {_START_SECONDS:g} seconds. Use fewer num_workers, or close other programs"
            reason = late if isinstance(end, TimeoutError) else "could not start"
            raise GraderError(f"a grading worker {reason}:\n{printed}") from None
        self._is_ready = True
        if not message["memory_limited"]:
            warnings.warn(
                "memory_limit: this system does not limit a process's address space. Watch the memory yourself",
                stacklevel=2,
            )

    def judge(self, item: Item) -> Verdict | None:
        """The verdict on an item; None if the process died of it."""
        try:
            data = pickle.dumps(item)
        except Exception as error:
            raise GraderError(
                f"a row cannot be sent to a grading worker: {type(error).__name__}: {error}. Leave out the column "
                "that holds such a value, or keep the grader in this process (in_process=True, --grader_in_process)"
            ) from error
        self._pipes.write(data)
        try:
            message = self._message(time.monotonic() + self._timeout, "verdict")
        except (EOFError, TimeoutError) as end:
            self.close()
            return _no_verdict(item, "timeout") if isinstance(end, TimeoutError) else None
        self._served += 1
        if self._served == _ITEMS_PER_WORKER:
            self.close()
        score, answer, status = message["verdict"]
        return _no_verdict(item, status) if status in LIMITED else Verdict(score, answer, status)

    def _message(self, deadline: float, kind: str) -> dict[str, Any]:
        """The next message of this kind and number: a user's function may write to this pipe too."""
        while True:
            line = self._pipes.line(deadline)
            try:
                message = json.loads(line)
            except ValueError:
                continue
            match message:
                case {"error": str(reason)}:
                    raise GraderError(reason)
                case {"ready": True} | {"verdict": [_, str(), str()]}:
                    if kind in message and message.get("number", 0) == self._served:
                        return message

    def kill(self) -> None:
        if os.getpid() == self._owner and self.process.returncode is None:  # not in a fork, whose parent needs it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # and what the user's function has started

    def close(self) -> None:
        """Kill it and forget it; nobody may be waiting for it."""
        self.has_ended = True
        self.kill()
        if os.getpid() == self._owner:
            self.process.wait()
        self._pipes.close()


def _no_verdict(item: Item, status: str) -> Verdict:
    return Verdict(None, shorten(item[1]) if isinstance(item[1], str) else "", status)


def _close_all(workers: dict[int, _Worker]) -> None:
    while workers:
        workers.popitem()[1].close()
