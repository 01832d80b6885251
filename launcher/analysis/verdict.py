"""The verdict on the library's default: its ratio to the optimal pair, with a 95 % CI; pure."""

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
"""The default is beaten if it takes more than this share longer, optimal if it takes less."""

_RIVALS = 2
"""How many configs per operation and value of the shared knobs an optimal default is compared with."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether to change the library's default, by the 95 % CI of default / optimal; see MARGIN.

    ``kind``: tuned, default_is_optimal or inconclusive. ``basis``: the samples behind it, those of the final or of the
    sweep, which also chose. ``over``: the denominator, which is the optimal pair, or the best other pair where the
    default is the optimal one.
    """

    kind: str
    ratio: float
    ci95: Interval
    margin: float
    basis: str
    meaning: str
    over: str = "optimal"


class Rival(NamedTuple):
    """What the default is compared with.

    ``held_out``: for each group of the final, the objective of the candidate that the other groups rank first.
    """

    pair: Pair
    held_out: dict[int, float]
    over: str


def choose_rival(
    plan: Plan, groups: dict[tuple[int, ...], Ops], default: Pair | None, optimal: Pair | None
) -> Rival | None:
    """The optimal pair, or the best other pair where the default is the optimal one; None without any."""
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
    others = [pair for pair in others if pair.is_final == default.is_final and not pair.same_configs(default)]
    if not others:
        return None
    best = min(others, key=lambda pair: pair.score)
    numbers = sorted(default.by_round().keys() & best.by_round().keys())  # interrupted groups measured the default too
    return Rival(best, _leave_one_out([pair.by_round() for pair in others], numbers), "best other pair")


def _leave_one_out(candidates: list[dict[int, float]], numbers: list[int]) -> dict[int, float]:
    """For each group, the time of the candidate that the *other* groups rank first (leave-one-out) [Stone 1974].

    A candidate chosen by its own times looks faster than it is, by 0.03 % in simulation.
    """
    complete = [by_round for by_round in candidates if by_round.keys() >= set(numbers)]
    if not complete or not numbers:
        return {}
    logs = np.log([[by_round[number] for number in numbers] for by_round in complete])
    without = logs.sum(axis=1, keepdims=True) - logs
    return {number: complete[int(without[:, index].argmin())][number] for index, number in enumerate(numbers)}


def _held_out(groups: dict[tuple[int, ...], Ops], optimal: Pair) -> dict[int, float]:
    """The objective of the optimal pair in each group of the final, its configs chosen by the other groups.

    A config that won by its smaller buffer was not chosen by its time, so its own times stand.
    """
    if not optimal.is_final:
        return {}
    ops = groups[tuple(optimal.shared.values())]
    numbers = list(optimal.by_round())
    totals = dict.fromkeys(numbers, 0.0)
    for weight, config in zip(optimal.weights, (optimal.dispatch, optimal.combine), strict=True):
        finalists = [measurement for measurement in ops[config.point.op] if measurement.stage is Stage.FINAL]
        is_fastest = config is min(finalists, key=lambda finalist: finalist.relative)
        candidates = [finalist.by_round for finalist in finalists]
        times = _leave_one_out(candidates, numbers) if is_fastest else config.by_round
        for number in numbers:
            totals[number] += weight * times[number]
    return totals


def judge(default: Pair | None, optimal: Pair | None, rival: Rival | None) -> Verdict | None:
    """The verdict; None when the default or every pair failed."""
    if default is None or optimal is None:
        return None
    if rival is None:
        meaning = "no other pair was measured"
        return Verdict("inconclusive", 1.0, Interval(1.0, 1.0), MARGIN, _basis(optimal), meaning)
    ratio, interval, basis = _default_over_rival(default, rival)
    kind, meaning = _kind(interval, is_best=default.same_configs(optimal))
    return Verdict(kind, ratio, interval, MARGIN, basis, meaning, rival.over)


def _kind(interval: Interval, *, is_best: bool) -> tuple[str, str]:
    """What the interval means, as a key and in words."""
    if interval.low > 1 + MARGIN:
        return "tuned", "the optimal pair is faster than the default"
    if interval.high < 1 + MARGIN:
        subject = "no other pair is faster" if is_best else "the default is as fast"
        return "default_is_optimal", f"{subject}, within the margin"
    return "inconclusive", "the interval spans the margin, so measure more (search.final_groups=10)"


def _basis(pair: Pair) -> str:
    return "final" if pair.is_final else "sweep"


def _default_over_rival(default: Pair, rival: Rival) -> tuple[float, Interval, str]:
    """The ratio default / rival: paired over the final's groups if there are two, else by the sweep's repetitions."""
    times, rival_times = default.by_round(), rival.held_out
    numbers = sorted(times.keys() & rival_times.keys())
    if len(numbers) >= 2:
        numerator, denominator = [times[number] for number in numbers], [rival_times[number] for number in numbers]
        return paired_ratio(numerator, denominator), paired_ratio_interval(numerator, denominator), "final"
    ratio, half = default.score / rival.pair.score, _half_width(default, rival.pair)
    return ratio, Interval(ratio * math.exp(-half), ratio * math.exp(half)), _basis(rival.pair)


def _half_width(*pairs: Pair) -> float:
    """Half of the 95 % CI of the log ratio of two objectives, by the scatter of their repetitions about their anchors.

    The samples of a repetition share its processes and clocks, so a repetition counts once. A config with a single one
    has the error of its samples, and DRIFT.
    """
    variance, freedom = 0.0, math.inf
    for pair in pairs:
        for weight, config in zip(pair.weights, (pair.dispatch, pair.combine), strict=True):
            share, logs = weight * config.relative / pair.score, np.log(config.repetitions)
            if len(logs) > 1:
                error = max(float(logs.std(ddof=1)), DRIFT) / math.sqrt(len(logs))
                freedom = min(freedom, len(logs) - 1)
            else:
                error = math.hypot(float(log_median_errors([config.samples.tolist()])[0]), DRIFT)
            variance += (share * error) ** 2
    return float(scipy_stats.t.ppf(1 - ALPHA / 2, min(freedom, 1e6))) * math.sqrt(variance)
