"""The whole answer of a run, as a pure function of the plan and the lines, the same for any order of the records."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np

from bench import workload as layout
from bench.records import Environment, Host, Line, Measured, Op, Record, Role, SelfCheck, Stage, Telemetry, Traffic
from launcher.choose import Choice, choose
from launcher.judge import Failure, OpResult, judge
from launcher.plan import FINAL, Plan, Planned
from launcher.store import Accounting, Damaged, Manifest


class Counts(msgspec.Struct, frozen=True):
    """planned == measured + failed + missing."""

    planned: int
    measured: int
    failed: int
    missing: int


class Cost(msgspec.Struct, frozen=True):
    """What the run took.

    ``wall_s``: from the first start of ranks to the last record, summed over shards. ``busy_s``: the part of it that
    the ranks spent in warm-up and timed iterations. ``startup_s``: the part before the ranks could be asked anything.
    """

    wall_s: float
    busy_s: float
    startup_s: float
    accounting: Accounting | None


class Results(msgspec.Struct, frozen=True):
    """All that a report says, of one environment."""

    plan: Plan
    manifest: Manifest
    environment: Environment | None
    hosts: list[Host]
    started: float | None
    ended: float | None
    cost: Cost
    counts: Counts
    missing: list[Planned]
    final_groups: int
    tokens: list[list[int]]
    peak_gb_per_s: float | None
    choice: Choice
    baselines: list[OpResult]
    measurements: list[OpResult]
    failures: list[Failure]
    self_checks: list[SelfCheck]
    rank_ratio: float | None
    flags: list[str]
    damaged: list[Damaged]

    @property
    def speedup_over_default(self) -> float | None:
        """The default's objective over the optimal one's."""
        return None if self.choice.verdict is None else self.choice.verdict.ratio

    @property
    def lacks_final(self) -> bool:
        """Whether groups of the final that were planned have not been measured."""
        planned = self.plan.spec.search.final_groups if self.plan.has_final else 0
        return bool(self.measurements) and self.final_groups < planned


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


def build(
    plan: Plan, manifest: Manifest, lines: list[Line], damaged: list[Damaged], accounting: Accounting | None = None
) -> Results:
    """The answer of one environment's lines."""
    records = sorted((line for line in lines if isinstance(line, Record)), key=_record_order)
    environments = [line for line in lines if isinstance(line, Environment)]
    environment = min(environments, key=lambda one: one.id) if environments else None
    hosts = sorted((line for line in lines if isinstance(line, Host)), key=lambda host: (host.shard, host.started))
    tokens = next((line.tokens for line in lines if isinstance(line, Traffic)), None)
    tokens = tokens or layout.token_matrix(plan.spec.workload, num_ranks=plan.spec.ep.size)
    measurements, failures = judge(plan, records, tokens)
    done = {result.point.label for result in measurements}
    failed = {failure.point.label for failure in failures} - done
    every = plan.every_point
    missing = [planned for planned in every if planned.point.label not in done | failed]
    return Results(
        plan=plan,
        manifest=manifest,
        environment=environment,
        hosts=hosts,
        started=min((record.started for record in records), default=None),
        ended=max((record.started + record.wall_s for record in records), default=None),
        cost=_cost(records, hosts, accounting),
        counts=Counts(
            planned=len(every),
            measured=sum(planned.point.label in done for planned in every),
            failed=sum(planned.point.label in failed for planned in every),
            missing=len(missing),
        ),
        missing=missing,
        final_groups=_final_groups(plan, records),
        tokens=tokens,
        peak_gb_per_s=plan.spec.hardware.peak_gb_per_s,
        choice=choose(plan, measurements),
        baselines=[result for result in measurements if result.role is Role.BASELINE],
        measurements=measurements,
        failures=failures,
        self_checks=sorted(
            (line for line in lines if isinstance(line, SelfCheck)),
            key=lambda check: (check.shard, check.group, check.empty_op_us),
        ),
        rank_ratio=_rank_ratio(records),
        flags=_flags(lines),
        damaged=damaged,
    )


def _record_order(record: Record) -> tuple[int, int, float]:
    return record.shard, record.sequence, record.started


def _final_groups(plan: Plan, records: list[Record]) -> int:
    """Groups of the final in which both anchors have a record."""
    ids = {anchor.id for anchor in plan.anchors}
    seen = {(record.round, record.point_id) for record in records if record.stage is Stage.FINAL}
    return sum(ids <= {point for other, point in seen if other == number} for number in {number for number, _ in seen})


def _cost(records: list[Record], hosts: list[Host], accounting: Accounting | None) -> Cost:
    wall_s = 0.0
    for shard in {record.shard for record in records}:
        starts = [host.started for host in hosts if host.shard == shard]
        starts += [record.started for record in records if record.shard == shard]
        wall_s += max(r.started + r.wall_s for r in records if r.shard == shard) - min(starts)
    return Cost(
        wall_s=wall_s,
        busy_s=sum(record.busy_s for record in records),
        startup_s=sum(host.startup_s for host in hosts),
        accounting=accounting,
    )


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
    readings = [
        (f"{_name(line.shard)}{' beside GEMMs' if line.op is Op.COMPUTE else ''}, GPU {index}", gpu)
        for line in lines
        if isinstance(line, Telemetry)
        for index, gpu in enumerate(line.gpus)
    ]
    total = Counter(place for place, _ in readings)
    throttled = Counter((place, reason) for place, gpu in readings for reason in gpu.throttle)
    busy = Counter(place for place, gpu in readings if gpu.foreign_processes)
    return [
        f"{place}: throttled ({reason}) at {count} of {total[place]} readings"
        for (place, reason), count in sorted(throttled.items())
    ] + [
        f"{place}: busy with other processes at {count} of {total[place]} readings"
        for place, count in sorted(busy.items())
    ]


def _name(shard: int) -> str:
    return "final" if shard == FINAL else f"shard {shard}"
