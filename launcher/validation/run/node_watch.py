"""Watches the jobs of a validation until they are over, and requeues a job that blocks its lane."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from typing import NamedTuple

import msgspec
from rich.spinner import Spinner

from launcher.errors import UserError
from launcher.jobs import slurm, waiting
from launcher.jobs.slurm import JobState
from launcher.store.revision import can_run_jobs
from launcher.validation.run import node_jobs
from launcher.validation.run.folder import Order, Skip, ValidationFolder
from launcher.validation.run.lanes import Lanes
from launcher.validation.run.selection import is_down, why_down

_FREE = ("idle", "reserved")
"""States of a node that runs no job. Slurm knows whose jobs a reserved node takes."""


class NodesStatus(NamedTuple):
    """The state of all nodes at one look. ``is_late``: the jobs that are left have had all their time."""

    line: str
    is_over: bool
    is_known: bool
    is_late: bool

    @property
    def states(self) -> str:
        """The line: it has no other contents."""
        return self.line


def wait(folder: ValidationFolder) -> None:
    """Waits until no job is left, or until the jobs that are left have had all their time; then cancels these.

    Slurm's last word on each job is noted: a site without accounting forgets it within minutes.
    """
    watch = _Watch(folder)
    status = waiting.wait(watch.look, lambda status: Spinner("dots", text=status.line))
    watch.finish(is_late=status.is_late)


class _Watch:
    """The order, which changes when a job is requeued, and Slurm's last word on each job."""

    def __init__(self, folder: ValidationFolder) -> None:
        self._folder, self._order = folder, folder.order()
        self._states = dict(self._order.states)
        self._lanes = Lanes(self._order.lanes)

    def look(self) -> NodesStatus:
        """The status now. Requeues the jobs that block their lanes."""
        order = self._order
        states, is_silent = slurm.try_query_jobs(order.jobs.values())
        self._states |= {job: state.state for job, state in states.items()}
        alive = [job for job in order.jobs.values() if job in states and not states[job].is_over]
        is_late = order.until is not None and time.time() > order.until
        is_over = is_late or not (alive or is_silent)
        is_known = is_late or len(self._ended_jobs()) + len(alive) == len(order.jobs)
        line = self._line() + ("; Slurm does not answer" if is_silent else "")
        if not is_over:
            self._requeue_blocking(states)
        return NodesStatus(line, is_over, is_known, is_late)

    def finish(self, *, is_late: bool) -> None:
        """Cancels the jobs that are left, and notes how each job ended."""
        slurm.cancel(set(self._order.jobs.values()) - self._ended_jobs())
        if is_late:
            self._states |= {job: "DEADLINE" for job, state in self._states.items() if state == "PENDING"}
        order = _skip_lost(self._order, self._states)
        states = {job: state for job, state in self._states.items() if job in set(order.jobs.values())}
        self._folder.note(msgspec.structs.replace(order, states=states))

    def _ended_jobs(self) -> set[str]:
        return {job for job in self._order.jobs.values() if self._states.get(job) in slurm.ENDED}

    def _line(self) -> str:
        """The number of nodes by verdict, or by the state of their jobs."""
        counts: Counter[str] = Counter()
        for node, job in self._order.jobs.items():
            with contextlib.suppress(UserError):
                result = self._folder.result(node)
                state = self._states.get(job, "UNKNOWN").lower()
                counts[result.verdict.value if result is not None and result.complete else state] += 1
        nodes = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        return f"{len(self._order.jobs)} nodes: {nodes}"

    def _requeue_blocking(self, states: dict[str, JobState]) -> None:
        """Requeues jobs that wait for a busy node, if a node of their lane is free."""
        blocking = self._lanes.find_blocking(self._order.jobs, states)
        if not blocking:
            return
        try:
            free = {name for name, node in slurm.query_nodes().items() if node.state.startswith(_FREE)}
            for node, waiting_nodes in blocking.items():
                if node not in free and waiting_nodes & free:
                    self._requeue(node)
        except UserError as error:  # Slurm is silent or refuses the new job: the old one stays
            print(f"{error}; the jobs keep their places in the queue", file=sys.stderr)

    def _requeue(self, node: str) -> None:
        """Replaces the job of a node by a new one, the last of its lane, unless the old one has begun."""
        order = self._order
        if order.deadline is None or time.time() > order.deadline:
            return  # the new job could not begin in time
        if not can_run_jobs(self._folder.code):
            return  # an earlier version began the run, and its copy of the code does not know our jobs
        old, new = order.jobs[node], node_jobs.submit_node(self._folder, order, node)
        try:
            is_withdrawn = slurm.withdraw(old)
        except BaseException:
            slurm.cancel([new])
            raise
        if not is_withdrawn:
            slurm.cancel([new])
            return
        print(f"{node} is busy and goes behind the other nodes of its lane: job {new} replaces {old}", file=sys.stderr)
        self._order = msgspec.structs.replace(order, jobs=order.jobs | {node: new})
        self._folder.note(self._order)


def _skip_lost(order: Order, states: dict[str, str]) -> Order:
    """The order with nodes that went down or were drained while their jobs waited among the skipped ones."""
    late = [node for node, job in order.jobs.items() if states.get(job) == "DEADLINE"]
    try:
        known = slurm.query_nodes() if late else {}
    except UserError:
        return order
    lost = [Skip(node, "U908", why_down(known[node])) for node in late if node in known and is_down(known[node])]
    names = {skip.node for skip in lost}
    return msgspec.structs.replace(
        order,
        nodes=[node for node in order.nodes if node not in names],
        skipped=[*order.skipped, *lost],
        jobs={node: job for node, job in order.jobs.items() if node not in names},
    )
