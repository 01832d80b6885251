"""Which configs to deploy: ties, the frontier and its picks, with the verdict on the default; pure."""

from __future__ import annotations

import msgspec

from bench.records import Op
from launcher.analysis.measurements import Measurement
from launcher.analysis.overlap import Overlap, best_overlap, held_out_overlap, may_be_best, overlaps_of
from launcher.analysis.pairs import TIE_COST, Ops, Pair, best_of, groups_of, pair_of, slower, smaller
from launcher.analysis.verdict import Verdict, best_other, verdict
from launcher.config.plan import Plan

TIE_LIMIT = 0.005
"""A pair further than this from the best is no tie, however few groups there are to tell them apart."""

KNEE = 0.05


class Choice(msgspec.Struct, frozen=True):
    """Everything that was decided about one backend's pairs.

    ``best_overlaps``: those of ``overlaps`` that may be the best, since no other one surely beats them.
    ``overlap_held_out``: by pass beside GEMMs, what the pair took that the *other* passes would have picked.
    """

    default: Pair | None
    optimal: Pair | None
    worst: Pair | None
    tied: list[Pair]
    verdict: Verdict | None
    best_per_shared: list[Pair]
    pareto: list[Pair]
    overlaps: list[Overlap]
    best_overlaps: list[Overlap]
    overlap_held_out: dict[int, float]
    picks: dict[str, Pair]
    own_tuning: Pair | None

    def overlap_of(self, pair: Pair) -> Overlap | None:
        """What was measured beside GEMMs of this pair, or else of the sweep's best with the same shared knobs."""
        same = [overlap for overlap in self.overlaps if overlap.pair.shared == pair.shared]
        exact = [overlap for overlap in same if overlap.pair.same_configs(pair)]
        chosen = [overlap for overlap in same if self.default is None or not overlap.pair.same_configs(self.default)]
        return next(iter([*exact, *chosen]), None)


def choose(plan: Plan, measurements: list[Measurement]) -> Choice:
    """The decisions that follow from the results of the plan's backend."""
    groups = groups_of(plan, measurements)
    pairs = [best_of(plan, shared, ops) for shared, ops in groups.items() if ops[Op.DISPATCH] and ops[Op.COMBINE]]
    if any(pair.is_final for pair in pairs):
        pairs = [pair for pair in pairs if pair.is_final]
    default = _default(plan, groups)
    pairs = sorted((smaller(plan, groups, pair) for pair in pairs), key=lambda pair: (pair.score, pair.buffer_cost))
    tied = _tied(pairs)
    near = [pair for pair in tied if pair.score <= (1 + TIE_COST) * pairs[0].score]
    optimal = min(near, key=lambda pair: pair.buffer_cost, default=None)
    frontier = _frontier(pairs)
    overlaps = overlaps_of(plan, measurements, pairs, default)
    return Choice(
        default=default,
        optimal=optimal,
        worst=_worst(plan, groups),
        tied=tied,
        verdict=None
        if plan.spec.ep.share_gpus
        else verdict(default, optimal, best_other(plan, groups, default, optimal)),
        best_per_shared=sorted(pairs, key=lambda pair: tuple(pair.shared.values())),
        pareto=frontier,
        overlaps=overlaps,
        best_overlaps=may_be_best(overlaps),
        overlap_held_out=held_out_overlap(overlaps),
        picks=_picks(optimal, default, pairs, overlaps),
        own_tuning=_own_tuning(plan, groups),
    )


def _default(plan: Plan, groups: dict[tuple[int, ...], Ops]) -> Pair | None:
    """The anchors' results; None when one of them failed or is missing."""
    for shared, ops in groups.items():
        found = [
            next((one for one in ops[anchor.point.op] if one.point == anchor.point), None) for anchor in plan.anchors
        ]
        dispatch, combine = found
        if dispatch is not None and combine is not None:
            return pair_of(plan, shared, ops, dispatch, combine)
    return None


def _own_tuning(plan: Plan, groups: dict[tuple[int, ...], Ops]) -> Pair | None:
    """The best that the library's own tuning script tries; None without one, or where nothing of it was measured."""
    own = {op: {one.point.key for one in plan.upstream(op)} for op in (Op.DISPATCH, Op.COMBINE)}
    pairs = []
    for shared, ops in groups.items():
        first, second = ([one for one in ops[op] if one.point.key in own[op]] for op in own)
        if first and second:
            pairs.append(pair_of(plan, shared, ops, first[0], second[0]))
    return min(pairs, key=lambda pair: pair.score, default=None)


def _worst(plan: Plan, groups: dict[tuple[int, ...], Ops]) -> Pair | None:
    """The slowest pair that was measured, mostly in the sweep alone."""
    slowest = [
        pair_of(plan, shared, ops, *(max(ops[op], key=lambda one: one.relative) for op in (Op.DISPATCH, Op.COMBINE)))
        for shared, ops in groups.items()
        if ops[Op.DISPATCH] and ops[Op.COMBINE]
    ]
    return max(slowest, key=lambda pair: pair.score, default=None)


def _tied(pairs: list[Pair]) -> list[Pair]:
    """The best and the pairs within TIE_LIMIT of it that are indistinguishable from it over the final's groups."""
    if not pairs:
        return []
    best, best_times = pairs[0], pairs[0].by_round()
    rivals = [pair for pair in pairs[1:] if pair.score <= (1 + TIE_LIMIT) * best.score]
    answers = slower([(pair.by_round(), best_times) for pair in rivals])
    return [best, *(pair for pair, is_slower in zip(rivals, answers, strict=True) if is_slower is False)]


def _frontier(pairs: list[Pair]) -> list[Pair]:
    """The pairs that no other pair beats with as little of the shared resource; fewest first."""
    frontier: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: (tuple(pair.shared.values()), pair.score)):
        if not frontier or pair.score < frontier[-1].score:
            frontier.append(pair)
    return frontier


def _picks(optimal: Pair | None, default: Pair | None, pairs: list[Pair], overlaps: list[Overlap]) -> dict[str, Pair]:
    """Four answers to "which one": see METHODOLOGY."""
    if optimal is None:
        return {}
    picks = {"fastest": optimal}
    if overlaps:
        picks["overlapped"] = best_overlap(overlaps).pair
    if default is not None:
        same = [pair for pair in pairs if pair.shared == default.shared]
        picks["default_sms"] = min(same, key=lambda pair: pair.score, default=default)
    near = [pair for pair in pairs if pair.score <= (1 + KNEE) * pairs[0].score]
    picks["knee"] = min(near, key=lambda pair: pair.buffer_cost)
    return picks
