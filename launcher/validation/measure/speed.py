"""Phase 4: the speed of dispatch, combine and expert GEMMs, and NVML's count of the bytes on the links."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from bench import workload
from bench.records import Measured, Op, Point, Record
from bench.supervisor import Task
from launcher.validation.measure.clock import Clock, OutOfTimeError
from launcher.validation.measure.context import SuiteContext
from launcher.validation.measure.link_bytes import count_bytes
from launcher.validation.measure.peaks import gpu_peak
from launcher.validation.measure.tokens import make_task, measure_tasks
from launcher.validation.node import LinkBytes, Rate

Tokens = list[list[int]]
"""How many tokens each rank sends to each rank."""


def measure_speed(context: SuiteContext, clock: Clock) -> str | None:
    """Blocks of dispatch and combine, then of GEMMs; then the bytes on the links, if NVML counts them."""
    spec = context.spec
    tokens = workload.token_matrix(spec.workload, num_ranks=spec.gpus)
    repetitions = _Repetitions(context, tokens)
    for record in measure_tasks(context, clock, "speed", spec.workload.dtype, _blocks(context, repetitions)):
        repetitions.add(record)
    context.note_rates(repetitions.rates((Op.DISPATCH, Op.COMBINE, Op.COMPUTE)))
    is_counted = any(counters.values.get("nvlink_tx_kib") is not None for counters in context.suite_run.before)
    has_failed = any(trouble.phase == "speed" for trouble in context.suite_run.troubles)
    if is_counted and not has_failed:
        with contextlib.suppress(OutOfTimeError):  # no verdict needs the count
            _count_link_bytes(context, clock, tokens)
        context.end_group()
    return None


class _Repetitions:
    """The repetitions of each operation so far, and the rates that follow from them."""

    def __init__(self, context: SuiteContext, tokens: Tokens) -> None:
        self._context, self._tokens = context, tokens
        self._records: dict[Op, list[Record]] = defaultdict(list)

    def add(self, record: Record) -> None:
        """Adds one repetition."""
        self._records[record.point.op].append(record)

    def rates(self, ops: Sequence[Op]) -> list[Rate]:
        """The rates of these operations; an operation that was not measured has none."""
        rates = []
        for op in ops:
            records = self._records[op]
            outcomes = [record.outcome for record in records if isinstance(record.outcome, Measured)]
            if outcomes and op is Op.COMPUTE:
                rates += self._compute_rates(outcomes)
            elif outcomes:
                rates.append(self._token_rate(records[0].point, outcomes))
        return rates

    def _compute_rates(self, outcomes: list[Measured]) -> list[Rate]:
        """The rate of each GPU's GEMMs."""
        per = f"{self._context.spec.workload.dtype} {self._shape}"
        return [
            Rate("compute", f"gpu{gpu}", per, "layers/s", [1e6 / outcome.rank_median_us[rank] for outcome in outcomes])
            for rank, gpu in enumerate(self._context.order)
        ]

    def _token_rate(self, point: Point, outcomes: list[Measured]) -> Rate:
        """The rate of a dispatch or a combine, by the bytes of the tokens that cross links."""
        spec = self._context.spec
        wire = workload.volume(self._tokens, bytes_per_token=spec.workload.bytes_per_token(point.dtype)).wire
        blocks = [wire / statistics.median(outcome.samples_us) / 1000 for outcome in outcomes]
        knobs = ",".join(str(value) for value in point.knobs.values())
        peak = None if spec.on_cpu else gpu_peak(self._context)
        return Rate(point.op.value, "", f"{point.dtype} {self._shape} ({knobs})", "GB/s", blocks, peak)

    @property
    def _shape(self) -> str:
        layer = self._context.spec.workload
        return f"{layer.num_tokens}x{layer.hidden} {layer.num_experts}/{layer.num_topk} {layer.routing}"


def _blocks(context: SuiteContext, repetitions: _Repetitions) -> Iterator[Task]:
    """Dispatch and combine in turn, then GEMMs: these heat the GPUs to their power cap, which would slow the others.

    If the blocks scatter, as many again follow.
    """
    spec = context.spec
    for ops in ((Op.DISPATCH, Op.COMBINE), (Op.COMPUTE,)):
        for extension in range(2):
            rates = repetitions.rates(ops)
            if extension and all(rate.variation <= spec.thresholds.noise(rate.test) for rate in rates):
                break
            for block in range(spec.blocks):
                for op in ops:
                    yield make_task(context, op, spec.workload.dtype, block=extension * spec.blocks + block)


def _count_link_bytes(context: SuiteContext, clock: Clock, tokens: Tokens) -> None:
    spec = context.spec
    counts: list[LinkBytes] = []
    for op in (Op.DISPATCH, Op.COMBINE):
        point = context.point(op, spec.workload.dtype)
        group = context.running_group(clock)
        with clock.waiting():
            counted = count_bytes(
                group,
                point,
                order=context.order,
                tokens=tokens,
                bytes_per_token=spec.workload.bytes_per_token(point.dtype),
                counters=lambda: context.query_driver(clock, context.readings.counters),
                deadline_s=clock.left_s(spec.measure.startup_s),
            )
        context.note_checks({f"speed: {op} {point.dtype} while links are counted": counted.wrong or "ok"})
        counts += counted.link_bytes
    context.note(link_bytes=counts)
