"""How much slower than typical GPUs at their power cap were around each visit beside GEMMs; pure.

What ran just before and after it, alone and always the same, is the anchor of a visit: its time is divided by theirs.
"""

from __future__ import annotations

import numpy as np

from bench.records import Op, Stage
from launcher.store.table import OPS, STAGES, Rows

_OVERLAPPED, _COMPUTE = OPS.index(Op.OVERLAPPED), OPS.index(Op.COMPUTE)
_FINAL = STAGES.index(Stage.FINAL)


def levels(rows: Rows) -> dict[int, float]:
    """By index into ``rows``: GEMMs alone around a visit over GEMMs alone typically.

    ``rows``: those of the final that have samples, in the order of ``table.in_measured_order``. A visit is left out
    unless GEMMs alone ran directly before and after it in its process group: one of them failed, or the run is old.
    """
    alone_us = rows["median_us"][rows["op"] == _COMPUTE]
    typical_us = float(np.median(alone_us)) if len(alone_us) else 1.0
    by_index = {}
    for index, (before, row, after) in enumerate(zip(rows[:-2], rows[1:-1], rows[2:], strict=True), start=1):
        if row["op"] == _OVERLAPPED and _is_neighbour(row, before, -1) and _is_neighbour(row, after, 1):
            by_index[index] = float(np.sqrt(before["median_us"] * after["median_us"])) / typical_us
    return by_index


def num_unjudged(rows: Rows) -> int:
    """RecordTable beside GEMMs that count as they are, since nothing tells what the power cap did to them.

    ``rows``: all of a run, in the order of ``table.in_measured_order``.
    """
    measured = rows[(rows["stage"] == _FINAL) & (rows["count"] > 0)]
    return int((measured["op"] == _OVERLAPPED).sum()) - len(levels(measured))


def _is_neighbour(row: Rows, other: Rows, step: int) -> bool:
    """Whether GEMMs alone ran directly before (-1) or after (1), in the same processes."""
    same_group = other["shard"] == row["shard"] and other["group"] == row["group"]
    return bool(other["op"] == _COMPUTE and same_group and other["sequence"] == row["sequence"] + step)
