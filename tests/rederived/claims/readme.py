"""The numbers of README.md."""

from __future__ import annotations

import math

import numpy as np

from tests.rederived import ratios as q
from tests.rederived import records as r
from tests.rederived import sweeps as s
from tests.rederived import verdicts as v
from tests.rederived.documents import README, Claim
from tests.rederived.records import EP2_AGAIN, EP2_EXHAUSTIVE, EP2_H100, EP2_H200, EP4, LIBRARIES, SMALL_TOKENS

_CI = "{:.3f} ({:.3f} to {:.3f})"


def _faster(run: str, fast: r.Pair, slow: r.Pair) -> q.Ratio:
    """How many times as fast the first pair is."""
    return q.compared(run, slow, fast)


def _libraries_row(backend: str) -> list[object]:
    """Default, at most 24 SMs, optimum: round trip, with full dispatch, SMs."""
    pairs = [r.default(LIBRARIES, backend), r.at_most(LIBRARIES, 24, backend), r.optimal(LIBRARIES, backend)]
    return [number for pair in pairs for number in (pair.round_trip_us, pair.full_round_trip_us, pair.num_sms)]


def _plain_row(backend: str) -> list[object]:
    pair = r.plain(LIBRARIES, backend)
    return [pair.round_trip_us, pair.full_round_trip_us]


def _config_row(pair: r.Pair) -> list[object]:
    return [pair.configs, pair.dispatch_us, pair.combine_us, pair.round_trip_us, pair.full_round_trip_us]


def _all_to_all(run: str) -> list[object]:
    dispatch, combine = s.all_to_all(run, "dispatch"), s.all_to_all(run, "combine")
    return [dispatch, combine, dispatch + combine]


def _machine_row(run: str) -> list[object]:
    """Default and optimal, cached and full; the verdict, cached and full; the pick, its cost, the optimum over it."""
    pairs = r.default(run), r.optimal(run)
    best, pick = q.overlap_of(run, pairs[1]), q.picked(q.passes(run))
    return [
        *(us for pair in pairs for us in (pair.round_trip_us, pair.full_round_trip_us)),
        *v.verdict(run),
        *v.forward_verdict(run),
        pick.num_sms,
        q.costs_at_most(run),
        *q.mean_ratio(best.times, pick.times),
        ", may be chance" if best in q.may_be_best(run) else "",
    ]


def _rival_off() -> list[object]:
    """By how many per cent the slowest group of the verdict's pair exceeds the median of the others."""
    rival = v.rival(EP4[3])
    runs = (*EP4, EP2_AGAIN, EP2_H100)
    assert [run for run in runs if v.rival(run) != r.optimal(run)] == [EP4[3], EP2_H100]
    *others, slowest = sorted(rival.round_trip.values())
    return [100 * (slowest / float(np.median(others)) - 1)]


def _compare_row(second_us: float, optimal: set[s.Cell], labels: set[s.Cell]) -> list[object]:
    """What gates: the points of both finals, and the optimal configs of both runs."""
    first_us = r.optimal(EP2_H200).round_trip_us
    gating = (s.final_labels(EP2_H200) & labels) | s.optimal_labels(EP2_H200) | optimal
    return [len(gating), first_us, second_us, second_us / first_us]


def _untuned() -> list[object]:
    """No number: DeepEP V1's default takes longer than both that the sentence before names."""
    default_us = r.default(LIBRARIES).round_trip_us
    assert default_us > r.optimal(LIBRARIES, "deepep_v2").round_trip_us
    assert default_us > r.plain(LIBRARIES, "allgather").round_trip_us
    return []


def _cannot_be_told_apart(ratio: q.Ratio) -> bool:
    """Whether the interval holds values within 1 % of 1."""
    _, low, high = ratio
    return low <= 1.01 and high >= 1 / 1.01


def _overlapped() -> list[object]:
    """Nothing: in both runs DeepEP V1 and V2 take the same time overlapped with GEMMs."""
    for run in (LIBRARIES, f"{LIBRARIES}-again"):
        assert _cannot_be_told_apart(q.mean_ratio(q.held_out(run), q.held_out(run, "deepep_v2")))
    return []


def _tuned_with_small_tokens() -> list[object]:
    ratio = _faster(SMALL_TOKENS, r.optimal(SMALL_TOKENS), r.optimal(SMALL_TOKENS, "deepep_v2"))
    assert _cannot_be_told_apart(ratio)
    return [*ratio]


_LIBRARIES_TABLE = [
    Claim(
        README,
        "| DeepEP V1 | {:.1f} ({:.1f}) at {} SMs | {:.1f} ({:.1f}) | **{:.1f}** ({:.1f}) at {} SMs |",
        lambda: [number for at, number in enumerate(_libraries_row("deepep")) if at != 5],
    ),
    Claim(
        README,
        "| DeepEP V2 | {:.1f} ({:.1f}) at {} SMs | {:.1f} ({:.1f}) at {} SMs | {:.1f} ({:.1f}) at {} SMs |",
        lambda: _libraries_row("deepep_v2"),
    ),
    Claim(
        README,
        "| NCCL EP | {:.1f} ({:.1f}) at {} SMs | {:.1f} ({:.1f}) | {:.1f} ({:.1f}) at {} SMs |",
        lambda: [number for at, number in enumerate(_libraries_row("nccl_ep")) if at != 5],
    ),
    Claim(
        README,
        "| all-gather + reduce-scatter, another contract | {:.1f} ({:.1f}) | | |",
        lambda: _plain_row("allgather"),
    ),
    Claim(README, "| all-to-all, packing included | {:.1f} ({:.1f}) | | |", lambda: _plain_row("alltoall")),
]

_LIBRARIES_TEXT = [
    Claim(
        README,
        "tuned DeepEP V1 is {:.3f} times as fast as DeepEP V2 (95 % CI {:.3f} to {:.3f}) and {:.3f} times as fast as "
        "all-gather + reduce-scatter ({:.3f} to {:.3f})",
        lambda: [
            *_faster(LIBRARIES, r.optimal(LIBRARIES), r.optimal(LIBRARIES, "deepep_v2")),
            *_faster(LIBRARIES, r.optimal(LIBRARIES), r.plain(LIBRARIES, "allgather")),
        ],
    ),
    Claim(
        README,
        "With at most 24 SMs, DeepEP V2 is {:.3f} times as fast as DeepEP V1 ({:.3f} to {:.3f})",
        lambda: _faster(LIBRARIES, r.at_most(LIBRARIES, 24, "deepep_v2"), r.at_most(LIBRARIES, 24)),
    ),
    Claim(README, "Untuned it is slower than both.", _untuned),
    Claim(
        README,
        "the two cannot be told apart, neither in this run nor in a second one nine minutes later.",
        _overlapped,
    ),
    Claim(
        README,
        "With the 64 SMs of vLLM and SGLang, DeepEP V2's overlapped pair takes {:.0f} % longer than with 20.",
        lambda: [100 * (q.overlapped_us(LIBRARIES, 64, "deepep_v2") / q.overlapped_us(LIBRARIES, 20, "deepep_v2") - 1)],
    ),
    Claim(
        README,
        "DeepEP V2 is {:.3f} times as fast as V1 with at most 24 SMs ({:.3f} to {:.3f})",
        lambda: _faster(SMALL_TOKENS, r.at_most(SMALL_TOKENS, 24, "deepep_v2"), r.at_most(SMALL_TOKENS, 24)),
    ),
    Claim(
        README,
        "Tuned V1 and V2 cannot be told apart: {:.3f} ({:.3f} to {:.3f})",
        _tuned_with_small_tokens,
    ),
    Claim(
        README,
        "{:.0f} s from the command to the last record, {:.0f} s of them for compiling kernels, which a node does once; "
        "again on the same node it took {:.0f} s",
        lambda: [s.from_command_s(LIBRARIES), s.compiling_s(LIBRARIES), s.from_command_s(f"{LIBRARIES}-again")],
    ),
]

_EP4_ROW = "| {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} |"
_EP4_TABLE = [
    Claim(
        README,
        "| **optimal** | {} | **{:.1f}** | **{:.1f}** | **{:.1f}** | **{:.1f}** |",
        lambda: _config_row(r.optimal(EP4[0])),
    ),
    Claim(README, f"| best with 64 SMs {_EP4_ROW}", lambda: _config_row(r.pair_of(EP4[0], 64))),
    Claim(README, f"| best with the default's 20 SMs {_EP4_ROW}", lambda: _config_row(r.pair_of(EP4[0], 20))),
    Claim(README, f"| DeepEP's default {_EP4_ROW}", lambda: _config_row(r.default(EP4[0]))),
    Claim(README, f"| DeepEP's own tuning grid {_EP4_ROW}", lambda: _config_row(r.own_tuning(EP4[0]))),
    Claim(README, f"| (24, 8, 256) for both {_EP4_ROW}", lambda: _config_row(r.config(EP4[0], 24, 8, 256))),
    Claim(README, "| NCCL all-to-all, same tokens | | {:.1f} | {:.1f} | {:.1f} | |", lambda: _all_to_all(EP4[0])),
]

_MACHINE_ROW = f"| {{:.1f}} ({{:.1f}}) | {{:.1f}} ({{:.1f}}) | {_CI} | {_CI} | {{}} SMs, {{:.1f}} % | {_CI}{{}} |"
_MACHINES = [
    Claim(README, "| 4 x H200, EP=4, deepseek_v3, BF16 " + _MACHINE_ROW, lambda: _machine_row(EP4[0])),
    Claim(README, "| 4 x H200, EP=4, deepseek_v3, FP8 " + _MACHINE_ROW, lambda: _machine_row(EP4[1])),
    Claim(README, "| 4 x H200, EP=4, qwen3_30b_a3b, BF16 " + _MACHINE_ROW, lambda: _machine_row(EP4[2])),
    Claim(README, "| 4 x H200, EP=4, qwen3_30b_a3b, FP8 " + _MACHINE_ROW, lambda: _machine_row(EP4[3])),
    Claim(README, "| 2 x H200, EP=2, deepseek_v3, BF16 " + _MACHINE_ROW, lambda: _machine_row(EP2_AGAIN)),
    Claim(README, "| 2 x H100 ⁴, EP=2, deepseek_v3, BF16 " + _MACHINE_ROW, lambda: _machine_row(EP2_H100)),
]

_OTHER = [
    Claim(
        README,
        "{:.0f} s from the command to the last record on four H200s in BF16, {:.0f} s on two",
        lambda: [s.from_command_s(EP4[0]), s.from_command_s(EP2_AGAIN)],
    ),
    Claim(README, "one of its five process groups took {:.0f} % longer than the others", _rival_off),
    Claim(
        README,
        "at EP=4 with deepseek_v3 in BF16 `fastest` needs {:.0f} MiB per rank, `knee` ({} SMs, {:.1f} us) {:.0f} MiB",
        lambda: [
            math.ceil(r.optimal(EP4[0]).buffer_mib),
            r.knee(EP4[0]).num_sms,
            r.knee(EP4[0]).round_trip_us,
            r.knee(EP4[0]).buffer_mib,
        ],
    ),
    Claim(
        README,
        "| two H200s, the same with `search=exhaustive` | {} | {:.1f} | {:.1f} | {:.3f} | nothing is worse |",
        lambda: _compare_row(
            s.of_report(EP2_EXHAUSTIVE)["optimal"]["round_trip_us"],
            s.optimal_labels_of_report(EP2_EXHAUSTIVE),
            s.final_labels_of_report(EP2_EXHAUSTIVE),
        ),
    ),
    Claim(
        README,
        "| two H200s, two others three days later | {} | {:.1f} | {:.1f} | {:.3f} | nothing is worse |",
        lambda: _compare_row(
            r.optimal(EP2_AGAIN).round_trip_us, s.optimal_labels(EP2_AGAIN), s.final_labels(EP2_AGAIN)
        ),
    ),
    Claim(
        README,
        "It takes {:.0f} s on four H200s.",
        lambda: [r.node("h200x4-ep4-node")["wall_s"]],
    ),
]

CLAIMS = [*_LIBRARIES_TABLE, *_LIBRARIES_TEXT, *_EP4_TABLE, *_MACHINES, *_OTHER]
