"""The tables of outputs/published/README.md with every run and every validation."""

from __future__ import annotations

from collections.abc import Callable

from tests.rederived import records as r
from tests.rederived import sweeps as s
from tests.rederived import verdicts as v
from tests.rederived.documents import PUBLISHED, Claim
from tests.rederived.records import EP2, EP2_AGAIN, EP2_EXHAUSTIVE, EP2_H100, EP2_H200, EP4, LIBRARIES, SMALL_TOKENS

_LINK = "| [{0}]({0}/OPTIMAL_CONFIGS.md) | "


def _sweep(run: str) -> list[object]:
    return [r.optimal(run).round_trip_us, r.default(run).round_trip_us, *v.verdict(run)]


def _report(run: str) -> list[object]:
    found = s.of_report(run)
    both = [found[name]["round_trip_us"] for name in ("optimal", "default")]
    return [*both, found["verdict"]["ratio"], *found["verdict"]["ci95"]]


def _claim(run: str, what: str, numbers: Callable[[], list[object]]) -> Claim:
    return Claim(
        PUBLISHED, _LINK.format(run) + what + " | {:.1f} us | {:.1f} us | {:.3f} ({:.3f} to {:.3f}) |", numbers
    )


def num_points(run: str) -> int:
    """Points of the search, with those of the all-to-all."""
    return len({(record.op, record.knobs, record.backend) for record in r.records(run) if not record.is_final})


_AGAIN = "the same on two other H200s, communication started ahead of the GEMMs"
_WITHOUT = "EP=2, BF16, every point in every round; no samples kept"
_SWEEPS = [
    _claim(
        EP4[0],
        "EP=4 on four GPUs, BF16 dispatch, racing over {:,} points",
        lambda: [num_points(EP4[0]), *_sweep(EP4[0])],
    ),
    _claim(EP4[1], "EP=4, FP8 dispatch", lambda: _sweep(EP4[1])),
    _claim(EP4[2], "EP=4, qwen3_30b_a3b, BF16", lambda: _sweep(EP4[2])),
    _claim(EP4[3], "EP=4, qwen3_30b_a3b, FP8", lambda: _sweep(EP4[3])),
    _claim(
        EP2_H200,
        "EP=2, deepseek_v3, BF16, racing over {:,} points",
        lambda: [num_points(EP2_H200), *_sweep(EP2_H200)],
    ),
    _claim(EP2_AGAIN, _AGAIN, lambda: _sweep(EP2_AGAIN)),
    _claim(EP2[2], "EP=2, FP8 dispatch, the same grid", lambda: _sweep(EP2[2])),
    _claim(EP2[3], _AGAIN, lambda: _sweep(EP2[3])),
    _claim(EP2_EXHAUSTIVE, _WITHOUT, lambda: _report(EP2_EXHAUSTIVE)),
    _claim(EP2_H100, "EP=2, BF16, racing", lambda: _sweep(EP2_H100)),
    _claim(f"{EP2_H100}-again", "the same in another order (`seed=7`)", lambda: _sweep(f"{EP2_H100}-again")),
    _claim(EP2[6], "EP=2, FP8 dispatch", lambda: _sweep(EP2[6])),
    _claim("h100x2-ep2-exhaustive", _WITHOUT, lambda: _report("h100x2-ep2-exhaustive")),
]


def _optima(run: str) -> list[object]:
    libraries = [r.optimal(run, backend).round_trip_us for backend in ("deepep", "deepep_v2", "nccl_ep")]
    return [*libraries, r.plain(run, "allgather").round_trip_us]


_FOUR = " | {:.1f} us | {:.1f} us | {:.1f} us | {:.1f} us |"
_FP8 = "h100x2-ep2-deepseek_v3-fp8-libraries"
_LIBRARIES = [
    Claim(
        PUBLISHED,
        _LINK.format(LIBRARIES)
        + "EP=2 on two H100s, BF16, `grid=standard`, five groups of the final, {:.0f} s"
        + _FOUR,
        lambda: [s.from_command_s(LIBRARIES), *_optima(LIBRARIES)],
    ),
    Claim(
        PUBLISHED,
        _LINK.format(f"{LIBRARIES}-again")
        + "the same again, nine minutes later, all kernels compiled, {:.0f} s"
        + _FOUR,
        lambda: [s.from_command_s(f"{LIBRARIES}-again"), *_optima(f"{LIBRARIES}-again")],
    ),
    Claim(PUBLISHED, _LINK.format(_FP8) + "FP8 dispatch" + _FOUR, lambda: _optima(_FP8)),
    Claim(PUBLISHED, _LINK.format(SMALL_TOKENS) + "qwen3_30b_a3b, BF16" + _FOUR, lambda: _optima(SMALL_TOKENS)),
    Claim(PUBLISHED, "the first includes {:.0f} s of compiling kernels", lambda: [s.compiling_s(LIBRARIES)]),
]

_NODE = "| [{0}]({0}/nodes/vm/NODE.json) | "
_NODES = [
    Claim(
        PUBLISHED,
        _NODE.format("h200x4-ep4-node") + "four H200s, no injected fault, {:.0f} s | PASS |",
        lambda: [r.node("h200x4-ep4-node")["wall_s"]],
    ),
    Claim(
        PUBLISHED,
        _NODE.format("h100x2-node") + "two H100s, no injected fault, {:.0f} s | PASS |",
        lambda: [r.node("h100x2-node")["wall_s"]],
    ),
    Claim(PUBLISHED, "`blocks=12`, {:.0f} s in two suite runs", lambda: [r.node("h100x2-node-slow")["wall_s"]]),
]

CLAIMS = [*_SWEEPS, *_LIBRARIES, *_NODES]
