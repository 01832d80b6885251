"""NVML's link counters against our count of bytes: two independent counts of the same traffic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bench import protocol
from bench.group import Group
from bench.nvml.counters import Counters
from bench.records import Op, Point
from launcher.validation.node import LinkBytes

ITERATIONS = 200
_SETTLE_S = 0.2
"""How long the driver may take to update the counters."""


class CountedRun(NamedTuple):
    """The bytes of each GPU, and what was wrong with the tokens meanwhile; None if nothing was."""

    link_bytes: list[LinkBytes]
    wrong: str | None


class LinkTraffic(NamedTuple):
    """One GPU's traffic in one direction: the name of its counter, and the tokens of one call."""

    gpu: int
    direction: str
    counter: str
    num_tokens: int


def count_bytes(
    group: Group,
    point: Point,
    *,
    order: list[int],
    tokens: list[list[int]],
    bytes_per_token: int,
    counters: Callable[[], list[Counters]],
    deadline_s: float,
) -> CountedRun:
    """Each GPU's bytes out and in while the point runs many times; none if the driver does not count them.

    ``order`` is the GPU of each rank, ``tokens[source][destination]`` the layout. A combine sends the tokens back.
    """
    checked = group.check(protocol.Check(point), deadline_s=deadline_s)
    time.sleep(_SETTLE_S)
    before = counters()
    timed = group.time(protocol.Time(point, 0, ITERATIONS), deadline_s=deadline_s)
    time.sleep(_SETTLE_S)
    after = counters()
    num_calls = ITERATIONS + 1  # protocol.Time runs it once more to check the output
    link_bytes = []
    for gpu, direction, counter, num_tokens in _list_traffic(point.op, order, tokens):
        if gpu >= min(len(before), len(after)):
            continue
        old_kib, new_kib = before[gpu].values.get(counter), after[gpu].values.get(counter)
        if old_kib is not None and new_kib is not None:
            ours, by_nvml = num_tokens * bytes_per_token * num_calls, (new_kib - old_kib) * 1024
            link_bytes.append(LinkBytes(point.op.value, f"gpu{gpu}", direction, ours, by_nvml))
    results = [response.wrong for response in checked] + [response.wrong for response in timed]
    wrong = [f"gpu{gpu}: {result}" for gpu, result in zip([*order, *order], results, strict=True) if result is not None]
    return CountedRun(link_bytes, wrong[0] if wrong else None)


def _list_traffic(op: Op, order: list[int], tokens: list[list[int]]) -> Iterator[LinkTraffic]:
    """Every GPU's traffic out and in. Tokens that stay on their GPU cross no link."""
    for rank, gpu in enumerate(order):
        leaving = sum(tokens[rank]) - tokens[rank][rank]
        arriving = sum(row[rank] for row in tokens) - tokens[rank][rank]
        sent, received = (arriving, leaving) if op is Op.COMBINE else (leaving, arriving)
        yield LinkTraffic(gpu, "out", "nvlink_tx_kib", sent)
        yield LinkTraffic(gpu, "in", "nvlink_rx_kib", received)
