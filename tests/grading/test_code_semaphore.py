"""The semaphore of confined programs behaves as `multiprocessing`'s own, without a file."""

import threading
from _multiprocessing import SemLock as Host

import pytest

from dco_trl.grading.code_semaphore import SemLock

RECURSIVE, SEMAPHORE = 0, 1


def host(kind, value, maxvalue, name, unlink):
    return Host(kind, value, maxvalue, f"/dco-trl-test-{threading.get_ident()}", True)


@pytest.mark.parametrize("make", [SemLock, host])
def test_what_may_not_be_released(make):
    with pytest.raises(AssertionError, match="attempt to release recursive lock not owned by thread"):
        make(RECURSIVE, 1, 1, "", True).release()
    with pytest.raises(ValueError, match="semaphore or lock released too many times"):
        make(SEMAPHORE, 1, 1, "", True).release()


@pytest.mark.parametrize("make", [SemLock, host])
def test_counts(make):
    semaphore = make(SEMAPHORE, 2, 2, "", True)
    taken = [semaphore.acquire(False) for _ in range(3)]
    assert (taken, semaphore._get_value(), semaphore._is_zero()) == ([True, True, False], 0, True)
    assert not semaphore.acquire(True, 0.01)
    semaphore.release()
    assert semaphore._get_value() == 1
    lock = make(RECURSIVE, 1, 1, "", True)
    with lock, lock:
        assert lock._is_mine() and lock._count() == 2
    assert not lock._is_mine() and lock._get_value() == 1
