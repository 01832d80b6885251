"""How to apply the optimal config in each framework; pure."""

from __future__ import annotations

from bench.backends import BACKENDS
from launcher.deploy.formats import EXPORTS
from launcher.deploy.tuned import LIBRARY as EXPORTED
from launcher.report.report import Report
from launcher.text import table

ONLY = f"Exports are of {BACKENDS[EXPORTED].title} only."
"""What a report of several libraries must say."""


def section(report: Report) -> list[str]:
    """The setting for each framework; ``launcher.export`` writes the files."""
    if not can_export(report):
        return []
    rows = [[export.framework, export.use, export.num_sms, export.chunk_and_buffer] for export in EXPORTS.values()]
    return [
        "## How to apply it",
        "",
        "`python -m launcher.export RUN` writes the files below for the pick *fastest*; `--pick overlapped` writes "
        "them into `exports/overlapped/`, and so on. For each framework, docs/APPLY.md shows how to check that the "
        f"config took effect. {ONLY}",
        "",
        *table(("framework", "what to do", "num_sms", "nvl_chunk, nvl_buffer"), rows),
    ]


def files(report: Report) -> list[tuple[str, str]]:
    """Names and meanings of what ``launcher.export`` adds to the run folder; empty where nothing can be deployed."""
    part = report.libraries.get(EXPORTED, report)
    if not can_export(part) or not part.has_times or part.results.plan.is_dry:
        return []
    names = ", ".join(export.file for export in EXPORTS.values())
    return [("exports/", f"written by `python -m launcher.export RUN`: {names}")]


def can_export(report: Report) -> bool:
    """Whether there is something to export. Of several libraries, ask the report on one."""
    return report.results.plan.spec.backends == [EXPORTED] and report.results.choice.optimal is not None
