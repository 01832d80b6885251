"""What a validation leaves for people and for monitoring, from NODES.md to a Nagios line; pure."""

from __future__ import annotations

import io
import shlex
from typing import Any

import junitparser
import msgspec
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from launcher.markdown import code, table, text
from launcher.validation.fleet import Fleet, Row, rates_of
from launcher.validation.verdict import EXIT_OK, MEANINGS, WORST_FIRST, Verdict, exit_status

SCHEMA = "deepep-sweep/nodes/1"
_NAGIOS = {0: "OK", 1: "WARNING", 2: "CRITICAL", 3: "UNKNOWN"}
_REASON_CHARS = 60
_DRY = "**Dry run: ranks without GPUs. Correctness was tested, speed was not measured.**"


def markdown(fleet: Fleet, *, run: str, when: str) -> str:
    """NODES.md: the worst first, what to do, and what was not judged."""
    counts = {verdict: fleet.verdicts.count(verdict) for verdict in WORST_FIRST}
    lines = [f"# Nodes: {', '.join(f'{count} {verdict}' for verdict, count in counts.items() if count)}", ""]
    if any(row.result is not None and row.result.dry_run for row in fleet.rows):
        lines += [_DRY, ""]
    lines += [f"Validated {text(when)} in {code(run)}.", ""]
    lines += table(("node", "verdict", "code", "what", "job"), [_cells(row) for row in fleet.rows])
    lines += _actions(fleet) + _rates(fleet) + _versions(fleet) + _layers(fleet) + _drain(fleet, run=run)
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    return [text(row.name), row.verdict, row.code, text(row.reason), text(row.job_id or "")]


def _actions(fleet: Fleet) -> list[str]:
    seen = sorted({row.code for row in fleet.rows if row.code in MEANINGS})
    if not seen:
        return []
    rows = [[name, text(MEANINGS[name][0]), text(MEANINGS[name][1])] for name in seen]
    return ["## What to do", "", *table(("code", "means", "next"), rows)]


def _rates(fleet: Fleet) -> list[str]:
    """Each node's rates as shares of the fleet's median, and of the link's peak."""
    medians = fleet.medians
    if not medians:
        return []
    peaks = {
        rate.key: rate.peak for row in fleet.rows if row.result is not None for rate in row.result.rates if rate.peak
    }
    keys = sorted(medians)
    rows = []
    for row in fleet.rows:
        own = rates_of(row.result)
        cells = []
        for key in keys:
            if key not in own:
                cells.append("")
                continue
            share = f", {own[key] / peaks[key]:.0%} of peak" if key in peaks else ""
            cells.append(f"{own[key]:.1f} ({own[key] / medians[key]:.2f}x{share})")
        if own:
            rows.append([text(row.name), *cells])
    return [
        "## Rates",
        "",
        "Medians; in brackets over the median of all nodes, and over the link's peak in one direction.",
        "",
        *table(("node", *(text(key) for key in keys)), rows),
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


def _layers(fleet: Fleet) -> list[str]:
    absent: dict[str, list[str]] = {}
    for row in fleet.rows:
        for name, said in row.result.layers.items() if row.result is not None else ():
            if said.startswith("absent") and name != "fleet":
                absent.setdefault(f"{name}: {said}", []).append(row.name)
    lines = ["## What was not judged", ""]
    lines += [f"* {text(said)} ({len(names)} nodes)" for said, names in sorted(absent.items())]
    lines += [f"* fleet, {text(name)}: {text(said)}" for name, said in fleet.layer.items()]
    return [*lines, ""] if len(lines) > 2 else []


def drain_lines(fleet: Fleet, *, run: str, day: str = "") -> list[tuple[str, str]]:
    """For each node with a confirmed fault the command that drains it, and the one that takes it back."""
    found = []
    for row in fleet.rows:
        if row.verdict not in (Verdict.FAIL, Verdict.HANG) or row.result is None or row.code == "E208":
            continue  # what only the fleet has shown has not been seen twice: validate these nodes again
        words = f"EPV:{row.short} [{day} run {run.rpartition('-')[2]}]".replace("'", "").replace("\n", " ")
        reason = shlex.quote(words[: _REASON_CHARS + 30])
        node = shlex.quote(row.name)
        found.append(
            (
                f"scontrol update NodeName={node} State=DRAIN Reason={reason}",
                f"scontrol update NodeName={node} State=RESUME",
            )
        )
    return found


def _drain(fleet: Fleet, *, run: str) -> list[str]:
    commands = drain_lines(fleet, run=run)
    if not commands or any(row.result is not None and row.result.dry_run for row in fleet.rows):
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
        "counts": {verdict.value: fleet.verdicts.count(verdict) for verdict in WORST_FIRST},
        "fleet_layer": fleet.layer,
        "medians": fleet.medians,
        "nodes": [
            {
                "node": row.name,
                "verdict": row.verdict.value,
                "code": row.code,
                "reason_short": row.short,
                "reason": row.reason,
                "job_id": row.job_id,
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
        if row.verdict in (Verdict.FAIL, Verdict.HANG):
            case.result = [junitparser.Failure(message, row.code)]
        elif row.verdict in (Verdict.SETUP, Verdict.INCONCLUSIVE, Verdict.NO_RESULT):
            case.result = [junitparser.Error(message, row.code)]
        elif row.verdict is Verdict.SKIPPED:
            case.result = [junitparser.Skipped(message)]
        elif row.verdict is Verdict.WARN:
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


def prometheus(fleet: Fleet, *, now: float) -> str:
    """For the node exporter's textfile collector."""
    registry = CollectorRegistry()
    verdict = Gauge(
        "deepep_node_verdict", "1 for the verdict that the node has", ["node", "verdict", "code"], registry=registry
    )
    rate = Gauge("deepep_node_rate", "median of a test, GB/s or layers/s", ["node", "test"], registry=registry)
    last = Gauge(
        "deepep_node_last_run_timestamp_seconds", "Unix time at which this file was made", ["node"], registry=registry
    )
    for row in fleet.rows:
        verdict.labels(row.name, row.verdict.value, row.code).set(1)
        last.labels(row.name).set(now)
        for key, value in rates_of(row.result).items():
            rate.labels(row.name, key).set(value)
    return generate_latest(registry).decode()


def nagios(fleet: Fleet, *, strict: bool) -> str:
    """One line: state, what is wrong with the worst, and performance data."""
    status = exit_status(fleet.verdicts, strict=strict)
    if status == EXIT_OK:
        said = f"{len(fleet.rows)} nodes pass"
        warned = fleet.verdicts.count(Verdict.WARN)
        skipped = fleet.verdicts.count(Verdict.SKIPPED)
        said += f", {warned} with warnings" if warned else ""
        said += f", {skipped} skipped" if skipped else ""
    else:
        said = ", ".join(f"{row.name} {row.verdict} {row.short}" for row in fleet.rows[:3] if row.verdict != "PASS")
        more = sum(row.verdict is not Verdict.PASS for row in fleet.rows) - 3
        said += f", {more} more" if more > 0 else ""
    data = " ".join(f"{verdict.value.lower()}={fleet.verdicts.count(verdict)}" for verdict in WORST_FIRST)
    line = f"DEEPEP {_NAGIOS[status]} - {said} | {data}"
    return "".join(char if char.isprintable() else " " for char in line)
