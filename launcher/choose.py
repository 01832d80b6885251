"""Which configs to deploy: pairs, ties, the verdict on the default, the frontier and its picks; pure."""

from __future__ import annotations

import msgspec
import numpy as np

from bench.backends import BACKENDS, shared_knobs, split_pair
from bench.records import Dtype, Op, Point, Stage
from bench.stats import Interval, bootstrap_ratio, holm, paired_ratio, paired_ratio_interval, paired_slower_p
from launcher.judge import OpResult
from launcher.plan import Plan

MARGIN = 0.02
"""The default counts as beaten, or as optimal, only by more, or less, than this share of the objective."""

TIE_LIMIT = 0.005
"""A pair further than this from the best is no tie, however few groups there are to tell them apart."""

OVERLAP_TIE_LIMIT = 0.02
"""The same beside GEMMs, where GPUs at their power cap scatter the passes by some percent."""

KNEE = 0.05
_ALPHA = 0.05
_MIN_GROUPS = 3


class Pair(msgspec.Struct, frozen=True):
    """A dispatch and a combine that can be deployed together: their shared knobs agree.

    ``weights`` say how often each counts in the objective. ``full`` is the whole dispatch with the same config: layout,
    exchange of counts and wait on the CPU included.
    """

    shared: dict[str, int]
    dispatch: OpResult
    combine: OpResult
    weights: tuple[float, float] = (1.0, 1.0)
    full: OpResult | None = None

    @property
    def round_trip_us(self) -> float:
        """The sum of the two medians."""
        return self.dispatch.median_us + self.combine.median_us

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


class Verdict(msgspec.Struct, frozen=True):
    """Whether the library's default should be changed: the ratio default / optimal with its interval decides.

    ``basis`` says which samples: the final's fresh groups, or those of the sweep, which also chose.
    """

    kind: str
    ratio: float
    ci95: Interval
    margin: float
    basis: str
    meaning: str


class Overlap(msgspec.Struct, frozen=True):
    """One pair beside one layer's expert GEMMs, in microseconds.

    ``makespan_us``: until both are done. ``compute_us``: until the GEMMs are. ``compute_alone_us``: without
    communication. ``alone_us``: the pair's round trip without GEMMs.
    """

    pair: Pair
    makespan_us: float
    ci95_us: Interval
    compute_us: float
    compute_alone_us: float
    by_round: dict[int, float]

    @property
    def slowdown(self) -> float:
        """What the communication costs the GEMMs."""
        return self.compute_us / self.compute_alone_us

    @property
    def one_after_the_other_us(self) -> float:
        """The same work without overlap."""
        return self.compute_alone_us + self.pair.round_trip_us

    @property
    def compute_to_communication(self) -> float:
        """GEMMs alone over the pair alone."""
        return self.compute_alone_us / self.pair.round_trip_us


class Choice(msgspec.Struct, frozen=True):
    """Everything that was decided about one backend's pairs."""

    default: Pair | None
    optimal: Pair | None
    worst: Pair | None
    tied: list[Pair]
    verdict: Verdict | None
    best_per_shared: list[Pair]
    pareto: list[Pair]
    overlaps: list[Overlap]
    picks: dict[str, Pair]
    own_tuning: Pair | None


def choose(plan: Plan, measurements: list[OpResult]) -> Choice:
    """The decisions that follow from the results of the plan's backend."""
    groups = _groups(plan, measurements)
    pairs = [_best(plan, shared, ops) for shared, ops in groups.items() if ops[Op.DISPATCH] and ops[Op.COMBINE]]
    if any(pair.is_final for pair in pairs):
        pairs = [pair for pair in pairs if pair.is_final]
    pairs.sort(key=lambda pair: (pair.score, pair.buffer_cost))
    default = _default(plan, groups)
    tied = _tied(pairs)
    optimal = min(tied, key=lambda pair: pair.buffer_cost, default=None)
    frontier = _frontier(pairs)
    overlaps = _overlaps(plan, measurements, pairs, default)
    return Choice(
        default=default,
        optimal=optimal,
        worst=_worst(plan, groups),
        tied=tied,
        verdict=None if plan.spec.ep.share_gpus else verdict(default, optimal, _held_out(groups, optimal)),
        best_per_shared=sorted(pairs, key=lambda pair: tuple(pair.shared.values())),
        pareto=frontier,
        overlaps=overlaps,
        picks=_picks(optimal, default, pairs, overlaps),
        own_tuning=_own_tuning(plan, groups),
    )


_Ops = dict[Op, list[OpResult]]


def _groups(plan: Plan, measurements: list[OpResult]) -> dict[tuple[int, ...], _Ops]:
    """Results of the plan's backend by the values of their shared knobs: those of the final first, fastest first."""
    names = shared_knobs(BACKENDS[plan.spec.backend])
    found: dict[tuple[int, ...], _Ops] = {}
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


def _best(plan: Plan, shared: tuple[int, ...], ops: _Ops) -> Pair:
    return _pair(plan, shared, ops, ops[Op.DISPATCH][0], ops[Op.COMBINE][0])


def _pair(plan: Plan, shared: tuple[int, ...], ops: _Ops, dispatch: OpResult, combine: OpResult) -> Pair:
    names = shared_knobs(BACKENDS[plan.spec.backend])
    full = next((one for one in ops[Op.DISPATCH_FULL] if one.point.knobs == dispatch.point.knobs), None)
    return Pair(dict(zip(names, shared, strict=True)), dispatch, combine, plan.spec.search.weights, full)


def _default(plan: Plan, groups: dict[tuple[int, ...], _Ops]) -> Pair | None:
    """The anchors' results; None when one of them failed or is missing."""
    for shared, ops in groups.items():
        found = [
            next((one for one in ops[anchor.point.op] if one.point == anchor.point), None) for anchor in plan.anchors
        ]
        dispatch, combine = found
        if dispatch is not None and combine is not None:
            return _pair(plan, shared, ops, dispatch, combine)
    return None


def _own_tuning(plan: Plan, groups: dict[tuple[int, ...], _Ops]) -> Pair | None:
    """The best that the library's own tuning script tries; None without one, or where nothing of it was measured."""
    own = {op: {one.point.key for one in plan.upstream(op)} for op in (Op.DISPATCH, Op.COMBINE)}
    pairs = []
    for shared, ops in groups.items():
        first, second = ([one for one in ops[op] if one.point.key in own[op]] for op in own)
        if first and second:
            pairs.append(_pair(plan, shared, ops, first[0], second[0]))
    return min(pairs, key=lambda pair: pair.score, default=None)


def _worst(plan: Plan, groups: dict[tuple[int, ...], _Ops]) -> Pair | None:
    """The slowest pair that was measured, mostly in the sweep alone."""
    slowest = [
        _pair(plan, shared, ops, *(max(ops[op], key=lambda one: one.relative) for op in (Op.DISPATCH, Op.COMBINE)))
        for shared, ops in groups.items()
        if ops[Op.DISPATCH] and ops[Op.COMBINE]
    ]
    return max(slowest, key=lambda pair: pair.score, default=None)


def _tied(pairs: list[Pair]) -> list[Pair]:
    """The pairs that cannot be told from the best: paired tests over the final's groups, Holm-corrected."""
    if not pairs:
        return []
    best = pairs[0]
    leader = best.by_round()
    rivals = [pair for pair in pairs[1:] if pair.score <= (1 + TIE_LIMIT) * best.score]
    common = {id(pair): sorted(leader.keys() & pair.by_round().keys()) for pair in rivals}
    rivals = [pair for pair in rivals if len(common[id(pair)]) >= _MIN_GROUPS]
    if not rivals:
        return [best]
    p_values = [
        paired_slower_p([pair.by_round()[n] for n in common[id(pair)]], [leader[n] for n in common[id(pair)]])
        for pair in rivals
    ]
    slower = holm(p_values, alpha=_ALPHA)
    return [best] + [pair for pair, is_slower in zip(rivals, slower, strict=True) if not is_slower]


def _frontier(pairs: list[Pair]) -> list[Pair]:
    """The pairs that no other pair beats with as little of the shared resource; fewest first."""
    frontier: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: (tuple(pair.shared.values()), pair.score)):
        if not frontier or pair.score < frontier[-1].score:
            frontier.append(pair)
    return frontier


def _held_out(groups: dict[tuple[int, ...], _Ops], optimal: Pair | None) -> dict[int, float]:
    """The objective of the optimal pair in each group of the final, the pair's configs chosen by the other groups.

    Whoever is chosen by the numbers that then describe it looks faster than it is; in simulation by 0.1 %, which cost
    the verdict's interval 3 % of its coverage. Leaving the group out of the choice takes that away [Stone 1974].
    """
    if optimal is None or not optimal.is_final:
        return {}
    ops = groups[tuple(optimal.shared.values())]
    own = optimal.by_round()
    totals = dict.fromkeys(own, 0.0)
    for weight, op in zip(optimal.weights, (Op.DISPATCH, Op.COMBINE), strict=True):
        rivals = [one for one in ops[op] if one.stage is Stage.FINAL and one.by_round.keys() >= own.keys()]
        logs = np.log([[one.by_round[number] for number in own] for one in rivals])
        without = logs.sum(axis=1, keepdims=True) - logs
        for column, number in enumerate(own):
            totals[number] += weight * rivals[int(without[:, column].argmin())].by_round[number]
    return totals


def verdict(default: Pair | None, optimal: Pair | None, held_out: dict[int, float]) -> Verdict | None:
    """See MARGIN; None when the default or every pair failed. ``held_out``: the optimal pair's objective by group."""
    if default is None or optimal is None:
        return None
    if default.same_configs(optimal):
        return Verdict(
            "default_is_optimal", 1.0, Interval(1.0, 1.0), MARGIN, _basis(optimal), "no measured pair was faster"
        )
    ratio, interval, basis = _ratio(default, optimal, held_out)
    if interval.low > 1 + MARGIN:
        return Verdict("tuned", ratio, interval, MARGIN, basis, "the optimal pair is faster than the default")
    if interval.low > 1 - MARGIN and interval.high < 1 + MARGIN:
        return Verdict(
            "default_is_optimal", ratio, interval, MARGIN, basis, "the default is as fast, within the margin"
        )
    meaning = "the interval spans the margin: measure more, search.final_groups=10"
    return Verdict("inconclusive", ratio, interval, MARGIN, basis, meaning)


def _basis(pair: Pair) -> str:
    return "final" if pair.is_final else "sweep"


def _ratio(default: Pair, optimal: Pair, held_out: dict[int, float]) -> tuple[float, Interval, str]:
    """The ratio default / optimal: paired over the final's groups if there are enough, else bootstrapped."""
    first, second = default.by_round(), held_out
    common = sorted(first.keys() & second.keys())
    if len(common) >= _MIN_GROUPS:
        numerator, denominator = [first[n] for n in common], [second[n] for n in common]
        return paired_ratio(numerator, denominator), paired_ratio_interval(numerator, denominator), "final"
    interval = bootstrap_ratio(
        [default.dispatch.samples, default.combine.samples],
        [optimal.dispatch.samples, optimal.combine.samples],
        weights=default.weights,
    )
    return default.score / optimal.score, interval, _basis(optimal)


def _overlaps(plan: Plan, measurements: list[OpResult], pairs: list[Pair], default: Pair | None) -> list[Overlap]:
    """The overlapped results, fewest of the shared resource first."""
    alone = next((one for one in measurements if one.point.op is Op.COMPUTE), None)
    if alone is None:
        return []
    by_point = {one.point.key: one for one in measurements}
    found = []
    for result in measurements:
        if result.point.op is not Op.OVERLAPPED or not result.compute_by_round:
            continue
        pair = _pair_of(plan, result, by_point)
        if pair is not None:
            known = [one for one in [*pairs, *([default] if default else [])] if one.same_configs(pair)]
            found.append(_overlap(known[0] if known else pair, result, alone))
    return sorted(found, key=lambda one: (tuple(one.pair.shared.values()), one.makespan_us))


def _pair_of(plan: Plan, result: OpResult, by_point: dict[tuple[object, ...], OpResult]) -> Pair | None:
    """The pair that an overlapped point ran, by the results of its two configs alone."""
    dispatch, combine = split_pair(result.point)
    backend, dtype = plan.spec.backend, plan.spec.workload.dtype
    first = by_point.get(Point(backend, Op.DISPATCH, dtype, dispatch).key)
    second = by_point.get(Point(backend, Op.COMBINE, Dtype.BF16, combine).key)
    if first is None or second is None:
        return None
    names = shared_knobs(BACKENDS[backend])
    return Pair({name: dispatch[name] for name in names}, first, second, plan.spec.search.weights)


def _overlap(pair: Pair, result: OpResult, alone: OpResult) -> Overlap:
    return Overlap(
        pair=pair,
        makespan_us=result.median_us,
        ci95_us=result.ci95_us,
        compute_us=float(np.median(list(result.compute_by_round.values()))),
        compute_alone_us=alone.median_us,
        by_round=result.by_round,
    )


def _best_overlap(overlaps: list[Overlap]) -> Overlap:
    """The shortest makespan; of those that paired passes cannot tell from it, the one with the fewest resources."""
    best = min(overlaps, key=lambda one: one.makespan_us)
    limit_us = (1 + OVERLAP_TIE_LIMIT) * best.makespan_us
    rivals = [one for one in overlaps if one is not best and one.makespan_us <= limit_us]
    paired = [(one, sorted(one.by_round.keys() & best.by_round.keys())) for one in rivals]
    paired = [(one, common) for one, common in paired if len(common) >= _MIN_GROUPS]
    p_values = [
        paired_slower_p([one.by_round[n] for n in common], [best.by_round[n] for n in common]) for one, common in paired
    ]
    slower = holm(p_values, alpha=_ALPHA) if p_values else np.zeros(0, dtype=bool)
    tied = [best] + [one for (one, _), is_slower in zip(paired, slower, strict=True) if not is_slower]
    return min(tied, key=lambda one: one.pair.buffer_cost)


def _picks(optimal: Pair | None, default: Pair | None, pairs: list[Pair], overlaps: list[Overlap]) -> dict[str, Pair]:
    """Four answers to "which one": see METHODOLOGY."""
    if optimal is None:
        return {}
    picks = {"fastest": optimal}
    if overlaps:
        picks["overlapped"] = _best_overlap(overlaps).pair
    if default is not None:
        same = [pair for pair in pairs if pair.shared == default.shared]
        picks["default_sms"] = min(same, key=lambda pair: pair.score, default=default)
    near = [pair for pair in pairs if pair.score <= (1 + KNEE) * pairs[0].score]
    picks["knee"] = min(near, key=lambda pair: pair.buffer_cost)
    return picks
