"""The run folder: the only module that reads or writes it. Records are appended, everything else is replaced whole."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench import records
from bench.records import Line
from launcher.errors import UserError
from launcher.plan import Plan

T = TypeVar("T")

FORMAT_VERSION = 1
"""Version of the run folder. A newer folder is refused by name; history in docs/RECORDS.md."""


class Revision(msgspec.Struct, frozen=True):
    """The code that ran: its commit, and whether files differed from it. Both None outside a git checkout."""

    commit: str | None
    dirty: bool | None


class Manifest(msgspec.Struct, frozen=True):
    """The first file of a run folder, run.json."""

    format: int
    created: float
    command: list[str]
    revision: Revision
    program: str
    plan_id: str


class Damaged(msgspec.Struct, frozen=True):
    """A line of a records file that cannot be read, and why; the rest of the file can."""

    file: str
    line: int
    why: str


class RunFolder:
    """Every path of a run, and every access to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_file = path / "run.json"
        self.plan_file = path / "plan.json"
        self.report_file = path / "OPTIMAL_CONFIGS.md"
        self.shards = path / "shards"

    def results_file(self, num_ranks: int) -> Path:
        """RESULTS_EP{n}.json."""
        return self.path / f"RESULTS_EP{num_ranks}.json"

    def shard(self, index: int) -> Path:
        """The folder of one shard."""
        return self.shards / f"{index:04d}"

    def records_file(self, index: int) -> Path:
        """The lines of one shard."""
        return self.shard(index) / "records.jsonl"

    def log_folder(self, index: int) -> Path:
        """Where the ranks of one shard write their stderr."""
        return self.shard(index) / "logs"

    @classmethod
    def create(cls, plan: Plan, *, outputs: Path, path: Path | None, command: list[str]) -> RunFolder:
        """A new folder that no other sweep has, even one of the same second; UserError if it cannot be made."""
        folder = cls(path or _fresh(outputs))
        try:
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
            folder.shards.mkdir()
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {folder.path}: {error.strerror}", hint="outputs=FOLDER"
            ) from None
        write_atomic(folder.plan_file, msgspec.json.format(msgspec.json.encode(plan), indent=1))
        manifest = Manifest(FORMAT_VERSION, time.time(), command, revision(), _version(), plan.id)
        write_atomic(folder.manifest_file, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing folder; UserError when it is none, or was written by a newer version."""
        folder = cls(path)
        if not folder.manifest_file.is_file():
            raise UserError(f"{path} is no run folder: it has no run.json", hint="outputs/<time>-<id> is one")
        written = _decode(folder.manifest_file, dict[str, Any]).get("format")
        if isinstance(written, int) and written > FORMAT_VERSION:
            raise UserError(
                f"{path} has run folder format {written}, this program reads up to {FORMAT_VERSION}",
                hint="use the version of the program that wrote it, named in run.json, or a newer one",
            )
        return folder

    def manifest(self) -> Manifest:
        """Where the run came from."""
        return _decode(self.manifest_file, Manifest)

    def plan(self) -> Plan:
        """What was to be measured."""
        return _decode(self.plan_file, Plan)

    def lines(self) -> tuple[list[Line], list[Damaged]]:
        """Every readable line of every shard, in order of shard, and what was not readable."""
        found: list[Line] = []
        damaged: list[Damaged] = []
        for file in sorted(self.shards.glob("*/records.jsonl")):
            self._read(file, found, damaged)
        return found, damaged

    def shard_lines(self, index: int) -> list[Line]:
        """The readable lines of one shard."""
        found: list[Line] = []
        if self.records_file(index).is_file():
            self._read(self.records_file(index), found, [])
        return found

    def _read(self, file: Path, found: list[Line], damaged: list[Damaged]) -> None:
        for number, text in enumerate(file.read_bytes().split(b"\n"), start=1):
            if not text:
                continue
            try:
                found.append(records.decode(text))
            except records.NewerFormat as error:
                raise UserError(
                    f"{file} line {number}: {error}", hint="use the version of the program that wrote it"
                ) from None
            except ValueError as error:
                damaged.append(Damaged(str(file.relative_to(self.path)), number, str(error)))

    @contextlib.contextmanager
    def appender(self, index: int) -> Iterator[Appender]:
        """The one writer of a shard's records; UserError while another process is writing them."""
        self.shard(index).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.records_file(index), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with _locked(descriptor, self.shard(index) / "owner"):
                yield Appender(descriptor)
        finally:
            os.close(descriptor)


class Appender:
    """Adds lines to one file, one write and one fsync each: a killed job loses at most the point in flight."""

    def __init__(self, descriptor: int) -> None:
        """A torn last line of an earlier writer is closed, so that the next line starts on its own."""
        self._descriptor = descriptor
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")

    def add(self, line: Line) -> None:
        """Appends one line."""
        os.write(self._descriptor, records.encode(line) + b"\n")
        os.fsync(self._descriptor)


@contextlib.contextmanager
def _locked(descriptor: int, owner: Path) -> Iterator[None]:
    """Holds the file's lock; ``owner`` says who does, for people."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = owner.read_text().strip() if owner.is_file() else "another process"
        raise UserError(
            f"the shard in {owner.parent} is being measured by {who}", hint="wait for it, or end it"
        ) from None
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replaces a file so that a reader sees the old one or the new one, never half of either."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def revision() -> Revision:
    """The commit of this source tree, None for both when it is not a git checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return Revision(None, None)
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return Revision(None, None)
    return Revision(commit, dirty)


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(root), *args], check=True, capture_output=True, text=True).stdout.strip()


def _fresh(outputs: Path) -> Path:
    outputs.mkdir(parents=True, exist_ok=True)
    while True:
        path = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def _decode(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(
            f"{file} cannot be read: {error}", hint="it was not written by this program, or changed"
        ) from None


def _version() -> str:
    try:
        return importlib.metadata.version("deepep-sweep")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
