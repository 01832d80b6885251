"""How the nodes of a run differ: the default on each of them, over the default on a typical one; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from bench.records import Host, Op, Role
from launcher.config.plan import FINAL, Plan
from launcher.store.table import ROLES, RecordTable

_ANCHOR = ROLES.index(Role.ANCHOR)


class Level(msgspec.Struct, frozen=True):
    """One shard, or the final (``FINAL``), and where it ran.

    ``dispatch``, ``combine``: the median time of the defaults there over their median over all shards, the geometric
    mean over the libraries; None where no default was measured. 1.02: the node is 2 % slower than a typical one.
    """

    shard: int
    hosts: list[str]
    dispatch: float | None
    combine: float | None


def levels_of(plan: Plan, table: RecordTable, hosts: Sequence[Host]) -> list[Level]:
    """The level of every shard and of the final, in order; empty where there is only one shard."""
    if plan.spec.num_shards < 2:
        return []
    rows = table.rows[(table.rows["role"] == _ANCHOR) & (table.rows["count"] > 0)]
    logs: dict[tuple[int, Op], list[float]] = defaultdict(list)
    shards = np.unique(rows["shard"]).tolist()
    for index, point in enumerate(table.points):
        own = rows[rows["point"] == index]
        medians = {
            shard: float(np.median(own["median_us"][own["shard"] == shard])) for shard in set(own["shard"].tolist())
        }
        typical = [median for shard, median in medians.items() if shard != FINAL]
        for shard, median in medians.items() if typical else ():
            logs[shard, point.op].append(float(np.log(median / np.median(typical))))
    names = {shard: sorted({host.hostname for host in hosts if host.shard == shard}) for shard in shards}

    def level(shard: int, op: Op) -> float | None:
        return float(np.exp(np.mean(logs[shard, op]))) if logs[shard, op] else None

    order = sorted(shards, key=lambda shard: (shard == FINAL, shard))
    return [Level(shard, names[shard], level(shard, Op.DISPATCH), level(shard, Op.COMBINE)) for shard in order]
