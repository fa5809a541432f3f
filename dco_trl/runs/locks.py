"""Folders that one process has to itself, or that the shards of one division share.

Every lock is a POSIX record lock (fcntl) on a file of its own, which the operating system drops when the process ends,
however it ends. File systems that several machines share have to carry these locks from machine to machine: NFS 4 and
GPFS do, NFS 3 with its lock daemon, Lustre when mounted with `flock`. Mounted so that locks stay on each machine (NFS
with `nolock` or `local_lock=posix`, Lustre with `localflock`), a shard that is started on two machines is not noticed.
"""

import errno
import fcntl
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import StoreError, look_anew
from .shards import WHOLE, Shard

_LOCK_NAME = re.compile(r"\.lock(?:-(\d+)of(\d+))?")
# Held for as long as it takes to read and write a manifest.
_START_NAME = ".lock-start"
_PATIENCE = 300.0

# Two stores of one process cannot tell each other apart by a lock that belongs to the process.
_held_here: dict[Path, int | None] = {}
_held_here_lock = threading.Lock()


class _InUseError(Exception):
    """Somebody holds a lock; the text says who."""


@contextmanager
def locked(folder: Path, shard: Shard = WHOLE) -> Iterator[None]:
    """Hold a folder, or one shard of it. Shards of another number cannot be at work in it at the same time.

    Args:
        folder: The folder; it gets files `.lock…`.
        shard: Which shard; unless given, the whole folder.

    Raises:
        StoreError: Another process, named in the message, holds this shard, the folder, or a shard of another number.
    """
    path = folder.resolve() / (".lock" if shard == WHOLE else f".lock-{shard.index}of{shard.count}")
    with alone_for_a_moment(folder):
        _refuse_other_divisions(folder, shard)
        try:
            _take(folder, path)
        except _InUseError as error:
            what = f"{folder} is" if shard == WHOLE else f"shard {shard} of {folder} is"
            raise StoreError(f"{what} in use by {error}") from error
    try:
        yield
    finally:
        _release(path)


@contextmanager
def alone_for_a_moment(folder: Path) -> Iterator[None]:
    """Wait until no other process starts in a folder, and have its manifest to oneself: shards start one by one.

    Raises:
        StoreError: Another process stays there for minutes.
    """
    path = folder.resolve() / _START_NAME
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            _take(folder, path)
            break
        except _InUseError as error:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{folder} could not be entered for {_PATIENCE:.0f} s: {path.name} is held by {error}"
                ) from error
            time.sleep(random.uniform(0.02, 0.2))
    try:
        look_anew(folder)
        yield
    finally:
        _release(path)


def require_lock(folder: Path) -> None:
    """Refuse to write into a folder that this process does not hold."""
    folder = folder.resolve()
    if not any(path.parent == folder and path.name != _START_NAME for path in _held_here):
        raise StoreError(
            f"{folder} is open for reading only; write inside `with RunStore.writing(…)` or `.grading(…)`"
        )


def is_lock(name: str) -> bool:
    """Whether a file is one of those that locks are held on."""
    return name == _START_NAME or _LOCK_NAME.fullmatch(name) is not None


def _refuse_other_divisions(folder: Path, shard: Shard) -> None:
    """Shards of another number, or a process that has the whole folder, could do the same work."""
    for path in sorted(folder.resolve().glob(".lock*")):
        match = _LOCK_NAME.fullmatch(path.name)
        if match is None or int(match[2] or 1) == shard.count:
            continue
        try:
            _take(folder, path)
        except _InUseError as error:
            what = "as a whole" if match[1] is None else f"as shard {match[1]}/{match[2]}"
            asked = "as a whole" if shard == WHOLE else f"in {shard.count} shards"
            raise StoreError(
                f"{folder} is at work {what}, and cannot be worked on {asked} meanwhile: in use by {error}"
            ) from error
        _release(path)


def _take(folder: Path, path: Path) -> None:
    with _held_here_lock:
        if path in _held_here:
            # Opening the file once more and closing it would drop this process's own lock.
            raise _InUseError(f"this process (pid {os.getpid()}) already: leave the other `with` first")
        _held_here[path] = None
    try:
        _held_here[path] = _open_and_lock(folder, path)
    except BaseException:
        del _held_here[path]
        raise


def _release(path: Path) -> None:
    handle = _held_here[path]
    assert handle is not None
    os.close(handle)
    del _held_here[path]


def _open_and_lock(folder: Path, path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be opened for writing: {error.strerror}. Check the folder's permissions, or name another."
        ) from error
    try:
        # A record lock, not flock(): children that outlive a killed parent, such as engine workers, do not keep it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        holder = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise StoreError(
                f"{folder} cannot be locked on this file system: {error}. Name a folder on another one."
            ) from error
        raise _InUseError(f"another process ({holder}). Wait until it has ended, or name another folder.") from error
    return handle
