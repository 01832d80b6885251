"""Pairs of a dispatch and a combine that can be deployed together: what they take, and which are tied; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from bench.backends import BACKENDS, shared_knobs
from bench.records import Op, Stage
from bench.stats import ALPHA, MIN_GROUPS, Interval, holm, paired_ratio_interval, paired_slower_p
from launcher.analysis.measurements import Measurement
from launcher.config.plan import Plan

TIE_COST = 0.001
"""What breaking a tie may cost: of the tied pairs within this of the best, the one with the fewest resources wins."""


class Pair(msgspec.Struct, frozen=True):
    """A dispatch and a combine that can be deployed together: their shared knobs agree.

    ``weights``: how often each counts in the objective. ``full``: the full dispatch with the same config, that is
    with layout, exchange of counts and host wait.
    """

    shared: dict[str, int]
    dispatch: Measurement
    combine: Measurement
    weights: tuple[float, float] = (1.0, 1.0)
    full: Measurement | None = None

    @property
    def round_trip_us(self) -> float:
        """The sum of the two medians."""
        return self.dispatch.median_us + self.combine.median_us

    @property
    def round_trip_ci95_us(self) -> Interval | None:
        """Student's over the groups of the final that measured both; None where these are fewer than MIN_GROUPS."""
        common = self.dispatch.by_round.keys() & self.combine.by_round.keys()
        if len(common) < MIN_GROUPS:
            return None
        sums = [self.dispatch.by_round[number] + self.combine.by_round[number] for number in common]
        return paired_ratio_interval(sums, [1.0] * len(sums))

    @property
    def score(self) -> float:
        """The objective, which is minimised, in microseconds."""
        return self.weights[0] * self.dispatch.relative + self.weights[1] * self.combine.relative

    @property
    def swept(self) -> float:
        """The objective by the sweep's times, which nothing in the final depends on; infinite without them."""
        times = (self.dispatch.swept, self.combine.swept)
        pairs = zip(self.weights, times, strict=True)
        return sum(weight * (math.inf if us is None else us) for weight, us in pairs)

    @property
    def is_final(self) -> bool:
        """Whether both were measured in the final."""
        return self.dispatch.stage is Stage.FINAL and self.combine.stage is Stage.FINAL

    @property
    def buffer_cost(self) -> tuple[int, ...]:
        """What breaks ties: the shared knobs first, then the larger of the two last knobs (the buffers)."""
        last_knobs = [list(config.point.knobs.values())[-1:] for config in (self.dispatch, self.combine)]
        return (*self.shared.values(), *max(last_knobs))

    def by_round(self) -> dict[int, float]:
        """The objective in each group of the final that measured both."""
        common = self.dispatch.by_round.keys() & self.combine.by_round.keys()
        dispatch_weight, combine_weight = self.weights
        return {
            number: dispatch_weight * self.dispatch.by_round[number] + combine_weight * self.combine.by_round[number]
            for number in sorted(common)
        }

    def same_configs(self, other: Pair) -> bool:
        """Whether the other pair has the same two configs."""
        return self.dispatch.point == other.dispatch.point and self.combine.point == other.combine.point


Ops = dict[Op, list[Measurement]]


def groups_of(plan: Plan, measurements: list[Measurement]) -> dict[tuple[int, ...], Ops]:
    """The backend's measurements by the values of their shared knobs: those of the final first, fastest first."""
    names = shared_knobs(BACKENDS[plan.backend])
    groups: dict[tuple[int, ...], Ops] = {}
    for measurement in measurements:
        point = measurement.point
        if point.backend != plan.backend or point.op not in (Op.DISPATCH, Op.COMBINE, Op.DISPATCH_FULL):
            continue
        if all(name in point.knobs for name in names):
            shared = tuple(point.knobs[name] for name in names)
            ops = groups.setdefault(shared, {Op.DISPATCH: [], Op.COMBINE: [], Op.DISPATCH_FULL: []})
            ops[point.op].append(measurement)
    for ops in groups.values():
        for ranking in ops.values():
            ranking.sort(key=lambda measurement: measurement.stage is not Stage.FINAL)
    return groups


def best_of(plan: Plan, shared: tuple[int, ...], ops: Ops) -> Pair:
    """The fastest dispatch with the fastest combine of these shared knobs."""
    return pair_of(plan, shared, ops, ops[Op.DISPATCH][0], ops[Op.COMBINE][0])


def pair_of(plan: Plan, shared: tuple[int, ...], ops: Ops, dispatch: Measurement, combine: Measurement) -> Pair:
    """The two as a pair, with the full dispatch of the same config where it was measured."""
    names = shared_knobs(BACKENDS[plan.backend])
    full = next((other for other in ops[Op.DISPATCH_FULL] if other.point.knobs == dispatch.point.knobs), None)
    return Pair(dict(zip(names, shared, strict=True)), dispatch, combine, plan.spec.search.weights, full)


def with_smallest_buffers(plan: Plan, groups: dict[tuple[int, ...], Ops], pair: Pair) -> Pair:
    """The pair with the smallest buffers of those whose configs are tied with the pair's own."""
    if not pair.is_final:
        return pair
    shared = tuple(pair.shared.values())
    ops = groups[shared]
    dispatches, combines = (
        [other for other in ops[config.point.op] if other is config or _is_tied(other, config)]
        for config in (pair.dispatch, pair.combine)
    )
    tied = [pair_of(plan, shared, ops, dispatch, combine) for dispatch in dispatches for combine in combines]
    return min(tied, key=lambda other: (other.buffer_cost, other.score))


def _is_tied(measurement: Measurement, best: Measurement) -> bool:
    """Whether it is within TIE_COST of the best, and indistinguishable from it over the final's groups."""
    is_near = measurement.relative <= (1 + TIE_COST) * best.relative
    return is_near and are_slower([(measurement.by_round, best.by_round)]) == [False]


Times = Mapping[int, float]
"""Microseconds in each group of the final, or in each overlapped pass."""


def are_slower(comparisons: Sequence[tuple[Times, Times]]) -> list[bool | None]:
    """For each comparison whether the first is significantly slower than the second; None where too few are paired.

    Student's paired tests over the groups or passes that measured both, at least MIN_GROUPS of them, one-sided and
    Holm-corrected over all comparisons.
    """
    paired = [sorted(first.keys() & second.keys()) for first, second in comparisons]
    tested = [index for index, numbers in enumerate(paired) if len(numbers) >= MIN_GROUPS]
    p_values = [
        paired_slower_p(*([times[number] for number in paired[index]] for times in comparisons[index]))
        for index in tested
    ]
    verdicts = dict(zip(tested, holm(p_values, alpha=ALPHA).tolist(), strict=True))
    return [verdicts.get(index) for index in range(len(comparisons))]
