"""Runs the jobs of a sweep as processes of this machine, one shard at a time: the path of Slurm without Slurm."""

from __future__ import annotations

import os
import shlex
import sys
import time

from submitit.local import local as submitit_local

from launcher import ROOT
from launcher.config.plan import FINAL, Plan, shard_name
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs import job as attempt
from launcher.jobs import prepare
from launcher.report import writer
from launcher.store.revision import snapshot_code
from launcher.store.run_folder import RunFolder
from launcher.tuner import shard

_POLL_S = 0.2
_DAY_MIN = 24 * 60


def run(plan: Plan, folder: RunFolder, options: Options) -> int:
    """Each shard that lacks points in a process of its own, then the aggregate here; the exit status."""
    prepare.grant(plan, folder)
    snapshot_code(folder.code)
    failed = False
    indices = range(plan.spec.num_shards) if options.shard_index is None else [options.shard_index]
    shards = [index for index in indices if not shard.is_complete(plan, folder, index)]
    for index in [*shards, FINAL] if plan.has_final and options.shard_index is None else shards:
        before = _num_successes(folder)
        executor = submitit_local.LocalExecutor(folder.path.resolve() / "local", python=_python())
        executor.update_parameters(timeout_min=_DAY_MIN, tasks_per_node=1)
        job = executor.submit(attempt.run_shard, str(folder.path.resolve()), index)
        assert isinstance(job, submitit_local.LocalJob)
        process = job._process  # noqa: SLF001  (submitit's own result would have to be unpickled)
        assert process is not None
        while process.poll() is None:
            time.sleep(_POLL_S)
        if _num_successes(folder) == before:  # submitit's process says 0, whatever became of its task
            failed = True
            print(f"{shard_name(index)} failed; its log: {job.paths.stderr}", file=sys.stderr)
    status = writer.report(folder, options)
    print(folder.report_file)
    return FAILURE if failed and status == OK else status


def _num_successes(folder: RunFolder) -> int:
    """Attempts that ended as they should, of all shards."""
    return sum(one.outcome in ("complete", "spent") for one in folder.attempts())


def _python() -> str:
    """This Python with this code, whatever the working directory holds, and with the GPUs that this process sees.

    submitit would show its jobs none.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    given = ["-u", "CUDA_VISIBLE_DEVICES"] if visible is None else [f"CUDA_VISIBLE_DEVICES={visible}"]
    return shlex.join(["env", *given, f"PYTHONPATH={path}", "PYTHONSAFEPATH=1", sys.executable])
