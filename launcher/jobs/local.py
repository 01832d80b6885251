"""A sweep as processes of this machine, one shard or repeat at a time: the jobs of Slurm without Slurm."""

from __future__ import annotations

import os
import shlex
import sys
import time

from submitit.local import local as submitit_local

from launcher.config.plan import FINAL, Plan, repeat_index, shard_name
from launcher.config.schema import Options
from launcher.errors import FAILURE, OK
from launcher.jobs.job import run_shard
from launcher.jobs.prepare import extend
from launcher.jobs.sbatch import code_environment
from launcher.report.writer import report
from launcher.store.attempts import read_attempts
from launcher.store.revision import snapshot_code
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, repeats, shard

_POLL_S = 0.2
_DAY_MIN = 24 * 60


def run(plan: Plan, folder: RunFolder, options: Options) -> int:
    """Measures each shard that lacks points in a process of its own, then reports here; the exit status."""
    extend(plan, folder)
    snapshot_code(folder.code, renew=options.allow_other_code)
    indices = range(plan.spec.num_shards) if options.shard_index is None else [options.shard_index]
    incomplete = [index for index in indices if not shard.is_complete(plan, folder, index)]
    has_final = plan.has_final and options.shard_index is None
    succeeded = [_run_job(folder, index) for index in ([*incomplete, FINAL] if has_final else incomplete)]
    if has_final and all(succeeded) and folder.plan().repeats and final.is_complete(folder):
        missing = repeats.missing(folder, repeats.contestants(folder))
        succeeded += [_run_job(folder, repeat_index(number)) for number in missing]
    status = report(folder, options)
    print(folder.report_file)
    return status if all(succeeded) or status != OK else FAILURE


def _run_job(folder: RunFolder, index: int) -> bool:
    """Runs the job of one shard to its end; False, with the path of its log on stderr, if it failed."""
    num_successes = _num_successes(folder)
    executor = submitit_local.LocalExecutor(folder.path.resolve() / "local", python=_python(folder))
    executor.update_parameters(timeout_min=_DAY_MIN, tasks_per_node=1)
    job = executor.submit(run_shard, str(folder.path.resolve()), index)
    assert isinstance(job, submitit_local.LocalJob)
    process = job._process  # noqa: SLF001  (submitit's own result would have to be unpickled)
    assert process is not None
    while process.poll() is None:
        time.sleep(_POLL_S)
    if _num_successes(folder) > num_successes:  # submitit's process exits with 0 even if its task failed
        return True
    print(f"{shard_name(index)} failed; its log: {job.paths.stderr}", file=sys.stderr)
    return False


def _num_successes(folder: RunFolder) -> int:
    """The number of attempts, at all shards, that ended as they should."""
    return sum(attempt.outcome in ("complete", "spent") for attempt in read_attempts(folder))


def _python(folder: RunFolder) -> str:
    """This Python, with the run's copy of the code and the GPUs that this process sees: submitit would show none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = ["-u", "CUDA_VISIBLE_DEVICES"] if visible is None else [f"CUDA_VISIBLE_DEVICES={visible}"]
    code = [f"{name}={value}" for name, value in code_environment(folder.code).items()]
    return shlex.join(["env", *gpus, *code, sys.executable])
