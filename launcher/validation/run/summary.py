"""Writes the summary of a validation from its files and Slurm's words, and says the exit status."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher import read_version
from launcher.errors import UserError
from launcher.jobs import slurm
from launcher.jobs.slurm import JobState, SlurmSilentError
from launcher.store.files import write_atomic
from launcher.validation import reference
from launcher.validation.codes import EXIT_UNKNOWN, EXIT_USAGE, NodeVerdict, Status, exit_status
from launcher.validation.config import Options
from launcher.validation.judge import fleet
from launcher.validation.judge.fleet import Fleet, NodeRow
from launcher.validation.node import Node
from launcher.validation.node_faults import own_faults
from launcher.validation.run import node_reports
from launcher.validation.run.folder import Order, ValidationFolder


def collect(folder: ValidationFolder) -> Fleet:
    """Every node of the order with what is known of it."""
    order = folder.order()
    states, silent = _states(order)
    rows = [fleet.skipped(skip.node, skip.code, skip.why) for skip in order.skipped]
    for name in order.nodes:
        job = order.jobs.get(name)
        state = order.states.get(job or "")
        if state not in slurm.ENDED:
            state = states[job].state if job in states else state or silent
        rows.append(_row(folder, name, job, state))
    return fleet.judge_fleet(rows, order.spec.thresholds)


def _states(order: Order) -> tuple[dict[str, JobState], str | None]:
    """What Slurm says of the jobs, and what it is to be called where it says nothing of any."""
    if not order.jobs:
        return {}, None
    if not slurm.available():
        return {}, "no Slurm here"
    try:
        return slurm.states(order.jobs.values()), None
    except SlurmSilentError:  # then what was noted must do
        return {}, "Slurm does not answer"


def _row(folder: ValidationFolder, name: str, job: str | None, state: str | None) -> NodeRow:
    if job is None and folder.is_running(name):
        state = "RUNNING"
    try:
        return fleet.row_of(name, job, state, _result(folder, name), began=folder.began(name))
    except UserError as error:
        return NodeRow(name, NodeVerdict.NO_RESULT, "U901", "U901 unreadable", str(error), job)


def _result(folder: ValidationFolder, name: str) -> Node | None:
    """A node's file. Old ones do not name the faults that were injected; the order does."""
    found = folder.result(name)
    injected = own_faults(folder.order().spec.faults, name)
    return found if found is None or found.faults else msgspec.structs.replace(found, faults=injected)


def shown(validate: Callable[[], Status]) -> Status:
    """The exit status of one validation, that of a usage error where it refuses."""
    try:
        return validate()
    except UserError as error:
        error.show()
        return EXIT_USAGE


def wanted(options: Options) -> ValidationFolder | None:
    """The folder that report= names; None where nobody wants that. UserError where there is none."""
    if options.report is None:
        return None
    folder = ValidationFolder(Path(options.report))
    folder.order()
    return folder


def refuse_idle(options: Options) -> None:
    """UserError for what a run that is there would pass over in silence."""
    for key in ("self_test", "dry_run"):
        if getattr(options, key):
            raise UserError(f"run={options.run} is there and is only reported, so that {key} means nothing")


def write(folder: ValidationFolder, options: Options) -> Status:
    """NODES.md, NODES.json, junit.xml and nodes.prom; the Nagios line on stdout; the exit status."""
    found = collect(folder)
    ended = [row.result.ended for row in found.rows if row.result is not None]
    when = max(ended, default=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    run, references = str(folder.path), folder.order().spec.references
    status = exit_status(found.verdicts, strict=options.strict)
    plain = node_reports.to_json(found, run=run, when=when, status=status)
    write_atomic(folder.path / "NODES.md", node_reports.markdown(found, run=run, when=when, references=references))
    write_atomic(folder.path / "NODES.json", msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")
    write_atomic(folder.path / "junit.xml", node_reports.junit(found))
    write_atomic(folder.path / "nodes.prom", node_reports.prometheus(found))
    if found.has_injected:
        print(node_reports.INJECTED, file=sys.stderr)
    print(f"report: {folder.path / 'NODES.md'}", file=sys.stderr)
    print(node_reports.nagios(found, strict=options.strict))
    if options.learn is None:
        return status
    try:
        _learn(found, Path(options.learn), when)
    except UserError as error:
        error.show()
        return status if status is Status.CRITICAL else EXIT_UNKNOWN
    return status


def _learn(found: Fleet, file: Path, when: str) -> None:
    good = [
        row.result
        for row in found.rows
        if row.result is not None and row.verdict in (NodeVerdict.PASS, NodeVerdict.WARN) and not row.result.faults
    ]
    learned = reference.learn(good, learned=when, program=read_version())
    try:
        write_atomic(file, msgspec.json.format(msgspec.json.encode(learned), indent=1) + b"\n")
    except OSError as error:
        raise UserError(f"learn={file} cannot be written: {error.strerror}") from None
    print(f"reference: {file} ({len(learned.entries)} rates of {len(learned.nodes)} nodes)", file=sys.stderr)
