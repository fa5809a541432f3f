"""A grading worker: reads items, writes one line of JSON per verdict, and may be killed at any moment.

`pool.py` starts it as a process of its own, not by `multiprocessing`: nothing of the parent (its main module, torch,
CUDA) is imported here. Items come pickled; verdicts go back as JSON, because the parent must not trust them.
"""

import json
import logging
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from io import FileIO
from itertools import count
from typing import Any

from .verdict import GraderError, Verdict


def main(timeout: float, memory_limit: int, grader: str | None) -> None:
    """Serve until standard input ends: the user's function at this import path, or for None `judge`, confined.

    The parent enforces `timeout`. `memory_limit` comes on top of what importing the user's function took.
    """
    source, out = os.fdopen(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    _limit(resource.RLIMIT_CORE, 0)
    if grader is None:
        os.dup2(null, 1)
        evaluate, limited = _confined_judge(timeout, memory_limit)
        os.dup2(null, 2)  # a pipe that nobody reads while all is well
    else:
        os.dup2(2, 1)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        try:
            evaluate = _user_function(grader)
        except GraderError as error:
            return _write(out, {"error": f"{error} (in a worker process)"})
        limited = _limit(resource.RLIMIT_AS, _address_space() + memory_limit)
    _write(out, {"ready": True, "memory_limited": limited})
    for number in count():
        try:
            item = pickle.load(source)
        except EOFError:
            return
        verdict = Verdict(None, "", "error")
        try:
            verdict = evaluate(*item)
        except GraderError as error:  # the user's function's fault
            if not isinstance(error.__cause__, MemoryError):
                return _write(out, {"error": str(error)})
        except Exception:  # MemoryError and RecursionError too: this item's, not the worker's
            pass
        _write(out, {"number": number, "verdict": [verdict.score, verdict.answer, verdict.status]})


def _confined_judge(timeout: float, memory_limit: int) -> tuple[Callable[..., Verdict], bool]:
    limited = _limit(resource.RLIMIT_AS, memory_limit)
    _limit(resource.RLIMIT_FSIZE, 0)
    sys.dont_write_bytecode = True
    logging.disable(logging.CRITICAL)

    from . import confinement, math_verify_patches
    from .math_verdict import judge

    math_verify_patches.install()
    judge("1", "\\frac{1}{2}")  # loads what is loaded on first use
    confinement.confine()

    def evaluate(reference: str, answer: str) -> Verdict:
        # In case the parent has died. The signal's default action ends the process even inside a long C call.
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)
        try:
            return judge(reference, answer)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return evaluate, limited


def _user_function(grader: str) -> Callable[..., Verdict]:
    from .graders import load_grader
    from .reward_function import call_grader

    function = load_grader(grader)

    def evaluate(prompts: list | None, completions: list, answers: list, columns: dict[str, list]) -> Verdict:
        score = call_grader(function, prompts, completions, answers, columns, name=grader)[0]
        return Verdict(score, "", "unparsed" if score is None else "graded")

    return evaluate


def _end_with_parent(parent: int) -> None:
    # Not an alarm: the function may set its own, as math-verify does.
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _write(out: FileIO, value: Any) -> None:
    # On a line of its own, whatever the user's function may have written to this descriptor.
    data = memoryview(b"\n" + json.dumps(value).encode() + b"\n")
    while data:
        data = data[out.write(data) :]


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _limit(what: int, value: int) -> bool:
    try:
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2)
    except (ValueError, OSError):  # macOS does not limit address space
        return False
    return True
