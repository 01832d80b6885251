"""Measures one task after another with disposable ranks: a failure becomes a record, and new ranks continue."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench import protocol
from bench.backends import backends_of, machine
from bench.deadlines import Deadlines
from bench.group import Group, RankError
from bench.nvml import gpus as nvml
from bench.records import (
    Alignment,
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
from bench.samples import Samples, first_incorrect, rounded

_MAX_STARTS_WITHOUT_RESULT = 5
"""The self test, both operations of the default and the reference of a point may each fail for a reason of its own."""

_SELF_TEST_ITERATIONS = 10

_SIGNALS = protocol.Align(warmup=3, iterations=20)


class Effort(msgspec.Struct, frozen=True):
    """How long a point is measured, and how long the supervisor waits for its ranks.

    ``warmup`` and ``iterations`` count runs of the operation. A rank that does not respond within ``deadline_s``
    counts as hung; the deadline of a point grows to 20 times the slowest point so far. The start of the ranks and the
    first point of a backend get ``startup_s``.
    """

    warmup: int
    iterations: int
    deadline_s: float
    startup_s: float


class Task(msgspec.Struct, frozen=True):
    """A point to measure now, and why. ``warmup`` and ``iterations`` replace those of the effort where set.

    Ranks that replace failed ones measure the ``references`` first, except the point that failed.
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
    """The ranks do not start, or fail after every start: nothing more can be measured."""


class _BudgetSpentError(Exception):
    """The budget ended before the ranks started or responded: nothing is known of the point, which gets no record."""


class Supervisor:
    """Owns the ranks of a shard, replaces them when they fail, and hands every line to the sink."""

    def __init__(
        self,
        spec: protocol.GroupSpec,
        effort: Effort,
        *,
        anchors: Sequence[Task],
        sink: Callable[[Line], None],
        log_folder: Path,
        shard: int = 0,
        job_id: str | None = None,
        first_group: int = 0,
        first_sequence: int = 0,
        budget_s: float = math.inf,
        compile_s: float = 0.0,
    ) -> None:
        """``anchors``: of each library a dispatch first, whose config its self test runs.

        Groups are numbered from ``first_group``, records from ``first_sequence``. After ``budget_s`` seconds, counted
        from now, the supervisor waits for no rank any more. ``compile_s``: how long kernels were compiled before.
        """
        self._spec, self._effort, self._sink = spec, effort, sink
        self._log_folder, self._shard, self._job_id = log_folder, shard, job_id
        self._group: Group | None = None
        self._group_number = first_group - 1  # the first start adds 1
        self._untested: dict[str, list[Point]] = {}
        for anchor in anchors:
            self._untested.setdefault(anchor.point.backend, []).append(anchor.point)
        self._compile_s = compile_s
        self._starts_without_result = 0
        self._sequence = first_sequence
        self._deadlines = Deadlines(deadline_s=effort.deadline_s, startup_s=effort.startup_s, budget_s=budget_s)
        self._environment = ""
        self._failed_point: Point | None = None
        self._traffic_written = False
        self._can_align = spec.num_ranks > 1 and not spec.shared_gpus

    def run(self, tasks: Iterable[Task]) -> Iterable[Record]:
        """Measures each task and yields its record, which the sink already has. Ends early when the budget is spent.

        StartError when the ranks do not start, or fail right after five starts in a row.
        """
        try:
            for task in tasks:
                if self._deadlines.is_budget_spent:
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
        """Ends the ranks; the next task starts new ones."""
        if self._group is not None:
            self._group.kill()
            self._group = None

    def _measure(self, task: Task) -> Record:
        """The task's record, after its references where ranks were replaced since the last task."""
        self._ensure_group()
        failed_point = self._failed_point
        for reference in () if failed_point is None else task.references:
            if reference.point != failed_point:
                self._record(reference)
                self._ensure_group()
        self._failed_point = None
        return self._record(task)

    def _record(self, task: Task) -> Record:
        """The record of one point, in the sink already; the ranks are ended if they failed."""
        started, began = time.time(), time.monotonic()
        busy_s = 0.0
        outcome: Measured | Failed
        try:
            assert self._group is not None
            outcome, busy_s = self._check_and_time(self._group, task)
        except RankError as failure:
            if self._deadlines.is_budget_spent and failure.failed.failure is FailureKind.HANG:
                raise _BudgetSpentError from None
            outcome, self._failed_point = failure.failed, task.point
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
        if self._group is not None and _reads_telemetry(task):
            self._write_telemetry(self._group, task.point.op)
        self._sequence += 1
        return record

    def _check_and_time(self, group: Group, task: Task) -> tuple[Measured | Failed, float]:
        """The outcome and the busy seconds: checked first, then timed, twice if the samples vary too much."""
        began, point = time.monotonic(), task.point
        is_first_use = not self._deadlines.has_used(point.backend)
        checked = group.check(protocol.Check(point), deadline_s=self._deadlines.point_s(point.backend))
        self._deadlines.note_use(point.backend)
        incorrect = first_incorrect([response.wrong for response in checked], phase="check")
        if incorrect is not None:
            return incorrect, 0.0
        if point.op is not Op.COMPUTE:
            self._write_traffic(checked)
        request = protocol.Time(
            point,
            self._effort.warmup if task.warmup is None else task.warmup,
            task.iterations or self._effort.iterations,
        )
        samples = Samples(group.time(request, deadline_s=self._deadlines.point_s(point.backend)))
        extended = samples.incorrect is None and samples.is_unstable
        if extended:
            samples.extend(group.time(request, deadline_s=self._deadlines.point_s(point.backend)))
        if not is_first_use:  # the first use imports the library, which takes longer than any point
            self._deadlines.note_duration(time.monotonic() - began)
        return samples.incorrect or samples.to_measured(extended=extended), samples.busy_s

    def _ensure_group(self) -> None:
        """Starts ranks where there are none; StartError after five starts without a result."""
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
        self._deadlines.note_restart()
        try:
            self._group = Group(self._spec, log_folder=self._log_folder, startup_s=self._deadlines.startup_s)
        except RankError as failure:
            if self._deadlines.is_budget_spent:
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
                settings=self._group.settings,
                compile_s=self._compile_s,
            )
        )
        self._compile_s = 0.0
        if self._can_align:
            self._align(self._group)
        while self._untested and self._group is not None:
            backend = next(iter(self._untested))
            self._self_test(self._group, self._untested.pop(backend))

    def _self_test(self, group: Group, points: list[Point]) -> None:
        """Edge routings of a library and the reading of an empty operation; ranks that fail are ended."""
        request, backend = protocol.SelfTest(points, _SELF_TEST_ITERATIONS), points[0].backend
        try:
            responses = group.self_test(request, deadline_s=self._deadlines.startup_s)
        except RankError as failure:
            if self._deadlines.is_budget_spent:
                raise _BudgetSpentError from None
            text = f"{failure.failed.failure}: {failure.failed.message}"
            self._sink(SelfCheck([], {"self_test": text}, self._group_number, self._shard, backend))
            self.renew()
            return
        routings = {
            name: next((each for rank in responses if (each := rank.edge_routings.get(name, "ok")) != "ok"), "ok")
            for name in responses[0].edge_routings
        }
        empty_us = np.array([rank.empty_us for rank in responses]).max(axis=0)
        self._sink(SelfCheck(rounded(empty_us), routings, self._group_number, self._shard, backend))

    def _align(self, group: Group) -> None:
        """How far apart the ranks start. Ranks that fail at this are ended, and it is not tried again in this shard."""
        try:
            responses = group.align(_SIGNALS, deadline_s=self._deadlines.startup_s)
        except RankError as failure:
            if self._deadlines.is_budget_spent:
                raise _BudgetSpentError from None
            self._can_align = False
            text = f"{failure.failed.failure}: {failure.failed.message}"
            self._sink(Alignment([], [], self._group_number, self._shard, text))
            self.renew()
            return
        others = range(1, len(responses))
        from_first = [rounded(np.array(responses[rank].samples_us[0])) for rank in others]
        to_first = [rounded(np.array(responses[0].samples_us[rank])) for rank in others]
        self._sink(Alignment(from_first, to_first, self._group_number, self._shard))

    def _write_traffic(self, checked: list[protocol.Checked]) -> None:
        if not self._traffic_written:
            self._traffic_written = True
            self._sink(Traffic([response.sent for response in checked]))

    def _write_telemetry(self, group: Group, op: Op) -> None:
        states = nvml.states(group.pids)
        if states:
            self._sink(Telemetry(time.time(), self._sequence, op, states, self._shard))


def _reads_telemetry(task: Task) -> bool:
    """Whether the state of the GPUs is read after the task: not after every one, since NVML takes milliseconds."""
    return task.point.op is Op.COMPUTE or (task.role is Role.ANCHOR and task.point.op is Op.DISPATCH)


def check_libraries(spec: protocol.GroupSpec) -> None:
    """StartError, in one line with the cure, if a library of the group cannot run on this machine's GPUs."""
    for backend in backends_of(spec.points) if spec.device == "cuda" else ():
        for problem in backend.problems():
            node = socket.gethostname()
            raise StartError(f"{backend.name} cannot run on {node}: {problem.what}; {problem.cure}")


def environment_of(spec: protocol.GroupSpec, ready: protocol.Ready) -> Environment:
    """The environment of a group: versions as its ranks report them, hardware as NVML reports it."""
    gpus = nvml.inventory() if spec.device == "cuda" else []
    packages = frozenset(package for backend in backends_of(spec.points) for package in backend.packages)
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
        versions=ready.versions | machine.providers(packages - {"torch", "nccl"}),  # those say so themselves
    )
