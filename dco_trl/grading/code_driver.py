"""What a program's own process does: confine itself, run the program, then its tests, and report."""

import builtins
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import types
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from .landlock import restrict_files
from .seccomp import allow_by_list, notify_gated

FILE_BYTES = 16 << 20
_OPEN_FILES = 128
# What a Python program reads to start, besides the installation itself.
_SYSTEM = (
    *("/usr/lib", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache", "/dev/zero", "/dev/urandom"),
    *("/usr/share/zoneinfo", "/etc/localtime"),
)


class Job(NamedTuple):
    """A request, and what the watcher has prepared for it: a folder, a secret word, its process id, descriptors."""

    request: dict[str, Any]
    scratch: str
    word: str
    watcher: int
    given: int
    output: int
    verdict: int
    control: socket.socket


def run(job: Job) -> None:
    """Run the program. A script returns, so that the interpreter ends as usual; with tests, the process ends here."""
    # Bound here, before the program can replace them in their modules.
    write, leave, execute, build, get, dumps = os.write, os._exit, exec, compile, getattr, json.dumps
    request, word = job.request, job.word
    _prepare(job)
    verdict, results = job.verdict, job.output
    name = "__main__" if request["script"] else "program"
    module = types.ModuleType(name)
    module.__dict__.update(__file__="program.py", __builtins__=builtins)
    sys.modules[name] = module
    del job
    try:
        # Compiled separately: no part can end, decorate or quote the next.
        for part in (request["setup"], request["program"]):
            execute(build(part, "program.py", "exec", dont_inherit=True), module.__dict__)
        if request["script"]:
            return
        execute(build(request["tests"], "tests.py", "exec", dont_inherit=True), module.__dict__)
        if request["calls"]:
            owner = get(module, "Solution", None)
            function = get(module if owner is None else owner(), request["function"])
            found = [function(*arguments) for arguments in request["calls"]]
            write(results, dumps(found, default=_plain).encode())
        write(verdict, b"%b:passed\n" % word.encode())
        leave(0)  # without the program's exit handlers and threads
    except SystemExit as end:
        # A script may end itself with any code, as in the published harness. A program with tests has not run them.
        if request["script"]:
            return
        error: BaseException = end
    except BaseException as raised:
        error = raised
    try:
        detail = f"{type(error).__name__}: {error}"[:200].replace("\n", " ")
    except BaseException:
        detail = "an exception that cannot be printed"
    write(verdict, b"%b:failed %b\n" % (word.encode(), detail.encode("utf-8", "replace")))
    leave(0)


def _prepare(job: Job) -> None:
    """Make this process look like a program's, and confine it."""
    os.setsid()
    os.dup2(job.given, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY) if job.request["calls"] else job.output, 1)
    sys.stdin, sys.stdout = open(0, encoding="utf-8", closefd=False), open(1, "w", encoding="utf-8", closefd=False)
    sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout  # type: ignore[misc]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    sys.__stderr__ = sys.stderr  # type: ignore[misc]
    sys.argv = ["program.py"]
    sys.set_int_max_str_digits(0)  # `print(10**5000)` is no mistake
    os.chdir(job.scratch)
    os.environ.update(HOME=job.scratch, TMPDIR=job.scratch)
    sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
    if not job.request["unsafe"]:
        try:
            _confine(job)
        except Exception as error:
            job.control.sendall(str(error).encode())
            os._exit(0)
    job.control.close()
    for descriptor in set(range(3, 256)) - {job.verdict, *([job.output] if job.request["calls"] else [])}:
        with suppress(OSError):
            os.close(descriptor)
    package = __name__.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.path[:] = job.request["path"]


def _confine(job: Job) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != job.watcher:
        os._exit(0)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if the machine runs out of memory, this process goes first

    def limit(name: str, soft: int, hard: int) -> None:
        resource_limit = getattr(resource, f"RLIMIT_{name}")
        present = resource.getrlimit(resource_limit)[1]
        hard = hard if present == resource.RLIM_INFINITY else min(hard, present)
        resource.setrlimit(resource_limit, (min(soft, hard), hard))

    seconds = int(job.request["timeout"]) + 2
    limit("CPU", seconds, seconds + 1)
    for name, most in {"FSIZE": FILE_BYTES, "NOFILE": _OPEN_FILES, "CORE": 0, "MEMLOCK": 0, "SIGPENDING": 64}.items():
        limit(name, most, most)
    installation = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *_SYSTEM) if os.path.exists(path)}
    restrict_files(sorted(installation), [job.scratch, os.devnull], execute=True)
    # Root keeps no capability: capset(version 3, this process; three empty sets of 64 bits).
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "its capabilities cannot be given up")
    gate = notify_gated()
    socket.send_fds(job.control, [b"+"], [gate])
    os.close(gate)
    allow_by_list(processes=True)
    limit("AS", job.request["memory_limit"], job.request["memory_limit"])


def same_output(got: str, expected: str) -> bool:
    """Whether outputs are equal line by line, stripped, as text or as decimal numbers with blanks between them."""
    got_lines, expected_lines = ([line.strip() for line in text.strip().split("\n")] for text in (got, expected))
    if len(got_lines) != len(expected_lines):
        return False
    return all(a == b or _same_decimals(a, b) for a, b in zip(got_lines, expected_lines, strict=True))


def _same_decimals(got: str, expected: str) -> bool:
    try:
        return [Decimal(word) for word in got.split()] == [Decimal(word) for word in expected.split()]
    except InvalidOperation:
        return False


def _plain(value: Any) -> Any:
    """A NumPy number as Python's. Anything else that JSON does not know fails: it is no right result."""
    return value.item()
