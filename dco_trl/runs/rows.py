"""Read the rows of a data set as they stand in its file."""

import csv
import io
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..problem import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv")
# The longest field of a CSV file, in characters. Python's own limit is shorter than many prompts.
_LONGEST_FIELD = 2**31 - 1
# Levels of lists and objects in a value. Python's own limit depends on the depth of the call.
_MAX_DEPTH = 100
# Columns of training data that are numbers even in a CSV file.
_COUNTS = ("num_sampled", "num_correct")


def read_rows(source: str | Path, *, split: str = "test", config: str | None = None) -> Iterable[Mapping[str, Any]]:
    """Read rows, unchecked, from any source of `read_problems`.

    Raises:
        DataError: The source cannot be read. The message names the file and the line.
    """
    path = Path(source)
    path = split_files(path).get(split, path) if config is None else path
    if not is_file(path):
        return load_with_datasets(str(source), config, split)
    rows = _read(path, f"data set {str(path)!r}")
    return rows if isinstance(rows, list) else rows.to_pylist()


def is_file(path: Path) -> bool:
    """Whether the path means a data file; a `DataError` if that file is missing or of an unknown type."""
    kind, source = path.suffix.lower(), str(path)
    if path.is_dir() or (kind not in FILE_TYPES and not path.exists()):
        return False
    if not path.exists():
        raise DataError(f"data set {source!r}: there is no such file. Check its name and the folder you are in.")
    if kind not in FILE_TYPES:
        raise DataError(
            f"data set {source!r}: cannot read a file of type {kind!r}; use one of {', '.join(FILE_TYPES)}"
        )
    return True


def split_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that are named after splits, all of the type of its `train` or `test` file.

    `datasets` would take every file below the folder for data, including what a run writes there.
    """
    for suffix in FILE_TYPES:
        files = {split: folder / f"{split}{suffix}" for split in ("train", "validation", "test")}
        found = {split: file for split, file in files.items() if file.is_file()}
        if "train" in found or "test" in found:
            return found
    return {}


def read_dataset(path: Path) -> "Dataset":
    """The rows of a file as a data set to train on. Text stays text, as it is written.

    Raises:
        DataError: The file cannot be read, is empty, or has a column of several kinds of values.
    """
    import pyarrow as pa
    from datasets import Dataset

    name = f"data set {str(path)!r}"
    table = _read(path, name)  # a Parquet table keeps its features, such as images
    if isinstance(table, list):
        rows = [checked_row(row, f"{name}: row {number}") for number, row in enumerate(table)]
        if not any(rows):
            raise DataError(f"{name} is empty: there is nothing to train on. Check the file or the split.")
        names = dict.fromkeys(column for row in rows for column in row)
        columns = {column: [row.get(column) for row in rows] for column in names}
        if path.suffix.lower() == ".csv":
            columns |= {column: _integers(columns[column], column, name) for column in _COUNTS if column in columns}
        table = {column: _array(values, column, name) for column, values in columns.items()}
    try:
        return Dataset(pa.table(table))
    except (ValueError, TypeError, KeyError) as error:  # such as names with a NUL or half a character
        raise DataError(f"{name} cannot be made a data set: {error}. Write the file again.") from error


def _integers(values: list[Any], column: str, name: str) -> list[Any]:
    for number, value in enumerate(values):
        if not value.strip().isdecimal():
            raise DataError(f"{name}: row {number}, column {column!r}: {short(value)} is not an integer. Correct it.")
    return [int(value) for value in values]


def _array(values: list[Any], column: str, name: str) -> "pa.Array":
    import pyarrow as pa

    def converted(num_rows: int) -> "pa.Array | Exception":
        try:
            return pa.array(values[:num_rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            return error

    if not isinstance(whole := converted(len(values)), Exception):
        return whole
    number = bisect_left(range(len(values)), True, key=lambda row: isinstance(converted(row + 1), Exception))
    raise DataError(
        f"{name}: row {number}, column {column!r}: {short(values[number])} does not go with the rows before it "
        f"({converted(number + 1)}). Give a column one kind of value: put text, also of digits, into quotes."
    )


def checked_row(row: Any, where: str) -> dict[str, Any]:
    """A row as a `dict`, after a check that its columns have names and its values do not nest too deeply."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is not an object with columns but {short(row)}")
    for column, value in row.items():
        if not isinstance(column, str):
            raise DataError(f"{where}: the name of a column must be text, got {short(column)}")
        if _is_deeper(value, _MAX_DEPTH):
            raise DataError(
                f"{where}, column {column!r}: nested deeper than {_MAX_DEPTH} levels. Write it as text, or remove the "
                "column."
            )
    return dict(row)


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return levels < 0 or any(_is_deeper(part, levels - 1) for part in inner)


def short(value: Any, limit: int = 80) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def some(values: Sequence[Any], limit: int = 5) -> str:
    """The first of some values as an error message shows them."""
    return ", ".join(map(str, values[:limit])) + (", …" if len(values) > limit else "")


def _read(path: Path, name: str) -> "list[Any] | pa.Table":
    """The rows of a file; of a Parquet file, its table."""
    read = {".jsonl": _read_json_lines, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}
    try:
        return read[path.suffix.lower()](path, name)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error}. Check that you may read it.") from error


def _read_json_lines(path: Path, name: str) -> list[Any]:
    # Not splitlines(), which also splits at characters that JSON allows inside text.
    lines = enumerate(_text(path, name).split("\n"), start=1)
    return [_parsed(line, f"{name}, line {number}") for number, line in lines if line.strip()]


def _read_json(path: Path, name: str) -> list[Any]:
    rows = _parsed(_text(path, name), name)
    if not isinstance(rows, list):
        raise DataError(f"{name}: expected a list of objects, got {type(rows).__name__}. Put the rows into [ ].")
    return rows


def _read_csv(path: Path, name: str) -> list[dict[str, str]]:
    # strict: an unclosed quotation mark would swallow the rows after it.
    reader = csv.reader(io.StringIO(_text(path, name), newline=""), strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    rows = []
    try:
        columns = next(reader, [])
        _refuse_repeated(columns, f"{name}, line 1")
        for values in reader:
            if len(values) not in (0, len(columns)):  # a blank line is not a row
                kind = f"no column {columns[len(values)]!r}" if len(values) < len(columns) else "no name for the last"
                raise DataError(
                    f"{name}, line {reader.line_num}: {len(values)} values for the {len(columns)} columns {columns}, "
                    f"so there is {kind}. Put values with a comma into quotation marks, and empty ones between commas."
                )
            if values:
                rows.append(dict(zip(columns, values, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: not CSV: {error}. Close every quotation mark; double those inside text."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _read_parquet(path: Path, name: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table, which makes a column from a folder named `a=b`.
        table = pq.ParquetFile(path).read()
        table.validate(full=True)  # reading alone accepts text that is not UTF-8
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}. Write the file again.") from error
    _refuse_repeated(table.column_names, name)
    return table


def _text(path: Path, name: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error


def _parsed(text: str, where: str) -> Any:
    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_repeated([key for key, _ in pairs], where)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=as_object)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}. Correct the text there.") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply to be read. Write the inner values as text.") from error


def _refuse_repeated(names: list[str], where: str) -> None:
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: {repeated!r} is there twice in {short(names)}. Rename or remove one of the two.")


def load_with_datasets(
    source: str, config: str | None = None, split: str | None = None, streaming: bool = False
) -> Any:
    """A split of a folder or a name that `datasets` can load, or all of its splits by name.

    Raises:
        DataError: `datasets` cannot load it, or there is no such split.
    """
    import datasets

    path = Path(source)
    try:
        if not (path / "dataset_dict.json").exists() and not (path / "state.json").exists():
            return datasets.load_dataset(source, config, split=split, streaming=streaming)
        loaded = datasets.load_from_disk(source)
    except Exception as error:  # the Hub, the network and loading each raise their own classes
        raise DataError(
            f"data set {source!r} is not a file here, and the datasets library could not load it"
            f"{f' (split {split!r})' if split else ''}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded if split else datasets.DatasetDict({"train": loaded})
    if split and split not in loaded:
        raise DataError(f"data set {source!r} has no split {split!r}. Choose one of {sorted(loaded)}.")
    return loaded[split] if split else loaded
