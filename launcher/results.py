"""From records to the answer: a pure function of the plan and the lines, the same for any order of the records."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from bench import workload as layout
from bench.backends import BACKENDS, shared_knobs
from bench.records import (
    Environment,
    Failed,
    Host,
    Line,
    Measured,
    Op,
    Point,
    Record,
    Role,
    SelfCheck,
    Telemetry,
    Traffic,
)
from bench.stats import UNSTABLE_SPREAD, Interval, bootstrap_ratio, median_interval, spread
from bench.workload import Volume
from launcher.plan import Plan, Planned
from launcher.store import Damaged, Manifest

SCHEMA = "deepep-sweep/results/1"
MARGIN = 0.02
"""The default counts as beaten, or as optimal, only by more, or less, than this share of the round trip."""


class OpResult(msgspec.Struct, frozen=True):
    """One operation with one config. GB/s are 10^9 bytes of the busiest rank, one direction, over the median."""

    point: Point
    role: Role
    median_us: float
    ci95_us: Interval
    spread: float
    num_samples: int
    relative: float
    logical_gb_per_s: float
    wire_gb_per_s: float
    peak_fraction: float | None
    unstable: bool
    samples: list[float]

    def to_json(self, *, without: Sequence[str] = ()) -> dict[str, Any]:
        """The knobs and the numbers; ``without`` leaves out knobs that stand elsewhere."""
        knobs = {name: value for name, value in self.point.knobs.items() if name not in without}
        return knobs | {
            "median_us": round(self.median_us, 2),
            "ci95_us": [round(self.ci95_us.low, 2), round(self.ci95_us.high, 2)],
            "spread": round(self.spread, 4),
            "num_samples": self.num_samples,
            "unstable": self.unstable,
            "logical_gb_per_s": round(self.logical_gb_per_s, 3),
            "wire_gb_per_s": round(self.wire_gb_per_s, 3),
            "peak_fraction": None if self.peak_fraction is None else round(self.peak_fraction, 4),
        }


class Pair(msgspec.Struct, frozen=True):
    """A dispatch and a combine that can be deployed together: their shared knobs agree."""

    shared: dict[str, int]
    dispatch: OpResult
    combine: OpResult

    @property
    def round_trip_us(self) -> float:
        """The sum of the two medians."""
        return self.dispatch.median_us + self.combine.median_us

    @property
    def relative(self) -> float:
        """The round trip in units of the anchor's, each shard by its own anchor: what pairs are ranked by."""
        return self.dispatch.relative + self.combine.relative

    def to_json(self) -> dict[str, Any]:
        """The shared knobs on top, the others with their operation."""
        return dict(self.shared) | {
            "dispatch": self.dispatch.to_json(without=tuple(self.shared)),
            "combine": self.combine.to_json(without=tuple(self.shared)),
            "round_trip_us": round(self.round_trip_us, 2),
        }


class Verdict(msgspec.Struct, frozen=True):
    """Whether the library's default should be changed: the ratio default / optimal with its interval decides."""

    kind: str
    ratio: float
    ci95: Interval
    margin: float
    meaning: str


class Failure(msgspec.Struct, frozen=True):
    """A point that failed, or whose time physics forbids (kind ``impossible``)."""

    point: Point
    kind: str
    message: str
    phase: str
    rank: int | None
    last_words: str
    shard: int


class Counts(msgspec.Struct, frozen=True):
    """planned == measured + failed + missing."""

    planned: int
    measured: int
    failed: int
    missing: int


class Results(msgspec.Struct, frozen=True):
    """All that a report says, of one environment."""

    plan: Plan
    manifest: Manifest
    environment: Environment | None
    hosts: list[Host]
    started: float | None
    ended: float | None
    busy_share: float | None
    counts: Counts
    missing: list[Planned]
    tokens: list[list[int]]
    peak_gb_per_s: float | None
    default: Pair | None
    optimal: Pair | None
    worst: Pair | None
    verdict: Verdict | None
    pareto: list[Pair]
    best_per_shared: list[Pair]
    baselines: list[OpResult]
    measurements: list[OpResult]
    failures: list[Failure]
    self_checks: list[SelfCheck]
    rank_ratio: float | None
    flags: list[str]
    damaged: list[Damaged]

    @property
    def speedup_over_default(self) -> float | None:
        """Default's round trip over the optimal one."""
        return None if self.verdict is None else self.verdict.ratio


def unlike(lines: list[Line]) -> list[str]:
    """The fields in which the environments of the records differ, as ``field: value | value``; empty when alike."""
    found = list({line.id: line for line in lines if isinstance(line, Environment)}.values())
    used = {line.environment for line in lines if isinstance(line, Record)}
    plain = [msgspec.to_builtins(environment) for environment in found if environment.id in used]
    differing = []
    for field in Environment.__struct_fields__:
        values = {str(one[field]) for one in plain}
        if len(values) > 1:
            differing.append(f"{field}: {' | '.join(sorted(values))}")
    return differing


def by_environment(lines: list[Line]) -> list[list[Line]]:
    """The lines of each environment, the one with most records first; shard-wide lines go with the first."""
    counts = Counter(line.environment for line in lines if isinstance(line, Record))
    order = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))] or [""]
    parts: dict[str, list[Line]] = {name: [] for name in order}
    for line in lines:
        owner = line.environment if isinstance(line, Record) else order[0]
        if isinstance(line, Environment):
            owner = line.id
        parts.setdefault(owner, []).append(line)
    return [parts[name] for name in order]


def build(plan: Plan, manifest: Manifest, lines: list[Line], damaged: list[Damaged]) -> Results:
    """The answer of one environment's lines."""
    records = sorted((line for line in lines if isinstance(line, Record)), key=_record_order)
    environments = [line for line in lines if isinstance(line, Environment)]
    environment = min(environments, key=lambda one: one.id) if environments else None
    tokens = next((line.tokens for line in lines if isinstance(line, Traffic)), None)
    tokens = tokens or layout.token_matrix(plan.spec.workload, num_ranks=plan.spec.ep.size)
    measurements, failures = _judge(plan, records, tokens)
    pairs = _pairs(plan, measurements)
    default, optimal, worst = _default(plan, measurements), pairs[0] if pairs else None, _worst(plan, measurements)
    shared_gpus = plan.spec.ep.share_gpus
    verdict = None if shared_gpus else _verdict(default, optimal)
    done = {result.point.label for result in measurements}
    failed = {failure.point.label for failure in failures} - done
    every = plan.every_point
    missing = [planned for planned in every if planned.point.label not in done | failed]
    wall = sum(record.wall_s for record in records)
    return Results(
        plan=plan,
        manifest=manifest,
        environment=environment,
        hosts=sorted((line for line in lines if isinstance(line, Host)), key=lambda host: (host.shard, host.started)),
        started=min((record.started for record in records), default=None),
        ended=max((record.started + record.wall_s for record in records), default=None),
        busy_share=sum(record.busy_s for record in records) / wall if wall else None,
        counts=Counts(
            planned=len(every),
            measured=sum(planned.point.label in done for planned in every),
            failed=sum(planned.point.label in failed for planned in every),
            missing=len(missing),
        ),
        missing=missing,
        tokens=tokens,
        peak_gb_per_s=plan.spec.hardware.peak_gb_per_s,
        default=default,
        optimal=optimal,
        worst=worst,
        verdict=verdict,
        pareto=_pareto(pairs),
        best_per_shared=sorted(pairs, key=lambda pair: tuple(pair.shared.values())),
        baselines=[result for result in measurements if result.role is Role.BASELINE],
        measurements=measurements,
        failures=failures,
        self_checks=sorted((line for line in lines if isinstance(line, SelfCheck)), key=lambda check: check.shard),
        rank_ratio=_rank_ratio(records),
        flags=_flags(lines),
        damaged=damaged,
    )


def _record_order(record: Record) -> tuple[int, int, float]:
    return record.shard, record.sequence, record.started


def _judge(plan: Plan, records: list[Record], tokens: list[list[int]]) -> tuple[list[OpResult], list[Failure]]:
    """One result for each point that has valid times, and every failure; the physics gate is here."""
    ratios = _shard_ratios(records)
    samples: dict[str, list[Record]] = defaultdict(list)
    failures = []
    for record in records:
        if isinstance(record.outcome, Measured):
            samples[record.point.label].append(record)
        else:
            failures.append(_failure(record, record.outcome))
    results = []
    for group in samples.values():
        result = _op_result(plan, group, tokens, ratios)
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


def _shard_ratios(records: list[Record]) -> dict[tuple[int, Op], float]:
    """For each shard and operation: its anchor's median over the median of all shards' anchors."""
    medians: dict[tuple[int, Op], list[float]] = defaultdict(list)
    for record in records:
        if record.role is Role.ANCHOR and isinstance(record.outcome, Measured):
            medians[record.shard, record.point.op].append(float(np.median(record.outcome.samples_us)))
    overall = {
        op: float(np.median([np.median(values) for (_, other), values in medians.items() if other is op]))
        for op in {op for _, op in medians}
    }
    return {(shard, op): float(np.median(values)) / overall[op] for (shard, op), values in medians.items()}


def _op_result(
    plan: Plan, group: list[Record], tokens: list[list[int]], ratios: dict[tuple[int, Op], float]
) -> OpResult:
    point = group[0].point
    parts = [record.outcome.samples_us for record in group if isinstance(record.outcome, Measured)]
    samples = np.concatenate([np.asarray(part) for part in parts])
    median_us = float(np.median(samples))
    adjusted = [
        float(np.median(part)) / ratios.get((record.shard, point.op), 1.0)
        for part, record in zip(parts, group, strict=True)
    ]
    size: Volume = layout.volume(tokens, bytes_per_token=plan.spec.workload.bytes_per_token(point.dtype))
    peak, wire = plan.spec.hardware.peak_gb_per_s, size.wire / median_us / 1000
    scatter = spread(samples)
    return OpResult(
        point=point,
        role=group[0].role,
        median_us=median_us,
        ci95_us=median_interval(samples),
        spread=scatter,
        num_samples=len(samples),
        relative=float(np.median(adjusted)),
        logical_gb_per_s=size.logical / median_us / 1000,
        wire_gb_per_s=wire,
        peak_fraction=None if peak is None else wire / peak,
        unstable=scatter > UNSTABLE_SPREAD,
        samples=samples.tolist(),
    )


def _ranked(plan: Plan, measurements: list[OpResult]) -> dict[tuple[int, ...], dict[Op, list[OpResult]]]:
    """The backend's own results by the values of their shared knobs, and by operation, fastest first."""
    names = shared_knobs(BACKENDS[plan.spec.backend])
    groups: dict[tuple[int, ...], dict[Op, list[OpResult]]] = defaultdict(lambda: defaultdict(list))
    for result in measurements:
        if result.point.backend == plan.spec.backend and result.point.op in (Op.DISPATCH, Op.COMBINE):
            groups[tuple(result.point.knobs[name] for name in names)][result.point.op].append(result)
    return groups


def _pairs(plan: Plan, measurements: list[OpResult]) -> list[Pair]:
    """The best pair for each value of the shared knobs, fastest round trip first."""
    names = shared_knobs(BACKENDS[plan.spec.backend])
    pairs = [
        Pair(dict(zip(names, values, strict=True)), ops[Op.DISPATCH][0], ops[Op.COMBINE][0])
        for values, ops in _ranked(plan, measurements).items()
        if ops[Op.DISPATCH] and ops[Op.COMBINE]
    ]
    return sorted(pairs, key=lambda pair: (pair.relative, tuple(pair.shared.values())))


def _worst(plan: Plan, measurements: list[OpResult]) -> Pair | None:
    names = shared_knobs(BACKENDS[plan.spec.backend])
    pairs = [
        Pair(dict(zip(names, values, strict=True)), ops[Op.DISPATCH][-1], ops[Op.COMBINE][-1])
        for values, ops in _ranked(plan, measurements).items()
        if ops[Op.DISPATCH] and ops[Op.COMBINE]
    ]
    return max(pairs, key=lambda pair: pair.relative, default=None)


def _default(plan: Plan, measurements: list[OpResult]) -> Pair | None:
    """The anchors' results; None when one of them failed or is missing."""
    found = {result.point.label: result for result in measurements}
    dispatch, combine = (found.get(anchor.point.label) for anchor in plan.anchors)
    if dispatch is None or combine is None:
        return None
    names = shared_knobs(BACKENDS[plan.spec.backend])
    return Pair({name: dispatch.point.knobs[name] for name in names}, dispatch, combine)


def _pareto(pairs: list[Pair]) -> list[Pair]:
    """The pairs that no other pair beats with as little of the shared resource; fewest first."""
    frontier: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: (tuple(pair.shared.values()), pair.relative)):
        if not frontier or pair.relative < frontier[-1].relative:
            frontier.append(pair)
    return frontier


def _verdict(default: Pair | None, optimal: Pair | None) -> Verdict | None:
    """See MARGIN; None when the default or every pair failed."""
    if default is None or optimal is None:
        return None
    ratio = default.round_trip_us / optimal.round_trip_us
    if default.dispatch.point == optimal.dispatch.point and default.combine.point == optimal.combine.point:
        return Verdict("default_is_optimal", 1.0, Interval(1.0, 1.0), MARGIN, "no measured pair was faster")
    interval = bootstrap_ratio(
        [default.dispatch.samples, default.combine.samples], [optimal.dispatch.samples, optimal.combine.samples]
    )
    if interval.low > 1 + MARGIN:
        return Verdict("tuned", ratio, interval, MARGIN, "the optimal pair is faster than the default")
    if interval.low > 1 - MARGIN and interval.high < 1 + MARGIN:
        return Verdict("default_is_optimal", ratio, interval, MARGIN, "the default is as fast, within the margin")
    return Verdict("inconclusive", ratio, interval, MARGIN, "the interval spans the margin: measure more")


def _rank_ratio(records: list[Record]) -> float | None:
    """Slowest over fastest rank's median of the default dispatch: the timer's check that no rank waits for another."""
    ratios = [
        max(record.outcome.rank_median_us) / min(record.outcome.rank_median_us)
        for record in records
        if record.role is Role.ANCHOR and record.point.op is Op.DISPATCH and isinstance(record.outcome, Measured)
    ]
    return float(np.median(ratios)) if ratios else None


def _flags(lines: list[Line]) -> list[str]:
    """What was odd about the GPUs while they were measured, a sentence each."""
    states = [
        (line.shard, index, gpu) for line in lines if isinstance(line, Telemetry) for index, gpu in enumerate(line.gpus)
    ]
    throttled = Counter((shard, index, reason) for shard, index, gpu in states for reason in gpu.throttle)
    busy = Counter((shard, index) for shard, index, gpu in states if gpu.foreign_processes)
    found = [
        f"shard {shard}, GPU {index}: throttled ({reason}) at {count} of its readings"
        for (shard, index, reason), count in sorted(throttled.items())
    ]
    return found + [
        f"shard {shard}, GPU {index}: busy with other processes at {count} of its readings"
        for (shard, index), count in sorted(busy.items())
    ]


def to_json(results: Results) -> dict[str, Any]:
    """RESULTS_EP{n}.json, schema ``deepep-sweep/results/1`` (docs/results.schema.json)."""
    plan, spec = results.plan, results.plan.spec
    return {
        "schema": SCHEMA,
        "command": results.manifest.command,
        "started": _utc(results.started),
        "ended": _utc(results.ended),
        "revision": msgspec.to_builtins(results.manifest.revision),
        "hardware": msgspec.to_builtins(spec.hardware) | {"peak_gb_per_s": results.peak_gb_per_s},
        "ep": spec.ep.size,
        "shared_gpus": spec.ep.share_gpus,
        "dry_run": plan.is_dry,
        "backend": spec.backend,
        "workload": msgspec.to_builtins(spec.workload),
        "environment": None if results.environment is None else msgspec.to_builtins(results.environment),
        "hosts": [msgspec.to_builtins(host) for host in results.hosts],
        "traffic_tokens": results.tokens,
        "points": msgspec.to_builtins(results.counts),
        "default": _pair_json(results.default),
        "optimal": _pair_json(results.optimal),
        "worst": _pair_json(results.worst),
        "verdict": None if results.verdict is None else msgspec.to_builtins(results.verdict),
        "speedup_over_default": results.speedup_over_default,
        "pareto": [pair.to_json() for pair in results.pareto],
        "baselines": [_labelled(result) for result in results.baselines],
        "measurements": [_labelled(result) for result in results.measurements],
        "failures": [msgspec.to_builtins(failure) for failure in results.failures],
        "missing": [planned.point.label for planned in results.missing],
        "refused": len(plan.refused),
        "self_checks": [msgspec.to_builtins(check) for check in results.self_checks],
        "rank_ratio": results.rank_ratio,
        "busy_share": results.busy_share,
        "flags": results.flags,
        "damaged_lines": [msgspec.to_builtins(line) for line in results.damaged],
    }


def _pair_json(pair: Pair | None) -> dict[str, Any] | None:
    return None if pair is None else pair.to_json()


def _labelled(result: OpResult) -> dict[str, Any]:
    head = {"backend": result.point.backend, "op": result.point.op.value, "dtype": result.point.dtype.value}
    return head | {"role": result.role.value} | result.to_json()


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
