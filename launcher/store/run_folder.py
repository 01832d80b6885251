"""The run folder: the only module that reads or writes it. Records are appended, everything else is replaced whole."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import records
from bench.records import Line, Record
from launcher import read_version
from launcher.config.plan import FINAL, Plan, shard_name
from launcher.errors import UserError
from launcher.store import table
from launcher.store.files import Appender, decode, fresh, locked, write_atomic
from launcher.store.revision import Revision, revision
from launcher.store.table import RunRecords

FORMAT_VERSION = 1
"""Version of the run folder. A newer folder is refused by name; history in docs/RECORDS.md."""

_LARGE_BYTES = 64_000_000
"""From here on a second process pays off in reading records."""

_READERS = 2

_ENDED = {
    "spent": "spent its budget (search.budget_s; resume with a larger one) before its search was over",
    "stopped": "came to its time limit before its search was over",
    "terminated": "was ended before its search was over",
    "failed": "failed before its search was over",
    "": "is still at it, or was killed",
}
"""What became of a try that is not complete."""


class Manifest(msgspec.Struct, frozen=True):
    """The first file of a run folder, run.json."""

    format: int
    created: float
    command: list[str]
    revision: Revision
    program: str
    plan_id: str
    timing: int = 1
    """bench.records.TIMING of the program; 1 where an old one did not say it."""


class Damaged(msgspec.Struct, frozen=True):
    """A line of a records file that cannot be read, and why; the rest of the file can."""

    file: str
    line: int
    why: str


class Submission(msgspec.Struct, frozen=True):
    """One sbatch: an array of shards (task i measures ``shards[i]``), or the aggregate."""

    kind: str
    array_id: str
    shards: list[int]
    submitted: float

    def job_of(self, position: int) -> str:
        """The id of the job at a position of ``shards``; an array of one is a plain job."""
        return f"{self.array_id}_{position}" if len(self.shards) > 1 else self.array_id

    @property
    def jobs(self) -> list[str]:
        """The ids of all its jobs."""
        return [self.job_of(position) for position in range(max(len(self.shards), 1))]


class Jobs(msgspec.Struct, frozen=True):
    """Every submission of a run, resumes included, oldest first."""

    submissions: list[Submission] = []


class Attempt(msgspec.Struct, frozen=True):
    """One try at a shard: complete, stopped (time limit), spent (budget), terminated, failed; None if it just died."""

    job_id: str | None
    host: str
    began: float
    ended: float | None = None
    outcome: str | None = None
    num_gpus: int = 0
    num_repetitions: int | None = msgspec.field(default=None, name="num_visits")
    """Records it made other than anchors, None if nobody counted."""


_FAILED = "failed"


@dataclass
class Stamp:
    """How a try ends, for whoever is at it to say; failed unless somebody says something else."""

    write: Callable[[Stamp], None]
    outcome: str = _FAILED
    num_repetitions: int | None = None

    def terminate(self) -> None:
        """Stamps the end at once: whoever ended the try may not wait until all has been cleared away."""
        if self.outcome == _FAILED:
            self.outcome = "terminated"
        self.write(self)


class Accounting(msgspec.Struct, frozen=True):
    """What the run cost, and who says so."""

    gpu_hours: float
    source: str


class Progress(msgspec.Struct, frozen=True):
    """Ids of a shard's points that have a record, and how many of its records are failures."""

    done: frozenset[str]
    num_failed: int


class _Kind(msgspec.Struct):
    kind: str


class _Brief(msgspec.Struct, tag="record", tag_field="type"):
    """The part of a record that tells how far a shard is; msgspec checks the rest of the line, and skips it."""

    point_id: str
    outcome: _Kind


_brief_decoder = msgspec.json.Decoder(_Brief)


def _brief(line: bytes) -> _Brief | None:
    """None for lines of another type, and for torn ones: what was half written has to be measured again."""
    try:
        return _brief_decoder.decode(line)
    except msgspec.DecodeError:
        return None


class RunFolder:
    """Every path of a run, and every access to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_file = path / "run.json"
        self.plan_file = path / "plan.json"
        self.report_file = path / "OPTIMAL_CONFIGS.md"
        self.shards = path / "shards"

        self.jobs_file = path / "jobs.json"
        self.accounting_file = path / "accounting.json"
        self.slurm = path / "slurm"
        self.code = path / "code"

    def results_file(self, num_ranks: int) -> Path:
        """RESULTS_EP{n}.json."""
        return self.path / f"RESULTS_EP{num_ranks}.json"

    def written_results(self) -> Path:
        """The RESULTS_EP{n}.json that is there; UserError without one."""
        found = sorted(file for file in self.path.glob("RESULTS_EP*.json") if file.stem.count(".") == 0)
        if not found:
            raise UserError(
                f"{self.path} has no RESULTS file yet",
                hint=f"python -m launcher.aggregate {shlex.quote(str(self.path))}",
            )
        return found[0]

    def shard(self, index: int) -> Path:
        """The folder of one shard."""
        return self.shards / ("final" if index == FINAL else f"{index:04d}")

    def records_file(self, index: int) -> Path:
        """The lines of one shard."""
        return self.shard(index) / "records.jsonl"

    def log_folder(self, index: int) -> Path:
        """Where the ranks of one shard write their stderr."""
        return self.shard(index) / "logs"

    @classmethod
    def create(cls, plan: Plan, *, outputs: Path, path: Path | None, command: list[str]) -> RunFolder:
        """A new folder that no other sweep has, even one of the same second; UserError if it cannot be made."""
        try:
            folder = cls(path or fresh(outputs))
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
            folder.shards.mkdir()
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {path or outputs}: {error.strerror}", hint="outputs=FOLDER"
            ) from None
        folder.write_plan(plan)
        manifest = Manifest(FORMAT_VERSION, time.time(), command, revision(), read_version(), plan.id, records.TIMING)
        write_atomic(folder.manifest_file, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing folder; UserError when it is none, or was written by a newer version."""
        folder = cls(path)
        if not folder.manifest_file.is_file():
            raise UserError(f"{path} is no run folder: it has no run.json", hint="outputs/<time>-<id> is one")
        written = decode(folder.manifest_file, dict[str, Any]).get("format")
        if isinstance(written, int) and written > FORMAT_VERSION:
            raise UserError(
                f"{path} has run folder format {written}, this program reads up to {FORMAT_VERSION}",
                hint="use the version of the program that wrote it, named in run.json, or a newer one",
            )
        return folder

    def write_plan(self, plan: Plan) -> None:
        """What is to be measured, and in how long."""
        write_atomic(self.plan_file, msgspec.json.format(msgspec.json.encode(plan), indent=1))

    def manifest(self) -> Manifest:
        """Where the run came from."""
        return decode(self.manifest_file, Manifest)

    def plan(self) -> Plan:
        """What was to be measured."""
        return decode(self.plan_file, Plan)

    def lines(self) -> tuple[list[Line], list[Damaged]]:
        """Every readable line of every shard, in order of shard, and what was not readable."""
        found: list[Line] = []
        damaged: list[Damaged] = []
        for file in sorted(self.shards.glob("*/records.jsonl")):
            self._read(file, found, damaged)
        return found, damaged

    def evidence(self) -> tuple[RunRecords, list[Damaged]]:
        """The same with the records as columns, one file's lines in memory at a time; large runs on two processes."""
        files = sorted(self.shards.glob("*/records.jsonl"))
        if sum(file.stat().st_size for file in files) > _LARGE_BYTES:
            ends_on_ctrl_c = (signal.SIGINT, signal.SIG_DFL)  # the parent reports it
            with ProcessPoolExecutor(_READERS, initializer=signal.signal, initargs=ends_on_ctrl_c) as pool:
                parts = list(pool.map(self._evidence_of, files, chunksize=max(1, len(files) // (4 * _READERS))))
        else:
            parts = [self._evidence_of(file) for file in files]
        joined = table.concatenated([part.table for part, _ in parts])
        others = [line for part, _ in parts for line in part.others]
        return RunRecords(joined, others), [line for _, damaged in parts for line in damaged]

    def _evidence_of(self, file: Path) -> tuple[RunRecords, list[Damaged]]:
        found: list[Line] = []
        damaged: list[Damaged] = []
        with table.without_gc():
            self._read(file, found, damaged)
            return table.run_records(found), damaged

    def shard_lines(self, index: int) -> list[Line]:
        """The readable lines of one shard."""
        found: list[Line] = []
        if self.records_file(index).is_file():
            self._read(self.records_file(index), found, [])
        return found

    def shard_records(self, index: int) -> list[Record]:
        """The readable records of one shard, oldest first."""
        return [line for line in self.shard_lines(index) if isinstance(line, Record)]

    def sweep_records(self) -> list[Record]:
        """The readable records of every shard, those of the final left out."""
        lines, _ = self.lines()
        return [line for line in lines if isinstance(line, Record) and line.shard != FINAL]

    def _read(self, file: Path, found: list[Line], damaged: list[Damaged]) -> None:
        content = file.read_bytes()
        whole = records.decode_all(content)
        if whole is not None:
            found += whole
            return
        for number, text in enumerate(content.split(b"\n"), start=1):
            if not text:
                continue
            try:
                found.append(records.decode(text))
            except records.NewerFormatError as error:
                raise UserError(
                    f"{file} line {number}: {error}", hint="use the version of the program that wrote it"
                ) from None
            except ValueError as error:
                damaged.append(Damaged(str(file.relative_to(self.path)), number, str(error)))

    def progress(self, index: int) -> Progress:
        """How far a shard is, without decoding its samples."""
        try:
            content = self.records_file(index).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return Progress(frozenset(), 0)
        found = [brief for line in content.split(b"\n") if (brief := _brief(line)) is not None]
        return Progress(
            frozenset(brief.point_id for brief in found), sum(brief.outcome.kind == "failed" for brief in found)
        )

    def jobs(self) -> Jobs:
        """What was submitted so far."""
        return decode(self.jobs_file, Jobs) if self.jobs_file.is_file() else Jobs()

    def note_submission(self, submission: Submission) -> None:
        """Adds to jobs.json."""
        jobs = Jobs([*self.jobs().submissions, submission])
        write_atomic(self.jobs_file, msgspec.json.format(msgspec.json.encode(jobs), indent=1))

    @contextlib.contextmanager
    def stamped(self, index: int, *, job_id: str | None = None, num_gpus: int = 0) -> Iterator[Stamp]:
        """A try at a shard: when it began, and however it ends, when and how it ended."""
        begun = Attempt(job_id, socket.gethostname(), time.time(), num_gpus=num_gpus)
        number = self.begin_attempt(index, begun)

        def write(stamp: Stamp) -> None:
            ended = msgspec.structs.replace(
                begun, ended=time.time(), outcome=stamp.outcome, num_repetitions=stamp.num_repetitions
            )
            self.end_attempt(index, number, ended)

        stamp = Stamp(write)
        try:
            yield stamp
        except (SystemExit, KeyboardInterrupt):
            stamp.terminate()
            raise
        finally:
            write(stamp)

    def refuse_packed(self) -> None:
        """UserError where the records are there but packed, as those of published runs: they would count as missing."""
        packed = [file for file in self.shards.glob("*/records.jsonl.gz") if not file.with_suffix("").exists()]
        if packed:
            raise UserError(
                f"the records of {self.path} are packed: {packed[0].relative_to(self.path)}",
                hint=f"gunzip --keep {shlex.quote(str(self.shards))}/*/records.jsonl.gz",
            )

    def unfinished(self) -> dict[int, str]:
        """A sentence for each shard, and the final, whose last try did not come to its end."""
        names = sorted({file.parent.name for file in self.shards.glob("*/attempt-*.json")})
        indices = [FINAL if name == "final" else int(name) for name in names]
        last = {index: self.attempts_of(index)[-1].outcome for index in indices}
        return {
            index: f"{shard_name(index).capitalize()} {_ENDED.get(outcome or '', _ENDED[''])}."
            for index, outcome in last.items()
            if outcome != "complete"
        }

    def begin_attempt(self, index: int, attempt: Attempt) -> int:
        """Stamps the start of a try at a shard; its number."""
        self.shard(index).mkdir(parents=True, exist_ok=True)
        number = len(list(self.shard(index).glob("attempt-*.json")))
        self.end_attempt(index, number, attempt)
        return number

    def end_attempt(self, index: int, number: int, attempt: Attempt) -> None:
        """Replaces the stamp of a try."""
        write_atomic(self.shard(index) / f"attempt-{number}.json", msgspec.json.encode(attempt))

    def attempts(self) -> list[Attempt]:
        """Every try at every shard."""
        return [decode(file, Attempt) for file in sorted(self.shards.glob("*/attempt-*.json"))]

    def attempts_of(self, index: int) -> list[Attempt]:
        """Every try at one shard, oldest first."""
        files = sorted(self.shard(index).glob("attempt-*.json"), key=lambda file: int(file.stem.partition("-")[2]))
        return [decode(file, Attempt) for file in files]

    def accounting(self) -> Accounting | None:
        """What the run cost, None before anybody noted it."""
        return decode(self.accounting_file, Accounting) if self.accounting_file.is_file() else None

    def note_accounting(self, accounting: Accounting) -> None:
        """Replaces accounting.json."""
        write_atomic(self.accounting_file, msgspec.json.encode(accounting))

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """Only one process at a time submits jobs of a run; UserError names the other."""
        descriptor = os.open(self.path / "submit.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with locked(descriptor, self.path / "submit.owner", what=f"the jobs of {self.path} are being submitted"):
                yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def appender(self, index: int) -> Iterator[Appender]:
        """The one writer of a shard's records; UserError while another process is writing them."""
        self.shard(index).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.records_file(index), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with (
                locked(descriptor, self.shard(index) / "owner", what=f"{shard_name(index)} is being measured"),
                contextlib.closing(Appender(descriptor)) as appender,
            ):
                yield appender
        finally:
            os.close(descriptor)
