"""The body of one shard's job: measures, round by round, what the search wants and no record has yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import msgspec

from bench.records import Host, Line, Record, Role, Stage
from bench.supervisor import Effort, Supervisor, Task
from launcher.config.plan import ANCHOR_EVERY, Plan, Planned
from launcher.store.records_file import open_appender, read_shard, read_shard_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import racing
from launcher.tuner.progress import ShardProgress
from launcher.tuner.racing import Arms

Stop = Callable[[], bool]
Seen = set[str]

FINAL_SHARE = 0.4
"""The part of a budget that is kept for the final."""


def never() -> bool:
    """For jobs that nobody stops."""
    return False


def run(folder: RunFolder, index: int, *, job_id: str | None = None, stop: Stop = never, quiet: bool = False) -> bool:
    """Measures what a shard lacks, until ``stop`` says so; whether nothing is missing now. ``quiet``: no progress.

    bench.supervisor.StartError when the ranks cannot be started.
    """
    plan = folder.plan()
    arms, done = Arms(), Seen()
    earlier = read_shard(folder, index)
    for record in earlier:
        if isinstance(record, Record):
            arms.add(record)
            done.add(record.point_id)
    if _is_complete(plan, arms, done, index):
        return True
    name = f"shard {index}"
    share = 1 - FINAL_SHARE if plan.has_final else 1.0
    with open_appender(folder, index) as appender, ShardProgress(name=name, quiet=quiet) as progress:
        budget_s = left_s(plan, earlier, share=share)
        progress.note(f"{name}: {beginning(plan, budget_s)}")
        supervisor = supervise(plan, folder, index, earlier, budget_s=budget_s, sink=appender.add, job_id=job_id)
        for record in supervisor.run(_tasks(plan, index, arms=arms, done=done, progress=progress, stop=stop)):
            arms.add(record)
            done.add(record.point_id)
            progress.add(record)
    return _is_complete(plan, arms, done, index)


def supervise(
    plan: Plan,
    folder: RunFolder,
    index: int,
    earlier: Sequence[Line],
    *,
    budget_s: float,
    sink: Callable[..., None],
    job_id: str | None,
) -> Supervisor:
    """The supervisor of a shard or of the final; it numbers on from the lines of earlier attempts."""
    measure = plan.spec.measure
    return Supervisor(
        plan.group_spec(),
        Effort(measure.warmup, measure.iterations, measure.deadline_s, measure.startup_s),
        anchor=Task(plan.anchors[0].point, plan.anchors[0].id, Role.ANCHOR),
        sink=sink,
        log_folder=folder.log_folder(index),
        shard=index,
        job_id=job_id,
        first_group=1 + max((line.group for line in earlier if isinstance(line, Host | Record)), default=-1),
        first_sequence=1 + max((line.sequence for line in earlier if isinstance(line, Record)), default=-1),
        budget_s=budget_s,
    )


def beginning(plan: Plan, budget_s: float) -> str:
    """What an attempt does first, in words."""
    return f"starting {plan.spec.ep.size} ranks" if budget_s > 0 else "search.budget_s was spent by earlier attempts"


def left_s(plan: Plan, earlier: Sequence[Line], *, share: float) -> float:
    """What earlier attempts left of a share of search.budget_s; infinite without one."""
    budget_s = plan.spec.search.budget_s
    return math.inf if budget_s is None else share * budget_s - spent_s(earlier)


def spent_s(earlier: Sequence[Line]) -> float:
    """Seconds that attempts at a shard took: from each start of ranks to the last that these left.

    ``earlier``: the lines of the shard, oldest first. What an attempt did after its last line is not in it: a visit
    that was in flight when it was killed.
    """
    total_s = began = ended = 0.0
    for line in earlier:
        if isinstance(line, Host):
            total_s += ended - began
            began, ended = line.started, line.started + line.startup_s
        elif isinstance(line, Record):
            ended = max(ended, line.started + line.wall_s)
    return total_s + ended - began


def is_complete(plan: Plan, folder: RunFolder, index: int) -> bool:
    """Whether every round of the search has its records, the shard's own anchors and baselines included."""
    records = read_shard_records(folder, index)
    return _is_complete(plan, Arms(records), {record.point_id for record in records}, index)


def _is_complete(plan: Plan, arms: Arms, done: Seen, index: int) -> bool:
    needed = plan.anchors + plan.baselines
    return all(one.id in done for one in needed) and racing.next_round(plan, plan.shard(index), arms) is None


def _tasks(plan: Plan, index: int, *, arms: Arms, done: Seen, progress: ShardProgress, stop: Stop) -> Iterator[Task]:
    """Round after round; ``arms`` and ``done`` grow while the tasks are taken."""
    cells = plan.shard(index)
    baselines = [one for one in plan.baselines if one.id not in done]
    while not stop():
        wanted = racing.next_round(plan, cells, arms)
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
    """The anchors first, about every 25 points, and last; before any point, if its ranks replace some that failed."""
    settings = plan.spec.search
    anchors = tuple(Task(one.point, one.id, Role.ANCHOR, Stage.SWEEP, number) for one in plan.anchors)
    yield from anchors
    for position, planned in enumerate(points, start=1):
        task = Task(planned.point, planned.id, planned.role, Stage.SWEEP, number, references=anchors)
        if planned.role is Role.BASELINE:  # it has no final, so it gets all its samples here
            yield task
        else:
            yield msgspec.structs.replace(task, warmup=settings.warmup, iterations=settings.iterations)
        if position % ANCHOR_EVERY == 0 and position < len(points):
            yield from anchors
    if points:
        yield from anchors
