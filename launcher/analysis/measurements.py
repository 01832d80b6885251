"""From records to one measurement of each point, and every failure: statistics and the physics gate; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from bench import workload as layout
from bench.backends import PAIR_OPS, split_pair
from bench.between import another_ratio
from bench.components import Estimate
from bench.records import Dtype, Failed, FailureKind, Op, Point, Record, Role, Stage
from bench.stats import (
    MIN_GROUPS,
    UNSTABLE_SPREAD,
    Floats,
    Interval,
    combinations,
    median_interval,
    median_intervals,
    paired_ratio,
    paired_ratio_interval,
)
from launcher.analysis import power_cap
from launcher.analysis.components import TimesByRun
from launcher.analysis.repetitions import Repetition, are_again, gemms_by_place, times_by_place
from launcher.config.plan import Plan
from launcher.store.table import DTYPES, ROLES, STAGES, RecordTable, Rows

WITH_GEMMS = (Op.COMPUTE, *PAIR_OPS)
"""Operations of which GEMMs are a part: their time says nothing about the links."""

_SWEEP, _FINAL, _ANCHOR = STAGES.index(Stage.SWEEP), STAGES.index(Stage.FINAL), ROLES.index(Role.ANCHOR)
_CONTROL = ROLES.index(Role.CONTROL)


class Measurement(msgspec.Struct, frozen=True):
    """The time of one operation with one config.

    ``median_us``: the centre (bench.stats.centre) of the medians of the final's groups; without a final, the median of
    all samples.
    For isolated GEMMs it is the median of their repetitions. Overlapped times are corrected for the power cap first
    (launcher.analysis.power_cap). ``ci95_us``: its 95 % CI, Student's over the groups, else by order statistics of
    the samples (isolated GEMMs: of the repetitions). ``relative``: the median with each shard and round scaled by its
    own anchor; the sweep ranks by it. ``swept``: what the sweep had as ``relative``, also of a config that the final
    measured; None where the sweep did not measure it. ``repetitions``: in the sweep, the scaled median of each
    repetition.
    ``by_round``: the median of each group of the final, or of each overlapped pass, in order. Where a repetition of the
    final was off and measured again, the later one counts, of three the median. A pass that was
    restarted in other processes has a key of its own: measurements with a common key shared their processes.
    ``by_run``: in a run with repeats the times of the final and of these, by run and group.
    ``gemms_by_round``: when the overlapped GEMMs ended, likewise; ``gemms``: what they multiplied, BF16 in older runs,
    and where the final did not measure the point. GB/s: 10^9 bytes of the busiest rank in one
    direction, over the median; None where GEMMs are part of the time.
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
    gemms_by_round: dict[int, float] = {}
    gemms: Dtype = Dtype.BF16
    repetitions: Floats = msgspec.field(default_factory=lambda: np.zeros(0))
    swept: float | None = None
    by_run: TimesByRun = {}


def another_time(by_group: Sequence[float], elsewhere: Estimate) -> Interval | None:
    """The 95 % interval for the time that a run on other GPUs of the kind would report; None below MIN_GROUPS times.

    ``elsewhere``: what such a run adds to a log time.
    """
    if len(by_group) < MIN_GROUPS:
        return None
    return another_ratio(
        by_group, np.ones(len(by_group)), scatter=elsewhere.deviation, scatter_freedom=elsewhere.freedom
    )


class Failure(msgspec.Struct, frozen=True):
    """One failure of a point, or a time that physics forbids (kind ``impossible``).

    A config that gave wrong tokens within another point, such as a full dispatch, is ``incorrect`` itself.
    """

    point: Point
    kind: str
    message: str
    phase: str
    rank: int | None
    last_words: str
    shard: int


def evaluate(plan: Plan, table: RecordTable, tokens: list[list[int]]) -> tuple[list[Measurement], list[Failure]]:
    """One measurement of each point with valid times, fastest first for each operation, and every failure.

    A point that ever failed has no measurement, since it cannot be deployed; see ``_failed_keys``. ``tokens``: how many
    each rank sends to each other [ranks, ranks].
    """
    failures = _failures(table.failed)
    excluded = _failed_keys(table.failed) | {each.point.key for each in failures if each.kind == FailureKind.INCORRECT}
    indices = [index for index, point in enumerate(table.points) if point.key in excluded]
    rows = table.rows
    has_samples = rows["count"] > 0
    is_valid = has_samples & ~np.isin(rows["point"], indices) if indices else has_samples
    is_final = is_valid & (rows["stage"] == _FINAL) & (rows["role"] != _CONTROL)
    anchors = rows[has_samples & (rows["role"] == _ANCHOR) & (rows["stage"] == _SWEEP)]
    builder = _Builder(plan, tokens)
    swept = dict(_measure_sweep(table, rows[is_valid & (rows["stage"] == _SWEEP)], anchors, builder))
    finals = dict(_measure_final(table, np.flatnonzero(is_final), builder))
    measurements, impossible = [], []
    for index, (shard, measured) in (swept | finals).items():
        level = swept[index][1].relative if index in swept else None
        measurement = msgspec.structs.replace(measured, swept=level)
        if (measurement.peak_fraction or 0) > 1 and not plan.spec.ep.share_gpus:
            message = f"{measurement.median_us:.1f} us would need {measurement.peak_fraction:.0%} of the link's peak"
            impossible.append(Failure(measurement.point, "impossible", message, "judge", None, "", shard))
        else:
            measurements.append(measurement)
    return (
        sorted(measurements, key=lambda each: (each.point.op, each.relative, each.point.key)),
        failures + sorted(impossible, key=lambda failure: (failure.shard, failure.point.key)),
    )


def _failures(failed: Sequence[Record]) -> list[Failure]:
    """The records' failures, then those of configs that gave wrong tokens within another point, each config once."""
    failures = [_failure(record, record.outcome) for record in failed if isinstance(record.outcome, Failed)]
    incorrect = [failure for failure in failures if failure.kind == FailureKind.INCORRECT]
    listed = {failure.point.key for failure in incorrect}
    for failure in incorrect:
        for config in _configs(failure.point):
            if config.key not in listed:
                listed.add(config.key)
                message = f"in {failure.point.label}: {failure.message}"
                failures.append(msgspec.structs.replace(failure, point=config, message=message))
    return failures


def _failure(record: Record, failed: Failed) -> Failure:
    return Failure(
        record.point, failed.failure.value, failed.message, failed.phase, failed.rank, failed.last_words, record.shard
    )


def _configs(point: Point) -> list[Point]:
    """The other points whose configs a point runs: a full dispatch that of its dispatch, an overlapped pair both."""
    if point.op is Op.DISPATCH_FULL:
        return [msgspec.structs.replace(point, op=Op.DISPATCH)]
    if point.op in PAIR_OPS:
        dispatch, combine = split_pair(point)
        return [
            Point(point.backend, Op.DISPATCH, point.dtype, dispatch),
            Point(point.backend, Op.COMBINE, Dtype.BF16, combine),
        ]
    return []


def _failed_keys(failed: Sequence[Record]) -> set[tuple[object, ...]]:
    """Keys of the points that failed at any time: the search dropped them, so their times would lack the failure.

    Isolated GEMMs and the sweep's anchors stay: the other points are judged by them. Their failures are listed.
    """
    return {
        record.point.key
        for record in failed
        if record.point.op is not Op.COMPUTE and (record.stage is not Stage.SWEEP or record.role is not Role.ANCHOR)
    }


class _Statistics(NamedTuple):
    """See the fields of Measurement."""

    median_us: float
    ci95_us: Interval
    spread: float
    relative: float


class _Builder:
    """Makes Measurements: adds the rates of the busiest rank to a point's statistics."""

    def __init__(self, plan: Plan, tokens: list[list[int]]) -> None:
        self._peak = plan.spec.hardware.peak_gb_per_s
        self._volumes = {
            dtype: layout.volume(tokens, bytes_per_token=plan.spec.workload.bytes_per_token(dtype)) for dtype in Dtype
        }

    def measurement(
        self,
        point: Point,
        role: Role,
        stage: Stage,
        statistics: _Statistics,
        samples: Floats,
        *,
        by_round: dict[int, float] | None = None,
        gemms_by_round: dict[int, float] | None = None,
        repetitions: Floats | None = None,
    ) -> Measurement:
        """One point in one stage."""
        logical, wire, peak_fraction = self._rates(point, statistics.median_us)
        return Measurement(
            point=point,
            role=role,
            stage=stage,
            median_us=statistics.median_us,
            ci95_us=statistics.ci95_us,
            spread=statistics.spread,
            relative=statistics.relative,
            by_round=by_round or {},
            logical_gb_per_s=logical,
            wire_gb_per_s=wire,
            peak_fraction=peak_fraction,
            unstable=statistics.spread > UNSTABLE_SPREAD,
            samples=samples,
            gemms_by_round=gemms_by_round or {},
            repetitions=np.zeros(0) if repetitions is None else repetitions,
        )

    def _rates(self, point: Point, median_us: float) -> tuple[float | None, float | None, float | None]:
        """Logical and wire GB/s, and wire over the link's peak; None where GEMMs are part of the time."""
        if point.op in WITH_GEMMS:
            return None, None, None
        volume = self._volumes[point.dtype]
        wire = volume.wire / median_us / 1000
        return volume.logical / median_us / 1000, wire, None if self._peak is None else wire / self._peak


_Measured = Iterator[tuple[int, tuple[int, Measurement]]]
"""For the index of each point the shard of its first record, and its measurement."""


def _measure_sweep(table: RecordTable, rows: Rows, anchors: Rows, builder: _Builder) -> _Measured:
    """Points by all their samples in the sweep; as arrays, since there may be a million records."""
    if not len(rows):
        return
    rows = rows[np.argsort(rows["point"].copy(), kind="stable")]
    keys = _anchor_keys(table.points)
    scaled_us = rows["median_us"] / _anchor_levels(rows, anchors, keys)
    begins = _starts(rows["point"])
    ends = np.append(begins[1:], len(rows))
    samples, firsts, lasts = _pool(table, rows, begins)
    relative, spread = _by_size(
        begins,
        ends,
        lambda block: [np.median(scaled_us[block], axis=1), np.median(rows["spread"][block], axis=1)],
        width=2,
    )
    median, low, high = _by_size(
        firsts,
        lasts,
        lambda block: [np.median(samples[block], axis=1), *median_intervals(samples[block]).T],
        width=3,
    )
    first_rows = rows[begins]
    heads = zip(*(first_rows[name].tolist() for name in ("point", "role", "shard")), strict=True)
    numbers = zip(*(column.tolist() for column in (median, low, high, spread, relative)), strict=True)
    spans = zip(*(bounds.tolist() for bounds in (firsts, lasts, begins, ends)), strict=True)
    for (point, role, shard), number, (first, last, begin, end) in zip(heads, numbers, spans, strict=True):
        median_us, low_us, high_us, *rest = number
        measurement = builder.measurement(
            table.points[point],
            ROLES[role],
            Stage.SWEEP,
            _Statistics(median_us, Interval(low_us, high_us), *rest),
            samples[first:last],
            repetitions=scaled_us[begin:end],
        )
        yield point, (shard, measurement)


def _anchor_keys(points: Sequence[Point]) -> npt.NDArray[np.intp]:
    """For each point the number of its library and operation, which share an anchor."""
    numbers: dict[tuple[str, Op], int] = {}
    return np.array([numbers.setdefault((point.backend, point.op), len(numbers)) for point in points], dtype=np.intp)


def _anchor_levels(rows: Rows, anchors: Rows, keys: npt.NDArray[np.intp]) -> Floats:
    """For each row its anchor's median in that shard and round over the anchor's typical median; 1 without an anchor.

    Typical is the median over all shards and rounds. ``keys``: see ``_anchor_keys``.
    """
    if not len(anchors):
        return np.ones(len(rows))
    both = np.concatenate([anchors, rows])
    codes = combinations([keys[both["point"]], both["shard"], both["round"]])
    anchor_codes, row_codes = codes[: len(anchors)], codes[len(anchors) :]
    order = np.argsort(anchor_codes, kind="stable")
    starts = _starts(anchor_codes[order])
    medians = np.array([np.median(part) for part in np.split(anchors["median_us"][order], starts[1:])])
    anchored = keys[anchors["point"]][order][starts]
    levels = np.ones(codes.max() + 1)
    for key in np.unique(anchored):
        same = anchored == key
        levels[anchor_codes[order][starts][same]] = medians[same] / np.median(medians[same])
    row_levels: Floats = levels[row_codes]
    return row_levels


def _starts(ordered: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Where a new value begins in an ordered array."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _pool(
    table: RecordTable, rows: Rows, begins: npt.NDArray[np.intp]
) -> tuple[Floats, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The samples of the rows in their order; where those of each point begin and end."""
    counts = rows["count"].astype(np.intp)
    before = np.cumsum(counts) - counts
    samples = table.samples[np.repeat(rows["first"] - before, counts) + np.arange(counts.sum())]
    return samples, before[begins], before[begins] + np.add.reduceat(counts, begins)


def _by_size(
    begins: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    summary: Callable[[npt.NDArray[np.intp]], Sequence[Floats]],
    *,
    width: int,
) -> Floats:
    """``summary`` of every group, all groups of one size at once, by indices [groups, size]; [width, groups]."""
    summaries = np.zeros((width, len(begins)))
    sizes = ends - begins
    for size in np.unique(sizes):
        groups = np.flatnonzero(sizes == size)
        summaries[:, groups] = summary(begins[groups][:, None] + np.arange(size))
    return summaries


def _measure_final(table: RecordTable, indices: npt.NDArray[np.intp], builder: _Builder) -> _Measured:
    """Points that the final measured, by its records only; ``indices``: those of their rows."""
    rows = table.rows[indices]
    if not len(rows):
        return
    levels, again = power_cap.levels(rows), are_again(rows).tolist()
    places = combinations([rows["round"], rows["group"]]).tolist()
    positions_of: dict[int, list[int]] = defaultdict(list)
    for position, point in enumerate(rows["point"].tolist()):
        positions_of[point].append(position)
    for point, positions in positions_of.items():
        repetitions = []
        for position in positions:
            level = levels.get(position, 1.0)
            gemms_us = np.asarray(table.compute.get(int(indices[position]), []), dtype=float)
            samples_us = table.samples_of(rows[[position]])
            repetitions.append(Repetition(places[position], samples_us / level, gemms_us / level, again[position]))
        measurement = _final_measurement(table, rows[positions], repetitions, builder)
        yield point, (int(rows["shard"][positions[0]]), measurement)


def _final_measurement(table: RecordTable, rows: Rows, repetitions: list[Repetition], builder: _Builder) -> Measurement:
    """One point's measurement by its rows and their repetitions."""
    point = table.points[rows[0]["point"]]
    is_mean = point.op in PAIR_OPS
    by_round = times_by_place(repetitions, mean=is_mean)
    if point.op is Op.COMPUTE:
        median_us, ci95_us = float(np.median(rows["median_us"])), median_interval(rows["median_us"])
    elif len(by_round) >= MIN_GROUPS:
        medians = np.asarray(list(by_round.values()))
        nothing = np.ones(len(medians))
        median_us = paired_ratio(medians, nothing, robust=not is_mean)
        ci95_us = paired_ratio_interval(medians, nothing, robust=not is_mean)
    else:
        pooled = np.concatenate([repetition.samples_us for repetition in repetitions])
        median_us, ci95_us = float(np.median(pooled)), median_interval(pooled)
    measurement = builder.measurement(
        point,
        ROLES[rows[0]["role"]],
        Stage.FINAL,
        _Statistics(median_us, ci95_us, float(np.median(rows["spread"])), median_us),
        table.samples_of(rows),
        by_round=by_round,
        gemms_by_round=gemms_by_place(repetitions),
    )
    gemms = int(rows[-1]["gemms"])
    return measurement if gemms < 0 else msgspec.structs.replace(measurement, gemms=DTYPES[gemms])
