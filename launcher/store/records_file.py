"""records.jsonl, the lines of one shard: one process appends, anybody reads."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from bench import records
from bench.records import Line, Record
from launcher.config.plan import FINAL, shard_name
from launcher.errors import UserError
from launcher.store import table
from launcher.store.files import Appender, open_locked
from launcher.store.run_folder import RunFolder
from launcher.store.table import RunRecords

_LARGE_BYTES = 64_000_000
"""A second reading process pays off from this size on."""

_READERS = 2


class Damaged(msgspec.Struct, frozen=True):
    """A line of a records file that cannot be decoded, and why. The other lines can."""

    file: str
    line: int
    why: str


class Progress(msgspec.Struct, frozen=True):
    """Ids of a shard's points that have a record, and the number of records that are failures."""

    done: frozenset[str]
    num_failed: int


@contextlib.contextmanager
def open_appender(folder: RunFolder, index: int) -> Iterator[Appender]:
    """The only writer of a shard's lines. UserError while another process writes them."""
    owner_file = folder.shard(index) / "owner"
    activity = f"{shard_name(index)} is being measured"
    with (
        open_locked(folder.records_file(index), os.O_APPEND, owner_file=owner_file, activity=activity) as descriptor,
        contextlib.closing(Appender(descriptor)) as appender,
    ):
        yield appender


def read_lines(folder: RunFolder) -> tuple[list[Line], list[Damaged]]:
    """Every line of every shard, in order of shard, and the damaged ones."""
    lines: list[Line] = []
    damaged: list[Damaged] = []
    for file in _files(folder):
        _read(folder, file, lines, damaged)
    return lines, damaged


def read_records(folder: RunFolder) -> tuple[RunRecords, list[Damaged]]:
    """The lines of every shard with the records as columns, and the damaged lines.

    Only one file's lines are in memory at a time. Two processes read a large run.
    """
    files = _files(folder)
    read = partial(_read_records, folder)
    if sum(file.stat().st_size for file in files) > _LARGE_BYTES:
        ends_on_ctrl_c = (signal.SIGINT, signal.SIG_DFL)  # the parent reports it
        with ProcessPoolExecutor(_READERS, initializer=signal.signal, initargs=ends_on_ctrl_c) as pool:
            parts = list(pool.map(read, files, chunksize=max(1, len(files) // (4 * _READERS))))
    else:
        parts = [read(file) for file in files]
    joined = table.concatenate([part.table for part, _ in parts])
    others = [line for part, _ in parts for line in part.others]
    return RunRecords(joined, others), [line for _, damaged in parts for line in damaged]


def read_shard(folder: RunFolder, index: int) -> list[Line]:
    """The lines of one shard, oldest first, without the damaged ones."""
    lines: list[Line] = []
    if folder.records_file(index).is_file():
        _read(folder, folder.records_file(index), lines, [])
    return lines


def read_shard_records(folder: RunFolder, index: int) -> list[Record]:
    """The records of one shard, oldest first, without the damaged ones."""
    return [line for line in read_shard(folder, index) if isinstance(line, Record)]


def read_sweep_records(folder: RunFolder) -> list[Record]:
    """The records of every shard except the final and its repeats, without the damaged ones."""
    lines, _ = read_lines(folder)
    return [line for line in lines if isinstance(line, Record) and line.shard > FINAL]


def read_progress(folder: RunFolder, index: int) -> Progress:
    """The progress of a shard. Does not decode the samples."""
    try:
        content = folder.records_file(index).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Progress(frozenset(), 0)
    briefs = [brief for line in content.split(b"\n") if (brief := _decode_brief(line)) is not None]
    return Progress(
        frozenset(brief.point_id for brief in briefs), sum(brief.outcome.kind == "failed" for brief in briefs)
    )


def refuse_packed(folder: RunFolder) -> None:
    """UserError if records are gzipped, as those of published runs are: they would count as missing."""
    packed = [file for file in folder.shards.glob("*/records.jsonl.gz") if not file.with_suffix("").exists()]
    if packed:
        raise UserError(
            f"the records of {folder.path} are packed: {packed[0].relative_to(folder.path)}",
            hint=f"gunzip --keep --recursive {shlex.quote(str(folder.path))}",
        )


def _files(folder: RunFolder) -> list[Path]:
    return sorted(folder.shards.glob("*/records.jsonl"))


def _read(folder: RunFolder, file: Path, lines: list[Line], damaged: list[Damaged]) -> None:
    """Adds the lines of a file to ``lines`` and ``damaged``."""
    content = file.read_bytes()
    undamaged = records.decode_all(content)
    if undamaged is not None:
        lines += undamaged
        return
    for number, text in enumerate(content.split(b"\n"), start=1):
        if not text:
            continue
        try:
            lines.append(records.decode(text))
        except records.NewerFormatError as error:
            raise UserError(
                f"{file} line {number}: {error}", hint="use the version of the program that wrote it"
            ) from None
        except ValueError as error:
            damaged.append(Damaged(str(file.relative_to(folder.path)), number, str(error)))


def _read_records(folder: RunFolder, file: Path) -> tuple[RunRecords, list[Damaged]]:
    lines: list[Line] = []
    damaged: list[Damaged] = []
    with table.without_gc():
        _read(folder, file, lines, damaged)
        return table.run_records(lines), damaged


class _Outcome(msgspec.Struct):
    kind: str


class _Brief(msgspec.Struct, tag="record", tag_field="type"):
    """The part of a record that shows progress. msgspec validates the rest of the line and skips it."""

    point_id: str
    outcome: _Outcome


_brief_decoder = msgspec.json.Decoder(_Brief)


def _decode_brief(line: bytes) -> _Brief | None:
    """None for lines of another type, and for torn lines: their points are measured again."""
    try:
        return _brief_decoder.decode(line)
    except msgspec.DecodeError:
        return None
