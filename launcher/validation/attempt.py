"""One run through the six phases of a node's validation: asks, checks, measures; judges nothing."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from bench import protocol, workload
from bench.backends import BACKENDS
from bench.faults import Fault
from bench.group import Group, RankFailure
from bench.protocol import GroupSpec
from bench.records import (
    Dtype,
    Environment,
    Failed,
    FailureKind,
    Line,
    Measured,
    Op,
    Point,
    Record,
    Role,
    SelfCheck,
    digest,
)
from bench.supervisor import Effort, StartFailure, Supervisor, Task, environment_of
from launcher.validation.node import Attempt, Phase, Rate, Trouble
from launcher.validation.readings import Readings
from launcher.validation.settings import Spec

PHASES = ("preflight", "pairs", "alltoall", "correctness", "speed", "counters")
_MIB = 2**20
_CPU_ALLTOALL_MIB = (1, 4)
_COPY_BLOCKS, _COPY_ITERATIONS, _COPY_WARMUP = 5, 3, 2
_CHECK_ITERATIONS = 3
_THROTTLED_SHARE = 0.01
_THROTTLE = {
    "throttle_hardware_thermal_ns": "hardware thermal slowdown",
    "throttle_software_thermal_ns": "software thermal slowdown",
    "throttle_power_brake_ns": "hardware power brake",
    "throttle_power_ns": "power cap",
}


class _OutOfTime(Exception):
    """A phase has used up its limit."""


class _Clock:
    """What is left of a phase's time."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._began = limit_s, time.monotonic()

    def left(self, wanted_s: float) -> float:
        """At most ``wanted_s``; _OutOfTime when nothing is left."""
        left = self._limit_s - (time.monotonic() - self._began)
        if left <= 0:
            raise _OutOfTime(f"not done within its {self._limit_s:.0f} s")
        return min(wanted_s, left)


class AttemptRun:
    """One run through the phases. What it finds grows, and ``checkpoint`` gets it before and after each phase."""

    def __init__(
        self,
        spec: Spec,
        order: list[int],
        *,
        number: int,
        readings: Readings,
        faults: list[Fault],
        folder: Path,
        sink: Callable[[Line], None],
        checkpoint: Callable[[Attempt], None],
        say: Callable[[str], None],
    ) -> None:
        """``order`` is the GPU of each rank; ``faults`` strike the ranks; ``folder`` gets their logs."""
        self._spec, self._order, self._readings, self._faults = spec, order, readings, faults
        self._logs, self._sink, self._checkpoint, self._say = folder / "logs", sink, checkpoint, say
        self._began = time.monotonic()
        self._group: Group | None = None
        self._phases = {name: Phase(name, "pending") for name in PHASES}
        self._made = Attempt(number=number, order=order, phases=[])
        self._rates: list[Rate] = []
        self._checks: dict[str, str] = {}
        self._troubles: list[Trouble] = []
        self._usable = True

    def run(self) -> Attempt:
        """Every phase in turn: what one cannot do never keeps the next from trying."""
        limits = self._spec.limits
        bodies = {
            "preflight": (self._preflight, limits.preflight_s),
            "pairs": (self._pairs, limits.pairs_s),
            "alltoall": (self._alltoall, limits.alltoall_s),
            "correctness": (self._correctness, limits.correctness_s),
            "speed": (self._speed, limits.speed_s),
            "counters": (self._counters, limits.counters_s),
        }
        try:
            for name, (body, limit_s) in bodies.items():
                self._phase(name, body, limit_s)
        finally:
            self._end_group()
        return self._snapshot()

    def _snapshot(self) -> Attempt:
        return msgspec.structs.replace(
            self._made,
            phases=list(self._phases.values()),
            rates=list(self._rates),
            checks=dict(self._checks),
            troubles=list(self._troubles),
        )

    def _phase(self, name: str, body: Callable[[_Clock], str | None], limit_s: float) -> None:
        """``body`` returns why it was skipped, None when it was done."""
        began = time.monotonic()
        self._phases[name] = Phase(name, "running")
        self._checkpoint(self._snapshot())
        number_of_troubles = len(self._troubles)
        skipped = None
        try:
            if self._usable or name == "counters":
                skipped = body(_Clock(limit_s))
            else:
                skipped = "the preflight found that it cannot run here"
        except RankFailure as failure:
            self._trouble(name, failure.failed)
        except StartFailure as failure:
            self._troubles.append(Trouble(name, "start", "", str(failure).splitlines()[0], str(failure)))
        except _OutOfTime as late:
            self._troubles.append(Trouble(name, "timeout", "", str(late)))
        wall_s = round(time.monotonic() - began, 3)
        if len(self._troubles) > number_of_troubles:
            self._end_group()
            self._phases[name] = Phase(name, "failed", self._troubles[-1].message, wall_s)
        else:
            self._phases[name] = Phase(name, "skipped" if skipped else "done", skipped or "", wall_s)
        state = self._phases[name]
        self._say(f"{name}: {state.status}{': ' + state.reason if state.reason else ''} ({wall_s:.1f} s)")
        self._checkpoint(self._snapshot())

    def _trouble(self, phase: str, failed: Failed) -> None:
        where = "" if failed.rank is None else f"gpu{self._order[failed.rank]}"
        if failed.failure is FailureKind.HANG:
            where = ""  # a silent rank may be the victim of another
        self._troubles.append(Trouble(phase, failed.failure.value, where, failed.message, failed.last_words))

    # ---- phase 0

    def _preflight(self, _: _Clock) -> str | None:
        found = self._readings.preflight()
        self._made = msgspec.structs.replace(self._made, preflight=found, before=self._readings.counters())
        foreign = any(state.foreign_processes for state in found.states)
        short = (not self._spec.on_cpu or found.made_up) and len(found.gpus) < self._spec.gpus
        self._usable = not (foreign or short)
        if self._spec.on_cpu and not found.gpus:
            return "this machine has no GPUs, so there is nothing to take stock of"
        return None

    # ---- phases 1 and 2

    def _pairs(self, clock: _Clock) -> str | None:
        if self._spec.on_cpu:
            return "there are no GPUs, and so no links between them"
        size = self._spec.copy_mib * _MIB
        for engine in ("copy", "sm"):
            for source in range(self._spec.gpus):
                for target in range(self._spec.gpus):
                    if source != target:
                        self._pair(clock, engine, source, target, size)
        return None

    def _pair(self, clock: _Clock, engine: str, source: int, target: int, size: int) -> None:
        ask = protocol.Copy(source, target, engine, size, _COPY_WARMUP, _COPY_BLOCKS * _COPY_ITERATIONS)
        answers = self._running(clock).move(ask, deadline_s=clock.left(self._spec.measure.startup_s))
        where = f"gpu{self._order[source]}>gpu{self._order[target]}"
        samples = answers[source if engine == "copy" else target].samples_us
        blocks = [statistics.median(samples[at::_COPY_BLOCKS]) for at in range(_COPY_BLOCKS)]
        peak = self._pair_peak(self._order[source], self._order[target])
        rates = [size / block / 1000 for block in blocks]
        self._rates.append(Rate(f"pair_{engine}", where, f"{self._spec.copy_mib} MiB", "GB/s", rates, peak))
        said = next((answer.wrong for answer in answers if answer.wrong), None)
        self._checks[f"pairs: {engine} {where}"] = said or "ok"

    def _pair_peak(self, one: int, other: int) -> float | None:
        rate = self._link_rate()
        links = self._readings.pair_links(one, other) or self._spec.hardware.num_links
        return None if rate is None or links is None else links * rate

    def _link_rate(self) -> float | None:
        environment = self._made.environment
        known = environment.link_gb_per_s if environment is not None else None
        return known or self._spec.hardware.link_gb_per_s

    def _peak(self) -> float | None:
        """Of all links of one GPU, one direction."""
        environment = self._made.environment
        links = (environment.num_links if environment is not None else None) or self._spec.hardware.num_links
        rate = self._link_rate()
        return None if rate is None or links is None else links * rate

    def _alltoall(self, clock: _Clock) -> str | None:
        ranks = self._spec.gpus
        for size_mib in _CPU_ALLTOALL_MIB if self._spec.on_cpu else self._spec.alltoall_mib:
            size = size_mib * _MIB // ranks * ranks
            ask = protocol.Exchange(size, _COPY_WARMUP, _COPY_BLOCKS * _COPY_ITERATIONS)
            answers = self._running(clock).move(ask, deadline_s=clock.left(self._spec.measure.startup_s))
            slowest = [max(values) for values in zip(*(answer.samples_us for answer in answers), strict=True)]
            blocks = [statistics.median(slowest[at::_COPY_BLOCKS]) for at in range(_COPY_BLOCKS)]
            bus = [size * (ranks - 1) / ranks / block / 1000 for block in blocks]
            self._rates.append(Rate("all_to_all", "", f"{size_mib} MiB", "GB/s", bus, self._peak()))
            said = next((answer.wrong for answer in answers if answer.wrong), None)
            self._checks[f"alltoall: {size_mib} MiB"] = said or "ok"
        return None

    def _running(self, clock: _Clock) -> Group:
        if self._group is None:
            self._group = Group(
                self._group_spec(self._spec.workload.dtype),
                log_folder=self._logs,
                startup_s=clock.left(self._spec.measure.startup_s),
            )
            environment = environment_of(self._group_spec(self._spec.workload.dtype), self._group.ready[0])
            self._made = msgspec.structs.replace(self._made, environment=environment)
            self._sink(environment)
        return self._group

    def _end_group(self) -> None:
        if self._group is not None:
            self._group.kill()
            self._group = None

    # ---- phases 3 and 4

    def _point(self, op: Op, dtype: Dtype) -> Point:
        backend = BACKENDS[self._spec.backend]
        values = self._spec.configs["combine" if op is Op.COMBINE else "dispatch"]
        knobs = dict(zip((knob.name for knob in backend.knobs), values, strict=True))
        return Point(backend.name, op, Dtype.BF16 if op is Op.COMBINE else dtype, knobs)

    def _group_spec(self, dtype: Dtype) -> GroupSpec:
        return GroupSpec(
            num_ranks=self._spec.gpus,
            device="cpu" if self._spec.on_cpu else "cuda",
            shared_gpus=False,
            workload=msgspec.structs.replace(self._spec.workload, dtype=dtype),
            points=[self._point(op, dtype) for op in (Op.DISPATCH, Op.COMBINE)],
            faults=self._faults,
            devices=self._order,
        )

    def _supervised(self, clock: _Clock, phase: str, dtype: Dtype, tasks: list[Task]) -> Iterator[Record]:
        """The records of some tasks; troubles and checks are noted on the way."""
        measure = self._spec.measure
        deadline_s = clock.left(measure.deadline_s)
        supervisor = Supervisor(
            self._group_spec(dtype),
            Effort(measure.warmup, self._spec.block_iterations, deadline_s, clock.left(measure.startup_s)),
            anchor=tasks[0],
            sink=lambda line: self._line(line, phase, dtype),
            log_folder=self._logs,
        )
        with contextlib.closing(iter(supervisor.run(tasks))) as records:  # type: ignore[type-var]
            for record in records:
                if isinstance(record.outcome, Failed):
                    self._trouble(phase, record.outcome)
                    label = f"{phase}: {record.point.op} {record.point.dtype}"
                    if record.outcome.failure is FailureKind.INCORRECT:
                        self._checks[label] = record.outcome.message
                    return
                yield record
                clock.left(0)

    def _line(self, line: Line, phase: str, dtype: Dtype) -> None:
        self._sink(line)
        if isinstance(line, Environment) and self._made.environment is None:
            self._made = msgspec.structs.replace(self._made, environment=line)
        if isinstance(line, SelfCheck):
            self._checks |= {f"{phase}: {dtype} {name}": said for name, said in line.edge_routings.items()}

    def _task(self, op: Op, dtype: Dtype, *, block: int = 0, iterations: int | None = None) -> Task:
        point = self._point(op, dtype)
        return Task(point, digest(point, self._spec.workload), Role.ANCHOR, round=block, iterations=iterations)

    def _correctness(self, clock: _Clock) -> str | None:
        self._end_group()
        for dtype in (Dtype.BF16, Dtype.FP8):
            if self._spec.workload.hidden % 128 and dtype is Dtype.FP8:
                self._checks["correctness: fp8"] = "ok"
                continue
            tasks = [self._task(op, dtype, iterations=_CHECK_ITERATIONS) for op in (Op.DISPATCH, Op.COMBINE)]
            for record in self._supervised(clock, "correctness", dtype, tasks):
                self._checks[f"correctness: {record.point.op} {dtype}"] = "ok"
        return None

    def _speed(self, clock: _Clock) -> str | None:
        dtype = self._spec.workload.dtype
        visits: dict[Op, list[Record]] = {op: [] for op in (Op.DISPATCH, Op.COMBINE, Op.COMPUTE)}
        for extension in range(2):
            first = extension * self._spec.blocks
            tasks = [
                self._task(op, dtype, block=block) for block in range(first, first + self._spec.blocks) for op in visits
            ]
            for record in self._supervised(clock, "speed", dtype, tasks):
                visits[record.point.op].append(record)
            rates = self._speeds(visits)
            if self._phases_failed() or all(one.variation <= self._spec.thresholds.variation for one in rates):
                break
        self._rates += self._speeds(visits)
        return None

    def _phases_failed(self) -> bool:
        return any(trouble.phase == "speed" for trouble in self._troubles)

    def _speeds(self, visits: dict[Op, list[Record]]) -> list[Rate]:
        spec, found = self._spec, []
        tokens = workload.token_matrix(spec.workload, num_ranks=spec.gpus)
        shape = (
            f"{spec.workload.num_tokens}x{spec.workload.hidden} {spec.workload.num_experts}/{spec.workload.num_topk} "
            f"{spec.workload.routing}"
        )
        for op, records in visits.items():
            outcomes = [record.outcome for record in records if isinstance(record.outcome, Measured)]
            if not outcomes:
                continue
            point = records[0].point
            if op is Op.COMPUTE:
                for rank, gpu in enumerate(self._order):
                    blocks = [1e6 / outcome.rank_median_us[rank] for outcome in outcomes]
                    found.append(Rate("compute", f"gpu{gpu}", f"{spec.workload.dtype} {shape}", "layers/s", blocks))
                continue
            wire = workload.volume(tokens, bytes_per_token=spec.workload.bytes_per_token(point.dtype)).wire
            blocks = [wire / statistics.median(outcome.samples_us) / 1000 for outcome in outcomes]
            knobs = ",".join(str(value) for value in point.knobs.values())
            peak = None if spec.on_cpu else self._peak()
            found.append(Rate(op.value, "", f"{point.dtype} {shape} ({knobs})", "GB/s", blocks, peak))
        return found

    # ---- phase 5

    def _counters(self, _: _Clock) -> str | None:
        self._end_group()
        after = self._readings.counters()
        throttled: dict[str, list[str]] = {}
        seconds = max(time.monotonic() - self._began, 1.0)
        for number, (old, new) in enumerate(zip(self._made.before, after, strict=False)):
            throttled[f"gpu{number}"] = [
                name
                for field, name in _THROTTLE.items()
                if (new.values.get(field) or 0) - (old.values.get(field) or 0) > _THROTTLED_SHARE * 1e9 * seconds
            ]
        self._made = msgspec.structs.replace(self._made, after=after, throttled=throttled, xids=self._readings.xids())
        return None if after else "this machine has no GPUs, and so no counters"
