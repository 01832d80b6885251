"""The status of a run, one row for each shard, from its files and from Slurm."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import msgspec
from rich.table import Table

from launcher.config.plan import FINAL, Plan, repeat_index
from launcher.jobs import slurm
from launcher.jobs.slurm import JobState
from launcher.store.attempts import read_attempts, read_shard_attempts
from launcher.store.records_file import read_progress, refuse_packed
from launcher.store.run_folder import RunFolder
from launcher.store.submissions import Submission, read_submissions

_MAX_ROWS = 30


class StatusRow(msgspec.Struct, frozen=True):
    """One shard. ``state`` is Slurm's word, an outcome in capitals, DONE (no point is missing) or NOT SUBMITTED."""

    shard: int
    state: str
    job: str | None
    nodes: str
    planned: int
    done: int
    failed: int


class RunStatus(msgspec.Struct, frozen=True):
    """All rows, and the work that is left. ``time_left_s`` is None before the first point.

    ``repeats``: the planned short finals after the final, of which ``repeats_done`` are complete.
    """

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
    repeats: int = 0
    repeats_done: int = 0

    @property
    def is_over(self) -> bool:
        """Whether Slurm answered and no job of the run is left."""
        return self.jobs_alive == 0 and not self.slurm_silent

    @property
    def is_known(self) -> bool:
        """Whether Slurm or the files tell how every job ended."""
        return "UNKNOWN" not in (self.final, self.aggregate, *(row.state for row in self.rows))

    @property
    def states(self) -> str:
        """The states of all shards, and whether Slurm is silent."""
        return ",".join([*(row.state for row in self.rows), str(self.slurm_silent)])

    @property
    def line(self) -> str:
        """The status in one line."""
        counts = Counter(row.state for row in self.rows)
        shards = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        left = "" if self.time_left_s is None else f", about {self.time_left_s:.0f} s left"
        silent = "; Slurm does not answer" if self.slurm_silent else ""
        failures = "1 failure" if self.failed == 1 else f"{self.failed} failures"
        return f"{self.done}/{self.planned} points, {failures}; shards: {shards}{left}{silent}"


def read(path: Path) -> RunStatus:
    """The status of the run in a folder. UserError if there is none, or if its records are packed."""
    folder = RunFolder.open(path)
    refuse_packed(folder)
    return run_status(folder, folder.plan())


def run_status(folder: RunFolder, plan: Plan, ended: dict[str, JobState] | None = None) -> RunStatus:
    """The status now. ``ended`` grows: it keeps how jobs ended, since Slurm forgets it."""
    submissions = read_submissions(folder)
    states, is_silent = _job_states(submissions)
    ended = {} if ended is None else ended
    states = ended | states
    ended |= {job: state for job, state in states.items() if state.is_over}
    latest = {
        index: submission.job_of(position)
        for submission in submissions
        if submission.kind == "shards"
        for position, index in enumerate(submission.shards)
    }
    rows = [_row(folder, plan, index, latest.get(index), states) for index in range(plan.spec.num_shards)]
    planned, done = sum(row.planned for row in rows), sum(row.done for row in rows)
    num_running = sum(row.state == "RUNNING" for row in rows)
    has_report = folder.report_file.is_file()
    return RunStatus(
        run=str(folder.path),
        rows=rows,
        final=_final_state(folder, plan, submissions, states, num_done=done),
        aggregate="DONE" if has_report and not submissions else _state_of("aggregate", submissions, states),
        planned=planned,
        done=done,
        failed=sum(row.failed for row in rows),
        time_left_s=_time_left_s(folder, num_points=planned, num_done=done, num_running=num_running),
        jobs_alive=sum(not state.is_over for state in states.values()),
        slurm_silent=is_silent,
        repeats=plan.repeats,
        repeats_done=_num_repeats_done(folder, plan),
    )


def _num_repeats_done(folder: RunFolder, plan: Plan) -> int:
    """The repeats whose last attempt found nothing missing any more."""
    attempts = [read_shard_attempts(folder, repeat_index(number)) for number in range(1, plan.repeats + 1)]
    return sum(bool(each) and each[-1].outcome == "complete" for each in attempts)


def _job_states(submissions: list[Submission]) -> tuple[dict[str, JobState], bool]:
    """The states that Slurm knows, and whether it is silent about jobs that were submitted."""
    if not slurm.is_available():
        return {}, bool(submissions)
    return slurm.try_query_jobs(job for submission in submissions for job in submission.jobs)


def _state_of(kind: str, submissions: list[Submission], states: dict[str, JobState]) -> str:
    """Slurm's word for the latest job of a kind."""
    arrays = [submission.array_id for submission in submissions if submission.kind == kind]
    if not arrays:
        return "NOT SUBMITTED"
    state = states.get(arrays[-1])
    return state.state if state else "UNKNOWN"


def _final_state(
    folder: RunFolder, plan: Plan, submissions: list[Submission], states: dict[str, JobState], *, num_done: int
) -> str:
    """Slurm's word for the final; without Slurm that of its last attempt, which may have found nothing to measure."""
    if not plan.has_final:
        return "NOT PLANNED"
    if submissions:
        return _state_of("final", submissions, states)
    state = _state_without_slurm(folder, FINAL) if num_done else "NOT STARTED"
    return "DONE" if state == "COMPLETE" else state


def _row(folder: RunFolder, plan: Plan, index: int, job: str | None, states: dict[str, JobState]) -> StatusRow:
    ids = {planned.id for planned in [*plan.anchors, *plan.baselines, *plan.shard(index)]}
    progress = read_progress(folder, index)
    num_done = len(ids & progress.done)
    job_state = states.get(job) if job else None
    if job_state is not None:
        state = job_state.state
    elif num_done == len(ids):
        state = "DONE"
    else:
        state = _state_of_lost(folder, index) if job else _state_without_slurm(folder, index)
    nodes = job_state.nodes if job_state else ""
    return StatusRow(index, state, job, nodes, len(ids), num_done, progress.num_failed)


def _state_without_slurm(folder: RunFolder, index: int) -> str:
    """The state of a shard that no job was submitted for, from its attempts."""
    attempts = read_shard_attempts(folder, index)
    if not attempts:
        return "NOT SUBMITTED"
    return (attempts[-1].outcome or "running").upper()


def _state_of_lost(folder: RunFolder, index: int) -> str:
    """The outcome of the last attempt, for a job that Slurm has forgotten; UNKNOWN if the attempt has none."""
    attempts = read_shard_attempts(folder, index)
    outcome = attempts[-1].outcome if attempts else None
    return outcome.upper() if outcome else "UNKNOWN"


def _time_left_s(folder: RunFolder, *, num_points: int, num_done: int, num_running: int) -> float | None:
    """A forecast from the time per point so far, without pauses between attempts.

    None if nothing runs, before the first point, and in later rounds, which have no points left.
    """
    attempts = read_attempts(folder)
    running = sorted((attempt.began for attempt in attempts if attempt.ended is None), reverse=True)[:num_running]
    busy_s = sum(attempt.ended - attempt.began for attempt in attempts if attempt.ended is not None)
    busy_s += sum(time.time() - began for began in running)
    if not num_done or num_done >= num_points or not running:
        return None
    return busy_s / num_done * (num_points - num_done) / len(running)


def table(status: RunStatus) -> Table:
    """The shards as a table, those that run or failed first."""
    rows = Table(caption=status.line, title=status.run, title_justify="left")
    for name in ("shard", "state", "job", "node", "points", "failures"):
        rows.add_column(name, justify="right" if name in ("shard", "points", "failures") else "left")
    order = sorted(status.rows, key=lambda row: (row.state in ("COMPLETED", "DONE", "PENDING"), row.shard))
    for row in order[:_MAX_ROWS]:
        rows.add_row(str(row.shard), row.state, row.job or "", row.nodes, f"{row.done}/{row.planned}", str(row.failed))
    if len(order) > _MAX_ROWS:
        rows.add_row("...", f"{len(order) - _MAX_ROWS} more", "", "", "", "")
    rows.add_row("final", status.final, "", "", "", "")
    if status.repeats:
        rows.add_row("repeats", f"{status.repeats_done} of {status.repeats} done", "", "", "", "")
    rows.add_row("aggregate", status.aggregate, "", "", "", "")
    return rows
