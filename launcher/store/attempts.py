"""attempt-N.json, one file for each try at a shard by one job: when it ran, where, and how it ended."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.config.plan import shard_name
from launcher.store.files import read_json, write_atomic
from launcher.store.run_folder import RunFolder

_FAILED = "failed"

_ENDINGS = {
    "spent": "spent search.budget_s before its search was complete; resume with a larger one",
    "stopped": "reached its time limit before its search was complete",
    "terminated": "was terminated before its search was complete",
    _FAILED: "failed before its search was complete",
    None: "is still running, or was killed",
}
"""What the report says of a shard whose last attempt is not complete, by its outcome."""


class Attempt(msgspec.Struct, frozen=True):
    """One try at a shard by one job.

    ``outcome`` is complete, stopped (time limit), spent (budget), terminated or failed. It is None, as is ``ended``,
    while the attempt runs, and for good if the job was killed.
    """

    job_id: str | None
    host: str
    began: float
    ended: float | None = None
    outcome: str | None = None
    num_gpus: int = 0
    num_repetitions: int | None = msgspec.field(default=None, name="num_visits")
    """Its records other than anchors; None if the attempt did not count them."""


@dataclass
class OpenAttempt:
    """An attempt in progress. Set ``outcome`` before it ends; without that it counts as failed."""

    file: Path
    start: Attempt
    outcome: str = _FAILED
    num_repetitions: int | None = None

    def terminate(self) -> None:
        """Writes the end at once, as terminated unless an outcome is set: SIGKILL may follow before any cleanup."""
        if self.outcome == _FAILED:
            self.outcome = "terminated"
        self.write_end()

    def write_end(self) -> None:
        """Replaces the attempt's file by one with its end and outcome."""
        end = msgspec.structs.replace(
            self.start, ended=time.time(), outcome=self.outcome, num_repetitions=self.num_repetitions
        )
        write_atomic(self.file, msgspec.json.encode(end))


@contextlib.contextmanager
def begin_attempt(
    folder: RunFolder, index: int, *, job_id: str | None = None, num_gpus: int = 0
) -> Iterator[OpenAttempt]:
    """Writes the start of an attempt now, and its end when the block ends, however it ends."""
    start = Attempt(job_id, socket.gethostname(), time.time(), num_gpus=num_gpus)
    attempt = OpenAttempt(add_attempt(folder, index, start), start)
    try:
        yield attempt
    except (SystemExit, KeyboardInterrupt):
        attempt.terminate()
        raise
    finally:
        attempt.write_end()


def add_attempt(folder: RunFolder, index: int, attempt: Attempt) -> Path:
    """Writes one more attempt at a shard; its file."""
    shard = folder.shard(index)
    shard.mkdir(parents=True, exist_ok=True)
    file = shard / f"attempt-{len(list(shard.glob('attempt-*.json')))}.json"
    write_atomic(file, msgspec.json.encode(attempt))
    return file


def read_attempts(folder: RunFolder) -> list[Attempt]:
    """Every attempt at every shard."""
    return [read_json(file, Attempt) for file in sorted(folder.shards.glob("*/attempt-*.json"))]


def read_shard_attempts(folder: RunFolder, index: int) -> list[Attempt]:
    """Every attempt at one shard, oldest first."""
    files = folder.shard(index).glob("attempt-*.json")
    return [read_json(file, Attempt) for file in sorted(files, key=lambda file: int(file.stem.partition("-")[2]))]


def find_unfinished(folder: RunFolder) -> dict[int, str]:
    """A sentence for each shard, the final and its repeats, whose last attempt is not complete."""
    indices = folder.indices("attempt-*.json")
    last = {index: read_shard_attempts(folder, index)[-1].outcome for index in indices}
    return {
        index: f"{shard_name(index).capitalize()} {_ENDINGS.get(outcome, _ENDINGS[None])}."
        for index, outcome in last.items()
        if outcome != "complete"
    }
