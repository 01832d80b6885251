"""Which points deserve another look: rounds, racing and finalists, decided from records alone; pure.

A round visits the surviving points in a new seeded order. An arm is one config of one operation; arms race against
those with the same shared knobs, since a best one is wanted for every value of these. What counts is the ratio to the
default measured in the same shard and round, so that a slower node or a warmer hour does not decide.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import special

from bench.backends import BACKENDS, shared_knobs
from bench.records import Failed, Measured, Op, Record, Role, Stage
from bench.stats import ALPHA, DRIFT, holm, log_median_errors
from launcher.config.plan import FINALISTS_PER_GROUP, Plan, Planned

_QUANTILE = float(special.ndtri(1 - ALPHA))
"""Of the normal distribution, one-sided."""

_CLOSE = 0.01
"""Arms within this of the best of their shared knobs are finalists too."""


class _Visit(NamedTuple):
    """The log of a median in microseconds, its standard error, and where the anchor of it is to be found."""

    log_us: float
    error: float
    shard: int
    op: Op
    round: int


class Arms:
    """What the records so far say of each point: its log ratio to the anchor in every round.

    A round whose anchor failed says nothing of that shard and operation, since a bare time would count as a ratio.
    Only where a shard's anchor failed in every round do those of the other shards stand in for it, and where there
    are none at all, times are compared with times. Grows with ``add``; a round's medians are worked out once, when they
    are first asked for.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Takes sweep records of any number of shards, in any order."""
        self.failed: set[str] = set()
        self._measured: dict[int, list[tuple[Record, Measured]]] = defaultdict(list)
        self._rounds: dict[int, dict[str, list[_Visit]]] = {}
        self._anchors: dict[tuple[int, Op], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._seen: set[tuple[str, int]] = set()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """One more record; those of the final are passed over."""
        if record.stage is not Stage.SWEEP:
            return
        if isinstance(record.outcome, Failed):
            self.failed.add(record.point_id)
            return
        self._measured[record.round].append((record, record.outcome))
        self._rounds.pop(record.round, None)
        self._seen.add((record.point_id, record.round))
        if record.role is Role.ANCHOR:
            own = self._anchors[record.shard, record.point.op]
            own[record.round].append(float(np.log(np.median(record.outcome.samples_us))))

    def level(self, point_id: str, *, up_to: int | None = None) -> float | None:
        """The mean log ratio to the anchor over rounds up to a number; None without a measurement."""
        values = self._values(point_id, up_to)
        return sum(value for value, _ in values) / len(values) if values else None

    def error(self, point_id: str, *, up_to: int | None = None) -> float:
        """Standard error of the level: samples and drift between rounds."""
        values = self._values(point_id, up_to)
        return float(np.sqrt(sum(error**2 + DRIFT**2 for _, error in values)) / len(values))

    def seen(self, point_id: str, round_number: int) -> bool:
        """Whether the point was measured in this round, or failed at any time."""
        return point_id in self.failed or (point_id, round_number) in self._seen

    def _values(self, point_id: str, up_to: int | None) -> list[tuple[float, float]]:
        """For each round with an anchor the log ratio to it and the standard error of that."""
        found = []
        for number in self._measured:
            if up_to is None or number <= up_to:
                visits = self._round(number).get(point_id, [])
                ratios = [
                    visit.log_us - anchor for visit in visits if (anchor := self._anchor_of(visit, up_to)) is not None
                ]
                if ratios:
                    found.append((sum(ratios) / len(ratios), visits[0].error / len(ratios) ** 0.5))
        return found

    def _round(self, number: int) -> dict[str, list[_Visit]]:
        """The visits of each point of a round."""
        if number not in self._rounds:
            measured = self._measured[number]
            errors = log_median_errors([outcome.samples_us for _, outcome in measured])
            found: dict[str, list[_Visit]] = defaultdict(list)
            for (record, outcome), error in zip(measured, errors.tolist(), strict=True):
                log_us = float(np.log(np.median(outcome.samples_us)))
                found[record.point_id].append(_Visit(log_us, error, record.shard, record.point.op, number))
            self._rounds[number] = found
        return self._rounds[number]

    def _anchor_of(self, visit: _Visit, up_to: int | None) -> float | None:
        """The log of what a visit is measured by; None where its round has no anchor, but another has."""
        own = self._anchors.get((visit.shard, visit.op), {})
        if visit.round in own:
            return statistics.median(own[visit.round])
        if any(up_to is None or number <= up_to for number in own):
            return None
        others = [
            log_us
            for (_, op), rounds in self._anchors.items()
            if op is visit.op
            for logs in rounds.values()
            for log_us in logs
        ]
        return statistics.median(others) if others and not own else 0.0


def groups(plan: Plan, cells: Iterable[Planned]) -> dict[tuple[object, ...], list[Planned]]:
    """Points that race against each other: one operation, one value of the shared knobs."""
    names = shared_knobs(BACKENDS[plan.spec.backend])
    found: dict[tuple[object, ...], list[Planned]] = defaultdict(list)
    for cell in cells:
        found[cell.point.op, *(cell.point.knobs[name] for name in names)].append(cell)
    return found


def survivors(plan: Plan, cells: list[Planned], arms: Arms, *, round_number: int) -> list[Planned]:
    """The cells that are measured in a round (from 0), by what the rounds before it showed.

    Racing drops an arm when it is significantly slower than the leader of its group (bootstrapped medians, one-sided,
    Holm-corrected over the group); after the first round, which saw each arm but once, at most half of a group. The
    race of a group is over when it fits into the final or when its arms are alike. Failed points do not come back.
    """
    if plan.spec.search.method != "racing":
        return [cell for cell in cells if round_number == 0 or cell.id not in arms.failed]
    alive, enough = list(cells), FINALISTS_PER_GROUP if plan.has_final else 1
    for past in range(round_number):
        alive = [cell for cell in alive if cell.id not in arms.failed]
        raced = [_race(group, arms, up_to=past) for group in groups(plan, alive).values()]
        alive = [cell for group in raced if len(group) > enough for cell in group]
    return alive


def _race(group: list[Planned], arms: Arms, *, up_to: int) -> list[Planned]:
    """The group without what is surely slower than its leader; empty when its race is over."""
    known = [(level, cell) for cell in group if (level := arms.level(cell.id, up_to=up_to)) is not None]
    if len(known) < 2 or len(known) < len(group):
        return group
    known.sort(key=lambda item: (item[0], item[1].id))
    levels = np.array([level for level, _ in known])
    errors = np.array([arms.error(cell.id, up_to=up_to) for _, cell in known])
    z = (levels[1:] - levels[0]) / np.sqrt(errors[1:] ** 2 + errors[0] ** 2)
    slower = holm(special.ndtr(-z), alpha=ALPHA)
    num_dropped = int(slower.sum()) if up_to else min(int(slower.sum()), len(known) // 2)
    fallen = [cell for (_, cell), is_slower in zip(known[1:], slower, strict=True) if is_slower]
    dropped = {cell.id for cell in fallen[len(fallen) - num_dropped :]}
    left = [cell for cell in group if cell.id not in dropped]
    return [] if _alike(left, arms, up_to=up_to) else left


def _alike(left: list[Planned], arms: Arms, *, up_to: int) -> bool:
    """Whether all are within 1 % of the best, at one-sided 95 %: then it does not matter which ones the final takes."""
    levels = np.array([arms.level(cell.id, up_to=up_to) or 0.0 for cell in left])
    errors = np.array([arms.error(cell.id, up_to=up_to) for cell in left])
    best = int(levels.argmin())
    reach = _QUANTILE * np.sqrt(errors**2 + errors[best] ** 2)
    return bool(np.all(np.delete(levels - levels[best] + reach, best) <= _CLOSE))


def next_round(plan: Plan, cells: list[Planned], arms: Arms) -> tuple[int, list[Planned]] | None:
    """The first round that is not complete and what it lacks, in its own order; None when the search is over."""
    for number in range(plan.spec.search.rounds):
        alive = survivors(plan, cells, arms, round_number=number)
        missing = [cell for cell in alive if not arms.seen(cell.id, number)]
        if missing:
            random.Random(f"{plan.spec.seed}/{number}").shuffle(missing)  # noqa: S311
            return number, missing
    return None


def finalists(plan: Plan, arms: Arms) -> list[Planned]:
    """Cells for the final: the best of every group, those within 1 % of it, the library's own best, the user's."""
    chosen: dict[str, Planned] = {}
    for group in groups(plan, [*plan.anchors, *plan.cells]).values():
        ranked = sorted(
            (level, cell.id, cell)
            for cell in group
            if cell.id not in arms.failed and (level := arms.level(cell.id)) is not None
        )
        for level, _, cell in ranked[:FINALISTS_PER_GROUP]:
            if level <= ranked[0][0] + _CLOSE:
                chosen[cell.id] = cell
    chosen |= {cell.id: cell for cell in plan.cells if cell.role is Role.CANDIDATE and cell.id not in arms.failed}
    for op in (Op.DISPATCH, Op.COMBINE):
        tuned = [
            (level, one)
            for one in plan.upstream(op)
            if one.id not in arms.failed and (level := arms.level(one.id)) is not None
        ]
        if tuned:
            best = min(tuned, key=lambda item: (item[0], item[1].id))[1]
            chosen[best.id] = best
    for anchor in plan.anchors:
        chosen.pop(anchor.id, None)
    return sorted(chosen.values(), key=lambda cell: cell.id)
