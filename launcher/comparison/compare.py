"""Two runs point by point: what became slower, faster, or fails now, and what of it is more than chance; pure."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from bench.records import Op, Stage
from bench.stats import ALPHA, DRIFT, MIN_GROUPS, Floats, Interval, holm
from launcher.comparison.run import ComparedRun, Pick, SavedMeasurement, check_same, facts, hardware_differences
from launcher.errors import UserError
from launcher.store.results_file import unfinished

SCHEMA = "deepep-sweep/comparison/1"

PointVerdict = Literal[
    "failed in B",
    "slower",
    "missing in B",
    "unstable",
    "same",
    "faster",
    "failed in A",
    "failed in both",
    "only in A",
    "only in B",
]

VERDICTS: tuple[PointVerdict, ...] = PointVerdict.__args__  # type: ignore[attr-defined]
"""Worst first."""

_MIN_SAMPLES = 6
"""Order statistics of fewer samples have no 95 % interval."""

_LIKE_NORMAL = 1e6
"""Degrees of freedom where the normal distribution is meant."""

_ROUNDING_US = 0.01 / math.sqrt(12)
"""Standard deviation of what RESULTS rounds away."""


class Source(msgspec.Struct, frozen=True):
    """Where a side comes from."""

    file: str
    started: str | None
    ended: str | None


class Difference(msgspec.Struct, frozen=True):
    """A fact that the two sides do not share."""

    field: str
    a: str
    b: str


class PointRow(msgspec.Struct, frozen=True):
    """One point: its medians, ``ratio`` = B / A with its 95 % interval, and the verdict.

    An unstable point has no interval, since its ratio says nothing. ``gates``: whether `slower` would count as worse.
    ``failure``: its kind, where the point failed.
    """

    point: str
    verdict: PointVerdict
    gates: bool = False
    a_us: float | None = None
    b_us: float | None = None
    ratio: float | None = None
    ci95: Interval | None = None
    stage_a: Stage | None = None
    stage_b: Stage | None = None
    failure: str | None = None

    @property
    def is_worse(self) -> bool:
        """Whether B may not pass because of this point."""
        return self.verdict == "failed in B" or (self.gates and self.verdict == "slower")

    @property
    def order(self) -> tuple[int, bool, float, str]:
        """Worst first; of one verdict first what gates, then the highest ratio."""
        return VERDICTS.index(self.verdict), not self.gates, -(self.ratio or 0.0), self.point


class Picked(msgspec.Struct, frozen=True):
    """What each side picks under one name; ``ratio`` of the times by which it is picked, B / A."""

    name: str
    a: Pick | None
    b: Pick | None
    ratio: float | None

    @property
    def is_beside_gemms(self) -> bool:
        """Whether it is picked by its time beside GEMMs, and both sides have one."""
        return all(pick is not None and pick.beside_gemms_us is not None for pick in (self.a, self.b))

    @property
    def times_us(self) -> list[float | None]:
        """A's and B's, by which it is picked; round trips where one lacks a time beside GEMMs."""
        name = "beside_gemms_us" if self.is_beside_gemms else "round_trip_us"
        return [None if pick is None else getattr(pick, name) for pick in (self.a, self.b)]


class Comparison(msgspec.Struct, frozen=True):
    """The whole of it. ``gate``: which points count as worse when they are slower, those of the final or all.

    ``geometric_mean`` is that of ``num_ratios`` ratios of stable points, None without any. ``worse``: the points that
    count as worse. ``missing``: what B has to have, so that nothing worse can hide: points and groups of a final.
    """

    schema: str
    a: Source
    b: Source
    notes: list[str]
    differences: list[Difference]
    tolerance: float
    gate: Literal["final", "all"]
    points: list[PointRow]
    picks: list[Picked]
    geometric_mean: float | None
    num_ratios: int
    counts: dict[PointVerdict, int]
    worse: list[str]
    missing: list[str]


def compare(a: ComparedRun, b: ComparedRun, *, tolerance: float, unlike_hardware: bool = False) -> Comparison:
    """What B is beside A. UserError for runs of different things, and for unlike hardware unless that is allowed."""
    if not 0 <= tolerance < 1:
        raise UserError(f"tolerance must be at least 0 and below 1, got {tolerance:g}", hint="0.02 is two percent")
    check_same(a, b)
    hardware = hardware_differences(a, b)
    if hardware and not unlike_hardware:
        raise UserError(
            f"the hardware is unlike: {'; '.join(hardware)}", hint="--unlike-hardware compares all the same"
        )
    if not (a.seen & b.seen) - (a.failed.keys() & b.failed.keys()):
        raise UserError("the two runs have no point in common", hint="sweep B with the grid of A")
    rows = sorted([*_timed(a, b, tolerance=tolerance), *_untimed(a, b)], key=lambda row: row.order)
    ratios = [row.ratio for row in rows if row.ratio is not None and row.verdict != "unstable"]
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    return Comparison(
        schema=SCHEMA,
        a=_source(a),
        b=_source(b),
        notes=_notes(a, b, hardware),
        differences=_differences(facts(a), facts(b)),
        tolerance=tolerance,
        gate="final" if _fresh(a, b) else "all",
        points=rows,
        picks=[one for one in _picked(a.picks, b.picks) if not (one.is_beside_gemms and _timed_otherwise(a, b))],
        geometric_mean=float(np.exp(np.log(ratios).mean())) if ratios else None,
        num_ratios=len(ratios),
        counts={verdict: count for verdict, count in counts.items() if count},
        worse=[row.point for row in rows if row.is_worse],
        missing=[row.point for row in rows if row.verdict == "missing in B"]
        + _missing_final(a, b)
        + ([] if a.document.dry_run else _unjudged(rows)),
    )


def _demanded(a: ComparedRun) -> set[str]:
    """What B must have measured, or failed: each dispatch and combine of A's final, without one each of A.

    The others come with the configs that a final happens to choose, which two equal runs need not share.
    """
    own = {label: one for label, one in a.measured.items() if one.op in (Op.DISPATCH, Op.COMBINE)}
    return {label for label, one in own.items() if one.is_fresh} or set(own)


def _unjudged(rows: list[PointRow]) -> list[str]:
    """What stands for all that gates where none of it can be judged: then nothing was compared."""
    gating = {row.verdict for row in rows if row.gates}
    return ["a judgement: every point that gates is unstable"] if gating == {"unstable"} else []


def _missing_final(a: ComparedRun, b: ComparedRun) -> list[str]:
    """Groups of the final that B has to have since A has a final."""
    search = b.document.search
    if not any(one.is_fresh for one in a.measured.values()):
        return []
    if not any(one.is_fresh for one in b.measured.values()):
        return ["the final"]
    lacking = search.final_groups - search.final_groups_measured
    return [f"{lacking} of {search.final_groups} groups of the final"] if lacking > 0 else []


def _fresh(a: ComparedRun, b: ComparedRun) -> set[str]:
    """The points that both sides measured in fresh process groups of a final."""
    timed = a.measured.keys() & b.measured.keys()
    return {label for label in timed if a.measured[label].is_fresh and b.measured[label].is_fresh}


def _gating(a: ComparedRun, b: ComparedRun) -> set[str]:
    """What may not be slower in B: points of both finals, and what either run chose; empty without a common final.

    What was chosen counts also where the other's final did not choose it, since it may be just for being slower there.
    """
    fresh = _fresh(a, b)
    return fresh | a.optimal | b.optimal if fresh else fresh


class _Levels(NamedTuple):
    """Log medians [points], their standard errors towards less and towards more, and the degrees of freedom of these.

    Errors are NaN where nothing is known of them.
    """

    log: Floats
    low: Floats
    high: Floats
    freedom: Floats

    @property
    def below(self) -> Floats:
        """From the log median to the low end of its 95 % interval."""
        return self.low * self._quantile

    @property
    def above(self) -> Floats:
        """From the log median to the high end of its 95 % interval."""
        return self.high * self._quantile

    @property
    def _quantile(self) -> Floats:
        return np.array([_quantile(freedom) for freedom in self.freedom])


def _levels(side: ComparedRun, labels: list[str]) -> _Levels:
    groups = side.document.search.final_groups_measured
    return _Levels(*np.array([_level(side.measured[label], groups) for label in labels]).T)


def _level(one: SavedMeasurement, groups: int) -> tuple[float, float, float, float]:
    """The row of _Levels behind a median and its interval in RESULTS.

    What processes add is in the interval only where fresh ones were seen; elsewhere, and so in the passes beside GEMMs,
    it is added. What spikes add is so as well: of an unstable point of one set of processes nothing is known.
    """
    is_student = one.is_fresh and groups >= MIN_GROUPS
    freedom = groups - 1 if is_student else _LIKE_NORMAL
    more = math.hypot(0.0 if is_student else DRIFT, _ROUNDING_US / one.median_us)
    if not is_student and (one.unstable or one.num_samples < _MIN_SAMPLES):
        more = math.nan
    low, high = (abs(math.log(end / one.median_us)) / _quantile(freedom) for end in one.ci95_us)
    return math.log(one.median_us), math.hypot(low, more), math.hypot(high, more), freedom


@functools.cache
def _quantile(freedom: float) -> float:
    return float(scipy_stats.t.ppf(0.975, freedom))


def _timed(a: ComparedRun, b: ComparedRun, *, tolerance: float) -> list[PointRow]:
    """The points that have a time on both sides."""
    labels = sorted(a.measured.keys() & b.measured.keys())
    if not labels:
        return []
    old, new = _levels(a, labels), _levels(b, labels)
    gates = np.isin(labels, sorted(_gating(a, b) or labels))
    margin = math.log1p(tolerance)
    p_values = np.array([_slower_p(old, new, margin=margin), _slower_p(new, old, margin=margin)])
    is_slower, is_faster = _significant(p_values, gates)
    lows, highs = _interval(old, new)
    is_known = [not math.isnan(low) or not _is_unstable(a, b, label) for low, label in zip(lows, labels, strict=True)]
    return [
        PointRow(
            point=label,
            verdict=_told(is_slower=is_slower[at], is_faster=is_faster[at], is_known=is_known[at]),
            gates=bool(gates[at]),
            a_us=a.measured[label].median_us,
            b_us=b.measured[label].median_us,
            ratio=b.measured[label].median_us / a.measured[label].median_us,
            ci95=None if np.isnan(lows[at]) else Interval(float(lows[at]), float(highs[at])),
            stage_a=a.measured[label].stage,
            stage_b=b.measured[label].stage,
        )
        for at, label in enumerate(labels)
    ]


def _told(*, is_slower: bool, is_faster: bool, is_known: bool) -> PointVerdict:
    if not is_known:
        return "unstable"
    return "slower" if is_slower else "faster" if is_faster else "same"


def _is_unstable(a: ComparedRun, b: ComparedRun, label: str) -> bool:
    return a.measured[label].unstable or b.measured[label].unstable


def _interval(old: _Levels, new: _Levels) -> tuple[Floats, Floats]:
    """Both ends of the 95 % interval of each ratio new / old.

    That of a difference of logs, by MOVER: from the difference as far as both medians are from the ends of their own
    intervals, in quadrature [Zou and Donner 2008, Statistics in Medicine 27:1693].
    """
    change = new.log - old.log
    low, high = change - np.hypot(new.below, old.above), change + np.hypot(new.above, old.below)
    return np.exp(low), np.exp(high)


def _slower_p(old: _Levels, new: _Levels, *, margin: float) -> Floats:
    """One-sided p-values that ``new`` is not slower by more than ``margin``, in logs.

    Welch's test: Student's distribution with Satterthwaite's degrees of freedom [Satterthwaite 1946, Biometrics 2:110].
    """
    first, second = old.high**2, new.low**2
    freedom = (first + second) ** 2 / (first**2 / old.freedom + second**2 / new.freedom)
    found: Floats = scipy_stats.t.sf((new.log - old.log - margin) / np.sqrt(first + second), freedom)
    return found


def _significant(p_values: Floats, gates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of the hypotheses [slower and faster, points] hold, at 5 % for all of them together.

    What gates shares one half of the 5 %, what does not the other, so that a thousand points of the sweep cannot hide
    what the final found; in each half by Holm's correction.
    """
    found = np.zeros(p_values.shape, dtype=bool)
    families = [family for family in (gates, ~gates) if family.any()]
    for family in families:
        tested = p_values[:, family]
        found[:, family] = holm(tested.ravel(), alpha=ALPHA / len(families)).reshape(tested.shape)
    return found


def _untimed(a: ComparedRun, b: ComparedRun) -> list[PointRow]:
    """The points that failed, or that one side has not."""
    found = []
    demanded = _demanded(a)
    for label in sorted((a.seen | b.seen) - (a.measured.keys() & b.measured.keys())):
        one, other = a.measured.get(label), b.measured.get(label)
        row = PointRow(
            point=label,
            verdict=_verdict(a, b, label, is_demanded=label in demanded),
            a_us=None if one is None else one.median_us,
            b_us=None if other is None else other.median_us,
            stage_a=None if one is None else one.stage,
            stage_b=None if other is None else other.stage,
            failure=b.failed.get(label) or a.failed.get(label),
        )
        found.append(row)
    return found


def _verdict(a: ComparedRun, b: ComparedRun, label: str, *, is_demanded: bool) -> PointVerdict:
    if label not in b.seen:
        return "missing in B" if is_demanded else "only in A"
    if label not in a.seen:
        return "only in B"
    if label in a.failed:
        return "failed in both" if label in b.failed else "failed in A"
    return "failed in B"


def _picked(a: dict[str, Pick], b: dict[str, Pick]) -> list[Picked]:
    """The picks that either side has, in the order of RESULTS."""
    names = dict.fromkeys([*a, *b])
    found = [Picked(name, a.get(name), b.get(name), None) for name in names]
    return [msgspec.structs.replace(one, ratio=_ratio(*one.times_us)) for one in found]


def _timed_otherwise(a: ComparedRun, b: ComparedRun) -> bool:
    """Whether times beside GEMMs mean two things."""
    return a.document.timing != b.document.timing


def _ratio(a_us: float | None, b_us: float | None) -> float | None:
    return None if a_us is None or b_us is None else b_us / a_us


def _source(side: ComparedRun) -> Source:
    return Source(str(side.file), side.document.started, side.document.ended)


def _differences(a: dict[str, str], b: dict[str, str]) -> list[Difference]:
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return [Difference(name, a.get(name, "absent"), b.get(name, "absent")) for name in names]


def _notes(a: ComparedRun, b: ComparedRun, hardware: list[str]) -> list[str]:
    """What makes the numbers worth less, a sentence each."""
    found = []
    if a.document.dry_run:
        found.append("Both are dry runs on CPUs: what is compared are no measurements of DeepEP.")
    if a.document.shared_gpus:
        found.append("In both several ranks shared a GPU: the times mean nothing.")
    if _timed_otherwise(a, b):
        found.append(
            f"Times beside GEMMs and of the all-to-all were taken in two ways (timing {a.document.timing} and "
            f"{b.document.timing}, docs/METHODOLOGY.md), and say nothing beside each other."
        )
    if hardware:
        found.append(f"The hardware is unlike: {'; '.join(hardware)}.")
    for name, side in (("A", a), ("B", b)):
        found += [f"{name} is not whole: {lack}." for lack in unfinished(side.document.points, side.document.search)]
    return found
