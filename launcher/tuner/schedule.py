"""What the final measures, and in which rounds: finalists in groups, overlapped pairs and layers in passes; pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from bench.backends import BACKENDS, join_pair, shared_knobs, sms_knob, split_pair
from bench.records import Failed, Measured, Op, Point, Record, Role
from launcher.config.plan import FINALISTS_PER_GROUP, Plan, Planned
from launcher.tuner import passes, racing
from launcher.tuner.racing import Arms, Race, TimeOf

FEW_SMS = 24
"""The SMs of the pair that is fastest with few, for which a whole layer is measured too."""

_VARIED = 4
"""Values of the shared knobs, the fastest ones overlapped, at which other chunks are tried too."""


class Schedule(NamedTuple):
    """The points of the final.

    ``finalists`` in each group. In a pass: ``overlapped`` pairs, ``varied`` ones with other chunks from the third pass
    on, in every second pass the same pairs serially, ``layers`` after the last group, and isolated ``gemms`` between
    them. ``more``: the next pass for pairs that are not told apart, and its number.
    """

    finalists: list[Point]
    overlapped: list[Point]
    varied: list[Point]
    layers: list[Point]
    gemms: list[Point]
    more: tuple[int, list[Point]] | None

    def rounds(self, plan: Plan) -> Iterator[tuple[int, list[Point]]]:
        """Each round's number and points, in order: each group and its passes, whose numbers follow the groups'."""
        num_groups = plan.spec.search.final_groups
        for group in range(num_groups if self.finalists else 0):
            yield group, self.finalists
            for number in passes.of_group(plan, group) if self.overlapped else ():
                yield num_groups + number, self._pass(plan, number)
        if not self.overlapped:
            return
        for number in range(passes.PASSES, passes.PASSES + passes.LAYER_PASSES if self.layers else 0):
            yield num_groups + number, self.layers + self.gemms
        if self.more is not None:
            number, points = self.more
            yield num_groups + number, points + self.gemms

    def _pass(self, plan: Plan, number: int) -> list[Point]:
        pairs = self.overlapped + (self.varied if number >= passes.FIRST else [])
        serial = [replace(point, op=Op.SERIAL) for point in pairs] if passes.has_serial(number) else []
        return pairs + serial + (self.layers if passes.has_layers(plan, number) else []) + self.gemms


def failed_labels(records: Sequence[Record]) -> set[str]:
    """Labels of the points that failed in the final and so have no result; isolated GEMMs are never among them."""
    return {
        record.point.label
        for record in records
        if isinstance(record.outcome, Failed) and record.point.op is not Op.COMPUTE
    }


def contestants(plan: Plan, arms: Arms, records: Sequence[Record] = ()) -> Schedule:
    """What the sweep's records put into the final; empty without a final, and where nothing was measured.

    ``records``: those of the final so far. The layers are of the pairs that its groups find fastest, once all groups
    are there; until then of those of the sweep. Chunks are varied where the first passes find the pairs fastest.
    """
    finalists = racing.finalists(plan, arms) if plan.has_final else []
    has_default = any(arms.level(anchor.id) is not None for anchor in plan.anchors)
    if not plan.has_final or not (finalists or has_default):
        return Schedule([], [], [], [], [], None)
    libraries = [name for name in plan.spec.backends if plan.overlaps and BACKENDS[name].overlaps]
    gemms = [Point(libraries[0], Op.COMPUTE, plan.spec.workload.dtype, {})] if libraries else []
    overlapped = [point for name in libraries for point in _pairs(plan.of(name), finalists, arms)]
    points = plan.final_points(finalists)
    times = group_times(plan, points, records)

    def time_us(planned: Planned) -> float | None:
        return times.get(planned.point.label) if times else arms.time_us(planned)

    layers = [point for name in libraries for point in _layers(plan.of(name), finalists, time_us)]
    varied = [point for name in libraries for point in _varied(plan.of(name), finalists, arms, overlapped, records)]
    schedule = Schedule(points, overlapped, varied, layers, gemms, None)
    is_through = bool(overlapped) and all(
        {point.label for point in round_points} <= _recorded(records, number) | failed_labels(records)
        for number, round_points in schedule.rounds(plan)
    )
    return schedule._replace(more=passes.more(plan, overlapped + varied, records)) if is_through else schedule


def _recorded(records: Sequence[Record], number: int) -> set[str]:
    return {record.point.label for record in records if record.round == number}


def _varied(
    plan: Plan, finalists: list[Planned], arms: Arms, overlapped: Sequence[Point], records: Sequence[Record]
) -> list[Point]:
    """Pairs of other finalists with the shared knobs that the first passes find fastest; empty until these are there.

    What is fastest isolated need not be fastest overlapped.
    """
    backend, dtype = BACKENDS[plan.backend], plan.spec.workload.dtype
    own = [point for point in overlapped if point.backend == plan.backend]
    ours = [cell for cell in [*plan.anchors, *finalists] if cell.point.backend == plan.backend]
    found = racing.races(plan, ours)
    points = []
    for shared in _fastest(plan, own, records):
        dispatches, combines = (
            [cell for _, cell in racing.sort_by_level(found.get(Race(plan.backend, op, shared), []), arms)]
            for op in (Op.DISPATCH, Op.COMBINE)
        )
        points += [
            join_pair(backend, dtype, dispatch=one.point.knobs, combine=other.point.knobs)
            for one in dispatches[:FINALISTS_PER_GROUP]
            for other in combines[:FINALISTS_PER_GROUP]
        ]
    known = {point.label for point in own}
    return [point for point in points if point.label not in known]


def _fastest(plan: Plan, overlapped: Sequence[Point], records: Sequence[Record]) -> list[tuple[int, ...]]:
    """The values of the shared knobs whose pairs were fastest in the first passes; empty until these are complete."""
    times, failed = passes.times_by_pass(plan, records), failed_labels(records)
    alive = [point for point in overlapped if point.label not in failed]
    by_label = {point.label: times.get(point.label, {}) for point in alive}
    if any(number not in by_pass for by_pass in by_label.values() for number in range(passes.FIRST)):
        return []
    names = shared_knobs(BACKENDS[plan.backend])
    ranking = sorted(
        alive, key=lambda point: statistics.mean(by_label[point.label][number] for number in range(passes.FIRST))
    )
    return list(dict.fromkeys(tuple(split_pair(point)[0][name] for name in names) for point in ranking))[:_VARIED]


def group_times(plan: Plan, points: list[Point], records: Sequence[Record]) -> dict[str, float]:
    """The median over the groups of each point that never failed; empty until all groups are complete."""
    num_groups, failed = plan.spec.search.final_groups, failed_labels(records)
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
