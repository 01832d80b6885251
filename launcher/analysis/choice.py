"""Which configs to deploy: optimal pair, ties, Pareto frontier, picks, and the verdict on the default; pure."""

from __future__ import annotations

import msgspec

from bench.backends import BACKENDS, LIBRARY_DEFAULT
from bench.records import Op, Role
from launcher.analysis.layers import Layer, layers_of
from launcher.analysis.measurements import Measurement
from launcher.analysis.overlap import Overlap, best_overlap, held_out_overlap, overlaps_of
from launcher.analysis.pairs import (
    TIE_COST,
    Ops,
    Pair,
    are_slower,
    best_of,
    groups_of,
    pair_of,
    with_smallest_buffers,
    within_memory,
)
from launcher.analysis.verdict import Verdict, choose_rival, judge
from launcher.config.hardware import facts_of
from launcher.config.plan import Plan

TIE_LIMIT = 0.005
"""A pair further than this from the best is not tied with it, even if too few groups could tell them apart."""

KNEE = 0.05
"""The knee takes the fewest resources within this of the fastest."""


class Choice(msgspec.Struct, frozen=True):
    """Every decision about one backend's pairs.

    ``default``: the pair that the library itself takes; ``defaults``: it and those that engines take, by name.
    ``rival``: what the verdict compares the default with. ``overlap_held_out``: for each overlapped pass, the makespan
    of the pair that the *other* passes pick.
    """

    default: Pair | None
    defaults: dict[str, Pair]
    optimal: Pair | None
    worst: Pair | None
    tied: list[Pair]
    verdict: Verdict | None
    rival: Pair | None
    best_per_shared: list[Pair]
    pareto: list[Pair]
    overlaps: list[Overlap]
    overlap_held_out: dict[int, float]
    picks: dict[str, Pair]
    own_tuning: Pair | None
    layers: list[Layer] = []

    def overlap_of(self, pair: Pair) -> Overlap | None:
        """The pair overlapped with GEMMs, or else the sweep's best pair with the same shared knobs; None without."""
        same_shared = [overlap for overlap in self.overlaps if overlap.pair.shared == pair.shared]
        exact = [overlap for overlap in same_shared if overlap.pair.same_configs(pair)]
        others = [
            overlap for overlap in same_shared if self.default is None or not overlap.pair.same_configs(self.default)
        ]
        return next(iter([*exact, *others]), None)


def choose(plan: Plan, measurements: list[Measurement]) -> Choice:
    """The decisions that follow from the measurements of the plan's backend."""
    groups = groups_of(plan, measurements)
    allowed = within_memory(plan, groups)
    pairs = [best_of(plan, shared, ops) for shared, ops in allowed.items() if ops[Op.DISPATCH] and ops[Op.COMBINE]]
    if any(pair.is_final for pair in pairs):
        pairs = [pair for pair in pairs if pair.is_final]
    default = _default(plan, groups)
    pairs = [with_smallest_buffers(plan, allowed, pair) for pair in pairs]
    pairs.sort(key=lambda pair: (pair.score, pair.buffer_cost))
    tied = _tied(pairs)
    near = [pair for pair in tied if pair.score <= (1 + TIE_COST) * pairs[0].score]
    optimal = min(near, key=lambda pair: pair.buffer_cost, default=None)
    has_times = not plan.spec.ep.share_gpus
    rival = choose_rival(plan, allowed, default, optimal)
    overlaps = overlaps_of(plan, measurements, pairs, default)
    return Choice(
        default=default,
        defaults=_defaults(plan, groups, default),
        optimal=optimal,
        worst=_worst(plan, groups),
        tied=tied,
        verdict=_without_scatter(plan, judge(default, optimal, rival)) if has_times else None,
        rival=rival,
        best_per_shared=sorted(pairs, key=lambda pair: tuple(pair.shared.values())),
        pareto=_frontier(pairs),
        overlaps=overlaps,
        overlap_held_out=held_out_overlap(overlaps),
        picks=_picks(optimal, default, pairs, overlaps),
        own_tuning=_own_tuning(plan, groups),
        layers=layers_of(plan, measurements),
    )


def _without_scatter(plan: Plan, verdict: Verdict | None) -> Verdict | None:
    """The verdict; of a dry run without the interval for another run, since that is about GPUs."""
    return msgspec.structs.replace(verdict, another_run=None) if verdict is not None and plan.is_dry else verdict


def _default(plan: Plan, groups: dict[tuple[int, ...], Ops]) -> Pair | None:
    """The anchors' pair; None when one of them failed or is missing."""
    for shared, ops in groups.items():
        dispatch, combine = (
            next((measurement for measurement in ops[anchor.point.op] if measurement.point == anchor.point), None)
            for anchor in plan.anchors
        )
        if dispatch is not None and combine is not None:
            return pair_of(plan, shared, ops, dispatch, combine)
    return None


def _defaults(plan: Plan, groups: dict[tuple[int, ...], Ops], default: Pair | None) -> dict[str, Pair]:
    """Every default of the library that was measured, its own first."""
    found = {} if default is None else {LIBRARY_DEFAULT: default}
    if not any(planned.role is Role.DEFAULT for planned in plan.cells):
        return found
    facts = facts_of(plan.spec.hardware, plan.spec.workload, num_ranks=plan.spec.ep.size)
    named = {op: BACKENDS[plan.backend].defaults(op, facts) for op in (Op.DISPATCH, Op.COMBINE)}
    for name in named[Op.DISPATCH].keys() - {LIBRARY_DEFAULT}:
        for shared, ops in groups.items():
            dispatch, combine = (
                next((each for each in ops[op] if each.point.knobs == named[op][name]), None) for op in named
            )
            if dispatch is not None and combine is not None:
                found[name] = pair_of(plan, shared, ops, dispatch, combine)
    return found


def _own_tuning(plan: Plan, groups: dict[tuple[int, ...], Ops]) -> Pair | None:
    """The best pair of the library's own tuning grid; None where nothing of that grid was measured."""
    keys = {op: {planned.point.key for planned in plan.upstream(op)} for op in (Op.DISPATCH, Op.COMBINE)}
    pairs = []
    for shared, ops in groups.items():
        dispatches, combines = ([cell for cell in ops[op] if cell.point.key in keys[op]] for op in keys)
        if dispatches and combines:
            pairs.append(pair_of(plan, shared, ops, dispatches[0], combines[0]))
    return min(pairs, key=lambda pair: pair.score, default=None)


def _worst(plan: Plan, groups: dict[tuple[int, ...], Ops]) -> Pair | None:
    """The slowest measured pair; as a rule only the sweep measured it."""
    pairs = []
    for shared, ops in groups.items():
        if ops[Op.DISPATCH] and ops[Op.COMBINE]:
            dispatch, combine = (max(ops[op], key=lambda cell: cell.relative) for op in (Op.DISPATCH, Op.COMBINE))
            pairs.append(pair_of(plan, shared, ops, dispatch, combine))
    return max(pairs, key=lambda pair: pair.score, default=None)


def _tied(pairs: list[Pair]) -> list[Pair]:
    """The best and the pairs within TIE_LIMIT of it that are indistinguishable from it over the final's groups."""
    if not pairs:
        return []
    best, best_times = pairs[0], pairs[0].by_round()
    rivals = [pair for pair in pairs[1:] if pair.score <= (1 + TIE_LIMIT) * best.score]
    slower = are_slower([(pair.by_round(), best_times) for pair in rivals])
    return [best, *(pair for pair, is_slower in zip(rivals, slower, strict=True) if is_slower is False)]


def _frontier(pairs: list[Pair]) -> list[Pair]:
    """The pairs that no other pair beats with as little of the shared resource; fewest first."""
    frontier: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: (tuple(pair.shared.values()), pair.score)):
        if not frontier or pair.score < frontier[-1].score:
            frontier.append(pair)
    return frontier


def _picks(optimal: Pair | None, default: Pair | None, pairs: list[Pair], overlaps: list[Overlap]) -> dict[str, Pair]:
    """The pair for each use: see METHODOLOGY."""
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
