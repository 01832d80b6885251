"""Writes every report of a run folder from its records."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.process import BaseProcess

from launcher.analysis import results
from launcher.analysis.results import Results
from launcher.config.plan import FINAL, Plan
from launcher.config.schema import Options
from launcher.errors import FAILURE, MISSING, OK, UserError
from launcher.report import findings, html_report, optimal_configs, results_json
from launcher.store import results_file, table
from launcher.store.accounting import read_accounting
from launcher.store.attempts import find_unfinished
from launcher.store.files import write_atomic
from launcher.store.records_file import read_records
from launcher.store.run_folder import RunFolder
from launcher.tuner import final, shard


class UnlikeEnvironmentsError(UserError):
    """The shards were measured in environments that must not share a ranking."""


def aggregate(folder: RunFolder, *, strict: bool = False, allow_mixed: bool = False, draw: bool = True) -> int:
    """Writes RESULTS_EP{n}.json and the reports in Markdown and HTML; the exit status.

    UnlikeEnvironmentsError when the records were measured in environments that must not share a ranking.

    Without ``draw`` the pictures that are there are shown: drawing takes longer than all the rest.
    """
    with table.without_gc():
        return _aggregate(folder, strict=strict, allow_mixed=allow_mixed, draw=draw)


def _is_complete(plan: Plan, folder: RunFolder, index: int) -> bool:
    """By the records: a try may have been ended behind the last of them, or have been refused beside another."""
    return final.is_complete(folder) if index == FINAL else shard.is_complete(plan, folder, index)


def _aggregate(folder: RunFolder, *, strict: bool, allow_mixed: bool, draw: bool) -> int:
    plan, manifest = folder.plan(), folder.manifest()
    found, damaged = read_records(folder)
    differing = results.unlike(found)
    if differing and not allow_mixed:
        raise UnlikeEnvironmentsError(
            f"the records were measured in unlike environments: {'; '.join(differing)}",
            hint="allow_mixed=true reports them apart",
        )
    accounting = read_accounting(folder)
    unfinished = [said for index, said in find_unfinished(folder).items() if not _is_complete(plan, folder, index)]
    parts = [
        results.build(plan, manifest, part, damaged, accounting=accounting, unfinished=unfinished)
        for part in results.by_environment(found)
    ]
    drawing = _drawing(folder, parts[0]) if draw else None
    for number, part in enumerate(parts):
        file = folder.path / optimal_configs.file_name(folder.results_file(plan.spec.ep.size).name, number)
        write_atomic(file, results_file.encode(results_json.document(part)))
    all_said = [findings.findings(part) for part in parts]
    if drawing is not None:
        drawing.join()
        if drawing.exitcode:
            raise RuntimeError(f"drawing ended with status {drawing.exitcode}; its traceback stands above")
    pictures = {file.name: file.read_text() for file in sorted(folder.path.glob("*.svg"))}
    shown = [pictures if part is parts[0] else {} for part in parts]
    texts, summaries = [], []
    for number, (part, own, said) in enumerate(zip(parts, shown, all_said, strict=True)):
        html = html_report.html(part, pictures=own, mixed=_mixed(parts, number, differing), said=said)
        write_atomic(folder.path / optimal_configs.file_name("report.html", number), html)
        texts.append(optimal_configs.markdown(part, pictures=sorted(own), number=number, said=said))
        summaries.append(optimal_configs.summary(part, number=number, said=said))
    write_atomic(folder.path / "SUMMARY.md", "\n---\n\n".join(summaries))
    write_atomic(folder.report_file, "\n---\n\n".join(texts))
    return _status(parts[0], strict=strict)


def _mixed(parts: list[Results], number: int, differing: list[str]) -> str:
    """Of a run in unlike environments: which of them a page is about, and where the others are."""
    if len(parts) == 1:
        return ""
    others = ", ".join(optimal_configs.file_name("report.html", at) for at in range(len(parts)) if at != number)
    return (
        f"Measured in {len(parts)} unlike environments ({'; '.join(differing)}), reported apart: this page is about "
        f"environment {number + 1}, {_device(parts[number])}. The others: {others}."
    )


def _device(part: Results) -> str:
    return "an unknown device" if part.environment is None else part.environment.device


def _drawing(folder: RunFolder, found: Results) -> BaseProcess | None:
    """A process that draws while this one writes; None where there is nothing to draw.

    It is forked, so that it needs no copy of the results, and none of the tool's threads is in it.
    """
    if not found.choice.best_per_shared or optimal_configs.means_nothing(found):
        return None
    process = multiprocessing.get_context("fork").Process(target=_draw, args=(folder, found))
    process.start()
    return process


def _draw(folder: RunFolder, found: Results) -> None:
    """Matplotlib takes a second to import, so only here. Ctrl-C reaches the parent too, which reports it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from launcher.report import plots

    for name, svg in plots.draw(found).items():
        write_atomic(folder.path / name, svg)


def _status(found: Results, *, strict: bool) -> int:
    if found.counts.missing or found.unfinished or found.lacks_final or (strict and found.counts.failed):
        return MISSING
    return OK


def report(folder: RunFolder, options: Options, *, draw: bool = True) -> int:
    """Aggregates; the exit status, FAILURE with its reason where the environments must not share a ranking."""
    try:
        return aggregate(folder, strict=options.strict, allow_mixed=options.allow_mixed, draw=draw)
    except UnlikeEnvironmentsError as error:
        error.show()
        return FAILURE
