"""The sbatch script of a job: its resources and shell lines. Submits it through submitit."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from submitit.core import utils as submitit_utils
from submitit.slurm import slurm as submitit_slurm

from launcher.config.job_options import SubmititConf
from launcher.errors import UserError
from launcher.jobs.slurm import clean_environment

REQUEUE = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) with which a job asks its batch script to put it back into the queue."""

TERMINATED = 143
"""Exit status of a job that SIGTERM ended: 128 + 15."""

CODE_VARIABLE = "DEEPEP_SWEEP_CODE"
"""Environment variable with the folder of the code that the job must run."""

_SAFE_PATH = "1"
"""Value of PYTHONSAFEPATH. Without it, ``python -m`` looks first in the folder where the command was started: packages
of the same names, or source that has changed since."""

_REQUEUE = 'for pause in 2 4 8 16 32; do scontrol requeue "$SLURM_JOB_ID" && break; sleep $pause; done'

_HINTS = (
    ("accounting/qos policy", "a limit of your account or qos, which sacctmgr show assoc lists; ask for less"),
    ("invalid account", "name an account of yours that the partition takes: hydra.launcher.account=NAME"),
    ("partition", "name one that sinfo lists: hydra.launcher.partition=NAME"),
    ("account", "name one of yours: hydra.launcher.account=NAME"),
    ("qos", "name one that sacctmgr show qos lists: hydra.launcher.qos=NAME"),
    ("node configuration", "no node has these resources; dry_run=true prints them"),
    ("reservation", "scontrol show reservation lists them"),
    ("unable to contact", "is the Slurm controller up? scontrol ping"),
)
"""A word of sbatch's message, and what to do. The first match counts."""


class JobRequest(msgspec.Struct, frozen=True):
    """The resources of one kind of job. ``deadline`` in Slurm's notation, now+2hours."""

    name: str
    timeout_min: int
    gpus_per_node: int
    cpus_per_task: int
    deadline: str | None = None


class SlurmExecutor(submitit_slurm.SlurmExecutor):
    """submitit's executor, also without srun: a dry run needs none, and ``slurm.require`` has checked the rest."""

    @classmethod
    def affinity(cls) -> int:
        """The value that submitit takes on a login node."""
        return 2

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        """The command of submitit, shielded from Ctrl-C, which might end sbatch after the controller took the job."""
        return [
            "sh",
            "-c",
            "trap '' INT TERM; exec \"$@\"",
            "sh",
            *super()._make_submission_command(submission_file_path),
        ]


def script(
    request: JobRequest,
    settings: SubmititConf,
    *,
    folder: Path,
    setup: Sequence[str],
    tasks: int = 1,
    dependency: str | None = None,
) -> str:
    """The sbatch script of an array of ``tasks``, or of a plain job if there is one."""
    executor = _executor(request, settings, folder=folder, setup=setup, dependency=dependency)
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    command = executor._submitit_command_str  # noqa: SLF001  (submitit has no public way to show its script)
    return executor._make_submission_file_text(command, "dry-run")  # noqa: SLF001


def submit(
    function: Callable[..., None],
    argument_lists: Sequence[Sequence[Any]],
    request: JobRequest,
    settings: SubmititConf,
    *,
    folder: Path,
    setup: Sequence[str],
    dependency: str | None = None,
) -> str:
    """Submits ``function`` once for each list of arguments, as one array; the array's id.

    UserError with Slurm's own words if sbatch refuses; then nothing is submitted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executor = _executor(request, settings, folder=folder, setup=setup, dependency=dependency)
    try:
        with clean_environment():
            jobs = executor.map_array(function, *zip(*argument_lists, strict=True))
    except submitit_utils.FailedJobError as error:
        raise UserError(f"Slurm refused the jobs: {_sbatch_message(str(error))}", hint=_hint(str(error))) from None
    return str(jobs[0].job_id).split("_")[0]


def code_setup(code: Path) -> list[str]:
    """Shell lines that make the job run the submitted code, and requeue it when it asks for that.

    The batch script calls scontrol because a container may have none, and repeats it for a minute because a controller
    may be busy or failing over.
    """
    quoted = shlex.quote(str(code.resolve()))
    return [
        f"export PYTHONPATH={quoted}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"export PYTHONSAFEPATH={_SAFE_PATH}",
        f"export {CODE_VARIABLE}={quoted}",
        f"trap 'test $? -ne {REQUEUE} || {_REQUEUE}' EXIT",
    ]


def code_environment(code: Path) -> dict[str, str]:
    """The same environment for a process of this machine: variables that make it run the copy of the code."""
    path = os.pathsep.join([str(code.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": _SAFE_PATH, CODE_VARIABLE: str(code.resolve())}


def _executor(
    request: JobRequest, settings: SubmititConf, *, folder: Path, setup: Sequence[str], dependency: str | None
) -> SlurmExecutor:
    python, srun_args = _command(settings, folder)
    executor = SlurmExecutor(folder, python=python)
    executor.update_parameters(
        job_name=request.name,
        time=request.timeout_min,
        nodes=1,
        ntasks_per_node=1,
        gpus_per_node=request.gpus_per_node or None,
        cpus_per_task=request.cpus_per_task,
        partition=settings.partition or os.environ.get("SBATCH_PARTITION"),
        account=settings.account or os.environ.get("SBATCH_ACCOUNT"),
        qos=settings.qos or os.environ.get("SBATCH_QOS"),
        constraint=settings.constraint,
        nodelist=settings.nodelist,
        exclude=settings.exclude,
        exclusive=settings.exclusive or None,
        setup=[*settings.setup, *setup],  # ours last: a module may set PYTHONPATH too
        srun_args=srun_args,
        array_parallelism=settings.array_parallelism,
        signal_delay_s=settings.signal_delay_s,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters=_additional_parameters(request, settings, dependency),
    )
    return executor


def _command(settings: SubmititConf, folder: Path) -> tuple[str | None, list[str]]:
    """The command that runs Python (None: this Python), and srun's arguments. A container sees the run folder."""
    srun_args = list(settings.srun_args)
    if settings.container_image:
        run = folder.resolve().parent
        mounts = ",".join([f"{run}:{run}", *filter(None, [settings.container_mounts])])
        srun_args += [f"--container-image={settings.container_image}", f"--container-mounts={mounts}"]
        return settings.python or "python3", srun_args  # this machine's Python is not in the image
    if settings.container_mounts:
        srun_args.append(f"--container-mounts={settings.container_mounts}")
    return settings.python, srun_args


def _additional_parameters(request: JobRequest, settings: SubmititConf, dependency: str | None) -> dict[str, Any]:
    """Options of sbatch that submitit does not name."""
    parameters: dict[str, Any] = {"requeue" if settings.requeue else "no-requeue": True}
    if settings.reservation:
        parameters["reservation"] = settings.reservation
    if settings.mem is not None:
        parameters["mem"] = settings.mem
    if request.deadline is not None:
        parameters["deadline"] = request.deadline
    if dependency is not None:
        parameters |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    return parameters


def _sbatch_message(text: str) -> str:
    """The lines of sbatch itself, without submitit's frame."""
    lines = [line.split("error:", 1)[1].strip() for line in text.splitlines() if "error:" in line]
    return "; ".join(dict.fromkeys(lines)) or " ".join(text.split())[-300:]


def _hint(text: str) -> str:
    hints = (hint for word, hint in _HINTS if word in text.lower())
    return next(hints, "dry_run=true prints the script that sbatch got")
