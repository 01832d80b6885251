"""Writes every report of a run folder from its records."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from multiprocessing.process import BaseProcess

from launcher.analysis import results
from launcher.analysis.results import Results
from launcher.config.plan import FINAL, Plan
from launcher.config.schema import Options
from launcher.errors import FAILURE, MISSING, OK, UserError
from launcher.report import assembly, html_report, optimal_configs, results_json, summary
from launcher.report.report import Report, file_name
from launcher.store import results_file, table
from launcher.store.accounting import read_accounting
from launcher.store.attempts import find_unfinished
from launcher.store.files import write_atomic
from launcher.store.records_file import read_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, repeats, shard


class UnlikeEnvironmentsError(UserError):
    """The shards were measured in different environments, which must not share a ranking."""


def aggregate(
    folder: RunFolder, *, strict: bool = False, allow_mixed: bool = False, draw: bool = True, quiet: bool = False
) -> int:
    """Writes RESULTS_EP{n}.json and the reports in Markdown and HTML; the exit status.

    Raises UnlikeEnvironmentsError when the records come from different environments, unless ``allow_mixed``. Without
    ``draw`` the existing pictures are shown: drawing takes longer than everything else. What is missing goes to stderr,
    unless ``quiet``.
    """
    with table.without_gc():
        missing = _write_all(folder, strict=strict, allow_mixed=allow_mixed, draw=draw)
    if missing and not quiet:
        print(f"incomplete, exit status {MISSING}: {'; '.join(missing)}", file=sys.stderr)
    return MISSING if missing else OK


def _write_all(folder: RunFolder, *, strict: bool, allow_mixed: bool, draw: bool) -> list[str]:
    """Writes every report; what is missing, a phrase each."""
    plan = folder.plan()
    records, damaged = read_records(folder)
    differences = results.environment_differences(records)
    if differences and not allow_mixed:
        raise UnlikeEnvironmentsError(
            f"the records were measured in different environments: {'; '.join(differences)}",
            hint="allow_mixed=true reports them separately",
        )
    accounting = read_accounting(folder)
    unfinished = [
        sentence
        for index, sentence in find_unfinished(folder).items()
        if index >= FINAL and not _is_complete(plan, folder, index)
    ] + _missing_repeats(plan, folder)
    parts = [
        results.build(plan, folder.manifest(), part, damaged, accounting=accounting, unfinished=unfinished)
        for part in results.split_by_environment(records)
    ]
    drawing = _start_drawing(folder, parts[0]) if draw else None
    for number, part in enumerate(parts):
        file = folder.path / file_name(folder.results_file(plan.spec.ep.size).name, number)
        write_atomic(file, results_file.encode(results_json.document(part)))
    reports = [
        assembly.assemble(part, number=number, environments_note=_note(parts, number, differences))
        for number, part in enumerate(parts)
    ]
    if drawing is not None:
        _finish_drawing(drawing)
    pictures = {file.name: file.read_text() for file in sorted(folder.path.glob("*.svg"))}
    _write_pages(folder, [assembly.with_pictures(reports[0], pictures), *reports[1:]])
    return _missing(parts[0], strict=strict)


def _is_complete(plan: Plan, folder: RunFolder, index: int) -> bool:
    """Whether all records are there, even if the last attempt was killed after them or was refused."""
    return final.is_complete(folder) if index == FINAL else shard.is_complete(plan, folder, index)


def _missing_repeats(plan: Plan, folder: RunFolder) -> list[str]:
    """A sentence where planned repeats lack records."""
    missing = repeats.missing(folder, repeats.contestants(folder)) if plan.repeats else []
    return [f"{len(missing)} of {plan.repeats} repeats of the final are incomplete."] if missing else []


def _write_pages(folder: RunFolder, reports: list[Report]) -> None:
    """A page of HTML for each environment; the Markdown files hold all of them."""
    for page in reports:
        write_atomic(folder.path / page.file_name("report.html"), html_report.html(page))
    write_atomic(folder.path / "SUMMARY.md", "\n---\n\n".join(map(summary.markdown, reports)))
    write_atomic(folder.report_file, "\n---\n\n".join(map(optimal_configs.markdown, reports)))


def _note(parts: list[Results], number: int, differences: list[str]) -> str:
    """For a run in different environments: which one a page is about, and where the others are; else empty."""
    if len(parts) == 1:
        return ""
    others = ", ".join(file_name("report.html", other) for other in range(len(parts)) if other != number)
    environment = parts[number].environment
    device = "an unknown device" if environment is None else environment.device
    return (
        f"Measured in {len(parts)} different environments ({'; '.join(differences)}), reported separately: this "
        f"page is about environment {number + 1}, {device}. The others: {others}."
    )


def _start_drawing(folder: RunFolder, part: Results) -> BaseProcess | None:
    """A process that draws while this one writes; None where there is nothing to draw.

    A fork needs no copy of the results, and none of the program's threads is in it.
    """
    if not any(choice.best_per_shared for choice in part.choices.values()) or part.plan.spec.ep.share_gpus:
        return None
    process = multiprocessing.get_context("fork").Process(target=_draw, args=(folder, part))
    process.start()
    return process


def _draw(folder: RunFolder, part: Results) -> None:
    """Imports Matplotlib here, because that takes a second. Ctrl-C reaches the parent too, which reports it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from launcher.report import plots

    for name, svg in plots.draw(part).items():
        write_atomic(folder.path / name, svg)


def _finish_drawing(drawing: BaseProcess) -> None:
    drawing.join()
    if drawing.exitcode:
        raise RuntimeError(f"drawing ended with status {drawing.exitcode}; its traceback stands above")


def _missing(part: Results, *, strict: bool) -> list[str]:
    """Why the run is incomplete, a phrase each; empty if it is complete. ``strict``: no point may have failed."""
    counts, phrases = part.counts, []
    if counts.missing:
        phrases.append(f"{counts.missing} of {counts.planned} points are missing")
    phrases += [sentence[0].lower() + sentence.removesuffix(".")[1:] for sentence in part.unfinished]
    if part.lacks_final:
        phrases.append("groups of the final are missing")
    if strict and counts.failed:
        phrases.append(f"{counts.failed} of {counts.planned} points failed (strict)")
    return phrases


def report(folder: RunFolder, options: Options, *, draw: bool = True) -> int:
    """Aggregates; the exit status, which is FAILURE, with the reason on stderr, where the environments differ."""
    try:
        return aggregate(folder, strict=options.strict, allow_mixed=options.allow_mixed, draw=draw)
    except UnlikeEnvironmentsError as error:
        error.show()
        return FAILURE
