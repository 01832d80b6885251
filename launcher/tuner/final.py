"""The body of the final: the best configs, the default and the user's own, in fresh process groups on one allocation.

Its times replace those of the sweep in the report, because a winner of the sweep won partly by luck.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from bench.backends import shuffle_points
from bench.records import Measured, Op, Point, Record, Role, Stage
from bench.stats import UNSTABLE_SPREAD, spread
from bench.supervisor import Supervisor, Task
from launcher.config.plan import FINAL, Plan, point_id
from launcher.store.records_file import open_appender, read_shard, read_shard_records, read_sweep_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import passes, shard
from launcher.tuner.kernels import compile_ahead
from launcher.tuner.progress import ShardProgress
from launcher.tuner.racing import Arms
from launcher.tuner.schedule import contestants, failed_labels
from launcher.tuner.shard import Stop, never

_PASS_WARMUP = 1
_PASS_ITERATIONS = 6
_GEMMS_ITERATIONS = 2

MOST_AGAIN = 2
"""How often a repetition of a group that is off is measured again."""

_OFF = 0.02
"""A repetition whose median is further than this from the config's in the other groups is off."""


def run(folder: RunFolder, *, job_id: str | None = None, stop: Stop = never, quiet: bool = False) -> bool:
    """Measures the incomplete rounds; whether all are complete now. True also where there is nothing to compare.

    Raises bench.supervisor.StartError when the ranks cannot be started.
    """
    plan = folder.plan()
    arms = Arms(read_sweep_records(folder)) if plan.has_final else Arms()
    earlier = read_shard(folder, FINAL)
    records = [line for line in earlier if isinstance(line, Record)]
    rounds = incomplete(plan, arms, records)
    if not rounds:
        return True
    with open_appender(folder, FINAL) as appender, ShardProgress(name="final", quiet=quiet) as progress:
        budget_s = shard.left_s(plan, earlier, share=shard.FINAL_SHARE)
        points = [anchor.point for anchor in plan.anchors] + [point for _, points in rounds for point in points]
        ahead = partial(compile_ahead, plan, points, progress=progress, stop=stop)
        supervisor = shard.supervise(
            plan, folder, FINAL, earlier, ahead=ahead, budget_s=budget_s, sink=appender.add, job_id=job_id
        )
        progress.note(f"final: {shard.first_step(plan, budget_s)}")
        for record in supervisor.run(_tasks(plan, arms, records, supervisor=supervisor, progress=progress, stop=stop)):
            records.append(record)
            progress.add(record)
    return not incomplete(plan, arms, records)


def is_complete(folder: RunFolder) -> bool:
    """Whether every round has its records; the sweep's records decide what the rounds are."""
    plan = folder.plan()
    arms = Arms(read_sweep_records(folder)) if plan.has_final else Arms()
    return not incomplete(plan, arms, read_shard_records(folder, FINAL))


_Rounds = list[tuple[int, list[Point]]]


def incomplete(plan: Plan, arms: Arms, records: Sequence[Record]) -> _Rounds:
    """The rounds in which a point has no record; points that failed need none."""
    failed, recorded = failed_labels(records), defaultdict[int, set[str]](set)
    for record in records:
        recorded[record.round].add(record.point.label)
    return [
        (number, points)
        for number, points in contestants(plan, arms, records).rounds(plan)
        if any(point.label not in recorded[number] | failed for point in points)
    ]


def _tasks(
    plan: Plan,
    arms: Arms,
    records: list[Record],
    *,
    supervisor: Supervisor,
    progress: ShardProgress,
    stop: Stop,
) -> Iterator[Task]:
    """Each group in fresh processes, its passes in the same ones; an interrupted round starts again.

    ``records`` grow while the tasks are taken: points that failed are not tried again.
    """
    num_groups = plan.spec.search.final_groups
    tried: set[int] = set()
    while rounds := [each for each in incomplete(plan, arms, records) if each[0] not in tried]:
        number, points = rounds[0]
        tried.add(number)
        failed = failed_labels(records)
        tasks = in_order(plan, [point for point in points if point.label not in failed], number)
        if number < num_groups:
            supervisor.renew()
            progress.expect(len(tasks), what=f"group {number + 1} of {num_groups}")
        else:
            progress.expect(len(tasks), what=_describe(number - num_groups))
        for task in tasks:
            if stop():
                return
            yield task
        for _ in range(MOST_AGAIN if number < num_groups else 0):
            again = off(records, number, num_groups=num_groups)
            progress.expect(len(again), what=f"group {number + 1} of {num_groups}")
            for task in again:
                if stop():
                    return
                yield task


def _describe(number: int) -> str:
    """A pass, from 0, in words."""
    if number < passes.PASSES:
        return f"overlapped with GEMMs, pass {number + 1} of {passes.PASSES}"
    if number < passes.PASSES + passes.LAYER_PASSES:
        return f"layers, pass {number - passes.PASSES + 1} of {passes.LAYER_PASSES}"
    return f"overlapped pairs that are not told apart yet, pass {number - passes.LAYER_PASSES + 1}"


def off(records: Sequence[Record], number: int, *, num_groups: int) -> list[Task]:
    """The points of a group whose last repetition was off, each once more.

    Its samples scatter too much even after the extension, or its median is not where the other groups have it. The
    default has three repetitions in each group and is never among them; its control is, like any other config, and
    stays a control. ``records``: of the final, or of one repeat.
    """
    medians: dict[tuple[str, bool], dict[int, float]] = defaultdict(dict)
    last: dict[tuple[str, bool], Record] = {}
    for record in records:
        if record.role is Role.ANCHOR or record.round >= num_groups or not isinstance(record.outcome, Measured):
            continue
        contestant = record.point.label, record.role is Role.CONTROL
        medians[contestant][record.round] = statistics.median(record.outcome.samples_us)
        if record.round == number:
            last[contestant] = record
    failed = failed_labels(records)
    return [
        Task(record.point, record.point_id, Role.CONTROL if is_control else Role.AGAIN, record.stage, number)
        for (label, is_control), record in last.items()
        if label not in failed and _is_off(record, medians[label, is_control], number)
    ]


def _is_off(record: Record, medians: dict[int, float], number: int) -> bool:
    assert isinstance(record.outcome, Measured)
    others = [median for group, median in medians.items() if group != number]
    typical = statistics.median(others) if len(others) > 1 else medians[number]
    is_away = abs(math.log(medians[number] / typical)) > _OFF
    return is_away or spread(record.outcome.samples_us) > UNSTABLE_SPREAD


def in_order(plan: Plan, points: list[Point], number: int) -> list[Task]:
    """The tasks of one round, in its own order.

    GEMMs heat the GPUs until they hit their power cap. Isolated GEMMs run before and after each pair: their time shows
    what the cap does at that moment.
    """
    if number >= plan.spec.search.final_groups:
        return _pass(plan, shuffle_points(points, lambda point: point, seed=f"{plan.spec.seed}/final/{number}"), number)
    return group(plan, points, number)


def group(plan: Plan, points: list[Point], number: int, *, repeat: int | None = None) -> list[Task]:
    """The tasks of one group of the final, or of a repeat, in its own order.

    The anchors first, in the middle and last, and as references wherever ranks replace failed ones. Each anchor is
    there once more as its own control, somewhere among the others.
    """
    place, stage = (f"{number}", Stage.FINAL) if repeat is None else (f"repeat {repeat}/{number}", Stage.REPEAT)
    order = shuffle_points(points, lambda point: point, seed=f"{plan.spec.seed}/final/{place}")
    anchors = [Task(anchor.point, anchor.id, Role.ANCHOR, stage, number) for anchor in plan.anchors]
    tasks = [
        Task(point, point_id(plan.spec, point), Role.GRID, stage, number, references=tuple(anchors)) for point in order
    ]
    chance = random.Random(f"{plan.spec.seed}/control/{place}")  # noqa: S311
    for anchor in plan.anchors:
        control = Task(anchor.point, anchor.id, Role.CONTROL, stage, number, references=tuple(anchors))
        tasks.insert(chance.randint(0, len(tasks)), control)
    half = len(tasks) // 2
    return anchors + tasks[:half] + anchors + tasks[half:] + anchors


def _pass(plan: Plan, order: list[Point], number: int) -> list[Task]:
    """Isolated GEMMs first, between all pairs and last, and as references wherever ranks replace failed ones."""

    def task(point: Point, iterations: int, *references: Task) -> Task:
        return Task(
            point, point_id(plan.spec, point), Role.GRID, Stage.FINAL, number, _PASS_WARMUP, iterations, references
        )

    gemms = next(task(point, _GEMMS_ITERATIONS) for point in order if point.op is Op.COMPUTE)
    tasks = [gemms]
    for point in order:
        if point.op is not Op.COMPUTE:
            tasks += [task(point, _PASS_ITERATIONS, gemms), gemms]
    return tasks
