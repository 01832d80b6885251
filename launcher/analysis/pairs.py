"""Which dispatch and combine can be deployed together, what a pair takes, and which is the smallest of equals; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bench.backends import BACKENDS, shared_knobs
from bench.records import Op, Stage
from bench.stats import ALPHA, MIN_GROUPS, Interval, holm, paired_ratio_interval, paired_slower_p
from launcher.analysis.measurements import Measurement
from launcher.config.plan import Plan

TIE_COST = 0.001
"""What breaking a tie may cost: among pairs within this of the best the one with the fewest resources is taken."""


class Pair(msgspec.Struct, frozen=True):
    """A dispatch and a combine that can be deployed together: their shared knobs agree.

    ``weights`` say how often each counts in the objective. ``full`` is the whole dispatch with the same config: layout,
    exchange of counts and wait on the CPU included.
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
        """Student's over the groups of the final that measured both; None where they are fewer than three."""
        common = self.dispatch.by_round.keys() & self.combine.by_round.keys()
        if len(common) < MIN_GROUPS:
            return None
        sums = [self.dispatch.by_round[number] + self.combine.by_round[number] for number in common]
        return paired_ratio_interval(sums, [1.0] * len(sums))

    @property
    def score(self) -> float:
        """What is minimised, in microseconds."""
        return self.weights[0] * self.dispatch.relative + self.weights[1] * self.combine.relative

    @property
    def is_final(self) -> bool:
        """Whether both were measured in the final."""
        return self.dispatch.stage is Stage.FINAL and self.combine.stage is Stage.FINAL

    @property
    def buffer_cost(self) -> tuple[int, ...]:
        """For breaking ties: fewest of the shared resource first, then the smallest values of the last knobs."""
        own = [list(result.point.knobs.values())[-1] for result in (self.dispatch, self.combine)]
        return (*self.shared.values(), max(own))

    def by_round(self) -> dict[int, float]:
        """The objective in each group of the final that measured both."""
        common = self.dispatch.by_round.keys() & self.combine.by_round.keys()
        first, second = self.weights
        return {
            number: first * self.dispatch.by_round[number] + second * self.combine.by_round[number]
            for number in sorted(common)
        }

    def same_configs(self, other: Pair) -> bool:
        """Whether both stand for the same two configs."""
        return self.dispatch.point == other.dispatch.point and self.combine.point == other.combine.point


Ops = dict[Op, list[Measurement]]


def groups_of(plan: Plan, measurements: list[Measurement]) -> dict[tuple[int, ...], Ops]:
    """Results of the plan's backend by the values of their shared knobs: those of the final first, fastest first."""
    names = shared_knobs(BACKENDS[plan.spec.backend])
    found: dict[tuple[int, ...], Ops] = {}
    for result in measurements:
        if result.point.backend == plan.spec.backend and all(name in result.point.knobs for name in names):
            if result.point.op is Op.OVERLAPPED:
                continue
            shared = tuple(result.point.knobs[name] for name in names)
            ops = found.setdefault(shared, {Op.DISPATCH: [], Op.COMBINE: [], Op.DISPATCH_FULL: []})
            ops[result.point.op].append(result)
    for ops in found.values():
        for results in ops.values():
            results.sort(key=lambda one: one.stage is not Stage.FINAL)
    return found


def best_of(plan: Plan, shared: tuple[int, ...], ops: Ops) -> Pair:
    """The fastest dispatch with the fastest combine of these shared knobs."""
    return pair_of(plan, shared, ops, ops[Op.DISPATCH][0], ops[Op.COMBINE][0])


def pair_of(plan: Plan, shared: tuple[int, ...], ops: Ops, dispatch: Measurement, combine: Measurement) -> Pair:
    """The two as a pair, with the whole dispatch of the same config where it was measured."""
    names = shared_knobs(BACKENDS[plan.spec.backend])
    full = next((one for one in ops[Op.DISPATCH_FULL] if one.point.knobs == dispatch.point.knobs), None)
    return Pair(dict(zip(names, shared, strict=True)), dispatch, combine, plan.spec.search.weights, full)


def smaller(plan: Plan, groups: dict[tuple[int, ...], Ops], pair: Pair) -> Pair:
    """The pair of these shared knobs with the smallest buffer, of those whose configs cannot be told from its own."""
    if not pair.is_final:
        return pair
    ops = groups[tuple(pair.shared.values())]
    tied = [
        [one for one in ops[mine.point.op] if one is mine or _is_tied(one, mine)]
        for mine in (pair.dispatch, pair.combine)
    ]
    found = [pair_of(plan, tuple(pair.shared.values()), ops, first, second) for first in tied[0] for second in tied[1]]
    return min(found, key=lambda one: (one.buffer_cost, one.score))


def _is_tied(one: Measurement, best: Measurement) -> bool:
    """Whether it is within TIE_COST of the best, and indistinguishable from it over the final's groups."""
    return one.relative <= (1 + TIE_COST) * best.relative and slower([(one.by_round, best.by_round)]) == [False]


Times = Mapping[int, float]
"""Microseconds in each group of the final, or in each overlapped pass."""


def slower(comparisons: Sequence[tuple[Times, Times]]) -> list[bool | None]:
    """For each comparison whether the first is significantly slower than the second; None where too few are paired.

    Student's paired tests over the groups or passes that measured both, at least MIN_GROUPS of them, one-sided and
    Holm-corrected over all comparisons.
    """
    paired = [sorted(first.keys() & second.keys()) for first, second in comparisons]
    tested = [at for at, numbers in enumerate(paired) if len(numbers) >= MIN_GROUPS]
    p_values = [
        paired_slower_p(*([times[number] for number in paired[at]] for times in comparisons[at])) for at in tested
    ]
    answers = dict(zip(tested, holm(p_values, alpha=ALPHA).tolist(), strict=True))
    return [answers.get(at) for at in range(len(comparisons))]
