"""What a validation leaves for people and for monitoring, from NODES.md to a Nagios line; pure."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any

import junitparser
import msgspec
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from launcher.text import code, table, text
from launcher.validation import reference
from launcher.validation.codes import EXIT_OK, MEANINGS, WORST_FIRST, NodeVerdict, exit_status
from launcher.validation.judge.fleet import Fleet, NodeRow, rates_of
from launcher.validation.node import Node
from launcher.validation.reference import Reference

SCHEMA = "deepep-sweep/nodes/1"
_NAGIOS = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}
_HOST_NAME = re.compile(r"[\w.-]+", re.ASCII)
INJECTED = "Faults were injected on purpose."
_DRY = "**Dry run: ranks without GPUs. Correctness was tested, speed was not measured.**"


def markdown(fleet: Fleet, *, run: str, when: str, references: Sequence[Reference] = ()) -> str:
    """NODES.md: the worst first, what to do, and what was not judged."""
    counts = {verdict: fleet.verdicts.count(verdict) for verdict in WORST_FIRST}
    lines = [f"# Nodes: {', '.join(f'{count} {verdict}' for verdict, count in counts.items() if count)}", ""]
    if any(row.result is not None and row.result.dry_run for row in fleet.rows):
        lines += [_DRY, ""]
    if fleet.has_injected:
        lines += [f"**{INJECTED}**", ""]
    lines += [f"Validated {text(when)} in {code(run)}.", ""]
    lines += table(("node", "verdict", "code", "where", "what", "job"), [_cells(row) for row in fleet.rows])
    lines += _actions(fleet) + _rates(fleet, references) + _two_counts(fleet) + _versions(fleet) + _layers(fleet)
    lines += _drain(fleet, run=run, when=when)
    return "\n".join(lines) + "\n"


def _cells(row: NodeRow) -> list[str]:
    return [text(row.name), row.verdict, row.code, text(row.where), text(row.reason), text(row.job_id or "")]


def _actions(fleet: Fleet) -> list[str]:
    seen = sorted({row.code for row in fleet.rows if row.code in MEANINGS})
    if not seen:
        return []
    rows = [[name, text(MEANINGS[name][0]), text(MEANINGS[name][1])] for name in seen]
    return ["## What to do", "", *table(("code", "means", "next"), rows)]


def _rates(fleet: Fleet, references: Sequence[Reference]) -> list[str]:
    """Each node's rates and their shares, a line for each: a fleet has many nodes and few tests."""
    medians = fleet.medians_by_kind
    rows = [
        [text(row.name), text(key), *_shares(row.result, key, value, medians[row.result.fingerprint][key], references)]
        for row in fleet.rows
        if row.result is not None
        for key, value in sorted(rates_of(row.result).items())
    ]
    if not rows:
        return []
    return [
        "## Rates",
        "",
        "Medians of the blocks, over the GPUs or pairs where there are several; GB/s, or layers a second for compute. "
        "**of peak**: of the links concerned, one direction. **of fleet**: over the median of the "
        "nodes with the same GPUs, links and versions. "
        "**of reference**: over that of the good nodes that it was learned from.",
        "",
        *table(("node", "test", "rate", "of peak", "of fleet", "of reference"), rows),
    ]


def _shares(result: Node, key: str, value: float, median: float, references: Sequence[Reference]) -> list[str]:
    peak = next((rate.peak for rate in result.rates if rate.key == key), None)
    known = reference.find(references, reference.node_kind(result), key)
    return [
        f"{value:.4g}",
        f"{value / peak:.0%}" if peak else "",
        f"{value / median:.2f}x",
        f"{value / known.median:.2f}x" if known else "",
    ]


def _versions(fleet: Fleet) -> list[str]:
    """Where nodes differ in what they run."""
    found: dict[tuple[object, ...], list[str]] = {}
    for row in fleet.rows:
        if row.result is not None and row.result.rates:
            found.setdefault(row.result.fingerprint, []).append(row.name)
    if len(found) < 2:
        return []
    rows = [[text(", ".join(map(str, print_))), text(", ".join(sorted(names)))] for print_, names in found.items()]
    return ["## Nodes differ in GPU, links, driver or versions", "", *table(("environment", "nodes"), rows)]


def _two_counts(fleet: Fleet) -> list[str]:
    """The bytes that the rates stand on, beside what NVML counted on the links."""
    rows = []
    for row in fleet.rows:
        ratios: dict[str, list[float]] = {}
        for one in row.result.attempts[0].link_bytes if row.result is not None and row.result.attempts else ():
            ratios.setdefault(one.test, []).append(one.ratio)
        rows += [[text(row.name), text(test), f"{min(of):.3f} to {max(of):.3f}"] for test, of in ratios.items()]
    if not rows:
        return []
    head = ["## NVML's link counters over the bytes of the tokens", "", "The range over GPUs and directions."]
    return [*head, "", *table(("node", "test", "NVML / ours"), rows)]


def _layers(fleet: Fleet) -> list[str]:
    absent: dict[str, list[str]] = {}
    for row in fleet.rows:
        for name, said in row.result.layers.items() if row.result is not None else ():
            for part in _unjudged(said) if name != "fleet" else ():
                absent.setdefault(f"{name}: {part}", []).append(row.name)
    lines = ["## What was not judged", ""]
    lines += [f"* {text(said)} ({len(names)} nodes)" for said, names in sorted(absent.items())]
    lines += [f"* fleet, {text(name)}: {text(said)}" for name, said in fleet.layer.items()]
    return [*lines, ""] if len(lines) > 2 else []


def _unjudged(said: str) -> list[str]:
    """What a layer says that it did not judge: all of it, or clauses behind what it did."""
    if said.startswith("absent"):
        return [said]
    return [part for part in said.split("; ")[1:] if re.search(r"\b(no|not|none)\b", part)]


def drain_lines(fleet: Fleet, *, run: str, when: str) -> list[tuple[str, str]]:
    """For each node with a confirmed or certain fault the command that drains it, and the one that takes it back.

    The code comes first: sinfo shows some 20 characters.
    """
    found = []
    for row in fleet.rows:
        short = row.drain_reason
        if not short or not _HOST_NAME.fullmatch(row.name):
            continue
        words = f"EPV:{short} [{when[:10].replace('-', '')} run {PurePath(run).name.rpartition('-')[2]}]"
        reason = shlex.quote("".join(char for char in words if char.isprintable() and char not in "'\""))
        command = f"scontrol update NodeName={row.name}"
        found.append((f"{command} State=DRAIN Reason={reason}", f"{command} State=RESUME"))
    return found


def _drain(fleet: Fleet, *, run: str, when: str) -> list[str]:
    commands = drain_lines(fleet, run=run, when=when)
    if not commands:
        return []
    return [
        "## To drain",
        "",
        "Nothing below was executed. A node that has a reason already (`sinfo -R`) keeps it: look first.",
        "",
        "```",
        *(f"{drain}\n# undo: {undo}" for drain, undo in commands),
        "```",
        "",
    ]


def to_json(fleet: Fleet, *, run: str, when: str, status: int) -> dict[str, Any]:
    """NODES.json."""
    return {
        "schema": SCHEMA,
        "run": run,
        "when": when,
        "exit_status": status,
        "note": INJECTED if fleet.has_injected else "",
        "counts": {verdict.value: fleet.verdicts.count(verdict) for verdict in WORST_FIRST},
        "fleet_layer": fleet.layer,
        "medians": fleet.medians,
        "nodes": [
            {
                "node": row.name,
                "verdict": row.verdict.value,
                "code": row.code,
                "where": row.where,
                "reason_short": row.short,
                "reason": row.reason,
                "job_id": row.job_id,
                "faults": row.result.faults if row.result is not None else [],
                "rates": rates_of(row.result),
                "findings": msgspec.to_builtins(row.result.findings) if row.result is not None else [],
            }
            for row in fleet.rows
        ],
    }


def junit(fleet: Fleet) -> str:
    """A suite for each node: failure for a fault, error for what could not run, skipped for what was not tried."""
    made = junitparser.JUnitXml("deepep-sweep validate")
    for row in sorted(fleet.rows, key=lambda one: one.name):
        suite = junitparser.TestSuite(_xml(row.name))
        case = junitparser.TestCase("verdict", classname=_xml(row.name))
        message = _xml(f"{row.short}: {row.reason}")
        if row.verdict in (NodeVerdict.FAIL, NodeVerdict.HANG):
            case.result = [junitparser.Failure(message, row.code)]
        elif row.verdict in (NodeVerdict.SETUP, NodeVerdict.INCONCLUSIVE, NodeVerdict.NO_RESULT):
            case.result = [junitparser.Error(message, row.code)]
        elif row.verdict is NodeVerdict.SKIPPED:
            case.result = [junitparser.Skipped(message)]
        elif row.verdict is NodeVerdict.WARN:
            case.system_out = message
        if row.result is not None:
            case.time = row.result.wall_s
        suite.add_testcase(case)
        for name, said in row.result.attempts[0].checks.items() if row.result and row.result.attempts else ():
            check = junitparser.TestCase(_xml(name), classname=_xml(row.name))
            if said != "ok":
                check.result = [junitparser.Failure(_xml(said), "wrong")]
            suite.add_testcase(check)
        made.add_testsuite(suite)
    made.update_statistics()  # type: ignore[no-untyped-call]
    out = io.BytesIO()
    made.write(out)
    return out.getvalue().decode()


def _xml(value: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(char if char.isprintable() else " " for char in value)


def prometheus(fleet: Fleet) -> str:
    """For the node exporter's textfile collector."""
    registry = CollectorRegistry()
    verdict = Gauge(
        "deepep_node_verdict", "1 for the verdict that the node has", ["node", "verdict", "code"], registry=registry
    )
    rate = Gauge("deepep_node_rate", "median of a test, GB/s or layers/s", ["node", "test"], registry=registry)
    last = Gauge(
        "deepep_node_last_run_timestamp_seconds",
        "Unix time of the node's last validation",
        ["node"],
        registry=registry,
    )
    drain = Gauge(
        "deepep_node_drain", "1 where a certain or confirmed fault is a reason to drain", ["node"], registry=registry
    )
    for row in fleet.rows:
        drain.labels(row.name).set(bool(row.drain_reason))
        verdict.labels(row.name, row.verdict.value, row.code).set(1)
        if row.result is not None:  # what was never validated has no age
            last.labels(row.name).set(datetime.fromisoformat(row.result.ended).timestamp())
        for key, value in rates_of(row.result).items():
            rate.labels(row.name, key).set(value)
    return generate_latest(registry).decode()


def nagios(fleet: Fleet, *, strict: bool) -> str:
    """One line: state, what is wrong with the worst, and performance data."""
    status = exit_status(fleet.verdicts, strict=strict)
    if status == EXIT_OK:
        dry = any(row.result is not None and row.result.dry_run for row in fleet.rows)
        passed = sum(verdict in (NodeVerdict.PASS, NodeVerdict.WARN) for verdict in fleet.verdicts)
        said = f"{'dry run without GPUs: ' if dry else ''}{passed} {'node passes' if passed == 1 else 'nodes pass'}"
        warned = fleet.verdicts.count(NodeVerdict.WARN)
        skipped = fleet.verdicts.count(NodeVerdict.SKIPPED)
        said += f", {warned} with warnings" if warned else ""
        said += f", {skipped} skipped" if skipped else ""
    else:
        said = ", ".join(f"{row.name} {row.verdict} {row.short}" for row in fleet.rows[:3] if row.verdict != "PASS")
        more = sum(row.verdict is not NodeVerdict.PASS for row in fleet.rows) - 3
        said += f", {more} more" if more > 0 else ""
    data = " ".join(f"{verdict.value.lower()}={fleet.verdicts.count(verdict)}" for verdict in WORST_FIRST)
    line = f"DEEPEP {_NAGIOS[status]} - {said} | {data}"
    return "".join(char if char.isprintable() else " " for char in line)
