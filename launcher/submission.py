"""A sweep under Slurm: everything checked, then the array of shards, then the aggregate, then the wait."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from launcher import attempt, local, pipeline, shard, slurm, watch
from launcher.errors import OK, USAGE, UserError
from launcher.plan import FINAL, Plan
from launcher.schema import Options, Spec, spec_from
from launcher.settings import SubmititConf
from launcher.slurm import Request
from launcher.store import RunFolder, Submission

_TIME_FACTOR = 3
_TIME_EXTRA_S = 600
_AGGREGATE_MIN = 15
_MAX_FORECASTS = 64
_ON_INTERRUPT = ("ask", "detach", "cancel")


def launch(configs: Sequence[DictConfig], settings: SubmititConf) -> int:
    """Submits one run for each configuration, and waits unless detached; the exit status of the command."""
    try:
        return _launch([spec_from(config) for config in configs], settings)
    except UserError as error:
        error.show()
        return USAGE


def _launch(wanted: Sequence[tuple[Spec, Options]], settings: SubmititConf) -> int:
    if settings.on_interrupt not in _ON_INTERRUPT:
        raise UserError(f"hydra.launcher.on_interrupt must be one of {', '.join(_ON_INTERRUPT)}")
    if settings.timeout_min is not None and settings.signal_delay_s >= 60 * settings.timeout_min:
        raise UserError(
            f"hydra.launcher.signal_delay_s must be below the time limit, {60 * settings.timeout_min} s, "
            f"got {settings.signal_delay_s}",
            hint="Slurm may signal up to a minute early besides; leave the shard some minutes before it",
        )
    is_local = settings.cluster == "local"
    if not is_local and not any(options.dry_run for _, options in wanted):
        slurm.require()
    prepared = [
        (*pipeline.prepare(spec, options, local=is_local, command=pipeline.command_line()), options)
        for spec, options in wanted
    ]
    for plan, _, _ in prepared:
        pipeline.announce(plan)
    if any(options.dry_run for _, _, options in prepared):
        for plan, _, _ in prepared:
            print(pipeline.show(plan))
            print(script(plan, settings))
        return OK
    if is_local:
        return max(local.run(plan, folder, options) for plan, folder, options in prepared if folder)
    runs = [(submit(plan, folder, settings), folder, options) for plan, folder, options in prepared if folder]
    return max(_follow(folder, options, settings) for _, folder, options in runs)


def _follow(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    if settings.detach:
        _say_how_to_go_on(folder)
        print(folder.path)
        return OK
    return watch.wait(folder, options, settings)


def _say_how_to_go_on(folder: RunFolder) -> None:
    run = shlex.quote(str(folder.path))
    arrays = " ".join(submission.array_id for submission in folder.jobs().submissions)
    for purpose, command in (
        ("look at it", f"python -m launcher.status {run}"),
        ("report", f"python -m launcher.aggregate {run}"),
        ("complete it", f"python -m launcher.resume {run}"),
        ("cancel it", f"scancel {arrays}"),
    ):
        print(f"{purpose + ':':13}{command}", file=sys.stderr)


def job_request(plan: Plan, settings: SubmititConf, indices: Sequence[int]) -> Request:
    """What each of some shards asks for: a node's GPUs for the EP group, one task, CPUs and time of the plan."""
    on_gpu = not plan.is_dry
    gpus = settings.gpus_per_node
    if gpus is None:
        gpus = plan.spec.ep.size if on_gpu else 0
    longest_s = max(plan.expected_s(index) for index in indices[:_MAX_FORECASTS])
    minutes = math.ceil((_TIME_FACTOR * longest_s + _TIME_EXTRA_S) / 60)
    return Request(
        name=f"deepep-ep{plan.spec.ep.size}",
        timeout_min=settings.timeout_min or minutes,
        gpus_per_node=gpus,
        cpus_per_task=settings.cpus_per_task or plan.spec.hardware.cpus_per_gpu * plan.spec.ep.size,
    )


def _aggregate_request(plan: Plan) -> Request:
    return Request(
        name=f"deepep-ep{plan.spec.ep.size}-aggregate", timeout_min=_AGGREGATE_MIN, gpus_per_node=0, cpus_per_task=1
    )


def code_setup(folder: RunFolder) -> list[str]:
    """Shell lines that make the job run the code that was submitted.

    Without PYTHONSAFEPATH, ``python -m`` would look first in the folder where the sweep was started, where the source
    is that may have changed since.
    """
    path = f"export PYTHONPATH={shlex.quote(str(folder.code.resolve()))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return [path, "export PYTHONSAFEPATH=1"]


def script(plan: Plan, settings: SubmititConf) -> str:
    """The sbatch script of the shards, for a run folder that does not exist yet."""
    folder = RunFolder(Path("RUN"))
    return slurm.script(
        job_request(plan, settings, range(plan.spec.num_shards)),
        settings,
        folder=folder.slurm,
        setup=code_setup(folder),
        tasks=plan.spec.num_shards,
    )


def submit(plan: Plan, folder: RunFolder, settings: SubmititConf) -> list[Submission]:
    """Submits the shards that lack points, in arrays as large as Slurm takes, then the aggregate behind them all.

    UserError when the run's jobs are still alive, or when Slurm refuses; what was submitted by then is cancelled.
    """
    with folder.submitting():
        _refuse_running(folder)
        folder.snapshot_code()
        wanted = [index for index in range(plan.spec.num_shards) if not shard.is_complete(plan, folder, index)]
        made: list[Submission] = []
        try:
            size = slurm.max_array_size()
            for first in range(0, len(wanted), size):
                submission = _submit_shards(plan, folder, settings, wanted[first : first + size])
                made.append(submission)
            if plan.has_final:
                made.append(_submit_final(plan, folder, settings, [one.array_id for one in made]))
            made.append(_submit_aggregate(plan, folder, settings, [one.array_id for one in made]))
        except BaseException:
            slurm.cancel(one.array_id for one in made)
            raise
    return made


def _refuse_running(folder: RunFolder) -> None:
    arrays = [submission.array_id for submission in folder.jobs().submissions]
    alive = sorted(job for job, state in slurm.states(arrays).items() if not state.is_over)
    if alive:
        raise UserError(
            f"{folder.path} is being measured by {len(alive)} jobs, {alive[0]} the first",
            hint=f"look with python -m launcher.status, or end them: scancel {' '.join(sorted(set(arrays)))}",
        )


def _submit_shards(plan: Plan, folder: RunFolder, settings: SubmititConf, indices: list[int]) -> Submission:
    path = str(folder.path.resolve())
    array = slurm.submit(
        attempt.run_shard,
        [[path, index, settings.requeue] for index in indices],
        job_request(plan, settings, indices),
        settings,
        folder=folder.slurm.resolve(),
        setup=code_setup(folder),
    )
    return _noted(folder, Submission("shards", array, indices, time.time()))


def _submit_final(plan: Plan, folder: RunFolder, settings: SubmititConf, after: list[str]) -> Submission:
    """The final asks for what a shard asks for; it begins when every shard has ended, however."""
    array = slurm.submit(
        attempt.run_final,
        [[str(folder.path.resolve()), settings.requeue]],
        job_request(plan, settings, [FINAL]),
        settings,
        folder=folder.slurm.resolve(),
        setup=code_setup(folder),
        dependency=_after(after),
    )
    return _noted(folder, Submission("final", array, [], time.time()))


def _after(arrays: list[str]) -> str | None:
    return "afterany:" + ":".join(arrays) if arrays else None


def _submit_aggregate(plan: Plan, folder: RunFolder, settings: SubmititConf, after: list[str]) -> Submission:
    array = slurm.submit(
        attempt.run_aggregate,
        [[str(folder.path.resolve())]],
        _aggregate_request(plan),
        settings,
        folder=folder.slurm.resolve(),
        setup=code_setup(folder),
        dependency=_after(after),
    )
    return _noted(folder, Submission("aggregate", array, [], time.time()))


def _noted(folder: RunFolder, submission: Submission) -> Submission:
    folder.note_submission(submission)
    return submission
