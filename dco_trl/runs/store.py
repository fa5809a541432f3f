"""One folder per run: a manifest, the problems, and samples in Parquet parts that appear whole or not at all.

`docs/evaluating.md` lists the files and their columns. The key of a sample is (problem_id, sample_index). A file is
written under a temporary name, forced to disk and renamed. A process killed at any moment therefore leaves only whole
parts, whose key columns tell what is missing. The last hash in a part's name is that of the file's footer, and the
pages have checksums, so reading notices any damage. A part of verdicts has the rows of one part of samples and that
part's hash in its name, so it never judges others.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from ..problem import Problem
from .files import StoreError, list_parts, locked, read_part, refresh_listing, write_atomically, write_part
from .manifest import read_manifest, read_problem_table, start_session
from .rows import some

KEY = ["problem_id", "sample_index"]
_KEY_FIELDS = [("problem_id", pa.string()), ("sample_index", pa.int32())]
SAMPLE_SCHEMA = pa.schema(
    [*_KEY_FIELDS, ("text", pa.string()), ("num_tokens", pa.int32()), ("finish_reason", pa.string())]
)
GRADE_SCHEMA = pa.schema([*_KEY_FIELDS, ("score", pa.float32()), ("answer", pa.string()), ("status", pa.string())])


class RunStore:
    """A run's folder.

    Args:
        path: The folder. It must hold a run; [`RunStore.writing`][dco_trl.runs.RunStore.writing] makes one.

    Raises:
        StoreError: The folder holds no run, or its manifest or its problems are damaged.

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
        self.samples_dir = self.path / "samples"
        manifest = self.path / "manifest.json"
        if not manifest.exists():
            raise StoreError(f"{self.path} holds no run: it has no manifest.json. `dco-trl sample` makes one.")
        self.manifest: dict[str, Any] = read_manifest(manifest)
        self.problems = read_problem_table(self.path / "problems.parquet", self.manifest)
        self._locks: dict[Path, FileLock] = {}
        self._next_number = 0

    @classmethod
    @contextmanager
    def writing(
        cls, path: str | os.PathLike[str], manifest: Mapping[str, Any], problems: Sequence[Problem]
    ) -> Iterator["RunStore"]:
        """Make a run, or continue the one in the folder, which stays locked until the block ends.

        Args:
            path: The folder.
            manifest: What the samples are draws of. A run in the folder must have the same values, also inside nested
                mappings; only `versions`, `num_samples` and `dataset` may differ, and are recorded.
            problems: The problems. A run in the folder must have the same ids, prompts and answers.

        Raises:
            StoreError: Another process uses the folder; it holds other files; or it holds a run that differs, and the
                message lists each key with both values.
        """
        folder = Path(path)
        if not problems:
            raise StoreError("there are no problems to sample: the data set is empty")
        _refuse_other_files(folder)
        with locked(folder) as lock:
            store = cls(folder) if (folder / "manifest.json").exists() else None
            written = start_session(folder, store.manifest if store else None, manifest, problems)
            store = store or cls(folder)
            store.manifest = written
            store.samples_dir.mkdir(exist_ok=True)
            refresh_listing(store.samples_dir)
            store._locks[store.samples_dir] = lock
            store._next_number = max((int(part.name.split("-")[1]) + 1 for part in store.sample_parts()), default=0)
            yield store

    def write_samples(self, rows: Sequence[tuple[Any, ...]]) -> Path:
        """Add one part of samples and return its file, which is then on disk.

        Args:
            rows: Each (problem_id, sample_index, text, num_tokens, finish_reason), and the arm in a run along a
                schedule.

        Raises:
            StoreError: The disk is full or cannot be written, or this store is open for reading only. Earlier parts
                are unharmed.
        """
        self._require_lock(self.samples_dir)
        part = write_part(self.samples_dir, f"part-{self._next_number:06d}", sample_table(rows, self.sample_schema))
        self._next_number += 1
        return part

    def add_part(self, part: Path) -> None:
        """Copy a part of samples from another run, under its own hash and this run's next number."""
        self._require_lock(self.samples_dir)
        write_atomically(self.samples_dir / f"part-{self._next_number:06d}-{hash_of(part)}.parquet", part.read_bytes())
        self._next_number += 1

    @contextmanager
    def grading(self, grader: str, source: str | None, anew: bool = False) -> Iterator[None]:
        """Open the folder of one grader's verdicts for writing; it stays locked until the block ends.

        Args:
            grader: The grader's name.
            source: What its verdicts depend on: the versions of the libraries, or a hash of its code.
            anew: Delete the verdicts that are there.

        Raises:
            StoreError: Another process grades there, or the verdicts there are of another grader or version.
        """
        folder, asked = self.grades_dir(grader), {"grader": grader, "source": source}
        with locked(folder) as lock:
            header = folder / "grader.json"
            # The header goes last: parts without one are refused.
            for path in [*list_parts(folder), header] if anew else []:
                path.unlink(missing_ok=True)
            if header.exists():
                refuse_other_verdicts(folder, read_header(header), asked)
            elif list_parts(folder):
                raise StoreError(
                    f"{folder} has verdicts but no grader.json that names their grader: restore it, or move the "
                    "folder away and grade anew."
                )
            else:
                write_atomically(header, (json.dumps(asked, indent=2) + "\n").encode())
            self._locks[folder] = lock
            yield

    def write_grades(self, grader: str, samples: Path, table: pa.Table) -> Path:
        """Add a grader's verdicts on one part of samples, in the order of its rows; see `write_samples`."""
        folder = self.grades_dir(grader)
        self._require_lock(folder)
        return write_part(folder, samples.stem, table.cast(GRADE_SCHEMA))

    def _require_lock(self, folder: Path) -> None:
        if folder not in self._locks or not self._locks[folder].is_locked:
            raise StoreError(
                f"{folder} is open for reading only; write inside `with RunStore.writing(…)` or `.grading(…)`"
            )

    @property
    def sample_schema(self) -> pa.Schema:
        """The columns of the samples, which have an arm in a run along a schedule."""
        return SAMPLE_SCHEMA.append(pa.field("arm", pa.string())) if "schedule" in self.manifest else SAMPLE_SCHEMA

    def sample_parts(self) -> list[Path]:
        """The files with samples, oldest first."""
        return list_parts(self.samples_dir)

    def graders(self) -> list[str]:
        """The names of the graders that have graded this run, wholly or in part."""
        return [read_header(header)["grader"] for header in sorted(self.path.glob("grades/*/grader.json"))]

    def grades_dir(self, grader: str) -> Path:
        """The folder for one grader's verdicts."""
        return self.path / "grades" / grader_slug(grader)

    def grade_parts(self, grader: str) -> dict[str, Path]:
        """The files with a grader's verdicts, keyed by the stem of the file of samples that each judges.

        Raises:
            StoreError: There are two files for the same samples.
        """
        found: dict[str, Path] = {}
        for path in list_parts(self.grades_dir(grader)):
            samples = path.stem.rpartition("-")[0]
            if samples in found:
                raise StoreError(
                    f"{path.parent} has 2 files with verdicts on {samples}: {found[samples].name}, {path.name}. Move "
                    "both out of the folder and grade again."
                )
            found[samples] = path
        return found

    def read_samples(self, part: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part of samples, or some of its columns and no more of the file.

        Raises:
            StoreError: The file is damaged; the message names it and says what to do.
        """
        return read_part(part, self.sample_schema, columns, "its samples are then drawn")

    def read_grades(self, part: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part of verdicts, as [`read_samples`][dco_trl.runs.RunStore.read_samples] reads samples."""
        return read_part(part, GRADE_SCHEMA, columns, "its samples are then graded")

    def present(self) -> dict[str, np.ndarray]:
        """Which samples there are, read from the key columns alone.

        Returns:
            For each problem, in order, the indices of its samples in increasing order, int32.

        Raises:
            StoreError: A part is damaged, has samples of a problem that is not the run's, or a sample is there twice.
        """
        found = {problem.problem_id: [np.empty(0, np.int32)] for problem in self.problems}
        for part in self.sample_parts():
            for problem_id, rows in rows_by_problem(self.read_samples(part, KEY)):
                if problem_id not in found:
                    raise StoreError(
                        f"{part} has samples of {problem_id!r}, which is not a problem of this run. Was it copied in "
                        "from another run? Move it out of the folder."
                    )
                found[problem_id].append(rows["sample_index"].to_numpy())
        present = {problem_id: np.sort(np.concatenate(pieces)) for problem_id, pieces in found.items()}
        for problem_id, indices in present.items():
            if (twice := indices[1:][indices[1:] == indices[:-1]]).size:
                raise StoreError(
                    f"{self.samples_dir}: sample {twice[0]} of problem {problem_id!r} is there twice. Was a part "
                    "copied in by hand? Move the copy out of the folder."
                )
        return present


def sample_table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows of samples as a table."""
    columns: list[Sequence[Any]] = [list(column) for column in zip(*rows, strict=True)]
    columns[2] = [replace_surrogates(text) for text in columns[2]]
    return pa.table(columns, schema=schema)


def rows_by_problem(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The id and the rows of each problem of a part, in the order of first appearance."""
    ids = table["problem_id"].combine_chunks().dictionary_encode()
    codes = ids.indices.to_numpy()
    ends = np.cumsum(np.bincount(codes, minlength=len(ids.dictionary)))
    pieces = np.split(np.argsort(codes, kind="stable"), ends[:-1])
    for problem_id, rows in zip(ids.dictionary.to_pylist(), pieces, strict=False):
        yield problem_id, table.take(rows)


def hash_of(part: Path) -> str:
    """The hash in a part's name."""
    return part.stem.rpartition("-")[2]


def grader_slug(grader: str) -> str:
    """A grader's name as a folder's name: `package.module:function` becomes `package.module-function`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", grader).strip(".-") or "grader"


def replace_surrogates(text: str) -> str:
    """The text with "?" for each lone surrogate, which is half of a character cut by the token limit."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def read_header(path: Path) -> dict[str, Any]:
    """Which grader a folder's verdicts are from: its name `grader`, and `source`, what its verdicts depend on."""
    try:
        match json.loads(path.read_text(encoding="utf-8")):
            case {"grader": str(grader), "source": str() | None as source} if grader_slug(grader) == path.parent.name:
                return {"grader": grader, "source": source}
            case other:
                raise ValueError(f"it should have the folder's `grader` and its `source`, got {other}")
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error}). Move its folder away and grade anew.") from error


def refuse_other_verdicts(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to mix verdicts of two graders, or of two versions of one."""
    if found != asked:
        raise StoreError(
            f"{folder} holds verdicts of grader {found['grader']!r} with source {found['source']!r}, and "
            f"{asked['grader']!r} now has source {asked['source']!r}. Verdicts of the two must not be mixed: "
            "grade all samples anew with `dco-trl grade --regrade`, or move the folder away. Nothing was changed."
        )


def _refuse_other_files(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if name not in ("problems.parquet", ".lock") and not name.startswith(".tmp-")]
    if foreign and "manifest.json" not in names:
        raise StoreError(f"{folder} holds other files ({some(foreign, 3)}) and no run. Name a new or an empty folder.")
