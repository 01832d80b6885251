"""Pairs beside expert GEMMs: what both together take, which may be the best, and which is picked; pure."""

from __future__ import annotations

import msgspec
import numpy as np

from bench.backends import BACKENDS, shared_knobs, split_pair
from bench.records import Dtype, Op, Point
from bench.stats import Interval, paired_ratio_interval
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair, slower
from launcher.config.plan import Plan

OVERLAP_TIE_LIMIT = 0.02
"""The same beside GEMMs, where GPUs at their power cap scatter the passes by some percent."""


class Overlap(msgspec.Struct, frozen=True):
    """One pair beside one layer's expert GEMMs, in microseconds.

    ``makespan_us``: until both are done. ``compute_us``: until the GEMMs are. Both are geometric means over the passes,
    with Student's interval. ``compute_alone_us``: without communication.
    """

    pair: Pair
    makespan_us: float
    ci95_us: Interval
    compute_us: float
    compute_ci95_us: Interval
    compute_alone_us: float
    by_round: dict[int, float]

    @property
    def slowdown(self) -> float:
        """What the communication costs the GEMMs."""
        return self.compute_us / self.compute_alone_us

    @property
    def slowdown_ci95(self) -> Interval:
        """By the scatter of the passes; what GEMMs take alone is known far better."""
        return Interval(
            self.compute_ci95_us.low / self.compute_alone_us, self.compute_ci95_us.high / self.compute_alone_us
        )

    @property
    def one_after_the_other_us(self) -> float:
        """The same work without overlap."""
        return self.compute_alone_us + self.pair.round_trip_us

    @property
    def compute_to_communication(self) -> float:
        """GEMMs alone over the pair alone."""
        return self.compute_alone_us / self.pair.round_trip_us


def overlaps_of(plan: Plan, measurements: list[Measurement], pairs: list[Pair], default: Pair | None) -> list[Overlap]:
    """The overlapped results, fewest of the shared resource first."""
    alone = next((one for one in measurements if one.point.op is Op.COMPUTE), None)
    if alone is None:
        return []
    by_point = {one.point.key: one for one in measurements}
    found = []
    for result in measurements:
        if result.point.op is not Op.OVERLAPPED or not result.compute_by_round:
            continue
        pair = _measured_pair(plan, result, by_point)
        if pair is not None:
            known = [one for one in [*pairs, *([default] if default else [])] if one.same_configs(pair)]
            found.append(_overlap(known[0] if known else pair, result, alone))
    return sorted(found, key=lambda one: (tuple(one.pair.shared.values()), one.makespan_us))


def _measured_pair(plan: Plan, result: Measurement, by_point: dict[tuple[object, ...], Measurement]) -> Pair | None:
    """The pair that an overlapped point ran, by the results of its two configs alone."""
    dispatch, combine = split_pair(result.point)
    backend, dtype = plan.spec.backend, plan.spec.workload.dtype
    first = by_point.get(Point(backend, Op.DISPATCH, dtype, dispatch).key)
    second = by_point.get(Point(backend, Op.COMBINE, Dtype.BF16, combine).key)
    if first is None or second is None:
        return None
    full = by_point.get(Point(backend, Op.DISPATCH_FULL, dtype, dispatch).key)
    names = shared_knobs(BACKENDS[backend])
    return Pair({name: dispatch[name] for name in names}, first, second, plan.spec.search.weights, full)


def _overlap(pair: Pair, result: Measurement, alone: Measurement) -> Overlap:
    beside = np.asarray(list(result.compute_by_round.values()))
    middle_us = float(np.exp(np.log(beside).mean()))
    return Overlap(
        pair=pair,
        makespan_us=result.median_us,
        ci95_us=result.ci95_us,
        compute_us=middle_us,
        compute_ci95_us=(
            paired_ratio_interval(beside, np.ones(len(beside))) if len(beside) > 1 else Interval(middle_us, middle_us)
        ),
        compute_alone_us=alone.median_us,
        by_round=result.by_round,
    )


def best_overlap(overlaps: list[Overlap]) -> Overlap:
    """The shortest makespan; of those that paired passes cannot tell from it, the one with the fewest resources."""
    best = min(overlaps, key=lambda one: one.makespan_us)
    limit_us = (1 + OVERLAP_TIE_LIMIT) * best.makespan_us
    rivals = [one for one in overlaps if one is not best and one.makespan_us <= limit_us]
    answers = slower([(one.by_round, best.by_round) for one in rivals])
    tied = [best, *(one for one, is_slower in zip(rivals, answers, strict=True) if is_slower is False)]
    return min(tied, key=lambda one: one.pair.buffer_cost)


def may_be_best(overlaps: list[Overlap]) -> list[Overlap]:
    """Those that no other pair surely beats: the truly best one is among them with 95 %, whichever looks best.

    Each is tested against each other one, paired over the passes, at 5 % for its tests together. So no winner of a
    race between equals is called the best [Hsu 1984, Annals of Statistics 12:1136].
    """
    return [
        one
        for one in overlaps
        if True not in slower([(one.by_round, other.by_round) for other in overlaps if other is not one])
    ]


def held_out_overlap(overlaps: list[Overlap]) -> dict[int, float]:
    """What each pass measured of the pair that the others pick; see _held_out."""
    found = {}
    for number in sorted({number for one in overlaps for number in one.by_round}):
        others = {id(one): _without(one, number) for one in overlaps if len(one.by_round.keys() - {number}) > 1}
        if others:
            chosen = best_overlap(list(others.values()))
            original = next(one for one in overlaps if others.get(id(one)) is chosen)
            if number in original.by_round:
                found[number] = original.by_round[number]
    return found


def _without(one: Overlap, number: int) -> Overlap:
    """The same by its other passes alone."""
    rest = {other: us for other, us in one.by_round.items() if other != number}
    return msgspec.structs.replace(one, by_round=rest, makespan_us=float(np.exp(np.log(list(rest.values())).mean())))
