"""Measures tasks one after the other with disposable ranks: what fails becomes a record, and the work goes on."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np

from bench import protocol
from bench.group import Group, RankError
from bench.nvml import gpus as nvml
from bench.records import (
    Environment,
    Failed,
    FailureKind,
    Host,
    Line,
    Measured,
    Op,
    Point,
    Record,
    Role,
    SelfCheck,
    Stage,
    Telemetry,
    Traffic,
)
from bench.stats import UNSTABLE_SPREAD, Floats, spread

_MAX_STARTS_WITHOUT_RESULT = 5
"""The self test, both operations of the default and then a point's reference may each fail for their own reasons."""
_SELF_TEST_ITERATIONS = 10
_DEADLINE_FACTOR = 20


class Effort(msgspec.Struct, frozen=True):
    """How long a point is measured, and how long it may take.

    ``deadline_s`` is the least time before a silent rank counts as hung; slower points get 20 times the slowest
    point so far. The first use of a backend, and the start of the ranks, get ``startup_s``.
    """

    warmup: int
    iterations: int
    deadline_s: float
    startup_s: float


class Task(msgspec.Struct, frozen=True):
    """A point to measure now, and why; ``warmup`` and ``iterations`` other than the effort's where set.

    ``references`` are measured before it by ranks that replace some that failed, except a point whose failure it was.
    """

    point: Point
    point_id: str
    role: Role
    stage: Stage = Stage.SWEEP
    round: int = 0
    warmup: int | None = None
    iterations: int | None = None
    references: tuple[Task, ...] = ()


class StartError(Exception):
    """The ranks cannot be started at all, so that nothing more can be measured."""


class _BudgetSpentError(Exception):
    """The budget ended before ranks started or answered: says nothing about the point, so that it has no record."""


class Supervisor:
    """Ranks that are replaced when they fail, and a sink for every line that is worth keeping."""

    def __init__(
        self,
        spec: protocol.GroupSpec,
        effort: Effort,
        *,
        anchor: Task,
        sink: Callable[[Line], None],
        log_folder: Path,
        shard: int = 0,
        job_id: str | None = None,
        first_group: int = 0,
        first_sequence: int = 0,
        budget_s: float = math.inf,
    ) -> None:
        """``anchor`` is what the self test runs.

        Groups and records are numbered on from ``first_group`` and ``first_sequence``. ``budget_s``, from now on, is
        when no rank is waited for any more, whatever it does.
        """
        self._spec, self._effort, self._anchor, self._sink = spec, effort, anchor, sink
        self._log_folder, self._shard, self._job_id = log_folder, shard, job_id
        self._group: Group | None = None
        self._group_number = self._first_group = first_group - 1
        self._first_group += 1
        self._starts_without_result = 0
        self._sequence = first_sequence
        self._ends = time.monotonic() + budget_s
        self._environment = ""
        self._slowest_s = 0.0
        self._backends_used: set[str] = set()
        self._lost: Point | None = None
        self._traffic_known = False

    def run(self, tasks: Iterable[Task]) -> Iterable[Record]:
        """Measures each task, hands its record to the sink, and yields it; ends early when the budget is spent.

        StartError when no rank can start.
        """
        try:
            for task in tasks:
                if self._is_spent:
                    return
                yield self._measure(task)
        except _BudgetSpentError:
            return
        finally:
            self.close()

    def close(self) -> None:
        """Ends the ranks."""
        self.renew()

    def renew(self) -> None:
        """The next task gets fresh processes."""
        if self._group is not None:
            self._group.kill()
            self._group = None

    def _measure(self, task: Task) -> Record:
        self._ensure_group()
        lost = self._lost
        for reference in () if lost is None else task.references:
            if reference.point != lost:
                self._attempt(reference)
                self._ensure_group()
        self._lost = None
        return self._attempt(task)

    @property
    def _is_spent(self) -> bool:
        return time.monotonic() >= self._ends

    def _within_budget(self, deadline_s: float) -> float:
        return max(0.0, min(deadline_s, self._ends - time.monotonic()))

    def _attempt(self, task: Task) -> Record:
        started, began = time.time(), time.monotonic()
        busy_s = 0.0
        outcome: Measured | Failed
        try:
            assert self._group is not None
            outcome, busy_s = self._trial(self._group, task)
        except RankError as failure:
            if self._is_spent and failure.failed.failure is FailureKind.HANG:
                raise _BudgetSpentError from None
            outcome, self._lost = failure.failed, task.point
            self.renew()
        else:
            self._starts_without_result = 0
        record = Record(
            point=task.point,
            point_id=task.point_id,
            outcome=outcome,
            environment=self._environment,
            started=started,
            wall_s=time.monotonic() - began,
            busy_s=busy_s,
            role=task.role,
            stage=task.stage,
            round=task.round,
            sequence=self._sequence,
            group=self._group_number,
            shard=self._shard,
        )
        self._sink(record)
        if self._group is not None and _is_landmark(task):
            self._note_state(self._group, task.point.op)
        self._sequence += 1
        return record

    def _trial(self, group: Group, task: Task) -> tuple[Measured | Failed, float]:
        """Correctness, then time; once more when the samples are spread out."""
        began, point = time.monotonic(), task.point
        is_first_use = point.backend not in self._backends_used
        checked = group.check(protocol.Check(point), deadline_s=self._deadline_s(point))
        self._backends_used.add(point.backend)
        wrong = _first_wrong([answer.wrong for answer in checked], phase="check")
        if wrong is not None:
            return wrong, 0.0
        if point.op is not Op.COMPUTE:
            self._note_traffic(checked)
        ask = protocol.Time(
            point,
            self._effort.warmup if task.warmup is None else task.warmup,
            task.iterations or self._effort.iterations,
        )
        timings = _Timings(group.time(ask, deadline_s=self._deadline_s(point)))
        extended = timings.wrong is None and spread(timings.samples.max(axis=0)) > UNSTABLE_SPREAD
        if extended:
            timings.add(group.time(ask, deadline_s=self._deadline_s(point)))
        if not is_first_use:  # which imports the library, and tells nothing of how long a point takes
            self._slowest_s = max(self._slowest_s, time.monotonic() - began)
        return timings.wrong or timings.measured(extended=extended), timings.busy_s

    def _deadline_s(self, point: Point) -> float:
        least = self._effort.deadline_s
        if point.backend not in self._backends_used:
            least = max(least, self._effort.startup_s)
        return self._within_budget(max(least, _DEADLINE_FACTOR * self._slowest_s))

    def _ensure_group(self) -> None:
        while self._group is None:
            if self._starts_without_result >= _MAX_STARTS_WITHOUT_RESULT:
                raise StartError(
                    f"the ranks failed right after {_MAX_STARTS_WITHOUT_RESULT} starts in a row; see the failures "
                    "recorded above"
                )
            self._starts_without_result += 1
            self._start()

    def _start(self) -> None:
        started = time.time()
        self._group_number += 1
        self._backends_used = set()
        try:
            startup_s = self._within_budget(self._effort.startup_s)
            self._group = Group(self._spec, log_folder=self._log_folder, startup_s=startup_s)
        except RankError as failure:
            if self._is_spent:
                raise _BudgetSpentError from None
            detail = f"{failure.failed.message}\n{failure.failed.last_words}"
            raise StartError(f"the ranks did not start: {detail}") from None
        environment = environment_of(self._spec, self._group.ready[0])
        self._environment = environment.id
        self._sink(environment)
        self._sink(
            Host(
                hostname=socket.gethostname(),
                group=self._group_number,
                started=started,
                startup_s=self._group.startup_s,
                gpu_uuids=nvml.uuids()[: self._spec.num_ranks],
                python=self._group.ready[0].python,
                shard=self._shard,
                job_id=self._job_id,
            )
        )
        if self._group_number == self._first_group:
            self._self_test(self._group)

    def _self_test(self, group: Group) -> None:
        """Edge routings and the empty reading, once per shard; a failure here is recorded and the ranks replaced."""
        ask = protocol.SelfTest(self._anchor.point, _SELF_TEST_ITERATIONS)
        try:
            answers = group.self_test(ask, deadline_s=self._within_budget(self._effort.startup_s))
        except RankError as failure:
            if self._is_spent:
                raise _BudgetSpentError from None
            text = f"{failure.failed.failure}: {failure.failed.message}"
            self._sink(SelfCheck([], {"self_test": text}, self._group_number, self._shard))
            self.renew()
            return
        routings = {
            name: next((a.edge_routings[name] for a in answers if a.edge_routings[name] != "ok"), "ok")
            for name in answers[0].edge_routings
        }
        empty = np.array([answer.empty_us for answer in answers]).max(axis=0)
        self._sink(SelfCheck([round(v, 3) for v in empty.tolist()], routings, self._group_number, self._shard))

    def _note_traffic(self, checked: list[protocol.Checked]) -> None:
        if not self._traffic_known:
            self._traffic_known = True
            self._sink(Traffic([answer.sent for answer in checked]))

    def _note_state(self, group: Group, op: Op) -> None:
        states = nvml.states(group.pids)
        if states:
            self._sink(Telemetry(time.time(), self._sequence, op, states, self._shard))


class _Timings:
    """What the ranks measured of one point: ``samples`` and ``compute`` [num_ranks, iterations]."""

    def __init__(self, answers: list[protocol.Timed]) -> None:
        self.samples = np.array([answer.samples_us for answer in answers])
        self._compute = np.array([answer.compute_us for answer in answers])
        self.busy_s = max(answer.busy_s for answer in answers)
        self.wrong = _first_wrong([answer.wrong for answer in answers], phase="time")

    def add(self, answers: list[protocol.Timed]) -> None:
        """Appends more iterations."""
        more = _Timings(answers)
        self.samples = np.concatenate([self.samples, more.samples], axis=1)
        self._compute = np.concatenate([self._compute, more._compute], axis=1)
        self.busy_s += more.busy_s
        self.wrong = self.wrong or more.wrong

    def measured(self, *, extended: bool) -> Measured:
        """The sample of an iteration is the slowest rank's."""
        return Measured(
            samples_us=_rounded(self.samples.max(axis=0)),
            rank_median_us=_rounded(np.median(self.samples, axis=1)),
            extended=extended,
            compute_us=_rounded(self._compute.max(axis=0)),
        )


def _is_landmark(task: Task) -> bool:
    """Whether the GPUs' state is read after it: now and then, since that takes NVML some milliseconds."""
    return task.point.op is Op.COMPUTE or (task.role is Role.ANCHOR and task.point.op is Op.DISPATCH)


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 3) for value in values]


def _first_wrong(verdicts: list[str | None], *, phase: str) -> Failed | None:
    """The first rank that saw a wrong token, as a failure."""
    for rank, wrong in enumerate(verdicts):
        if wrong is not None:
            return Failed(FailureKind.INCORRECT, f"rank {rank}: {wrong}", phase, rank)
    return None


def environment_of(spec: protocol.GroupSpec, ready: protocol.Ready) -> Environment:
    """What the ranks run on: torch's words for the software, NVML's for the hardware."""
    gpus = nvml.inventory() if spec.device == "cuda" else []
    first = gpus[0] if gpus else None
    return Environment(
        device=ready.device_name,
        num_devices=len(gpus) if spec.shared_gpus else min(len(gpus), spec.num_ranks),
        num_ranks=spec.num_ranks,
        shared_gpus=spec.shared_gpus,
        num_sms=first.num_sms if first else None,
        memory_bytes=first.memory_bytes if first else None,
        num_links=first.num_links if first else None,
        link_gb_per_s=first.link_gb_per_s if first else None,
        driver=nvml.driver() if first else None,
        topology=nvml.topology() if first else None,
        versions=ready.versions,
    )
