"""The body of one shard's job: measures the shard's points that have no record yet, and records them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.records import Role
from bench.supervisor import Effort, Supervisor, Task
from launcher.plan import ANCHOR_EVERY, Plan, Planned
from launcher.progress import ShardProgress
from launcher.store import RunFolder


def run(folder: RunFolder, index: int, *, job_id: str | None = None, stop: Callable[[], bool] = lambda: False) -> bool:
    """Measures what is missing of a shard, until ``stop`` says so; whether nothing is missing now.

    bench.supervisor.StartFailure when the ranks cannot be started.
    """
    plan = folder.plan()
    missing = lacking(plan, folder, index)
    if not missing:
        return True
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
        for record in supervisor.run(_until(stop, tasks)):
            progress.add(record)
    return not lacking(plan, folder, index)


def lacking(plan: Plan, folder: RunFolder, index: int) -> list[Planned]:
    """The shard's points without a record, its own anchors and baselines included; a failure is a record."""
    done = folder.progress(index).done
    return [planned for planned in plan.anchors + plan.baselines + plan.shard(index) if planned.id not in done]


def _until(stop: Callable[[], bool], tasks: list[Task]) -> Iterator[Task]:
    for task in tasks:
        if stop():
            return
        yield task


def in_order(plan: Plan, missing: list[Planned]) -> Iterator[Task]:
    """The anchors first, about every 25 points, and last; baselines right after the first anchors."""
    yield from map(_task, plan.anchors)
    points = sorted(
        (one for one in missing if one.role is not Role.ANCHOR), key=lambda planned: planned.role is not Role.BASELINE
    )
    for number, planned in enumerate(points, start=1):
        yield _task(planned)
        if number % ANCHOR_EVERY == 0 and number < len(points):
            yield from map(_task, plan.anchors)
    if points:
        yield from map(_task, plan.anchors)


def _task(planned: Planned) -> Task:
    return Task(planned.point, planned.id, planned.role)
