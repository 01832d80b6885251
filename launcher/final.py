"""The body of the final: the best configs, the default and the user's own, in fresh process groups on one allocation.

Only what is measured here is reported as a result: a winner of the sweep won partly by luck.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from bench.backends import BACKENDS, join_pair
from bench.records import Dtype, Op, Point, Record, Role, Stage
from bench.supervisor import Supervisor, Task
from launcher import search, shard
from launcher.plan import FINAL, Plan, Planned, point_id
from launcher.progress import ShardProgress
from launcher.search import Arms
from launcher.shard import Stop, never
from launcher.store import RunFolder

PASSES = 12
"""Visits of each overlapped pair; what is compared is what one pass measured."""

_PASS_WARMUP = 1
_PASS_ITERATIONS = 4


class Programme(NamedTuple):
    """What the final measures: in every group, and in the passes beside GEMMs."""

    finalists: list[Point]
    overlapped: list[Point]

    def rounds(self, plan: Plan) -> Iterator[tuple[int, list[Point]]]:
        """Each round's number and points: the groups first, the passes numbered on behind them."""
        num_groups = plan.spec.search.final_groups
        for number in range(num_groups if self.finalists else 0):
            yield number, self.finalists
        for number in range(PASSES if self.overlapped else 0):
            yield num_groups + number, self.overlapped


def run(folder: RunFolder, *, job_id: str | None = None, stop: Stop = never) -> bool:
    """Measures the rounds that are not complete yet; whether all are now. True also where there is nothing to compare.

    bench.supervisor.StartFailure when the ranks cannot be started.
    """
    plan = folder.plan()
    programme = contestants(plan, Arms(folder.sweep_records()) if plan.has_final else Arms())
    records = folder.shard_records(FINAL)
    wanted = _incomplete(plan, programme, records)
    if not wanted:
        return True
    stop = shard.within_budget(plan, stop, share=shard.FINAL_SHARE)
    with folder.appender(FINAL) as appender, ShardProgress(name="final") as progress:
        first_group = 1 + max((record.group for record in records), default=-1)
        supervisor = shard.supervise(plan, folder, FINAL, sink=appender.add, job_id=job_id, first_group=first_group)
        for record in supervisor.run(_tasks(plan, wanted, supervisor, progress, stop)):
            records.append(record)
            progress.add(record)
    return not _incomplete(plan, programme, records)


def contestants(plan: Plan, arms: Arms) -> Programme:
    """Decided by the sweep alone; empty without a final, and where nothing was measured."""
    chosen = search.finalists(plan, arms) if plan.has_final else []
    known = [one for one in plan.anchors if arms.level(one.id) is not None]
    if not plan.has_final or not (chosen or known):
        return Programme([], [])
    return Programme(plan.final_points(chosen), _pairs(plan, chosen, arms) if plan.overlaps else [])


def _pairs(plan: Plan, chosen: list[Planned], arms: Arms) -> list[Point]:
    """GEMMs alone, and beside them the best pair for each value of the shared knobs; the default too."""
    best: dict[tuple[object, ...], dict[Op, Planned]] = {}
    for (op, *shared), group in search.groups(plan, [*plan.anchors, *chosen]).items():
        known = [one for one in group if arms.level(one.id) is not None]
        if known and isinstance(op, Op):
            best.setdefault(tuple(shared), {})[op] = min(known, key=lambda one: (arms.level(one.id) or 0.0, one.id))
    backend = BACKENDS[plan.spec.backend]
    pairs = [(ops[Op.DISPATCH], ops[Op.COMBINE]) for ops in best.values() if Op.DISPATCH in ops and Op.COMBINE in ops]
    default = (plan.anchors[0], plan.anchors[1])
    unique = {pair[0].id + pair[1].id: pair for pair in [*pairs, default]}
    return [Point(backend.name, Op.COMPUTE, Dtype.BF16, {})] + [
        join_pair(backend, plan.spec.workload.dtype, dispatch=one.point.knobs, combine=other.point.knobs)
        for one, other in unique.values()
    ]


_Rounds = list[tuple[int, list[Point]]]


def _incomplete(plan: Plan, programme: Programme, records: list[Record]) -> _Rounds:
    """The rounds in which a point has no record."""
    seen: dict[int, set[str]] = defaultdict(set)
    for record in records:
        seen[record.round].add(record.point.label)
    return [
        (number, points)
        for number, points in programme.rounds(plan)
        if any(point.label not in seen[number] for point in points)
    ]


def _tasks(plan: Plan, wanted: _Rounds, supervisor: Supervisor, progress: ShardProgress, stop: Stop) -> Iterator[Task]:
    """Each group in fresh processes and in its own order, the passes all in the last; an interrupted round anew.

    GEMMs heat the GPUs until they hit their power cap, so that nothing else is timed once they have begun.
    """
    num_groups = plan.spec.search.final_groups
    for number, points in wanted:
        order = list(points)
        random.Random(f"{plan.spec.seed}/final/{number}").shuffle(order)  # noqa: S311
        if number < num_groups:
            supervisor.renew()
            tasks = _group(plan, order, number)
            progress.expect(len(tasks), what=f"group {number + 1} of {num_groups}")
        else:
            tasks = [_beside_gemms(plan, point, number) for point in order]
            progress.expect(len(tasks), what=f"beside GEMMs, pass {number - num_groups + 1} of {PASSES}")
        for task in tasks:
            if stop():
                return
            yield task


def _group(plan: Plan, order: list[Point], number: int) -> list[Task]:
    """The anchors first, in the middle and last."""
    anchors = [Task(one.point, one.id, Role.ANCHOR, Stage.FINAL, number) for one in plan.anchors]
    tasks = [Task(point, point_id(plan.spec, point), Role.GRID, Stage.FINAL, number) for point in order]
    half = len(tasks) // 2
    return anchors + tasks[:half] + anchors + tasks[half:] + anchors


def _beside_gemms(plan: Plan, point: Point, number: int) -> Task:
    return Task(point, point_id(plan.spec, point), Role.GRID, Stage.FINAL, number, _PASS_WARMUP, _PASS_ITERATIONS)
