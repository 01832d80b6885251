"""One run through the six phases of a node's validation: asks, checks, measures; judges nothing."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from bench import protocol, workload
from bench.backends import BACKENDS
from bench.faults import Fault
from bench.group import Group, RankError
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
from bench.supervisor import Effort, StartError, Supervisor, Task, environment_of
from launcher.validation.config import Spec
from launcher.validation.measure import link_bytes
from launcher.validation.measure.readings import Readings, SilentDriverError, answered
from launcher.validation.node import PHASES, LinkBytes, Phase, Rate, SuiteRun, Trouble

_MIB = 2**20
_CPU_ALLTOALL_MIB = (1, 4)
_COPY_BLOCKS, _COPY_ITERATIONS, _COPY_WARMUP = 5, 3, 2
_CHECK_ITERATIONS = 3
_THROTTLED_SHARE = 0.01
_DRIVER_SHARE = 0.5
"""Of the preflight's limit: how long NVML may take for one response, in any phase."""

_THROTTLE = {
    "throttle_hardware_thermal_ns": "hardware thermal slowdown",
    "throttle_software_thermal_ns": "software thermal slowdown",
    "throttle_power_brake_ns": "hardware power brake",
    "throttle_power_ns": "power cap",
}


T = TypeVar("T")


class _OutOfTimeError(Exception):
    """A phase has used up its limit."""


class _Clock:
    """What is left of a phase's time."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._ends = limit_s, time.monotonic() + limit_s

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return time.monotonic() >= self._ends

    def left(self, wanted_s: float = math.inf) -> float:
        """At most ``wanted_s``; _OutOfTimeError when nothing is left."""
        if self.is_over:
            raise self.out_of_time()
        return min(wanted_s, self._ends - time.monotonic())

    def out_of_time(self) -> _OutOfTimeError:
        """To be raised."""
        return _OutOfTimeError(f"not done within its {self._limit_s:.3g} s")

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Around what waits for ranks: one that only the end of the phase calls hung may be merely slow."""
        try:
            yield
        except RankError as failure:
            is_late = failure.failed.failure is FailureKind.HANG or failure.failed.phase == "startup"
            if is_late and self.is_over:
                raise self.out_of_time() from None
            raise


def _slowest(responses: list[protocol.Moved]) -> list[float]:
    """Of each iteration the slowest rank's time."""
    return [max(values) for values in zip(*(response.samples_us for response in responses), strict=True)]


class PhaseRunner:
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
        checkpoint: Callable[[SuiteRun], None],
        say: Callable[[str], None],
    ) -> None:
        """``order`` is the GPU of each rank; ``faults`` strike the ranks; ``folder`` gets their logs."""
        self._spec, self._order, self._readings, self._faults = spec, order, readings, faults
        self._logs, self._sink, self._checkpoint, self._say = folder / "logs", sink, checkpoint, say
        self._began = time.monotonic()
        self._group: Group | None = None
        self._phases = {name: Phase(name, "pending") for name in PHASES}
        self._made = SuiteRun(number=number, order=order, phases=[])
        self._rates: list[Rate] = []
        self._checks: dict[str, str] = {}
        self._troubles: list[Trouble] = []
        self._usable = True
        self._is_driver_silent = False

    def run(self) -> SuiteRun:
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

    def _snapshot(self) -> SuiteRun:
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
            if self._is_driver_silent:
                skipped = "the driver does not response"
            elif self._usable or name == "counters":
                skipped = body(_Clock(limit_s))
            else:
                skipped = "the preflight found that it cannot run here"
        except RankError as failure:
            self._trouble(name, failure.failed)
        except StartError as failure:
            self._troubles.append(Trouble(name, "start", "", str(failure).splitlines()[0], str(failure)))
        except _OutOfTimeError as late:
            self._troubles.append(Trouble(name, "timeout", "", str(late)))
        except SilentDriverError as silent:
            self._troubles.append(Trouble(name, "driver", "", str(silent)))
            self._is_driver_silent, self._usable = True, False
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

    def _asked(self, clock: _Clock, question: Callable[[], T]) -> T:
        """The driver's response; _OutOfTimeError where the phase left it less time than it may take."""
        may_take_s = _DRIVER_SHARE * self._spec.limits.preflight_s
        given_s = clock.left(may_take_s)
        try:
            return answered(question, within_s=given_s)
        except SilentDriverError:
            if given_s < may_take_s:
                raise clock.out_of_time() from None
            raise

    def _preflight(self, clock: _Clock) -> str | None:
        found = self._asked(clock, self._readings.preflight)
        before = self._asked(clock, self._readings.counters)
        self._made = msgspec.structs.replace(self._made, preflight=found, before=before)
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
        request = protocol.Copy(source, target, engine, size, _COPY_WARMUP, _COPY_BLOCKS * _COPY_ITERATIONS)
        where = f"gpu{self._order[source]}>gpu{self._order[target]}"
        peak = self._pair_peak(self._order[source], self._order[target])
        empty = Rate(f"pair_{engine}", where, f"{self._spec.copy_mib} MiB", "GB/s", [], peak)
        timed = source if engine == "copy" else target
        self._move(
            clock,
            request,
            empty,
            label=f"pairs: {engine} {where}",
            size=size,
            samples_of=lambda responses: responses[timed].samples_us,
        )

    def _move(
        self,
        clock: _Clock,
        request: protocol.Copy | protocol.Exchange,
        empty: Rate,
        *,
        label: str,
        size: float,
        samples_of: Callable[[list[protocol.Moved]], list[float]],
    ) -> None:
        """Notes the rate, after twice as many blocks where the first ones vary, and whether a byte was wrong."""
        rate, said = empty, "ok"
        for _ in range(2):
            group = self._running(clock)
            with clock.awaited():
                responses = group.move(request, deadline_s=clock.left(self._spec.measure.startup_s))
            samples = samples_of(responses)
            blocks = [statistics.median(samples[at::_COPY_BLOCKS]) for at in range(_COPY_BLOCKS)]
            rate = msgspec.structs.replace(rate, blocks=rate.blocks + [size / block / 1000 for block in blocks])
            said = next((response.wrong for response in responses if response.wrong), said)
            if rate.variation <= self._spec.thresholds.noise(rate.test):
                break
        self._rates.append(rate)
        self._checks[label] = said

    def _pair_peak(self, one: int, other: int) -> float | None:
        rate = self._link_rate()
        links = self._readings.pair_links(one, other) or self._spec.hardware.num_links
        return None if rate is None or links is None else links * rate

    def _link_rate(self) -> float | None:
        """Of payload, from the hardware file; NVML tells the rate of signalling, 26.6 where 25 GB/s are payload."""
        environment = self._made.environment
        known = environment.link_gb_per_s if environment is not None else None
        return self._spec.hardware.link_gb_per_s or known

    def _peak(self) -> float | None:
        """Of all links of one GPU, one direction."""
        environment = self._made.environment
        links = (environment.num_links if environment is not None else None) or self._spec.hardware.num_links
        own, *others = self._order
        towards = sum(self._readings.pair_links(own, other) or 0 for other in others)
        links = min(links, towards) if links and towards else links  # on a mesh some lead to GPUs that do not take part
        rate = self._link_rate()
        return None if rate is None or links is None else links * rate

    def _alltoall(self, clock: _Clock) -> str | None:
        ranks = self._spec.gpus
        for size_mib in _CPU_ALLTOALL_MIB if self._spec.on_cpu else self._spec.alltoall_mib:
            size = size_mib * _MIB // ranks * ranks
            request = protocol.Exchange(size, _COPY_WARMUP, _COPY_BLOCKS * _COPY_ITERATIONS)
            self._running(clock)
            empty = Rate("all_to_all", "", f"{size_mib} MiB", "GB/s", [], self._peak())
            crossing = size * (ranks - 1) / ranks
            self._move(clock, request, empty, label=f"alltoall: {size_mib} MiB", size=crossing, samples_of=_slowest)
        return None

    def _running(self, clock: _Clock) -> Group:
        if self._group is None:
            spec, startup_s = self._group_spec(self._spec.workload.dtype), clock.left(self._spec.measure.startup_s)
            try:
                with clock.awaited():
                    self._group = Group(spec, log_folder=self._logs, startup_s=startup_s)
            except RankError as failure:
                said = f"{failure.failed.message}\n{failure.failed.last_words}"
                raise StartError(f"the ranks did not start: {said}") from None
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

    def _supervised(self, clock: _Clock, phase: str, dtype: Dtype, tasks: Iterable[Task]) -> Iterator[Record]:
        """The records of some tasks, which may depend on those before; troubles and checks are noted on the way."""
        measure = self._spec.measure
        supervisor = Supervisor(
            self._group_spec(dtype),
            Effort(measure.warmup, self._spec.block_iterations, measure.deadline_s, measure.startup_s),
            anchor=self._task(Op.DISPATCH, dtype),
            sink=lambda line: self._line(line, phase, dtype),
            log_folder=self._logs,
            budget_s=clock.left(),
        )
        with contextlib.closing(iter(supervisor.run(tasks))) as records:  # type: ignore[type-var]
            for record in records:
                if isinstance(record.outcome, Failed):
                    self._trouble(phase, record.outcome)
                    label = f"{phase}: {record.point.op} {record.point.dtype}"
                    if record.outcome.failure is FailureKind.INCORRECT:
                        self._checks[label] = self._by_gpu(record.outcome)
                    return
                yield record
        clock.left()  # where the time was over before the tasks were

    def _by_gpu(self, failed: Failed) -> str:
        """The message with the GPU instead of the rank."""
        if failed.rank is None:
            return failed.message
        return failed.message.replace(f"rank {failed.rank}:", f"gpu{self._order[failed.rank]}:", 1)

    def _line(self, line: Line, phase: str, dtype: Dtype) -> None:
        self._sink(line)
        if isinstance(line, Environment) and self._made.environment is None:
            self._made = msgspec.structs.replace(self._made, environment=line)
        if isinstance(line, SelfCheck):
            routings = dict(line.edge_routings)
            failed = routings.pop("self_test", None)
            if failed is not None:  # no routing was tried: something else went wrong
                kind, _, message = failed.partition(": ")
                self._troubles.append(Trouble(phase, kind, "", f"self test: {message}"))
            self._checks |= {f"{phase}: {dtype} {name}": said for name, said in routings.items()}

    def _task(self, op: Op, dtype: Dtype, *, block: int = 0, iterations: int | None = None) -> Task:
        point = self._point(op, dtype)
        return Task(point, digest(point, self._spec.workload), Role.ANCHOR, round=block, iterations=iterations)

    def _correctness(self, clock: _Clock) -> str | None:
        self._end_group()
        for dtype in (Dtype.BF16, Dtype.FP8):
            if self._spec.workload.hidden % 128 and dtype is Dtype.FP8:
                continue  # its scales are for 128 columns each; the layer says that it was not tested
            tasks = [self._task(op, dtype, iterations=_CHECK_ITERATIONS) for op in (Op.DISPATCH, Op.COMBINE)]
            for record in self._supervised(clock, "correctness", dtype, tasks):
                self._checks[f"correctness: {record.point.op} {dtype}"] = "ok"
        return None

    def _speed(self, clock: _Clock) -> str | None:
        dtype = self._spec.workload.dtype
        visits: dict[Op, list[Record]] = {op: [] for op in (Op.DISPATCH, Op.COMBINE, Op.COMPUTE)}
        for record in self._supervised(clock, "speed", dtype, self._blocks(visits)):
            visits[record.point.op].append(record)
        self._rates += self._speeds(visits)
        counted = any(one.values.get("nvlink_tx_kib") is not None for one in self._made.before)
        if counted and not self._phases_failed():
            with contextlib.suppress(_OutOfTimeError):  # it informs, and what it would say is not missed
                self._count_link_bytes(clock)
            self._end_group()
        return None

    def _blocks(self, visits: dict[Op, list[Record]]) -> Iterator[Task]:
        """Dispatch and combine in turn, then GEMMs, since these heat the GPUs until their power cap spoils the rest.

        Each of the two as many blocks again where the first ones vary.
        """
        for ops in ((Op.DISPATCH, Op.COMBINE), (Op.COMPUTE,)):
            for extension in range(2):
                rates = self._speeds({op: visits[op] for op in ops})
                if extension and all(one.variation <= self._spec.thresholds.noise(one.test) for one in rates):
                    break
                for block in range(self._spec.blocks):
                    for op in ops:
                        yield self._task(op, self._spec.workload.dtype, block=extension * self._spec.blocks + block)

    def _count_link_bytes(self, clock: _Clock) -> None:
        spec = self._spec
        tokens = workload.token_matrix(spec.workload, num_ranks=spec.gpus)
        found: list[LinkBytes] = []
        for op in (Op.DISPATCH, Op.COMBINE):
            point = self._point(op, spec.workload.dtype)
            group = self._running(clock)
            with clock.awaited():
                counted = link_bytes.count(
                    group,
                    point,
                    order=self._order,
                    tokens=tokens,
                    bytes_per_token=spec.workload.bytes_per_token(point.dtype),
                    counters=lambda: self._asked(clock, self._readings.counters),
                    deadline_s=clock.left(spec.measure.startup_s),
                )
            self._checks[f"speed: {op} {point.dtype} while links are counted"] = counted.wrong or "ok"
            found += counted.link_bytes
        self._made = msgspec.structs.replace(self._made, link_bytes=found)

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

    def _counters(self, clock: _Clock) -> str | None:
        self._end_group()
        after = self._asked(clock, self._readings.counters)
        throttled: dict[str, list[str]] = {}
        seconds = max(time.monotonic() - self._began, 1.0)
        for number, (old, new) in enumerate(zip(self._made.before, after, strict=False)):
            throttled[f"gpu{number}"] = [
                name
                for field, name in _THROTTLE.items()
                if (new.values.get(field) or 0) - (old.values.get(field) or 0) > _THROTTLED_SHARE * 1e9 * seconds
            ]
        self._made = msgspec.structs.replace(self._made, after=after, throttled=throttled)
        xids = self._asked(clock, self._readings.xids)
        self._made = msgspec.structs.replace(self._made, xids=xids)
        return None if after else "this machine has no GPUs, and so no counters"
