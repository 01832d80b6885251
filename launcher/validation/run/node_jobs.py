"""The Slurm job of each node: its resources, its submission, and its body."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec

from launcher.config.job_options import SubmititConf
from launcher.errors import UserError
from launcher.jobs import sbatch, slurm
from launcher.jobs.sbatch import TERMINATED, JobRequest, code_setup
from launcher.validation.measure.suite import Suite
from launcher.validation.run.folder import Order, Skip, ValidationFolder

_ONE_PER_LANE = "singleton"
"""Slurm's dependency: of jobs with one name and user, one runs at a time."""

_GRACE_S = 60.0
"""Slurm may end a job this long after its time limit."""


def submit(folder: ValidationFolder, order: Order) -> Order:
    """Submits one job for each node; the order with the jobs.

    A node whose job Slurm refuses is skipped. UserError if Slurm refuses all of them.
    """
    jobs, refusals = dict(order.jobs), list[UserError]()
    for node in order.nodes:
        try:
            jobs[node] = submit_node(folder, order, node)
        except UserError as error:
            refusals.append(error)
            order = msgspec.structs.replace(order, skipped=[*order.skipped, Skip(node, "U917", str(error))])
        except BaseException:
            slurm.cancel(jobs.values())
            raise
        order = msgspec.structs.replace(order, jobs=dict(jobs), until=_until(order))
        folder.note(order)
    if refusals and not jobs:
        raise refusals[0]
    order = msgspec.structs.replace(order, nodes=list(jobs))
    folder.note(order)
    return order


def submit_node(folder: ValidationFolder, order: Order, node: str) -> str:
    """Submits the job of one node; its id. UserError if Slurm refuses it."""
    return sbatch.submit(
        run_node,
        [[str(folder.path.resolve()), node]],
        _request(folder.path.name.rpartition("-")[2], order, node),
        _settings(order, node),
        folder=(folder.path / "slurm").resolve(),
        setup=code_setup(folder.code),
        dependency=_ONE_PER_LANE,
    )


def script(order: Order, node: str) -> str:
    """The sbatch script of a node's job, for a dry run."""
    folder = ValidationFolder(Path("RUN"))
    return sbatch.script(
        _request("RUN", order, node),
        _settings(order, node),
        folder=folder.path / "slurm",
        setup=code_setup(folder.code),
        tasks=1,
        dependency=_ONE_PER_LANE,
    )


def run_node(path: str, node: str) -> None:
    """The body of a node's job: validates the node that it runs on."""
    folder = ValidationFolder(Path(path))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit's handler would end the job early, as FAILED
    signal.signal(signal.SIGTERM, _exit)  # submitit ignores it, and the ranks that Slurm ends would be crashes
    suite = Suite(
        folder.order().spec,
        folder.node_folder(node),
        node=node,
        job_id=os.environ.get("SLURM_JOB_ID"),
        say=lambda line: print(f"{node}: {line}", flush=True),
    )
    result = suite.run()
    print(f"{node}: {result.verdict} {result.reason_short}: {result.reason}", flush=True)


def _request(run: str, order: Order, node: str) -> JobRequest:
    """The resources of a node's job. Its name is that of the node's lane.

    By the order's deadline the job must have begun; by Slurm's deadline, one time limit later, it must be over.
    """
    assert order.deadline is not None
    spec, settings = order.spec, _launcher_settings(order)
    timeout_min = settings.timeout_min or spec.limits.job_min
    num_gpus = 0 if spec.on_cpu else spec.gpus
    return JobRequest(
        name=f"epv-{run}-lane-{order.lanes[node]}",
        timeout_min=timeout_min,
        gpus_per_node=num_gpus if settings.gpus_per_node is None else settings.gpus_per_node,
        cpus_per_task=settings.cpus_per_task or max(1, spec.hardware.cpus_per_gpu * spec.gpus),
        deadline=f"now+{round(order.deadline + 60 * timeout_min - time.time())}seconds",
    )


def _settings(order: Order, node: str) -> SubmititConf:
    """The order's settings, for the whole of this node and without requeueing."""
    settings = _launcher_settings(order)
    settings.nodelist, settings.exclusive, settings.requeue = node, True, False
    settings.mem = "0" if settings.mem is None else settings.mem
    return settings


def _launcher_settings(order: Order) -> SubmititConf:
    """``hydra.launcher`` of the command. An older order.json may hold keys that are options no longer."""
    fields = SubmititConf.__dataclass_fields__
    return SubmititConf(**{name: value for name, value in order.settings.items() if name in fields})


def _until(order: Order) -> float:
    """When the last job that began before the deadline must be over."""
    assert order.deadline is not None
    return order.deadline + 60 * (order.settings["timeout_min"] or order.spec.limits.job_min) + _GRACE_S


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
