"""Keep a worker of `math` from writing, reading the user's files, starting programs and using the network.

There are two fences. Python's audit hooks work on every platform. They see what Python code does, and the danger is
text that makes a library evaluate Python. Landlock and a filter of system calls are the Linux kernel's own fence, from
5.13 on, which nothing in the process can lift.
"""

import os
import resource
import sys
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .landlock import landlock_version, restrict_files
from .seccomp import allow_by_list, unsupported

# Events of Python's audit system by which code leaves the process, or gets behind the interpreter.
_FORBIDDEN = (
    *("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "urllib.", "webbrowser.", "resource."),
    *("sqlite3.", "code.__new__", "mmap.", "fcntl.", "tempfile.", "syslog."),
)
_LISTING = ("os.listdir", "os.scandir")
_HARMLESS = ("os.putenv", "os.unsetenv")  # the environment of programs that it may not start


def confine() -> None:
    """Confine this process, for good, once everything is imported."""
    folders = readable_folders()
    # An import from elsewhere then fails as usual: it is not found, rather than forbidden.
    sys.path[:] = [path for path in sys.path if _within(path, folders)]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    _kernel_fence(folders)
    sys.addaudithook(lambda event, args: audit(event, args, folders))


def readable_folders() -> list[str]:
    """Folders of code: the standard library, installed packages, the system's libraries, and this package."""
    found = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", str(Path(__file__).parents[1])]
    for package in ("math_verify", "latex2sympy2_extended", "antlr4", "sympy", "mpmath"):
        spec = find_spec(package)
        if spec is not None and spec.origin:
            folder = Path(spec.origin).parent
            installed = folder.parent.name in ("site-packages", "dist-packages")
            found.append(str(folder.parent if installed else folder))
    return sorted({os.path.realpath(folder) for folder in found if os.path.isdir(folder)})


def audit(event: str, args: tuple, folders: list[str]) -> None:
    """Refuse what a worker of `math` has no reason to do."""
    if event == "open":
        path, _, flags = args
        if not isinstance(flags, int) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError("a grading worker opens no file for writing")
        if not isinstance(path, int) and not _within(path, folders):
            raise PermissionError("a grading worker reads no file but its own code")
    elif event in _LISTING:
        if not _within(args[0], folders):
            raise PermissionError("a grading worker lists no folder but those of its own code")
    elif event.startswith(_FORBIDDEN) and event not in _HARMLESS:
        raise PermissionError(f"a grading worker does not call {event}")


def _within(path: Any, folders: list[str]) -> bool:
    try:
        real = os.path.realpath(os.fsdecode(path or "."))
    except (TypeError, ValueError):
        return False
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _kernel_fence(folders: list[str]) -> bool:
    if not landlock_version() or unsupported():
        return False
    try:
        restrict_files(folders)
        allow_by_list(processes=False)
    except OSError:  # an outer sandbox refuses one of the two: the other fence remains
        return False
    return True
