"""Run an untrusted Python program: confined by the kernel, without Docker, root or a container image.

Landlock leaves the program a scratch folder and the Python installation to read; a filter of system calls leaves it no
network, no signal to another process and no memory that is not counted. Memory, processes, disk and time are limited.
A fresh process runs each program, so that nothing passes from one to the next.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from .landlock import landlock_version
from .pool import Pipes
from .seccomp import unsupported
from .verdict import GraderError

Status = Literal["passed", "failed", "timeout", "killed"]

# The watcher imports from this process's path too, after its own. Programs get the path that Python starts with.
_START = (
    "import sys; path = list(sys.path); sys.path += sys.argv[1:]; "
    "from dco_trl.grading.code_watcher import main; main(path)"
)
# The watcher ends a program at its time limit. Silent for this many seconds longer, it is itself taken for dead.
_PATIENCE = 60.0
_CHILDREN = "/proc/thread-self/children"


@dataclass(frozen=True)
class Program:
    """A program and what judges it: tests, cases of a script, or calls of a function."""

    program: str
    setup: str = ""  # source that runs before it
    tests: str = ""  # source that runs after it
    # Pairs of standard input and expected output: the program is then a script, and runs once for each.
    cases: tuple[tuple[str, str], ...] = ()
    # JSON: a list of pairs, a function's arguments and its expected result; and its name in the module or `Solution`.
    calls: str = ""
    function: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Args:
        status: "passed": its tests ran to their end. "failed": a test failed, or the program raised or ended early.
            "timeout": it was stopped at the time limit. "killed": it died, most often of the memory or disk limit.
        detail: The exception of a failed program, shortened, or what killed it.
    """

    status: Status
    detail: str = ""


class Watcher:
    """A process that runs programs, one at a time, and ends with this one. Limits as in `run_program`."""

    def __init__(self, timeout: float = 10.0, memory_limit: int = 1 << 30, unsafe: bool = False):
        self._limits = {"timeout": min(timeout, 1e6), "memory_limit": memory_limit, "unsafe": unsafe}
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and the program that it runs."""
        if self._process is not None:
            self._pipes.close()
            self._process.wait()
            self._process = None

    def run(self, program: Program) -> Outcome:
        """Run a program to its end. One that cannot be confined is not run."""
        status, detail = self._ask(program)
        if status == "refused":
            raise GraderError(f"grader 'code' runs the model's programs, and this one could not be confined: {detail}")
        return Outcome(status, detail)

    def refusal(self) -> str | None:
        """Why programs cannot be confined here; None if they can."""
        status, detail = self._ask(Program(""))
        reasons = {"passed": None, "refused": f"the kernel does not confine them: {detail}"}
        return reasons.get(status, f"a trial was {status}: {detail}")

    def _ask(self, program: Program) -> list:
        request = json.dumps(asdict(program) | self._limits).encode("utf-8", "surrogatepass") + b"\n"
        if self._process is None:
            self._start()
        self._pipes.write(request)
        line = self._line(self._limits["timeout"])
        return ["killed", "with the process that watches it"] if line is None else json.loads(line)

    def _start(self) -> None:
        environment = {
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),
            "PATH": "/usr/bin:/bin",
            "TMPDIR": tempfile.gettempdir(),
            # Some interpreters find their own library by it.
            **{name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},
        }
        package = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", "-c", _START, package, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process, which ends it
        )
        self._pipes = Pipes(self._process)
        if self._line(0.0) is None:
            raise GraderError(
                "grader 'code': the process that watches programs did not start. What it printed is above; try "
                f"`{sys.executable} -I -c 'import json'`"
            )

    def _line(self, seconds: float) -> bytes | None:
        """The process's next line; None if it is dead, or is killed because it was silent."""
        assert self._process
        try:
            return self._pipes.line(time.monotonic() + seconds + _PATIENCE)
        except (EOFError, TimeoutError):
            self._process.kill()
            self.close()
            return None


def run_program(
    program: str,
    cases: Sequence[tuple[str, str]] = (),
    *,
    tests: str = "",
    timeout: float = 10.0,
    memory_limit: int = 1 << 30,
    unsafe: bool = False,
) -> Outcome:
    r"""Run a program and its tests, or, as a script, once for each case of standard input and expected output.

    Args:
        program: Python source.
        cases: Pairs of input and expected output; empty: the program passes if it and its tests end without an
            exception.
        tests: Python source that runs after the program, with its names.
        timeout: Seconds of wall-clock time, for all cases together.
        memory_limit: Bytes of address space per process, and of memory of the program and its children together.
        unsafe: Run unconfined, with your rights and only the time limit: for machines that hold nothing of value.

    Raises:
        GraderError: This platform cannot confine programs, and `unsafe` is False.

    Examples:
        ```python
        >>> from dco_trl.grading.code_sandbox import run_program
        >>> run_program("x = 1 + 1", tests="assert x == 2").status
        'passed'
        >>> run_program("open('/etc/passwd')")
        Outcome(status='failed', detail="PermissionError: [Errno 13] Permission denied: '/etc/passwd'")

        ```

    Relations:
        [`code_grader`][dco_trl.grading.code_grader] builds the programs from completions and tests.
    """
    check_confinement(unsafe)
    with Watcher(timeout, memory_limit, unsafe) as watcher:
        return watcher.run(Program(program, tests=tests, cases=tuple(cases)))


def check_confinement(unsafe: bool = False) -> None:
    """Raise a `GraderError` if programs must be confined and cannot be."""
    if not unsafe and (reason := unconfinable()):
        raise GraderError(
            f"grader 'code' runs the model's programs, and {reason}. Grade on a machine with Linux 5.13 or newer, or "
            "in a container or virtual machine of its own with `code_grader(…, unsafe=True)`"
        )


@cache
def unconfinable() -> str | None:
    """Why this platform cannot confine programs; None if a trial shows that it can."""
    if sys.platform != "linux":
        return f"only Linux confines them, and this is {sys.platform}"
    if landlock_version() < 1:
        return "this kernel offers no Landlock, which Linux 5.13 brought and `lsm=landlock` at boot switches on"
    if reason := unsupported():
        return reason
    if not os.path.exists(_CHILDREN):
        return f"this kernel does not say which processes descend from which: it has no {_CHILDREN}"
    with Watcher() as watcher:
        return watcher.refusal()
