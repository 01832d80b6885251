"""Which points to measure next: rounds, racing and finalists, decided from records only; pure.

A round measures the surviving points in a new seeded order. An arm is one config of one operation. It races against
the arms with the same shared knobs, because the report needs the best arm for each of their values. Arms are compared
by their ratio to the default of the same shard and round, which removes differences between nodes and hours.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from bench.backends import BACKENDS, shared_knobs, shuffle_points
from bench.records import Failed, Measured, Op, Point, Record, Role, Stage
from bench.stats import ALPHA, DRIFT, holm, log_median_errors
from launcher.config.memory import facts_of_plan
from launcher.config.plan import FINALISTS_PER_GROUP, Plan, Planned

_QUANTILE = float(special.ndtri(1 - ALPHA))
"""One-sided quantile of the normal distribution at 1 - ALPHA."""

_CLOSE = 0.01
"""Arms within this of the best of their race are finalists too."""


class _AnchorKey(NamedTuple):
    """What an anchor measures: one operation of one library."""

    backend: str
    op: Op


class _Repetition(NamedTuple):
    """The log of a median in microseconds, its standard error, and the place of its anchor."""

    log_us: float
    error: float
    shard: int
    anchor_key: _AnchorKey
    round: int


class Arms:
    """The log ratio of each point to its anchor in every round, from the records so far.

    A round whose anchor failed does not count for that shard and operation: a bare time would pass for a ratio. If a
    shard's anchor failed in every round, the anchors of the other shards replace it; without any anchor, bare times
    are compared. ``add`` takes more records. A round's medians are computed once, at their first use.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Takes sweep records of any number of shards, in any order."""
        self.failed: set[str] = set()
        self._measured: dict[int, list[tuple[Record, Measured]]] = defaultdict(list)
        self._rounds: dict[int, dict[str, list[_Repetition]]] = {}
        self._anchors: dict[tuple[int, _AnchorKey], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._recorded: set[tuple[str, int]] = set()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Takes one more record; records of the final are ignored."""
        if record.stage is not Stage.SWEEP:
            return
        if isinstance(record.outcome, Failed):
            self.failed.add(record.point_id)
            return
        self._measured[record.round].append((record, record.outcome))
        self._rounds.pop(record.round, None)
        self._recorded.add((record.point_id, record.round))
        if record.role is Role.ANCHOR:
            rounds = self._anchors[record.shard, _AnchorKey(record.point.backend, record.point.op)]
            rounds[record.round].append(float(np.log(np.median(record.outcome.samples_us))))

    def level(self, point_id: str, *, up_to: int | None = None) -> float | None:
        """The mean log ratio to the anchor over the rounds up to a number; None without a measurement."""
        values = self._values(point_id, up_to)
        return sum(value for value, _ in values) / len(values) if values else None

    def error(self, point_id: str, *, up_to: int | None = None) -> float:
        """The standard error of the level, from the samples and the drift between rounds."""
        values = self._values(point_id, up_to)
        return float(np.sqrt(sum(error**2 + DRIFT**2 for _, error in values)) / len(values))

    def time_us(self, planned: Planned) -> float | None:
        """The time of a config, scaled by its anchors, in microseconds; None where it failed or was not measured."""
        level = None if planned.id in self.failed else self.level(planned.id)
        return None if level is None else math.exp(level) * self._anchor_us(planned.point)

    def _anchor_us(self, point: Point) -> float:
        """The median of the anchors of a point's library and operation over all shards and rounds; 1 without any."""
        anchor_key = _AnchorKey(point.backend, point.op)
        shards = [rounds for (_, other), rounds in self._anchors.items() if other == anchor_key]
        logs = [log for rounds in shards for logs_of_round in rounds.values() for log in logs_of_round]
        return math.exp(statistics.median(logs)) if logs else 1.0

    def is_done(self, point_id: str, round_number: int) -> bool:
        """Whether the point was measured in this round, or failed at any time."""
        return point_id in self.failed or (point_id, round_number) in self._recorded

    def _values(self, point_id: str, up_to: int | None) -> list[tuple[float, float]]:
        """For each round with an anchor, the log ratio to it and its standard error."""
        values = []
        for number in self._measured:
            if up_to is None or number <= up_to:
                repetitions = self._round(number).get(point_id, [])
                anchors = [self._anchor_of(repetition, up_to) for repetition in repetitions]
                ratios = [
                    repetition.log_us - anchor
                    for repetition, anchor in zip(repetitions, anchors, strict=True)
                    if anchor is not None
                ]
                if ratios:
                    values.append((sum(ratios) / len(ratios), repetitions[0].error / len(ratios) ** 0.5))
        return values

    def _round(self, number: int) -> dict[str, list[_Repetition]]:
        """The repetitions of each point in a round."""
        if number not in self._rounds:
            measured = self._measured[number]
            errors = log_median_errors([outcome.samples_us for _, outcome in measured])
            repetitions: dict[str, list[_Repetition]] = defaultdict(list)
            for (record, outcome), error in zip(measured, errors.tolist(), strict=True):
                log_us = float(np.log(np.median(outcome.samples_us)))
                anchor_key = _AnchorKey(record.point.backend, record.point.op)
                repetition = _Repetition(log_us, error, record.shard, anchor_key, number)
                repetitions[record.point_id].append(repetition)
            self._rounds[number] = repetitions
        return self._rounds[number]

    def _anchor_of(self, repetition: _Repetition, up_to: int | None) -> float | None:
        """The log of a repetition's anchor; None where its round has no anchor but another round has one."""
        rounds = self._anchors.get((repetition.shard, repetition.anchor_key), {})
        if repetition.round in rounds:
            return statistics.median(rounds[repetition.round])
        if any(up_to is None or number <= up_to for number in rounds):
            return None
        others = [
            log_us
            for (_, anchor_key), rounds_of_shard in self._anchors.items()
            if anchor_key == repetition.anchor_key
            for logs in rounds_of_shard.values()
            for log_us in logs
        ]
        return statistics.median(others) if others and not rounds else 0.0


class Race(NamedTuple):
    """The key of points that race against each other: one operation of a library, one value of each shared knob."""

    backend: str
    op: Op
    shared: tuple[int, ...]


def races(plan: Plan, cells: Iterable[Planned]) -> dict[Race, list[Planned]]:
    """The points of each race."""
    names = {name: shared_knobs(BACKENDS[name]) for name in plan.spec.backends}
    by_race: dict[Race, list[Planned]] = defaultdict(list)
    for cell in cells:
        point = cell.point
        shared = tuple(point.knobs[name] for name in names[point.backend])
        by_race[Race(point.backend, point.op, shared)].append(cell)
    return by_race


def survivors(plan: Plan, cells: list[Planned], arms: Arms, *, round_number: int) -> list[Planned]:
    """The cells to measure in a round (from 0), by the rounds before it.

    Racing drops an arm when it is significantly slower than the leader of its race (bootstrapped medians, one-sided,
    Holm-corrected over the race). The first round measures each arm only once, so at most half of a race is dropped
    after it. A race is over when its arms fit into the final or when they are equivalent. Failed points do not
    come back.
    """
    if plan.spec.search.method != "racing":
        return [cell for cell in cells if round_number == 0 or cell.id not in arms.failed]
    alive, num_places = list(cells), FINALISTS_PER_GROUP if plan.has_final else 1
    for past in range(round_number):
        alive = [cell for cell in alive if cell.id not in arms.failed]
        remaining = [_race(racers, arms, up_to=past) for racers in races(plan, alive).values()]
        alive = [cell for racers in remaining if len(racers) > num_places for cell in racers]
    return alive


def _race(cells: list[Planned], arms: Arms, *, up_to: int) -> list[Planned]:
    """The cells of a race without those significantly slower than its leader; empty when the race is over."""
    measured = [(level, cell) for cell in cells if (level := arms.level(cell.id, up_to=up_to)) is not None]
    if len(measured) < 2 or len(measured) < len(cells):
        return cells
    measured.sort(key=lambda item: (item[0], item[1].id))
    levels = np.array([level for level, _ in measured])
    errors = np.array([arms.error(cell.id, up_to=up_to) for _, cell in measured])
    z = (levels[1:] - levels[0]) / np.sqrt(errors[1:] ** 2 + errors[0] ** 2)
    slower = holm(special.ndtr(-z), alpha=ALPHA)
    num_dropped = int(slower.sum()) if up_to else min(int(slower.sum()), len(measured) // 2)
    slower_cells = [cell for (_, cell), is_slower in zip(measured[1:], slower, strict=True) if is_slower]
    dropped = {cell.id for cell in slower_cells[len(slower_cells) - num_dropped :]}
    remaining = [cell for cell in cells if cell.id not in dropped]
    return [] if _are_equivalent(remaining, arms, up_to=up_to) else remaining


def _are_equivalent(remaining: list[Planned], arms: Arms, *, up_to: int) -> bool:
    """Whether all are within 1 % of the best, at one-sided 95 %: then the final may take any of them."""
    levels = np.array([arms.level(cell.id, up_to=up_to) or 0.0 for cell in remaining])
    errors = np.array([arms.error(cell.id, up_to=up_to) for cell in remaining])
    best = int(levels.argmin())
    reach = _QUANTILE * np.sqrt(errors**2 + errors[best] ** 2)
    return bool(np.all(np.delete(levels - levels[best] + reach, best) <= _CLOSE))


def next_round(plan: Plan, cells: list[Planned], arms: Arms) -> tuple[int, list[Planned]] | None:
    """The first incomplete round and its missing points, in its own order; None when the search is over."""
    for number in range(plan.spec.search.rounds):
        alive = survivors(plan, cells, arms, round_number=number)
        missing = [cell for cell in alive if not arms.is_done(cell.id, number)]
        if missing:
            return number, shuffle_points(missing, lambda cell: cell.point, seed=f"{plan.spec.seed}/{number}")
    return None


def sort_by_level(cells: Iterable[Planned], arms: Arms) -> list[tuple[float, Planned]]:
    """Each point that was measured and never failed, with its level, fastest first."""
    levels = [
        (level, cell) for cell in cells if cell.id not in arms.failed and (level := arms.level(cell.id)) is not None
    ]
    return sorted(levels, key=lambda item: (item[0], item[1].id))


TimeOf = Callable[[Planned], float | None]
"""The time of a config in microseconds; None where it has none."""


def best_pair(plan: Plan, cells: Iterable[Planned], time_us: TimeOf) -> tuple[Planned, Planned] | None:
    """The dispatch and the combine of one library whose weighted times are least together; None without any."""
    ops = (Op.DISPATCH, Op.COMBINE)
    by_shared: dict[tuple[int, ...], dict[Op, tuple[float, Planned]]] = defaultdict(dict)
    for race, racers in races(plan, cells).items():
        times = [(us, cell) for cell in racers if (us := time_us(cell)) is not None]
        if times:
            by_shared[race.shared][race.op] = min(times, key=lambda each: (each[0], each[1].id))
    pairs = [pair for pair in by_shared.values() if all(op in pair for op in ops)]
    if not pairs:
        return None
    weights = dict(zip(ops, plan.spec.search.weights, strict=True))
    best = min(pairs, key=lambda pair: sum(weights[op] * pair[op][0] for op in ops))
    return best[Op.DISPATCH][1], best[Op.COMBINE][1]


def _smallest(plan: Plan, cell: Planned, cells: Sequence[Planned]) -> Planned:
    """Of the cells that differ from this one in a single knob, the one with the smallest buffer, if it is smaller."""
    backend, facts = BACKENDS[cell.point.backend], facts_of_plan(plan)

    def size(one: Planned) -> int:
        return backend.buffer_bytes(one.point.knobs, facts) or 0

    knobs = cell.point.knobs
    alike = [one for one in cells if sum(value != knobs[name] for name, value in one.point.knobs.items()) == 1]
    return min([cell, *alike], key=size)


def finalists(plan: Plan, arms: Arms) -> list[Planned]:
    """Cells for the final: the best of every race, those within 1 % of it, and those that are there by name.

    These are other defaults, the user's configs, and the best of each library's own tuning grid. For each of the best
    there is also the same config with the smallest buffer.
    """
    chosen: dict[str, Planned] = {}
    for cells in races(plan, [*plan.anchors, *plan.cells]).values():
        ranking = sort_by_level(cells, arms)
        best = [cell for level, cell in ranking[:FINALISTS_PER_GROUP] if level <= ranking[0][0] + _CLOSE]
        siblings = [_smallest(plan, cell, [each for _, each in ranking]) for cell in best]
        chosen |= {cell.id: cell for cell in [*best, *siblings]}
    named = (Role.CANDIDATE, Role.DEFAULT)
    chosen |= {cell.id: cell for cell in plan.cells if cell.role in named and cell.id not in arms.failed}
    for name in plan.spec.backends:
        for op in (Op.DISPATCH, Op.COMBINE):
            chosen |= {cell.id: cell for _, cell in sort_by_level(plan.of(name).upstream(op), arms)[:1]}
    for anchor in plan.anchors:
        chosen.pop(anchor.id, None)
    return sorted(chosen.values(), key=lambda cell: cell.id)
