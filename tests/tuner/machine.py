"""A simulated cluster with known true times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bench.records import Measured, Op, Point, Record
from bench.supervisor import Task
from launcher.analysis.choice import Choice, choose
from launcher.analysis.measurements import Failure, Measurement, evaluate
from launcher.analysis.pairs import Pair
from launcher.config import planning
from launcher.config.plan import FINAL, Plan
from launcher.store.table import in_measured_order, record_table
from launcher.tuner import final, racing, shard
from launcher.tuner.racing import Arms
from tests.builders import spec

NODE_OFFSET = 0.015
DRIFT = 0.03
NOISE = 0.006
SPIKE_SHARE, SPIKE = 0.02, 1.5
REPETITION_NOISE = 0.003
"""Noise of a config between repetitions of the sweep and between process groups of the final."""

BASELINE_US = 600.0
"""The time of every operation of a plain collective."""

FULL_US = 60.0
"""The time that layout, the exchange of counts and the host wait add to a dispatch."""


def make_plan(
    *,
    sms: Sequence[int],
    chunks: Sequence[int],
    num_shards: int = 1,
    seed: int = 1,
    buffers: Sequence[int] = (256,),
    **changes: Any,
) -> Plan:
    """DeepEP at EP=4 with this grid, nothing overlapped; ``changes`` are of ``search``."""
    base = spec("workload=small", "workload.num_tokens=256", "search.overlapped=false", "search.own_tuning=false")
    grid = {"num_sms": list(sms), "nvl_chunk": list(chunks), "nvl_buffer": list(buffers)}
    search = msgspec.structs.replace(base.search, **changes)
    return planning.make(msgspec.structs.replace(base, grid=grid, num_shards=num_shards, seed=seed, search=search))


class Machine:
    """A simulated cluster: every config has a true time, and observations have realistic noise."""

    def __init__(self, plan: Plan, *, seed: int = 1, default_factor: float | None = None, alike: bool = False) -> None:
        """``default_factor``: time of the default over that of the best config; None: as its knobs give it.

        ``alike``: all other configs take the same time.
        """
        self._alike = alike
        self.plan, self.rng = plan, np.random.default_rng(seed)
        self.truth = {baseline.point.label: BASELINE_US for baseline in plan.baselines}
        for op, base in ((Op.DISPATCH, 200.0), (Op.COMBINE, 215.0)):
            for cell in [*plan.anchors, *plan.cells]:
                if cell.point.op is op:
                    self.truth[cell.point.label] = base * self._factor(cell.point.knobs)
            for anchor in plan.anchors:
                if anchor.point.op is op and default_factor is not None:
                    least = min(t for label, t in self.truth.items() if f"/{op}/" in label)
                    self.truth[anchor.point.label] = least * default_factor
        self.clock = 0

    def _factor(self, knobs: dict[str, int]) -> float:
        if self._alike:
            return 1.0
        sms, chunk = knobs["num_sms"], knobs.get("nvl_chunk", 10)
        shape = 1 + 0.9 * (64 / sms - 0.5) ** 2 / 4 + 0.25 * np.log(chunk / 10) ** 2
        return float(shape * (1 + self.rng.uniform(0, 0.02)))

    def true_us(self, point: Point) -> float:
        if point.op is Op.DISPATCH_FULL:
            return FULL_US + self.true_us(msgspec.structs.replace(point, op=Op.DISPATCH))
        return self.truth[point.label]

    def measure(self, tasks: Sequence[Task], *, shard_index: int, node: float, group: int) -> list[Record]:
        """The records of some tasks in a row, in one process group."""
        labels = {task.point.label: at for at, task in enumerate(tasks)}
        noise = self.rng.normal(0, REPETITION_NOISE, len(tasks))
        if shard_index == FINAL:
            noise = noise[[labels[task.point.label] for task in tasks]]
        clock = self.clock + np.arange(len(tasks))
        drift = DRIFT * np.sin(clock / 400 + shard_index)
        levels = np.array([self.true_us(task.point) for task in tasks]) * np.exp(node + drift + noise)
        counts = [task.iterations or self.plan.spec.measure.iterations for task in tasks]
        shape = (len(tasks), max(counts))
        spikes = np.where(self.rng.random(shape) < SPIKE_SHARE, SPIKE, 1.0)
        samples = (levels[:, None] * np.exp(self.rng.normal(0, NOISE, shape)) * spikes).round(3).tolist()
        first, self.clock = self.clock, self.clock + len(tasks)
        return [
            Record(
                point=task.point,
                point_id=task.point_id,
                outcome=Measured(samples[at][: counts[at]], []),
                environment="",
                started=float(first + at),
                wall_s=0.0,
                role=task.role,
                stage=task.stage,
                round=task.round,
                sequence=first + at,
                group=group,
                shard=shard_index,
            )
            for at, task in enumerate(tasks)
        ]

    def sweep(self) -> list[Record]:
        """The records of all shards: the program's decisions on simulated times."""
        records: list[Record] = []
        for index in range(self.plan.spec.num_shards):
            arms, node = Arms(), self.rng.normal(0, NODE_OFFSET)
            while next_round := racing.next_round(self.plan, self.plan.shard(index), arms):
                number, cells = next_round
                tasks = list(shard.in_order(self.plan, cells, number))
                for record in self.measure(tasks, shard_index=index, node=node, group=0):
                    records.append(record)
                    arms.add(record)
        return records

    def final(self, swept: Iterable[Record]) -> list[Record]:
        """The records of the final, each group in the program's order."""
        node, records, group, done = self.rng.normal(0, NODE_OFFSET), list[Record](), 0, set[int]()
        arms = Arms(swept)
        while left := [each for each in final.incomplete(self.plan, arms, records) if each[0] not in done]:
            number, points = left[0]
            done.add(number)
            group = number if number < self.plan.spec.search.final_groups else group
            tasks = final.in_order(self.plan, points, number)
            records += self.measure(tasks, shard_index=FINAL, node=node, group=group)
        return records

    def run(self) -> list[Record]:
        swept = self.sweep()
        return swept + self.final(swept)

    def round_trip(self, pair: Pair) -> float:
        return self.truth[pair.dispatch.point.label] + self.truth[pair.combine.point.label]

    def best(self) -> float:
        by_sms: dict[int, dict[Op, float]] = {}
        for cell in [*self.plan.anchors, *self.plan.cells]:
            ops = by_sms.setdefault(cell.point.knobs["num_sms"], {})
            ops[cell.point.op] = min(ops.get(cell.point.op, np.inf), self.truth[cell.point.label])
        return min(sum(ops.values()) for ops in by_sms.values() if len(ops) == 2)


def judge(plan: Plan, records: Sequence[Record]) -> tuple[list[Measurement], list[Failure]]:
    return evaluate(plan, in_measured_order(record_table(records)), [[1] * plan.spec.ep.size] * plan.spec.ep.size)


def choose_config(plan: Plan, records: Sequence[Record]) -> Choice:
    return choose(plan, judge(plan, records)[0])


class SimulatedSweep(NamedTuple):
    """A simulated sweep and its choice."""

    machine: Machine
    choice: Choice

    def regret_of(self, pair: Pair) -> float:
        """The true time of a pair over that of the best pair, minus 1."""
        return self.machine.round_trip(pair) / self.machine.best() - 1

    @property
    def covers(self) -> bool:
        assert self.choice.default is not None
        assert self.choice.rival is not None
        assert self.choice.verdict is not None
        truth = self.machine.round_trip(self.choice.default) / self.machine.round_trip(self.choice.rival)
        return self.choice.verdict.ci95.low <= truth <= self.choice.verdict.ci95.high


def simulate_sweep(seed: int, *, default_factor: float, alike: bool = False, **grid: Any) -> SimulatedSweep:
    plan = make_plan(seed=seed, **grid)
    machine = Machine(plan, seed=seed, default_factor=default_factor, alike=alike)
    return SimulatedSweep(machine, choose_config(plan, machine.run()))
