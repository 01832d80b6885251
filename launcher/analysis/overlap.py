"""Pairs overlapped with expert GEMMs: what both together take, which may be the best, and which is picked; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from scipy import stats as scipy_stats

from bench.backends import BACKENDS, shared_knobs, split_pair
from bench.records import HEAD_START_US, Dtype, Op, Point
from bench.stats import ALPHA, MIN_GROUPS, Floats, Interval, paired_ratio, paired_ratio_interval
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair
from launcher.config.plan import Plan

NEAR = 0.02
"""The pick may cost this much over the fastest pair, for fewer SMs."""

SLOW = 0.1
"""Iterations take one of two times; the slow ones take at least this share longer than the fast ones."""


class Overlap(msgspec.Struct, frozen=True):
    """One pair overlapped with one layer's expert GEMMs, in microseconds.

    ``makespan_us``: until both are done. ``compute_us``: until the GEMMs are done. Both are geometric means over the
    passes, with Student's interval. ``compute_isolated_us``: the GEMMs without communication. ``by_round``: the
    makespan in each pass. ``slow_share``: of the iterations, those that took SLOW longer than the fast ones.
    ``may_cost``: with 95 % confidence for all pairs together, this pair's time over the best pair's is at most this.
    ``serial_by_round``: the same dispatch, GEMMs and combine one after the other, in the passes that measured them so;
    empty in older runs. ``gemms``: what the GEMMs multiply.
    """

    pair: Pair
    makespan_us: float
    ci95_us: Interval
    compute_us: float
    compute_ci95_us: Interval
    compute_isolated_us: float
    by_round: dict[int, float]
    slow_share: float = 0.0
    may_cost: float = math.inf
    serial_by_round: Mapping[int, float] = {}
    gemms: Dtype = Dtype.BF16

    @property
    def slowdown(self) -> float:
        """How many times as long as isolated GEMMs the overlapped ones take, from their own start."""
        return (self.compute_us - HEAD_START_US) / self.compute_isolated_us

    @property
    def slowdown_ci95(self) -> Interval:
        """By the scatter of the passes; the time of isolated GEMMs is known far better."""
        low, high = (
            (end - HEAD_START_US) / self.compute_isolated_us for end in msgspec.structs.astuple(self.compute_ci95_us)
        )
        return Interval(low, high)

    @property
    def is_serial_measured(self) -> bool:
        """Whether enough passes measured the pair both overlapped and serially."""
        return len(self.by_round.keys() & self.serial_by_round.keys()) >= MIN_GROUPS

    @property
    def serial_us(self) -> float:
        """The same work without overlap, the geometric mean over its passes; else GEMMs isolated + round trip isolated.

        That sum has communication at full clocks and GEMMs at the power cap.
        """
        if self.is_serial_measured:
            return float(np.exp(np.log(list(self.serial_by_round.values())).mean()))
        return self.compute_isolated_us + self.pair.round_trip_us

    def over_serial(self, other: Overlap | None = None) -> tuple[float, Interval]:
        """How many times as long as ``other`` serially, by default the same pair, this one takes overlapped.

        With the 95 % CI, paired over the passes. Over a computed sum it contains the scatter of the overlapped time
        only.
        """
        other = other or self
        common = sorted(self.by_round.keys() & other.serial_by_round.keys())
        if len(common) < MIN_GROUPS:
            serial_us = other.serial_us
            ends = self.ci95_us.low / serial_us, self.ci95_us.high / serial_us
            return self.makespan_us / serial_us, Interval(*ends)
        times = [self.by_round[number] for number in common], [other.serial_by_round[number] for number in common]
        return paired_ratio(*times, robust=False), paired_ratio_interval(*times, robust=False)

    @property
    def communication_by_round(self) -> dict[int, float]:
        """Serial time less the isolated GEMMs: dispatch and combine between GEMMs, at the clocks that these leave."""
        return {number: us - self.compute_isolated_us for number, us in self.serial_by_round.items()}

    @property
    def compute_to_communication(self) -> float:
        """GEMMs isolated / round trip isolated."""
        return self.compute_isolated_us / self.pair.round_trip_us


def overlaps_of(plan: Plan, measurements: list[Measurement], pairs: list[Pair], default: Pair | None) -> list[Overlap]:
    """Every overlapped pair, fewest of the shared resource first.

    Its isolated pair is the one of ``pairs`` or ``default`` that has the same configs, if there is one.
    """
    gemms = next((measurement for measurement in measurements if measurement.point.op is Op.COMPUTE), None)
    if gemms is None:
        return []
    by_point = {measurement.point.key: measurement for measurement in measurements}
    known = [*pairs, *([default] if default else [])]
    overlaps = []
    for measurement in measurements:
        point = measurement.point
        if (point.op, point.backend) != (Op.OVERLAPPED, plan.backend) or not measurement.gemms_by_round:
            continue
        pair = _isolated_pair(plan, point, by_point)
        if pair is not None:
            same = next((other for other in known if other.same_configs(pair)), pair)
            serial = by_point.get(msgspec.structs.replace(point, op=Op.SERIAL).key)
            overlaps.append(_overlap(same, measurement, gemms, serial))
    return sorted(bounded(overlaps), key=lambda overlap: (tuple(overlap.pair.shared.values()), overlap.makespan_us))


def bounded(overlaps: list[Overlap]) -> list[Overlap]:
    """The same with what each may cost over the others."""
    return [msgspec.structs.replace(overlap, may_cost=_may_cost(overlap, overlaps)) for overlap in overlaps]


def _may_cost(overlap: Overlap, overlaps: list[Overlap]) -> float:
    """The largest upper limit of this pair's time over that of another pair, at least 1; infinite with too few passes.

    One-sided, at 5 % over all other pairs together (Bonferroni), paired over the passes, so it bounds the time over
    that of the truly best pair, whichever it is [Hsu 1984, Annals of Statistics 12:1136].
    """
    others = [other for other in overlaps if other is not overlap]
    if not others:
        return 1.0
    limits = [ratio_limit(overlap, other, alpha=ALPHA / len(others)) for other in others]
    return max([1.0, *limits])


def ratio_limit(overlap: Overlap, other: Overlap, *, alpha: float = ALPHA) -> float:
    """The one-sided upper limit of the ratio of two pairs' times over the passes that measured both."""
    common = sorted(overlap.by_round.keys() & other.by_round.keys())
    if len(common) < MIN_GROUPS:
        return math.inf
    logs = np.log([overlap.by_round[number] / other.by_round[number] for number in common])
    reach = scipy_stats.t.ppf(1 - alpha, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return float(np.exp(logs.mean() + reach))


def _isolated_pair(plan: Plan, point: Point, by_point: dict[tuple[object, ...], Measurement]) -> Pair | None:
    """The isolated measurements of the two configs that an overlapped point ran; None if one of them has none."""
    dispatch_knobs, combine_knobs = split_pair(point)
    backend, dtype = plan.backend, plan.spec.workload.dtype
    dispatch = by_point.get(Point(backend, Op.DISPATCH, dtype, dispatch_knobs).key)
    combine = by_point.get(Point(backend, Op.COMBINE, Dtype.BF16, combine_knobs).key)
    if dispatch is None or combine is None:
        return None
    full = by_point.get(Point(backend, Op.DISPATCH_FULL, dtype, dispatch_knobs).key)
    shared = {name: dispatch_knobs[name] for name in shared_knobs(BACKENDS[backend])}
    search = plan.spec.search
    return Pair(shared, dispatch, combine, search.weights, full, search.counts_full)


def _overlap(pair: Pair, overlapped: Measurement, gemms: Measurement, serial: Measurement | None) -> Overlap:
    passes_us = np.asarray(list(overlapped.gemms_by_round.values()))
    compute_us = float(np.exp(np.log(passes_us).mean()))
    has_spread = len(passes_us) > 1
    return Overlap(
        pair=pair,
        makespan_us=overlapped.median_us,
        ci95_us=overlapped.ci95_us,
        compute_us=compute_us,
        compute_ci95_us=(
            paired_ratio_interval(passes_us, np.ones(len(passes_us)), robust=False)
            if has_spread
            else Interval(compute_us, compute_us)
        ),
        compute_isolated_us=gemms.median_us,
        by_round=overlapped.by_round,
        slow_share=_slow_share(overlapped.samples),
        serial_by_round={} if serial is None else serial.by_round,
        gemms=overlapped.gemms,
    )


def _slow_share(samples: Floats) -> float:
    fast = np.percentile(samples, 10)
    return float(np.mean(samples > (1 + SLOW) * fast))


def best_overlap(overlaps: list[Overlap]) -> Overlap:
    """The pair with the fewest resources of the fastest one and those that are surely within NEAR of it.

    Surely: by the one-sided 95 % limit of the ratio, paired over the passes. So noise alone picks nothing.
    """
    best = min(overlaps, key=lambda overlap: overlap.makespan_us)
    near = [overlap for overlap in overlaps if overlap is not best and ratio_limit(overlap, best) <= 1 + NEAR]
    return min([best, *near], key=lambda overlap: overlap.pair.buffer_cost)


def held_out_overlap(overlaps: list[Overlap]) -> dict[int, float]:
    """For each pass, the makespan in it of the pair that the *other* passes pick (leave-one-out); see ``verdict``."""
    held_out = {}
    for number in sorted({number for overlap in overlaps for number in overlap.by_round}):
        candidates = [overlap for overlap in overlaps if len(overlap.by_round.keys() - {number}) > 1]
        if candidates:
            others = [_without(overlap, number) for overlap in candidates]
            best = best_overlap(others)
            picked = next(overlap for overlap, other in zip(candidates, others, strict=True) if other is best)
            if number in picked.by_round:
                held_out[number] = picked.by_round[number]
    return held_out


def _without(overlap: Overlap, number: int) -> Overlap:
    """The same by its other passes only."""
    rest = {other: us for other, us in overlap.by_round.items() if other != number}
    makespan_us = float(np.exp(np.log(list(rest.values())).mean()))
    return msgspec.structs.replace(overlap, by_round=rest, makespan_us=makespan_us)
