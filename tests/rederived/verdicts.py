"""The verdict on the default: its time over that of the pair that the sweep, not the final, found fastest."""

from __future__ import annotations

import functools
import itertools
import math

from tests.rederived import ratios as q
from tests.rederived import records as r
from tests.rederived import sweeps as s


def verdict(run: str) -> q.Ratio:
    """Default / the pair that the sweep found fastest of those that the final measured."""
    return q.ratio(r.default(run).round_trip, rival(run).round_trip)


def forward_verdict(run: str) -> q.Ratio:
    """The same two with full dispatches."""
    return q.ratio(r.default(run).full_round_trip, rival(run).full_round_trip)


@functools.cache
def rival(run: str) -> r.Pair:
    """By the times of the sweep alone: the fastest pair of the final's configs other than the default."""
    default, swept = r.default(run), s.swept(run)
    found: list[tuple[float, r.Pair]] = []
    for num_sms in {dict(knobs)["num_sms"] for knobs in r.final(run, "dispatch")}:
        configs = [
            [knobs for knobs in r.final(run, op) if dict(knobs)["num_sms"] == num_sms and r.fits(run, "deepep", knobs)]
            for op in ("dispatch", "combine")
        ]
        for dispatch, combine in itertools.product(*configs):
            pair = r.Pair(run, "deepep", dispatch, combine)
            if pair != default:
                cells = ("dispatch", dispatch), ("combine", combine)
                found.append((sum(swept.get(cell, math.inf) for cell in cells), pair))
    return min(found)[1]
