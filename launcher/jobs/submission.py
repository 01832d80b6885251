"""A sweep under Slurm: checks every configuration, submits shards, final and aggregate, then waits or detaches."""

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
from launcher.config.planning import plan_sweep
from launcher.config.schema import Options, Spec, spec_from
from launcher.errors import INTERRUPTED, OK, USAGE, UserError
from launcher.jobs import local, sbatch, slurm, waiting, watch
from launcher.jobs.job import run_aggregate, run_final, run_shard
from launcher.jobs.prepare import describe, extend, prepare, print_caveats
from launcher.jobs.sbatch import JobRequest, code_setup
from launcher.store.revision import snapshot_code
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import Submission, add_submission, lock_submissions, read_submissions
from launcher.tuner import final, repeats, shard

_TIME_FACTOR = 3
_TIME_EXTRA_S = 600
_AGGREGATE_MIN = 15
_MAX_FORECASTS = 64


class MissingWork(NamedTuple):
    """The jobs that a run still needs: arrays of shards, and whether the final is among them."""

    arrays: list[list[int]]
    final: bool


class JobArray(NamedTuple):
    """One call of sbatch: ``body`` once for each list of arguments. ``shards`` is empty for final and aggregate."""

    kind: str
    shards: list[int]
    body: Callable[..., None]
    arguments: list[list[object]]
    request: JobRequest
    settings: SubmititConf


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


def _launch(specs: Sequence[tuple[Spec, Options]], commands: Sequence[Sequence[str]], settings: SubmititConf) -> int:
    waiting.check_on_interrupt(settings)
    _check_signal_delay(settings)
    is_local, is_dry = settings.cluster == "local", any(options.dry_run for _, options in specs)
    if not is_local and not is_dry:
        slurm.require()
    plans = [(plan_sweep(spec, options, local=is_local), options) for spec, options in specs]
    if is_dry:
        return _preview(plans, settings)
    runs = [
        (plan, prepare(plan, options, command=command, in_jobs=True), options)
        for (plan, options), command in zip(plans, commands, strict=True)
    ]
    for plan, folder, _ in runs:
        print_caveats(plan)
        if is_local:
            print(f"run folder: {folder.path}", file=sys.stderr)
    return max(local.run(*run) for run in runs) if is_local else _submit_all(runs, settings)


def _preview(plans: Sequence[tuple[Plan, Options]], settings: SubmititConf) -> int:
    """Prints every plan with its sbatch scripts; nothing is submitted."""
    for plan, _ in plans:
        print_caveats(plan)
    for plan, options in plans:
        print(describe(plan))
        print(format_scripts(plan, settings, options))
    return OK


def _check_signal_delay(settings: SubmititConf) -> None:
    """UserError if Slurm would signal the job before it begins."""
    if settings.timeout_min is not None and settings.signal_delay_s >= 60 * settings.timeout_min:
        raise UserError(
            f"hydra.launcher.signal_delay_s must be below the time limit, {60 * settings.timeout_min} s, "
            f"got {settings.signal_delay_s}",
            hint="Slurm may signal a minute early too; leave the shard some minutes before the signal",
        )


def _submit_all(runs: Sequence[tuple[Plan, RunFolder, Options]], settings: SubmititConf) -> int:
    """Submits every run, or none, then waits for each in turn; the highest exit status."""
    submissions: list[Submission] = []
    try:
        for plan, folder, options in runs:
            submissions += submit(plan, folder, settings, options)
    except BaseException as error:
        slurm.cancel(submission.array_id for submission in submissions)
        if not isinstance(error, KeyboardInterrupt):
            raise
        print("interrupted; all submitted jobs are cancelled", file=sys.stderr)
        return INTERRUPTED
    return max(_follow(folder, options, settings) for _, folder, options in runs)


def _follow(folder: RunFolder, options: Options, settings: SubmititConf) -> int:
    if settings.detach:
        _print_next_commands(folder)
        print(folder.path)
        return OK
    return watch.wait_and_report(folder, options, settings)


def _print_next_commands(folder: RunFolder) -> None:
    run = shlex.quote(str(folder.path))
    arrays = " ".join(submission.array_id for submission in read_submissions(folder))
    for purpose, command in (
        ("look at it", f"python -m launcher.status {run}"),
        ("report", f"python -m launcher.aggregate {run}"),
        ("complete it", f"python -m launcher.resume {run}"),
        ("cancel it", f"scancel {arrays}"),
    ):
        print(f"{purpose + ':':13}{command}", file=sys.stderr)


def find_missing(plan: Plan, folder: RunFolder | None, options: Options) -> MissingWork:
    """The shards and the final that lack records; all of them without a folder. The final's job runs its repeats."""
    indices = range(plan.spec.num_shards) if options.shard_index is None else [options.shard_index]
    shards = [index for index in indices if folder is None or not shard.is_complete(plan, folder, index)]
    size = slurm.query_max_array_size() if len(shards) > 1 else 1
    arrays = [shards[first : first + size] for first in range(0, len(shards), size)]
    is_done = folder is not None and not shards and final.is_complete(folder) and not _missing_repeats(folder)
    return MissingWork(arrays, plan.has_final and options.shard_index is None and not is_done)


def _missing_repeats(folder: RunFolder) -> list[int]:
    return repeats.missing(folder, repeats.contestants(folder)) if folder.plan().repeats else []


def plan_jobs(
    plan: Plan, folder: RunFolder, missing: MissingWork, settings: SubmititConf, options: Options
) -> list[JobArray]:
    """The calls of sbatch in order: arrays of shards, then final and aggregate, which wait for all before them."""
    path = str(folder.path.resolve())
    arrays = []
    for indices in missing.arrays:
        shard_arguments: list[list[object]] = [[path, index, settings.requeue] for index in indices]
        request = _measuring_request(plan, settings, indices)
        arrays.append(JobArray("shards", indices, run_shard, shard_arguments, request, settings))
    if missing.final:
        request = _measuring_request(plan, settings, [FINAL])
        arrays.append(JobArray("final", [], run_final, [[path, settings.requeue]], request, settings))
    aggregate_arguments: list[list[object]] = [[path, options.strict, options.allow_mixed]]
    request = _aggregate_request(plan)
    arrays.append(JobArray("aggregate", [], run_aggregate, aggregate_arguments, request, _aggregate_settings(settings)))
    return arrays


def _measuring_request(plan: Plan, settings: SubmititConf, indices: Sequence[int]) -> JobRequest:
    """The resources of each of these shards: a node's GPUs for the EP group, one task, CPUs and time of the plan."""
    num_gpus = 0 if plan.is_dry else plan.spec.ep.size
    longest_s = max(plan.expected_s(index) for index in indices[:_MAX_FORECASTS])
    minutes = math.ceil((_TIME_FACTOR * longest_s + _TIME_EXTRA_S) / 60)
    return JobRequest(
        name=f"deepep-ep{plan.spec.ep.size}",
        timeout_min=settings.timeout_min or minutes,
        gpus_per_node=num_gpus if settings.gpus_per_node is None else settings.gpus_per_node,
        cpus_per_task=settings.cpus_per_task or plan.spec.hardware.cpus_per_gpu * plan.spec.ep.size,
    )


def _aggregate_request(plan: Plan) -> JobRequest:
    return JobRequest(
        name=f"deepep-ep{plan.spec.ep.size}-aggregate", timeout_min=_AGGREGATE_MIN, gpus_per_node=0, cpus_per_task=1
    )


def _aggregate_settings(settings: SubmititConf) -> SubmititConf:
    """The settings without those that choose a node with GPUs or take a whole node: the aggregate runs anywhere."""
    mem = None if settings.mem == "0" else settings.mem
    return dataclasses.replace(settings, exclusive=False, nodelist=None, exclude=None, constraint=None, mem=mem)


def format_scripts(plan: Plan, settings: SubmititConf, options: Options) -> str:
    """The sbatch scripts of the jobs that would be submitted. Equal scripts of several arrays appear once."""
    path = Path(options.run) if options.run is not None else Path("RUN")
    folder, has_begun = RunFolder(path), (path / "run.json").is_file()
    missing = find_missing(plan, folder if has_begun else None, options)
    missing = missing._replace(final=missing.final or plan.repeats > 0)
    titles: dict[str, list[str]] = {}
    before: list[str] = []
    for number, array in enumerate(plan_jobs(plan, folder, missing, settings, options), start=1):
        script = sbatch.script(
            array.request,
            array.settings,
            folder=folder.slurm,
            setup=code_setup(folder.code),
            tasks=len(array.arguments),
            dependency=_dependency(array, before),
        )
        titles.setdefault(script, []).append(f"# ---- {_title(array)}")
        before.append(f"JOB{number}")
    return "\n".join("\n".join([*lines, script]) for script, lines in titles.items())


def _title(array: JobArray) -> str:
    if not array.shards:
        return array.kind
    first, last = array.shards[0], array.shards[-1]
    return f"shard {first}" if first == last else f"shards {first} to {last}"


def _dependency(array: JobArray, before: Sequence[str]) -> str | None:
    """The dependency on the jobs before, as sbatch takes it; None for shards, which wait for nothing."""
    return "afterany:" + ":".join(before) if before and array.kind != "shards" else None


def submit(plan: Plan, folder: RunFolder, settings: SubmititConf, options: Options) -> list[Submission]:
    """Submits the shards that lack points, in arrays as large as Slurm takes, then final and aggregate behind them.

    UserError if jobs of the run are still alive, or if Slurm refuses one; then the jobs before it are cancelled.
    """
    submissions: list[Submission] = []
    with lock_submissions(folder):
        _refuse_running(folder)
        plan = extend(plan, folder)
        snapshot_code(folder.code, renew=options.allow_other_code)
        missing = find_missing(plan, folder, options)
        try:
            for array in plan_jobs(plan, folder, missing, settings, options):
                with _defer_signals():
                    array_id = sbatch.submit(
                        array.body,
                        array.arguments,
                        array.request,
                        array.settings,
                        folder=folder.slurm.resolve(),
                        setup=code_setup(folder.code),
                        dependency=_dependency(array, [submission.array_id for submission in submissions]),
                    )
                    submissions.append(Submission(array.kind, array_id, array.shards, time.time()))
                    add_submission(folder, submissions[-1])
        except BaseException:
            slurm.cancel(submission.array_id for submission in submissions)
            raise
    return submissions


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the block has ended. ``sbatch`` itself shields Slurm's command from Ctrl-C."""
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda signal_number, _: received.append(signal_number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received_number in dict.fromkeys(received):
            signal.raise_signal(received_number)


def _refuse_running(folder: RunFolder) -> None:
    """UserError if jobs of the run are alive."""
    arrays = [submission.array_id for submission in read_submissions(folder)]
    alive = slurm.query_alive(arrays)
    if alive:
        raise UserError(
            f"{folder.path} is being measured by {len(alive)} jobs, {alive[0]} the first",
            hint=f"look with python -m launcher.status, or end them: scancel {' '.join(sorted(set(arrays)))}",
        )
