"""The measured numbers of docs/METHODOLOGY.md, but "Another run"."""

from __future__ import annotations

import math

import numpy as np

from tests.rederived import ratios as q
from tests.rederived import records as r
from tests.rederived import sweeps as s
from tests.rederived.claims.published_ep4 import ends
from tests.rederived.claims.published_tables import num_points
from tests.rederived.documents import METHODOLOGY, Claim
from tests.rederived.records import EP2, EP2_AGAIN, EP2_EXHAUSTIVE, EP2_H100, EP2_H200, EP4, LIBRARIES

_H100_AGAIN, _LIBRARIES_AGAIN = f"{EP2_H100}-again", f"{LIBRARIES}-again"


def _rank_difference(run: str) -> float:
    """By how many per cent the slowest rank's median of the default dispatch exceeds the fastest's; typical."""
    ranks = [
        line["outcome"]["rank_median_us"]
        for line in r.lines(run)
        if line["type"] == "record" and line.get("role") == "anchor" and line["point"]["op"] == "dispatch"
    ]
    return 100 * float(np.median([max(medians) / min(medians) - 1 for medians in ranks]))


def _empty_us(runs: list[str]) -> float:
    checks = [line for run in runs for line in r.lines(run) if line["type"] == "self_check"]
    return float(np.median([us for check in checks for us in check["empty_op_us"]]))


def _default_dispatches() -> list[object]:
    """Four runs' default dispatch in us, minutes between the first two, half of the widest interval in us."""
    times = [r.default(run).of("dispatch") for run in (EP2_H100, _H100_AGAIN, LIBRARIES, _LIBRARIES_AGAIN)]
    intervals = [q.ratio(one, dict.fromkeys(one, 1.0)) for one in times]
    begun = [r.json_of(run, "run.json")["created"] for run in (EP2_H100, _H100_AGAIN)]
    first, second, *others = [us for us, _, _ in intervals]
    half_us = max((high - low) / 2 for _, low, high in intervals)
    return [first, second, (begun[1] - begun[0]) / 60, *others, half_us]


def _two_ratios() -> list[object]:
    first, second = (q.compared(run, r.default(run), r.optimal(run)) for run in (EP2_H100, _H100_AGAIN))
    assert not first[1] <= second[0] <= first[2]
    assert not second[1] <= first[0] <= second[2]
    return [first[0], second[0]]


def _scatter(*, corrected: bool) -> float:
    """Standard deviation of the ratio of a pair's overlapped times in two runs, in per cent."""
    before, now = (
        {q.key(run, overlap): overlap.us for overlap in q.passes(run, corrected=corrected)}
        for run in (EP2_H100, _H100_AGAIN)
    )
    return 100 * float(np.std([math.log(now[key] / before[key]) for key in before.keys() & now.keys()], ddof=1))


def _two_times() -> list[object]:
    """The iterations of the default overlapped with GEMMs: ends of the short and of the long ones, in ms."""
    pair = r.default(EP4[0])
    knobs = q.overlap_of(EP4[0], pair).knobs
    ms = [us / 1000 for record in r.records(EP4[0]) if record.knobs == knobs for us in record.samples_us]
    middle = (min(ms) + max(ms)) / 2
    return [pair.num_sms, *ends([one for one in ms if one < middle]), *ends([one for one in ms if one > middle])]


def _search_s(run: str) -> float:
    """Seconds from the first start of ranks to the last record of the search."""
    return max(record.started + record.wall_s for record in s.searched(run)) - s.begins(run)


CLAIMS = [
    Claim(
        METHODOLOGY,
        "an empty operation reads {:.1f} us on two H200s, and the slowest and the fastest rank's medians of the "
        "default dispatch differ by {:.1f} %",
        lambda: [_empty_us([EP2_H200, EP2_AGAIN]), _rank_difference(EP2_H200)],
    ),
    Claim(
        METHODOLOGY,
        "with optimal round trips of {:.1f} and {:.1f} us, and the sweep took {:.0f} s instead of {:.0f} s",
        lambda: [
            s.of_report(EP2_EXHAUSTIVE)["optimal"]["round_trip_us"],
            r.optimal(EP2_H200).round_trip_us,
            s.of_report(EP2_EXHAUSTIVE)["cost"]["wall_s"],
            s.from_start_s(EP2_H200),
        ],
    ),
    Claim(
        METHODOLOGY,
        "On two GPUs the search of {:,} points takes {:.0f} to {:.0f} s",
        lambda: [*{num_points(run) for run in EP2}, *ends([_search_s(run) for run in EP2])],
    ),
    Claim(
        METHODOLOGY,
        "the default's dispatch took {:.1f} and {:.1f} us in two runs that began {:.0f} minutes apart, and on two "
        "others {:.1f} and {:.1f} us, each known to within {:.1f} us",
        _default_dispatches,
    ),
    Claim(
        METHODOLOGY,
        "default / optimal was {:.3f} and {:.3f} in the first two, each outside of the other's",
        _two_ratios,
    ),
    Claim(
        METHODOLOGY,
        "The 20 us count alike for all pairs: {:.1f} % of the GEMMs of deepseek_v3, {:.0f} % of those of "
        "qwen3_30b_a3b at EP=4",
        lambda: [2000 / q.gemms_us(EP4[0]), 2000 / q.gemms_us(EP4[2])],
    ),
    Claim(
        METHODOLOGY,
        "With this correction two sweeps on two H100s differed by {:.1f} % in the time of a pair (standard deviation), "
        "without it by {:.1f} %",
        lambda: [_scatter(corrected=True), _scatter(corrected=False)],
    ),
    Claim(
        METHODOLOGY,
        "for deepseek_v3 in BF16 at EP=4 with the default's {} SMs {:.1f} to {:.1f} or {:.1f} to {:.1f} ms",
        _two_times,
    ),
]
