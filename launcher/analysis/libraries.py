"""Libraries measured in the same process groups, compared with one another and with the plain collectives; pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from bench.backends import sms_knob
from bench.between import OTHER_GPUS, another_ratio
from bench.records import Op
from bench.stats import MIN_GROUPS, Interval, paired_ratio, paired_ratio_interval
from launcher.analysis.choice import Choice
from launcher.analysis.layers import layer_of
from launcher.analysis.measurements import Measurement
from launcher.analysis.pairs import Pair
from launcher.config.plan import Plan

SM_LIMITS = (16, 24, 32, 64)
"""The numbers of SMs for which the best pair is reported: what engines leave to communication."""

MARGIN = 0.01
"""Two libraries cannot be told apart if the interval of their ratio holds a value within this of 1."""

DEFAULT, OPTIMAL = "default", "optimal"
OVERLAPPED, LAYER, LAYER_TRAINING = "overlapped", "layer", "layer_training"
_LIMITS = {limit: f"at most {limit} SMs" for limit in SM_LIMITS}
_OF_PASSES = (OVERLAPPED, LAYER, LAYER_TRAINING)
_ORDER = (DEFAULT, OPTIMAL, *_LIMITS.values(), *_OF_PASSES)


class Comparison(msgspec.Struct, frozen=True):
    """The same pick of two libraries: ``ratio`` is the time of ``first`` over that of ``second``, paired over groups.

    ``pick``: ``default``, ``optimal`` or ``at most N SMs``; paired over passes: ``overlapped``, where each pass takes
    the pair that the others pick, and ``layer`` or ``layer_training``, with the optimal pairs. ``full``: with full
    dispatches in place of cached ones. ``another_run``: the 95 % interval for the ratio that a run on other GPUs of the
    kind would report. ``verdict``: ``a_is_faster`` (the first), ``b_is_faster`` or
    ``cannot_be_told_apart``.
    """

    first: str
    second: str
    pick: str
    full: bool
    ratio: float
    ci95: Interval
    another_run: Interval | None
    verdict: Literal["a_is_faster", "b_is_faster", "cannot_be_told_apart"]


def at_most(choice: Choice, backend: str, limit: int) -> Pair | None:
    """The fastest pair that occupies at most this many SMs; None where none was measured."""
    name = sms_knob(backend)
    pairs = [pair for pair in choice.best_per_shared if name is not None and pair.shared.get(name, 0) <= limit]
    return min(pairs, key=lambda pair: pair.score, default=None)


def picks_of(choice: Choice, backend: str) -> dict[str, Pair]:
    """The pairs that libraries are compared by, those that exist: the default, the optimum, and the best of few SMs."""
    pairs = {DEFAULT: choice.default, OPTIMAL: choice.optimal}
    pairs |= {name: at_most(choice, backend, limit) for limit, name in _LIMITS.items()}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def best_independent(measurements: Sequence[Measurement], backend: str) -> tuple[Measurement, ...]:
    """The fastest dispatch and the fastest combine of a library, whether or not they can be deployed together."""
    groups = [
        [each for each in measurements if each.point.backend == backend and each.point.op is op]
        for op in (Op.DISPATCH, Op.COMBINE)
    ]
    staged = [[each for each in group if each.by_round] or group for group in groups]
    return tuple(min(group, key=lambda each: each.relative) for group in staged if group)


def collectives(plan: Plan, baselines: Sequence[Measurement]) -> dict[str, Pair]:
    """Dispatch and combine of each plain collective, with its full dispatch; without those that lack one of the two."""
    by_op = {(each.point.backend, each.point.op): each for each in baselines}
    pairs = {}
    for name in dict.fromkeys(each.point.backend for each in baselines):
        dispatch, combine = by_op.get((name, Op.DISPATCH)), by_op.get((name, Op.COMBINE))
        if dispatch is not None and combine is not None:
            search, full = plan.spec.search, by_op.get((name, Op.DISPATCH_FULL))
            pairs[name] = Pair({}, dispatch, combine, search.weights, full, search.counts_full)
    return pairs


def compare_libraries(plan: Plan, choices: Mapping[str, Choice], baselines: Sequence[Measurement]) -> list[Comparison]:
    """Every pick of every two libraries; and the optimum of each against each plain collective.

    Each optimum was chosen by the times that are compared, which favours both a little.
    """
    if plan.spec.ep.share_gpus:
        return []
    picks = {name: picks_of(choice, name) for name, choice in choices.items()}
    comparisons = [
        each
        for first, second in itertools.combinations(choices, 2)
        for each in (*_compare_picks(picks, first, second), *_compare_passes(choices, first, second))
    ]
    plain = collectives(plan, baselines)
    for name, other, full in itertools.product(picks, plain, (False, True)):
        if OPTIMAL in picks[name]:
            own, others = _times(picks[name][OPTIMAL], full=full), _times(plain[other], full=full)
            comparisons.append(_compare(name, other, OPTIMAL, own, others, full=full))
    found = [comparison for comparison in comparisons if comparison is not None]
    if plan.is_dry:  # how much runs scatter is known of GPUs only
        found = [msgspec.structs.replace(each, another_run=None) for each in found]
    return sorted(found, key=lambda each: (each.full, _ORDER.index(each.pick)))


def _compare_picks(picks: Mapping[str, Mapping[str, Pair]], first: str, second: str) -> Iterator[Comparison | None]:
    """Every pick that both libraries have, with cached and with full dispatches."""
    for pick, pair in picks[first].items():
        if pick in picks[second]:
            for full in (False, True):
                times = [_times(each, full=full) for each in (pair, picks[second][pick])]
                yield _compare(first, second, pick, *times, full=full)


def _compare_passes(choices: Mapping[str, Choice], first: str, second: str) -> Iterator[Comparison | None]:
    """What the passes measured: the best overlapped pairs, and layers with the optimal pairs."""
    held_out = [choices[name].overlap_held_out for name in (first, second)]
    yield _compare(first, second, OVERLAPPED, *held_out, full=False)
    for pick, training in ((LAYER, False), (LAYER_TRAINING, True)):
        layers = [layer_of(choices[name].layers, choices[name].optimal, training=training) for name in (first, second)]
        times = [{} if layer is None else layer.by_round for layer in layers]
        yield _compare(first, second, pick, *times, full=True)


def _times(pair: Pair, *, full: bool) -> dict[int, float]:
    """The objective in each group of the final; with ``full`` by the full dispatch, empty where it was not measured."""
    timed = pair.forward if full else pair
    return {} if timed is None else timed.by_round()


def _compare(
    first: str, second: str, pick: str, times: Mapping[int, float], others: Mapping[int, float], *, full: bool
) -> Comparison | None:
    """The comparison over the groups that measured both; None where these are too few."""
    common = sorted(times.keys() & others.keys())
    if len(common) < MIN_GROUPS:
        return None
    numerator, denominator = [times[number] for number in common], [others[number] for number in common]
    robust = pick not in _OF_PASSES
    ratio = paired_ratio(numerator, denominator, robust=robust)
    interval = paired_ratio_interval(numerator, denominator, robust=robust)
    verdict: Literal["a_is_faster", "b_is_faster", "cannot_be_told_apart"]
    if interval.high < 1 / (1 + MARGIN):
        verdict = "a_is_faster"
    elif interval.low > 1 + MARGIN:
        verdict = "b_is_faster"
    else:
        verdict = "cannot_be_told_apart"
    another_run = another_ratio(numerator, denominator, scatter=OTHER_GPUS.ratio, robust=robust)
    return Comparison(first, second, pick, full, ratio, interval, another_run, verdict)
