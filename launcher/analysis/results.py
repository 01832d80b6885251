"""The results of a run: a pure function of the plan and the lines, whatever the order of the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from bench import workload as layout
from bench.between import OTHER_GPUS
from bench.components import Estimate
from bench.records import Dtype, Environment, Host, Line, Op, Role, SelfCheck, Stage, Telemetry, Traffic
from bench.workload import Volume
from launcher.analysis import alignment
from launcher.analysis.alignment import StartSkew
from launcher.analysis.choice import Choice, choose
from launcher.analysis.components import Components, components_of, times_by_run
from launcher.analysis.control import Control, control_of
from launcher.analysis.libraries import Comparison, compare_libraries
from launcher.analysis.measurements import Failure, Measurement, evaluate
from launcher.analysis.nodes import Level, levels_of
from launcher.analysis.power_cap import num_uncorrected
from launcher.analysis.repetitions import are_again
from launcher.config.plan import Plan, Planned, shard_name
from launcher.store.accounting import Accounting
from launcher.store.records_file import Damaged
from launcher.store.results_file import Cost, Counts
from launcher.store.run_folder import Manifest
from launcher.store.table import OPS, ROLES, STAGES, RecordTable, Rows, RunRecords, in_measured_order


class Results(msgspec.Struct, frozen=True):
    """Everything that is reported about one environment.

    ``final_groups``: complete groups of the final. ``num_again``: repetitions of the final that were off and measured
    again. ``controls``: of each library that has one. ``levels``: how the nodes of several shards differ.
    ``num_uncorrected``: repetitions overlapped with GEMMs that could not be corrected for the power cap. ``tokens``:
    those that each rank sends to each other [ranks, ranks].
    ``rank_ratio``: slowest over fastest rank in the default dispatch. ``start_skew``: how far apart the ranks start;
    None where nothing measured it. ``flags``: oddities of the GPUs and of that, a sentence each.
    ``choices``: for each library, in the order of the plan. ``comparisons``: of its libraries with one another and with
    the plain collectives. ``components``: how much the final and its repeats scatter; None without repeats.
    """

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
    num_again: int
    controls: dict[str, Control]
    levels: list[Level]
    num_uncorrected: int
    tokens: list[list[int]]
    choices: dict[str, Choice]
    comparisons: list[Comparison]
    baselines: list[Measurement]
    measurements: list[Measurement]
    failures: list[Failure]
    self_checks: list[SelfCheck]
    rank_ratio: float | None
    start_skew: StartSkew | None
    flags: list[str]
    damaged: list[Damaged]
    components: Components | None = None

    @property
    def choice(self) -> Choice:
        """The decisions about the only library; see ``of``."""
        return self.choices[self.plan.backend]

    def of(self, backend: str) -> Results:
        """The part that is about one library, with the baselines; failures are its own."""
        backends = {backend, *(baseline.point.backend for baseline in self.baselines)}
        return msgspec.structs.replace(
            self,
            plan=self.plan.of(backend),
            choices={backend: self.choices[backend]},
            measurements=[each for each in self.measurements if each.point.backend in backends],
            failures=[failure for failure in self.failures if failure.point.backend == backend],
        )

    @property
    def elsewhere(self) -> Estimate:
        """What a run on other GPUs of the kind adds to a log time, by this run's repeats or by published runs."""
        return Estimate(OTHER_GPUS.time) if self.components is None else self.components.elsewhere

    @property
    def num_nodes(self) -> int:
        """The nodes that the shards of the sweep ran on."""
        return len({host.hostname for host in self.hosts if host.shard >= 0})

    @property
    def volumes(self) -> tuple[Volume, Volume]:
        """The busiest rank's bytes in a dispatch, and in a combine."""
        workload = self.plan.spec.workload
        dispatch, combine = (
            layout.volume(self.tokens, bytes_per_token=workload.bytes_per_token(dtype))
            for dtype in (workload.dtype, Dtype.BF16)
        )
        return dispatch, combine

    @property
    def speedup_over_default(self) -> float | None:
        """The default's objective over that of the optimal pair; 1 where the default is the optimal pair."""
        choice = self.choice
        if choice.verdict is None or choice.default is None or choice.optimal is None:
            return None
        return 1.0 if choice.default.same_configs(choice.optimal) else choice.verdict.ratio

    @property
    def peak_gb_per_s(self) -> float | None:
        """The link peak of one GPU in one direction; None if the hardware file has none."""
        return self.plan.spec.hardware.peak_gb_per_s

    @property
    def lacks_final(self) -> bool:
        """Whether planned groups of the final are missing."""
        planned = self.plan.spec.search.final_groups if self.plan.has_final else 0
        return bool(self.measurements) and self.final_groups < planned


def environment_differences(records: RunRecords) -> list[str]:
    """The fields in which the environments of the records differ, as ``field: value | value``; empty if none does."""
    environments = {line.id: line for line in records.others if isinstance(line, Environment)}
    used = [msgspec.to_builtins(line) for name, line in environments.items() if name in records.table.environments]
    differences = []
    for field in Environment.__struct_fields__[:-1]:  # the last is the version of the line
        values = {str(environment[field]) for environment in used}
        if len(values) > 1:
            differences.append(f"{field}: {' | '.join(sorted(values))}")
    return differences


def split_by_environment(records: RunRecords) -> list[RunRecords]:
    """The lines of each environment, the one with most records first; shard-wide lines go with the first."""
    table = records.table
    counts = np.bincount(table.rows["environment"], minlength=len(table.environments))
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], table.environments[index]))
    if not order:
        return [records]
    names = [table.environments[index] for index in order]
    others: dict[str, list[Line]] = {name: [] for name in names}
    for line in records.others:
        owner = line.id if isinstance(line, Environment) and line.id in others else names[0]
        others[owner].append(line)
    return [RunRecords(table.select_environment(index), others[name]) for index, name in zip(order, names, strict=True)]


def build(
    plan: Plan,
    manifest: Manifest,
    records: RunRecords,
    damaged: list[Damaged],
    *,
    accounting: Accounting | None = None,
    unfinished: Sequence[str] = (),
) -> Results:
    """The results of one environment's lines. ``unfinished``: a sentence for each attempt that did not finish."""
    table, lines = in_measured_order(records.table), records.others
    rows = table.rows
    first = rows[rows["stage"] != STAGES.index(Stage.REPEAT)]
    hosts = sorted((line for line in lines if isinstance(line, Host)), key=lambda host: (host.shard, host.started))
    tokens = _tokens(plan, lines)
    measurements, failures = _evaluate(plan, table, tokens)
    components = components_of(table, hosts)
    if components is not None and not plan.is_dry:  # how much runs scatter is known of GPUs only
        by_run = times_by_run(table, hosts)
        measurements = [msgspec.structs.replace(each, by_run=by_run.get(each.point.key, {})) for each in measurements]
    counts, missing = _count(plan, measurements, failures)
    choices = {name: choose(plan.of(name), measurements) for name in plan.spec.backends}
    baselines = [measurement for measurement in measurements if measurement.role is Role.BASELINE]
    return Results(
        plan=plan,
        manifest=manifest,
        environment=_environment(table, lines),
        hosts=hosts,
        started=float(rows["started"].min()) if len(rows) else None,
        ended=float((rows["started"] + rows["wall_s"]).max()) if len(rows) else None,
        cost=_cost(rows, hosts, accounting),
        counts=counts,
        missing=missing,
        unfinished=list(unfinished),
        final_groups=_final_groups(plan, table),
        num_again=int(np.count_nonzero(are_again(first))),
        levels=levels_of(plan, table._replace(rows=first), hosts),
        controls={name: control for name in plan.spec.backends if (control := control_of(plan.of(name), table))},
        num_uncorrected=num_uncorrected(rows),
        tokens=tokens,
        choices=choices,
        comparisons=compare_libraries(plan, choices, baselines),
        baselines=baselines,
        measurements=measurements,
        failures=failures,
        self_checks=_self_checks(lines),
        rank_ratio=_rank_ratio(first),
        start_skew=alignment.start_skew(lines),
        flags=[*_flags(lines), *(f"the skew of the ranks' start: {why}" for why in alignment.failures(lines))],
        damaged=damaged,
        components=components,
    )


def _evaluate(plan: Plan, table: RecordTable, tokens: list[list[int]]) -> tuple[list[Measurement], list[Failure]]:
    """See ``evaluate``; plain collectives have their role, which the final does not record."""
    measurements, failures = evaluate(plan, table, tokens)
    backends = {planned.point.backend for planned in plan.baselines}
    marked = [
        msgspec.structs.replace(each, role=Role.BASELINE) if each.point.backend in backends else each
        for each in measurements
    ]
    return marked, failures


def _tokens(plan: Plan, lines: list[Line]) -> list[list[int]]:
    """From the ranks' own layout, or from the plan where they never reported one."""
    tokens = next((line.tokens for line in lines if isinstance(line, Traffic)), None)
    return tokens or layout.token_matrix(plan.spec.workload, num_ranks=plan.spec.ep.size)


def _environment(table: RecordTable, lines: list[Line]) -> Environment | None:
    """The one that the records name, if it has a line."""
    used = {table.environments[index] for index in np.unique(table.rows["environment"])}
    environments = [line for line in lines if isinstance(line, Environment)]
    environments = [environment for environment in environments if environment.id in used] or environments
    return min(environments, key=lambda environment: environment.id) if environments else None


def _self_checks(lines: list[Line]) -> list[SelfCheck]:
    checks = (line for line in lines if isinstance(line, SelfCheck))
    return sorted(checks, key=lambda check: (check.shard, check.group, check.empty_op_us))


def _count(plan: Plan, measurements: list[Measurement], failures: list[Failure]) -> tuple[Counts, list[Planned]]:
    """The planned points by their fate, and those without a record."""
    measured = {measurement.point.key for measurement in measurements}
    failed = {failure.point.key for failure in failures} - measured
    planned = [(point, point.point.key) for point in plan.every_point]
    recorded = measured | failed
    missing = [point for point, key in planned if key not in recorded]
    counts = Counts(
        planned=len(planned),
        measured=sum(key in measured for _, key in planned),
        failed=sum(key in failed for _, key in planned),
        missing=len(missing),
    )
    return counts, missing


def _final_groups(plan: Plan, table: RecordTable) -> int:
    """Groups of the final in which every point has a record, apart from points that failed: these are not retried."""
    failed = {record.point.key for record in table.failed if record.stage is Stage.FINAL}
    failed_indices = {index for index, point in enumerate(table.points) if point.key in failed}
    finals = table.rows[table.rows["stage"] == STAGES.index(Stage.FINAL)]
    finals = finals[finals["round"] < plan.spec.search.final_groups]
    groups = [
        set(finals["point"][finals["round"] == number].tolist()) - failed_indices
        for number in np.unique(finals["round"])
    ]
    every_point = set().union(*groups)
    return sum(points == every_point for points in groups)


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
    """Slowest over fastest rank's median of the default dispatch: near 1 unless a rank waited for another."""
    dispatches = rows[(rows["role"] == ROLES.index(Role.ANCHOR)) & (rows["op"] == OPS.index(Op.DISPATCH))]
    ratios = dispatches["rank_ratio"][np.isfinite(dispatches["rank_ratio"])]
    return float(np.median(ratios)) if len(ratios) else None


def _flags(lines: list[Line]) -> list[str]:
    """Throttled and shared GPUs, a sentence each."""
    readings = [
        (f"{shard_name(line.shard)}{', overlapped with GEMMs' if line.op is Op.COMPUTE else ''}, GPU {index}", gpu)
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
