"""Files that are either whole and unchanged or absent, in folders that one process at a time writes to."""

import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ..errors import UserError

# part-000003-<hash>.parquet. A part of verdicts has the hash of its samples before its own.
PART_NAME = re.compile(r"part-\d{6,}(?:-[0-9a-f]{16})+\.parquet")


class StoreError(UserError):
    """A run folder that cannot be used as asked; nothing in it has been changed."""


@contextmanager
def locked(folder: Path) -> Iterator[FileLock]:
    """Make a folder and lock it. The lock ends with this process, however it ends, even if a child process lives on.

    Yields:
        The lock. A process that is forked meanwhile does not hold it.

    Raises:
        StoreError: Another process, named in the message, holds the folder; or it cannot be made or locked.
    """
    path = folder / ".lock"
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout as error:
        holder = path.read_text(errors="replace").strip() or "another process"
        raise StoreError(f"{folder} is in use by {holder}. Wait until it has ended or name another folder.") from error
    except OSError as error:
        raise StoreError(
            f"the folder {folder} cannot be made or locked: {error.strerror}. Check its permissions, or name a folder "
            "on another file system."
        ) from error
    try:
        refresh_listing(folder)
        yield lock
    finally:
        lock.release()


def refresh_listing(folder: Path) -> None:
    """Make other machines' files visible, and remove what a killed process left half-written."""
    # An NFS client may list a folder from its cache until it changes the folder itself.
    (folder / ".tmp-probe").touch()
    for unfinished in folder.glob(".tmp-*"):
        unfinished.unlink()


def write_atomically(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file so that it is whole and on disk, or unchanged; make its folder if there is none.

    Raises:
        StoreError: It cannot be written, for instance because the disk is full. Nothing else has changed.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut may forget the rename
        finally:
            os.close(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StoreError(
            f"{path} could not be written ({error.strerror}). What was written before is unharmed. "
            + ("Free some space and run" if full else "Check the folder's permissions, then run")
            + " the same command again: it goes on from there."
        ) from error


def sha256(data: bytes | pa.Buffer) -> str:
    """64 hexadecimal digits, as `sha256sum` prints them."""
    return hashlib.sha256(data).hexdigest()


def parquet(table: pa.Table) -> bytes:
    """The content of a Parquet file whose pages have checksums and whose footer holds the hash of all pages."""
    sink = BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"sha256": sha256(sink.getvalue())})
    return sink.getvalue()


def write_part(folder: Path, stem: str, table: pa.Table) -> Path:
    """Write `stem-<hash of the footer>.parquet`: reading any of its columns detects a change to them."""
    data = parquet(table)
    path = folder / f"{stem}-{_footer_hash(BytesIO(data))}.parquet"
    write_atomically(path, data)
    return path


def list_parts(folder: Path) -> list[Path]:
    """The parts in a folder, oldest first.

    Raises:
        StoreError: A Parquet file has a name that this package does not give.
    """
    # Another process may be writing a part under a temporary name.
    parts = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith(".tmp-"))
    for path in parts:
        if not PART_NAME.fullmatch(path.name):
            raise StoreError(
                f"{path} is not a file of this run: its name should be part-NUMBER-HASH.parquet. Was it copied in or "
                "renamed by hand? Move it out of the folder, or restore its name."
            )
    return parts


def read_part(path: Path, schema: pa.Schema, columns: Sequence[str] | None, what_follows: str) -> pa.Table:
    """Read a part, or some of its columns and no more of the file, and check that it is what was written.

    `what_follows` says for the error message what running the same command again does about damage.

    Raises:
        StoreError: The file is damaged; the message names it and says what to do.
    """
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    try:
        with open(path, "rb") as file:
            # Check before parsing: Arrow ends the process at some damaged footers.
            if not path.stem.endswith(found := _footer_hash(file)):
                raise OSError(f"its footer has the hash {found}, which is not the one in its name")
            table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=schema.names)
        if table.schema.remove_metadata() != schema:
            types = dict(zip(table.schema.names, map(str, table.schema.types), strict=True))
            raise OSError(f"its columns are of other types: {types}")
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} is damaged and was left as it is ({error}). The other parts are not affected. Move this file "
            f"out of the folder and run the same command again: {what_follows} anew."
        ) from error
    return table


def _footer_hash(file: BinaryIO) -> str:
    """The hash of a Parquet file's footer, whose last 8 bytes are its length and the letters PAR1."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    file.seek(max(size - 8 - int.from_bytes(file.read(4), "little"), 0))
    return sha256(file.read())[:16]
