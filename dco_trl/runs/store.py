"""One folder a run: a manifest, the problems, and samples in Parquet chunks that appear whole or not at all.

    manifest.json                          what the samples are draws of, and with which software
    problems.parquet                       problem_id, prompt, conversational, answer, columns
    samples/part-000000.parquet …          problem_id, sample_index, text, num_tokens, finish_reason
    grades/<grader>/part-000000.parquet …  problem_id, sample_index, score, answer, status; row by row as the samples

The key of a sample is (problem_id, sample_index). A file is written under a temporary name, forced to disk and
renamed, so a process killed at any moment leaves only whole parts; what is missing is found again from the parts' key
columns.
"""

import datetime
import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..problem import Problem
from .problems import fingerprint

FORMAT = 1

SAMPLE_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample_index", pa.int32()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
    ]
)
GRADE_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample_index", pa.int32()),
        ("score", pa.float32()),
        ("answer", pa.string()),
        ("status", pa.string()),
    ]
)
PROBLEM_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt", pa.string()),  # JSON where conversational
        ("conversational", pa.bool_()),
        ("answer", pa.string()),
        ("columns", pa.string()),  # JSON
    ]
)

# Two stores of one process cannot tell each other apart by a lock that belongs to the process.
_held_here: set[Path] = set()


class StoreError(ValueError):
    """A run folder that cannot be used as asked; nothing in it has been changed."""


class RunStore:
    """A run's folder.

    Args:
        path: The folder. It must hold a run; [`RunStore.writing`][dco_trl.runs.RunStore.writing] makes one.

    Raises:
        StoreError: There is no run, or its manifest or its problems are damaged.

    Examples:
        ```python
        >>> import tempfile
        >>> from dco_trl.runs import Problem, RunStore
        >>> folder = tempfile.mkdtemp()
        >>> with RunStore.writing(folder, {"model": "m"}, [Problem("a", "1 + 1 =", "2")]) as store:
        ...     _ = store.write_samples([("a", 0, "2", 2, "stop"), ("a", 1, "3", 2, "stop")])
        >>> RunStore(folder).present()
        {'a': array([0, 1], dtype=int32)}

        ```
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        manifest = self.path / "manifest.json"
        if not manifest.exists():
            raise StoreError(f"{self.path} holds no run: it has no manifest.json. `dco-trl sample` makes one.")
        try:
            self.manifest: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
            version = self.manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{manifest} is damaged ({error}); restore it, or sample into a new folder") from error
        if version != FORMAT:
            raise StoreError(f"{self.path} has format {version}, but this version of dco-trl reads format {FORMAT}")
        self.problems = self._read_problems()

    # -- writing ---------------------------------------------------------------------------------------------------

    @classmethod
    @contextmanager
    def writing(
        cls, path: str | os.PathLike[str], manifest: Mapping[str, Any], problems: Sequence[Problem]
    ) -> Iterator["RunStore"]:
        """Make the folder, or go on with the run in it, alone: the folder is locked until the block ends.

        Args:
            path: The folder.
            manifest: What the samples are draws of. A run in the folder must have the same, key by key and down into
                nested mappings; the keys `versions`, `num_samples` and `dataset` are recorded but may differ.
            problems: The problems. A run in the folder must have the same ids, prompts and answers.

        Yields:
            The store.

        Raises:
            StoreError: Another process uses the folder; it holds something else; or a run that differs, in which case
                the message lists each key with both values.
        """
        folder = Path(path)
        if not problems:
            raise StoreError("there are no problems to sample: the data set is empty")
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder} is a file; name a folder for the run")
        _make_folder(folder)
        _refuse_other_files(folder)
        with locked(folder):
            asked = _jsonable({"format": FORMAT, **manifest, "dataset_fingerprint": fingerprint(problems)})
            asked["num_problems"] = len(problems)
            session = {"started": _now(), "versions": asked.get("versions"), "num_samples": asked.get("num_samples")}
            if (folder / "manifest.json").exists():
                store = cls(folder)
                _refuse_changes(folder, store.manifest, asked)
                asked["created"] = store.manifest.get("created")
                asked["num_samples"] = max(store.manifest.get("num_samples") or 0, asked.get("num_samples") or 0)
                asked["sessions"] = [*store.manifest.get("sessions", []), session]
            else:
                asked["created"] = session["started"]
                asked["sessions"] = [session]
                write_atomically(folder / "problems.parquet", _parquet(_problem_table(problems)))
            # The manifest comes last: a folder with a manifest is a run.
            write_atomically(folder / "manifest.json", (json.dumps(asked, indent=2) + "\n").encode())
            store = cls(folder)
            _make_folder(store.samples_dir)
            for stale in (*folder.glob(".tmp-*"), *store.samples_dir.glob(".tmp-*")):
                stale.unlink()  # a part that was never finished, of a process that has ended: the lock is ours
            yield store

    def write_samples(self, rows: Sequence[tuple[str, int, str, int, str]]) -> Path:
        """Add one part of samples; when this returns, it is on disk.

        Args:
            rows: (problem_id, sample_index, text, num_tokens, finish_reason) each.

        Returns:
            The part's file.

        Raises:
            StoreError: The disk is full or cannot be written. Earlier parts are unharmed.
        """
        columns: list[Sequence[Any]] = [list(column) for column in zip(*rows, strict=True)]
        columns[2] = [storable(text) for text in columns[2]]
        table = pa.table(dict(zip(SAMPLE_SCHEMA.names, columns, strict=True)), schema=SAMPLE_SCHEMA)
        parts = self.sample_parts()
        number = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
        path = self.samples_dir / f"part-{number:06d}.parquet"
        write_atomically(path, _parquet(table))
        return path

    @contextmanager
    def grading(self, grader: str, source: str | None) -> Iterator[None]:
        """Make or enter the folder of one grader's verdicts, alone: it is locked until the block ends.

        Args:
            grader: The grader's name.
            source: What its verdicts depend on: the versions of the libraries, or a hash of its code.

        Raises:
            StoreError: Another process grades there, or there are verdicts of another grader, or of another version.
        """
        folder = self.grades_dir(grader)
        _make_folder(folder)
        with locked(folder):
            header = folder / "grader.json"
            asked = {"grader": grader, "source": source}
            if header.exists():
                found = _read_header(header)
                changed = [key for key in asked if found[key] != asked[key]]
                if changed:
                    raise StoreError(
                        f"{folder} holds verdicts of grader {found['grader']!r} with {_source(found['source'])}, "
                        f"and {grader!r} now has {_source(source)}. Verdicts of the two must not be mixed: move "
                        "the folder away and grade anew. Nothing was changed."
                    )
            else:
                write_atomically(header, (json.dumps(asked, indent=2) + "\n").encode())
            for stale in folder.glob(".tmp-*"):
                stale.unlink()
            yield

    def write_grades(self, part: Path, table: pa.Table) -> Path:
        """Add the grades of one part of samples, whole.

        Args:
            part: The grades' file, from `grade_part`.
            table: As `GRADE_SCHEMA`, row by row the samples' part.

        Returns:
            `part`.

        Raises:
            StoreError: The disk is full or cannot be written.
        """
        write_atomically(part, _parquet(table.cast(GRADE_SCHEMA)))
        return part

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"

    def sample_parts(self) -> list[Path]:
        """The files with samples, oldest first."""
        return sorted(self.samples_dir.glob("part-*.parquet"))

    def graders(self) -> list[str]:
        """The names of the graders that have graded this run, wholly or in part."""
        return [_read_header(header)["grader"] for header in sorted(self.path.glob("grades/*/grader.json"))]

    def grades_dir(self, grader: str) -> Path:
        """The folder for one grader's verdicts."""
        return self.path / "grades" / grader_slug(grader)

    def grade_part(self, grader: str, sample_part: Path) -> Path:
        """The file for the verdicts on one part of samples."""
        return self.grades_dir(grader) / sample_part.name

    def read_part(self, part: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part, or some of its columns.

        Args:
            part: The file.
            columns: The columns; None reads all.

        Returns:
            The table.

        Raises:
            StoreError: The file is damaged; the message names it and says what to do.
        """
        remedy = "its samples are then drawn" if part.parent == self.samples_dir else "its samples are then graded"
        try:
            # Checksums, so that a flipped bit in a text is found and not read.
            return pq.read_table(part, columns=columns, page_checksum_verification=True, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"{part} is damaged and was left as it is ({error}). The other parts are not affected. Move this file "
                f"out of the folder and run the same command again: {remedy} anew."
            ) from error

    def present(self) -> dict[str, np.ndarray]:
        """Which samples there are, from the key columns alone.

        Returns:
            For each problem with samples, their indices in increasing order, int32.

        Raises:
            StoreError: A part is damaged, has a problem that is not the run's, or a sample that another part has too.
        """
        found: dict[str, list[np.ndarray]] = {problem.problem_id: [] for problem in self.problems}
        for part in self.sample_parts():
            for problem_id, rows in self.rows_by_problem(self.read_part(part, ["problem_id", "sample_index"])):
                if problem_id not in found:
                    raise StoreError(f"{part} has samples of {problem_id!r}, which is no problem of this run")
                found[problem_id].append(rows["sample_index"])
        present = {}
        for problem_id, pieces in found.items():
            if pieces:
                present[problem_id] = indices = np.sort(np.concatenate(pieces))
                twice = indices[1:][indices[1:] == indices[:-1]]
                if twice.size:
                    raise StoreError(
                        f"{self.samples_dir}: sample {twice[0]} of problem {problem_id!r} is there twice. Was a part "
                        "copied in by hand? Move the copy out of the folder."
                    )
        return present

    @staticmethod
    def rows_by_problem(table: pa.Table) -> Iterator[tuple[str, dict[str, Any]]]:
        """Split a part by problem, in the order of first appearance.

        Args:
            table: A part with the column `problem_id`.

        Yields:
            The problem's id, and its columns: numbers as arrays, the rest as lists.
        """
        encoded = table.column("problem_id").combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))
        for code, problem_id in enumerate(encoded.dictionary.to_pylist()):
            rows = table.take(order[(ends[code - 1] if code else 0) : ends[code]])
            yield (
                problem_id,
                {
                    name: rows.column(name).to_numpy()
                    if pa.types.is_integer(rows.schema.field(name).type)
                    else rows.column(name).to_pylist()
                    for name in rows.column_names
                    if name != "problem_id"
                },
            )

    def _read_problems(self) -> list[Problem]:
        path = self.path / "problems.parquet"
        if not path.exists():
            raise StoreError(f"{path} is missing; restore it, or sample into a new folder")
        try:
            problems = [_problem(row) for row in pq.read_table(path, page_checksum_verification=True).to_pylist()]
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise StoreError(f"{path} is damaged ({error}); restore it, or sample into a new folder") from error
        if fingerprint(problems) != self.manifest.get("dataset_fingerprint"):
            raise StoreError(
                f"{path} does not have the fingerprint in manifest.json: it was changed after sampling. Restore it, "
                "or sample into a new folder."
            )
        return problems


def plan(
    present: Mapping[str, np.ndarray], problem_ids: Sequence[str], num_samples: int
) -> Iterator[tuple[int, int, int]]:
    """List what is still to be drawn, problem by problem.

    Args:
        present: The sample indices there are, by problem.
        problem_ids: All problems, in order.
        num_samples: Samples wanted a problem.

    Yields:
        (position of the problem, first index, number of samples) for each gap.

    Examples:
        ```python
        >>> import numpy as np
        >>> from dco_trl.runs.store import plan
        >>> list(plan({"a": np.array([0, 1, 3])}, ["a", "b"], 5))
        [(0, 2, 1), (0, 4, 1), (1, 0, 5)]

        ```
    """
    nothing = np.empty(0, np.int32)
    for position, problem_id in enumerate(problem_ids):
        missing = np.setdiff1d(np.arange(num_samples), present.get(problem_id, nothing), assume_unique=True)
        if missing.size:
            for gap in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
                yield position, int(gap[0]), len(gap)


def grader_slug(grader: str) -> str:
    """A grader's name as a folder's name: `package.module:function` becomes `package.module-function`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", grader).strip(".-") or "grader"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder alone. The operating system drops the lock when the process ends, however it ends.

    Args:
        folder: The folder; it gets a file `.lock`.

    Raises:
        StoreError: Another process, named in the message, holds it.
    """
    path = folder.resolve() / ".lock"
    if path in _held_here:
        # Opening the file once more and closing it would drop this process's own lock.
        raise StoreError(f"{folder} is in use by this process (pid {os.getpid()}) already")
    handle = _open_lock(path)
    try:
        # A record lock, not flock(): children that outlive a killed parent, such as engine workers, do not keep it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise StoreError(f"{folder} cannot be locked on this file system: {error}") from error
        raise StoreError(
            f"{folder} is in use by another process ({holder}). Wait until it has ended, or name another folder."
        ) from error
    _held_here.add(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        _held_here.discard(path)
        os.close(handle)


def write_atomically(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file so that it is there whole, and on disk, or not at all.

    Args:
        path: The file. An existing one is replaced.
        data: Its content.

    Raises:
        StoreError: It cannot be written, for instance because the disk is full; nothing else has changed.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut may forget the rename
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StoreError(
            f"{path} could not be written ({error.strerror}). What was written before is unharmed. "
            + ("Free some space and run" if full else "Check the folder's permissions, then run")
            + " the same command again: it goes on from there."
        ) from error


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened for writing: {error.strerror}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}") from error


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _problem_table(problems: Sequence[Problem]) -> pa.Table:
    rows = [
        {
            "problem_id": problem.problem_id,
            "prompt": problem.prompt if isinstance(problem.prompt, str) else json.dumps(problem.prompt),
            "conversational": not isinstance(problem.prompt, str),
            "answer": problem.answer,
            "columns": json.dumps(problem.columns, default=str),
        }
        for problem in problems
    ]
    return pa.Table.from_pylist(rows, schema=PROBLEM_SCHEMA)


def _problem(row: Mapping[str, Any]) -> Problem:
    prompt = json.loads(row["prompt"]) if row["conversational"] else row["prompt"]
    return Problem(row["problem_id"], prompt, row["answer"], json.loads(row["columns"]))


def _refuse_other_files(folder: Path) -> None:
    if (folder / "manifest.json").exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in (".lock", "problems.parquet"))
    foreign = [name for name in foreign if not name.startswith(".tmp-")]
    if foreign:
        raise StoreError(
            f"{folder} holds other files ({', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}) and no run. "
            "Name a new or an empty folder."
        )


def _refuse_changes(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    free = {"versions", "num_samples", "dataset", "created", "sessions"}
    before, after = _flat(old, free), _flat(new, free)
    changes = [
        f"  {key}: the run has {before.get(key, '(nothing)')!r}, now {after.get(key, '(nothing)')!r}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]
    if changes:
        raise StoreError(
            f"{folder} holds a run of something else, and samples of the two must not be mixed:\n"
            + "\n".join(changes)
            + "\nUse the run's own values to go on with it, or name another folder. Nothing was changed."
        )


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        return {"grader": header["grader"], "source": header["source"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}). Move its folder away and grade anew.") from error


def _source(source: str | None) -> str:
    return f"source {source!r}" if source else "no known source"


def _flat(mapping: Mapping[str, Any], without: set[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if key in without:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, set(), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def storable(text: str) -> str:
    # A lone surrogate, half of a character cut by the token limit, is not Unicode and cannot be stored as such.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
