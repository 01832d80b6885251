"""Pairs of a dispatch and a combine that can be deployed together: what they take, and which are tied; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from bench.backends import BACKENDS, shared_knobs
from bench.components import Estimate
from bench.records import Op, Stage
from bench.stats import ALPHA, MIN_GROUPS, Interval, holm, paired_ratio_interval, paired_slower_p
from launcher.analysis.components import TimesByRun
from launcher.analysis.measurements import Measurement, another_time
from launcher.config.memory import facts_of_plan, is_too_large
from launcher.config.plan import Plan

TIE_COST = 0.003
"""What breaking a tie may cost: of the pairs within this of the best, the one with the fewest resources wins.

About the standard deviation of a config's log time between two runs: another run may rank them the other way.
"""


class Pair(msgspec.Struct, frozen=True):
    """A dispatch and a combine that can be deployed together: their shared knobs agree.

    ``weights``: how often each counts in the objective. ``full``: the full dispatch with the same config, that is
    with layout, exchange of counts and host wait. ``counts_full``: it counts in the objective, in place of the cached
    one, where it was measured.
    """

    shared: dict[str, int]
    dispatch: Measurement
    combine: Measurement
    weights: tuple[float, float] = (1.0, 1.0)
    full: Measurement | None = None
    counts_full: bool = False

    @property
    def counted(self) -> tuple[Measurement, Measurement]:
        """The dispatch and the combine that count in the objective."""
        return (self.full if self.counts_full and self.full is not None else self.dispatch), self.combine

    @property
    def forward(self) -> Pair | None:
        """The pair with its full dispatch in place of the cached one; None where that was not measured."""
        return None if self.full is None else msgspec.structs.replace(self, dispatch=self.full)

    @property
    def round_trip_us(self) -> float:
        """The sum of the two medians."""
        return self.dispatch.median_us + self.combine.median_us

    @property
    def round_trip_ci95_us(self) -> Interval | None:
        """Student's over the groups of the final that measured both; None where these are fewer than MIN_GROUPS."""
        sums = [dispatch + combine for dispatch, combine in _by_group(self.dispatch, self.combine).values()]
        if len(sums) < MIN_GROUPS:
            return None
        return paired_ratio_interval(sums, [1.0] * len(sums))

    def another_run_us(self, elsewhere: Estimate) -> Interval | None:
        """The 95 % interval for the round trip that a run on other GPUs of the kind would report; see another_time."""
        return another_time([sum(times) for times in _by_group(self.dispatch, self.combine).values()], elsewhere)

    @property
    def score(self) -> float:
        """The objective, which is minimised, in microseconds."""
        return sum(weight * config.relative for weight, config in zip(self.weights, self.counted, strict=True))

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
        first, second = self.weights
        times = _by_group(*self.counted).items()
        return {number: first * dispatch + second * combine for number, (dispatch, combine) in times}

    def by_run(self) -> TimesByRun:
        """The objective in each group of the final and of its repeats that measured both; empty without repeats."""
        first, second = self.weights
        dispatch, combine = (config.by_run for config in self.counted)
        return {
            run: {
                group: first * dispatch[run][group] + second * combine[run][group]
                for group in sorted(dispatch[run].keys() & combine[run].keys())
            }
            for run in dispatch.keys() & combine.keys()
        }

    def same_configs(self, other: Pair) -> bool:
        """Whether the other pair has the same two configs."""
        return self.dispatch.point == other.dispatch.point and self.combine.point == other.combine.point


def _by_group(dispatch: Measurement, combine: Measurement) -> dict[int, tuple[float, float]]:
    """The times of both in each group of the final that measured both, in order."""
    common = sorted(dispatch.by_round.keys() & combine.by_round.keys())
    return {number: (dispatch.by_round[number], combine.by_round[number]) for number in common}


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


def within_memory(plan: Plan, groups: dict[tuple[int, ...], Ops]) -> dict[tuple[int, ...], Ops]:
    """The measurements of configs whose buffer search.max_buffer_mib allows; all of them where it allows none."""
    backend, facts = BACKENDS[plan.backend], facts_of_plan(plan)
    allowed = {
        shared: {
            op: [one for one in ranking if not is_too_large(plan.spec.search, backend, one.point.knobs, facts)]
            for op, ranking in ops.items()
        }
        for shared, ops in groups.items()
    }
    return allowed if any(ops[Op.DISPATCH] and ops[Op.COMBINE] for ops in allowed.values()) else groups


def best_of(plan: Plan, shared: tuple[int, ...], ops: Ops) -> Pair:
    """The fastest dispatch with the fastest combine of these shared knobs, by what counts in the objective."""
    finals = [dispatch for dispatch in ops[Op.DISPATCH] if dispatch.stage is Stage.FINAL] or ops[Op.DISPATCH][:1]
    pairs = [pair_of(plan, shared, ops, dispatch, ops[Op.COMBINE][0]) for dispatch in finals]
    return min(pairs, key=lambda pair: pair.counted[0].relative)


def pair_of(plan: Plan, shared: tuple[int, ...], ops: Ops, dispatch: Measurement, combine: Measurement) -> Pair:
    """The two as a pair, with the full dispatch of the same config where it was measured."""
    names = shared_knobs(BACKENDS[plan.backend])
    full = next((other for other in ops[Op.DISPATCH_FULL] if other.point.knobs == dispatch.point.knobs), None)
    search = plan.spec.search
    return Pair(dict(zip(names, shared, strict=True)), dispatch, combine, search.weights, full, search.counts_full)


def with_smallest_buffers(plan: Plan, groups: dict[tuple[int, ...], Ops], pair: Pair) -> Pair:
    """The pair with the smallest buffers of those whose configs are within TIE_COST of the pair's own in the final."""
    if not pair.is_final:
        return pair
    shared = tuple(pair.shared.values())
    ops = groups[shared]
    dispatches, combines = (
        [other for other in ops[op] if other.stage is Stage.FINAL] for op in (Op.DISPATCH, Op.COMBINE)
    )
    others = [pair_of(plan, shared, ops, dispatch, combine) for dispatch in dispatches for combine in combines]
    near = [other for other in others if _are_near(other.counted, pair.counted)]
    return min([pair, *near], key=lambda other: (other.buffer_cost, other.score))


def _are_near(configs: Sequence[Measurement], best: Sequence[Measurement]) -> bool:
    return all(one.relative <= (1 + TIE_COST) * other.relative for one, other in zip(configs, best, strict=True))


def buffer_bytes(plan: Plan, pair: Pair) -> int | None:
    """The buffer of one rank that holds both configs of a pair; None where the library has no formula for it."""
    backend, facts = BACKENDS[pair.dispatch.point.backend], facts_of_plan(plan)
    sizes = [backend.buffer_bytes(config.point.knobs, facts) for config in (pair.dispatch, pair.combine)]
    known = [size for size in sizes if size is not None]
    return max(known) if known else None


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
