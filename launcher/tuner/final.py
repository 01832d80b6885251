"""The body of the final: the best configs, the default and the user's own, in fresh process groups on one allocation.

Only what is measured here is reported as a result: a winner of the sweep won partly by luck.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from bench.backends import BACKENDS, join_pair
from bench.records import Dtype, Failed, Op, Point, Record, Role, Stage
from bench.supervisor import Supervisor, Task
from launcher.config.plan import FINAL, Plan, Planned, point_id
from launcher.store.records_file import open_appender, read_shard, read_shard_records, read_sweep_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import racing, shard
from launcher.tuner.progress import ShardProgress
from launcher.tuner.racing import Arms
from launcher.tuner.shard import Stop, never

PASSES = 9
"""RecordTable of each overlapped pair; what is compared is what one pass measured."""

_PASS_WARMUP = 1
_PASS_ITERATIONS = 3
_ALONE_ITERATIONS = 2


class Programme(NamedTuple):
    """What the final measures: in every group, and in the passes beside GEMMs."""

    finalists: list[Point]
    overlapped: list[Point]
    compute: list[Point]

    def rounds(self, plan: Plan) -> Iterator[tuple[int, list[Point]]]:
        """Each round's number and points: the groups first, the passes numbered on behind them."""
        num_groups = plan.spec.search.final_groups
        for number in range(num_groups if self.finalists else 0):
            yield number, self.finalists
        for number in range(PASSES if self.overlapped else 0):
            yield num_groups + number, self.overlapped + self.compute


def run(folder: RunFolder, *, job_id: str | None = None, stop: Stop = never, quiet: bool = False) -> bool:
    """Measures the rounds that are not complete yet; whether all are now. True also where there is nothing to compare.

    bench.supervisor.StartError when the ranks cannot be started.
    """
    plan = folder.plan()
    programme = contestants(plan, Arms(read_sweep_records(folder)) if plan.has_final else Arms())
    earlier = read_shard(folder, FINAL)
    records = [line for line in earlier if isinstance(line, Record)]
    wanted = _incomplete(plan, programme, records)
    if not wanted:
        return True
    with open_appender(folder, FINAL) as appender, ShardProgress(name="final", quiet=quiet) as progress:
        budget_s = shard.left_s(plan, earlier, share=shard.FINAL_SHARE)
        progress.note(f"final: {shard.beginning(plan, budget_s)}")
        supervisor = shard.supervise(plan, folder, FINAL, earlier, budget_s=budget_s, sink=appender.add, job_id=job_id)
        for record in supervisor.run(
            _tasks(plan, wanted, records, supervisor=supervisor, progress=progress, stop=stop)
        ):
            records.append(record)
            progress.add(record)
    return not _incomplete(plan, programme, records)


def is_complete(folder: RunFolder) -> bool:
    """Whether every round has its records, as far as the sweep's records say what the rounds are."""
    plan = folder.plan()
    programme = contestants(plan, Arms(read_sweep_records(folder)) if plan.has_final else Arms())
    return not _incomplete(plan, programme, read_shard_records(folder, FINAL))


def contestants(plan: Plan, arms: Arms) -> Programme:
    """Decided by the sweep alone; empty without a final, and where nothing was measured."""
    chosen = racing.finalists(plan, arms) if plan.has_final else []
    known = [one for one in plan.anchors if arms.level(one.id) is not None]
    if not plan.has_final or not (chosen or known):
        return Programme([], [], [])
    gemms = [Point(plan.spec.backend, Op.COMPUTE, Dtype.BF16, {})] if plan.overlaps else []
    return Programme(plan.final_points(chosen), _pairs(plan, chosen, arms) if plan.overlaps else [], gemms)


def _pairs(plan: Plan, chosen: list[Planned], arms: Arms) -> list[Point]:
    """The best pair for each value of the shared knobs, and the default."""
    best: dict[tuple[object, ...], dict[Op, Planned]] = {}
    for (op, *shared), group in racing.groups(plan, [*plan.anchors, *chosen]).items():
        known = [one for one in group if one.id not in arms.failed and arms.level(one.id) is not None]
        if known and isinstance(op, Op):
            best.setdefault(tuple(shared), {})[op] = min(known, key=lambda one: (arms.level(one.id) or 0.0, one.id))
    backend = BACKENDS[plan.spec.backend]
    pairs = [(ops[Op.DISPATCH], ops[Op.COMBINE]) for ops in best.values() if Op.DISPATCH in ops and Op.COMBINE in ops]
    default = (plan.anchors[0], plan.anchors[1])
    unique = {pair[0].id + pair[1].id: pair for pair in [*pairs, default]}
    return [
        join_pair(backend, plan.spec.workload.dtype, dispatch=one.point.knobs, combine=other.point.knobs)
        for one, other in unique.values()
    ]


_Rounds = list[tuple[int, list[Point]]]


def _incomplete(plan: Plan, programme: Programme, records: list[Record]) -> _Rounds:
    """The rounds in which a point has no record; those that failed are not waited for."""
    failed, seen = _failed(records), defaultdict[int, set[str]](set)
    for record in records:
        seen[record.round].add(record.point.label)
    return [
        (number, points)
        for number, points in programme.rounds(plan)
        if any(point.label not in seen[number] | failed for point in points)
    ]


def _failed(records: list[Record]) -> set[str]:
    """Labels of what failed in the final: no later round can make a result of it. GEMMs alone are no candidates."""
    return {one.point.label for one in records if isinstance(one.outcome, Failed) and one.point.op is not Op.COMPUTE}


def _tasks(
    plan: Plan,
    wanted: _Rounds,
    records: list[Record],
    *,
    supervisor: Supervisor,
    progress: ShardProgress,
    stop: Stop,
) -> Iterator[Task]:
    """Each group in fresh processes, the passes all in the last; an interrupted round anew.

    ``records`` grow while the tasks are taken: what failed is not tried again.
    """
    num_groups = plan.spec.search.final_groups
    for number, planned in wanted:
        failed = _failed(records)
        points = [point for point in planned if point.label not in failed]
        tasks = in_order(plan, points, number)
        if number < num_groups:
            supervisor.renew()
            progress.expect(len(tasks), what=f"group {number + 1} of {num_groups}")
        else:
            progress.expect(len(tasks), what=f"beside GEMMs, pass {number - num_groups + 1} of {PASSES}")
        for task in tasks:
            if stop():
                return
            yield task


def in_order(plan: Plan, points: list[Point], number: int) -> list[Task]:
    """What one round measures, in its own order.

    GEMMs heat the GPUs until they hit their power cap, so that nothing else is timed once they have begun. They run
    alone before and after each pair: what they take tells what the cap does at that moment.
    """
    order = list(points)
    random.Random(f"{plan.spec.seed}/final/{number}").shuffle(order)  # noqa: S311
    return (_group if number < plan.spec.search.final_groups else _pass)(plan, order, number)


def _group(plan: Plan, order: list[Point], number: int) -> list[Task]:
    """The anchors first, in the middle and last; before any point, if its ranks replace some that failed."""
    anchors = [Task(one.point, one.id, Role.ANCHOR, Stage.FINAL, number) for one in plan.anchors]
    tasks = [
        Task(point, point_id(plan.spec, point), Role.GRID, Stage.FINAL, number, references=tuple(anchors))
        for point in order
    ]
    half = len(tasks) // 2
    return anchors + tasks[:half] + anchors + tasks[half:] + anchors


def _pass(plan: Plan, order: list[Point], number: int) -> list[Task]:
    """GEMMs alone between all pairs, first and last, and before a pair whose ranks replace some that failed."""

    def task(point: Point, iterations: int, *references: Task) -> Task:
        return Task(
            point, point_id(plan.spec, point), Role.GRID, Stage.FINAL, number, _PASS_WARMUP, iterations, references
        )

    alone = next(task(point, _ALONE_ITERATIONS) for point in order if point.op is Op.COMPUTE)
    tasks = [alone]
    for point in order:
        if point.op is not Op.COMPUTE:
            tasks += [task(point, _PASS_ITERATIONS, alone), alone]
    return tasks
