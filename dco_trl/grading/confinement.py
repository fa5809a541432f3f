"""What a worker of `math` may not do: write, read the user's files, start programs, use the network.

Two fences. Python's audit hooks refuse on every platform; they see what Python code does, and text that makes a
library evaluate Python is the danger. Landlock is the Linux kernel's own fence, which nothing in the process can lift;
it is there from Linux 5.13 on, and its rules for the network from 6.7 on. https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
import resource
import struct
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Events of Python's audit system by which code leaves the process, or gets behind the interpreter.
_FORBIDDEN = (
    *("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "urllib.", "webbrowser.", "resource."),
    *("sqlite3.", "code.__new__", "mmap.", "fcntl.", "tempfile.", "syslog."),
)
_LISTING = ("os.listdir", "os.scandir")
_HARMLESS = ("os.putenv", "os.unsetenv")  # the environment of programs that it may not start

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# By version of Landlock: how many rights over files, rights over the network, and scopes (signals, sockets) it has.
_RIGHTS = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}
_PR_SET_NO_NEW_PRIVS = 38


def confine() -> bool:
    """Confine this process, for good. Call it when everything is imported.

    Returns:
        Whether the kernel's fence is up; the other always is.
    """
    folders = readable_folders()
    # What is not in these folders is not there, rather than forbidden: an import of it fails as usual.
    sys.path[:] = [path for path in sys.path if _within(path, folders)]
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    except (ValueError, OSError):
        pass
    landlocked = _landlock(folders)
    sys.addaudithook(lambda event, args: audit(event, args, folders))
    return landlocked


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
    """Refuse what a worker has no business to do."""
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


def _landlock(folders: list[str]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = [(1 << bits) - 1 for bits in _RIGHTS[min(version, max(_RIGHTS))]]
    # An older kernel refuses fields that it does not know, unless they are zero.
    attributes = struct.pack("=QQQ", *rights)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    for folder in folders:
        handle = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", _READ_FILE | _READ_DIR, handle), 0)
        os.close(handle)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    confined = libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return confined
