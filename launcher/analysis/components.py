"""How much the times of a run with repeats scatter, by where it comes from: iteration to machine; pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, get_args

import msgspec
import numpy as np

from bench import components as estimates
from bench.between import OTHER_GPUS, SAME_GPUS, other_machine
from bench.components import UNKNOWN, Component, Estimate, Observed
from bench.records import Host, Op, Role, Stage
from bench.stats import log_median_errors
from launcher.analysis.repetitions import Repetition, are_again, times_by_place
from launcher.store.saved_components import Level
from launcher.store.table import OPS, ROLES, STAGES, RecordTable, Rows

ISOLATED = (Op.DISPATCH, Op.DISPATCH_FULL, Op.COMBINE)
"""The operations that repeats measure."""

ENOUGH = 8
"""Degrees of freedom from which a run's own components replace those of published runs."""

LEVELS: tuple[Level, ...] = get_args(Level)


class Run(NamedTuple):
    """The final (its index as a shard), or a repeat, as far as one machine measured it."""

    shard: int
    machine: str


TimesByRun = dict[Run, dict[int, float]]
"""The time of one point in each group of each run, in microseconds; a restarted group has a key of its own."""


class Components(msgspec.Struct, frozen=True):
    """The components of a run with repeats.

    ``runs``: the final and its repeats, each once for every machine that measured it. ``by_level``: for each of LEVELS
    that of every operation, and of all (None).
    """

    runs: int
    machines: int
    configs: int
    by_level: dict[Level, dict[Op | None, Component]]

    @property
    def run(self) -> Estimate:
        """What a run adds to a config's log time: as this run shows, or as published runs do."""
        return own_or(self.by_level["run"][None], SAME_GPUS.time)

    @property
    def machine(self) -> Estimate:
        """What a machine adds to a config's log time, likewise."""
        return own_or(self.by_level["machine"][None], other_machine(OTHER_GPUS.time, same_gpus=SAME_GPUS.time))

    @property
    def elsewhere(self) -> Estimate:
        """What a run on other GPUs of the kind adds to a config's log time: both together."""
        run, machine = self.run, self.machine
        total = run.deviation**2 + machine.deviation**2
        uncertain = run.deviation**4 / run.freedom + machine.deviation**4 / machine.freedom
        return Estimate(total**0.5, total**2 / uncertain if uncertain > 0 else math.inf)


def own_or(component: Component, published: float) -> Estimate:
    """The component where it has ENOUGH degrees of freedom, else what published runs show."""
    if component.deviation is None or component.freedom < ENOUGH:
        return Estimate(published)
    return Estimate(component.deviation, component.freedom)


def has_repeats(table: RecordTable) -> bool:
    """Whether any repeat was measured."""
    return bool(np.any((table.rows["stage"] == STAGES.index(Stage.REPEAT)) & (table.rows["count"] > 0)))


def times_by_run(table: RecordTable, hosts: Iterable[Host]) -> dict[tuple[object, ...], TimesByRun]:
    """By the key of each point that repeats measured its times in the final and in the repeats; without controls."""
    control = ROLES.index(Role.CONTROL)
    return _times(table, hosts, lambda rows: rows["role"] != control)


def components_of(table: RecordTable, hosts: Sequence[Host]) -> Components | None:
    """The components of a run; None without repeats.

    Of the default its control counts, which is measured once in each group like any other config.
    """
    if not has_repeats(table):
        return None
    anchor = ROLES.index(Role.ANCHOR)
    times = _times(table, hosts, lambda rows: rows["role"] != anchor)
    ops = {point.key: point.op for point in table.points}
    runs = {run for by_run in times.values() for run in by_run}
    below = _below(table)
    by_level: dict[Level, dict[Op | None, Component]] = {level: {} for level in LEVELS}
    for op in (*ISOLATED, None):
        found = estimates.components([observed(each) for key, each in times.items() if op in (None, ops[key])])
        iteration, repetition, unexplained = below(op)
        by_level["iteration"][op], by_level["repetition"][op] = iteration, repetition
        by_level["group"][op] = estimates.component(
            found.group.variance, found.group.freedom, below=unexplained, below_freedom=max(repetition.freedom, 1)
        )
        by_level["run"][op], by_level["machine"][op] = found.run, found.machine
    return Components(len(runs), len({run.machine for run in runs}), len(times), by_level)


def observed(by_run: Mapping[Run, Mapping[int, float]]) -> Observed:
    """The logs of the times, by machine, run and group."""
    machines: dict[str, list[list[float]]] = defaultdict(list)
    for run, times in sorted(by_run.items()):
        machines[run.machine].append(np.log(list(times.values())).tolist())
    return list(machines.values())


def _times(
    table: RecordTable, hosts: Iterable[Host], chosen: Callable[[Rows], Rows]
) -> dict[tuple[object, ...], TimesByRun]:
    machines = {(host.shard, host.group): "+".join(sorted(host.gpu_uuids)) or host.hostname for host in hosts}
    repetitions: dict[tuple[object, ...], dict[Run, list[Repetition]]] = defaultdict(lambda: defaultdict(list))
    repeated = set()
    isolated = _isolated(table)
    rows = isolated[chosen(isolated)]
    for row, is_again in zip(rows, are_again(rows).tolist(), strict=True):
        point, shard, group = table.points[row["point"]], int(row["shard"]), int(row["group"])
        run = Run(shard, machines.get((shard, group), ""))
        place = int(row["round"]) * (1 << 20) + group
        repetitions[point.key][run].append(Repetition(place, table.samples_of(_one(row)), np.zeros(0), is_again))
        if row["stage"] == STAGES.index(Stage.REPEAT):
            repeated.add(point.key)
    return {
        key: {run: times_by_place(each, mean=False) for run, each in by_run.items()}
        for key, by_run in repetitions.items()
        if key in repeated
    }


def _isolated(table: RecordTable) -> Rows:
    """The isolated operations that the final and its repeats timed."""
    rows = table.rows
    stages = [STAGES.index(stage) for stage in (Stage.FINAL, Stage.REPEAT)]
    ops = [OPS.index(op) for op in ISOLATED]
    return rows[np.isin(rows["stage"], stages) & np.isin(rows["op"], ops) & (rows["count"] > 0)]


def _one(row: Rows) -> Rows:
    return np.array([row])


def _below(table: RecordTable) -> Callable[[Op | None], tuple[Component, Component, float]]:
    """For an operation: iteration, repetition, and the variance of the median of one repetition that both explain.

    What a repetition adds is seen in the default, which each group measures several times.
    """
    rows = _isolated(table)
    errors = log_median_errors([table.samples_of(_one(row)).tolist() for row in rows]) ** 2
    is_default = np.isin(rows["role"], [ROLES.index(Role.ANCHOR), ROLES.index(Role.CONTROL)])

    def of(op: Op | None) -> tuple[Component, Component, float]:
        own = rows["op"] == OPS.index(op) if op is not None else np.ones(len(rows), dtype=bool)
        if not own.any():
            return UNKNOWN, UNKNOWN, 0.0
        deviation = estimates.robust_deviation(rows["spread"][own])
        freedom = int((rows["count"][own] - 1).sum())
        iteration = estimates.component(deviation**2, freedom, below=0.0, below_freedom=1)
        logs: dict[tuple[int, ...], list[float]] = defaultdict(list)
        for row in rows[own & is_default]:
            place = tuple(int(row[name]) for name in ("point", "shard", "group", "round"))
            logs[place].append(float(np.log(row["median_us"])))
        known = [np.array(each) for each in logs.values() if len(each) > 1]
        squares, num = sum(float(each.var() * len(each)) for each in known), sum(len(each) - 1 for each in known)
        error = float(np.mean(errors[own]))
        default_error = float(np.mean(errors[own & is_default])) if num else 0.0
        repetition = estimates.component(squares / num if num else 0.0, num, below=default_error, below_freedom=freedom)
        return iteration, repetition, max(repetition.variance, 0.0) + error

    return of
