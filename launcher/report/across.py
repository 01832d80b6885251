"""What a report of several libraries begins with: the first picture, the verdict, and the tables; pure."""

from __future__ import annotations

from launcher.report import findings, library_tables, library_verdict, pictures
from launcher.report.report import Report
from launcher.text import text


def section(report: Report) -> list[str]:
    """Picture, verdict, picks of every library, plain collectives, and what has no result."""
    parts = (_picture, findings.section, library_tables.section, library_tables.plain_section)
    timed = [line for part in parts for line in part(report)] if report.has_times else []
    return [*timed, *without_result(report)]


def _picture(report: Report) -> list[str]:
    name = pictures.LIBRARIES
    return [f"![{pictures.caption(name)}]({name})", ""] if name in report.pictures else []


def without_result(report: Report) -> list[str]:
    """Libraries that were left out, or that have no time, with the reason."""
    lines = library_verdict.without_result(report.results)
    return ["## Without a result", "", *(f"* {text(line)}" for line in lines), ""] if lines else []
