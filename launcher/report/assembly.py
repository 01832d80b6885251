"""From results to the report on them; of several libraries, with a report on each; pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.analysis.results import Results
from launcher.report import findings, library_verdict, pictures
from launcher.report.report import Report


def assemble(results: Results, *, number: int = 0, environments_note: str = "") -> Report:
    """The report without pictures."""
    names = results.plan.spec.backends
    if len(names) == 1:
        return Report(results, findings.findings(results), number=number, environments_note=environments_note)
    parts = [results.of(name) for name in names]
    libraries = {
        part.plan.backend: Report(part, findings.of_one_library(part), number=number, is_part=True) for part in parts
    }
    sentences = library_verdict.sentences(results) if not results.plan.spec.ep.share_gpus else []
    return Report(results, sentences, number=number, environments_note=environments_note, libraries=libraries)


def with_pictures(report: Report, drawn: Mapping[str, str]) -> Report:
    """The report with these pictures, by file name; each library has its own."""
    replace = msgspec.structs.replace
    libraries = {name: replace(part, pictures=pictures.own(drawn, name)) for name, part in report.libraries.items()}
    return replace(report, pictures=drawn, libraries=libraries)
