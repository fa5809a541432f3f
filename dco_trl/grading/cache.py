"""The verdict cache: one SQLite file that several processes may use at a time."""

import hashlib
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from .math_verdict import identity
from .verdict import LIMITED, STATUSES, Verdict

_COLUMNS = ["key", "score", "status", "answer", "timeout", "memory_limit"]
_SCHEMA = """CREATE TABLE IF NOT EXISTS verdicts
(key BLOB PRIMARY KEY, score REAL, status TEXT NOT NULL, answer BLOB, timeout REAL, memory_limit INTEGER)
WITHOUT ROWID"""
_ROWS_PER_COMMIT = 1_000
_SECONDS_PER_COMMIT = 5.0


class VerdictCache:
    """Verdicts of `math` by library versions, reference and answer. Any thread may use it.

    A verdict that hit a limit ("timeout", "error") is stored with its limits, and is computed again only under larger
    ones. A damaged file is set aside and a new one begun. If the file cannot be used (it is locked, or there is no
    space or no permission), grading goes on without it. Both cases warn.
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

    def get(self, pair: tuple[str, str]) -> Verdict | None:
        """The stored verdict on (reference, answer), or None."""
        found: list[Verdict] = []

        def select() -> None:
            if self._connection is not None:
                query = "SELECT * FROM verdicts WHERE key = ?"
                for _, score, status, answer, *limits in self._connection.execute(query, [self._key(pair)]):
                    verdict = _checked(score, status, answer)
                    if status not in LIMITED or all(old >= new for old, new in zip(limits, self.limits, strict=True)):
                        found.append(verdict)

        with self._lock:
            self._guard(select)
        return found[0] if found else None

    def put(self, pair: tuple[str, str], verdict: Verdict) -> None:
        """Store a verdict. It is written together with others, at the latest by `flush`."""
        answer = verdict.answer.encode("utf-8", "surrogatepass")
        with self._lock:
            self._unsaved.append((self._key(pair), verdict.score, verdict.status, answer, *self.limits))
            if len(self._unsaved) >= _ROWS_PER_COMMIT or time.monotonic() - self._saved_at > _SECONDS_PER_COMMIT:
                self.flush()

    def flush(self) -> None:
        """Write what was stored."""

        def insert() -> None:
            if self._connection is not None and self._unsaved:
                with self._connection:
                    marks = ", ".join("?" * len(_COLUMNS))
                    self._connection.executemany(f"INSERT OR REPLACE INTO verdicts VALUES ({marks})", self._unsaved)

        with self._lock:
            self._guard(insert)
            self._unsaved.clear()
            self._saved_at = time.monotonic()

    def close(self) -> None:
        """Write what was stored and close the file."""
        with self._lock:
            self.flush()
            self._disconnect()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, timeout=30.0, check_same_thread=False)
        self._connection.execute(_SCHEMA)
        self._connection.commit()
        if [row[1] for row in self._connection.execute("PRAGMA table_info(verdicts)")] != _COLUMNS:
            raise sqlite3.DatabaseError("its table has other columns")

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, sqlite3.OperationalError) as error:  # locked, full, read-only: the file may be sound
            self._do_without(error)
        except sqlite3.DatabaseError as error:  # not a database, or damaged
            self._disconnect()
            aside = self.path.with_name(f"{self.path.name}.damaged-{os.getpid()}-{time.time_ns()}")
            warnings.warn(
                f"cache_dir: the verdict cache {self.path} is damaged ({error}). It has been moved to {aside.name} "
                "and a new one begun: verdicts are computed again. Delete the old file when you like.",
                stacklevel=4,
            )
            try:
                self.path.rename(aside)
                self._open()
            except (OSError, sqlite3.Error) as second:
                self._do_without(second)

    def _do_without(self, error: Exception) -> None:
        self._disconnect()
        warnings.warn(
            f"cache_dir: the verdict cache {self.path} cannot be used ({error}); going on without it", stacklevel=4
        )

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _key(self, pair: tuple[str, str]) -> bytes:
        text = f"{len(pair[0])}:{pair[0]}{pair[1]}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(self._prefix + text, digest_size=16).digest()


def _checked(score: object, status: object, answer: object) -> Verdict:
    """A row of the file. What this class never writes is damage."""
    scores = (None,) if status in LIMITED else (0.0, 1.0, None)
    if status not in STATUSES or score not in scores or not isinstance(answer, bytes):
        raise sqlite3.DatabaseError(f"it holds the verdict {score!r} with status {status!r}")
    try:
        return Verdict(score, answer.decode("utf-8", "surrogatepass"), status)  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"it holds an answer that is no text ({error})") from error
