"""How to apply the optimal config: for each framework what to set; pure."""

from __future__ import annotations

from launcher.deploy.formats import EXPORTS
from launcher.report.report import Report
from launcher.text import table


def section(report: Report) -> list[str]:
    """For each framework what to set; the files themselves are the exports'."""
    if not _can_export(report):
        return []
    rows = [[export.framework, export.use, export.num_sms, export.chunk_and_buffer] for export in EXPORTS.values()]
    return [
        "## How to apply it",
        "",
        "`python -m launcher.export RUN` writes the files below for the pick *fastest*; `--pick overlapped` and the "
        "others write theirs into `exports/overlapped/` and so on. docs/APPLY.md says for each framework how to see "
        "that it took effect, and what was checked.",
        "",
        *table(("framework", "what to do", "num_sms", "nvl_chunk, nvl_buffer"), rows),
    ]


def files(report: Report) -> list[tuple[str, str]]:
    """What the run folder holds once it has been exported, each with what it is; empty for what nobody may deploy."""
    if not _can_export(report) or not report.has_times or report.results.plan.is_dry:
        return []
    names = ", ".join(export.file for export in EXPORTS.values())
    return [("exports/", f"once `python -m launcher.export RUN` has written them: {names}")]


def _can_export(report: Report) -> bool:
    return report.results.plan.spec.backend == "deepep" and report.results.choice.optimal is not None
