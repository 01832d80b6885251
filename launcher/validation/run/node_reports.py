"""The reports of a validation for people and for monitoring, from NODES.md to a Nagios line; pure."""

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
from launcher.validation.codes import EXIT_OK, MEANINGS, WORST_FIRST, NodeVerdict, Status
from launcher.validation.judge.fleet import Fleet, NodeRow, count_nodes, median_rates
from launcher.validation.node import Node
from launcher.validation.reference import Reference

SCHEMA = "deepep-sweep/nodes/1"
_NAGIOS = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}
_HOST_NAME = re.compile(r"[\w.-]+", re.ASCII)
INJECTED = "Faults were injected on purpose."
_DRY_RUN = "**Dry run: ranks without GPUs. Correctness was tested, speed was not measured.**"


def markdown(fleet: Fleet, *, run: str, when: str, references: Sequence[Reference] = ()) -> str:
    """NODES.md: the nodes, worst first, what to do, their rates, and what could not be judged."""
    counts = {verdict: fleet.verdicts.count(verdict) for verdict in WORST_FIRST}
    lines = [f"# Nodes: {', '.join(f'{count} {verdict}' for verdict, count in counts.items() if count)}", ""]
    if any(row.result is not None and row.result.dry_run for row in fleet.rows):
        lines += [_DRY_RUN, ""]
    if fleet.has_injected:
        lines += [f"**{INJECTED}**", ""]
    lines += [f"Validated {text(when)} in {code(run)}.", ""]
    lines += table(("node", "verdict", "code", "where", "what", "job"), [_cells(row) for row in fleet.rows])
    lines += _actions(fleet) + _rates(fleet, references) + _link_bytes(fleet) + _versions(fleet) + _layers(fleet)
    lines += _drain(fleet, run=run, when=when)
    return "\n".join(lines) + "\n"


def _cells(row: NodeRow) -> list[str]:
    return [text(row.name), row.verdict, row.code, text(row.where), text(row.reason), text(row.job_id or "")]


def _actions(fleet: Fleet) -> list[str]:
    codes = sorted({row.code for row in fleet.rows if row.code in MEANINGS})
    if not codes:
        return []
    rows = [[name, *map(text, MEANINGS[name])] for name in codes]
    return ["## What to do", "", *table(("code", "means", "next"), rows)]


def _rates(fleet: Fleet, references: Sequence[Reference]) -> list[str]:
    """One line per node and rate, because a fleet has many nodes and few tests."""
    medians = fleet.medians_by_kind
    rows = [
        [text(row.name), text(key), *_shares(row.result, key, rate, medians[row.result.fingerprint][key], references)]
        for row in fleet.rows
        if row.result is not None
        for key, rate in sorted(median_rates(row.result).items())
    ]
    if not rows:
        return []
    return [
        "## Rates",
        "",
        "**rate**: median of the blocks, and of the GPUs or pairs if there are several. "
        "GB/s; layers per second for compute. "
        "**of peak**: share of the links' peak in one direction. "
        "**of fleet**: over the median of the nodes with the same GPUs, links and versions. "
        "**of reference**: over the median of the nodes in the reference.",
        "",
        *table(("node", "test", "rate", "of peak", "of fleet", "of reference"), rows),
        *_used_references(fleet, references),
    ]


def _used_references(fleet: Fleet, references: Sequence[Reference]) -> list[str]:
    """The references that judged, with their number of nodes; published ones with their day and versions."""
    used = {}
    for row in fleet.rows:
        for key in median_rates(row.result):
            known = reference.find(references, row.result.environment if row.result else None, key)
            if known is not None:
                used[known.label] = known
    lines = []
    for label, known in sorted(used.items()):
        versions = f", measured with {known.deep_ep}, NCCL {known.nccl}, torch {known.torch}; it can only warn"
        lines.append(f"* {text(label + (versions if known.published else ''))}")
    return ["References:", "", *lines, ""] if lines else []


def _shares(result: Node, key: str, rate: float, median: float, references: Sequence[Reference]) -> list[str]:
    """The rate, and its shares of peak, fleet and reference."""
    peak = next((rate.peak for rate in result.rates if rate.key == key), None)
    known = reference.find(references, result.environment, key)
    return [
        f"{rate:.4g}",
        f"{rate / peak:.0%}" if peak else "",
        f"{rate / median:.2f}x",
        f"{rate / known.median:.2f}x" if known else "",
    ]


def _versions(fleet: Fleet) -> list[str]:
    """The nodes by environment, if their environments differ."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for row in fleet.rows:
        if row.result is not None and row.result.rates:
            groups.setdefault(row.result.fingerprint, []).append(row.name)
    if len(groups) < 2:
        return []
    rows = [[text(", ".join(map(str, fingerprint))), text(", ".join(sorted(n)))] for fingerprint, n in groups.items()]
    return ["## Nodes differ in GPU, links, driver or versions", "", *table(("environment", "nodes"), rows)]


def _link_bytes(fleet: Fleet) -> list[str]:
    """NVML's count of bytes over ours, as a check of the rates."""
    rows = []
    for row in fleet.rows:
        ratios: dict[str, list[float]] = {}
        for count in row.result.suite_runs[0].link_bytes if row.result is not None and row.result.suite_runs else ():
            ratios.setdefault(count.test, []).append(count.ratio)
        rows += [[text(row.name), text(test), f"{min(span):.3f} to {max(span):.3f}"] for test, span in ratios.items()]
    if not rows:
        return []
    head = ["## NVML's link counters over the bytes of the tokens", "", "Range over GPUs and directions."]
    return [*head, "", *table(("node", "test", "NVML / ours"), rows)]


def _layers(fleet: Fleet) -> list[str]:
    absent: dict[str, list[str]] = {}
    for row in fleet.rows:
        for name, report in row.result.layers.items() if row.result is not None else ():
            for gap in _find_gaps(report) if name != "fleet" else ():
                absent.setdefault(f"{name}: {gap}", []).append(row.name)
    lines = ["## What was not judged", ""]
    lines += [f"* {text(gap)} ({count_nodes(len(names))})" for gap, names in sorted(absent.items())]
    lines += [f"* fleet, {text(name)}: {text(report)}" for name, report in fleet.layer.items()]
    return [*lines, ""] if len(lines) > 2 else []


def _find_gaps(report: str) -> list[str]:
    """The clauses of a layer's report that name something it could not judge."""
    if report.startswith("absent"):
        return [report]
    return [clause for clause in report.split("; ")[1:] if re.search(r"\b(no|not|none)\b", clause)]


def drain_lines(fleet: Fleet, *, run: str, when: str) -> list[tuple[str, str]]:
    """For each node with a confirmed or certain fault, the command that drains it and the command that undoes that.

    The code comes first, because sinfo shows about 20 characters.
    """
    lines = []
    for row in fleet.rows:
        short = row.drain_reason
        if not short or not _HOST_NAME.fullmatch(row.name):
            continue
        words = f"EPV:{short} [{when[:10].replace('-', '')} run {PurePath(run).name.rpartition('-')[2]}]"
        reason = shlex.quote("".join(char for char in words if char.isprintable() and char not in "'\""))
        command = f"scontrol update NodeName={row.name}"
        lines.append((f"{command} State=DRAIN Reason={reason}", f"{command} State=RESUME"))
    return lines


def _drain(fleet: Fleet, *, run: str, when: str) -> list[str]:
    commands = drain_lines(fleet, run=run, when=when)
    if not commands:
        return []
    return [
        "## To drain",
        "",
        "Nothing below was executed. Check `sinfo -R` first: a node that already has a reason should keep it.",
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
                "rates": median_rates(row.result),
                "findings": msgspec.to_builtins(row.result.findings) if row.result is not None else [],
            }
            for row in fleet.rows
        ],
    }


def junit(fleet: Fleet) -> str:
    """JUnit XML, one suite per node: failure is a fault, error could not run, skipped was not tried."""
    document = junitparser.JUnitXml("deepep-sweep validate")
    for row in sorted(fleet.rows, key=lambda row: row.name):
        document.add_testsuite(_make_suite(row))
    document.update_statistics()  # type: ignore[no-untyped-call]
    file = io.BytesIO()
    document.write(file)
    return file.getvalue().decode()


def _make_suite(row: NodeRow) -> junitparser.TestSuite:
    suite = junitparser.TestSuite(_clean(row.name))
    case = junitparser.TestCase("verdict", classname=_clean(row.name))
    message = _clean(f"{row.short}: {row.reason}")
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
    for name, result in row.result.suite_runs[0].checks.items() if row.result and row.result.suite_runs else ():
        check = junitparser.TestCase(_clean(name), classname=_clean(row.name))
        if result != "ok":
            check.result = [junitparser.Failure(_clean(result), "wrong")]
        suite.add_testcase(check)
    return suite


def _clean(text: str) -> str:
    """The text without control characters, which XML cannot hold and which would break a line."""
    return "".join(char if char.isprintable() else " " for char in text)


def prometheus(fleet: Fleet) -> str:
    """Metrics for the node exporter's textfile collector."""
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
        "deepep_node_drain",
        "1 if a certain or confirmed fault is a reason to drain, else 0",
        ["node"],
        registry=registry,
    )
    for row in fleet.rows:
        drain.labels(row.name).set(bool(row.drain_reason))
        verdict.labels(row.name, row.verdict.value, row.code).set(1)
        if row.result is not None:  # a node without a result has no age
            last.labels(row.name).set(datetime.fromisoformat(row.result.ended).timestamp())
        for key, median in median_rates(row.result).items():
            rate.labels(row.name, key).set(median)
    return generate_latest(registry).decode()


def nagios(fleet: Fleet, *, status: Status, failure: str = "") -> str:
    """The line of a Nagios plugin: state, the worst nodes, and performance data.

    ``failure``: what the command could not do, where that and no node decides the status.
    """
    summary = failure or (_describe_good(fleet) if status == EXIT_OK else _describe_worst(fleet))
    data = " ".join(f"{verdict.value.lower()}={fleet.verdicts.count(verdict)}" for verdict in WORST_FIRST)
    return _clean(f"DEEPEP {_NAGIOS[status]} - {summary} | {data}")


def _describe_good(fleet: Fleet) -> str:
    is_dry = any(row.result is not None and row.result.dry_run for row in fleet.rows)
    passed = sum(verdict in (NodeVerdict.PASS, NodeVerdict.WARN) for verdict in fleet.verdicts)
    warned, skipped = (fleet.verdicts.count(verdict) for verdict in (NodeVerdict.WARN, NodeVerdict.SKIPPED))
    parts = [f"{'dry run without GPUs: ' if is_dry else ''}{passed} {'node passes' if passed == 1 else 'nodes pass'}"]
    parts += [f"{warned} with warnings"] if warned else []
    parts += [f"{skipped} skipped"] if skipped else []
    return ", ".join(parts)


def _describe_worst(fleet: Fleet) -> str:
    parts = [f"{row.name} {row.verdict} {row.short}" for row in fleet.rows[:3] if row.verdict != NodeVerdict.PASS]
    more = sum(row.verdict is not NodeVerdict.PASS for row in fleet.rows) - 3
    return ", ".join([*parts, f"{more} more"] if more > 0 else parts)
