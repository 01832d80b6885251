"""The body of one shard's job: measures, round by round, what the search wants and no record has yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from bench.records import Role, Stage
from bench.supervisor import Effort, Supervisor, Task
from launcher import search
from launcher.plan import ANCHOR_EVERY, Plan, Planned
from launcher.progress import ShardProgress
from launcher.search import Arms
from launcher.store import RunFolder

Stop = Callable[[], bool]
Seen = set[str]

FINAL_SHARE = 0.4
"""The part of a budget that is kept for the final."""


def never() -> bool:
    """For jobs that nobody stops."""
    return False


def run(folder: RunFolder, index: int, *, job_id: str | None = None, stop: Stop = never) -> bool:
    """Measures what a shard lacks, until ``stop`` says so; whether nothing is missing now.

    bench.supervisor.StartFailure when the ranks cannot be started.
    """
    plan = folder.plan()
    arms, done = Arms(), Seen()
    for record in folder.shard_records(index):
        arms.add(record)
        done.add(record.point_id)
    if _is_complete(plan, arms, done, index):
        return True
    name = f"shard {index}"
    stop = within_budget(plan, stop, share=1 - FINAL_SHARE if plan.spec.search.final_groups else 1.0)
    with folder.appender(index) as appender, ShardProgress(name=name) as progress:
        progress.note(f"{name}: starting {plan.spec.ep.size} ranks")
        supervisor = supervise(plan, folder, index, sink=appender.add, job_id=job_id)
        for record in supervisor.run(_tasks(plan, index, arms=arms, done=done, progress=progress, stop=stop)):
            arms.add(record)
            done.add(record.point_id)
            progress.add(record)
    return _is_complete(plan, arms, done, index)


def supervise(
    plan: Plan,
    folder: RunFolder,
    index: int,
    *,
    sink: Callable[..., None],
    job_id: str | None,
    first_group: int = 0,
) -> Supervisor:
    """The supervisor of a shard or of the final."""
    measure = plan.spec.measure
    return Supervisor(
        plan.group_spec(),
        Effort(measure.warmup, measure.iterations, measure.deadline_s, measure.startup_s),
        anchor=Task(plan.anchors[0].point, plan.anchors[0].id, Role.ANCHOR),
        sink=sink,
        log_folder=folder.log_folder(index),
        shard=index,
        job_id=job_id,
        first_group=first_group,
    )


def within_budget(plan: Plan, stop: Stop, *, share: float) -> Stop:
    """``stop``, or the share of search.budget_s is spent, counted from now."""
    budget_s, began = plan.spec.search.budget_s, time.monotonic()
    if budget_s is None:
        return stop
    limit_s = share * budget_s
    return lambda: stop() or time.monotonic() - began > limit_s


def is_complete(plan: Plan, folder: RunFolder, index: int) -> bool:
    """Whether every round of the search has its records, the shard's own anchors and baselines included."""
    records = folder.shard_records(index)
    return _is_complete(plan, Arms(records), {record.point_id for record in records}, index)


def _is_complete(plan: Plan, arms: Arms, done: Seen, index: int) -> bool:
    needed = plan.anchors + plan.baselines
    return all(one.id in done for one in needed) and search.next_round(plan, plan.shard(index), arms) is None


def _tasks(plan: Plan, index: int, *, arms: Arms, done: Seen, progress: ShardProgress, stop: Stop) -> Iterator[Task]:
    """Round after round; ``arms`` and ``done`` grow while the tasks are taken."""
    cells = plan.shard(index)
    baselines = [one for one in plan.baselines if one.id not in done]
    while not stop():
        wanted = search.next_round(plan, cells, arms)
        number, missing = wanted or (0, [])
        if not missing and not baselines and all(anchor.id in done for anchor in plan.anchors):
            return
        tasks = list(in_order(plan, baselines + missing, number))
        baselines = []
        progress.expect(len(tasks), what=f"round {number + 1} of {plan.spec.search.rounds}")
        for task in tasks:
            if stop():
                return
            yield task


def in_order(plan: Plan, points: list[Planned], number: int) -> Iterator[Task]:
    """The anchors first, about every 25 points, and last."""
    settings = plan.spec.search
    anchors = [Task(one.point, one.id, Role.ANCHOR, Stage.SWEEP, number) for one in plan.anchors]
    yield from anchors
    for position, planned in enumerate(points, start=1):
        if planned.role is Role.BASELINE:  # it has no final, so it gets all its samples here
            yield Task(planned.point, planned.id, planned.role, Stage.SWEEP, number)
        else:
            yield Task(
                planned.point, planned.id, planned.role, Stage.SWEEP, number, settings.warmup, settings.iterations
            )
        if position % ANCHOR_EVERY == 0 and position < len(points):
            yield from anchors
    if points:
        yield from anchors
