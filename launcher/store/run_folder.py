"""The run folder: its paths, its manifest and its plan. Only this room reads and writes its files."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import msgspec

from bench import records
from launcher.config.plan import FINAL, FINALISTS_PER_GROUP, Plan, repeat_index
from launcher.errors import UserError, read_version
from launcher.store.files import create_unique_folder, read_json, write_json
from launcher.store.revision import Revision, read_revision

FORMAT_VERSION = 1
"""Version of the run folder. A newer folder is refused by name; history in docs/RECORDS.md."""


class Manifest(msgspec.Struct, frozen=True):
    """The first file of a run folder, run.json."""

    format: int
    created: float
    command: list[str]
    revision: Revision
    program: str
    plan_id: str
    timing: int = 1
    """bench.records.TIMING of the program; older versions did not write it."""


class EarlierOptions(msgspec.Struct, frozen=True):
    """Options of earlier versions that decided which points a run measures, with the values that hold now."""

    finalists_per_group: int = FINALISTS_PER_GROUP


class _EarlierSpec(msgspec.Struct, frozen=True):
    search: EarlierOptions


class _EarlierPlan(msgspec.Struct, frozen=True):
    spec: _EarlierSpec


class RunFolder:
    """The paths of a run. Creates and opens the folder; reads its manifest and its plan.

    The other files have modules of their own: records_file, attempts, submissions, accounting, results_file.
    """

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
        """The RESULTS_EP{n}.json of the run. UserError if there is none yet."""
        files = sorted(file for file in self.path.glob("RESULTS_EP*.json") if file.stem.count(".") == 0)
        if not files:
            raise UserError(
                f"{self.path} has no RESULTS file yet",
                hint=f"python -m launcher.aggregate {shlex.quote(str(self.path))}",
            )
        return files[0]

    def shard(self, index: int) -> Path:
        """The folder of one shard, of the final, or of one of its repeats."""
        if index < FINAL:
            return self.shards / f"repeat-{FINAL - index}"
        return self.shards / ("final" if index == FINAL else f"{index:04d}")

    def indices(self, pattern: str) -> list[int]:
        """The indices of the shards, final and repeats with a file of this pattern, in the order of their names."""
        names = sorted({file.parent.name for file in self.shards.glob(f"*/{pattern}")})
        return [_index_of(name) for name in names]

    def records_file(self, index: int) -> Path:
        """The lines of one shard."""
        return self.shard(index) / "records.jsonl"

    def log_folder(self, index: int) -> Path:
        """Where the ranks of one shard write their stderr."""
        return self.shard(index) / "logs"

    @classmethod
    def create(cls, plan: Plan, *, outputs: Path, path: Path | None, command: list[str]) -> RunFolder:
        """A new folder: ``path``, or a unique one in ``outputs``. UserError if it cannot be made."""
        try:
            folder = cls(path or create_unique_folder(outputs))
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
            folder.shards.mkdir()  # fails where another sweep has taken the folder
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {path or outputs}: {error.strerror}", hint="outputs=FOLDER"
            ) from None
        folder.write_plan(plan)
        revision, program = read_revision(), read_version()
        write_json(
            folder.manifest_file,
            Manifest(FORMAT_VERSION, time.time(), command, revision, program, plan.id, records.TIMING),
        )
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing folder. UserError if it is not a run folder, or if a newer version wrote it."""
        folder = cls(path)
        if not folder.manifest_file.is_file():
            raise UserError(f"{path} is not a run folder: it has no run.json", hint="outputs/<time>-<id> is one")
        version = read_json(folder.manifest_file, dict[str, Any]).get("format")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(
                f"{path} has run folder format {version}, this program reads up to {FORMAT_VERSION}",
                hint="use the version of the program that wrote it (run.json names it), or a newer one",
            )
        return folder

    def manifest(self) -> Manifest:
        """The origin of the run: command, code and plan."""
        return read_json(self.manifest_file, Manifest)

    def earlier_options(self) -> EarlierOptions:
        """The options in plan.json that this version does not have any more."""
        return read_json(self.plan_file, _EarlierPlan).spec.search

    def plan(self) -> Plan:
        """The plan of the run."""
        return read_json(self.plan_file, Plan)

    def write_plan(self, plan: Plan) -> None:
        """Replaces plan.json."""
        write_json(self.plan_file, plan)


def _index_of(name: str) -> int:
    """The index of a folder in shards/."""
    if name.startswith("repeat-"):
        return repeat_index(int(name.removeprefix("repeat-")))
    return FINAL if name == "final" else int(name)
