"""What the phases of one suite run share: the spec, the readings, the ranks, and the results so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench.backends import BACKENDS
from bench.faults import Fault
from bench.group import Group, RankError
from bench.protocol import GroupSpec
from bench.records import Dtype, Failed, FailureKind, Line, Op, Point
from bench.supervisor import StartError, environment_of
from launcher.validation.config import Spec
from launcher.validation.measure.clock import Clock
from launcher.validation.measure.readings import Readings, SilentDriverError, await_response
from launcher.validation.node import PHASES, Phase, Rate, SuiteRun, Trouble

_DRIVER_SHARE = 0.5
"""How long NVML may take for one response in any phase, as a share of the preflight's limit."""

T = TypeVar("T")


class SuiteContext:
    """One suite run in progress. ``suite_run`` holds the results so far; each new result replaces it.

    ``is_usable``: whether ranks can run here at all. ``sink`` gets every raw line.
    """

    def __init__(
        self,
        spec: Spec,
        order: list[int],
        *,
        number: int,
        readings: Readings,
        faults: list[Fault],
        log_folder: Path,
        sink: Callable[[Line], None],
    ) -> None:
        """``order`` is the GPU of each rank. ``faults`` are injected into the ranks, which log to ``log_folder``."""
        self.spec, self.order, self.readings = spec, order, readings
        self.log_folder, self.sink = log_folder, sink
        self.began = time.monotonic()
        self.is_usable, self.is_driver_silent = True, False
        self.suite_run = SuiteRun(number=number, order=order, phases=[Phase(name, "pending") for name in PHASES])
        self._faults = faults
        self._group: Group | None = None

    def note(self, **fields: Any) -> None:
        """Replaces fields of the suite run."""
        self.suite_run = msgspec.structs.replace(self.suite_run, **fields)

    def note_phase(self, phase: Phase) -> None:
        """Replaces the phase of the same name."""
        self.note(phases=[phase if phase.name == other.name else other for other in self.suite_run.phases])

    def note_rates(self, rates: Sequence[Rate]) -> None:
        """Adds rates."""
        self.note(rates=[*self.suite_run.rates, *rates])

    def note_checks(self, checks: dict[str, str]) -> None:
        """Adds results of checks by name: ``ok``, or what was wrong."""
        self.note(checks=self.suite_run.checks | checks)

    def note_trouble(self, trouble: Trouble) -> None:
        """Adds a failure."""
        self.note(troubles=[*self.suite_run.troubles, trouble])

    def note_failure(self, phase: str, failed: Failed) -> None:
        """Adds the failure of a rank, at its GPU. A hang has no place: another rank may have caused it."""
        is_placed = failed.rank is not None and failed.failure is not FailureKind.HANG
        where = f"gpu{self.order[failed.rank]}" if is_placed and failed.rank is not None else ""
        self.note_trouble(Trouble(phase, failed.failure.value, where, failed.message, failed.last_words))

    def query_driver(self, clock: Clock, query: Callable[[], T]) -> T:
        """NVML's response. SilentDriverError if there is none; OutOfTimeError if the limit cut the wait short."""
        may_take_s = _DRIVER_SHARE * self.spec.limits.preflight_s
        given_s = clock.left_s(may_take_s)
        try:
            return await_response(query, within_s=given_s)
        except SilentDriverError:
            if given_s < may_take_s:
                raise clock.out_of_time() from None
            raise

    def point(self, op: Op, dtype: Dtype) -> Point:
        """The point with the configured knobs. A combine is always BF16, and so are GEMMs, as in older references."""
        backend = BACKENDS[self.spec.backend]
        values = self.spec.configs["combine" if op is Op.COMBINE else "dispatch"]
        knobs = dict(zip((knob.name for knob in backend.knobs), values, strict=True))
        return Point(backend.name, op, Dtype.BF16 if op in (Op.COMBINE, Op.COMPUTE) else dtype, knobs)

    def group_spec(self, dtype: Dtype) -> GroupSpec:
        """The process group of all ranks, dispatching in ``dtype``."""
        return GroupSpec(
            num_ranks=self.spec.gpus,
            device="cpu" if self.spec.on_cpu else "cuda",
            shared_gpus=False,
            workload=msgspec.structs.replace(self.spec.workload, dtype=dtype),
            points=[self.point(op, dtype) for op in (Op.DISPATCH, Op.COMBINE)],
            faults=self._faults,
            devices=self.order,
        )

    def running_group(self, clock: Clock) -> Group:
        """The ranks, started if there are none. StartError if they do not start."""
        if self._group is None:
            spec, startup_s = self.group_spec(self.spec.workload.dtype), clock.left_s(self.spec.measure.startup_s)
            try:
                with clock.waiting():
                    self._group = Group(spec, log_folder=self.log_folder, startup_s=startup_s)
            except RankError as failure:
                words = f"{failure.failed.message}\n{failure.failed.last_words}"
                raise StartError(f"the ranks did not start: {words}") from None
            environment = environment_of(spec, self._group.ready[0])
            self.note(environment=environment)
            self.sink(environment)
        return self._group

    def end_group(self) -> None:
        """Ends the ranks, if there are any."""
        if self._group is not None:
            self._group.kill()
            self._group = None
