"""Files that are there whole and unchanged or not at all, in folders that one process at a time writes to."""

import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ..errors import UserError

# part-000003-<hash>.parquet; for verdicts, the hash of the samples stands before their own.
PART_NAME = re.compile(r"part-\d{6,}(?:-[0-9a-f]{16})+\.parquet")


class StoreError(UserError):
    """A run folder that cannot be used as asked; nothing in it has been changed."""


@contextmanager
def locked(folder: Path) -> Iterator[FileLock]:
    """Make a folder and hold it alone. The lock ends with this process, however it ends, also if a child lives on.

    Yields:
        The lock; in a process that was forked meanwhile it is not held.

    Raises:
        StoreError: Somebody, named in the message, holds the folder; it cannot be made, or knows no locks.
    """
    path = folder / ".lock"
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout as error:
        holder = path.read_text(errors="replace").strip() or "another process"
        raise StoreError(
            f"{folder} is in use by {holder}. Wait until it has ended, or name another folder."
        ) from error
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
    """See what other machines wrote, and remove what a killed process left half-written.

    A client of NFS may list a folder from its memory until it changes the folder.
    """
    (folder / ".tmp-probe").touch()
    for unfinished in folder.glob(".tmp-*"):
        unfinished.unlink()


def write_atomically(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file, in a folder made if there is none, so that it is there whole and on disk, or not at all.

    Raises:
        StoreError: It cannot be written, for instance because the disk is full; nothing else has changed.
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
    """The content of a Parquet file whose pages have checksums, and whose footer has the hash of all pages."""
    sink = BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"sha256": sha256(sink.getvalue())})
    return sink.getvalue()


def write_part(folder: Path, stem: str, table: pa.Table) -> Path:
    """Write `stem-<hash of the footer>.parquet`: any change of it is noticed by whoever reads some of its columns."""
    data = parquet(table)
    path = folder / f"{stem}-{_footer_hash(BytesIO(data))}.parquet"
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
    """Read the columns of a schema from a part, and nothing else of it; what is read is what was written.

    `remedy` is what running the same command again does about damage, for the message.

    Raises:
        StoreError: The file is damaged; the message names it and says what to do.
    """
    try:
        with open(path, "rb") as file:
            # Before it is parsed: Arrow ends the process upon some damaged footers.
            if not path.stem.endswith(found := _footer_hash(file)):
                raise OSError(f"its footer has the hash {found}, which is not the one in its name")
            table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=schema.names)
        if table.schema.remove_metadata() != schema:
            types = dict(zip(table.schema.names, map(str, table.schema.types), strict=True))
            raise OSError(f"its columns are of other types: {types}")
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} is damaged and was left as it is ({error}). The other parts are not affected. Move this file "
            f"out of the folder and run the same command again: {remedy} anew."
        ) from error
    return table


def _footer_hash(file: BinaryIO) -> str:
    """Of a Parquet file's footer; its last 8 bytes are the footer's length, and the letters PAR1."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    file.seek(max(size - 8 - int.from_bytes(file.read(4), "little"), 0))
    return sha256(file.read())[:16]
