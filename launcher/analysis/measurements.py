"""From records to one result for each point, and every failure: statistics of samples, and the physics gate; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bench import workload as layout
from bench.backends import split_pair
from bench.records import Dtype, Failed, FailureKind, Op, Point, Record, Role, Stage
from bench.stats import (
    MIN_GROUPS,
    UNSTABLE_SPREAD,
    Floats,
    Interval,
    combinations,
    median_interval,
    median_intervals,
    paired_ratio_interval,
)
from launcher.analysis import power_cap
from launcher.config.plan import Plan
from launcher.store.table import ROLES, STAGES, RecordTable, Rows

_SWEEP, _FINAL, _ANCHOR = STAGES.index(Stage.SWEEP), STAGES.index(Stage.FINAL), ROLES.index(Role.ANCHOR)


class Measurement(msgspec.Struct, frozen=True):
    """One operation with one config.

    ``median_us``: of the final's groups the geometric mean of their medians, without a final the median of all
    samples; of GEMMs alone that of their visits; beside GEMMs each counts over its level (launcher.throttling).
    ``ci95_us``: its 95 % interval, by Student over the groups, or by order statistics over samples or visits.
    ``relative``: the median in microseconds, each shard and round by its own anchor; what the sweep ranks by.
    ``visits``: of the sweep's results the medians that ``relative`` is the median of, one for each visit.
    ``by_round``: the median of each group of the final, or pass beside GEMMs, in order; what was begun anew in other
    processes counts apart, so that results with a key in common shared their processes. GB/s are 10^9 bytes of the
    busiest rank, one direction, over the median; None for compute.
    """

    point: Point
    role: Role
    stage: Stage
    median_us: float
    ci95_us: Interval
    spread: float
    relative: float
    by_round: dict[int, float]
    logical_gb_per_s: float | None
    wire_gb_per_s: float | None
    peak_fraction: float | None
    unstable: bool
    samples: Floats
    compute_by_round: dict[int, float] = {}
    visits: Floats = msgspec.field(default_factory=lambda: np.zeros(0))


class Failure(msgspec.Struct, frozen=True):
    """One failure of a point, or that physics forbids its time (kind ``impossible``).

    A config that gave wrong tokens as part of another point, a whole dispatch say, is ``incorrect`` itself.
    """

    point: Point
    kind: str
    message: str
    phase: str
    rank: int | None
    last_words: str
    shard: int


def evaluate(plan: Plan, visited: RecordTable, tokens: list[list[int]]) -> tuple[list[Measurement], list[Failure]]:
    """One result for each point with valid times, fastest first for each operation, and every failure.

    A point that gave a wrong token has no result, nor a config that failed in any other way: it cannot be deployed.
    """
    failures = _failures(visited.failed)
    out = _ruled_out(visited.failed) | {one.point.key for one in failures if one.kind == FailureKind.INCORRECT}
    rows = visited.rows
    has_samples = rows["count"] > 0
    left_out = [at for at, point in enumerate(visited.points) if point.key in out]
    is_valid = has_samples & ~np.isin(rows["point"], left_out) if left_out else has_samples
    is_final = is_valid & (rows["stage"] == _FINAL)
    of_sweep = is_valid & ~np.isin(rows["point"], np.unique(rows["point"][is_final]))
    anchors = rows[has_samples & (rows["role"] == _ANCHOR) & (rows["stage"] == _SWEEP)]
    rates = _Rates(plan, tokens)
    found = _sweep_results(visited, rows[of_sweep], anchors, rates)
    found += _final_results(visited, np.flatnonzero(is_final), rates)
    results, impossible = [], []
    for shard, result in found:
        if result.peak_fraction is not None and result.peak_fraction > 1 and not plan.spec.ep.share_gpus:
            message = f"{result.median_us:.1f} us would need {result.peak_fraction:.0%} of the link's peak"
            impossible.append(Failure(result.point, "impossible", message, "judge", None, "", shard))
        else:
            results.append(result)
    return (
        sorted(results, key=lambda result: (result.point.op, result.relative, result.point.key)),
        failures + sorted(impossible, key=lambda failure: (failure.shard, failure.point.key)),
    )


def _failures(failed: Sequence[Record]) -> list[Failure]:
    """Those of the records, then those of configs that gave wrong tokens within another point, each config once."""
    found = [_failure(record, record.outcome) for record in failed if isinstance(record.outcome, Failed)]
    own = {one.point.key for one in found if one.kind == FailureKind.INCORRECT}
    for one in [one for one in found if one.kind == FailureKind.INCORRECT]:
        for config in _configs(one.point):
            if config.key not in own:
                own.add(config.key)
                found.append(msgspec.structs.replace(one, point=config, message=f"in {one.point.label}: {one.message}"))
    return found


def _failure(record: Record, failed: Failed) -> Failure:
    return Failure(
        record.point, failed.failure.value, failed.message, failed.phase, failed.rank, failed.last_words, record.shard
    )


def _configs(point: Point) -> list[Point]:
    """What a point runs besides itself: the dispatch of a whole one, dispatch and combine of a pair beside GEMMs."""
    if point.op is Op.DISPATCH_FULL:
        return [msgspec.structs.replace(point, op=Op.DISPATCH)]
    if point.op is Op.OVERLAPPED:
        dispatch, combine = split_pair(point)
        return [
            Point(point.backend, Op.DISPATCH, point.dtype, dispatch),
            Point(point.backend, Op.COMBINE, Dtype.BF16, combine),
        ]
    return []


def _ruled_out(failed: Sequence[Record]) -> set[tuple[object, ...]]:
    """Keys of what failed at any time: the search goes on without it, so that its times lack what made it fail.

    Excepted is what the others are judged by: GEMMs alone, and in the sweep the default, a hang of which is listed.
    """
    return {
        one.point.key
        for one in failed
        if one.point.op is not Op.COMPUTE and (one.stage is Stage.FINAL or one.role is not Role.ANCHOR)
    }


_Found = list[tuple[int, Measurement]]
"""Results, each with the shard of its first record."""


def _anchor_levels(rows: Rows, anchors: Rows) -> Floats:
    """For each row the anchor's median of its shard, round and operation over that of all visits; 1 without one.

    The final is judged by its own pairs instead.
    """
    if not len(anchors):
        return np.ones(len(rows))
    which = combinations([np.concatenate([anchors[name], rows[name]]) for name in ("op", "shard", "round")])
    place, which = which[: len(anchors)], which[len(anchors) :]
    order = np.argsort(place, kind="stable")
    starts = _starts(place[order])
    visits = np.array([np.median(part) for part in np.split(anchors["median_us"][order], starts[1:])])
    ops = anchors["op"][order][starts]
    levels = np.ones(max(place.max(), which.max()) + 1)
    for op in np.unique(ops):
        levels[place[order][starts][ops == op]] = visits[ops == op] / np.median(visits[ops == op])
    found: Floats = levels[which]
    return found


def _starts(ordered: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Where a new value begins in an ordered array."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _sweep_results(visited: RecordTable, rows: Rows, anchors: Rows, rates: _Rates) -> _Found:
    """Points that no final measured: all their samples together, as arrays since there may be a million records."""
    if not len(rows):
        return []
    rows = rows[np.argsort(rows["point"].copy(), kind="stable")]
    relative = rows["median_us"] / _anchor_levels(rows, anchors)
    starts = _starts(rows["point"])
    counts = np.diff(np.append(starts, len(rows)))
    ranking, scatter = _by_size(
        starts,
        counts,
        lambda block: [np.median(relative[block], axis=1), np.median(rows["spread"][block], axis=1)],
        width=2,
    )
    samples, firsts, lengths = _pooled(visited, rows, starts)
    middle, low, high = _by_size(
        firsts,
        lengths,
        lambda block: [np.median(samples[block], axis=1), *median_intervals(samples[block]).T],
        width=3,
    )
    heads = rows[starts]
    columns = zip(
        *(heads[name].tolist() for name in ("point", "role", "shard")),
        *(values.tolist() for values in (middle, low, high, scatter, ranking, firsts, firsts + lengths)),
        *(values.tolist() for values in (starts, starts + counts)),
        strict=True,
    )
    found: _Found = []
    for index, role, shard, median_us, low_us, high_us, spread, rank, first, last, begin, end in columns:
        point = visited.points[index]
        logical, wire, peak = rates.of(point, median_us)
        result = Measurement(
            point=point,
            role=ROLES[role],
            stage=Stage.SWEEP,
            median_us=median_us,
            ci95_us=Interval(low_us, high_us),
            spread=spread,
            relative=rank,
            by_round={},
            logical_gb_per_s=logical,
            wire_gb_per_s=wire,
            peak_fraction=peak,
            unstable=spread > UNSTABLE_SPREAD,
            samples=samples[first:last],
            visits=relative[begin:end],
        )
        found.append((shard, result))
    return found


def _pooled(
    visited: RecordTable, rows: Rows, starts: npt.NDArray[np.intp]
) -> tuple[Floats, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The samples of the rows in their order; where those of each point begin, and how many they are."""
    counts = rows["count"].astype(np.intp)
    before = np.cumsum(counts) - counts
    samples = visited.samples[np.repeat(rows["first"] - before, counts) + np.arange(counts.sum())]
    return samples, before[starts], np.add.reduceat(counts, starts)


def _by_size(
    starts: npt.NDArray[np.intp],
    sizes: npt.NDArray[np.intp],
    summary: Callable[[npt.NDArray[np.intp]], Sequence[Floats]],
    *,
    width: int,
) -> Floats:
    """``summary`` of every group, all groups of one size at once, by indices [groups, size]; [width, groups]."""
    found = np.zeros((width, len(starts)))
    for size in np.unique(sizes):
        where = np.flatnonzero(sizes == size)
        found[:, where] = summary(starts[where][:, None] + np.arange(size))
    return found


class _Repetition(NamedTuple):
    """One timed run of a point in the final, without what the power cap did to it meanwhile.

    ``place``: the number of its round in its process group. ``gemms_us``: when overlapped GEMMs were done.
    """

    place: int
    samples_us: Floats
    gemms_us: Floats


def _final_results(visited: RecordTable, numbers: npt.NDArray[np.intp], rates: _Rates) -> _Found:
    """Points that the final measured, by its records alone; ``numbers`` are those of their rows."""
    rows = visited.rows[numbers]
    if not len(rows):
        return []
    levels = power_cap.levels(rows)
    places = combinations([rows["round"], rows["group"]])
    repetitions: dict[int, list[_Repetition]] = defaultdict(list)
    rows_of: dict[int, list[int]] = defaultdict(list)
    for index, (number, point, place) in enumerate(
        zip(numbers.tolist(), rows["point"].tolist(), places.tolist(), strict=True)
    ):
        level = levels.get(index, 1.0)
        gemms_us = np.asarray(visited.compute.get(number, []), dtype=float) / level
        repetitions[point].append(_Repetition(place, visited.samples_of(rows[[index]]) / level, gemms_us))
        rows_of[point].append(index)
    return [
        (int(rows["shard"][own[0]]), _final_result(visited, rows[own], repetitions[point], rates))
        for point, own in rows_of.items()
    ]


def _final_result(visited: RecordTable, rows: Rows, repetitions: list[_Repetition], rates: _Rates) -> Measurement:
    """One point's result by its rows and, for each of them, the repetition."""
    point = visited.points[rows[0]["point"]]
    samples = visited.samples_of(rows)
    parts = [(repetition.place, repetition.samples_us) for repetition in repetitions]
    beside = [(repetition.place, repetition.gemms_us) for repetition in repetitions if len(repetition.gemms_us)]
    by_round = _by_round(parts)
    if point.op is Op.COMPUTE:
        median_us, interval = float(np.median(rows["median_us"])), median_interval(rows["median_us"])
    elif len(by_round) >= MIN_GROUPS:
        medians = np.asarray(list(by_round.values()))
        median_us = float(np.exp(np.log(medians).mean()))
        interval = paired_ratio_interval(medians, np.ones(len(medians)))
    else:
        everything = np.concatenate([values for _, values in parts])
        median_us, interval = float(np.median(everything)), median_interval(everything)
    scatter = float(np.median(rows["spread"]))
    logical, wire, peak = rates.of(point, median_us)
    return Measurement(
        point=point,
        role=ROLES[rows[0]["role"]],
        stage=Stage.FINAL,
        median_us=median_us,
        ci95_us=interval,
        spread=scatter,
        relative=median_us,
        by_round=by_round,
        logical_gb_per_s=logical,
        wire_gb_per_s=wire,
        peak_fraction=peak,
        unstable=scatter > UNSTABLE_SPREAD,
        samples=samples,
        compute_by_round=_by_round(beside),
    )


def _by_round(parts: list[tuple[int, Floats]]) -> dict[int, float]:
    """The median of the samples of each place, in order of place."""
    samples: dict[int, list[Floats]] = defaultdict(list)
    for number, values in parts:
        samples[number].append(values)
    return {number: float(np.median(np.concatenate(values))) for number, values in sorted(samples.items())}


class _Rates:
    """Bytes of the busiest rank over a time, for each kind of payload."""

    def __init__(self, plan: Plan, tokens: list[list[int]]) -> None:
        self._peak = plan.spec.hardware.peak_gb_per_s
        self._volumes = {
            dtype: layout.volume(tokens, bytes_per_token=plan.spec.workload.bytes_per_token(dtype)) for dtype in Dtype
        }

    def of(self, point: Point, median_us: float) -> tuple[float | None, float | None, float | None]:
        """Logical and wire GB/s, and wire over the link's peak; None where GEMMs are part of the time."""
        if point.op in (Op.COMPUTE, Op.OVERLAPPED):
            return None, None, None
        size = self._volumes[point.dtype]
        wire = size.wire / median_us / 1000
        return size.logical / median_us / 1000, wire, None if self._peak is None else wire / self._peak
