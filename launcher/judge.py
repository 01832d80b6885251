"""From records to one result for each point, and every failure: statistics of samples, and the physics gate; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from bench import workload as layout
from bench.records import Failed, Measured, Op, Point, Record, Role, Stage
from bench.stats import UNSTABLE_SPREAD, Interval, median_interval, paired_ratio_interval, spread
from launcher.plan import Plan

_MIN_GROUPS = 3


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
    samples: list[float]
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


def judge(plan: Plan, records: Sequence[Record], tokens: list[list[int]]) -> tuple[list[OpResult], list[Failure]]:
    """One result for each point with valid times, fastest first for each operation, and every failure."""
    levels = _anchor_levels(records)
    measured: dict[str, list[Record]] = defaultdict(list)
    failures = []
    for record in records:
        if isinstance(record.outcome, Measured):
            measured[record.point.label].append(record)
        else:
            failures.append(_failure(record, record.outcome))
    results = []
    for group in measured.values():
        finals = [record for record in group if record.stage is Stage.FINAL]
        result = _result(plan, finals or group, tokens, levels)
        if result.peak_fraction is not None and result.peak_fraction > 1 and not plan.spec.ep.share_gpus:
            message = f"{result.median_us:.1f} us would need {result.peak_fraction:.0%} of the link's peak"
            failures.append(Failure(result.point, "impossible", message, "judge", None, "", group[0].shard))
        else:
            results.append(result)
    return sorted(results, key=lambda result: (result.point.op, result.relative, result.point.label)), failures


def _failure(record: Record, failed: Failed) -> Failure:
    return Failure(
        record.point, failed.failure.value, failed.message, failed.phase, failed.rank, failed.last_words, record.shard
    )


_Visit = tuple[int, int, Op]
"""Shard, round and operation: what an anchor stands for."""


def _anchor_levels(records: Sequence[Record]) -> dict[_Visit, float]:
    """The anchor's median of each visit over that of all visits; the final is judged by its own pairs instead."""
    medians: dict[_Visit, list[float]] = defaultdict(list)
    for record in records:
        if record.role is Role.ANCHOR and record.stage is Stage.SWEEP and isinstance(record.outcome, Measured):
            medians[record.shard, record.round, record.point.op].append(float(np.median(record.outcome.samples_us)))
    visits = {visit: float(np.median(values)) for visit, values in medians.items()}
    overall = {
        op: float(np.median([value for (_, _, other), value in visits.items() if other is op]))
        for op in {op for _, _, op in visits}
    }
    return {visit: value / overall[visit[2]] for visit, value in visits.items()}


def _result(plan: Plan, group: list[Record], tokens: list[list[int]], levels: dict[_Visit, float]) -> OpResult:
    point, stage = group[0].point, group[0].stage
    parts = [(record, record.outcome) for record in group if isinstance(record.outcome, Measured)]
    samples = np.concatenate([np.asarray(outcome.samples_us) for _, outcome in parts])
    by_round = _by_round([(record.round, outcome.samples_us) for record, outcome in parts])
    relative = [
        float(np.median(outcome.samples_us)) / levels.get((record.shard, record.round, point.op), 1.0)
        for record, outcome in parts
    ]
    is_final = stage is Stage.FINAL
    if is_final and len(by_round) >= _MIN_GROUPS:
        medians = np.asarray(list(by_round.values()))
        median_us = float(np.exp(np.log(medians).mean()))
        interval = paired_ratio_interval(medians, np.ones(len(medians)))
    else:
        median_us, interval = float(np.median(samples)), median_interval(samples)
    scatter = float(np.median([spread(outcome.samples_us) for _, outcome in parts]))
    logical, wire = _rates(plan, point, tokens, median_us)
    peak = plan.spec.hardware.peak_gb_per_s
    return OpResult(
        point=point,
        role=group[0].role,
        stage=stage,
        median_us=median_us,
        ci95_us=interval,
        spread=scatter,
        relative=median_us if is_final else float(np.median(relative)),
        by_round=by_round if is_final else {},
        logical_gb_per_s=logical,
        wire_gb_per_s=wire,
        peak_fraction=None if peak is None or wire is None else wire / peak,
        unstable=scatter > UNSTABLE_SPREAD,
        samples=samples.tolist(),
        compute_by_round=_by_round([(r.round, outcome.compute_us) for r, outcome in parts if outcome.compute_us]),
    )


def _by_round(parts: list[tuple[int, list[float]]]) -> dict[int, float]:
    """The median of each round's samples, in order of round."""
    samples: dict[int, list[float]] = defaultdict(list)
    for number, values in parts:
        samples[number] += values
    return {number: float(np.median(values)) for number, values in sorted(samples.items())}


def _rates(plan: Plan, point: Point, tokens: list[list[int]], median_us: float) -> tuple[float | None, float | None]:
    """Logical and wire GB/s; None where GEMMs are part of the time."""
    if point.op in (Op.COMPUTE, Op.OVERLAPPED):
        return None, None
    size = layout.volume(tokens, bytes_per_token=plan.spec.workload.bytes_per_token(point.dtype))
    return size.logical / median_us / 1000, size.wire / median_us / 1000
