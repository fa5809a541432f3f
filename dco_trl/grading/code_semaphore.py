"""A semaphore for `multiprocessing` that needs no file in /dev/shm, where programs may not write."""

import ctypes
import mmap
import threading
import time
from errno import EINTR
from typing import Any


class SemLock:
    """`_multiprocessing.SemLock` in memory that a fork shares, with POSIX's unnamed semaphore."""

    SEM_VALUE_MAX = 0x7FFFFFFF

    def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool):
        self.kind, self.maxvalue, self.name = kind, maxvalue, name
        self._c = ctypes.CDLL(None, use_errno=True)
        self._shared = ctypes.c_char.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        self.handle = ctypes.addressof(self._shared)
        self._semaphore = ctypes.c_void_p(self.handle)
        self._c.sem_init(self._semaphore, 1, value)
        self._held, self._holder = 0, 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        if self.kind == 0 and self._is_mine():  # a recursive lock
            self._held += 1
            return True
        wait, arguments = self._c.sem_wait, [self._semaphore]
        if not block:
            wait = self._c.sem_trywait
        elif timeout is not None:
            until = time.time_ns() + max(0, int(timeout * 1e9))
            wait = self._c.sem_timedwait
            arguments.append((ctypes.c_long * 2)(*divmod(until, 10**9)))  # type: ignore[arg-type]
        while wait(*arguments):
            if ctypes.get_errno() != EINTR:
                return False
        self._held, self._holder = self._held + 1, threading.get_ident()
        return True

    def release(self) -> None:
        if self.kind == 0:
            if not self._is_mine():
                raise AssertionError("attempt to release recursive lock not owned by thread")
            if self._held > 1:
                self._held -= 1
                return
        elif self._get_value() >= self.maxvalue:
            raise ValueError("semaphore or lock released too many times")
        self._held -= 1
        self._c.sem_post(self._semaphore)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: Any) -> None:
        self.release()

    def _count(self) -> int:
        return self._held

    def _is_mine(self) -> bool:
        return self._held > 0 and self._holder == threading.get_ident()

    def _get_value(self) -> int:
        value = ctypes.c_int()
        self._c.sem_getvalue(self._semaphore, ctypes.byref(value))
        return value.value

    def _is_zero(self) -> bool:
        return self._get_value() == 0

    def _after_fork(self) -> None:
        self._held = 0
