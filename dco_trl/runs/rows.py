"""Rows of a data set, as they stand in its file."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..problem import DataError

FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv")
# The longest field of a CSV file, in characters; Python's own limit is shorter than many a prompt.
_LONGEST_FIELD = 2**31 - 1


class RepeatedKey(dict):
    """A JSON object that had one of its keys twice: which value was meant is not known."""

    key: str = ""


def read_rows(source: str | Path, *, split: str = "test", config: str | None = None) -> Iterable[Mapping[str, Any]]:
    """Read rows as they are, from what [`read_problems`][dco_trl.runs.read_problems] reads problems from.

    Args:
        source: A `.jsonl`, `.json` (a list of objects), `.parquet` or `.csv` file, with or without a byte-order mark;
            otherwise a folder or a name that `datasets` can load.
        split: The split to take, where the source has several.
        config: The configuration of a data set on the Hub.

    Returns:
        The rows in order, their values unchecked.

    Raises:
        DataError: The source cannot be read; the message names the file and the line.
    """
    path, source = Path(source), str(source)
    kind = path.suffix.lower()
    if path.is_dir() or (kind not in FILE_TYPES and not path.exists()):
        return _load_with_datasets(path, source, split, config)
    if not path.exists():
        raise DataError(f"data set {source!r}: there is no such file. Check its name and the folder you are in.")
    if kind not in FILE_TYPES:
        raise DataError(
            f"data set {source!r}: cannot read a file of type {kind!r}; use one of {', '.join(FILE_TYPES)}"
        )
    try:
        return _READERS[kind](path, f"data set {source!r}")
    except OSError as error:
        raise DataError(f"data set {source!r} cannot be read: {error}. Check that you may read it.") from error


def _read_json_lines(path: Path, name: str) -> list[Any]:
    # Not splitlines(), which also splits at characters that JSON allows in a text.
    lines = enumerate(_text(path, name).split("\n"), start=1)
    return [_parsed(line, f"{name}, line {number}") for number, line in lines if line.strip()]


def _read_json(path: Path, name: str) -> list[Any]:
    rows = _parsed(_text(path, name), name)
    if not isinstance(rows, list):
        raise DataError(f"{name}: expected a list of objects, got {type(rows).__name__}. Put the rows into [ ].")
    return rows


def _read_csv(path: Path, name: str) -> list[dict[str, str]]:
    # strict: a quotation mark that is never closed would swallow the rows after it.
    reader = csv.reader(io.StringIO(_text(path, name), newline=""), strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    rows = []
    try:
        columns = next(reader, [])
        _refuse_repeated(columns, f"{name}, line 1")
        for values in reader:
            if len(values) not in (0, len(columns)):  # a blank line is no row
                kind = f"no column {columns[len(values)]!r}" if len(values) < len(columns) else "no name for the last"
                raise DataError(
                    f"{name}, line {reader.line_num}: {len(values)} values for the {len(columns)} columns {columns}, "
                    f"so there is {kind}. Put values with a comma into quotation marks, and empty ones between commas."
                )
            if values:
                rows.append(dict(zip(columns, values, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: not CSV: {error}. Close every quotation mark; double those of a text."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _read_parquet(path: Path, name: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table, which makes a column of a folder named `a=b`.
        table = pq.ParquetFile(path).read()
        _refuse_repeated(table.column_names, name)
        return table.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} cannot be read as Parquet: {error}. Write the file again.") from error


_READERS: dict[str, Callable[[Path, str], list[Any]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _text(path: Path, name: str) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}. Correct the text there.") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply to be read. Write the inner values as text.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        row = RepeatedKey(row)
        keys = [key for key, _ in pairs]
        row.key = next(key for key in keys if keys.count(key) > 1)
    return row


def _refuse_repeated(columns: list[str], where: str) -> None:
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise DataError(f"{where}: column {repeated!r} is there twice in {columns}. Rename or remove one of the two.")


def _load_with_datasets(path: Path, source: str, split: str, config: str | None) -> Iterable[Mapping[str, Any]]:
    import datasets

    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            loaded = datasets.load_from_disk(source)
            if not isinstance(loaded, datasets.DatasetDict):
                return loaded
            if split not in loaded:
                raise DataError(
                    f"data set {source!r} has no split {split!r}. Choose one that it has: {sorted(loaded)}"
                )
            return loaded[split]
        return datasets.load_dataset(source, config, split=split)
    except DataError:
        raise
    except Exception as error:  # the Hub, the network and loading each raise classes of their own
        raise DataError(
            f"data set {source!r} is neither a file here nor could `datasets` load it (split {split!r}): "
            f"{type(error).__name__}: {error}"
        ) from error
