"""Two runs point by point: which points became slower or faster, or fail now, beyond chance; pure."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from bench.between import OTHER_GPUS, SAME_GPUS, Scatter
from bench.records import Op, Stage
from bench.stats import Floats, Interval
from launcher.comparison.levels import Levels, levels_of, ratio_interval, significant, slower_p
from launcher.comparison.run import ComparedRun, Pick, check_same, facts, hardware_differences, on_same_gpus
from launcher.errors import UserError

SCHEMA = "deepep-sweep/comparison/1"

SWEPT_TOLERANCE = 0.02
"""Least tolerance without a common final: on other GPUs, sweeps of one kind differ by more in one visit of a point."""

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


class Source(msgspec.Struct, frozen=True):
    """The file of a run, and when it was measured."""

    file: str
    started: str | None
    ended: str | None


class Difference(msgspec.Struct, frozen=True):
    """A fact in which the two runs differ."""

    field: str
    a: str
    b: str


class PointRow(msgspec.Struct, frozen=True):
    """One point: its medians, ``ratio`` = B / A with its 95 % CI, and the verdict.

    The interval allows for the scatter between runs (bench.between). An unstable point has none, since its ratio says
    nothing. ``gates``: whether `slower` would count as worse. ``failure``: its kind, where the point failed.
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
    """The pick of one name in each run; ``ratio`` is B / A of the times by which it is picked."""

    name: str
    a: Pick | None
    b: Pick | None
    ratio: float | None

    @property
    def is_overlapped(self) -> bool:
        """Whether it is picked by its overlapped time, and both runs have one."""
        return all(pick is not None and pick.overlapped_us is not None for pick in (self.a, self.b))

    @property
    def times_us(self) -> list[float | None]:
        """Times in A and B by which it is picked; round trips where one lacks an overlapped time."""
        name = "overlapped_us" if self.is_overlapped else "round_trip_us"
        return [None if pick is None else getattr(pick, name) for pick in (self.a, self.b)]


class Comparison(msgspec.Struct, frozen=True):
    """All results. ``gate``: which points make B worse by being slower: those of the final, or all.

    ``deployed``: the points of A's optimal pairs that both runs timed, which are tested first. ``scatter``: the
    standard deviation of a run's log time that intervals allow for, by whether the same GPUs measured both;
    ``scatter_limit``: the one that tests allow for. See bench.between.

    ``geometric_mean`` is over the ``num_ratios`` ratios of stable points, None without any. ``worse``: the points that
    make B worse. ``missing``: points and groups of a final that B lacks; a slower point could hide there.
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
    deployed: list[str]
    same_gpus: bool
    scatter: float
    scatter_limit: float


def compare(a: ComparedRun, b: ComparedRun, *, tolerance: float, unlike_hardware: bool = False) -> Comparison:
    """Compares B with A. UserError for runs of different things, and for different hardware unless that is allowed.

    ``tolerance``: a share of the time; UserError where the promise of few false alarms cannot hold.
    """
    hardware = _check(a, b, tolerance=tolerance, unlike_hardware=unlike_hardware)
    scatter = SAME_GPUS if on_same_gpus(a, b) else OTHER_GPUS
    timed = _timed_rows(a, b, tolerance=tolerance, scatter=scatter)
    rows = sorted([*timed, *_untimed_rows(a, b)], key=lambda row: row.order)
    ratios = [row.ratio for row in rows if row.ratio is not None and row.verdict != "unstable"]
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    return Comparison(
        schema=SCHEMA,
        a=_source(a),
        b=_source(b),
        notes=_notes(a, b, hardware),
        differences=_differences(facts(a), facts(b)),
        tolerance=tolerance,
        gate="final" if _fresh_labels(a, b) else "all",
        points=rows,
        picks=[pick for pick in _pair_picks(a.picks, b.picks) if not (pick.is_overlapped and _differ_in_timing(a, b))],
        geometric_mean=float(np.exp(np.log(ratios).mean())) if ratios else None,
        num_ratios=len(ratios),
        counts={verdict: count for verdict, count in counts.items() if count},
        worse=[row.point for row in rows if row.is_worse],
        missing=[row.point for row in rows if row.verdict == "missing in B"]
        + _missing_final(a, b)
        + ([] if a.results.dry_run else _missing_judgement(rows)),
        deployed=[row.point for row in timed if row.point in a.optimal],
        same_gpus=on_same_gpus(a, b),
        scatter=scatter.time,
        scatter_limit=scatter.time_limit,
    )


def _check(a: ComparedRun, b: ComparedRun, *, tolerance: float, unlike_hardware: bool) -> list[str]:
    """How the hardware differs, a phrase each. UserError as in ``compare``."""
    if not 0 <= tolerance < 1:
        raise UserError(f"tolerance must be at least 0 and below 1, got {tolerance:g}", hint="0.02 is two percent")
    check_same(a, b)
    hardware = hardware_differences(a, b)
    if hardware and not unlike_hardware:
        raise UserError(f"the hardware differs: {'; '.join(hardware)}", hint="--unlike-hardware compares anyway")
    if not (a.labels & b.labels) - (a.failed.keys() & b.failed.keys()):
        raise UserError("the two runs have no point in common", hint="sweep B with the grid of A")
    if tolerance < SWEPT_TOLERANCE and not _fresh_labels(a, b):
        raise UserError(
            f"tolerance must be at least {SWEPT_TOLERANCE:g} for runs without a common final, got {tolerance:g}",
            hint="measure both with a final, whose points can be compared at any tolerance",
        )
    return hardware


def _required_labels(a: ComparedRun) -> set[str]:
    """Labels that B must have measured, or failed: each dispatch and combine of A's final, or of all of A without one.

    Other points come with the configs that a final happens to choose, which two equal runs need not share.
    """
    points = {label: point for label, point in a.measured.items() if point.op in (Op.DISPATCH, Op.COMBINE)}
    return {label for label, point in points.items() if point.is_fresh} or set(points)


def _missing_judgement(rows: list[PointRow]) -> list[str]:
    """An entry of ``missing`` where every point that gates is unstable: then nothing was compared."""
    gating = {row.verdict for row in rows if row.gates}
    return ["a judgement: every point that gates is unstable"] if gating == {"unstable"} else []


def _missing_final(a: ComparedRun, b: ComparedRun) -> list[str]:
    """Groups of the final that B lacks, where A has a final."""
    search = b.results.search
    if not any(point.is_fresh for point in a.measured.values()):
        return []
    if not any(point.is_fresh for point in b.measured.values()):
        return ["the final"]
    lacking = search.final_groups - search.final_groups_measured
    return [f"{lacking} of {search.final_groups} groups of the final"] if lacking > 0 else []


def _fresh_labels(a: ComparedRun, b: ComparedRun) -> set[str]:
    """Labels that both runs measured in fresh process groups of a final."""
    timed = a.measured.keys() & b.measured.keys()
    return {label for label in timed if a.measured[label].is_fresh and b.measured[label].is_fresh}


def _gating_labels(a: ComparedRun, b: ComparedRun) -> set[str]:
    """Labels that may not be slower in B: those of both finals, and each run's optimal; empty without a common final.

    An optimal config counts even if it is not in the other run's final: being slower there may be why it is not.
    """
    fresh = _fresh_labels(a, b)
    return fresh | a.optimal | b.optimal if fresh else fresh


def _timed_rows(a: ComparedRun, b: ComparedRun, *, tolerance: float, scatter: Scatter) -> list[PointRow]:
    """Rows of the points that both runs timed."""
    labels = sorted(a.measured.keys() & b.measured.keys())
    if not labels:
        return []
    old, new = levels_of(a, labels), levels_of(b, labels)
    gates, deployed = (np.isin(labels, sorted(those)) for those in (_gating_labels(a, b) or labels, a.optimal))
    is_slower, is_faster = significant(
        _p_values(old, new, tolerance=tolerance, scatter=scatter.time_limit),
        (deployed, gates & ~deployed, ~gates & ~deployed),
    )
    lows, highs = ratio_interval(old.widened(scatter.time), new.widened(scatter.time))
    is_known = [not math.isnan(low) or not _is_unstable(a, b, label) for low, label in zip(lows, labels, strict=True)]
    return [
        PointRow(
            point=label,
            verdict=_timed_verdict(is_slower=is_slower[index], is_faster=is_faster[index], is_known=is_known[index]),
            gates=bool(gates[index]),
            a_us=a.measured[label].median_us,
            b_us=b.measured[label].median_us,
            ratio=b.measured[label].median_us / a.measured[label].median_us,
            ci95=None if np.isnan(lows[index]) else Interval(float(lows[index]), float(highs[index])),
            stage_a=a.measured[label].stage,
            stage_b=b.measured[label].stage,
        )
        for index, label in enumerate(labels)
    ]


def _p_values(old: Levels, new: Levels, *, tolerance: float, scatter: float) -> Floats:
    """That B is not slower than A by more than the tolerance, and not faster [2, points]."""
    a, b, margin = old.widened(scatter), new.widened(scatter), math.log1p(tolerance)
    return np.array([slower_p(a, b, margin=margin), slower_p(b, a, margin=margin)])


def _timed_verdict(*, is_slower: bool, is_faster: bool, is_known: bool) -> PointVerdict:
    if not is_known:
        return "unstable"
    return "slower" if is_slower else "faster" if is_faster else "same"


def _is_unstable(a: ComparedRun, b: ComparedRun, label: str) -> bool:
    return a.measured[label].unstable or b.measured[label].unstable


def _untimed_rows(a: ComparedRun, b: ComparedRun) -> list[PointRow]:
    """Rows of the points that failed, or that one run does not have."""
    required = _required_labels(a)
    labels = sorted((a.labels | b.labels) - (a.measured.keys() & b.measured.keys()))
    return [_untimed_row(a, b, label, is_required=label in required) for label in labels]


def _untimed_row(a: ComparedRun, b: ComparedRun, label: str, *, is_required: bool) -> PointRow:
    point_a, point_b = a.measured.get(label), b.measured.get(label)
    return PointRow(
        point=label,
        verdict=_untimed_verdict(a, b, label, is_required=is_required),
        a_us=None if point_a is None else point_a.median_us,
        b_us=None if point_b is None else point_b.median_us,
        stage_a=None if point_a is None else point_a.stage,
        stage_b=None if point_b is None else point_b.stage,
        failure=b.failed.get(label) or a.failed.get(label),
    )


def _untimed_verdict(a: ComparedRun, b: ComparedRun, label: str, *, is_required: bool) -> PointVerdict:
    if label not in b.labels:
        return "missing in B" if is_required else "only in A"
    if label not in a.labels:
        return "only in B"
    if label in a.failed:
        return "failed in both" if label in b.failed else "failed in A"
    return "failed in B"


def _pair_picks(a: dict[str, Pick], b: dict[str, Pick]) -> list[Picked]:
    """The picks of both runs by name, in the order of RESULTS."""
    names = dict.fromkeys([*a, *b])
    picks = [Picked(name, a.get(name), b.get(name), None) for name in names]
    return [msgspec.structs.replace(pick, ratio=_b_over_a(*pick.times_us)) for pick in picks]


def _differ_in_timing(a: ComparedRun, b: ComparedRun) -> bool:
    """Whether the two runs took overlapped times in different ways."""
    return a.results.timing != b.results.timing


def _b_over_a(a_us: float | None, b_us: float | None) -> float | None:
    return None if a_us is None or b_us is None else b_us / a_us


def _source(run: ComparedRun) -> Source:
    return Source(str(run.file), run.results.started, run.results.ended)


def _differences(a: dict[str, str], b: dict[str, str]) -> list[Difference]:
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return [Difference(name, a.get(name, "absent"), b.get(name, "absent")) for name in names]


def _notes(a: ComparedRun, b: ComparedRun, hardware: list[str]) -> list[str]:
    """Caveats on the numbers, a sentence each."""
    notes = []
    if a.results.dry_run:
        notes.append("Both are dry runs on CPUs: the times are not measurements of DeepEP.")
    if a.results.shared_gpus:
        notes.append("In both runs several ranks shared a GPU: the times mean nothing.")
    if _differ_in_timing(a, b):
        notes.append(
            f"The runs took times in different ways (timing {a.results.timing} and {b.results.timing}, "
            "docs/METHODOLOGY.md): those of pairs overlapped with GEMMs and of plain collectives cannot be compared."
        )
    if hardware:
        notes.append(f"The hardware differs: {'; '.join(hardware)}.")
    for name, run in (("A", a), ("B", b)):
        notes += [f"{name} is incomplete: {phrase}." for phrase in run.results.unfinished]
    return notes
