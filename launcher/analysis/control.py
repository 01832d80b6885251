"""A/A: each library's default against itself, measured once more as if it were another config; pure."""

from __future__ import annotations

import msgspec
import numpy as np

from bench.records import Role, Stage
from bench.stats import Interval, paired_ratio, paired_ratio_interval
from launcher.analysis.repetitions import Repetition, are_again, times_by_place
from launcher.config.plan import Plan
from launcher.store.table import ROLES, STAGES, RecordTable


class Control(msgspec.Struct, frozen=True):
    """The round trip of the control over that of the default, which has the same config.

    1 lies in ``ci95`` in 95 % of all runs, if the intervals of the report are what they say. ``groups``: how many of
    the final measured both.
    """

    ratio: float
    ci95: Interval
    groups: int


def control_of(plan: Plan, table: RecordTable) -> Control | None:
    """The control of the plan's only library; None with fewer than two groups that measured it."""
    control, default = (_round_trips(plan, table, role) for role in (Role.CONTROL, Role.ANCHOR))
    common = sorted(control.keys() & default.keys())
    if len(common) < 2:
        return None
    times = [control[number] for number in common], [default[number] for number in common]
    return Control(paired_ratio(*times), paired_ratio_interval(*times), len(common))


def _round_trips(plan: Plan, table: RecordTable, role: Role) -> dict[int, float]:
    """The default's medians of dispatch and combine together, in each group that has both, by records of one role."""
    rows = table.rows
    is_ours = (rows["stage"] == STAGES.index(Stage.FINAL)) & (rows["role"] == ROLES.index(role)) & (rows["count"] > 0)
    by_op = []
    for anchor in plan.anchors:
        indices = [index for index, point in enumerate(table.points) if point.key == anchor.point.key]
        own = rows[is_ours & np.isin(rows["point"], indices)]
        repetitions = [
            Repetition(int(row["round"]), table.samples_of(row[np.newaxis]), np.zeros(0), bool(is_again))
            for row, is_again in zip(own, are_again(own), strict=True)
        ]
        by_op.append(times_by_place(repetitions, mean=False))
    common = set.intersection(*(set(medians) for medians in by_op)) if by_op else set()
    return {number: sum(medians[number] for medians in by_op) for number in common}
