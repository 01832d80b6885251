"""The body of a job: one attempt at a shard, with its stamps, its signals and its requeue. Runs on the node."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.records import Role
from launcher import ROOT
from launcher.config.plan import FINAL, shard_name
from launcher.jobs import accounting
from launcher.jobs.sbatch import CODE_VARIABLE, REQUEUE, TERMINATED
from launcher.report.writer import aggregate
from launcher.store.attempts import Attempt, OpenAttempt, begin_attempt, read_shard_attempts
from launcher.store.records_file import read_shard_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard
from launcher.tuner.shard import Stop


def run_shard(path: str, index: int, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  (submitit maps positions)
    """Measures what the shard lacks. Raises whatever ended it, so that Slurm calls the job FAILED.

    SIGUSR2, which Slurm sends ahead of the time limit, lets the point in flight finish; then the job puts itself back
    into the queue, unless it is the second in a row that made no progress. SIGTERM (preemption, scancel) ends the ranks
    and the job at once.
    """
    _refuse_other_code()
    folder = RunFolder.open(Path(path))
    stop = _Stop()
    signal.signal(signal.SIGUSR2, stop.soon)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # inherited by the ranks: Slurm signals them too
    signal.signal(signal.SIGTERM, stop.now)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    job_id = _job_id()
    before = _num_visits(folder, index)
    with begin_attempt(folder, index, job_id=job_id, num_gpus=_num_gpus()) as attempt:
        stop.attempt = attempt
        complete = _measure(folder, index, job_id, stop)
        attempt.outcome = "complete" if complete else "stopped" if stop() else "spent"
        attempt.num_repetitions = _num_visits(folder, index) - before
    stop.attempt = None
    if attempt.outcome == "stopped":
        stuck = _is_stuck(read_shard_attempts(folder, index))
        if requeue and job_id is not None and not stuck:
            print(f"{shard_name(index)}: out of time, back into the queue", file=sys.stderr, flush=True)
            sys.exit(REQUEUE)
        hint = (
            "two time limits in a row without a point: raise hydra.launcher.timeout_min" if stuck else "resume the run"
        )
        raise RuntimeError(f"{shard_name(index)}: the time limit came before its last point; {hint}")


def _is_stuck(attempts: Sequence[Attempt]) -> bool:
    """Whether two time limits in a row passed without progress: one may be a node's slow start, two are no accident."""
    return [(attempt.outcome, attempt.num_repetitions) for attempt in attempts[-2:]] == [("stopped", 0)] * 2


def _refuse_other_code() -> None:
    """RuntimeError where the job's Python found another copy of the program than the one that was submitted."""
    wanted = os.environ.get(CODE_VARIABLE)
    if wanted is not None and Path(wanted) != ROOT:
        raise RuntimeError(f"this job would run the code in {ROOT}, and {wanted} was submitted; is PYTHONPATH changed?")


def _num_visits(folder: RunFolder, index: int) -> int:
    """Records other than the anchors, with which every attempt begins: what shows that an attempt made progress."""
    return sum(record.role is not Role.ANCHOR for record in read_shard_records(folder, index))


def run_final(path: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
    """The same for the final stage."""
    run_shard(path, FINAL, requeue)


def _measure(folder: RunFolder, index: int, job_id: str | None, stop: Stop) -> bool:
    if index == FINAL:
        return final.run(folder, job_id=job_id, stop=stop)
    return shard.run(folder, index, job_id=job_id, stop=stop)


def run_aggregate(path: str, strict: bool = False, allow_mixed: bool = False) -> None:  # noqa: FBT001, FBT002
    """Makes the report. Missing points are its business to tell, not a failure of this job."""
    folder = RunFolder.open(Path(path))
    accounting.update(folder)
    aggregate(folder, strict=strict, allow_mixed=allow_mixed)


class _Stop:
    """Set by a signal, read between points."""

    def __init__(self) -> None:
        self._asked = False
        self.attempt: OpenAttempt | None = None

    def __call__(self) -> bool:
        """Whether no further point shall begin."""
        return self._asked or signal.SIGUSR2 in signal.sigpending()

    def soon(self, _number: int, _frame: FrameType | None) -> None:
        """After the point in flight."""
        self._asked = True

    def now(self, _number: int, _frame: FrameType | None) -> None:
        """At once: the stamp first, since a SIGKILL follows soon; the supervisor's cleanup ends the ranks."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if self.attempt is not None:
                self.attempt.terminate()
        finally:
            sys.exit(TERMINATED)


def _job_id() -> str | None:
    """This job as squeue names it: array and index, or a number; None outside Slurm."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and index:
        return f"{array}_{index}"
    return os.environ.get("SLURM_JOB_ID")


def _num_gpus() -> int:
    """GPUs that Slurm gave to this job."""
    given = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("CUDA_VISIBLE_DEVICES") or ""
    return (
        int(given)
        if given.isdigit() and "SLURM_GPUS_ON_NODE" in os.environ
        else len(list(filter(None, given.split(","))))
    )
