"""What outputs/published/README.md says of the runs at EP=4."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from tests.rederived import ratios as q
from tests.rederived import records as r
from tests.rederived import sweeps as s
from tests.rederived import verdicts as v
from tests.rederived.documents import PUBLISHED, Claim
from tests.rederived.records import EP4

_BF16, _FP8, _SMALL_BF16, _SMALL_FP8 = EP4
_LAYERS = ("deepseek_v3, BF16", "deepseek_v3, FP8", "qwen3_30b_a3b, BF16", "qwen3_30b_a3b, FP8")


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The least and the most."""
    return min(values), max(values)


def gain(run: str) -> float:
    """How much longer the default takes than the best pair with as many SMs, in per cent."""
    return 100 * (r.default(run).round_trip_us / r.pair_of(run, 20).round_trip_us - 1)


def percent_over_best(run: str, num_sms: list[int]) -> float:
    """By how much the slowest overlapped pair with these SMs exceeds the fastest of all, in per cent."""
    overlaps = q.passes(run)
    slowest = max(overlap.us for overlap in overlaps if overlap.num_sms in num_sms)
    return 100 * (slowest / min(overlap.us for overlap in overlaps) - 1)


def saved(run: str) -> float:
    """What overlapping saves against the fastest pair without overlap, in per cent."""
    fastest = min(overlap.us for overlap in q.passes(run))
    return 100 * (1 - fastest / (q.gemms_us(run) + r.optimal(run).round_trip_us))


def all_to_all_over_best(op: str) -> tuple[float, float]:
    return ends([s.all_to_all(run, op) / r.us(r.optimal(run).of(op)) for run in EP4])


def knob(name: str, runs: list[str]) -> tuple[float, float]:
    return ends([s.percent_by_knob(run, name) for run in runs])


def exceeding() -> list[object]:
    """How many overlapped pairs of deepseek_v3 take longer than serially, and the fewest SMs of these."""
    (sms,) = {tuple(s.slower_than_serial(run)) for run in (_BF16, _FP8)}
    assert s.slower_than_serial(_SMALL_BF16) == s.slower_than_serial(_SMALL_FP8) == []
    assert sms == tuple(sorted({overlap.num_sms for overlap in q.passes(_BF16)})[-len(sms) :])
    return [len(sms), len(q.passes(_BF16)), sms[0]]


def burst(times: r.Times) -> list[object]:
    """The centre of the groups, each of them, and their mean."""
    return [r.us(times), *times.values(), r.geometric_mean(times)]


def bandwidths(runs: list[str]) -> list[object]:
    """Best dispatch in BF16 and FP8 and best combine of one model, each in GB/s and in per cent of the peak."""
    cells = [(runs[0], "dispatch"), (runs[1], "dispatch"), (runs[0], "combine")]
    return [number for run, op in cells for number in (r.wire_gb_per_s(run, op), r.wire_gb_per_s(run, op) / 4.5)]


def _rows(phrase: str, numbers: Callable[[str], list[object]]) -> list[Claim]:
    return [
        Claim(PUBLISHED, f"| {layer} {phrase}", functools.partial(numbers, run))
        for layer, run in zip(_LAYERS, EP4, strict=True)
    ]


CLAIMS = [
    Claim(
        PUBLISHED,
        "(20, 6, 256) and (20, 9, 256) take {:.1f} to {:.1f} times as long as the best pair",
        lambda: ends([v.verdict(run)[0] for run in EP4]),
    ),
    Claim(
        PUBLISHED,
        "At 20 SMs other chunks gain {:.0f} to {:.0f} % for deepseek_v3, but {:.0f} % (BF16) and {:.0f} % (FP8)",
        lambda: [gain(run) for run in EP4],
    ),
    *_rows("| {:.3f} ({:.3f} to {:.3f}) |", lambda run: [*q.compared(run, r.config(run, 24, 8, 256), r.optimal(run))]),
    Claim(
        PUBLISHED,
        "from 48 SMs on, another 80 gain {:.0f} to {:.0f} %",
        lambda: ends([100 * (r.pair_of(run, 48).round_trip_us / r.pair_of(run, 128).round_trip_us - 1) for run in EP4]),
    ),
    *_rows(
        "| {:.0f} | {:.0f} | {:.0f} | {:.0f} | {:.0f} | {:.0f} |",
        lambda run: [r.pair_of(run, num_sms).round_trip_us for num_sms in (20, 24, 32, 48, 64, 128)],
    ),
    Claim(
        PUBLISHED,
        "the slowest of four configs takes {:.1f} to {:.1f} % longer than the fastest (median over the other knobs). "
        "Four repetitions of *one and the same* config differ by {:.1f} to {:.1f} % in the same way. Changing only "
        "nvl_chunk moves the time by {:.0f} % (deepseek_v3, BF16) to {:.0f} % (qwen3_30b_a3b, FP8), and only num_sms "
        "by {:.0f} to {:.0f} %",
        lambda: [
            *knob("nvl_buffer", EP4),
            *ends([s.percent_by_nothing(run) for run in EP4]),
            s.percent_by_knob(_BF16, "nvl_chunk"),
            s.percent_by_knob(_SMALL_FP8, "nvl_chunk"),
            *knob("num_sms", EP4),
        ],
    ),
    Claim(
        PUBLISHED,
        "NCCL's own all-to-all of 1 GiB reaches {:.0f} GB/s there, copies by the copy engine {:.0f}",
        lambda: [
            r.rate("h200x4-ep4-node", "all_to_all", "1024 MiB"),
            r.rate("h200x4-ep4-node", "pair_copy", "256 MiB"),
        ],
    ),
    *(
        Claim(
            PUBLISHED,
            f"| {model} | {{:.0f}} GB/s ({{:.0f}} %) | {{:.0f}} GB/s ({{:.0f}} %) | {{:.0f}} GB/s ({{:.0f}} %) |",
            functools.partial(bandwidths, runs),
        )
        for model, runs in (("deepseek_v3", EP4[:2]), ("qwen3_30b_a3b", EP4[2:]))
    ),
    Claim(
        PUBLISHED,
        "takes {:.2f} to {:.2f} times as long as the best dispatch and {:.2f} to {:.2f} times as long as the best "
        "combine. For deepseek_v3 in BF16 these are {:.0f} us and {:.0f} us; the dispatch is faster than the "
        "default's {:.0f} us",
        lambda: [
            *all_to_all_over_best("dispatch"),
            *all_to_all_over_best("combine"),
            *(s.all_to_all(_BF16, op) for op in ("dispatch", "combine")),
            r.default(_BF16).dispatch_us,
        ],
    ),
    Claim(
        PUBLISHED,
        "128 SMs take {:.0f} to {:.0f} % longer than the fastest pair",
        lambda: ends([percent_over_best(run, [128]) for run in EP4]),
    ),
    Claim(
        PUBLISHED,
        "({:.2f} ms of GEMMs, as long as the communication): the pick has {} SMs in BF16 and {} in FP8, and costs at "
        "most {:.1f} % and {:.1f} %. Overlapping saves {:.0f} % (BF16) and {:.0f} % (FP8)",
        lambda: [
            q.gemms_us(_SMALL_BF16) / 1000,
            *(q.picked(q.passes(run)).num_sms for run in EP4[2:]),
            *(q.costs_at_most(run) for run in EP4[2:]),
            *(saved(run) for run in EP4[2:]),
        ],
    ),
    Claim(
        PUBLISHED,
        "({:.1f} ms of GEMMs): all pairs from 24 to 80 SMs are within {:.0f} % (BF16) and {:.0f} % (FP8) of the "
        "fastest. For {} of {} pairs ({} and more SMs)",
        lambda: [
            q.gemms_us(_BF16) / 1000,
            *(np.ceil(percent_over_best(run, [24, 28, 32, 40, 48, 64, 80])) for run in EP4[:2]),
            *exceeding(),
        ],
    ),
    Claim(PUBLISHED, "(the verdict in FP8: {:.3f} to {:.3f})", lambda: v.verdict(_SMALL_FP8)[1:]),
    Claim(
        PUBLISHED,
        "| BF16: full dispatch of the pick `fastest` | {:.1f} | {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f} | {:.1f} |",
        lambda: burst(r.optimal(_SMALL_BF16).of("dispatch_full")),
    ),
    Claim(
        PUBLISHED,
        "| FP8: round trip of the pair in the verdict | {:.1f} | {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f} | {:.1f} |",
        lambda: burst(v.rival(_SMALL_FP8).round_trip),
    ),
]
