"""Files that are there whole and unchanged or not at all."""

import errno
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# part-000003-<hash of its content>.parquet, of shard 1 of 4 part-1of4-000003-<hash>.parquet; for verdicts, the hash of
# the samples stands before their own.
PART_NAME = re.compile(r"part-(?:(\d+)of(\d+)-)?(\d{6,})((?:-[0-9a-f]{16})+)\.parquet")


class StoreError(ValueError):
    """A run folder that cannot be used as asked; nothing in it has been changed."""


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


def remove_unfinished(folder: Path, stem: str = "") -> None:
    """Remove what a killed process left half-written in a folder that this process holds now.

    Args:
        folder: The folder.
        stem: What the names of the files begin with that are this process's: others may be at work on theirs.
    """
    for stale in folder.glob(f".tmp-*-{stem}*"):
        stale.unlink()


def look_anew(folder: Path, stem: str = "") -> None:
    """See what other machines wrote: a client of NFS may list a folder from its memory until it changes the folder."""
    with suppress(OSError):  # what is written next gives the reason
        probe = folder / f".tmp-{os.getpid()}-{stem}probe"
        probe.touch()
        probe.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder {folder} cannot be made: {error.strerror}. Name a folder elsewhere.") from error


def parquet(table: pa.Table) -> pa.Buffer:
    """The content of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def sha256(data: bytes | pa.Buffer) -> str:
    """64 hexadecimal digits, as `sha256sum` prints them."""
    return hashlib.sha256(data).hexdigest()


def write_part(folder: Path, stem: str, table: pa.Table) -> Path:
    """Write `stem-<hash>.parquet`: its name tells whether its content is still what was written."""
    data = parquet(table)
    path = folder / f"{stem}-{sha256(data)[:16]}.parquet"
    write_atomically(path, data)
    return path


def list_parts(folder: Path) -> list[Path]:
    """The parts in a folder, oldest first.

    Raises:
        StoreError: A Parquet file has a name that this package gives to none.
    """
    # A part that another process is about to write is none yet.
    parts = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith(".tmp-"))
    for path in parts:
        if not PART_NAME.fullmatch(path.name):
            raise StoreError(
                f"{path} is no file of this run: its name should be part-NUMBER-HASH.parquet. Was it copied in or "
                "renamed by hand? Move it out of the folder, or give it its own name back."
            )
    return parts


def read_part(path: Path, schema: pa.Schema, remedy: str) -> pa.Table:
    """Read columns of a part, and check that it is what was written.

    Args:
        path: The file.
        schema: The columns to read, with their types.
        remedy: What running the same command again does about it, for the message.

    Returns:
        The table.

    Raises:
        StoreError: The file is damaged; the message names it and says what to do.
    """
    try:
        data = path.read_bytes()
        found = sha256(data)[:16]
        if not path.stem.endswith(found):
            raise OSError(f"its content has the hash {found}, which is not the one in its name")
        table = pq.read_table(pa.BufferReader(data), columns=schema.names)
        if table.schema.remove_metadata() != schema:
            types = dict(zip(table.schema.names, map(str, table.schema.types), strict=True))
            raise OSError(f"its columns are of other types: {types}")
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} is damaged and was left as it is ({error}). The other parts are not affected. Move this file "
            f"out of the folder and run the same command again: {remedy} anew."
        ) from error
    return table
