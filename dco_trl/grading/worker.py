"""A grading worker: reads pairs, writes verdicts, one line of JSON each, and may be killed at any moment.

Started by `pool.py` as a process of its own, not by `multiprocessing`: nothing of the parent (its main module, torch,
CUDA) is imported here, and nothing is pickled.
"""

import json
import logging
import os
import resource
import signal
import sys

# Events of Python's audit system by which code leaves the process. math-verify needs none of them; text that makes it
# raise one is answered by an exception.
_FORBIDDEN = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "urllib.", "webbrowser.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")  # the import system lists folders


def main(timeout: float, memory_limit: int) -> None:
    """Serve until standard input ends.

    Args:
        timeout: seconds a verdict may take. The parent enforces it; the alarm here, a little later, is for when the
            parent has died.
        memory_limit: bytes of address space.
    """
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    limited = _limit(resource.RLIMIT_AS, memory_limit)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    sys.dont_write_bytecode = True
    logging.disable(logging.CRITICAL)

    from . import speedup
    from .judge import judge

    speedup.install()
    judge("1", "\\frac{1}{2}")  # loads what is loaded on first use
    os.dup2(null, 2)  # a pipe that nobody reads while all is well
    sys.addaudithook(_audit)
    _write(out, {"ready": True, "memory_limited": limited})

    for line in sys.stdin.buffer:
        for reference, answer in json.loads(line):
            # The default action of the signal ends the process even inside a long C call.
            signal.setitimer(signal.ITIMER_REAL, timeout + 5)
            try:
                verdict = judge(reference, answer)
            except Exception:  # MemoryError and RecursionError too: this pair's, not the worker's
                verdict = (None, "error", None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _write(out, verdict)


def _write(out, value) -> None:
    data = memoryview(json.dumps(value).encode() + b"\n")
    while data:
        data = data[out.write(data) :]


def _limit(what: int, value: int) -> bool:
    try:
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2)
    except (ValueError, OSError):  # macOS does not limit address space
        return False
    return True


def _audit(event: str, args: tuple) -> None:
    if event == "open":
        flags = args[2]
        if not isinstance(flags, int) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError("a grading worker opens no file for writing")
    elif event.startswith(_FORBIDDEN) and event not in _HARMLESS:
        raise PermissionError(f"a grading worker does not call {event}")
