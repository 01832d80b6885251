"""The whole answer of a run, as a pure function of the plan and the lines, the same for any order of the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from bench import workload as layout
from bench.records import Dtype, Environment, Host, Line, Op, Role, SelfCheck, Stage, Telemetry, Traffic
from bench.workload import Volume
from launcher.analysis.choice import Choice, choose
from launcher.analysis.measurements import Failure, Measurement, evaluate
from launcher.analysis.power_cap import num_unjudged
from launcher.config.plan import FINAL, Plan, Planned
from launcher.store.accounting import Accounting
from launcher.store.records_file import Damaged
from launcher.store.results_file import Cost, Counts
from launcher.store.run_folder import Manifest
from launcher.store.table import OPS, ROLES, STAGES, RecordTable, Rows, RunRecords, in_measured_order


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
    unfinished: list[str]
    final_groups: int
    num_unjudged: int
    tokens: list[list[int]]
    peak_gb_per_s: float | None
    choice: Choice
    baselines: list[Measurement]
    measurements: list[Measurement]
    failures: list[Failure]
    self_checks: list[SelfCheck]
    rank_ratio: float | None
    flags: list[str]
    damaged: list[Damaged]

    @property
    def volumes(self) -> tuple[Volume, Volume]:
        """What the busiest rank moves in a dispatch, and in a combine."""
        workload = self.plan.spec.workload
        dispatch, combine = (
            layout.volume(self.tokens, bytes_per_token=workload.bytes_per_token(dtype))
            for dtype in (workload.dtype, Dtype.BF16)
        )
        return dispatch, combine

    @property
    def speedup_over_default(self) -> float | None:
        """The default's objective over the optimal one's; 1 where the default is the optimal one."""
        verdict = self.choice.verdict
        if verdict is None:
            return None
        return verdict.ratio if verdict.over == "optimal" else 1.0

    @property
    def lacks_final(self) -> bool:
        """Whether groups of the final that were planned have not been measured."""
        planned = self.plan.spec.search.final_groups if self.plan.has_final else 0
        return bool(self.measurements) and self.final_groups < planned


def unlike(found: RunRecords) -> list[str]:
    """The fields in which the environments of the records differ, as ``field: value | value``; empty when alike."""
    environments = {line.id: line for line in found.others if isinstance(line, Environment)}
    plain = [msgspec.to_builtins(one) for name, one in environments.items() if name in found.table.environments]
    differing = []
    for field in Environment.__struct_fields__:
        values = {str(one[field]) for one in plain}
        if len(values) > 1:
            differing.append(f"{field}: {' | '.join(sorted(values))}")
    return differing


def by_environment(found: RunRecords) -> list[RunRecords]:
    """The lines of each environment, the one with most records first; shard-wide lines go with the first."""
    visited = found.table
    counts = np.bincount(visited.rows["environment"], minlength=len(visited.environments))
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], visited.environments[index]))
    if not order:
        return [found]
    names = [visited.environments[index] for index in order]
    others: dict[str, list[Line]] = {name: [] for name in names}
    for line in found.others:
        owner = line.id if isinstance(line, Environment) and line.id in others else names[0]
        others[owner].append(line)
    return [RunRecords(visited.only(index), others[name]) for index, name in zip(order, names, strict=True)]


def build(
    plan: Plan,
    manifest: Manifest,
    found: RunRecords,
    damaged: list[Damaged],
    *,
    accounting: Accounting | None = None,
    unfinished: Sequence[str] = (),
) -> Results:
    """The answer of one environment's lines. ``unfinished``: a sentence for each try that did not come to its end."""
    visited, lines = in_measured_order(found.table), found.others
    rows = visited.rows
    used = {visited.environments[index] for index in np.unique(rows["environment"])}
    environments = [line for line in lines if isinstance(line, Environment)]
    environments = [one for one in environments if one.id in used] or environments
    environment = min(environments, key=lambda one: one.id) if environments else None
    hosts = sorted((line for line in lines if isinstance(line, Host)), key=lambda host: (host.shard, host.started))
    tokens = next((line.tokens for line in lines if isinstance(line, Traffic)), None)
    tokens = tokens or layout.token_matrix(plan.spec.workload, num_ranks=plan.spec.ep.size)
    measurements, failures = evaluate(plan, visited, tokens)
    done = {result.point.key for result in measurements}
    failed = {failure.point.key for failure in failures} - done
    every = [(planned, planned.point.key) for planned in plan.every_point]
    missing = [planned for planned, key in every if key not in done and key not in failed]
    return Results(
        plan=plan,
        manifest=manifest,
        environment=environment,
        hosts=hosts,
        started=float(rows["started"].min()) if len(rows) else None,
        ended=float((rows["started"] + rows["wall_s"]).max()) if len(rows) else None,
        cost=_cost(rows, hosts, accounting),
        counts=Counts(
            planned=len(every),
            measured=sum(key in done for _, key in every),
            failed=sum(key in failed for _, key in every),
            missing=len(missing),
        ),
        missing=missing,
        unfinished=list(unfinished),
        final_groups=_final_groups(plan, visited),
        num_unjudged=num_unjudged(rows),
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
        rank_ratio=_rank_ratio(rows),
        flags=_flags(lines),
        damaged=damaged,
    )


def _final_groups(plan: Plan, visited: RecordTable) -> int:
    """Groups of the final in which every point has a record; but those that failed in it, which are not tried again."""
    failed = {record.point.key for record in visited.failed if record.stage is Stage.FINAL}
    out = {at for at, point in enumerate(visited.points) if point.key in failed}
    finals = visited.rows[visited.rows["stage"] == STAGES.index(Stage.FINAL)]
    grouped = finals[finals["round"] < plan.spec.search.final_groups]
    of = [set(grouped["point"][grouped["round"] == number].tolist()) - out for number in np.unique(grouped["round"])]
    every = set().union(*of)
    return sum(points == every for points in of)


def _cost(rows: Rows, hosts: list[Host], accounting: Accounting | None) -> Cost:
    wall_s = 0.0
    starts: dict[int, float] = {}
    for host in hosts:
        starts[host.shard] = min(host.started, starts.get(host.shard, host.started))
    order = np.argsort(rows["shard"], kind="stable")
    for part in np.split(rows[order], np.flatnonzero(np.diff(rows["shard"][order])) + 1):
        if len(part):
            first = float(part["started"].min())
            wall_s += float((part["started"] + part["wall_s"]).max()) - min(
                first, starts.get(int(part["shard"][0]), first)
            )
    return Cost(
        wall_s=wall_s,
        busy_s=float(rows["busy_s"].sum()),
        startup_s=sum(host.startup_s for host in hosts),
        accounting=accounting,
    )


def _rank_ratio(rows: Rows) -> float | None:
    """Slowest over fastest rank's median of the default dispatch: the timer's check that no rank waits for another."""
    chosen = rows[(rows["role"] == ROLES.index(Role.ANCHOR)) & (rows["op"] == OPS.index(Op.DISPATCH))]
    ratios = chosen["rank_ratio"][np.isfinite(chosen["rank_ratio"])]
    return float(np.median(ratios)) if len(ratios) else None


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
