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


def logs_of(numerator: Times, denominator: Times) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The logs of the ratios in each group or pass that measured both."""
    common = sorted(numerator.keys() & denominator.keys())
    return np.log([numerator[number] / denominator[number] for number in common])


def ratio(numerator: Times, denominator: Times) -> Ratio:
    """Paired over the groups, with Student's interval of the mean log."""
    logs = logs_of(numerator, denominator)
    mean, half = logs.mean(), stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def slower_p(times: Times, reference: Times) -> float:
    """The one-sided p-value of Student's paired test; the null hypothesis is that ``times`` are not slower."""
    logs = logs_of(times, reference)
    return float(stats.t.sf(logs.mean() * math.sqrt(len(logs)) / logs.std(ddof=1), len(logs) - 1))


def verdict(run: str) -> Ratio:
    """Default / optimal: in each group the configs of the optimal pair are those that the other groups rank first."""
    best = r.optimal(run)
    held_out: Times = dict.fromkeys(best.round_trip, 0.0)
    for op, knobs in (("dispatch", best.dispatch), ("combine", best.combine)):
        rivals = {other: times for other, times in r.final(run, op).items() if dict(other)["num_sms"] == best.num_sms}
        is_fastest = knobs == min(rivals, key=lambda other: r.us(rivals[other]))
        for number in held_out:
            picked = _without(rivals, number) if is_fastest else knobs
            held_out[number] += rivals[picked][number]
    return ratio(r.default(run).round_trip, held_out)


def _without(times: dict[Knobs, Times], number: int) -> Knobs:
    """The config that is the fastest in the other groups."""
    return min(times, key=lambda knobs: r.us({other: t for other, t in times[knobs].items() if other != number}))


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
        return r.us(self.times)

    @property
    def buffer(self) -> int:
        return max((value for name, value in self.knobs if name.endswith("nvl_buffer")), default=0)


@functools.cache
def gemms_us(run: str) -> float:
    """Isolated GEMMs: the median of their repetitions."""
    return median([record.median_us for record in r.records(run) if record.op == "compute"])


@functools.cache
def passes(run: str, op: str = "overlapped", backend: str = "deepep", *, corrected: bool = True) -> list[Overlap]:
    """Every overlapped pair, or whole layer: the medians of its passes, fewest SMs first.

    Each is divided by how much longer than typical the isolated GEMMs directly before and after it took.
    """
    measured = [record for record in r.records(run) if record.is_final]
    times: dict[Knobs, Times] = defaultdict(dict)
    for before, record, after in zip(measured, measured[1:], measured[2:], strict=False):
        if (record.op, record.backend) == (op, backend):
            has_anchors = corrected and (before.op, after.op) == (
                "compute",
                "compute",
            )  # the first runs on H200s have none
            level = math.sqrt(before.median_us * after.median_us) / gemms_us(run) if has_anchors else 1.0
            times[record.knobs][record.round] = record.median_us / level
    return sorted((Overlap(*each) for each in times.items()), key=lambda overlap: (overlap.num_sms, overlap.us))


def picked(overlaps: list[Overlap]) -> Overlap:
    """Of the fastest and those within 2 % that cannot be told from it, the one with the fewest SMs."""
    best = min(overlaps, key=lambda overlap: overlap.us)
    near = [overlap for overlap in overlaps if overlap is not best and overlap.us <= 1.02 * best.us]
    slower = holm([slower_p(overlap.times, best.times) for overlap in near])
    tied = [best, *(overlap for overlap, is_slower in zip(near, slower, strict=True) if not is_slower)]
    return min(tied, key=lambda overlap: (overlap.num_sms, overlap.buffer))


def holm(p_values: list[float]) -> list[bool]:
    """Which hypotheses Holm's procedure rejects at 5 %."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] > 0.05 / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


@functools.cache
def may_be_best(run: str, backend: str = "deepep") -> list[Overlap]:
    """The overlapped pairs that no other significantly beats."""
    overlaps = passes(run, backend=backend)
    return [
        one
        for one in overlaps
        if not any(holm([slower_p(one.times, other.times) for other in overlaps if other is not one]))
    ]


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


def ranges(run: str, overlaps: list[Overlap]) -> str:
    """Their SMs in words, where "8 to 16" leaves none of the overlapped pairs out: "8 to 16, 32"."""
    grid = sorted({overlap.num_sms for overlap in passes(run)})
    chosen = {overlap.num_sms for overlap in overlaps}
    parts: list[list[int]] = []
    for before, num_sms in zip([0, *grid], grid, strict=False):
        if num_sms in chosen:
            parts = [*parts[:-1], [*parts[-1], num_sms]] if before in chosen else [*parts, [num_sms]]
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def key(run: str, overlap: Overlap) -> tuple[int, bool]:
    """What tells an overlapped pair from the others of its run: its SMs, and whether it is the default."""
    default = r.default(run)
    return overlap.num_sms, _configs(overlap) == (default.dispatch[1:], default.combine[1:])
