"""Worker processes that can be killed: a limit on time and memory for every single pair."""

import json
import os
import select
import selectors
import subprocess
import sys
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence

from .errors import GraderError

_BATCH_PAIRS = 32
_BATCH_CHARS = 20_000
# sympy keeps what it has seen; a fresh process costs half a second.
_PAIRS_A_WORKER = 20_000
_START_SECONDS = 120.0

Pair = tuple[str, str]
Outcome = tuple[float | None, str, str | None]


class WorkerPool:
    """Runs `judge` on pairs in worker processes, each pair under a wall-clock limit that a kill enforces.

    A worker that hangs or dies is replaced; only the pair it was working on is affected. A pair whose worker died
    (rather than hung) is tried once more in a fresh process, because an earlier pair may have eaten the memory.

    Args:
        num_workers: processes; they start when there is something to do.
        timeout: seconds a pair may take.
        memory_limit: bytes of address space a worker may have.
    """

    def __init__(self, num_workers: int, timeout: float, memory_limit: int):
        self.num_workers = num_workers
        self.timeout = timeout
        self.memory_limit = memory_limit
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def run(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Outcome]]:
        """Judge pairs, in any order.

        Args:
            pairs: (reference, answer); pairs of one reference side by side are fastest.

        Returns:
            An iterator of (index into `pairs`, (score, status, text taken from prose)); status "timeout" or "error"
            where a limit was hit.

        Raises:
            GraderError: a worker cannot start.
        """
        batches = deque(_batches(pairs))
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
                            lost = worker.pending
                            if lost and lost[0][0] in died_once:
                                index, _ = lost.popleft()
                                yield index, (None, "error", None)
                            elif lost:
                                died_once.add(lost[0][0])
                                batches.appendleft([lost.popleft()])
                            if lost:
                                batches.append(list(lost))
                        elif not worker.pending and worker in busy:
                            busy.discard(worker)
                            if worker.served >= _PAIRS_A_WORKER:
                                self._remove(worker, busy, selector)
                    now = time.monotonic()
                    for worker in [w for w in self._workers if now >= w.deadline and not w.has_output()]:
                        self._remove(worker, busy, selector)
                        if not worker.ready:
                            raise GraderError(
                                f"a grading worker did not start within {_START_SECONDS:.0f} s.\n{worker.errors()}"
                            )
                        index, _ = worker.pending.popleft()
                        yield index, (None, "timeout", None)
                        if worker.pending:
                            batches.append(list(worker.pending))
        finally:
            # Left early (an exception, a generator not exhausted): no worker may keep answers to old questions.
            for worker in list(busy):
                worker.kill()
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
            worker = _Worker(self.timeout, self.memory_limit)
            self._workers.append(worker)
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
            starting += 1

    def _remove(self, worker: "_Worker", busy: set["_Worker"], selector: selectors.BaseSelector) -> None:
        selector.unregister(worker.stdout)
        self._workers.remove(worker)
        busy.discard(worker)
        worker.kill()


class _Worker:
    def __init__(self, timeout: float, memory_limit: int):
        code = f"from dco_trl.grading.worker import main; main({timeout!r}, {memory_limit!r})"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONHASHSEED": "0",  # sympy orders by hash here and there: the same verdict every time
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its workers
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.ready = False
        self.served = 0
        self.pending: deque[tuple[int, Pair]] = deque()
        self.deadline = time.monotonic() + _START_SECONDS
        self._timeout = timeout
        self._partial = b""

    def send(self, batch: list[tuple[int, Pair]], timeout: float) -> None:
        self.pending.extend(batch)
        self.deadline = time.monotonic() + timeout
        try:
            self.stdin.write(json.dumps([pair for _, pair in batch]).encode() + b"\n")
            self.stdin.flush()
        except BrokenPipeError:
            pass  # it died: the end of its output says so next

    def receive(self) -> tuple[list[tuple[int, Outcome]], bool]:
        data = os.read(self.stdout.fileno(), 1 << 16)
        if not data:
            if not self.ready:
                self.process.wait()
                raise GraderError(f"a grading worker could not start:\n{self.errors()}")
            return [], False
        *lines, self._partial = (self._partial + data).split(b"\n")
        results = []
        for line in lines:
            value = json.loads(line)
            if not self.ready:
                self.ready = True
                if not value["memory_limited"]:
                    warnings.warn("memory_limit: this system does not limit a process's address space", stacklevel=2)
                continue
            results.append((self.pending.popleft()[0], tuple(value)))
        self.served += len(results)
        self.deadline = time.monotonic() + self._timeout if self.pending else float("inf")
        return results, True

    def has_output(self) -> bool:
        # The caller may have been away from the loop for long: what has been answered in time counts.
        return bool(select.select([self.stdout], [], [], 0)[0])

    def errors(self) -> str:
        self.process.kill()
        assert self.process.stderr
        return self.process.stderr.read().decode(errors="replace")[-2000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream
            try:
                stream.close()
            except BrokenPipeError:
                pass


def _batches(pairs: Sequence[Pair]) -> Iterator[list[tuple[int, Pair]]]:
    batch: list[tuple[int, Pair]] = []
    chars = 0
    for index, pair in enumerate(pairs):
        size = len(pair[0]) + len(pair[1])
        if batch and (len(batch) == _BATCH_PAIRS or chars + size > _BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append((index, pair))
        chars += size
    if batch:
        yield batch


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
