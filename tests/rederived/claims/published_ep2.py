"""What outputs/published/README.md says of the runs at EP=2."""

from __future__ import annotations

import numpy as np

from tests.rederived import ratios as q
from tests.rederived import records as r
from tests.rederived import sweeps as s
from tests.rederived import verdicts as v
from tests.rederived.claims.published_ep4 import ends, gain, knob
from tests.rederived.claims.published_tables import num_points
from tests.rederived.documents import PUBLISHED, Claim
from tests.rederived.records import EP2, EP2_AGAIN, EP2_EXHAUSTIVE, EP2_H100, EP2_H200, LIBRARIES

_H200, _AHEAD = EP2[:4], [EP2[1], EP2[3]]
_RACED = [run for run in EP2 if run not in _AHEAD]


def _overlapped_ms(runs: list[str]) -> tuple[float, float]:
    return ends([overlap.us / 1000 for run in runs for overlap in q.passes(run)])


def _slower_sms() -> list[object]:
    """The SMs of the pairs that are significantly slower than another in every run where both raced."""
    slow = set.intersection(
        *(
            {overlap.num_sms for overlap in q.passes(run)} - {overlap.num_sms for overlap in q.may_be_best(run)}
            for run in _RACED
        )
    )
    return [min(slow), max(slow)]


def _candidate(run: str) -> q.Ratio:
    return q.compared(run, r.config(run, 24, 8, 256), r.optimal(run))


def _differing() -> list[object]:
    cells = s.differing(EP2_H200, EP2_AGAIN, 0.02)
    sms = {op: [knobs[0][1] for of, knobs in cells if of == op] for op in ("dispatch", "combine")}
    return [
        len(s.medians(EP2_H200).keys() & s.medians(EP2_AGAIN).keys()),
        len(cells),
        len(s.differing(EP2_H200, EP2_AGAIN, 0.04)),
        *ends(sms["dispatch"]),
        *ends(sms["combine"]),
        *(len(s.differing(_H200[2], _H200[3], limit)) for limit in (0.02, 0.04)),
    ]


def _optimal_us(run: str) -> float:
    return r.optimal(run).round_trip_us


CLAIMS = [
    Claim(
        PUBLISHED,
        "On H200s the best pair is {:.1f} to {:.1f} times as fast. Even with the default's 20 SMs, other chunks and "
        "buffers gain {:.0f} to {:.0f} %",
        lambda: [*ends([v.verdict(run)[0] for run in _H200]), *ends([gain(run) for run in EP2])],
    ),
    Claim(
        PUBLISHED,
        "In BF16 on H200s dispatch takes {:.1f} us and combine {:.1f} us, {:.3f} times ({:.3f} to {:.3f}) the optimal "
        "round trip; on H100s {:.3f} times ({:.3f} to {:.3f}). In the same run on H200s DeepEP's own tuning grid "
        "finds {}: {:.1f} us",
        lambda: [
            r.config(EP2_H200, 24, 8, 256).dispatch_us,
            r.config(EP2_H200, 24, 8, 256).combine_us,
            *_candidate(EP2_H200),
            *_candidate(EP2_H100),
            r.own_tuning(EP2_H200).configs,
            r.own_tuning(EP2_H200).round_trip_us,
        ],
    ),
    Claim(
        PUBLISHED,
        "24: {:.0f} us, 48: {:.0f} us, 64: {:.0f} us, 128: {:.0f} us",
        lambda: [r.pair_of(EP2_H200, num_sms).round_trip_us for num_sms in (24, 48, 64, 128)],
    ),
    Claim(
        PUBLISHED,
        "the slowest of four configs takes {:.1f} to {:.1f} % longer than the fastest (median over the other knobs); "
        "four repetitions of *one and the same* config differ by {:.1f} to {:.1f} % in the same way",
        lambda: [*knob("nvl_buffer", EP2), *ends([s.percent_by_nothing(run) for run in EP2])],
    ),
    Claim(
        PUBLISHED,
        "the best dispatch in BF16 moves {:.0f} GB/s on the wire, {:.0f} % of 450",
        lambda: [r.wire_gb_per_s(EP2_H200, "dispatch"), r.wire_gb_per_s(EP2_H200, "dispatch") / 4.5],
    ),
    Claim(
        PUBLISHED,
        "takes {:.0f} us for a dispatch in BF16 and {:.0f} us for a combine: the dispatch is faster than DeepEP's "
        "default, slower than the tuned one. The runs of several libraries time the exchange apart: on H100s it takes "
        "{:.1f} us of the {:.1f} us",
        lambda: [
            *(s.all_to_all(EP2_H200, op) for op in ("dispatch", "combine")),
            *(r.us(*r.final(LIBRARIES, op, "alltoall").values()) for op in ("exchange", "dispatch")),
        ],
    ),
    Claim(
        PUBLISHED,
        "({:.1f} to {:.1f} ms here, ten times the communication), few pairs can be distinguished: the picks have {} to "
        "{} SMs, depending on the run, and each costs at most {:.0f} to {:.0f} %",
        lambda: [
            *ends([q.gemms_us(run) / 1000 for run in EP2]),
            *ends([q.picked(q.passes(run)).num_sms for run in EP2]),
            *ends([q.costs_at_most(run) for run in EP2]),
        ],
    ),
    Claim(PUBLISHED, "*again* on H200s) pairs take {:.1f} to {:.1f} ms", lambda: _overlapped_ms(_AHEAD)),
    Claim(
        PUBLISHED,
        "pairs took {:.1f} to {:.1f} ms, and {} to {} SMs were slower",
        lambda: [*_overlapped_ms(_RACED), *_slower_sms()],
    ),
    Claim(
        PUBLISHED,
        "for {} to {} of {} pairs the overlapped time exceeds the serial time",
        lambda: [*ends([len(s.slower_than_serial(run)) for run in EP2]), len(q.passes(EP2_H200))],
    ),
    Claim(
        PUBLISHED,
        "the optimal round trips differ by {:.0f} to {:.0f} %",
        lambda: ends(
            [100 * (_optimal_us(one) / _optimal_us(other) - 1) for one, other in ((EP2[4], EP2[0]), (EP2[6], EP2[2]))]
        ),
    ),
    Claim(
        PUBLISHED,
        "they count {:.3f} to {:.3f} times the bytes of the tokens in a dispatch (which also moves indices and "
        "counters) and {:.3f} times in a combine; on four H200s {:.3f} times in both",
        lambda: [
            *ends(r.counted("h100x2-node", "dispatch")),
            float(np.mean(r.counted("h100x2-node", "combine"))),
            float(np.mean([r.counted("h200x4-ep4-node", op) for op in ("dispatch", "combine")])),
        ],
    ),
    Claim(
        PUBLISHED,
        "| two H200s | {:.1f} | {:.1f} | {:.1f} on two others, three days later |",
        lambda: [
            _optimal_us(EP2_H200),
            s.of_report(EP2_EXHAUSTIVE)["optimal"]["round_trip_us"],
            _optimal_us(EP2_AGAIN),
        ],
    ),
    Claim(
        PUBLISHED,
        "| two H100s | {:.1f} | {:.1f} | {:.1f} in another order |",
        lambda: [
            _optimal_us(EP2_H100),
            s.of_report("h100x2-ep2-exhaustive")["optimal"]["round_trip_us"],
            _optimal_us(f"{EP2_H100}-again"),
        ],
    ),
    Claim(
        PUBLISHED,
        "Of {:,} dispatches and combines that both pairs of H200s measured, {} differ by more than 2 % and {} by more "
        "than 4 %: dispatches with {} to {} SMs and combines with {} to {}. In FP8 it is {} and {}",
        _differing,
    ),
    Claim(
        PUBLISHED,
        "the racing sweeps of {:,} points, with their finals, took {:.0f} to {:.0f} s. {:.0f} to {:.0f} % of that was "
        "warm-up and timed iterations, {:.0f} to {:.0f} % starting ranks. The exhaustive sweeps took {:.0f} s on "
        "H200s and {:.0f} s on H100s from the first start of the ranks",
        lambda: [
            *{num_points(run) for run in EP2},
            *ends([s.from_command_s(run) for run in EP2]),
            *ends([100 * s.busy_s(run) / s.from_command_s(run) for run in EP2]),
            *ends([100 * s.starting_s(run) / s.from_command_s(run) for run in EP2]),
            *(s.of_report(run)["cost"]["wall_s"] for run in (EP2_EXHAUSTIVE, "h100x2-ep2-exhaustive")),
        ],
    ),
]
