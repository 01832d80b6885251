"""Writes the files that put a tuned config into force next to its RESULTS file."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.backends import BACKENDS
from launcher.deploy.formats import render
from launcher.deploy.tuned import LIBRARY, TunedResults
from launcher.deploy.tuned import read as read_tuned
from launcher.errors import UserError
from launcher.store import results_file
from launcher.store.files import write_atomic


def export(path: Path, *, names: list[str], pick: str = "fastest") -> list[Path]:
    """Writes the exports of a run folder, or of a RESULTS file, next to that file; their paths.

    UserError when it has nothing to deploy.
    """
    results = results_file.locate(path)
    tuned = read_tuned(results)
    texts = render(tuned, pick=pick, names=names)
    for warning in warnings(tuned):
        print(f"note: {warning}", file=sys.stderr)
    return [_write(folder_of(results, pick) / name, text) for name, text in texts.items()]


def folder_of(results: Path, pick: str) -> Path:
    """The folder for the files of a pick: one folder each, since shim and arguments must be of one config."""
    folder = results.parent / "exports"
    return folder if pick == "fastest" else folder / pick


def warnings(tuned: TunedResults) -> list[str]:
    """Caveats on deploying it, a sentence each."""
    verdict = tuned.verdict
    doubts = [] if verdict.kind == "tuned" else [f"the verdict is {verdict.kind}: {verdict.meaning}"]
    others = [BACKENDS[each.name].title for each in tuned.results.libraries if each.name != LIBRARY]
    if others:
        doubts.append(f"exports are of {BACKENDS[LIBRARY].title} only, not of {', '.join(others)}")
    return doubts + [f"the run is incomplete: {part}" for part in tuned.missing_parts]


def _write(file: Path, text: str) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
    return file
