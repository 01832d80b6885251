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
from typing import NamedTuple

from bench.backends import BACKENDS, join_pair, shuffle_points, sms_knob
from bench.records import Dtype, Failed, Measured, Op, Point, Record, Role, Stage
from bench.stats import UNSTABLE_SPREAD, spread
from bench.supervisor import Supervisor, Task
from launcher.config.plan import FINAL, Plan, Planned, point_id
from launcher.store.records_file import open_appender, read_shard, read_shard_records, read_sweep_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import racing, shard
from launcher.tuner.kernels import compile_ahead
from launcher.tuner.progress import ShardProgress
from launcher.tuner.racing import Arms, Race, TimeOf
from launcher.tuner.shard import Stop, never

PASSES = 9
"""How often each overlapped pair is measured; pairs are compared within a pass."""

_PASS_WARMUP = 1
_PASS_ITERATIONS = 3
_GEMMS_ITERATIONS = 2

MOST_AGAIN = 2
"""How often a repetition of a group that is off is measured again."""

_OFF = 0.02
"""A repetition whose median is further than this from the config's in the other groups is off."""

FEW_SMS = 24
"""The SMs of the pair that is fastest with few, for which a whole layer is measured too."""


class Schedule(NamedTuple):
    """The points of the final: ``finalists`` in each group, all others in a pass, isolated ``gemms`` between them."""

    finalists: list[Point]
    overlapped: list[Point]
    layers: list[Point]
    gemms: list[Point]

    def rounds(self, plan: Plan) -> Iterator[tuple[int, list[Point]]]:
        """Each round's number and points: first the groups, then the passes, whose numbers continue."""
        num_groups = plan.spec.search.final_groups
        for number in range(num_groups if self.finalists else 0):
            yield number, self.finalists
        for number in range(PASSES if self.overlapped else 0):
            yield num_groups + number, self.overlapped + self.layers + self.gemms


def run(folder: RunFolder, *, job_id: str | None = None, stop: Stop = never, quiet: bool = False) -> bool:
    """Measures the incomplete rounds; whether all are complete now. True also where there is nothing to compare.

    Raises bench.supervisor.StartError when the ranks cannot be started.
    """
    plan = folder.plan()
    arms = Arms(read_sweep_records(folder)) if plan.has_final else Arms()
    earlier = read_shard(folder, FINAL)
    records = [line for line in earlier if isinstance(line, Record)]
    rounds = _incomplete(plan, arms, records)
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
    return not _incomplete(plan, arms, records)


def is_complete(folder: RunFolder) -> bool:
    """Whether every round has its records; the sweep's records decide what the rounds are."""
    plan = folder.plan()
    arms = Arms(read_sweep_records(folder)) if plan.has_final else Arms()
    return not _incomplete(plan, arms, read_shard_records(folder, FINAL))


def contestants(plan: Plan, arms: Arms, records: Sequence[Record] = ()) -> Schedule:
    """What the sweep's records put into the final; empty without a final, and where nothing was measured.

    ``records``: those of the final so far. The layers are of the pairs that its groups find fastest, once all groups
    are there; until then of those of the sweep.
    """
    finalists = racing.finalists(plan, arms) if plan.has_final else []
    has_default = any(arms.level(anchor.id) is not None for anchor in plan.anchors)
    if not plan.has_final or not (finalists or has_default):
        return Schedule([], [], [], [])
    libraries = [name for name in plan.spec.backends if plan.overlaps and BACKENDS[name].overlaps]
    gemms = [Point(libraries[0], Op.COMPUTE, Dtype.BF16, {})] if libraries else []
    overlapped = [point for name in libraries for point in _pairs(plan.of(name), finalists, arms)]
    points = plan.final_points(finalists)
    times = _group_times(plan, points, records)

    def time_us(planned: Planned) -> float | None:
        return times.get(planned.point.label) if times else arms.time_us(planned)

    layers = [point for name in libraries for point in _layers(plan.of(name), finalists, time_us)]
    return Schedule(points, overlapped, layers, gemms)


def _group_times(plan: Plan, points: list[Point], records: Sequence[Record]) -> dict[str, float]:
    """The median over the groups of each point that never failed; empty until all groups are complete."""
    num_groups, failed = plan.spec.search.final_groups, _failed(records)
    logs: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.round < num_groups and isinstance(record.outcome, Measured) and record.role is not Role.CONTROL:
            median_us = statistics.median(record.outcome.samples_us)
            logs[record.point.label][record.round].append(math.log(median_us))
    expected = {point.label for point in points} - failed
    if any(len(logs[label]) < num_groups for label in expected):
        return {}
    return {
        label: math.exp(statistics.median(statistics.median(each) for each in by_round.values()))
        for label, by_round in logs.items()
        if label not in failed
    }


def _pairs(plan: Plan, finalists: list[Planned], arms: Arms) -> list[Point]:
    """The best pair of a library for each value of the shared knobs, and its default."""
    finalists = [finalist for finalist in finalists if finalist.point.backend == plan.backend]
    best: dict[tuple[int, ...], dict[Op, Planned]] = defaultdict(dict)
    for race, cells in racing.races(plan, [*plan.anchors, *finalists]).items():
        ranking = racing.sort_by_level(cells, arms)
        if ranking:
            best[race.shared][race.op] = ranking[0][1]
    backend = BACKENDS[plan.backend]
    pairs = [(ops[Op.DISPATCH], ops[Op.COMBINE]) for ops in best.values() if Op.DISPATCH in ops and Op.COMBINE in ops]
    default = (plan.anchors[0], plan.anchors[1])
    unique = {dispatch.id + combine.id: (dispatch, combine) for dispatch, combine in [*pairs, default]}
    return [
        join_pair(backend, plan.spec.workload.dtype, dispatch=dispatch.point.knobs, combine=combine.point.knobs)
        for dispatch, combine in unique.values()
    ]


def _layers(plan: Plan, finalists: list[Planned], time_us: TimeOf) -> list[Point]:
    """A layer, and its training step, with every default of a library, its fastest pair and its fastest of few SMs."""
    backend, sms = BACKENDS[plan.backend], sms_knob(plan.backend)
    cells = [*plan.anchors, *(cell for cell in finalists if cell.point.backend == plan.backend)]
    chosen = [(plan.anchors[0], plan.anchors[1])]
    races = racing.races(plan, cells)
    for shared in {race.shared for race in races}:
        pair = [races.get(Race(plan.backend, op, shared), []) for op in (Op.DISPATCH, Op.COMBINE)]
        named = [[cell for cell in group if cell.role is Role.DEFAULT] for group in pair]
        chosen += list(zip(*named, strict=False))
    for limit in (math.inf, FEW_SMS):
        few = [cell for cell in cells if sms is None or cell.point.knobs[sms] <= limit]
        best = racing.best_pair(plan, few, time_us)
        chosen += [best] if best is not None else []
    unique = {dispatch.id + combine.id: (dispatch, combine) for dispatch, combine in chosen}
    return [
        join_pair(backend, plan.spec.workload.dtype, dispatch=one.point.knobs, combine=other.point.knobs, op=op)
        for one, other in unique.values()
        for op in (Op.LAYER, Op.LAYER_TRAINING)
    ]


_Rounds = list[tuple[int, list[Point]]]


def _incomplete(plan: Plan, arms: Arms, records: Sequence[Record]) -> _Rounds:
    """The rounds in which a point has no record; points that failed need none."""
    failed, recorded = _failed(records), defaultdict[int, set[str]](set)
    for record in records:
        recorded[record.round].add(record.point.label)
    return [
        (number, points)
        for number, points in contestants(plan, arms, records).rounds(plan)
        if any(point.label not in recorded[number] | failed for point in points)
    ]


def _failed(records: Sequence[Record]) -> set[str]:
    """Labels of the points that failed in the final and so have no result; isolated GEMMs are never among them."""
    return {
        record.point.label
        for record in records
        if isinstance(record.outcome, Failed) and record.point.op is not Op.COMPUTE
    }


def _tasks(
    plan: Plan,
    arms: Arms,
    records: list[Record],
    *,
    supervisor: Supervisor,
    progress: ShardProgress,
    stop: Stop,
) -> Iterator[Task]:
    """Each group in fresh processes, all passes in those of the last group; an interrupted round starts again.

    ``records`` grow while the tasks are taken: points that failed are not tried again.
    """
    num_groups = plan.spec.search.final_groups
    tried: set[int] = set()
    while rounds := [each for each in _incomplete(plan, arms, records) if each[0] not in tried]:
        number, points = rounds[0]
        tried.add(number)
        failed = _failed(records)
        tasks = in_order(plan, [point for point in points if point.label not in failed], number)
        if number < num_groups:
            supervisor.renew()
            progress.expect(len(tasks), what=f"group {number + 1} of {num_groups}")
        else:
            progress.expect(len(tasks), what=f"overlapped with GEMMs, pass {number - num_groups + 1} of {PASSES}")
        for task in tasks:
            if stop():
                return
            yield task
        for _ in range(MOST_AGAIN if number < num_groups else 0):
            again = off(plan, records, number)
            progress.expect(len(again), what=f"group {number + 1} of {num_groups}")
            for task in again:
                if stop():
                    return
                yield task


def off(plan: Plan, records: Sequence[Record], number: int) -> list[Task]:
    """The points of a group whose last repetition was off, each once more.

    Its samples scatter too much even after the extension, or its median is not where the other groups have it. The
    default has three repetitions in each group and is never among them.
    """
    medians: dict[str, dict[int, float]] = defaultdict(dict)
    last: dict[str, Record] = {}
    for record in records:
        is_anchor = record.role in (Role.ANCHOR, Role.CONTROL)
        if is_anchor or record.round >= plan.spec.search.final_groups or not isinstance(record.outcome, Measured):
            continue
        medians[record.point.label][record.round] = statistics.median(record.outcome.samples_us)
        if record.round == number:
            last[record.point.label] = record
    failed = _failed(records)
    return [
        Task(record.point, record.point_id, Role.AGAIN, Stage.FINAL, number)
        for label, record in last.items()
        if label not in failed and _is_off(record, medians[label], number)
    ]


def _is_off(record: Record, medians: dict[int, float], number: int) -> bool:
    assert isinstance(record.outcome, Measured)
    others = [median for group, median in medians.items() if group != number]
    typical = statistics.median(others) if len(others) > 1 else medians[number]
    is_away = abs(math.log(medians[number] / typical)) > _OFF
    return is_away or spread(record.outcome.samples_us) > UNSTABLE_SPREAD


def in_order(plan: Plan, points: list[Point], number: int) -> list[Task]:
    """The tasks of one round, in its own order.

    GEMMs heat the GPUs until they hit their power cap, so the passes come last. Isolated GEMMs run before and after
    each pair: their time shows what the cap does at that moment.
    """
    order = shuffle_points(points, lambda point: point, seed=f"{plan.spec.seed}/final/{number}")
    return (_group if number < plan.spec.search.final_groups else _pass)(plan, order, number)


def _group(plan: Plan, order: list[Point], number: int) -> list[Task]:
    """The anchors first, in the middle and last, and as references wherever ranks replace failed ones.

    Each anchor is there once more as its own control, somewhere among the others.
    """
    anchors = [Task(anchor.point, anchor.id, Role.ANCHOR, Stage.FINAL, number) for anchor in plan.anchors]
    tasks = [
        Task(point, point_id(plan.spec, point), Role.GRID, Stage.FINAL, number, references=tuple(anchors))
        for point in order
    ]
    chance = random.Random(f"{plan.spec.seed}/control/{number}")  # noqa: S311
    for anchor in plan.anchors:
        control = Task(anchor.point, anchor.id, Role.CONTROL, Stage.FINAL, number, references=tuple(anchors))
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
