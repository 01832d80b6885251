"""Writes the summary of a validation from its files and Slurm's words, and says the exit status."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from launcher import slurm, store
from launcher.errors import UserError
from launcher.store import write_atomic
from launcher.validation import fleet, outputs, reference
from launcher.validation.fleet import Fleet, Row
from launcher.validation.folder import ValidationFolder
from launcher.validation.settings import Options
from launcher.validation.verdict import Verdict, exit_status


def collect(folder: ValidationFolder) -> Fleet:
    """Every node of the order with what is known of it."""
    order = folder.order()
    states = slurm.states(order.jobs.values()) if order.jobs and slurm.available() else {}
    rows = [fleet.skipped(skip.node, skip.code, skip.why) for skip in order.skipped]
    for name in order.nodes:
        job = order.jobs.get(name)
        state = states[job].state if job in states else None
        rows.append(_row(folder, name, job, state))
    return fleet.judge(rows, order.spec.thresholds)


def _row(folder: ValidationFolder, name: str, job: str | None, state: str | None) -> Row:
    try:
        return fleet.row_of(name, job, state, folder.result(name))
    except UserError as error:
        return Row(name, Verdict.NO_RESULT, "U901", "U901 unreadable", str(error), job)


def write(folder: ValidationFolder, options: Options) -> int:
    """NODES.md, NODES.json, junit.xml and nodes.prom; the Nagios line on stdout; the exit status."""
    found = collect(folder)
    now = time.time()
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    run = str(folder.path)
    status = exit_status(found.verdicts, strict=options.strict)
    plain = outputs.to_json(found, run=run, when=when, status=status)
    write_atomic(folder.path / "NODES.md", outputs.markdown(found, run=run, when=when))
    write_atomic(folder.path / "NODES.json", msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")
    write_atomic(folder.path / "junit.xml", outputs.junit(found))
    write_atomic(folder.path / "nodes.prom", outputs.prometheus(found, now=now))
    if options.learn is not None:
        _learn(found, Path(options.learn), when)
    print(f"report: {folder.path / 'NODES.md'}", file=sys.stderr)
    print(outputs.nagios(found, strict=options.strict))
    return status


def _learn(found: Fleet, file: Path, when: str) -> None:
    good = [row.result for row in found.rows if row.result is not None and row.verdict in (Verdict.PASS, Verdict.WARN)]
    learned = reference.learn(good, learned=when, program=store.version())
    try:
        write_atomic(file, msgspec.json.format(msgspec.json.encode(learned), indent=1) + b"\n")
    except OSError as error:
        raise UserError(f"learn={file} cannot be written: {error.strerror}") from None
    print(f"reference: {file} ({len(learned.entries)} rates of {len(good)} nodes)", file=sys.stderr)
