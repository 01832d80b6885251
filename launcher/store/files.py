"""Files that survive a crash: appended lines, files replaced as a whole, and locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from bench import records
from bench.records import Line
from launcher.errors import UserError

T = TypeVar("T")


class Appender:
    """Appends lines to one file, one write and one fsync each: a killed job loses at most the point in flight.

    When ``add`` returns, the write is done, and the line survives the death of the process. The fsync, which protects
    it from the death of the machine, follows on a thread: the ranks do not wait for a disk. ``close`` waits for the
    last fsync.
    """

    def __init__(self, descriptor: int) -> None:
        """Ends a torn last line of an earlier writer, so the next line starts on its own."""
        self._descriptor = descriptor
        self._syncs = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsync")
        self._last: Future[None] | None = None
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")

    def add(self, line: Line) -> None:
        """Appends one line. Raises the error of an earlier fsync."""
        if self._last is not None and self._last.done():
            self._last.result()
        os.write(self._descriptor, records.encode(line) + b"\n")
        self._last = self._syncs.submit(os.fsync, self._descriptor)

    def close(self) -> None:
        """Returns when every line is on the disk."""
        self._syncs.shutdown(wait=True)
        if self._last is not None:
            self._last.result()


@contextlib.contextmanager
def open_locked(file: Path, flags: int, *, owner_file: Path, activity: str) -> Iterator[int]:
    """The descriptor of a file, created if missing, under an exclusive lock. ``owner_file`` names this process.

    UserError if another process holds the lock, "ACTIVITY by process 7 on node1", or if the file system has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | flags, 0o644)
    try:
        _lock(descriptor, owner_file, activity)
        owner_file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield descriptor
        finally:
            owner_file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, owner_file: Path, activity: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = owner_file.read_text().strip() if owner_file.is_file() else "another process"
        raise UserError(f"{activity} by {owner}", hint="wait for it or end it; its lock ends with it") from None
    except OSError as error:
        raise UserError(
            f"{owner_file.parent} cannot be locked: {error.strerror}",
            hint="use a file system with locks (Lustre: mounted with flock; NFS: with its lock daemon)",
        ) from None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replaces a file. A reader sees the old content or the new, never a part of either."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")  # a signal handler may write too
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Replaces a file by the indented JSON of a value that msgspec encodes."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value), indent=1))


def read_json(file: Path, kind: type[T]) -> T:
    """The value in a JSON file. UserError if the file cannot be read or decoded."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(
            f"{file} cannot be read: {error}", hint="another program wrote it, or somebody changed it"
        ) from None


def create_unique_folder(outputs: Path) -> Path:
    """A new folder in ``outputs``. Two processes get two folders, even in the same second."""
    outputs.mkdir(parents=True, exist_ok=True)
    while True:
        path = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
