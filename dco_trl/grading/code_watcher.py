"""The process that starts programs and watches them: one at a time, for as long as the grading process lives.

It runs nothing of a program itself. Each program is a fork of it that confines itself before its first line. This
process limits what the kernel does not: wall-clock time, and memory and disk of a program and all its children
together. New processes and signals wait for its permission. However the grading process ends, standard input then ends
here, and with it every program.
"""

import ctypes
import fcntl
import importlib
import json
import os
import secrets
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

from . import code_driver, seccomp
from .code_semaphore import SemLock

PREFIX = "dco-trl-code-"
# Processes of a program at a time, its own included, and threads of all of them.
_PROCESSES, _TASKS = 8, 128
# Bytes and files that a program may keep on the disk, and the seconds between two looks at its memory and disk.
_DISK, _FILES, _TICK = 64 << 20, 1_000, 0.1
# The driver's verdict is one short line. Anything longer comes from the program, and is not read.
_VERDICT_BYTES = 8192
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1  # SECCOMP_IOCTL_NOTIF_*, SECCOMP_USER_NOTIF_FLAG_CONTINUE
# What LiveCodeBench's harness imports for each program.
_CUSTOMARY = ("bisect", "copy", "datetime", "heapq", "statistics", "string")
_ABANDONED = "the grading process has ended"
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IS_LINUX = sys.platform == "linux"


def main(path: list[str]) -> None:
    """Answer each line of standard input, a request, with a line of standard output, an outcome.

    Programs import from `path`.
    """
    request_pipe, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    if _IS_LINUX:
        import multiprocessing.heap
        import multiprocessing.synchronize

        # Both would make files in /dev/shm, where programs may not. The heap then takes the scratch folder.
        multiprocessing.synchronize._multiprocessing.SemLock = SemLock  # type: ignore[attr-defined]
        multiprocessing.heap.Arena._dir_candidates = []  # type: ignore[attr-defined]
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become its children
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for sent in _ENDING:  # a cluster sends them to all processes of a job; this one ends with the grading process
        signal.signal(sent, signal.SIG_IGN)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    _remove_stale()
    os.write(answers, b"\n")
    while line := request_pipe.readline():
        request = json.loads(line.decode("utf-8", "surrogatepass")) | {"path": path}
        request["calls"] = json.loads(request["calls"] or "[]")
        for name in _CUSTOMARY if request["setup"] else ():
            importlib.import_module(name)  # once, for all programs
        scratch = tempfile.mkdtemp(prefix=PREFIX)
        lock = os.open(scratch, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        deadline = time.monotonic() + request["timeout"]
        outcome = ("passed", "")
        for case in request["cases"] or [None]:
            run = _Run(request, case, scratch, deadline)
            if run.pid == 0:  # the program: returns, so that the interpreter ends as after a script
                signal.set_wakeup_fd(-1)
                for changed in (signal.SIGCHLD, *_ENDING):
                    signal.signal(changed, signal.SIG_DFL)
                request_pipe.close()
                # A program must not find what is expected of it.
                request["cases"].clear()
                request["calls"].clear()
                job = run.job
                del line, request, case, run
                return code_driver.run(job)
            outcome = run.watch(request_pipe.fileno(), wake)
            if outcome[0] != "passed":
                break
        with suppress(BrokenPipeError):
            os.write(answers, json.dumps(outcome).encode() + b"\n")
        _remove(scratch)
        os.close(lock)


class _Run:
    """One run of a program. The parent calls `watch`; the child, where `pid` is 0, runs `job`."""

    def __init__(self, request: dict[str, Any], case: tuple[str, str] | None, scratch: str, deadline: float):
        self._request, self._case, self._scratch, self._deadline = request, case, scratch, deadline
        self._word = secrets.token_hex(16)
        self._results = [result for _, result in request["calls"]]
        self._output = _unnamed(scratch) if case or self._results else os.open(os.devnull, os.O_RDWR)
        given = (
            _unnamed(scratch, case[0].encode("utf-8", "surrogatepass")) if case else os.open(os.devnull, os.O_RDONLY)
        )
        self._verdict, verdict = os.pipe()
        self._control, control = socket.socketpair()
        self._parent, watcher = os.getppid(), os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._control.close()
            self._case, self._results = None, []
            arguments = [arguments for arguments, _ in request["calls"]]
            request = {**request, "cases": [], "calls": arguments, "script": case is not None}
            fds = (given, self._output, verdict, control)
            self.job = code_driver.Job(request, scratch, self._word, watcher, *fds)
            return
        os.close(given)
        os.close(verdict)
        control.close()
        self._status: int | None = None
        self._line = b""

    def watch(self, parent: int, wake: int) -> tuple[str, str]:
        """Wait for the program's end, or end it. Returns status and detail."""
        gate, refusal = self._confined()
        reason = ("refused", refusal) if refusal else self._wait(parent, wake, gate)
        self._end()
        os.set_blocking(self._verdict, False)
        with suppress(BlockingIOError):
            while len(self._line) <= _VERDICT_BYTES and (received := os.read(self._verdict, _VERDICT_BYTES)):
                self._line += received
        outcome = reason or self._outcome()
        for descriptor in (self._verdict, self._output, *([] if gate is None else [gate])):
            os.close(descriptor)
        return outcome

    def _confined(self) -> tuple[int | None, str]:
        """The descriptor at which the program's processes wait for permission, or why it could not be confined."""
        with self._control as control:
            if self._request["unsafe"]:
                return None, ""
            text, descriptors, _, _ = socket.recv_fds(control, 1024, 1)
            while more := control.recv(1024):
                text += more
        if descriptors and text == b"+":
            return descriptors[0], ""
        return None, text.removeprefix(b"+").decode() or "the process died while it was being confined"

    def _wait(self, parent: int, wake: int, gate: int | None) -> tuple[str, str] | None:
        poll = select.poll()
        for descriptor in (parent, wake, self._verdict, *([] if gate is None else [gate])):
            poll.register(descriptor, select.POLLIN)
        look = time.monotonic() + _TICK
        while (now := time.monotonic()) < self._deadline:
            if now >= look:
                if os.getppid() != self._parent:
                    return "killed", _ABANDONED
                if excess := self._excess():
                    return "killed", excess
                look = time.monotonic() + _TICK
            for descriptor, events in poll.poll(1000 * max(0.0, min(self._deadline, look) - now)):
                if descriptor == parent:
                    return "killed", _ABANDONED
                if descriptor == gate and events & select.POLLIN:
                    self._answer(gate)
                elif descriptor == self._verdict and (received := os.read(self._verdict, _VERDICT_BYTES)):
                    self._line += received
                    if b"\n" in self._line or len(self._line) > _VERDICT_BYTES:
                        return None
                else:
                    if descriptor == wake:
                        with suppress(BlockingIOError):
                            os.read(wake, 1024)
                    else:
                        poll.unregister(descriptor)
                    self._reap()
                    if self._status is not None:
                        return None
        return "timeout", f"not done after {self._request['timeout']:g} s"

    def _outcome(self) -> tuple[str, str]:
        status, _, detail = self._line.partition(b"\n")[0].decode("utf-8", "replace").partition(" ")
        if status == self._word + ":failed":
            return "failed", detail
        if self._case is None and status == self._word + ":passed":
            return _judge_results(self._written(), self._results) if self._results else ("passed", "")
        code = os.waitstatus_to_exitcode(self._status or 0)
        if code == -signal.SIGXCPU:
            return "timeout", "its processor time is used up"
        if code < 0:
            return "killed", f"by signal {-code}"
        if self._case is None:
            return "failed", "it ended before its tests"
        if code:
            return "failed", f"it ended with exit code {code}"
        got = self._written().decode("utf-8", "replace")
        if code_driver.same_output(got, self._case[1]):
            return "passed", ""
        return "failed", f"expected {self._case[1][:80]!r}, got {got[:80]!r}"

    def _written(self) -> bytes:
        return os.pread(self._output, code_driver.FILE_BYTES, 0)

    def _answer(self, gate: int) -> None:
        """Allow a call, or refuse it: too many processes or threads, or a signal to a process of others."""
        call = bytearray(80)  # struct seccomp_notif
        try:
            fcntl.ioctl(gate, _RECEIVE, call)
        except OSError:  # the caller has died
            return
        identity, _, _, number, _, _, first = struct.unpack_from("=QIIiIQQ", call)
        name = seccomp.gated_name(number)
        found = _descendants()
        if name in ("kill", "tgkill"):
            error = 0 if first & 0xFFFFFFFF in found else -1  # EPERM
        elif name == "clone" and first & 0x10000:  # CLONE_THREAD
            error = 0 if sum(found.values()) < _TASKS else -11  # EAGAIN
        else:
            error = 0 if len(found) < _PROCESSES else -11
        with suppress(OSError):
            fcntl.ioctl(gate, _SEND, struct.pack("=QqiI", identity, 0, error, 0 if error else _CONTINUE))

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self._status = ended[1]

    def _end(self) -> None:
        """Kill the program and all its children. The signal also wakes those that wait at the gate."""
        while True:
            self._reap()
            living = set(_descendants()) if _IS_LINUX else set()
            if self._status is None:
                living.add(self.pid)
            if not living:
                return
            for pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not _IS_LINUX:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.001)

    def _excess(self) -> str:
        """Which limit the program and its children exceed together."""
        if not _IS_LINUX or self._request["unsafe"]:
            return ""
        found = _descendants()
        if len(found) > _PROCESSES:  # threads that asked at the same moment
            return f"more than {_PROCESSES} processes"
        limit = self._request["memory_limit"]
        if sum(map(_resident, found)) > limit and sum(map(_proportional, found)) > limit:
            return f"more than {limit} bytes of memory"
        return _disk_excess(self._scratch, found)


def _judge_results(written: bytes, expected: list) -> tuple[str, str]:
    """Compare what a function returned with what is expected, as JSON: a tuple is a list."""
    try:
        # Reading a long number takes quadratic time.
        got = json.loads(written, parse_int=lambda digits: int(digits) if len(digits) <= 4000 else digits)
        if got == expected:
            return "passed", ""
        pairs = zip(got, expected, strict=True)
        return "failed", next(f"expected {right!r:.80}, got {one!r:.80}" for one, right in pairs if one != right)
    except (ValueError, TypeError, RecursionError, StopIteration):
        return "failed", "its results are no JSON of the calls"


def _descendants() -> dict[int, int]:
    """The program's processes, which all descend from this one, and their numbers of threads."""
    found: dict[int, int] = {}
    parents = [os.getpid()]
    while parents:
        parent = parents.pop()
        with suppress(OSError):  # it has ended
            tasks = os.listdir(f"/proc/{parent}/task")
            found[parent] = len(tasks)
            for task in tasks:
                with (
                    suppress(FileNotFoundError, ProcessLookupError),
                    open(f"/proc/{parent}/task/{task}/children") as file,
                ):
                    parents += map(int, file.read().split())
    del found[os.getpid()]
    return found


def _resident(pid: int) -> int:
    with suppress(OSError, ValueError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int) -> int:
    """Resident bytes, with what several processes share divided among them."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) << 10
    return 0


def _disk_excess(scratch: str, pids: dict[int, int]) -> str:
    """Which limit is exceeded by the files of the folder and open files that have no name any more."""
    total = count = 0
    folders = [scratch]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                count += 1
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                if count > _FILES:
                    return f"more than {_FILES} files"
    unnamed = {}
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{name}")
                    if stat.S_ISREG(found.st_mode) and not found.st_nlink:
                        unnamed[found.st_dev, found.st_ino] = found.st_blocks * 512
    return f"more than {_DISK} bytes of files" if total + sum(unnamed.values()) > _DISK else ""


def _unnamed(folder: str, content: bytes = b"") -> int:
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.unlink(path)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # not empty. `shutil.rmtree` goes only as deep as Python's calls
        subprocess.run(["rm", "-rf", "--", folder], check=False)


def _remove_stale() -> None:
    """Remove the folders of dead watchers. Those of living ones are locked, or were made just now."""
    oldest = time.time() - 60
    for name in os.listdir(tempfile.gettempdir()):
        if not name.startswith(PREFIX):  # left alone: it may be a mount that does not answer
            continue
        path = os.path.join(tempfile.gettempdir(), name)
        with suppress(OSError):
            found = os.stat(path)
            if found.st_uid == os.getuid() and found.st_mtime < oldest:
                lock = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
                finally:
                    os.close(lock)
