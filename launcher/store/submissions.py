"""jobs.json: what a run submitted to Slurm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from launcher.store.files import open_locked, read_json, write_json
from launcher.store.run_folder import RunFolder


class Submission(msgspec.Struct, frozen=True):
    """One sbatch: an array of shards (task i measures ``shards[i]``), the final, or the aggregate."""

    kind: str
    array_id: str
    shards: list[int]
    submitted: float

    def job_of(self, position: int) -> str:
        """The id of the job that measures ``shards[position]``. An array of one is a plain job."""
        return f"{self.array_id}_{position}" if len(self.shards) > 1 else self.array_id

    @property
    def jobs(self) -> list[str]:
        """The ids of all its jobs."""
        return [self.job_of(position) for position in range(max(len(self.shards), 1))]


class _JobsFile(msgspec.Struct, frozen=True):
    submissions: list[Submission] = []


def read_submissions(folder: RunFolder) -> list[Submission]:
    """Every submission of a run, resumes included, oldest first."""
    return read_json(folder.jobs_file, _JobsFile).submissions if folder.jobs_file.is_file() else []


def add_submission(folder: RunFolder, submission: Submission) -> None:
    """Adds one to jobs.json."""
    write_json(folder.jobs_file, _JobsFile([*read_submissions(folder), submission]))


@contextlib.contextmanager
def lock_submissions(folder: RunFolder) -> Iterator[None]:
    """Lets one process at a time submit jobs of a run. UserError names the other process."""
    file, owner_file = folder.path / "submit.lock", folder.path / "submit.owner"
    with open_locked(file, 0, owner_file=owner_file, activity=f"the jobs of {folder.path} are being submitted"):
        yield
