"""How a run stands: one row for each shard, from the files and from Slurm, for the live table and the command."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from launcher import slurm
from launcher.plan import Plan
from launcher.slurm import JobState
from launcher.store import RunFolder, Submission


class Row(msgspec.Struct, frozen=True):
    """One shard. ``state`` is Slurm's word, DONE when no point is missing, or NOT SUBMITTED."""

    shard: int
    state: str
    job: str | None
    nodes: str
    planned: int
    done: int
    failed: int


class Picture(msgspec.Struct, frozen=True):
    """All rows, and what is left. ``time_left_s`` is None before the first point."""

    run: str
    rows: list[Row]
    final: str
    aggregate: str
    planned: int
    done: int
    failed: int
    time_left_s: float | None
    jobs_alive: int

    @property
    def is_over(self) -> bool:
        """Whether no job of the run is left in Slurm."""
        return self.jobs_alive == 0


def take(folder: RunFolder, plan: Plan) -> Picture:
    """The picture now."""
    jobs = folder.jobs().submissions
    states = slurm.states(one.array_id for one in jobs) if jobs and slurm.available() else {}
    latest = {index: one.job_of(at) for one in jobs if one.kind == "shards" for at, index in enumerate(one.shards)}
    rows = [_row(folder, plan, index, latest.get(index), states) for index in range(plan.spec.num_shards)]
    planned, done = sum(row.planned for row in rows), sum(row.done for row in rows)
    return Picture(
        run=str(folder.path),
        rows=rows,
        final=_state_of("final", jobs, states),
        aggregate=_state_of("aggregate", jobs, states),
        planned=planned,
        done=done,
        failed=sum(row.failed for row in rows),
        time_left_s=_time_left_s(folder, planned, done),
        jobs_alive=sum(not state.is_over for state in states.values()),
    )


def _state_of(kind: str, jobs: list[Submission], states: dict[str, JobState]) -> str:
    """Slurm's word for the latest job of a kind."""
    arrays = [one.array_id for one in jobs if one.kind == kind]
    if not arrays:
        return "NOT SUBMITTED"
    found = states.get(arrays[-1])
    return found.state if found else "UNKNOWN"


def _row(folder: RunFolder, plan: Plan, index: int, job: str | None, states: dict[str, JobState]) -> Row:
    ids = {planned.id for planned in [*plan.anchors, *plan.baselines, *plan.shard(index)]}
    progress = folder.progress(index)
    done = len(ids & progress.done)
    found = states.get(job) if job else None
    if found is not None:
        state = found.state
    elif done == len(ids):
        state = "DONE"
    else:
        state = "UNKNOWN" if job else "NOT SUBMITTED"
    return Row(index, state, job, found.nodes if found else "", len(ids), done, progress.num_failed)


def _time_left_s(folder: RunFolder, planned: int, done: int) -> float | None:
    """By the pace of the run so far."""
    began = min((attempt.began for attempt in folder.attempts()), default=None)
    if began is None or not done:
        return None
    return (time.time() - began) / done * (planned - done)


def summary(picture: Picture) -> str:
    """One line."""
    counts = Counter(row.state for row in picture.rows)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    left = "" if picture.time_left_s is None else f", about {picture.time_left_s:.0f} s left"
    return f"{picture.done}/{picture.planned} points, {picture.failed} failures; shards: {states}{left}"
