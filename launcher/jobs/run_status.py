"""How a run stands: one row for each shard, from the files and from Slurm, for the live table and the command."""

from __future__ import annotations

import contextlib
import time
from collections import Counter

import msgspec
from rich.table import Table

from launcher.config.plan import FINAL, Plan
from launcher.jobs import slurm
from launcher.jobs.slurm import JobState, SlurmSilentError
from launcher.store.attempts import read_attempts, read_shard_attempts
from launcher.store.records_file import read_progress
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import Submission, read_submissions


class StatusRow(msgspec.Struct, frozen=True):
    """One shard. ``state`` is Slurm's word, DONE when no point is missing, or NOT SUBMITTED."""

    shard: int
    state: str
    job: str | None
    nodes: str
    planned: int
    done: int
    failed: int


class RunStatus(msgspec.Struct, frozen=True):
    """All rows, and what is left. ``time_left_s`` is None before the first point."""

    run: str
    rows: list[StatusRow]
    final: str
    aggregate: str
    planned: int
    done: int
    failed: int
    time_left_s: float | None
    jobs_alive: int
    slurm_silent: bool

    @property
    def is_over(self) -> bool:
        """Whether no job of the run is left in Slurm, and Slurm has said so."""
        return self.jobs_alive == 0 and not self.slurm_silent

    @property
    def is_known(self) -> bool:
        """Whether Slurm or the files tell what became of every job."""
        return "UNKNOWN" not in (self.final, self.aggregate, *(row.state for row in self.rows))


def run_status(folder: RunFolder, plan: Plan, ended: dict[str, JobState] | None = None) -> RunStatus:
    """The status now. ``ended``: how jobs ended that earlier looks saw, since Slurm forgets them; grows."""
    jobs = read_submissions(folder)
    ended = {} if ended is None else ended
    states: dict[str, JobState] = {}
    silent = bool(jobs)
    if slurm.available():
        with contextlib.suppress(SlurmSilentError):
            states = slurm.states(job for one in jobs for job in one.jobs)
            silent = False
    states = ended | states
    ended |= {job: state for job, state in states.items() if state.is_over}
    latest = {index: one.job_of(at) for one in jobs if one.kind == "shards" for at, index in enumerate(one.shards)}
    rows = [_row(folder, plan, index, latest.get(index), states) for index in range(plan.spec.num_shards)]
    planned, done = sum(row.planned for row in rows), sum(row.done for row in rows)
    return RunStatus(
        run=str(folder.path),
        rows=rows,
        final=_state_of("final", jobs, states) if jobs else _here(folder, FINAL),
        aggregate=_state_of("aggregate", jobs, states) if jobs or not folder.report_file.is_file() else "DONE",
        planned=planned,
        done=done,
        failed=sum(row.failed for row in rows),
        time_left_s=_time_left_s(
            folder, points=planned, done=done, num_running=sum(row.state == "RUNNING" for row in rows)
        ),
        jobs_alive=sum(not state.is_over for state in states.values()),
        slurm_silent=silent,
    )


def _state_of(kind: str, jobs: list[Submission], states: dict[str, JobState]) -> str:
    """Slurm's word for the latest job of a kind."""
    arrays = [one.array_id for one in jobs if one.kind == kind]
    if not arrays:
        return "NOT SUBMITTED"
    found = states.get(arrays[-1])
    return found.state if found else "UNKNOWN"


def _row(folder: RunFolder, plan: Plan, index: int, job: str | None, states: dict[str, JobState]) -> StatusRow:
    ids = {planned.id for planned in [*plan.anchors, *plan.baselines, *plan.shard(index)]}
    progress = read_progress(folder, index)
    done = len(ids & progress.done)
    found = states.get(job) if job else None
    if found is not None:
        state = found.state
    elif done == len(ids):
        state = "DONE"
    else:
        state = _stamped(folder, index) if job else _here(folder, index)
    return StatusRow(index, state, job, found.nodes if found else "", len(ids), done, progress.num_failed)


def _here(folder: RunFolder, index: int) -> str:
    """Of what no job was submitted for: how a run without Slurm stands by its attempts."""
    attempts = read_shard_attempts(folder, index)
    if not attempts:
        return "NOT SUBMITTED"
    return (attempts[-1].outcome or "running").upper()


def _stamped(folder: RunFolder, index: int) -> str:
    """How the last attempt says that it ended, FAILED, STOPPED or TERMINATED; UNKNOWN when it could not say."""
    attempts = read_shard_attempts(folder, index)
    outcome = attempts[-1].outcome if attempts else None
    return outcome.upper() if outcome else "UNKNOWN"


def _time_left_s(folder: RunFolder, *, points: int, done: int, num_running: int) -> float | None:
    """By what a point took so far, waits between attempts left out; None where nothing tells, as in later rounds."""
    attempts = read_attempts(folder)
    running = sorted((one.began for one in attempts if one.ended is None), reverse=True)[:num_running]
    busy_s = sum(one.ended - one.began for one in attempts if one.ended is not None)
    busy_s += sum(time.time() - began for began in running)
    if not done or done >= points or not running:
        return None
    return busy_s / done * (points - done) / len(running)


def summary(status: RunStatus) -> str:
    """One line."""
    counts = Counter(row.state for row in status.rows)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    left = "" if status.time_left_s is None else f", about {status.time_left_s:.0f} s left"
    silent = "; Slurm does not answer" if status.slurm_silent else ""
    return f"{status.done}/{status.planned} points, {status.failed} failures; shards: {states}{left}{silent}"


_MAX_ROWS = 30


def table(now: RunStatus) -> Table:
    """The shards, those that are at work or in trouble first."""
    shown = Table(caption=summary(now), title=now.run, title_justify="left")
    for name in ("shard", "state", "job", "node", "points", "failures"):
        shown.add_column(name, justify="right" if name in ("shard", "points", "failures") else "left")
    order = sorted(now.rows, key=lambda row: (row.state in ("COMPLETED", "DONE", "PENDING"), row.shard))
    for row in order[:_MAX_ROWS]:
        shown.add_row(str(row.shard), row.state, row.job or "", row.nodes, f"{row.done}/{row.planned}", str(row.failed))
    if len(order) > _MAX_ROWS:
        shown.add_row("...", f"{len(order) - _MAX_ROWS} more", "", "", "", "")
    shown.add_row("final", now.final, "", "", "", "")
    shown.add_row("aggregate", now.aggregate, "", "", "", "")
    return shown
