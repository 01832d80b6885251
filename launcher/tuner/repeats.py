"""The body of a repeat: a short final of the same contestants, appended to a run to show how much runs scatter.

It measures isolated operations only, in fresh process groups with anchors of their own, perhaps on another machine. Its
records have a file and a stage of their own: those of the final stay as they are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from bench.backends import BACKENDS, shared_knobs
from bench.records import Environment, Line, Op, Point, Record, Role
from bench.supervisor import Supervisor, Task
from launcher.config.plan import FINAL, REPEAT_GROUPS, Plan, Planned, repeat_index, shard_name
from launcher.errors import UserError
from launcher.store.records_file import open_appender, read_shard, read_shard_records, read_sweep_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, racing, shard
from launcher.tuner.kernels import compile_ahead
from launcher.tuner.progress import ShardProgress
from launcher.tuner.racing import Arms, TimeOf
from launcher.tuner.schedule import failed_labels, group_times
from launcher.tuner.shard import Stop, never

FASTEST = 3
"""Values of the shared knobs, the fastest ones in the final, whose finalists are measured again."""


class Contestants(NamedTuple):
    """What every repeat of a run measures, and the environments of its final, one of which a repeat must have."""

    points: list[Point]
    environments: list[Environment]


def contestants(folder: RunFolder) -> Contestants:
    """What the repeats of a run measure; it stays the same as long as the final does."""
    plan = folder.plan()
    lines = read_shard(folder, FINAL)
    records = [line for line in lines if isinstance(line, Record)]
    points = choose(plan, Arms(read_sweep_records(folder)), records) if plan.has_final else []
    return Contestants(points, [line for line in lines if isinstance(line, Environment)])


def choose(plan: Plan, arms: Arms, records: Sequence[Record]) -> list[Point]:
    """The points of one group of a repeat without the anchors; ``records``: those of the complete final.

    For each library the finalists with the same shared knobs as the default, as the sweep's best config or as one of
    the FASTEST, and those that are there by name. Each dispatch is measured as a full dispatch too.
    """
    finalists = racing.finalists(plan, arms)
    times = group_times(plan, plan.final_points(finalists), records)

    def final_us(cell: Planned) -> float | None:
        return times.get(cell.point.label)

    kept = [cell for name in plan.spec.backends for cell in _kept(plan.of(name), finalists, arms, final_us)]
    failed = failed_labels(records)
    points = msgspec.structs.replace(plan, baselines=[]).final_points(kept)
    return [point for point in points if point.label not in failed]


def _kept(plan: Plan, finalists: list[Planned], arms: Arms, final_us: TimeOf) -> list[Planned]:
    own = [cell for cell in finalists if cell.point.backend == plan.backend]
    names = shared_knobs(BACKENDS[plan.backend])

    def shared(cell: Planned) -> tuple[int, ...]:
        return tuple(cell.point.knobs[name] for name in names)

    swept = racing.best_pair(plan, own, arms.time_us)
    kept = {shared(anchor) for anchor in plan.anchors} | {shared(cell) for cell in swept or ()}
    kept |= set(_by_time(plan, [*plan.anchors, *own], final_us)[:FASTEST])
    named = (Role.CANDIDATE, Role.DEFAULT)
    return [cell for cell in own if cell.role in named or shared(cell) in kept]


def _by_time(plan: Plan, cells: list[Planned], time_us: TimeOf) -> list[tuple[int, ...]]:
    """The values of the shared knobs, those of the fastest pair first; without those of no pair."""
    weights = dict(zip((Op.DISPATCH, Op.COMBINE), plan.spec.search.weights, strict=True))
    members: dict[tuple[int, ...], list[Planned]] = defaultdict(list)
    for race, racers in racing.races(plan, cells).items():
        members[race.shared] += racers
    totals = {}
    for shared, racers in members.items():
        pair = racing.best_pair(plan, racers, time_us)
        if pair is not None:
            totals[shared] = sum(weights[cell.point.op] * (time_us(cell) or 0.0) for cell in pair)
    return sorted(totals, key=lambda shared: (totals[shared], shared))


def missing(folder: RunFolder, measured: Contestants) -> list[int]:
    """The numbers of the planned repeats that lack records."""
    numbers = range(1, folder.plan().repeats + 1)
    return [number for number in numbers if _incomplete(measured.points, _records(folder, number))]


def _records(folder: RunFolder, number: int) -> list[Record]:
    return read_shard_records(folder, repeat_index(number))


def _incomplete(points: list[Point], records: Sequence[Record]) -> list[int]:
    """The groups in which a point has no record; points that failed need none."""
    failed, recorded = failed_labels(records), defaultdict[int, set[str]](set)
    for record in records:
        recorded[record.round].add(record.point.label)
    wanted = {point.label for point in points}
    return [number for number in range(REPEAT_GROUPS) if not wanted <= recorded[number] | failed]


def run(
    folder: RunFolder,
    number: int,
    measured: Contestants,
    *,
    job_id: str | None = None,
    stop: Stop = never,
    quiet: bool = False,
) -> bool:
    """Measures the incomplete groups of one repeat until ``stop``; whether all are complete now. No budget ends it.

    Raises bench.supervisor.StartError when the ranks cannot be started, UserError in an environment other than that of
    the final; then nothing is appended.
    """
    plan, index = folder.plan(), repeat_index(number)
    earlier = read_shard(folder, index)
    records = [line for line in earlier if isinstance(line, Record)]
    if not _incomplete(measured.points, records):
        return True
    with open_appender(folder, index) as appender, ShardProgress(name=shard_name(index), quiet=quiet) as progress:

        def append(line: Line) -> None:
            if isinstance(line, Environment):
                _refuse_other_environment(folder, measured.environments, line)
            appender.add(line)

        points = [anchor.point for anchor in plan.anchors] + measured.points
        ahead = partial(compile_ahead, plan, points, progress=progress, stop=stop)
        supervisor = shard.supervise(
            plan, folder, index, earlier, ahead=ahead, budget_s=math.inf, sink=append, job_id=job_id
        )
        progress.note(f"{shard_name(index)}: {shard.first_step(plan, math.inf)}")
        tasks = _tasks(plan, number, measured.points, records, supervisor=supervisor, progress=progress, stop=stop)
        for record in supervisor.run(tasks):
            records.append(record)
            progress.add(record)
    return not _incomplete(measured.points, records)


def _refuse_other_environment(folder: RunFolder, known: Sequence[Environment], found: Environment) -> None:
    """UserError unless the environment is one of those of the final; repeats without records are then unplanned."""
    if not known or found.id in {environment.id for environment in known}:
        return
    before, now = msgspec.structs.asdict(known[-1]), msgspec.structs.asdict(found)
    differences = [f"{name}: {before[name]} | {now[name]}" for name in before if before[name] != now[name]]
    plan = folder.plan()
    begun = [number for number in range(1, plan.repeats + 1) if _records(folder, number)]
    folder.write_plan(msgspec.structs.replace(plan, repeats=max(begun, default=0)))
    raise UserError(
        f"{folder.path} was measured in another environment than this: {'; '.join(differences)}",
        hint="repeats need the same kind of GPU, driver and versions; elsewhere start a sweep of its own",
    )


def _tasks(
    plan: Plan,
    repeat: int,
    points: list[Point],
    records: list[Record],
    *,
    supervisor: Supervisor,
    progress: ShardProgress,
    stop: Stop,
) -> Iterator[Task]:
    """Each group in fresh processes; an interrupted one starts again. ``records`` grow while the tasks are taken."""
    for number in _incomplete(points, records):
        failed = failed_labels(records)
        tasks = final.group(plan, [point for point in points if point.label not in failed], number, repeat=repeat)
        what = f"group {number + 1} of {REPEAT_GROUPS}"
        supervisor.renew()
        progress.expect(len(tasks), what=what)
        for task in tasks:
            if stop():
                return
            yield task
        for _ in range(final.MOST_AGAIN):
            again = final.off(records, number, num_groups=REPEAT_GROUPS)
            progress.expect(len(again), what=what)
            for task in again:
                if stop():
                    return
                yield task
