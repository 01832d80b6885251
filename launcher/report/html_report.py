"""report.html: the report as one file that needs no network, with every point to sort and filter; pure."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import msgspec

from bench.backends import BACKENDS
from bench.records import Point
from launcher.analysis.results import Results
from launcher.config.plan import shard_name
from launcher.deploy.tuned import LIBRARY as EXPORTED
from launcher.report import (
    columns,
    components_table,
    effect,
    heading,
    layer_table,
    library_tables,
    library_verdict,
    pair_tables,
    picks,
)
from launcher.report.columns import Column
from launcher.report.pictures import LIBRARIES, caption, kind_of
from launcher.report.report import Report
from launcher.text import knobs_text

Cell = str | float | None


class PointColumn(NamedTuple):
    """A column of the table of points; the page shows ``meaning`` where the mouse rests."""

    heading: str
    meaning: str
    is_number: bool


class PageTable(NamedTuple):
    """A table of the page.

    ``words``: how many columns from the left hold words, and ``ends_with_words``: whether the last does. ``note``: the
    column of words that may be wrapped, from 0. ``best``: rows to emphasise.
    """

    columns: Sequence[Column]
    rows: list[list[str]]
    words: int = 1
    ends_with_words: bool = False
    note: int | None = None
    best: Sequence[int] = ()

    def css(self, column: int) -> str:
        """The class of a column's cells."""
        is_last = self.ends_with_words and column == len(self.columns) - 1
        names = ["word"] if column < self.words or is_last else []
        return " ".join(names + (["note"] if column == self.note else []))


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
        title=_page_title(report),
        warnings=_warnings(report),
        across=_across(report) if report.libraries and report.has_times else None,
        without_result=library_verdict.without_result(results) if report.libraries else [],
        parts=[_part(part) for part in report.libraries.values() or [report]],
        layers=_layers(results) if report.has_times else PageTable((), []),
        components=PageTable(components_table.COLUMNS, components_table.rows(results)),
        components_title=components_table.TITLE,
        components_note=components_table.explanation(results),
        layers_note=layer_table.explanation(results),
        table=_embed(table),
        knobs=knobs_text,
    )


def _page_title(report: Report) -> str:
    if report.libraries:
        return report.title
    name = report.results.plan.backend
    return "DeepEP" if name == EXPORTED else f"The {name} backend"


def _across(report: Report) -> dict[str, Any]:
    """What compares the libraries."""
    results = report.results
    rows = library_tables.rows(results)
    best = [at for at, row in enumerate(rows) if row[1] == library_tables.OPTIMUM]
    return {
        "picture": _figures({LIBRARIES: report.pictures[LIBRARIES]} if LIBRARIES in report.pictures else {}),
        "libraries": PageTable(library_tables.COLUMNS, rows, words=2, ends_with_words=True, best=best),
        "notes": library_tables.notes(results),
        "plain": PageTable(library_tables.PLAIN_COLUMNS, library_tables.plain_rows(results)),
        "plain_notes": library_tables.plain_notes(results),
        "comparisons": PageTable(
            library_tables.COMPARISON_COLUMNS, library_tables.comparison_rows(results), words=4, ends_with_words=True
        ),
    }


def _part(report: Report) -> dict[str, Any]:
    """What is shown of one library."""
    choice = report.results.choice
    named = pair_tables.named_rows(report.results) if report.has_times else []
    best = [at for at, row in enumerate(named) if row[0].startswith("optimal")]
    return {
        "report": report,
        "choice": choice,
        "verdict": choice.verdict,
        "named": PageTable(pair_tables.COLUMNS, named, words=2, best=best),
        "picks": PageTable(picks.COLUMNS, picks.rows(report.results) if report.has_times else [], words=2, note=1),
        "pick_notes": picks.notes(report.results),
        "effect": effect.effect(report.results),
        "effect_columns": effect.COLUMNS,
        "figures": _figures(report.pictures if report.has_times else {}),
    }


def _layers(results: Results) -> PageTable:
    columns, rows = layer_table.make_table(results)
    return PageTable(columns, rows, words=3, ends_with_words=True)


def _figures(pictures: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Class, caption and address of each picture."""
    ordered = sorted(pictures.items(), reverse=True)
    return [(kind_of(name).split("_")[0], caption(name), _data(svg)) for name, svg in ordered]


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
    return [
        PointColumn("state", "measured, failed or missing", is_number=False),
        *([PointColumn("library", "or plain collective", is_number=False)] if _has_several(results) else []),
        PointColumn("op", "the timed operation", is_number=False),
        *(PointColumn(name, "a knob of the backend", is_number=True) for name in _knobs(results)),
        PointColumn(*columns.MEDIAN, is_number=True),
        PointColumn("low us", "lower end of the median's 95 % CI", is_number=True),
        PointColumn("high us", "upper end of the median's 95 % CI", is_number=True),
        *(PointColumn(*column, is_number=True) for column in _NUMBERS),
        PointColumn("stage", "sweep or final", is_number=False),
        PointColumn("note", "role, other knobs, or the failure", is_number=False),
    ]


_NUMBERS = (columns.SPREAD, columns.LOGICAL, columns.WIRE, columns.PEAK)


def _has_several(results: Results) -> bool:
    return len(results.plan.spec.backends) > 1


def _knobs(results: Results) -> list[str]:
    """The knobs of all libraries, each once."""
    return list(dict.fromkeys(knob.name for name in results.plan.spec.backends for knob in BACKENDS[name].knobs))


def _rows(results: Results) -> Iterator[list[Cell]]:
    head, names = _Head(results), _knobs(results)
    for cell in results.measurements:
        notes = [head.baseline(cell.point), *(["unstable"] if cell.unstable else [])]
        yield [
            *head.cells("measured", cell.point),
            *(round(value, 2) for value in (cell.median_us, cell.ci95_us.low, cell.ci95_us.high)),
            round(cell.spread, 4),
            *(None if value is None else round(value, 1) for value in (cell.logical_gb_per_s, cell.wire_gb_per_s)),
            None if cell.peak_fraction is None else round(cell.peak_fraction, 3),
            cell.stage.value,
            ", ".join(filter(None, [cell.role.value, *notes, *_other_knobs(cell.point, names)])),
        ]
    for failure in results.failures:
        shard = shard_name(failure.shard)
        place = shard if failure.rank is None else f"{shard}, rank {failure.rank}"
        note = f"{failure.kind} in {failure.phase} ({place}): {failure.message}"
        yield [*head.cells("failed", failure.point), *[None] * 7, None, note]
    for planned in results.missing:
        yield [*head.cells("missing", planned.point), *[None] * 7, None, planned.role.value]


class _Head:
    """The first cells of a row of the table of points."""

    def __init__(self, results: Results) -> None:
        self._several, self._names = _has_several(results), _knobs(results)
        self._libraries = results.plan.spec.backends

    def cells(self, state: str, point: Point) -> list[Cell]:
        """State, library where there are several, operation, and the value of each knob."""
        library = [BACKENDS[point.backend].title] if self._several else []
        return [state, *library, f"{point.op} {point.dtype}", *(point.knobs.get(name) for name in self._names)]

    def baseline(self, point: Point) -> str:
        """The name of a plain collective, where no column has it."""
        return "" if self._several or point.backend in self._libraries else BACKENDS[point.backend].title


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
