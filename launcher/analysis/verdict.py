"""The verdict on the library's default: its ratio to the optimal pair, with a 95 % CI; pure."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from scipy import stats as scipy_stats

from bench.between import OTHER_GPUS, SAME_GPUS, another_ratio, other_machine
from bench.components import components, mean_over_runs
from bench.records import Op, Stage
from bench.stats import ALPHA, DRIFT, Interval, log_median_errors, paired_ratio, paired_ratio_interval
from launcher.analysis.components import observed, own_or
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Ops, Pair, pair_of
from launcher.config.plan import Plan

MARGIN = 0.02
"""The default is beaten if it takes more than this share longer, optimal if it takes less."""

_RIVALS = 2
"""Configs for each operation and value of the shared knobs among which the rival is: the default may be one of them."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether to change the library's default, by the 95 % CI of default / optimal; see MARGIN.

    ``kind``: tuned, within_margin or inconclusive. ``basis``: the samples behind it, those of the final, with its
    repeats where there are any, or of the sweep, which also chose. ``over``: the denominator, the pair that the sweep
    found fastest. It is the optimal pair as a rule, else "sweep's best pair", or "best other pair" where the default is
    the optimal one. ``forward``: the ratio of the same two pairs in a forward pass, with full dispatches; None where
    these were not measured in the final.
    ``another_run``: the 95 % interval for the ratio that a run on other GPUs of the kind would report.
    """

    kind: str
    ratio: float
    ci95: Interval
    margin: float
    basis: str
    meaning: str
    over: str = "optimal"
    forward: float | None = None
    forward_ci95: Interval | None = None
    another_run: Interval | None = None


def choose_rival(
    plan: Plan, groups: dict[tuple[int, ...], Ops], default: Pair | None, optimal: Pair | None
) -> Pair | None:
    """The pair that the sweep found fastest of those that the final measured; None without any but the default.

    The final's times do not choose it, so they judge it without bias. A pair that they had chosen would look faster
    than it is, and where configs are alike a held-out choice [Stone 1974] has too narrow an interval.
    """
    if default is None or optimal is None:
        return None
    others = [
        pair_of(plan, shared, ops, dispatch, combine)
        for shared, ops in groups.items()
        for dispatch in _first(ops[Op.DISPATCH], default)
        for combine in _first(ops[Op.COMBINE], default)
    ]
    others = [pair for pair in others if not pair.same_configs(default)]
    if not others:
        return None
    return min(others, key=lambda pair: (pair.swept, pair.score))


def _first(measurements: list[Measurement], default: Pair) -> list[Measurement]:
    """The fastest in the sweep of those that were measured in the same stage as the default."""
    same = [each for each in measurements if (each.stage is Stage.FINAL) == default.is_final]
    return sorted(same, key=lambda each: (math.inf if each.swept is None else each.swept, each.relative))[:_RIVALS]


def judge(default: Pair | None, optimal: Pair | None, rival: Pair | None) -> Verdict | None:
    """The verdict; None when the default or every pair failed."""
    if default is None or optimal is None:
        return None
    if rival is None:
        meaning = "no other pair was measured"
        return Verdict("inconclusive", 1.0, Interval(1.0, 1.0), MARGIN, _basis(optimal), meaning)
    ratio, interval, basis = _default_over_rival(default, rival)
    over_runs = _over_runs(default, rival)
    if over_runs is not None:
        ratio, interval, basis = over_runs.ratio, over_runs.ci95, "final and its repeats"
    is_best = default.same_configs(optimal)
    kind, meaning = _kind(interval, is_best=is_best)
    over = "optimal" if rival.same_configs(optimal) else "best other pair" if is_best else "sweep's best pair"
    forward, forward_ci95 = _forward(default, rival)
    elsewhere = _paired(default, rival)
    another_run = None if elsewhere is None else another_ratio(*elsewhere, scatter=OTHER_GPUS.ratio)
    if over_runs is not None:
        another_run = over_runs.another_run
    return Verdict(kind, ratio, interval, MARGIN, basis, meaning, over, forward, forward_ci95, another_run)


def _forward(default: Pair, rival: Pair) -> tuple[float | None, Interval | None]:
    """The ratio of the two with full dispatches, paired over the final's groups, and over all runs with repeats."""
    first, second = default.forward, rival.forward
    over_runs = None if first is None or second is None else _over_runs(first, second)
    if over_runs is not None:
        return over_runs.ratio, over_runs.ci95
    times = None if first is None or second is None else _paired(first, second)
    return (None, None) if times is None else (paired_ratio(*times), paired_ratio_interval(*times))


def _paired(default: Pair, rival: Pair) -> tuple[list[float], list[float]] | None:
    """The objectives of both in the groups of the final that measured both; None below two."""
    times, rival_times = default.by_round(), rival.by_round()
    numbers = sorted(times.keys() & rival_times.keys())
    return ([times[number] for number in numbers], [rival_times[number] for number in numbers]) if numbers[1:] else None


class _OverRuns(NamedTuple):
    """The ratio of two pairs over the final and its repeats, and what a run on other GPUs of the kind would report."""

    ratio: float
    ci95: Interval
    another_run: Interval


def _over_runs(default: Pair, rival: Pair) -> _OverRuns | None:
    """The random-effects mean of the ratios, paired in each group; None without repeats that measured both.

    What runs and machines add to the ratio is that of the run itself where it has enough of them, else the published.
    """
    times, others = default.by_run(), rival.by_run()
    ratios = {
        run: {group: times[run][group] / others[run][group] for group in times[run].keys() & others[run].keys()}
        for run in times.keys() & others.keys()
    }
    ratios = {run: by_group for run, by_group in ratios.items() if by_group}
    if len(ratios) < 2:
        return None
    logs = observed(ratios)
    own = components([logs])
    between_machines = other_machine(OTHER_GPUS.ratio, same_gpus=SAME_GPUS.ratio)
    mean = mean_over_runs(
        logs,
        run=own_or(own.run, SAME_GPUS.ratio),
        machine=own_or(own.machine, between_machines),
        groups=max(map(len, ratios.values())),
    )
    if mean is None:
        return None
    return _OverRuns(math.exp(mean.log), _exp(mean.interval), _exp(mean.another))


def _exp(logs: Interval) -> Interval:
    return Interval(math.exp(logs.low), math.exp(logs.high))


def _kind(interval: Interval, *, is_best: bool) -> tuple[str, str]:
    """What the interval means, as a key and in words."""
    if interval.low > 1 + MARGIN:
        return "tuned", "the optimal pair is faster than the default"
    if interval.high < 1 + MARGIN:
        subject = "no other pair is faster than the default" if is_best else "the default is as fast as the best pair"
        return "within_margin", f"{subject}, within {MARGIN:.0%}"
    return "inconclusive", "the interval spans the margin, so measure more (search.final_groups=10)"


def _basis(pair: Pair) -> str:
    return "final" if pair.is_final else "sweep"


def _default_over_rival(default: Pair, rival: Pair) -> tuple[float, Interval, str]:
    """The ratio default / rival: paired over the final's groups if there are two, else by the sweep's repetitions."""
    times = _paired(default, rival)
    if times is not None:
        return paired_ratio(*times), paired_ratio_interval(*times), "final"
    ratio, half = default.score / rival.score, _half_width(default, rival)
    return ratio, Interval(ratio * math.exp(-half), ratio * math.exp(half)), _basis(rival)


def _half_width(*pairs: Pair) -> float:
    """Half of the 95 % CI of the log ratio of two objectives, by the scatter of their repetitions about their anchors.

    The samples of a repetition share its processes and clocks, so a repetition counts once. A config with a single one
    has the error of its samples, and DRIFT.
    """
    variance, freedom = 0.0, math.inf
    for pair in pairs:
        for weight, config in zip(pair.weights, pair.counted, strict=True):
            share, logs = weight * config.relative / pair.score, np.log(config.repetitions)
            if len(logs) > 1:
                error = max(float(logs.std(ddof=1)), DRIFT) / math.sqrt(len(logs))
                freedom = min(freedom, len(logs) - 1)
            else:
                error = math.hypot(float(log_median_errors([config.samples.tolist()])[0]), DRIFT)
            variance += (share * error) ** 2
    return float(scipy_stats.t.ppf(1 - ALPHA / 2, min(freedom, 1e6))) * math.sqrt(variance)
