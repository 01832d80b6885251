"""Talks to Slurm: submits through submitit, asks squeue and sacct, cancels. No decision is made here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from submitit.core import utils as submitit_utils
from submitit.slurm import slurm as submitit_slurm

from launcher.errors import UserError
from launcher.settings import SubmititConf

_QUERY_TIMEOUT_S = 30
_FALLBACK_ARRAY_SIZE = 1000

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
"""Slurm's words for a job that is over; NODE_FAIL and PREEMPTED may yet be requeued."""

_REQUEUEABLE = {"NODE_FAIL", "PREEMPTED"}


class JobState(msgspec.Struct, frozen=True):
    """What Slurm says of one job: its state in capitals, and where it runs or ran."""

    state: str
    nodes: str

    @property
    def is_over(self) -> bool:
        """Whether it has ended for good, as far as one look can tell."""
        return self.state in ENDED and self.state not in _REQUEUEABLE


class Request(msgspec.Struct, frozen=True):
    """The resources of one kind of job, with nothing left to the plan. ``deadline`` in Slurm's words, now+2hours."""

    name: str
    timeout_min: int
    gpus_per_node: int
    cpus_per_task: int
    deadline: str | None = None


class SlurmExecutor(submitit_slurm.SlurmExecutor):
    """submitit's, which refuses to exist without srun; a dry run needs none, and require() has been before the rest."""

    @classmethod
    def affinity(cls) -> int:
        """As on a login node."""
        return 2


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


def script(request: Request, settings: SubmititConf, *, folder: Path, setup: Sequence[str], tasks: int) -> str:
    """The text that sbatch gets for an array of so many tasks."""
    executor = _executor(request, settings, folder=folder, setup=setup, dependency=None)
    executor.parameters["map_count"] = tasks
    command = executor._submitit_command_str  # noqa: SLF001  (submitit has no public way to show its script)
    return executor._make_submission_file_text(command, "dry-run")  # noqa: SLF001


def submit(
    function: Callable[..., None],
    argument_lists: Sequence[Sequence[Any]],
    request: Request,
    settings: SubmititConf,
    *,
    folder: Path,
    setup: Sequence[str],
    dependency: str | None = None,
) -> str:
    """Submits ``function`` once for each list of arguments, as one array; the array's id.

    UserError with Slurm's own words when sbatch refuses; then nothing was submitted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executor = _executor(request, settings, folder=folder, setup=setup, dependency=dependency)
    try:
        with clean_environment():
            jobs = executor.map_array(function, *zip(*argument_lists, strict=True))
    except submitit_utils.FailedJobError as error:
        raise UserError(f"Slurm refused the jobs: {_own_words(str(error))}", hint=_hint(str(error))) from None
    return str(jobs[0].job_id).split("_")[0]


def _executor(
    request: Request, settings: SubmititConf, *, folder: Path, setup: Sequence[str], dependency: str | None
) -> SlurmExecutor:
    additional: dict[str, Any] = {"requeue" if settings.requeue else "no-requeue": True}
    if settings.reservation:
        additional["reservation"] = settings.reservation
    if settings.mem is not None:
        additional["mem"] = settings.mem
    if request.deadline is not None:
        additional["deadline"] = request.deadline
    if dependency is not None:
        additional |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    srun_args = list(settings.srun_args)
    if settings.container_image:
        srun_args.append(f"--container-image={settings.container_image}")
    if settings.container_mounts:
        srun_args.append(f"--container-mounts={settings.container_mounts}")
    executor = SlurmExecutor(folder, python=settings.python)
    executor.update_parameters(
        job_name=request.name,
        time=request.timeout_min,
        nodes=1,
        ntasks_per_node=1,
        gpus_per_node=request.gpus_per_node or None,
        cpus_per_task=request.cpus_per_task,
        partition=settings.partition,
        account=settings.account,
        qos=settings.qos,
        constraint=settings.constraint,
        nodelist=settings.nodelist,
        exclude=settings.exclude,
        exclusive=settings.exclusive or None,
        setup=[*setup, *settings.setup],
        srun_args=srun_args,
        array_parallelism=settings.array_parallelism,
        signal_delay_s=settings.signal_delay_s,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters=additional,
    )
    return executor


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Without what Slurm left of a surrounding job, which sbatch would read as options and pass on."""
    inside = "SLURM_JOB_ID" in os.environ
    prefixes = ("SLURM_", "SBATCH_") if inside else ("SLURM_",)
    removed = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(prefixes) and key != "SLURM_CONF"}
    try:
        yield
    finally:
        os.environ.update(removed)


def max_array_size() -> int:
    """How many tasks one array may have here."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _asked("scontrol", "show", "config") or "", re.MULTILINE)
    return int(match[1]) if match else _FALLBACK_ARRAY_SIZE


def states(array_ids: Iterable[str]) -> dict[str, JobState]:
    """What Slurm knows of each job and array task, by its id (``12_3``, or ``12`` without an array).

    squeue first: it knows the living, and the dead for MinJobAge; sacct, where there is one, for the rest.
    """
    wanted = sorted(set(array_ids))
    if not wanted:
        return {}
    found = _from_squeue(wanted)
    unknown = [array for array in wanted if not any(job.split("_")[0] == array for job in found)]
    if unknown:
        found |= _from_sacct(unknown)
    return found


def _from_squeue(arrays: list[str]) -> dict[str, JobState]:
    found = {}
    out = _asked("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N", "-j", ",".join(arrays))
    if out is None:  # one id that squeue has forgotten makes it refuse them all
        everything = _asked("squeue", "-h", "-r", "-t", "all", "--me", "-o", "%i|%T|%N") or ""
        out = "\n".join(line for line in everything.splitlines() if line.split("|")[0].split("_")[0] in arrays)
    for line in out.splitlines():
        job, state, nodes = line.split("|", 2)
        found[job] = JobState(state, nodes)
    return found


def _from_sacct(arrays: list[str]) -> dict[str, JobState]:
    out = _asked("sacct", "-X", "-n", "-P", "-o", "JobID,State,NodeList", "-j", ",".join(arrays)) or ""
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
    """GPU-seconds of these jobs by Slurm's accounting, every requeue counted; None without accounting."""
    out = _asked(
        "sacct", "-X", "-n", "-P", "-D", "-o", "JobID,State,ElapsedRaw,AllocTRES", "-j", ",".join(sorted(set(arrays)))
    )
    if not out:
        return None
    total = 0.0
    for line in out.splitlines():
        _, _, elapsed, tres = line.split("|", 3)
        match = re.search(r"gres/gpu=(\d+)", tres)
        total += int(elapsed or 0) * (int(match[1]) if match else 0)
    return total


def cancel(arrays: Iterable[str]) -> None:
    """Cancels whole arrays."""
    wanted = sorted(set(arrays))
    if wanted:
        _asked("scancel", *wanted)


def _asked(*command: str) -> str | None:
    """What a Slurm command prints; None when it fails, is missing, or does not answer."""
    with clean_environment():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
    return done.stdout if done.returncode == 0 else None


def _own_words(text: str) -> str:
    """The lines that sbatch itself printed, without submitit's frame."""
    lines = [line.split("error:", 1)[1].strip() for line in text.splitlines() if "error:" in line]
    return "; ".join(dict.fromkeys(lines)) or " ".join(text.split())[-300:]


def _hint(text: str) -> str:
    lowered = text.lower()
    for word, hint in (
        ("partition", "name one that sinfo lists: hydra.launcher.partition=NAME"),
        ("account", "name one of yours: hydra.launcher.account=NAME"),
        ("qos", "name one that sacctmgr show qos lists: hydra.launcher.qos=NAME"),
        ("node configuration", "no node has what is asked for; dry_run=true prints it"),
        ("reservation", "scontrol show reservation lists them"),
        ("unable to contact", "is the Slurm controller up? scontrol ping"),
    ):
        if word in lowered:
            return hint
    return "dry_run=true prints the script that sbatch got"
