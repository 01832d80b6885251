"""Runs the jobs of a sweep as processes of this machine, one shard at a time: the path of Slurm without Slurm."""

from __future__ import annotations

import sys
import time

from submitit.local import local as submitit_local

from launcher import attempt, shard
from launcher.aggregate import aggregate
from launcher.errors import FAILURE, OK
from launcher.plan import FINAL, Plan
from launcher.schema import Options
from launcher.store import RunFolder

_POLL_S = 0.2
_DAY_MIN = 24 * 60


def run(plan: Plan, folder: RunFolder, options: Options) -> int:
    """Each shard that lacks points in a process of its own, then the aggregate here; the exit status."""
    folder.snapshot_code()
    failed = False
    for index in [*range(plan.spec.num_shards), FINAL]:
        if index != FINAL and not shard.lacking(plan, folder, index):
            continue
        executor = submitit_local.LocalExecutor(folder.path.resolve() / "local")
        executor.update_parameters(timeout_min=_DAY_MIN, tasks_per_node=1)
        job = executor.submit(attempt.run_shard, str(folder.path.resolve()), index)
        assert isinstance(job, submitit_local.LocalJob)
        process = job._process  # noqa: SLF001  (submitit's own result would have to be unpickled)
        assert process is not None
        while process.poll() is None:
            time.sleep(_POLL_S)
        if process.returncode:
            failed = True
            print(f"shard {index} failed; its log: {job.paths.stderr}", file=sys.stderr)
    status = aggregate(folder, strict=options.strict, allow_mixed=options.allow_mixed)
    print(folder.report_file)
    return FAILURE if failed and status == OK else status
