"""NVML's link counters beside the bytes that we say we moved: two independent counts of the same traffic."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from bench import protocol
from bench.group import Group
from bench.nvml.counters import Counters
from bench.records import Op, Point
from launcher.validation.node import LinkBytes

ITERATIONS = 200
_SETTLE_S = 0.2
"""The counters are read once they have had time to follow."""


class Counted(NamedTuple):
    """The bytes of each GPU, and what a rank said was wrong with the tokens on the way."""

    link_bytes: list[LinkBytes]
    wrong: str | None


def count(
    group: Group,
    point: Point,
    *,
    order: list[int],
    tokens: list[list[int]],
    bytes_per_token: int,
    counters: Callable[[], list[Counters]],
    deadline_s: float,
) -> Counted:
    """Each GPU's bytes out and in while the point runs many times; none where the driver counts none.

    ``order`` is the GPU of each rank, ``tokens[source][destination]`` the layout. A combine sends the tokens back.
    """
    checked = group.check(protocol.Check(point), deadline_s=deadline_s)
    time.sleep(_SETTLE_S)
    before = counters()
    timed = group.time(protocol.Time(point, 0, ITERATIONS), deadline_s=deadline_s)
    time.sleep(_SETTLE_S)
    after = counters()
    num_calls = ITERATIONS + 1  # protocol.Time runs it once more to check the output
    found = []
    for rank, gpu in enumerate(order):
        out = sum(tokens[rank]) - tokens[rank][rank]
        into = sum(row[rank] for row in tokens) - tokens[rank][rank]
        sent, received = (into, out) if point.op is Op.COMBINE else (out, into)
        for direction, name, number in (("out", "nvlink_tx_kib", sent), ("in", "nvlink_rx_kib", received)):
            if gpu >= min(len(before), len(after)):
                continue
            old, new = before[gpu].values.get(name), after[gpu].values.get(name)
            if old is not None and new is not None:
                moved = number * bytes_per_token * num_calls
                found.append(LinkBytes(point.op.value, f"gpu{gpu}", direction, moved, (new - old) * 1024))
    said = zip([*order, *order], [one.wrong for one in checked] + [one.wrong for one in timed], strict=True)
    return Counted(found, next((f"gpu{gpu}: {wrong}" for gpu, wrong in said if wrong is not None), None))
