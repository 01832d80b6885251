"""Queries Slurm's commands and cancels jobs. Makes no decision."""

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
"""States of a job that is over. squeue shows a job that is requeued after preemption as PENDING, never as PREEMPTED."""

_QUERY_TIMEOUT_S = 30
_FALLBACK_ARRAY_SIZE = 1000
_FIELDS = "%i|%T|%N|%r"

_OPTIONS = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")
"""Prefixes of environment variables that Slurm's commands read as options."""


class JobState(msgspec.Struct, frozen=True):
    """One job in Slurm: its state in capitals, its nodes, and why it waits (squeue's %r)."""

    state: str
    nodes: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state in ENDED


class NodeState(msgspec.Struct, frozen=True):
    """One node in sinfo: its state in lower case without marks, and the reason set for it."""

    name: str
    state: str
    reason: str


class SlurmSilentError(UserError):
    """The controller does not answer. Nothing follows from that about any job."""

    def __init__(self) -> None:
        super().__init__("Slurm does not answer", hint="is the controller up? scontrol ping")


def is_available() -> bool:
    """Whether sbatch is on PATH."""
    return shutil.which("sbatch") is not None


def require() -> None:
    """UserError without Slurm."""
    if not is_available():
        raise UserError(
            "hydra/launcher=submitit_slurm needs sbatch on PATH, and there is none",
            hint="run on a login node, or use hydra/launcher=submitit_local or the basic launcher",
        )


def query_max_array_size() -> int:
    """The number of tasks that one array may have here."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _query("scontrol", "show", "config") or "", re.MULTILINE)
    return max(int(match[1]), 1) if match else _FALLBACK_ARRAY_SIZE  # 0 forbids arrays: then one job for each shard


def query_jobs(jobs: Iterable[str]) -> dict[str, JobState]:
    """The states of these jobs and array tasks (``12`` and ``12_3``), without those that Slurm has forgotten.

    squeue knows the jobs that live, and others for MinJobAge after their end; sacct, if there is one, knows the rest.
    SlurmSilentError if the controller does not answer.
    """
    ids = set(jobs)
    if not ids:
        return {}
    states = _from_squeue({_array(job) for job in ids})
    forgotten = {_array(job) for job in ids - states.keys()}
    if forgotten:
        states = _from_sacct(forgotten) | states
    return {job: states[job] for job in ids & states.keys()}


def try_query_jobs(jobs: Iterable[str]) -> tuple[dict[str, JobState], bool]:
    """As ``query_jobs``, and False; no state, and True, if the controller does not answer."""
    try:
        return query_jobs(jobs), False
    except SlurmSilentError:
        return {}, True


def query_alive(arrays: Iterable[str]) -> list[str]:
    """The jobs and array tasks of these arrays that are not over. SlurmSilentError if Slurm does not answer."""
    ids = set(arrays)
    states = _from_squeue(ids) if ids else {}
    return sorted(job for job, state in states.items() if not state.is_over)


def query_nodes(partition: str | None = None) -> dict[str, NodeState]:
    """Every node of the cluster, or of a partition, by name. UserError if Slurm does not answer."""
    option = ["-p", partition] if partition else []
    output = _query("sinfo", "-h", "-N", "-o", "%N|%T|%E", *option)
    if output is None:
        raise UserError("sinfo does not answer", hint="is the Slurm controller up? scontrol ping")
    nodes = {}
    for line in output.splitlines():
        name, state, reason = line.split("|", 2)
        nodes[name] = NodeState(name, re.sub(r"[^a-z]", "", state.lower()), "" if reason == "none" else reason)
    return nodes


def query_reservation(reservation: str) -> str:
    """The host list of a reservation. UserError if there is none of this name."""
    output = _query("scontrol", "show", "reservation", reservation) or ""
    match = re.search(r"\bNodes=(\S+)", output)
    if not match or match[1] == "(null)":
        raise UserError(f"no nodes are reserved as {reservation}", hint="scontrol show reservation lists them")
    return match[1]


def query_gpu_seconds(arrays: Iterable[str]) -> float | None:
    """GPU-seconds of these jobs in Slurm's accounting, every requeue included.

    None without accounting, or if it tracks no GPUs (AccountingStorageTRES lacks gres/gpu).
    """
    fields = "JobID,State,ElapsedRaw,AllocTRES"
    output = _query("sacct", "-X", "-n", "-P", "-D", "-o", fields, "-j", ",".join(sorted(set(arrays))))
    return sum_gpu_seconds(output) if output else None


def sum_gpu_seconds(accounts: str) -> float | None:
    """GPU-seconds of sacct's lines JobID|State|ElapsedRaw|AllocTRES; None if no line has a GPU, typed or not."""
    total = None
    for line in accounts.splitlines():
        _, _, elapsed, tres = line.split("|", 3)
        gpus = {kind: int(number) for kind, number in re.findall(r"gres/gpu(:[^=,]+)?=(\d+)", tres)}
        if gpus:
            total = (total or 0.0) + int(elapsed or 0) * gpus.get("", sum(gpus.values()))
    return total


def cancel(arrays: Iterable[str]) -> bool:
    """Cancels whole arrays; whether Slurm took it. Without an answer it prints the command that is left to do."""
    ids = sorted(set(arrays))
    if not ids or _query("scancel", *ids) is not None:
        return True
    print(f"Slurm does not answer, so the jobs may go on; cancel them: scancel {' '.join(ids)}", file=sys.stderr)
    return False


def withdraw(job: str) -> bool:
    """Cancels a job that has not begun; whether it is cancelled now. SlurmSilentError if Slurm does not answer."""
    _query("scancel", "--state=PENDING", job)
    state = query_jobs([job]).get(job)
    return state is not None and state.state == "CANCELLED"


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Hides the environment variables that Slurm's commands read as options: they override those of a script.

    A surrounding job sets some, and so do profiles; sbatch would also pass them on to the jobs and their srun.
    """
    removed = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(_OPTIONS) and key != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(removed)


def _array(job: str) -> str:
    return job.partition("_")[0]


def _from_squeue(arrays: set[str]) -> dict[str, JobState]:
    output = _query("squeue", "-h", "-r", "-t", "all", "-o", _FIELDS, "-j", ",".join(sorted(arrays)))
    if output is None:  # squeue refuses the whole list for one id that it has forgotten
        output = _query("squeue", "-h", "-r", "-t", "all", "--me", "-o", _FIELDS)
    if output is None:
        raise SlurmSilentError
    states = {}
    for line in output.splitlines():
        job, state, nodes, reason = line.split("|", 3)
        if _array(job) in arrays:
            states[job] = JobState(state, nodes, reason)
    return states


def _from_sacct(arrays: set[str]) -> dict[str, JobState]:
    output = _query("sacct", "-X", "-n", "-P", "-o", "JobID,State,NodeList", "-j", ",".join(sorted(arrays))) or ""
    states = {}
    for line in output.splitlines():
        job, state, nodes = line.split("|", 2)
        if "[" not in job:
            states[job] = JobState(state.split()[0] if state else "UNKNOWN", nodes)
    return states


def _query(*command: str) -> str | None:
    """The output of a Slurm command; None if it fails, is missing, or does not answer in time."""
    with clean_environment():
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
    return process.stdout if process.returncode == 0 else None
