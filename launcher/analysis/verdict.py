"""Whether the library's default should be changed: its ratio to the optimal pair, with an interval that holds; pure."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from scipy import stats as scipy_stats

from bench.records import Op, Stage
from bench.stats import ALPHA, DRIFT, Interval, log_median_errors, paired_ratio, paired_ratio_interval
from launcher.analysis.pairs import Ops, Pair, pair_of
from launcher.config.plan import Plan

MARGIN = 0.02
"""The default counts as beaten, or as optimal, only by more, or less, than this share of the objective."""

_RIVALS = 2
"""Configs of each operation and value of the shared knobs that the default is compared with."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether the library's default should be changed: the ratio default / optimal with its interval decides.

    ``basis`` says which samples: the final's fresh groups, or those of the sweep, which also chose. ``over`` says what
    the default is divided by: the optimal pair, or the best other pair where the default is itself the optimal one.
    """

    kind: str
    ratio: float
    ci95: Interval
    margin: float
    basis: str
    meaning: str
    over: str = "optimal"


class Rival(NamedTuple):
    """What the default is compared with. ``held_out``: the objective by group of what the other groups chose."""

    pair: Pair
    held_out: dict[int, float]
    over: str


def best_other(
    plan: Plan, groups: dict[tuple[int, ...], Ops], default: Pair | None, optimal: Pair | None
) -> Rival | None:
    """What the default is to be compared with: the optimal pair, or the best other one where it is optimal itself."""
    if default is None or optimal is None:
        return None
    if not default.same_configs(optimal):
        return Rival(optimal, _held_out(groups, optimal), "optimal")
    others = [
        pair_of(plan, shared, ops, dispatch, combine)
        for shared, ops in groups.items()
        for dispatch in ops[Op.DISPATCH][:_RIVALS]
        for combine in ops[Op.COMBINE][:_RIVALS]
    ]
    others = [one for one in others if one.is_final == default.is_final and not one.same_configs(default)]
    if not others:
        return None
    best = min(others, key=lambda one: one.score)
    common = sorted(default.by_round().keys() & best.by_round().keys())  # the default is measured in broken groups too
    return Rival(best, _chosen_by_others([one.by_round() for one in others], common), "best other pair")


def _chosen_by_others(candidates: list[dict[int, float]], numbers: list[int]) -> dict[int, float]:
    """In each group what that candidate measured which the other groups together like best.

    Whoever is chosen by the numbers that then describe it looks faster than it is, in simulation by 0.03 %. Leaving the
    group out of the choice takes that away [Stone 1974].
    """
    whole = [one for one in candidates if one.keys() >= set(numbers)]
    if not whole or not numbers:
        return {}
    logs = np.log([[one[number] for number in numbers] for one in whole])
    without = logs.sum(axis=1, keepdims=True) - logs
    return {number: whole[int(without[:, at].argmin())][number] for at, number in enumerate(numbers)}


def _held_out(groups: dict[tuple[int, ...], Ops], optimal: Pair) -> dict[int, float]:
    """The objective of the optimal pair in each group of the final, its configs chosen by the other groups.

    A config that was taken for its smaller buffer was not chosen by its time, which then stands for itself.
    """
    if not optimal.is_final:
        return {}
    ops = groups[tuple(optimal.shared.values())]
    numbers = list(optimal.by_round())
    totals = dict.fromkeys(numbers, 0.0)
    for weight, own in zip(optimal.weights, (optimal.dispatch, optimal.combine), strict=True):
        finals = [one for one in ops[own.point.op] if one.stage is Stage.FINAL]
        is_fastest = own is min(finals, key=lambda one: one.relative)
        chosen = _chosen_by_others([one.by_round for one in finals], numbers) if is_fastest else own.by_round
        for number in numbers:
            totals[number] += weight * chosen[number]
    return totals


def verdict(default: Pair | None, optimal: Pair | None, rival: Rival | None) -> Verdict | None:
    """See MARGIN; None when the default or every pair failed."""
    if default is None or optimal is None:
        return None
    if rival is None:
        meaning = "no other pair was measured"
        return Verdict("inconclusive", 1.0, Interval(1.0, 1.0), MARGIN, _basis(optimal), meaning)
    ratio, interval, basis = _ratio(default, rival)
    kind, meaning = _judged(interval, is_best=default.same_configs(optimal))
    return Verdict(kind, ratio, interval, MARGIN, basis, meaning, rival.over)


def _judged(interval: Interval, *, is_best: bool) -> tuple[str, str]:
    if interval.low > 1 + MARGIN:
        return "tuned", "the optimal pair is faster than the default"
    if interval.high < 1 + MARGIN:
        said = "no other pair is faster, within the margin" if is_best else "the default is as fast, within the margin"
        return "default_is_optimal", said
    return "inconclusive", "the interval spans the margin: measure more, search.final_groups=10"


def _basis(pair: Pair) -> str:
    return "final" if pair.is_final else "sweep"


def _ratio(default: Pair, rival: Rival) -> tuple[float, Interval, str]:
    """The ratio default / rival: paired over the final's groups where there are two at least, else by the visits."""
    first, second = default.by_round(), rival.held_out
    common = sorted(first.keys() & second.keys())
    if len(common) >= 2:
        numerator, denominator = [first[n] for n in common], [second[n] for n in common]
        return paired_ratio(numerator, denominator), paired_ratio_interval(numerator, denominator), "final"
    ratio, half = default.score / rival.pair.score, _half_width(default, rival.pair)
    return ratio, Interval(ratio * math.exp(-half), ratio * math.exp(half)), _basis(rival.pair)


def _half_width(*pairs: Pair) -> float:
    """Of the 95 % interval of the log ratio of two objectives, by what their visits scatter about their anchors.

    A visit is one look at a config in one round; its samples share what that round's processes and clocks were like, so
    they do not count as looks of their own. A config with a single visit has the error of its samples, and DRIFT.
    """
    variance, freedom = 0.0, math.inf
    for pair in pairs:
        for weight, one in zip(pair.weights, (pair.dispatch, pair.combine), strict=True):
            share, visits = weight * one.relative / pair.score, np.log(one.visits)
            if len(visits) > 1:
                error = max(float(visits.std(ddof=1)), DRIFT) / math.sqrt(len(visits))
                freedom = min(freedom, len(visits) - 1)
            else:
                error = math.hypot(float(log_median_errors([one.samples.tolist()])[0]), DRIFT)
            variance += (share * error) ** 2
    return float(scipy_stats.t.ppf(1 - ALPHA / 2, min(freedom, 1e6))) * math.sqrt(variance)
