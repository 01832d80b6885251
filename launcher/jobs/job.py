"""The body of a job: one attempt at a shard, with its signals and its requeue. Runs on the node."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.records import Role
from launcher.config.plan import FINAL, repeat_index, shard_name
from launcher.errors import ROOT
from launcher.jobs import accounting
from launcher.jobs.sbatch import CODE_VARIABLE, REQUEUE, TERMINATED
from launcher.report.writer import aggregate
from launcher.store.attempts import Attempt, OpenAttempt, begin_attempt, read_shard_attempts
from launcher.store.records_file import read_shard_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, repeats, shard
from launcher.tuner.shard import Stop


def run_shard(path: str, index: int, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  (submitit maps positions)
    """Measures the points of the shard that lack records. Raises on any failure: Slurm then shows the job as FAILED.

    SIGUSR2, which Slurm sends before the time limit, lets the point in flight finish. The job then asks for its
    requeue, unless it is the second in a row without progress. SIGTERM (preemption, scancel) ends the ranks and the
    job at once.
    """
    _refuse_other_code()
    _attempt(RunFolder.open(Path(path)), index, _catch_signals(), requeue=requeue)


def run_final(path: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
    """``run_shard`` for the final and, where it is complete, for its repeats."""
    _refuse_other_code()
    folder, stop = RunFolder.open(Path(path)), _catch_signals()
    if not _attempt(folder, FINAL, stop, requeue=requeue) or not folder.plan().repeats:
        return
    for number in repeats.missing(folder, repeats.contestants(folder)):
        _attempt(folder, repeat_index(number), stop, requeue=requeue)


def _catch_signals() -> _Stop:
    """What the signals of Slurm set from now on; see ``run_shard``."""
    stop = _Stop()
    signal.signal(signal.SIGUSR2, stop.after_point)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # the ranks inherit it: Slurm signals them too
    signal.signal(signal.SIGTERM, stop.at_once)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    return stop


def _attempt(folder: RunFolder, index: int, stop: _Stop, *, requeue: bool) -> bool:
    """One attempt at a shard, the final or a repeat; whether nothing is missing now. ``_requeue`` where time is up."""
    job_id = _job_id()
    num_before = _num_repetitions(folder, index)
    with begin_attempt(folder, index, job_id=job_id, num_gpus=_num_gpus()) as attempt:
        stop.attempt = attempt
        is_complete = _measure(folder, index, job_id, stop)
        attempt.outcome = "complete" if is_complete else "stopped" if stop() else "spent"
        attempt.num_repetitions = _num_repetitions(folder, index) - num_before
    stop.attempt = None
    if attempt.outcome == "stopped":
        _requeue(folder, index, may_requeue=requeue and job_id is not None)
    return is_complete


def run_aggregate(path: str, strict: bool = False, allow_mixed: bool = False) -> None:  # noqa: FBT001, FBT002
    """Writes the report. The report lists missing points; they are not a failure of this job."""
    folder = RunFolder.open(Path(path))
    accounting.update(folder)
    aggregate(folder, strict=strict, allow_mixed=allow_mixed)


def _refuse_other_code() -> None:
    """RuntimeError if the job's Python has found another copy of the program than the submitted one."""
    submitted = os.environ.get(CODE_VARIABLE)
    if submitted is not None and Path(submitted) != ROOT:
        raise RuntimeError(
            f"this job would run the code in {ROOT}, and {submitted} was submitted; is PYTHONPATH changed?"
        )


def _measure(folder: RunFolder, index: int, job_id: str | None, stop: Stop) -> bool:
    if index == FINAL:
        return final.run(folder, job_id=job_id, stop=stop)
    if index < FINAL:
        return repeats.run(folder, FINAL - index, repeats.contestants(folder), job_id=job_id, stop=stop)
    return shard.run(folder, index, job_id=job_id, stop=stop)


def _num_repetitions(folder: RunFolder, index: int) -> int:
    """The number of records other than anchors. Every attempt begins with anchors, so they show no progress."""
    return sum(record.role is not Role.ANCHOR for record in read_shard_records(folder, index))


def _requeue(folder: RunFolder, index: int, *, may_requeue: bool) -> None:
    """Exits with REQUEUE, or raises RuntimeError if the job may not requeue or makes no progress."""
    is_stuck = _is_stuck(read_shard_attempts(folder, index))
    if may_requeue and not is_stuck:
        print(f"{shard_name(index)}: out of time, back into the queue", file=sys.stderr, flush=True)
        sys.exit(REQUEUE)
    hint = "resume the run"
    if is_stuck:
        hint = "two time limits in a row without a point: raise hydra.launcher.timeout_min"
    raise RuntimeError(f"{shard_name(index)}: the time limit came before its last point; {hint}")


def _is_stuck(attempts: Sequence[Attempt]) -> bool:
    """Whether the last two attempts reached their time limits without progress. One may have had a slow start."""
    return [(attempt.outcome, attempt.num_repetitions) for attempt in attempts[-2:]] == [("stopped", 0)] * 2


class _Stop:
    """Whether the job has to stop. Signals set it; the shard reads it between points."""

    def __init__(self) -> None:
        self._is_requested = False
        self.attempt: OpenAttempt | None = None

    def __call__(self) -> bool:
        """Whether no further point may begin."""
        return self._is_requested or signal.SIGUSR2 in signal.sigpending()

    def after_point(self, _number: int, _frame: FrameType | None) -> None:
        """Stops after the point in flight."""
        self._is_requested = True

    def at_once(self, _number: int, _frame: FrameType | None) -> None:
        """Exits now. The attempt is written first, since SIGKILL follows soon; then the supervisor ends the ranks."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if self.attempt is not None:
                self.attempt.terminate()
        finally:
            sys.exit(TERMINATED)


def _job_id() -> str | None:
    """This job as squeue names it: 12_3 in an array, else 12; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID")


def _num_gpus() -> int:
    """The number of GPUs that Slurm, or else CUDA_VISIBLE_DEVICES, gives to this job."""
    on_node = os.environ.get("SLURM_GPUS_ON_NODE")
    devices = on_node or os.environ.get("CUDA_VISIBLE_DEVICES") or ""
    if on_node is not None and devices.isdigit():
        return int(devices)
    return len(list(filter(None, devices.split(","))))
