"""The summary of a validation: from the nodes' files and the states of their jobs to reports and an exit status."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.errors import UserError, read_version
from launcher.jobs import slurm
from launcher.jobs.slurm import JobState, SlurmSilentError
from launcher.store.files import write_atomic
from launcher.validation import reference
from launcher.validation.codes import EXIT_UNKNOWN, EXIT_USAGE, NodeVerdict, Status, exit_status
from launcher.validation.config import Options
from launcher.validation.judge.fleet import Fleet, NodeRow, judge_fleet, make_row, make_skipped_row
from launcher.validation.node import Node
from launcher.validation.node_faults import select_faults
from launcher.validation.run import node_reports
from launcher.validation.run.folder import Order, ValidationFolder


def collect(folder: ValidationFolder) -> Fleet:
    """Every node of the order with all that is known of it, and of the earlier validation that the order names.

    UserError if that is not a validation folder, or is this one.
    """
    earlier = folder.order().earlier
    return judge_fleet(
        _read_rows(folder), earlier=[] if earlier is None else _read_rows(_open_earlier(earlier, folder))
    )


def _open_earlier(earlier: str, folder: ValidationFolder | None = None) -> ValidationFolder:
    """The folder of earlier=. UserError if it is not a validation folder, or is ``folder``."""
    other = ValidationFolder(Path(earlier))
    if folder is not None and other.path.resolve() == folder.path.resolve():
        raise UserError(f"earlier={earlier} is the validation that is reported", hint="name one that ran before it")
    other.order()
    return other


def _read_rows(folder: ValidationFolder) -> list[NodeRow]:
    order = folder.order()
    states, unknown = _query_states(order)
    rows = [make_skipped_row(skip.node, skip.code, skip.why) for skip in order.skipped]
    for name in order.nodes:
        job = order.jobs.get(name)
        state = order.states.get(job or "")
        if state not in slurm.ENDED:
            state = states[job].state if job in states else state or unknown
        rows.append(_read_row(folder, name, job, state))
    return rows


def _query_states(order: Order) -> tuple[dict[str, JobState], str | None]:
    """The states of the jobs, and what stands for a state that Slurm does not report."""
    if not order.jobs:
        return {}, None
    if not slurm.is_available():
        return {}, "no Slurm here"
    try:
        return slurm.query_jobs(order.jobs.values()), None
    except SlurmSilentError:  # the states in order.json must do
        return {}, "Slurm does not answer"


def _read_row(folder: ValidationFolder, name: str, job: str | None, state: str | None) -> NodeRow:
    if job is None and folder.is_running(name):
        state = "RUNNING"
    try:
        return make_row(name, job, state, _read_result(folder, name), began=folder.began(name))
    except UserError as error:
        return NodeRow(name, NodeVerdict.NO_RESULT, "U901", "U901 unreadable", str(error), job)


def _read_result(folder: ValidationFolder, name: str) -> Node | None:
    """A node's file. Old files do not name the faults that were injected; the order does."""
    result = folder.result(name)
    if result is None or result.faults:
        return result
    return msgspec.structs.replace(result, faults=select_faults(folder.order().spec.faults, name))


def run_validation(validate: Callable[[], Status]) -> Status:
    """The exit status of a validation; that of a usage error if it raises UserError."""
    try:
        return validate()
    except UserError as error:
        error.show()
        return EXIT_USAGE


def open_report(options: Options) -> ValidationFolder | None:
    """The folder that report= names; None without report=. UserError if it, or earlier=, is not a validation folder."""
    if options.earlier is not None:
        _open_earlier(options.earlier)
    if options.report is None:
        return None
    folder = ValidationFolder(Path(options.report))
    folder.order()
    return folder


def refuse_idle(options: Options) -> None:
    """UserError for options that the report of an existing run would ignore."""
    for key in ("self_test", "dry_run"):
        if getattr(options, key):
            raise UserError(f"run={options.run} exists and is only reported: it cannot use {key}")


def write(folder: ValidationFolder, options: Options) -> Status:
    """Writes NODES.md, NODES.json, junit.xml and nodes.prom, prints the Nagios line, and returns the exit status.

    The order remembers ``earlier``, so that a later report says the same.
    """
    if options.earlier is not None:
        _open_earlier(options.earlier, folder)
        folder.note(msgspec.structs.replace(folder.order(), earlier=options.earlier))
    fleet = collect(folder)
    ended = [row.result.ended for row in fleet.rows if row.result is not None]
    when = max(ended, default=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    run, references = str(folder.path), folder.order().spec.references
    status, failure = exit_status(fleet.verdicts, strict=options.strict), ""
    try:
        _write_reference(fleet, options, when)
    except UserError as error:
        error.show()
        if status is not Status.CRITICAL:
            status, failure = EXIT_UNKNOWN, str(error)
    plain = node_reports.to_json(fleet, run=run, when=when, status=status)
    write_atomic(folder.path / "NODES.md", node_reports.markdown(fleet, run=run, when=when, references=references))
    write_atomic(folder.path / "NODES.json", msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")
    write_atomic(folder.path / "junit.xml", node_reports.junit(fleet))
    write_atomic(folder.path / "nodes.prom", node_reports.prometheus(fleet))
    if fleet.has_injected:
        print(node_reports.INJECTED, file=sys.stderr)
    print(f"report: {folder.path / 'NODES.md'}", file=sys.stderr)
    print(node_reports.nagios(fleet, status=status, failure=failure))
    return status


def _write_reference(fleet: Fleet, options: Options, when: str) -> None:
    """Writes the reference that ``learn`` asks for, if it does. UserError if these nodes give none."""
    if options.learn is None:
        return
    file = Path(options.learn)
    good = [
        row.result
        for row in fleet.rows
        if row.result is not None and row.verdict in (NodeVerdict.PASS, NodeVerdict.WARN) and not row.result.faults
    ]
    learned = reference.learn(good, learned=when, program=read_version())
    try:
        write_atomic(file, msgspec.json.format(msgspec.json.encode(learned), indent=1) + b"\n")
    except OSError as error:
        raise UserError(f"learn={file} cannot be written: {error.strerror}") from None
    print(f"reference: {file} ({len(learned.entries)} rates of {len(learned.nodes)} nodes)", file=sys.stderr)
