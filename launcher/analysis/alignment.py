"""How far apart the ranks start, by signals in both directions between the first rank and each other one; pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bench.records import Alignment, Line
from bench.stats import Floats


class StartSkew(msgspec.Struct, frozen=True):
    """How far the first rank to start is ahead of the last one, in microseconds, over the iterations of all groups.

    It contains the scatter of the signals, so it is rather too large.
    """

    median_us: float
    p95_us: float
    iterations: int
    groups: int


def start_skew(lines: Sequence[Line]) -> StartSkew | None:
    """Over all process groups of a run; None where no group has measured it."""
    groups = [spreads_us(line) for line in lines if isinstance(line, Alignment) and line.from_first_us]
    if not groups:
        return None
    spreads = np.concatenate(groups)
    median_us, p95_us = np.percentile(spreads, [50, 95]).tolist()
    return StartSkew(median_us, p95_us, len(spreads), len(groups))


def spreads_us(alignment: Alignment) -> Floats:
    """Last start less first start of the ranks, in each iteration that sent signals from the first rank.

    A rank reads (start of the sender - its own start) + the way of the signal, W. W is taken to be as long in both
    directions, so the medians of the two give it: W = (there + back) / 2 [Mills 1991, IEEE Trans. Commun. 39:1482].
    """
    there, back = np.array(alignment.from_first_us), np.array(alignment.to_first_us)  # [num_ranks - 1, iterations]
    way = (np.median(there, axis=1) + np.median(back, axis=1)) / 2
    ahead = there - way[:, None]  # how much earlier than the first rank each other one starts
    spreads: Floats = np.maximum(ahead.max(axis=0), 0) - np.minimum(ahead.min(axis=0), 0)
    return spreads


def failures(lines: Sequence[Line]) -> list[str]:
    """Why groups have not measured it."""
    return [line.failure for line in lines if isinstance(line, Alignment) and line.failure]
