"""From records to one result for each point, and every failure: statistics of samples, and the physics gate; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from bench import workload as layout
from bench.records import Dtype, Failed, Op, Point, Record, Role, Stage
from bench.stats import (
    UNSTABLE_SPREAD,
    Floats,
    Interval,
    combinations,
    median_interval,
    median_intervals,
    paired_ratio_interval,
)
from launcher.plan import Plan
from launcher.visits import ROLES, ROW, STAGES, Rows, Visits

_MIN_GROUPS = 3
_SWEEP, _FINAL, _ANCHOR = STAGES.index(Stage.SWEEP), STAGES.index(Stage.FINAL), ROLES.index(Role.ANCHOR)


class OpResult(msgspec.Struct, frozen=True):
    """One operation with one config.

    ``median_us``: of the final's groups the geometric mean of their medians, without a final the median of all samples.
    ``ci95_us``: its 95 % interval, by Student over the groups, or by order statistics over the samples. ``relative``:
    the median in microseconds, each shard and round by its own anchor; what the sweep ranks by. ``by_round``: medians
    of the final's groups. GB/s are 10^9 bytes of the busiest rank, one direction, over the median; None for compute.
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


class Failure(msgspec.Struct, frozen=True):
    """A point that failed, or whose time physics forbids (kind ``impossible``)."""

    point: Point
    kind: str
    message: str
    phase: str
    rank: int | None
    last_words: str
    shard: int


def judge(plan: Plan, visited: Visits, tokens: list[list[int]]) -> tuple[list[OpResult], list[Failure]]:
    """One result for each point with valid times, fastest first for each operation, and every failure."""
    rows = visited.rows[visited.rows["count"] > 0]
    is_final = np.isin(rows["point"], np.unique(rows["point"][rows["stage"] == _FINAL]))
    rates = _Rates(plan, tokens)
    found = _sweep_results(visited, rows[~is_final], rows, rates)
    found += _final_results(visited, rows[is_final & (rows["stage"] == _FINAL)], rates)
    results, impossible = [], []
    for shard, result in found:
        if result.peak_fraction is not None and result.peak_fraction > 1 and not plan.spec.ep.share_gpus:
            message = f"{result.median_us:.1f} us would need {result.peak_fraction:.0%} of the link's peak"
            impossible.append(Failure(result.point, "impossible", message, "judge", None, "", shard))
        else:
            results.append(result)
    return (
        sorted(results, key=lambda result: (result.point.op, result.relative, result.point.key)),
        [_failure(record, record.outcome) for record in visited.failed if isinstance(record.outcome, Failed)]
        + sorted(impossible, key=lambda failure: (failure.shard, failure.point.key)),
    )


def _failure(record: Record, failed: Failed) -> Failure:
    return Failure(
        record.point, failed.failure.value, failed.message, failed.phase, failed.rank, failed.last_words, record.shard
    )


_Found = list[tuple[int, OpResult]]
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


def _sweep_results(visited: Visits, rows: Rows, everything: Rows, rates: _Rates) -> _Found:
    """Points that no final measured: all their samples together, as arrays since there may be a million records."""
    if not len(rows):
        return []
    anchors = everything[(everything["role"] == _ANCHOR) & (everything["stage"] == _SWEEP)]
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
        strict=True,
    )
    found: _Found = []
    for index, role, shard, median_us, low_us, high_us, spread, rank, first, last in columns:
        point = visited.points[index]
        logical, wire, peak = rates.of(point, median_us)
        result = OpResult(
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
        )
        found.append((shard, result))
    return found


def _pooled(
    visited: Visits, rows: Rows, starts: npt.NDArray[np.intp]
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


def _final_results(visited: Visits, rows: Rows, rates: _Rates) -> _Found:
    """Points that the final measured, by its records alone."""
    compute = {int(visited.rows["first"][row]): values for row, values in visited.compute.items()}
    groups: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        groups[int(row["point"])].append(row)
    return [
        (int(group[0]["shard"]), _final_result(visited, np.array(group, dtype=ROW), compute, rates))
        for group in groups.values()
    ]


def _final_result(visited: Visits, rows: Rows, compute: dict[int, list[float]], rates: _Rates) -> OpResult:
    point = visited.points[rows[0]["point"]]
    samples = visited.samples_of(rows)
    by_round = _by_round([(int(row["round"]), visited.samples_of(rows[[at]])) for at, row in enumerate(rows)])
    beside = [(int(row["round"]), compute[int(row["first"])]) for row in rows if int(row["first"]) in compute]
    if len(by_round) >= _MIN_GROUPS:
        medians = np.asarray(list(by_round.values()))
        median_us = float(np.exp(np.log(medians).mean()))
        interval = paired_ratio_interval(medians, np.ones(len(medians)))
    else:
        median_us, interval = float(np.median(samples)), median_interval(samples)
    scatter = float(np.median(rows["spread"]))
    logical, wire, peak = rates.of(point, median_us)
    return OpResult(
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
        compute_by_round=_by_round([(number, np.asarray(values)) for number, values in beside]),
    )


def _by_round(parts: list[tuple[int, Floats]]) -> dict[int, float]:
    """The median of each round's samples, in order of round."""
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
