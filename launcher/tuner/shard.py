"""The body of one shard's job: measures, round by round, the points of the search that have no record yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from bench.records import Host, Line, Point, Record, Role, Stage
from bench.supervisor import Effort, Supervisor, Task, check_libraries
from launcher.config.plan import ANCHOR_EVERY, Plan, Planned, shard_name
from launcher.store.records_file import open_appender, read_shard, read_shard_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import racing
from launcher.tuner.kernels import compile_ahead
from launcher.tuner.progress import ShardProgress
from launcher.tuner.racing import Arms

Stop = Callable[[], bool]

FINAL_SHARE = 0.4
"""The part of search.budget_s that is reserved for the final."""


def never() -> bool:
    """A ``Stop`` that never stops."""
    return False


def run(folder: RunFolder, index: int, *, job_id: str | None = None, stop: Stop = never, quiet: bool = False) -> bool:
    """Measures the missing points of a shard until ``stop`` returns True; whether the shard is complete now.

    Raises bench.supervisor.StartError when the ranks cannot be started.
    """
    plan = folder.plan()
    arms, done = Arms(), set[str]()
    earlier = read_shard(folder, index)
    for line in earlier:
        if isinstance(line, Record):
            arms.add(line)
            done.add(line.point_id)
    if _is_complete(plan, arms, done, index):
        return True
    name = shard_name(index)
    share = 1 - FINAL_SHARE if plan.has_final else 1.0
    with open_appender(folder, index) as appender, ShardProgress(name=name, quiet=quiet) as progress:
        budget_s = left_s(plan, earlier, share=share)
        ahead = partial(compile_ahead, plan, _alive(plan, index, arms), progress=progress, stop=stop)
        supervisor = supervise(
            plan, folder, index, earlier, ahead=ahead, budget_s=budget_s, sink=appender.add, job_id=job_id
        )
        progress.note(f"{name}: {first_step(plan, budget_s)}")
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
    ahead: Callable[..., float],
    budget_s: float,
    sink: Callable[..., None],
    job_id: str | None,
) -> Supervisor:
    """The supervisor of a shard or of the final, after ``ahead`` has compiled kernels and returned how long it took.

    It continues the numbers of groups and records in ``earlier``. The budget includes the compiling.

    StartError if ranks would start and a library cannot run on this machine.
    """
    measure, spec = plan.spec.measure, plan.group_spec()
    if budget_s > 0:
        check_libraries(spec)
    compile_s = ahead(budget_s=budget_s, log_folder=folder.log_folder(index))
    return Supervisor(
        spec,
        Effort(measure.warmup, measure.iterations, measure.deadline_s, measure.startup_s),
        anchors=[Task(planned.point, planned.id, planned.role) for planned in plan.anchors + plan.baselines],
        sink=sink,
        log_folder=folder.log_folder(index),
        shard=index,
        job_id=job_id,
        first_group=1 + max((line.group for line in earlier if isinstance(line, Host | Record)), default=-1),
        first_sequence=1 + max((line.sequence for line in earlier if isinstance(line, Record)), default=-1),
        budget_s=budget_s - compile_s,
        compile_s=compile_s,
    )


def first_step(plan: Plan, budget_s: float) -> str:
    """The first step of an attempt, in words."""
    return f"starting {plan.spec.ep.size} ranks" if budget_s > 0 else "search.budget_s was spent by earlier attempts"


def left_s(plan: Plan, earlier: Sequence[Line], *, share: float) -> float:
    """Seconds left of a share of search.budget_s after earlier attempts; infinite without a budget."""
    budget_s = plan.spec.search.budget_s
    return math.inf if budget_s is None else share * budget_s - spent_s(earlier)


def spent_s(earlier: Sequence[Line]) -> float:
    """Seconds that attempts at a shard took: from each start of ranks to the last record before the next start.

    Kernels that were compiled before a start count, too.

    ``earlier``: the lines of the shard, oldest first. A repetition that was running when its attempt was killed has no
    line and is not counted.
    """
    total_s = began = ended = 0.0
    for line in earlier:
        if isinstance(line, Host):
            total_s += ended - began
            began, ended = line.started - line.compile_s, line.started + line.startup_s
        elif isinstance(line, Record):
            ended = max(ended, line.started + line.wall_s)
    return total_s + ended - began


def is_complete(plan: Plan, folder: RunFolder, index: int) -> bool:
    """Whether the anchors, the baselines and every round of the search have their records."""
    records = read_shard_records(folder, index)
    return _is_complete(plan, Arms(records), {record.point_id for record in records}, index)


def _is_complete(plan: Plan, arms: Arms, done: set[str], index: int) -> bool:
    references = plan.anchors + plan.baselines
    has_references = all(planned.id in done for planned in references)
    return has_references and racing.next_round(plan, plan.shard(index), arms) is None


def _alive(plan: Plan, index: int, arms: Arms) -> list[Point]:
    """The points that the shard may still measure: the anchors, and what is left of its cells."""
    cells = plan.shard(index)
    number, _ = racing.next_round(plan, cells, arms) or (None, [])
    left = [] if number is None else racing.survivors(plan, cells, arms, round_number=number)
    return [planned.point for planned in plan.anchors + left]


def _tasks(
    plan: Plan, index: int, *, arms: Arms, done: set[str], progress: ShardProgress, stop: Stop
) -> Iterator[Task]:
    """Round after round; ``arms`` and ``done`` grow while the tasks are taken."""
    cells = plan.shard(index)
    baselines = [baseline for baseline in plan.baselines if baseline.id not in done]
    while not stop():
        number, missing = racing.next_round(plan, cells, arms) or (0, [])
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
    """The anchors first, every ANCHOR_EVERY points and last, and as references wherever ranks replace failed ones."""
    search = plan.spec.search
    anchors = tuple(Task(anchor.point, anchor.id, Role.ANCHOR, Stage.SWEEP, number) for anchor in plan.anchors)
    yield from anchors
    for position, planned in enumerate(points, start=1):
        task = Task(planned.point, planned.id, planned.role, Stage.SWEEP, number, references=anchors)
        if planned.role is Role.BASELINE:  # no final will measure it, so it takes all its samples here
            yield task
        else:
            yield msgspec.structs.replace(task, warmup=search.warmup, iterations=search.iterations)
        if position % ANCHOR_EVERY == 0 and position < len(points):
            yield from anchors
    if points:
        yield from anchors
