"""Run an untrusted Python program: confined by the kernel, without Docker, root or a container image.

Landlock and seccomp, through the package `sandlock`, leave the program a scratch folder, the Python installation to
read, and nothing else: no other file, no network, no signal to another process. Memory, processes, disk and wall-clock
time are limited. A fresh process runs each program, so that nothing passes from one to the next.
"""

import json
import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import GraderError

Status = Literal["passed", "failed", "timeout", "killed"]

_DRIVER = Path(__file__).with_name("code_driver.py")
# What a Python program reads to start, besides the installation itself.
_SYSTEM = ("/usr/lib", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom")
# The driver's verdict is one short line; a program that found a way to write more is not listened to.
_VERDICT_BYTES = 8192
# Processes of a program at a time, its own included: enough for a `subprocess` or a `multiprocessing` of two.
_PROCESSES = 8
# Bytes that a program may leave in its scratch folder, which is looked at this often (seconds).
_DISK = 64 << 20
_TICK = 0.1
# Landlock guards contents, not modes, owners and times, and a pipe in the file system can block who opens it.
_DENIED = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat", "mknod", "mknodat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
)


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Args:
        status: "passed": its tests ran to their end. "failed": a test failed, or the program raised or ended early.
            "timeout": it was stopped at the time limit. "killed": it died, most often of the memory or disk limit.
        detail: The exception of a failed program, shortened.
    """

    status: Status
    detail: str = ""


def unconfinable() -> str | None:
    """Why this platform cannot confine programs, with the way out; None where it can."""
    try:
        import sandlock
    except ImportError:
        return (
            "the package that confines programs is not installed: `pip install 'dco-trl[code]'` (Linux 6.12 or newer)"
        )
    found, needed = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
    if found < needed:
        return (
            f"this kernel offers Landlock version {max(found, 0)} and {needed} is needed, which Linux 6.12 brought. "
            "Grade on such a machine, or in a container or virtual machine of its own with "
            "`code_grader(…, unsafe=True)`"
        )
    return None


def run_program(
    program: str,
    cases: Sequence[tuple[str, str]] = (),
    *,
    timeout: float = 10.0,
    memory_limit: int = 1 << 29,
    unsafe: bool = False,
) -> Outcome:
    r"""Run a program to its end, or once for each case of standard input and expected output.

    Args:
        program: Python source, its tests included.
        cases: Pairs of input and expected output; empty: the program passes if it ends without an exception.
        timeout: Seconds of wall-clock time, for all cases together.
        memory_limit: Bytes of memory of the program and its children together.
        unsafe: Run with the time limit alone, as the user, unconfined: for machines that hold nothing of value.

    Returns:
        How it ended.

    Raises:
        GraderError: This platform cannot confine programs, and `unsafe` is False.

    Examples:
        ```python
        >>> from dco_trl.grading.code_sandbox import run_program
        >>> run_program("assert 1 + 1 == 2").status
        'passed'
        >>> run_program("open('/etc/passwd')")
        Outcome(status='failed', detail="PermissionError: [Errno 13] Permission denied: '/etc/passwd'")

        ```

    Relations:
        [`code_grader`][dco_trl.grading.code_grader] builds the programs from completions and tests.
    """
    if not unsafe and (reason := unconfinable()):
        raise GraderError(f"grader 'code' runs the model's programs, and {reason}.")
    # The verdict carries a word that the program is not told: printing "passed" does not pass.
    word = secrets.token_hex(16)
    request = json.dumps({"word": word, "program": program, "cases": list(cases)}).encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory(prefix="dco-trl-code-", ignore_cleanup_errors=True) as scratch:
        start = _start_unconfined if unsafe else _start_confined
        stdin, stdout, finish = start(scratch, memory_limit)
        line, is_late = _talk(stdin, stdout, request, time.monotonic() + timeout, scratch)
        finish()
    try:
        verdict = json.loads(line)
        if verdict.pop("word") == word:
            return Outcome(**verdict)
    except (ValueError, TypeError, AttributeError, KeyError):
        pass  # nothing, or what the program wrote in the driver's place
    return Outcome("timeout" if is_late else "killed")


def _start_confined(scratch: str, memory_limit: int) -> tuple[Any, Any, Callable[[], None]]:
    from sandlock import Sandbox
    from sandlock.sandbox import StdioMode

    installation = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, *_SYSTEM) if os.path.exists(p)}
    box = Sandbox(
        fs_readable=[*sorted(installation), str(_DRIVER)],
        fs_writable=[scratch, "/dev/null"],
        cwd=scratch,
        extra_deny_syscalls=_DENIED,
        max_memory=memory_limit,
        max_processes=_PROCESSES,
        clean_env=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin", "HOME": scratch, "TMPDIR": scratch},
        no_coredump=True,
    )
    process = box.popen(
        [sys.executable, "-I", str(_DRIVER)],
        stdin=StdioMode.PIPED,
        stdout=StdioMode.PIPED,
        stderr=StdioMode.NULL,
    )

    def finish() -> None:
        process.wait(timeout=0.001)  # kills what is left
        process.stdout.close()

    return process.stdin, process.stdout, finish


def _start_unconfined(scratch: str, memory_limit: int) -> tuple[Any, Any, Callable[[], None]]:
    process = subprocess.Popen(
        [sys.executable, "-I", str(_DRIVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=scratch,
        bufsize=0,
        start_new_session=True,
    )

    def finish() -> None:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    return process.stdin, process.stdout, finish


def _talk(stdin: Any, stdout: Any, request: bytes, deadline: float, scratch: str) -> tuple[bytes, bool]:
    """Send the request and read the verdict's line, and whether the time ran out meanwhile."""
    rest, line = memoryview(request), b""
    os.set_blocking(stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE, "write")
        selector.register(stdout, selectors.EVENT_READ, "read")
        while b"\n" not in line and len(line) < _VERDICT_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                return line, True
            events = selector.select(min(left, _TICK))
            if not events and _size(scratch) > _DISK:
                return b"", False
            for key, _ in events:
                if key.data == "write":
                    try:
                        rest = rest[os.write(stdin.fileno(), rest[:65536]) :]
                    except BrokenPipeError:
                        rest = rest[:0]
                    if not rest:
                        selector.unregister(stdin)
                        stdin.close()
                elif received := os.read(stdout.fileno(), _VERDICT_BYTES):
                    line += received
                else:
                    return line, False
    return line, False


def _size(folder: str) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                pass  # the program has removed it
    return total
