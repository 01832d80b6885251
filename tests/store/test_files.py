"""Files that are locked, appended to and replaced atomically."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path

import pytest

from launcher.errors import UserError
from launcher.store.files import write_atomic
from launcher.store.records_file import open_appender
from launcher.store.run_folder import RunFolder


def test_a_file_system_without_locks_is_called_that(monkeypatch: pytest.MonkeyPatch, folder: RunFolder):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(UserError, match="cannot be locked: Function not implemented") as caught,
        open_appender(folder, 0),
    ):
        pass
    assert "mounted with flock" in caught.value.hint


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report"
    contents = [bytes([letter]) * 300_000 for letter in b"ab"]
    write_atomic(path, contents[0])
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomic(path, content)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        contents_read = {path.read_bytes() for _ in range(300)}
    finally:
        stop.set()
        thread.join()
    assert contents_read <= set(contents)
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_utf_8(tmp_path: Path) -> None:
    write_atomic(tmp_path / "report", "µs\n")
    assert (tmp_path / "report").read_bytes() == b"\xc2\xb5s\n"
