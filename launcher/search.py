"""Which points deserve another look: rounds, racing and finalists, decided from records alone; pure.

A round visits the surviving points in a new seeded order. An arm is one config of one operation; arms race against
those with the same shared knobs, since a best one is wanted for every value of these. What counts is the ratio to the
default measured in the same shard and round, so that a slower node or a warmer hour does not decide.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats as scipy_stats

from bench.backends import BACKENDS, shared_knobs
from bench.records import Failed, Measured, Op, Record, Role, Stage
from bench.stats import holm, log_median_errors
from launcher.plan import Plan, Planned

ALPHA = 0.05
_DRIFT = 0.003
"""Standard deviation of a config's log time between visits, beyond what its samples show (seen on H200s: 0.3 %)."""

_CLOSE = 0.01
"""Arms within this of the best of their shared knobs are finalists too."""


class Arms:
    """What the records so far say of each point: its log ratio to the anchor in every round.

    Grows with ``add``; a round's values are worked out once, when they are first asked for.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Takes sweep records of any number of shards, in any order."""
        self.failed: set[str] = set()
        self._measured: dict[int, list[tuple[Record, Measured]]] = defaultdict(list)
        self._rounds: dict[int, dict[str, tuple[float, float]]] = {}
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

    def level(self, point_id: str, *, up_to: int | None = None) -> float | None:
        """The mean log ratio to the anchor over rounds up to a number; None without a measurement."""
        values = self._values(point_id, up_to)
        return sum(value for value, _ in values) / len(values) if values else None

    def error(self, point_id: str, *, up_to: int | None = None) -> float:
        """Standard error of the level: samples and drift between rounds."""
        values = self._values(point_id, up_to)
        return float(np.sqrt(sum(error**2 + _DRIFT**2 for _, error in values)) / len(values))

    def seen(self, point_id: str, round_number: int) -> bool:
        """Whether the point was measured in this round, or failed at any time."""
        return point_id in self.failed or (point_id, round_number) in self._seen

    def _values(self, point_id: str, up_to: int | None) -> list[tuple[float, float]]:
        numbers = [number for number in self._measured if up_to is None or number <= up_to]
        found = (self._round(number).get(point_id) for number in numbers)
        return [value for value in found if value is not None]

    def _round(self, number: int) -> dict[str, tuple[float, float]]:
        """For each point of a round its log ratio to the anchor and the standard error of it."""
        if number not in self._rounds:
            measured = self._measured[number]
            anchors = _anchors(measured)
            errors = log_median_errors([outcome.samples_us for _, outcome in measured])
            found: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for (record, outcome), error in zip(measured, errors, strict=True):
                level = anchors.get((record.shard, record.point.op), 0.0)
                found[record.point_id].append((float(np.log(np.median(outcome.samples_us))) - level, float(error)))
            self._rounds[number] = {
                point: (float(np.mean([value for value, _ in values])), values[0][1] / len(values) ** 0.5)
                for point, values in found.items()
            }
        return self._rounds[number]


def _anchors(measured: Sequence[tuple[Record, Measured]]) -> dict[tuple[int, Op], float]:
    """Log of the anchor's median in one round, for each shard and operation."""
    found: dict[tuple[int, Op], list[float]] = defaultdict(list)
    for record, outcome in measured:
        if record.role is Role.ANCHOR:
            found[record.shard, record.point.op].append(float(np.median(outcome.samples_us)))
    return {key: float(np.log(np.median(values))) for key, values in found.items()}


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
    alive, enough = list(cells), plan.spec.search.finalists_per_group if plan.has_final else 1
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
    slower = holm(scipy_stats.norm.sf(z), alpha=ALPHA)
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
    reach = scipy_stats.norm.ppf(1 - ALPHA) * np.sqrt(errors**2 + errors[best] ** 2)
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
        for level, _, cell in ranked[: plan.spec.search.finalists_per_group]:
            if level <= ranked[0][0] + _CLOSE:
                chosen[cell.id] = cell
    chosen |= {cell.id: cell for cell in plan.cells if cell.role is Role.CANDIDATE and cell.id not in arms.failed}
    for op in (Op.DISPATCH, Op.COMBINE):
        tuned = [(level, one) for one in plan.upstream(op) if (level := arms.level(one.id)) is not None]
        if tuned:
            best = min(tuned, key=lambda item: (item[0], item[1].id))[1]
            chosen[best.id] = best
    for anchor in plan.anchors:
        chosen.pop(anchor.id, None)
    return sorted(chosen.values(), key=lambda cell: cell.id)
