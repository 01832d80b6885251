"""Runs of the same sweep: how much their finals differ beyond their own errors; docs/METHODOLOGY.md, "Another run"."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from tests.rederived import records as r
from tests.rederived import sweeps as s
from tests.rederived.records import EP2, EP2_AGAIN, EP2_EXHAUSTIVE, EP2_H100, EP2_H200, LIBRARIES

Pair = tuple[str, str]
"""Two runs of the same sweep, the earlier first."""

_H100_EXHAUSTIVE = "h100x2-ep2-exhaustive"
SAME_GPUS: list[Pair] = [
    (EP2_H200, EP2_EXHAUSTIVE),
    (EP2_H100, f"{EP2_H100}-again"),
    (LIBRARIES, f"{LIBRARIES}-again"),
]
OTHER_GPUS: list[Pair] = [
    (EP2_H200, EP2_AGAIN),
    (EP2[2], EP2[3]),
    (EP2_EXHAUSTIVE, EP2_AGAIN),
    (_H100_EXHAUSTIVE, EP2_H100),
    (_H100_EXHAUSTIVE, f"{EP2_H100}-again"),
]

Label = tuple[str, str, r.Knobs]
"""Library, operation, config."""

_OPS = ("dispatch", "dispatch_full", "combine")
_NUM_GROUPS = 5


class Level(NamedTuple):
    """A time of a final: its log and the standard error of that."""

    log: float
    error: float


@functools.cache
def final(run: str) -> dict[Label, Level]:
    """Every time of a final: from its records, or from the report where no records are kept."""
    if run in (EP2_EXHAUSTIVE, _H100_EXHAUSTIVE):
        return dict(_of_report(run))
    libraries = ("deepep", "deepep_v2", "nccl_ep") if run.startswith(LIBRARIES) else ("deepep",)
    return {
        (library, op, knobs): _level(times)
        for library in libraries
        for op in _OPS
        for knobs, times in r.final(run, op, library).items()
    }


def _level(times: r.Times) -> Level:
    logs = np.log([*times.values()])
    return Level(r.centre(logs), float(logs.std(ddof=1)) / math.sqrt(len(logs)))


def _of_report(run: str) -> Iterator[tuple[Label, Level]]:
    for one in s.of_report(run)["measurements"]:
        if one["stage"] == "final" and one["backend"] == "deepep" and one["op"] in _OPS:
            low, high = one["ci95_us"]
            error = math.log(high / low) / 2 / stats.t.ppf(0.975, _NUM_GROUPS - 1)
            yield ("deepep", one["op"], s.knobs_of(one)), Level(math.log(one["median_us"]), error)


def in_both(pair: Pair) -> list[Label]:
    return sorted(final(pair[0]).keys() & final(pair[1]).keys())


def changes(pair: Pair, *ops: str) -> tuple[r.Floats, r.Floats]:
    """The log of B / A of each time in both finals, and its error within the two runs."""
    a, b = map(final, pair)
    labels = [label for label in in_both(pair) if not ops or label[1] in ops]
    return (
        np.array([b[label].log - a[label].log for label in labels]),
        np.array([math.hypot(b[label].error, a[label].error) for label in labels]),
    )


def component(changes: r.Floats, errors: r.Floats, *, target: float | None = None) -> float:
    """What a run adds to a log time, a standard deviation: Paule and Mandel's estimate."""

    def excess(scatter: float) -> float:
        return float(np.sum(changes**2 / (errors**2 + 2 * scatter**2))) - (target or len(changes))

    return float(optimize.brentq(excess, 0.0, 1.0)) if excess(0.0) > 0 else 0.0


def limit(changes: r.Floats, errors: r.Floats) -> float:
    """The upper 95 % limit of ``component``, by the Q profile."""
    return component(changes, errors, target=float(stats.chi2.ppf(0.05, len(changes))))


def pooled(components: list[float]) -> float:
    return math.sqrt(float(np.mean(np.square(components))))


def rounded_up(share: float) -> float:
    """In per cent, with two decimals."""
    return math.ceil(share * 10_000) / 100


def of_times(pairs: list[Pair], *ops: str) -> float:
    return pooled([component(*changes(pair, *ops)) for pair in pairs])


def of_ratios(pairs: list[Pair]) -> float:
    """Of the default over the pair of the fastest configs in A, for each num_sms."""
    return pooled([component(*np.array([*_ratios(pair)]).T) for pair in pairs])


def _ratios(pair: Pair) -> Iterator[tuple[float, float]]:
    a, labels = final(pair[0]), in_both(pair)
    for library in sorted({label[0] for label in labels}):
        default = _default(pair, library)
        change, error = _round_trip(pair, default)
        fastest: dict[tuple[str, int], Label] = {}
        for label in sorted((label for label in labels if label[0] == library), key=lambda label: -a[label].log):
            fastest[label[1], dict(label[2])["num_sms"]] = label
        for num_sms in sorted({num_sms for _, num_sms in fastest}):
            configs = [fastest.get((op, num_sms)) for op in ("dispatch", "combine")]
            both = [config for config in configs if config is not None]
            if len(both) == len(configs) and both != default:
                rival, rival_error = _round_trip(pair, both)
                yield rival - change, math.hypot(rival_error, error)


def _default(pair: Pair, library: str) -> list[Label]:
    known = r.default(next(run for run in pair if "exhaustive" not in run), library)
    return [(library, "dispatch", known.dispatch), (library, "combine", known.combine)]


def _round_trip(pair: Pair, labels: list[Label]) -> tuple[float, float]:
    """The log of B / A of a dispatch and a combine, and its error."""
    sums, errors = [], []
    for levels in map(final, pair):
        times = [math.exp(levels[label].log) for label in labels]
        sums.append(sum(times))
        errors.append(
            math.hypot(*(us * levels[label].error for us, label in zip(times, labels, strict=True))) / sums[-1]
        )
    return math.log(sums[1] / sums[0]), math.hypot(*errors)


def missed(pairs: list[Pair], scatter: float) -> int:
    """How many times lie outside the 95 % interval that the other run predicts for them, in both directions."""
    count = 0
    for first, second in pairs:
        for run, other in ((first, second), (second, first)):
            for label in in_both((first, second)):
                log, error = final(run)[label]
                half = math.sqrt(2) * _half_width(error, scatter)
                count += abs(final(other)[label].log - log) > half
    return count


def excluding_1(pair: Pair, scatter: float) -> int:
    """Of how many times the 95 % interval of B / A excludes 1."""
    a, b = map(final, pair)
    return sum(
        abs(b[label].log - a[label].log) > math.hypot(*(_half_width(run[label].error, scatter) for run in (a, b)))
        for label in in_both(pair)
    )


def _half_width(error: float, scatter: float) -> float:
    """Of a log time, with what a run adds; ``scatter`` is known, by Satterthwaite's degrees of freedom."""
    total = math.hypot(error, scatter)
    freedom = min((_NUM_GROUPS - 1) / max(error / total, 1e-3) ** 4, 1e6)
    return float(stats.t.ppf(0.975, freedom)) * total


def from_others(pair: Pair, pairs: list[Pair]) -> float:
    """The component that pairs without any of these two runs show."""
    return of_times([other for other in pairs if not set(other) & set(pair)])


def minutes(pair: Pair) -> float:
    """From the beginning of the first run to that of the second."""
    first, second = (float(r.json_of(run, "run.json")["created"]) for run in pair)
    return (second - first) / 60
