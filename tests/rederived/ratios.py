"""Ratios with Student's intervals, and pairs overlapped with GEMMs; docs/METHODOLOGY.md has the definitions."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy import stats

from tests.rederived import records as r
from tests.rederived.records import Knobs, Times

Ratio = tuple[float, float, float]
"""A ratio and the ends of its 95 % CI."""


def logs_of(numerator: Times, denominator: Times) -> r.Floats:
    """The logs of the ratios in each group or pass that measured both."""
    common = sorted(numerator.keys() & denominator.keys())
    return np.log([numerator[number] / denominator[number] for number in common])


def ratio(numerator: Times, denominator: Times) -> Ratio:
    """Paired over the groups: the centre of the logs, and Student's interval about it."""
    logs = logs_of(numerator, denominator)
    return _about(r.centre(logs), logs)


def mean_ratio(numerator: Times, denominator: Times) -> Ratio:
    """Paired over passes: the geometric mean, with Student's interval."""
    logs = logs_of(numerator, denominator)
    return _about(float(logs.mean()), logs)


def _about(middle: float, logs: r.Floats) -> Ratio:
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def compared(run: str, first: r.Pair, second: r.Pair) -> Ratio:
    """How many times as long the first pair takes as the second."""
    assert (first.run, second.run) == (run, run)
    return ratio(first.round_trip, second.round_trip)


class Overlap(NamedTuple):
    """A pair overlapped with GEMMs: its time in each pass, corrected for the power cap."""

    knobs: Knobs
    times: Times

    @property
    def num_sms(self) -> int:
        return dict(self.knobs)["num_sms"]

    @property
    def us(self) -> float:
        return r.geometric_mean(self.times)

    @property
    def buffer(self) -> int:
        return max((value for name, value in self.knobs if name.endswith("nvl_buffer")), default=0)


@functools.cache
def gemms_us(run: str) -> float:
    """Isolated GEMMs: the median of their repetitions."""
    return median([record.median_us for record in r.records(run) if record.op == "compute"])


@functools.cache
def passes(run: str, op: str = "overlapped", backend: str = "deepep", *, corrected: bool = True) -> list[Overlap]:
    """Every overlapped pair, or whole layer: the mean of each of its passes, fewest SMs first.

    Each is divided by how much longer than typical the isolated GEMMs directly before and after it took.
    """
    measured = [record for record in r.records(run) if record.is_final]
    times: dict[Knobs, Times] = defaultdict(dict)
    for before, record, after in zip([None, *measured], measured, [*measured[1:], None], strict=False):
        if (record.op, record.backend) == (op, backend):
            level = 1.0  # the first runs on H200s have no GEMMs around a pair
            if corrected and before and after and (before.op, after.op) == ("compute", "compute"):
                level = math.sqrt(before.median_us * after.median_us) / gemms_us(run)
            times[record.knobs][record.round] = float(np.mean(record.samples_us)) / level
    return sorted((Overlap(*each) for each in times.items()), key=lambda overlap: (overlap.num_sms, overlap.us))


def limit(first: Overlap, second: Overlap, alpha: float = 0.05) -> float:
    """The one-sided upper limit of the ratio of two pairs, paired over the passes."""
    logs = logs_of(first.times, second.times)
    reach = stats.t.ppf(1 - alpha, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return math.exp(float(logs.mean()) + reach)


def picked(overlaps: list[Overlap]) -> Overlap:
    """The pair with the fewest SMs of the fastest and those whose one-sided limit is within 2 % of it."""
    best = min(overlaps, key=lambda overlap: overlap.us)
    near = [overlap for overlap in overlaps if overlap is not best and limit(overlap, best) <= 1.02]
    return min([best, *near], key=lambda overlap: (overlap.num_sms, overlap.buffer))


@functools.cache
def may_be_best(run: str, backend: str = "deepep") -> list[Overlap]:
    """The overlapped pairs that no other significantly beats."""
    overlaps = passes(run, backend=backend)
    return [
        one
        for one in overlaps
        if not any(r.holm([r.slower_p(one.times, other.times) for other in overlaps if other is not one]))
    ]


def costs_at_most(run: str) -> float:
    """How much longer the pick may take than the best pair, in per cent, with 95 % confidence for all pairs together.

    The largest one-sided limit of its time over that of another pair, at 5 % over all of them.
    """
    overlaps = passes(run)
    pick = picked(overlaps)
    others = [other for other in overlaps if other is not pick]
    return 100 * (max(1.0, *(limit(pick, other, 0.05 / len(others)) for other in others)) - 1)


def held_out(run: str, backend: str = "deepep") -> Times:
    """In each pass the time of the pair that the other passes pick."""
    overlaps, found = passes(run, backend=backend), {}
    for number in overlaps[0].times:
        rest = [Overlap(one.knobs, {other: t for other, t in one.times.items() if other != number}) for one in overlaps]
        best = picked(rest)
        (same,) = [overlap for overlap in overlaps if overlap.knobs == best.knobs]
        found[number] = same.times[number]
    return found


def overlap_of(run: str, pair: r.Pair) -> Overlap:
    """The overlapped pair with these configs, or else the sweep's best with as many SMs."""
    same = [overlap for overlap in passes(run, backend=pair.backend) if overlap.num_sms == pair.num_sms]
    exact = [overlap for overlap in same if _configs(overlap) == (pair.dispatch[1:], pair.combine[1:])]
    return (exact or same)[0]


def _configs(overlap: Overlap) -> tuple[Knobs, Knobs]:
    """The knobs of its dispatch and of its combine, without shared ones."""
    of_dispatch, of_combine = (
        tuple((name.removeprefix(op), value) for name, value in overlap.knobs if name.startswith(op))
        for op in ("dispatch_", "combine_")
    )
    return of_dispatch, of_combine


def overlapped_us(run: str, num_sms: int, backend: str = "deepep") -> float:
    """The overlapped time of the best pair with this many SMs."""
    return overlap_of(run, r.pair_of(run, num_sms, backend)).us


def key(run: str, overlap: Overlap) -> tuple[int, bool]:
    """What tells an overlapped pair from the others of its run: its SMs, and whether it is the default."""
    default = r.default(run)
    return overlap.num_sms, _configs(overlap) == (default.dispatch[1:], default.combine[1:])
