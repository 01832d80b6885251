"""The body of one shard's job: measures the shard's points that have no record yet, and records them."""

from __future__ import annotations

from collections.abc import Iterator

from bench.records import Line, Record, Role
from bench.supervisor import Effort, Supervisor, Task
from launcher.plan import ANCHOR_EVERY, Plan, Planned
from launcher.progress import ShardProgress
from launcher.store import RunFolder


def run(folder: RunFolder, index: int, *, job_id: str | None = None) -> None:
    """Measures what is missing of a shard. bench.supervisor.StartFailure when the ranks cannot be started."""
    plan = folder.plan()
    done = recorded(folder.shard_lines(index))
    missing = [planned for planned in plan.shard(index) + plan.baselines if planned.id not in done]
    if not missing and all(anchor.id in done for anchor in plan.anchors):
        return
    tasks = list(in_order(plan, missing))
    measure = plan.spec.measure
    name = f"shard {index}"
    with folder.appender(index) as appender, ShardProgress(len(tasks), name=name) as progress:
        supervisor = Supervisor(
            plan.group_spec(),
            Effort(measure.warmup, measure.iterations, measure.deadline_s, measure.startup_s),
            anchor=_task(plan.anchors[0]),
            sink=appender.add,
            log_folder=folder.log_folder(index),
            shard=index,
            job_id=job_id,
        )
        progress.note(f"{name}: {len(tasks)} points, starting {plan.spec.ep.size} ranks")
        for record in supervisor.run(tasks):
            progress.add(record)


def recorded(lines: list[Line]) -> set[str]:
    """The ids of the points that have a record, measured or failed: a failure is a result."""
    return {line.point_id for line in lines if isinstance(line, Record)}


def in_order(plan: Plan, missing: list[Planned]) -> Iterator[Task]:
    """The anchors first, about every 25 points, and last; baselines right after the first anchors."""
    yield from map(_task, plan.anchors)
    points = sorted(missing, key=lambda planned: planned.role is not Role.BASELINE)
    for number, planned in enumerate(points, start=1):
        yield _task(planned)
        if number % ANCHOR_EVERY == 0 and number < len(points):
            yield from map(_task, plan.anchors)
    if points:
        yield from map(_task, plan.anchors)


def _task(planned: Planned) -> Task:
    return Task(planned.point, planned.id, planned.role)
