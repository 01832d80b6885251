"""The measured numbers of docs/METHODOLOGY.md, "Another run"."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.rederived import like_runs as like
from tests.rederived import sweeps as s
from tests.rederived.claims.published_ep4 import ends
from tests.rederived.documents import METHODOLOGY, Claim
from tests.rederived.like_runs import OTHER_GPUS, SAME_GPUS, Pair
from tests.rederived.records import EP2_H100

_BOTH = (SAME_GPUS, OTHER_GPUS)
_KNOWN = 1e-12
"""No component: the runs' own errors only."""

_LIMITS = {id(SAME_GPUS): 0.0035, id(OTHER_GPUS): 0.006}
"""As the program rounds them up."""


def _components(pairs: list[Pair]) -> list[object]:
    """Of a time, of a ratio, the upper limit in the noisiest pair, all in per cent; the pairs and their times."""
    highest, rounded = max(like.limit(*like.changes(pair)) for pair in pairs), _LIMITS[id(pairs)]
    assert highest <= rounded <= highest + 0.0002
    shares = like.rounded_up(like.of_times(pairs)), like.rounded_up(like.of_ratios(pairs)), 100 * rounded
    return [*shares, len(pairs), _num_times(pairs)]


def _num_times(pairs: list[Pair]) -> int:
    return sum(len(like.in_both(pair)) for pair in pairs)


def _added() -> list[object]:
    """What other GPUs add to a run on the same ones."""
    (time, ratio, *_), (other_time, other_ratio, *_) = map(_components, _BOTH)
    return [
        math.sqrt(float(str(other)) ** 2 - float(str(same)) ** 2)
        for other, same in ((other_time, time), (other_ratio, ratio))
    ]


def _scatter(pairs: list[Pair]) -> float:
    """Of a time, as the program rounds it up."""
    return like.rounded_up(like.of_times(pairs)) / 100


def _shares(counts: Sequence[int], *, directions: int) -> list[object]:
    totals = [directions * _num_times(pairs) for pairs in _BOTH]
    return [number for one, total in zip(counts, totals, strict=True) for number in (one, total, 100 * one / total)]


def _excluding(*, component: bool) -> list[object]:
    counts = [
        sum(like.excluding_1(pair, _scatter(pairs) if component else _KNOWN) for pair in pairs) for pairs in _BOTH
    ]
    return _shares(counts, directions=1)


def _outside_with_others(pair: Pair) -> int:
    pairs = SAME_GPUS if pair in SAME_GPUS else OTHER_GPUS
    return like.excluding_1(pair, like.from_others(pair, pairs))


def _worst_pairs() -> list[object]:
    numbers: list[object] = []
    for pairs in _BOTH:
        worst = max(pairs, key=lambda pair: _outside_with_others(pair) / len(like.in_both(pair)))
        outside, count = _outside_with_others(worst), len(like.in_both(worst))
        numbers += [outside, count, 100 * outside / count]
    return numbers


def _each() -> list[object]:
    same, other = ([100 * like.component(*like.changes(pair)) for pair in pairs] for pairs in _BOTH)
    return [*sorted(same), *ends(other)]


def _points_of_the_sweep() -> list[object]:
    """The most points that differ by 4 % on other GPUs, of how many; the largest ratio on the same GPUs."""
    pairs = [pair for pair in OTHER_GPUS if "exhaustive" not in pair[0]]
    again = s.medians(EP2_H100), s.medians(f"{EP2_H100}-again")
    return [
        max(len(s.differing(*pair, 0.04)) for pair in pairs),
        *{len(s.medians(first).keys() & s.medians(second).keys()) for first, second in pairs},
        max(again[1][cell] / again[0][cell] for cell in again[0].keys() & again[1].keys()),
    ]


_ROW = " | {:.2f} % | {:.2f} % | {:.2f} % | {} pairs of runs, {} times |"
_COUNTS = " | {} of {}, {:.1f} % | {} of {}, {:.1f} % |"
CLAIMS = [
    Claim(
        METHODOLOGY,
        "| the same GPUs, {:.0f} to {:.0f} minutes later" + _ROW,
        lambda: [*ends([like.minutes(pair) for pair in SAME_GPUS]), *_components(SAME_GPUS)],
    ),
    Claim(
        METHODOLOGY,
        "| other GPUs of the kind, {:.0f} minutes to {:.1f} days later" + _ROW,
        lambda: [
            min(like.minutes(pair) for pair in OTHER_GPUS),
            max(like.minutes(pair) for pair in OTHER_GPUS) / 60 / 24,
            *_components(OTHER_GPUS),
        ],
    ),
    Claim(METHODOLOGY, "other GPUs add {:.2f} % to a time and {:.2f} % to a ratio", _added),
    Claim(
        METHODOLOGY,
        "| B outside the interval for another run, by A's own error alone" + _COUNTS,
        lambda: _shares([like.missed(pairs, _KNOWN) for pairs in _BOTH], directions=2),
    ),
    Claim(
        METHODOLOGY,
        "| B outside the interval of A for another run" + _COUNTS,
        lambda: _shares([like.missed(pairs, _scatter(pairs)) for pairs in _BOTH], directions=2),
    ),
    Claim(
        METHODOLOGY, "| B / A, by the errors of both runs, excludes 1" + _COUNTS, lambda: _excluding(component=False)
    ),
    Claim(METHODOLOGY, "| B / A, with the components, excludes 1" + _COUNTS, lambda: _excluding(component=True)),
    Claim(
        METHODOLOGY,
        "| the same, with components from runs other than these two" + _COUNTS,
        lambda: _shares([sum(map(_outside_with_others, pairs)) for pairs in _BOTH], directions=1),
    ),
    Claim(
        METHODOLOGY,
        "the component is {:.2f}, {:.2f} and {:.2f} % on the same GPUs, and {:.2f} to {:.2f} % on others",
        _each,
    ),
    Claim(
        METHODOLOGY,
        "A single pair may have more outside: {} of {} ({:.0f} %) on two H100s and {} of {} ({:.0f} %) on two pairs of "
        "H200s",
        _worst_pairs,
    ),
    Claim(
        METHODOLOGY,
        "scatter more than cached ones and combines ({:.1f} % against {:.2f} % on other GPUs)",
        lambda: [100 * like.of_times(OTHER_GPUS, *ops) for ops in (("dispatch_full",), ("dispatch", "combine"))],
    ),
    Claim(
        METHODOLOGY,
        "None of the {} comparisons of published like runs, each pair in both directions",
        lambda: [2 * len([*SAME_GPUS, *OTHER_GPUS])],
    ),
    Claim(
        METHODOLOGY,
        "On other GPUs up to {} of {:,} points differ by more than 4 %",
        lambda: _points_of_the_sweep()[:2],
    ),
    Claim(
        METHODOLOGY,
        "one combine took {:.1f} times as long in one run",
        lambda: _points_of_the_sweep()[2:],
    ),
]
