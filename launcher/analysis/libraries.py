"""Libraries measured in the same process groups, compared with one another and with the plain collectives; pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import msgspec

from bench.backends import sms_knob
from bench.records import Op
from bench.stats import MIN_GROUPS, Interval, paired_ratio, paired_ratio_interval
from launcher.analysis.choice import Choice
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair
from launcher.config.plan import Plan

SM_LIMITS = (16, 24, 32, 64)
"""The numbers of SMs for which the best pair is reported: what engines leave to communication."""

MARGIN = 0.01
"""Two libraries cannot be told apart if the interval of their ratio holds a value within this of 1."""

DEFAULT, OPTIMAL = "default", "optimal"


class Comparison(msgspec.Struct, frozen=True):
    """The same pick of two libraries: ``ratio`` is the time of ``first`` over that of ``second``, paired over groups.

    ``pick``: ``default``, ``optimal`` or ``at most N SMs``. ``full``: with full dispatches in place of cached ones.
    ``verdict``: ``a_is_faster`` (the first), ``b_is_faster`` or ``cannot_be_told_apart``.
    """

    first: str
    second: str
    pick: str
    full: bool
    ratio: float
    ci95: Interval
    verdict: Literal["a_is_faster", "b_is_faster", "cannot_be_told_apart"]


def at_most(choice: Choice, backend: str, limit: int) -> Pair | None:
    """The fastest pair that occupies at most this many SMs; None where none was measured."""
    name = sms_knob(backend)
    pairs = [pair for pair in choice.best_per_shared if name is not None and pair.shared.get(name, 0) <= limit]
    return min(pairs, key=lambda pair: pair.score, default=None)


def picks_of(choice: Choice, backend: str) -> dict[str, Pair]:
    """The pairs that libraries are compared by, those that exist: the default, the optimum, and the best of few SMs."""
    pairs = {DEFAULT: choice.default, OPTIMAL: choice.optimal}
    pairs |= {f"at most {limit} SMs": at_most(choice, backend, limit) for limit in SM_LIMITS}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def best_independent(measurements: list[Measurement], backend: str) -> tuple[Measurement, ...]:
    """The fastest dispatch and the fastest combine of a library, whether or not they can be deployed together."""
    groups = [
        [each for each in measurements if each.point.backend == backend and each.point.op is op]
        for op in (Op.DISPATCH, Op.COMBINE)
    ]
    staged = [[each for each in group if each.by_round] or group for group in groups]
    return tuple(min(group, key=lambda each: each.relative) for group in staged if group)


def compare_libraries(plan: Plan, choices: Mapping[str, Choice], baselines: list[Measurement]) -> list[Comparison]:
    """Every pick of every two libraries; and the optimum of each against each plain collective.

    Each optimum was chosen by the times that are compared, which favours both by 0.03 % in simulation.
    """
    if plan.spec.ep.share_gpus:
        return []
    comparisons = []
    picks = {name: picks_of(choice, name) for name, choice in choices.items()}
    for first, second in itertools.combinations(picks, 2):
        for pick in picks[first].keys() & picks[second].keys():
            for full in (False, True):
                pair = [_times(picks[name][pick], full=full) for name in (first, second)]
                comparisons.append(_compare(first, second, pick, *pair, full=full))
    for name, pairs in picks.items():
        for baseline, full, times in _baselines(plan, baselines):
            if OPTIMAL in pairs:
                own = _times(pairs[OPTIMAL], full=full)
                comparisons.append(_compare(name, baseline, OPTIMAL, own, times, full=full))
    order = {pick: number for number, pick in enumerate([DEFAULT, OPTIMAL, *(f"at most {n} SMs" for n in SM_LIMITS)])}
    found = [comparison for comparison in comparisons if comparison is not None]
    return sorted(found, key=lambda each: (each.full, order[each.pick]))


def _times(pair: Pair, *, full: bool) -> dict[int, float]:
    """The objective in each group of the final; with ``full`` by the full dispatch, empty where it was not measured."""
    if not full:
        return pair.by_round()
    return {} if pair.full is None else msgspec.structs.replace(pair, dispatch=pair.full).by_round()


def _baselines(plan: Plan, baselines: list[Measurement]) -> list[tuple[str, bool, dict[int, float]]]:
    """Name, kind of dispatch and objective in each group of every plain collective."""
    found = []
    by_op = {(each.point.backend, each.point.op): each for each in baselines}
    for name in dict.fromkeys(each.point.backend for each in baselines):
        for full, op in ((False, Op.DISPATCH), (True, Op.DISPATCH_FULL)):
            dispatch, combine = by_op.get((name, op)), by_op.get((name, Op.COMBINE))
            if dispatch is not None and combine is not None:
                pair = Pair({}, dispatch, combine, plan.spec.search.weights)
                found.append((name, full, pair.by_round()))
    return found


def _compare(
    first: str, second: str, pick: str, times: Mapping[int, float], others: Mapping[int, float], *, full: bool
) -> Comparison | None:
    """The comparison over the groups that measured both; None where these are too few."""
    common = sorted(times.keys() & others.keys())
    if len(common) < MIN_GROUPS:
        return None
    numerator, denominator = [times[number] for number in common], [others[number] for number in common]
    ratio, interval = paired_ratio(numerator, denominator), paired_ratio_interval(numerator, denominator)
    verdict: Literal["a_is_faster", "b_is_faster", "cannot_be_told_apart"]
    if interval.high < 1 - MARGIN:
        verdict = "a_is_faster"
    elif interval.low > 1 + MARGIN:
        verdict = "b_is_faster"
    else:
        verdict = "cannot_be_told_apart"
    return Comparison(first, second, pick, full, ratio, interval, verdict)
