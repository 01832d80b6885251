"""How much the power cap slowed the GPUs down around each repetition with GEMMs; pure.

Isolated GEMMs run directly before and after it, always the same ones. They are its anchor: its time is divided by how
much longer than typical they took.
"""

from __future__ import annotations

import numpy as np

from bench.backends import PAIR_OPS
from bench.records import Op, Stage
from launcher.store.table import OPS, STAGES, Rows

_WITH_GEMMS = tuple(OPS.index(op) for op in PAIR_OPS)
_COMPUTE = OPS.index(Op.COMPUTE)
_FINAL = STAGES.index(Stage.FINAL)


def levels(rows: Rows) -> dict[int, float]:
    """By index into ``rows``: the time of the isolated GEMMs around a repetition with GEMMs over their typical time.

    ``rows``: those of the final that have samples, in the order of ``table.in_measured_order``. A repetition is left
    out unless GEMMs ran directly before and after it in its process group: one of them failed, or the run is old.
    """
    gemms_us = rows["median_us"][rows["op"] == _COMPUTE]
    typical_us = float(np.median(gemms_us)) if len(gemms_us) else 1.0
    by_index = {}
    for index, (before, row, after) in enumerate(zip(rows[:-2], rows[1:-1], rows[2:], strict=True), start=1):
        if row["op"] in _WITH_GEMMS and _is_anchor(before, row, -1) and _is_anchor(after, row, 1):
            by_index[index] = float(np.sqrt(before["median_us"] * after["median_us"])) / typical_us
    return by_index


def num_uncorrected(rows: Rows) -> int:
    """Overlapped repetitions that count as they are, since no isolated GEMMs surround them.

    ``rows``: all of a run, in the order of ``table.in_measured_order``.
    """
    measured = rows[(rows["stage"] == _FINAL) & (rows["count"] > 0)]
    return int(np.isin(measured["op"], _WITH_GEMMS).sum()) - len(levels(measured))


def _is_anchor(gemms: Rows, row: Rows, step: int) -> bool:
    """Whether these are isolated GEMMs directly before (-1) or after (1) the row, in the same processes."""
    same_group = gemms["shard"] == row["shard"] and gemms["group"] == row["group"]
    return bool(gemms["op"] == _COMPUTE and same_group and gemms["sequence"] == row["sequence"] + step)
