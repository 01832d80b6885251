"""Files that survive: appended lines, files replaced whole, and locks."""

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
    """Adds lines to one file, one write and one fsync each: a killed job loses at most the point in flight.

    The write is done when ``add`` returns, which is what survives the death of the process. The fsync, which is for the
    death of the machine, follows on a thread, so that the ranks do not wait for a disk; ``close`` waits for the last.
    """

    def __init__(self, descriptor: int) -> None:
        """A torn last line of an earlier writer is closed, so that the next line starts on its own."""
        self._descriptor = descriptor
        self._syncs = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsync")
        self._last: Future[None] | None = None
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")

    def add(self, line: Line) -> None:
        """Appends one line. Raises what an earlier fsync raised."""
        if self._last is not None and self._last.done():
            self._last.result()
        os.write(self._descriptor, records.encode(line) + b"\n")
        self._last = self._syncs.submit(os.fsync, self._descriptor)

    def close(self) -> None:
        """Everything is on the disk when this returns."""
        self._syncs.shutdown(wait=True)
        if self._last is not None:
            self._last.result()


@contextlib.contextmanager
def locked(descriptor: int, owner: Path, *, what: str) -> Iterator[None]:
    """Holds the file's lock; ``owner`` says who does, for people."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = owner.read_text().strip() if owner.is_file() else "another process"
        raise UserError(
            f"{what} by {who}", hint="wait for it, or end it; the lock of a process that is gone is gone with it"
        ) from None
    except OSError as error:
        raise UserError(
            f"{owner.parent} cannot be locked: {error.strerror}",
            hint="a file system with locks is wanted (Lustre: mounted with flock; NFS: with its lock daemon)",
        ) from None
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replaces a file so that a reader sees the old one or the new one, never half of either."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")  # a signal's handler may write too
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def fresh(outputs: Path) -> Path:
    """A new folder in ``outputs`` whose name nobody else has, not even in the same second."""
    outputs.mkdir(parents=True, exist_ok=True)
    while True:
        path = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def decode(file: Path, kind: type[T]) -> T:
    """The value in a JSON file. UserError when it cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(
            f"{file} cannot be read: {error}", hint="it was not written by this program, or changed"
        ) from None
