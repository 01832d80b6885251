"""Talks to Slurm: submits through submitit, asks squeue and sacct, cancels. No decision is made here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator

import msgspec

from launcher.errors import UserError

_QUERY_TIMEOUT_S = 30
_FALLBACK_ARRAY_SIZE = 1000
_FIELDS = "%i|%T|%N|%r"

ENDED = {
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "CANCELLED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "NODE_FAIL",
    "PREEMPTED",
    "REVOKED",
}
"""Slurm's words for a job that is over. Of one that is requeued squeue says PENDING, and never PREEMPTED."""


class JobState(msgspec.Struct, frozen=True):
    """What Slurm says of one job: its state in capitals, where it runs or ran, and why it waits (squeue's %r)."""

    state: str
    nodes: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in ENDED


class SlurmSilentError(UserError):
    """The controller does not answer: nothing follows from that for any job."""

    def __init__(self) -> None:
        super().__init__("Slurm does not answer", hint="is the controller up? scontrol ping")


def available() -> bool:
    """Whether sbatch is on PATH."""
    return shutil.which("sbatch") is not None


def require() -> None:
    """UserError where there is no Slurm."""
    if not available():
        raise UserError(
            "hydra/launcher=submitit_slurm needs sbatch on PATH, and there is none",
            hint="run on a login node, or use hydra/launcher=submitit_local or the basic launcher",
        )


def max_array_size() -> int:
    """How many tasks one array may have here."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _asked("scontrol", "show", "config") or "", re.MULTILINE)
    return max(int(match[1]), 1) if match else _FALLBACK_ARRAY_SIZE  # 0 allows no arrays: then one job each


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """What Slurm knows of each of these jobs and array tasks (``12`` and ``12_3``); nothing of those that it forgot.

    squeue first: it knows the living, and the dead for MinJobAge; sacct, where there is one, for the rest.
    SlurmSilentError when the controller does not answer.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    found = _from_squeue({_array(job) for job in wanted})
    forgotten = {_array(job) for job in wanted - found.keys()}
    if forgotten:
        found = _from_sacct(forgotten) | found
    return {job: found[job] for job in wanted & found.keys()}


def alive(arrays: Iterable[str]) -> list[str]:
    """The jobs and array tasks of these arrays that are not over. SlurmSilentError when Slurm does not answer."""
    wanted = set(arrays)
    return sorted(job for job, one in (_from_squeue(wanted) if wanted else {}).items() if not one.is_over)


def _array(job: str) -> str:
    return job.partition("_")[0]


def _from_squeue(arrays: set[str]) -> dict[str, JobState]:
    found = {}
    out = _asked("squeue", "-h", "-r", "-t", "all", "-o", _FIELDS, "-j", ",".join(sorted(arrays)))
    if out is None:  # one id that squeue has forgotten makes it refuse them all
        out = _asked("squeue", "-h", "-r", "-t", "all", "--me", "-o", _FIELDS)
    if out is None:
        raise SlurmSilentError
    for line in out.splitlines():
        job, state, nodes, reason = line.split("|", 3)
        if _array(job) in arrays:
            found[job] = JobState(state, nodes, reason)
    return found


def _from_sacct(arrays: set[str]) -> dict[str, JobState]:
    out = _asked("sacct", "-X", "-n", "-P", "-o", "JobID,State,NodeList", "-j", ",".join(sorted(arrays))) or ""
    found = {}
    for line in out.splitlines():
        job, state, nodes = line.split("|", 2)
        if "[" not in job:
            found[job] = JobState(state.split()[0] if state else "UNKNOWN", nodes)
    return found


class NodeState(msgspec.Struct, frozen=True):
    """What sinfo says of a node: its state in small letters without marks, and the reason that somebody gave."""

    name: str
    state: str
    reason: str


def nodes(partition: str | None = None) -> dict[str, NodeState]:
    """Every node that Slurm knows (of a partition), by name. UserError when Slurm does not answer."""
    chosen = ["-p", partition] if partition else []
    out = _asked("sinfo", "-h", "-N", "-o", "%N|%T|%E", *chosen)
    if out is None:
        raise UserError("sinfo does not answer", hint="is the Slurm controller up? scontrol ping")
    found = {}
    for line in out.splitlines():
        name, state, reason = line.split("|", 2)
        found[name] = NodeState(name, re.sub(r"[^a-z]", "", state.lower()), "" if reason == "none" else reason)
    return found


def reserved_nodes(reservation: str) -> str:
    """The host list of a reservation. UserError when there is none of this name."""
    out = _asked("scontrol", "show", "reservation", reservation) or ""
    match = re.search(r"\bNodes=(\S+)", out)
    if not match or match[1] == "(null)":
        raise UserError(f"no nodes are reserved as {reservation}", hint="scontrol show reservation lists them")
    return match[1]


def gpu_seconds(arrays: Iterable[str]) -> float | None:
    """GPU-seconds of these jobs by Slurm's accounting, every requeue counted.

    None without accounting, and where it tracks no GPUs (AccountingStorageTRES lacks gres/gpu).
    """
    out = _asked(
        "sacct", "-X", "-n", "-P", "-D", "-o", "JobID,State,ElapsedRaw,AllocTRES", "-j", ",".join(sorted(set(arrays)))
    )
    if not out:
        return None
    return gpu_seconds_of(out)


def gpu_seconds_of(accounts: str) -> float | None:
    """Of sacct's lines JobID|State|ElapsedRaw|AllocTRES; None where no line has a GPU, typed or not."""
    total = None
    for line in accounts.splitlines():
        _, _, elapsed, tres = line.split("|", 3)
        given = {name: int(number) for name, number in re.findall(r"gres/gpu(:[^=,]+)?=(\d+)", tres)}
        if given:
            total = (total or 0.0) + int(elapsed or 0) * given.get("", sum(given.values()))
    return total


def cancel(arrays: Iterable[str]) -> bool:
    """Cancels whole arrays; whether Slurm took it, with a line that says what is left to do where it did not."""
    wanted = sorted(set(arrays))
    if not wanted or _asked("scancel", *wanted) is not None:
        return True
    print(f"Slurm does not answer, so the jobs may go on; cancel them: scancel {' '.join(wanted)}", file=sys.stderr)
    return False


def _asked(*command: str) -> str | None:
    """What a Slurm command prints; None when it fails, is missing, or does not answer."""
    with clean_environment():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
    return done.stdout if done.returncode == 0 else None


def withdraw(job: str) -> bool:
    """Cancels one job that has not begun; whether it is cancelled now. SlurmSilentError when Slurm does not answer."""
    _asked("scancel", "--state=PENDING", job)
    found = states([job]).get(job)
    return found is not None and found.state == "CANCELLED"


_OPTIONS = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Without the variables that Slurm's commands read as options: they would go before the options of the script.

    A surrounding job leaves some, and so do people's profiles; sbatch would pass them on to the jobs and their srun.
    """
    removed = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(_OPTIONS) and key != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(removed)
