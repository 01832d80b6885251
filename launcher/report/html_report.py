"""report.html: the report as one file that needs no network, with every point to sort and filter; pure."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, NamedTuple

import jinja2
import msgspec

from bench.backends import BACKENDS
from bench.records import Point
from launcher.analysis.results import Results
from launcher.report import columns, effect, heading, pair_tables, picks
from launcher.report.report import Report
from launcher.text import knobs_text

Cell = str | float | None


class PointColumn(NamedTuple):
    """A column of the table of points; the page shows ``meaning`` where the mouse rests."""

    heading: str
    meaning: str
    is_number: bool


def html(report: Report) -> str:
    """The whole page. Whatever a name or an error contains stays text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("launcher.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    results = report.results
    table = {"columns": _point_columns(results), "rows": list(_rows(results))}
    return environment.get_template("report.html").render(
        report=report,
        results=results,
        spec=results.plan.spec,
        choice=results.choice,
        verdict=results.choice.verdict,
        named_columns=pair_tables.COLUMNS,
        named=pair_tables.named_rows(results) if report.has_times else [],
        effect_columns=effect.COLUMNS,
        effect=effect.effect(results),
        pick_columns=picks.COLUMNS,
        pick_notes=picks.NOTES,
        picks=picks.rows(results.choice) if report.has_times else [],
        warnings=_warnings(report),
        pictures={_title(name): _data(svg) for name, svg in sorted(report.pictures.items(), reverse=True)}
        if report.has_times
        else {},
        table=_embed(table),
        knobs=knobs_text,
    )


def _warnings(report: Report) -> list[str]:
    """The notes to read before any number."""
    results = report.results
    warnings = [report.environments_note] if report.environments_note else []
    warnings += heading.caveats(report)
    if results.counts.missing:
        warnings.append(f"{results.counts.missing} of {results.counts.planned} points are missing.")
    warnings += results.unfinished
    if results.lacks_final:
        warnings.append("Groups of the final are missing: the times may flatter the winner.")
    return warnings + results.flags


def _point_columns(results: Results) -> list[PointColumn]:
    knobs = [knob.name for knob in BACKENDS[results.plan.backend].knobs]
    return [
        PointColumn("state", "measured, failed or missing", is_number=False),
        PointColumn("op", "the timed operation", is_number=False),
        *(PointColumn(name, "a knob of the backend", is_number=True) for name in knobs),
        PointColumn(*columns.MEDIAN, is_number=True),
        PointColumn("low us", "lower end of the median's 95 % CI", is_number=True),
        PointColumn("high us", "upper end of the median's 95 % CI", is_number=True),
        *(PointColumn(*column, is_number=True) for column in _NUMBERS),
        PointColumn("stage", "sweep or final", is_number=False),
        PointColumn("note", "role, other knobs, or the failure", is_number=False),
    ]


_NUMBERS = (columns.SPREAD, columns.LOGICAL, columns.WIRE, columns.PEAK)


def _rows(results: Results) -> Iterator[list[Cell]]:
    names = [knob.name for knob in BACKENDS[results.plan.backend].knobs]
    for cell in results.measurements:
        notes = ["unstable"] if cell.unstable else []
        yield [
            *_head("measured", cell.point, names),
            *(round(value, 2) for value in (cell.median_us, cell.ci95_us.low, cell.ci95_us.high)),
            round(cell.spread, 4),
            *(None if value is None else round(value, 1) for value in (cell.logical_gb_per_s, cell.wire_gb_per_s)),
            None if cell.peak_fraction is None else round(cell.peak_fraction, 3),
            cell.stage.value,
            ", ".join([cell.role.value, *notes, *_other_knobs(cell.point, names)]),
        ]
    for failure in results.failures:
        place = f"shard {failure.shard}" if failure.rank is None else f"shard {failure.shard}, rank {failure.rank}"
        note = f"{failure.kind} in {failure.phase} ({place}): {failure.message}"
        yield [*_head("failed", failure.point, names), *[None] * 7, None, note]
    for planned in results.missing:
        yield [*_head("missing", planned.point, names), *[None] * 7, None, planned.role.value]


def _head(state: str, point: Point, names: list[str]) -> list[Cell]:
    return [state, f"{point.op} {point.dtype}", *(point.knobs.get(name) for name in names)]


def _other_knobs(point: Point, names: list[str]) -> list[str]:
    """Knobs that have no column: those of a baseline, or of an overlapped pair."""
    return [f"{name} {value}" for name, value in point.knobs.items() if name not in names]


def _embed(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    plain = msgspec.json.encode(value).decode()
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(svg: str) -> str:
    """A picture as a data URL: nothing in it can reach the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _title(name: str) -> str:
    return name.removesuffix(".svg").replace("_", " ")
