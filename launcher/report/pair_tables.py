"""The tables of measured pairs: optimal, default and worst, per shared knob, overlapped, and baselines; pure."""

from __future__ import annotations

import math

from bench.backends import BACKENDS, shared_knobs
from bench.components import Estimate
from bench.records import Dtype
from launcher.analysis.measurements import Measurement, another_time
from launcher.analysis.overlap import Overlap
from launcher.analysis.pairs import Pair
from launcher.analysis.results import Results
from launcher.report import cells
from launcher.report.columns import (
    ANOTHER_RUN,
    CI95,
    COMBINE,
    DISPATCH,
    ISOLATED,
    LOGICAL,
    MAY_COST,
    MEDIAN,
    OVERLAPPED,
    PEAK,
    RATIO,
    ROUND_TRIP,
    SERIAL,
    SLOW_SHARE,
    SLOWDOWN,
    SPEED,
    SPREAD,
    WIRE,
    Column,
    headings,
)
from launcher.report.report import Report
from launcher.text import knobs_text, table

COLUMNS = (Column(""), Column("config"), MEDIAN, CI95, ANOTHER_RUN, SPREAD, LOGICAL, WIRE, PEAK)
"""Of the tables that have a row for each operation."""


def named_rows(results: Results) -> list[list[str]]:
    """Dispatch, combine and round trip of the optimal, the default and the worst pair; see ``COLUMNS``."""
    choice = results.choice
    named = (("optimal", choice.optimal), ("default", choice.default), ("worst", choice.worst))
    rows = [row for name, pair in named if pair is not None for row in _pair_rows(name, pair, results.elsewhere)]
    return [_without_scatter(row) for row in rows] if results.plan.is_dry else rows


def _without_scatter(row: list[str]) -> list[str]:
    """How much runs scatter is known of GPUs only."""
    return [*row[: COLUMNS.index(ANOTHER_RUN)], "", *row[COLUMNS.index(ANOTHER_RUN) + 1 :]]


def _pair_rows(name: str, pair: Pair, elsewhere: Estimate) -> list[list[str]]:
    rows = [
        _row(f"{name} dispatch", pair.dispatch, elsewhere),
        _row(f"{name} combine", pair.combine, elsewhere),
        _sum_row(f"{name} round trip", pair, elsewhere),
    ]
    if pair.full is None or pair.forward is None:
        return rows
    return [
        *rows,
        _row(f"{name} full dispatch", pair.full, elsewhere),
        _sum_row(f"{name} forward pass", pair.forward, elsewhere),
    ]


def _sum_row(name: str, pair: Pair, elsewhere: Estimate) -> list[str]:
    ends = cells.interval(pair.round_trip_ci95_us), cells.interval(pair.another_run_us(elsewhere))
    return [name, "", cells.time(pair.round_trip_us), *ends, "", "", "", ""]


def _row(name: str, measurement: Measurement, elsewhere: Estimate) -> list[str]:
    peak = "n/a" if measurement.peak_fraction is None else f"{measurement.peak_fraction:.0%}"
    logical, wire = measurement.logical_gb_per_s or 0.0, measurement.wire_gb_per_s or 0.0
    return [
        name,
        knobs_text(measurement.point.knobs),
        cells.time(measurement.median_us),
        cells.interval(measurement.ci95_us),
        cells.interval(another_time(list(measurement.by_round.values()), elsewhere)),
        f"{measurement.spread:.1%}" + (" unstable" if measurement.unstable else ""),
        f"{logical:.1f}",
        f"{wire:.1f}",
        peak,
    ]


def named(results: Results) -> list[str]:
    """The table of the optimal, the default and the worst pair, the optimal one in bold."""
    rows = named_rows(results)
    for row in rows:
        if row[0].startswith("optimal"):
            row[COLUMNS.index(MEDIAN)] = f"**{row[COLUMNS.index(MEDIAN)]}**"
    return table(headings(COLUMNS), rows)


def best_per_shared(report: Report) -> list[str]:
    """The best pair for each value of the shared knobs, those on the Pareto frontier marked."""
    results = report.results
    pairs = results.choice.best_per_shared
    title = " and ".join(shared_knobs(BACKENDS[results.plan.backend]))
    if not pairs or not title:
        return []
    frontier = [pair.shared for pair in results.choice.pareto]
    fastest = min(pairs, key=lambda pair: pair.round_trip_us)
    rows = [
        [
            cells.shared_values(pair) + (" *" if pair.shared in frontier else ""),
            cells.own_knobs(pair.dispatch, tuple(pair.shared)),
            cells.time(pair.dispatch.median_us),
            cells.own_knobs(pair.combine, tuple(pair.shared)),
            cells.time(pair.combine.median_us),
            cells.time(pair.round_trip_us, bold=pair is fastest),
            cells.interval(pair.round_trip_ci95_us),
        ]
        for pair in pairs
    ]
    return [
        f"## The best pair for each {title}",
        "",
        f"A dispatch and its combine share {title}. Pairs marked * are on the Pareto frontier: "
        "no pair is faster with less.",
        "",
        *table([title, "dispatch", DISPATCH.heading, "combine", *headings((COMBINE, ROUND_TRIP, CI95))], rows),
    ]


def overlapped(report: Report) -> list[str]:
    """The table of overlapped pairs."""
    results = report.results
    overlaps = results.choice.overlaps
    if not overlaps:
        return []
    workload = results.plan.spec.workload
    header = [
        *(", ".join(overlaps[0].pair.shared), "dispatch", "combine"),
        *headings((ISOLATED, OVERLAPPED, CI95, MAY_COST, SLOW_SHARE, SLOWDOWN, SERIAL, RATIO)),
    ]
    best_us = min(overlap.makespan_us for overlap in overlaps)
    return [
        "## Overlapped with expert GEMMs",
        "",
        "One dispatch and one combine on the library's own stream, overlapped with one layer's expert GEMMs "
        f"({overlaps[0].gemms.upper()}, hidden {workload.hidden}, moe_intermediate {workload.moe_intermediate}; "
        f"{overlaps[0].compute_isolated_us:.1f} us isolated). "
        "The best pair depends on the last column: where your ratio is lower, more SMs pay.",
        *_overlap_caveats(results),
        "",
        *table(header, [_overlap_row(overlap, bold=overlap.makespan_us == best_us) for overlap in overlaps]),
    ]


def _overlap_row(overlap: Overlap, *, bold: bool) -> list[str]:
    pair, slowdown = overlap.pair, overlap.slowdown_ci95
    return [
        cells.shared_values(pair),
        cells.own_knobs(pair.dispatch, tuple(pair.shared)),
        cells.own_knobs(pair.combine, tuple(pair.shared)),
        cells.time(pair.round_trip_us),
        cells.time(overlap.makespan_us, bold=bold),
        cells.interval(overlap.ci95_us),
        "n/a" if math.isinf(overlap.may_cost) else f"{100 * (overlap.may_cost - 1):.1f} %",
        f"{overlap.slow_share:.0%}",
        f"{overlap.slowdown:.2f}x ({slowdown.low:.2f} to {slowdown.high:.2f})",
        cells.time(overlap.serial_us) + ("" if overlap.is_serial_measured else " (sum)"),
        f"{overlap.compute_to_communication:.1f}",
    ]


def _overlap_caveats(results: Results) -> list[str]:
    """How not to read the numbers of this section."""
    caveats = []
    if results.plan.spec.workload.dtype is Dtype.FP8 and results.choice.overlaps[0].gemms is Dtype.BF16:
        caveats.append(
            "**The dispatch is FP8, the GEMMs are BF16**, since the run is older than FP8 GEMMs here or could not run "
            "them. FP8 GEMMs leave about half as much compute to hide behind."
        )
    if results.num_uncorrected:
        caveats.append(
            f"**{results.num_uncorrected} repetitions are not corrected for the power cap**, because no isolated GEMMs "
            "ran directly before and after them."
        )
    if any(overlap.slowdown_ci95.high < 1 for overlap in results.choice.overlaps):
        why = "the clocks of isolated and overlapped GEMMs differed"
        caveats.append(f"A GEMM slowdown significantly below 1 is not a gain: {why}.")
    return caveats


def own_tuning(report: Report) -> list[str]:
    """The best pair of the library's own tuning grid, measured in the same run."""
    choice = report.results.choice
    tuning, optimal = choice.own_tuning, choice.optimal
    if tuning is None or optimal is None:
        return []
    same = next((pair for pair in choice.best_per_shared if pair.shared == tuning.shared), None)
    rows = [
        [
            name,
            cells.config(pair),
            cells.time(pair.dispatch.median_us),
            cells.time(pair.combine.median_us),
            cells.time(pair.round_trip_us),
            f"{tuning.round_trip_us / pair.round_trip_us:.3f}x",
        ]
        for name, pair in (("best of its grid", tuning), ("our best with as many SMs", same), ("optimal", optimal))
        if pair is not None
    ]
    return [
        "## The library's own tuning grid, in the same run",
        "",
        "Its tuning script fixes the SMs and the buffer and varies only the chunk.",
        "",
        *table(["", "config", *headings((DISPATCH, COMBINE, ROUND_TRIP, SPEED))], rows),
    ]


def baselines(report: Report) -> list[str]:
    """The plain collectives of the same tokens, by operation."""
    results = report.results
    if any(BACKENDS[name].is_baseline for name in results.plan.spec.backends):
        return []
    if not results.plan.baselines:
        return ["## Plain collectives", "", "Not measured: NCCL does not allow several ranks on one GPU.", ""]
    rows = [
        _row(f"NCCL {BACKENDS[baseline.point.backend].title}, {baseline.point.op}", baseline, results.elsewhere)
        for baseline in results.baselines
    ]
    rows = [_without_scatter(row) for row in rows] if results.plan.is_dry else rows
    return ["## Plain collectives of the same tokens, by operation", "", *table(headings(COLUMNS), rows)]
