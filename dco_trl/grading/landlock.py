"""Landlock, the Linux kernel's own fence around files, from 5.13 on. Nothing in the process can lift it.

It guards reading, writing, making and removing files, but not names, sizes, modes, owners and times.
https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_READ = _READ_FILE | _READ_DIR
# Bits 4 to 14: remove and make files of every kind, link across folders, truncate. Not device calls, bit 15.
_WRITE = _READ | _WRITE_FILE | 0x7FF0
_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14
# By version of Landlock: how many rights over files, rights over the network, and scopes (signals, sockets) it has.
_RIGHTS = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}


def landlock_version() -> int:
    """The version that the kernel offers; 0 if there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def restrict_files(readable: Iterable[str], writable: Iterable[str] = (), execute: bool = False) -> None:
    """Refuse this thread, for good, every file but these and what is below them, and what else this kernel can refuse.

    `writable` paths may be read, written, made and removed; with `execute`, `readable` ones may be run. Raises an
    `OSError` if the kernel does not do it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: object) -> int:
        if (result := libc.syscall(*arguments)) < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"landlock: {os.strerror(error)}")
        return result

    # An older kernel refuses fields that it does not know, unless they are zero.
    rights = [(1 << bits) - 1 for bits in _RIGHTS[min(landlock_version(), max(_RIGHTS))]]
    attributes = struct.pack("=QQQ", *rights)
    ruleset = call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, wanted in ((readable, _READ | execute * _EXECUTE), (writable, _WRITE)):
        for path in paths:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = wanted & rights[0] & (~0 if os.path.isdir(path) else _FILE)
            call(_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, handle), 0)
            os.close(handle)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
