"""A sweep under Slurm: everything checked, then the array of shards, then the aggregate, then the wait."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from launcher.config import arguments
from launcher.config.job_options import SubmititConf
from launcher.config.plan import FINAL, Plan
from launcher.config.schema import Options, Spec, spec_from
from launcher.errors import FAILURE, OK, USAGE, UserError
from launcher.jobs import job as attempt
from launcher.jobs import local, prepare, sbatch, slurm, waiting, watch
from launcher.jobs.sbatch import JobRequest, code_setup
from launcher.store.revision import snapshot_code
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import Submission, add_submission, lock_submissions, read_submissions
from launcher.tuner import final, shard

_TIME_FACTOR = 3
_TIME_EXTRA_S = 600
_AGGREGATE_MIN = 15
_MAX_FORECASTS = 64


def launch(configs: Sequence[DictConfig], settings: SubmititConf) -> int:
    """Submits one run for each configuration, and waits unless detached; the exit status of the command."""
    try:
        commands = [
            arguments.command_line(config.hydra.overrides.task, config.hydra.overrides.hydra) for config in configs
        ]
        return _launch([spec_from(config) for config in configs], commands, settings)
    except UserError as error:
        error.show()
        return USAGE


def _launch(wanted: Sequence[tuple[Spec, Options]], commands: Sequence[Sequence[str]], settings: SubmititConf) -> int:
    waiting.check_on_interrupt(settings)
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
        (*prepare.prepare(spec, options, local=is_local, command=command), options)
        for (spec, options), command in zip(wanted, commands, strict=True)
    ]
    for plan, _, _ in prepared:
        prepare.announce(plan)
    if any(options.dry_run for _, _, options in prepared):
        for plan, _, options in prepared:
            print(prepare.show(plan))
            print(script(plan, settings, options))
        return OK
    if is_local:
        return max(local.run(plan, folder, options) for plan, folder, options in prepared if folder)
    runs = [(plan, folder, options) for plan, folder, options in prepared if folder]
    submitted: list[Submission] = []
    try:
        for plan, folder, options in runs:
            submitted += submit(plan, folder, settings, options)
    except BaseException as error:
        slurm.cancel(one.array_id for one in submitted)
        if not isinstance(error, KeyboardInterrupt):
            raise
        print("interrupted; what was submitted is cancelled", file=sys.stderr)
        return FAILURE
    return max(_follow(folder, options, settings) for _, folder, options in runs)


def _follow(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    if settings.detach:
        _say_how_to_go_on(folder)
        print(folder.path)
        return OK
    return watch.wait_and_report(folder, options, settings)


def _say_how_to_go_on(folder: RunFolder) -> None:
    run = shlex.quote(str(folder.path))
    arrays = " ".join(submission.array_id for submission in read_submissions(folder))
    for purpose, command in (
        ("look at it", f"python -m launcher.status {run}"),
        ("report", f"python -m launcher.aggregate {run}"),
        ("complete it", f"python -m launcher.resume {run}"),
        ("cancel it", f"scancel {arrays}"),
    ):
        print(f"{purpose + ':':13}{command}", file=sys.stderr)


def job_request(plan: Plan, settings: SubmititConf, indices: Sequence[int]) -> JobRequest:
    """What each of some shards asks for: a node's GPUs for the EP group, one task, CPUs and time of the plan."""
    on_gpu = not plan.is_dry
    gpus = settings.gpus_per_node
    if gpus is None:
        gpus = plan.spec.ep.size if on_gpu else 0
    longest_s = max(plan.expected_s(index) for index in indices[:_MAX_FORECASTS])
    minutes = math.ceil((_TIME_FACTOR * longest_s + _TIME_EXTRA_S) / 60)
    return JobRequest(
        name=f"deepep-ep{plan.spec.ep.size}",
        timeout_min=settings.timeout_min or minutes,
        gpus_per_node=gpus,
        cpus_per_task=settings.cpus_per_task or plan.spec.hardware.cpus_per_gpu * plan.spec.ep.size,
    )


def _aggregate_settings(settings: SubmititConf) -> SubmititConf:
    """The aggregate may run anywhere beside others: what the site's nodes with GPUs are chosen by is not for it."""
    mem = None if settings.mem == "0" else settings.mem
    return dataclasses.replace(settings, exclusive=False, nodelist=None, exclude=None, constraint=None, mem=mem)


def _aggregate_request(plan: Plan) -> JobRequest:
    return JobRequest(
        name=f"deepep-ep{plan.spec.ep.size}-aggregate", timeout_min=_AGGREGATE_MIN, gpus_per_node=0, cpus_per_task=1
    )


class Wanted(NamedTuple):
    """The jobs that a run still needs: arrays of shards, and whether the final is one."""

    arrays: list[list[int]]
    final: bool


def wanted_of(plan: Plan, folder: RunFolder | None, options: Options) -> Wanted:
    """What has no complete records; everything where there is no folder yet."""
    indices = range(plan.spec.num_shards) if options.shard_index is None else [options.shard_index]
    shards = [index for index in indices if folder is None or not shard.is_complete(plan, folder, index)]
    size = slurm.max_array_size() if len(shards) > 1 else 1
    arrays = [shards[first : first + size] for first in range(0, len(shards), size)]
    is_done = folder is not None and not shards and final.is_complete(folder)
    return Wanted(arrays, plan.has_final and options.shard_index is None and not is_done)


class Job(NamedTuple):
    """One call of sbatch: ``body`` once for each list of arguments. ``shards``: which, for an array of shards."""

    kind: str
    shards: list[int]
    body: Callable[..., None]
    arguments: list[list[object]]
    request: JobRequest
    settings: SubmititConf


def jobs(plan: Plan, folder: RunFolder, wanted: Wanted, settings: SubmititConf, options: Options) -> list[Job]:
    """What is submitted, in this order: each job that is no array of shards waits for all before it."""
    path = str(folder.path.resolve())
    made = []
    for indices in wanted.arrays:
        each: list[list[object]] = [[path, index, settings.requeue] for index in indices]
        made.append(Job("shards", indices, attempt.run_shard, each, job_request(plan, settings, indices), settings))
    if wanted.final:
        request = job_request(plan, settings, [FINAL])
        made.append(Job("final", [], attempt.run_final, [[path, settings.requeue]], request, settings))
    arguments: list[list[object]] = [[path, options.strict, options.allow_mixed]]
    own = _aggregate_settings(settings)
    made.append(Job("aggregate", [], attempt.run_aggregate, arguments, _aggregate_request(plan), own))
    return made


def script(plan: Plan, settings: SubmititConf, options: Options) -> str:
    """The sbatch scripts of what would be submitted, those of equal arrays once."""
    path = Path(options.run) if options.run is not None else Path("RUN")
    is_begun = (path / "run.json").is_file()
    folder = RunFolder(path)
    wanted = wanted_of(plan, folder if is_begun else None, options)
    shown: dict[str, list[str]] = {}
    before: list[str] = []
    for number, job in enumerate(jobs(plan, folder, wanted, settings, options)):
        text = sbatch.script(
            job.request,
            job.settings,
            folder=folder.slurm,
            setup=code_setup(folder.code),
            tasks=len(job.arguments),
            dependency=_after(job, before),
        )
        title = job.kind
        if job.shards:
            first, last = job.shards[0], job.shards[-1]
            title = f"shard {first}" if first == last else f"shards {first} to {last}"
        shown.setdefault(text, []).append(f"# ---- {title}")
        before.append(f"JOB{number + 1}")
    return "\n".join("\n".join([*titles, text]) for text, titles in shown.items())


def _after(job: Job, before: list[str]) -> str | None:
    return "afterany:" + ":".join(before) if before and job.kind != "shards" else None


def submit(plan: Plan, folder: RunFolder, settings: SubmititConf, options: Options) -> list[Submission]:
    """Submits the shards that lack points, in arrays as large as Slurm takes, then the aggregate behind them all.

    UserError when the run's jobs are still alive, or when Slurm refuses; what was submitted by then is cancelled.
    """
    made: list[Submission] = []
    with lock_submissions(folder):
        _refuse_running(folder)
        prepare.grant(plan, folder)
        snapshot_code(folder.code)
        wanted = wanted_of(plan, folder, options)
        try:
            for job in jobs(plan, folder, wanted, settings, options):
                with _uninterrupted():
                    array = sbatch.submit(
                        job.body,
                        job.arguments,
                        job.request,
                        job.settings,
                        folder=folder.slurm.resolve(),
                        setup=code_setup(folder.code),
                        dependency=_after(job, [one.array_id for one in made]),
                    )
                    made.append(Submission(job.kind, array, job.shards, time.time()))
                    add_submission(folder, made[-1])
        except BaseException:
            slurm.cancel(one.array_id for one in made)
            raise
    return made


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM wait; launcher.slurm keeps them from sbatch, which Ctrl-C reaches by itself."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda caught, _: heard.append(caught))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in dict.fromkeys(heard):
            signal.raise_signal(caught)


def _refuse_running(folder: RunFolder) -> None:
    arrays = [submission.array_id for submission in read_submissions(folder)]
    alive = slurm.alive(arrays)
    if alive:
        raise UserError(
            f"{folder.path} is being measured by {len(alive)} jobs, {alive[0]} the first",
            hint=f"look with python -m launcher.status, or end them: scancel {' '.join(sorted(set(arrays)))}",
        )
