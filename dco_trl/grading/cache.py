"""Verdicts remembered on disk, in one SQLite file that several processes may use at a time."""

import hashlib
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .math_verdict import identity
from .verdict import LIMITED, STATUSES, Verdict

_SCHEMA = """CREATE TABLE IF NOT EXISTS verdicts
(key BLOB PRIMARY KEY, score REAL, status TEXT NOT NULL, answer BLOB, timeout REAL, memory_limit INTEGER)
WITHOUT ROWID"""
_KEYS_PER_QUERY = 500
_ROWS_PER_COMMIT = 1_000
_SECONDS_PER_COMMIT = 5.0


class VerdictCache:
    """Verdicts by grader, library versions, reference and answer.

    A verdict that a limit prevented ("timeout", "error") is remembered with the limits, and tried again under larger
    ones only. A damaged file is set aside and a new one is begun; without one that cannot be used (locked, no space,
    no permission) grading goes on; both with a warning. Any thread may use it.
    """

    def __init__(self, folder: str | os.PathLike, timeout: float, memory_limit: int):
        self.path = Path(folder) / "verdicts.sqlite"
        self.limits = (timeout, memory_limit)
        self._prefix = identity().encode() + b"\0"
        self._unsaved: list[tuple] = []
        self._saved_at = time.monotonic()
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._guard(self._open)

    def get(self, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[int, Verdict]]:
        """Yield (index into `pairs`, verdict) for the pairs that are known."""
        keys: list[bytes] = []
        start = 0
        for pair in pairs:
            keys.append(self._key(*pair))
            if len(keys) == _KEYS_PER_QUERY:
                yield from self._look_up(start, keys)
                start += len(keys)
                keys = []
        yield from self._look_up(start, keys)

    def put(self, pair: tuple[str, str], verdict: Verdict) -> None:
        """Remember one verdict; written with others, at the latest by `flush`."""
        answer = verdict.answer.encode("utf-8", "surrogatepass")
        with self._lock:
            self._unsaved.append((self._key(*pair), verdict.score, verdict.status, answer, *self.limits))
            if len(self._unsaved) >= _ROWS_PER_COMMIT or time.monotonic() - self._saved_at > _SECONDS_PER_COMMIT:
                self.flush()

    def flush(self) -> None:
        """Write what has been put."""
        with self._lock:
            self._guard(self._write)
            self._unsaved.clear()
            self._saved_at = time.monotonic()

    def close(self) -> None:
        """Write what has been put and close the file."""
        with self._lock:
            self.flush()
            self._disconnect()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=30.0, check_same_thread=False)
        try:
            connection.execute(_SCHEMA)
            # Asks for every column: a file of another layout fails here, not in the middle of the work.
            connection.execute(
                "SELECT key, score, status, answer, timeout, memory_limit FROM verdicts LIMIT 1"
            ).fetchall()
            connection.commit()
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection

    def _write(self) -> None:
        if self._connection is None or not self._unsaved:
            return
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", self._unsaved)

    def _look_up(self, start: int, keys: list[bytes]) -> list[tuple[int, Verdict]]:
        where = {key: start + i for i, key in enumerate(keys)}
        found: list[tuple[int, Verdict]] = []

        def select() -> None:
            marks = ",".join("?" * len(keys))
            query = f"SELECT key, score, status, answer, timeout, memory_limit FROM verdicts WHERE key IN ({marks})"
            for key, *row, timeout, memory_limit in self._connection.execute(query, keys) if self._connection else ():
                verdict = _verdict(*row)
                if verdict.status in LIMITED and (timeout < self.limits[0] or memory_limit < self.limits[1]):
                    continue
                found.append((where[key], verdict))

        with self._lock:
            if keys:
                self._guard(select)
        return found

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except sqlite3.OperationalError as error:  # locked, full, read-only, no such folder: the file may be sound
            if "no such column" in str(error) or "no such table" in str(error):
                self._rebuild(error)
            else:
                self._do_without(error)
        except OSError as error:
            self._do_without(error)
        except sqlite3.DatabaseError as error:  # not a database, or damaged
            self._rebuild(error)

    def _do_without(self, error: Exception) -> None:
        self._disconnect()
        warnings.warn(
            f"cache_dir: the verdict cache {self.path} cannot be used ({error}); going on without it", stacklevel=4
        )

    def _rebuild(self, error: Exception) -> None:
        self._disconnect()
        aside = self.path.with_name(f"{self.path.name}.damaged-{os.getpid()}-{time.time_ns()}")
        warnings.warn(
            f"cache_dir: the verdict cache {self.path} is damaged ({error}). It has been moved to {aside.name} and a "
            "new one begun: verdicts are computed again. Delete the old file when you like.",
            stacklevel=4,
        )
        try:
            self.path.rename(aside)
            self._open()
        except (OSError, sqlite3.Error) as second:
            self._do_without(second)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _key(self, reference: str, answer: str) -> bytes:
        pair = f"{len(reference)}:{reference}{answer}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(self._prefix + pair, digest_size=16).digest()


def _verdict(score: object, status: object, answer: object) -> Verdict:
    """A row of the file, read with suspicion: what this class never writes is damage."""
    scores = (None,) if status in LIMITED else (0.0, 1.0, None)
    if status not in STATUSES or score not in scores or not isinstance(answer, bytes):
        raise sqlite3.DatabaseError(f"it holds the verdict {score!r} with status {status!r}")
    try:
        return Verdict(score, answer.decode("utf-8", "surrogatepass"), status)  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"it holds an answer that is no text ({error})") from error
